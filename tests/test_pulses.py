"""Reference neurons, which spike whatever the input, against inputs of the oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from precision import float64
from test_neurons import (
    CONVS,
    POOLED,
    THETA,
    T,
    conv_case,
    conv_pool,
    cotangent,
    dyadic,
    explicit_pads,
    spike_times,
)

import ds4nn_jax as ds
from ds4nn_jax.networks import pretrained
from ds4nn_jax.training import optimizers

CONSTANT, WINDOW = "constant", ds.Window(64.0)  # a width that keeps sums exact


def quiet(rng, shape):
    """Spike times of images of which the first is silent and the others in part."""
    times = spike_times(rng, shape)
    times[0] = times[:, : shape[1] // 2] = T
    return times


def thresholds(outputs):
    """One of each neuron or channel, some of them equal."""
    return np.float32(THETA * (3 + np.arange(outputs) % 3) / 4)


def learning(rule, oracle):
    """The end of each neuron's integration, its slope, whether silent inputs learn."""
    if rule == "constant":
        return oracle.times, 1, False
    missing = np.abs(oracle.potential - thresholds(oracle.times.shape[-1]))
    return oracle.t_star, np.maximum(0, 1 - missing / 64), True


def assert_equal(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def reference_gradients(pulses, end, errors, steps):
    """By pulses and by thresholds: −θ is a pulse that all neurons get."""
    start = reference.pulse_gradients(np.zeros((1, end.shape[-1])), end, errors, 1)
    return reference.pulse_gradients(pulses, end, errors, steps), -start[0]


def conv_gradients(times, kernel, pulses, end, errors, steps, geometry, silent):
    """Those of the oracle, by times, kernel, pulses and thresholds."""
    arrays = end, errors, steps
    others = reference.conv_gradients(
        times, kernel, *arrays, *geometry, silent_inputs=silent
    )
    return *others, *reference_gradients(pulses, *arrays)


@pytest.mark.parametrize(
    "name, count, rule",
    [
        ("same", 1, WINDOW),
        ("same", 10, CONSTANT),
        ("stride 2", 10, WINDOW),
        ("uneven pads", 5, CONSTANT),
        ("one-pixel image", T, WINDOW),
        # More reference neurons than inputs, in a longer T.
        ("one channel", 30 - 9, WINDOW),
    ],
)
def test_conv_equals_oracle(name, count, rule, engine, rng):
    """A window without an input spike, and a whole image of them, get pulses alone."""
    steps = max(T, 2 * count) if count > T else T
    case = CONVS[name]
    layer, geometry = conv_case(case, engine, rule)
    layer = functools.partial(layer, num_steps=steps)
    times, kernel = quiet(rng, case["shape"]), dyadic(rng, case["kernel"])
    times[times == T] = steps
    pulses = dyadic(rng, (count, kernel.shape[-1]), -2, 2)
    theta = thresholds(kernel.shape[-1])
    oracle = reference.conv(times, kernel, theta, steps, *geometry, pulses=pulses)
    operands = times, kernel, pulses, theta
    out, vjp = jax.vjp(lambda t, k, r, θ: layer(t, k, pulses=r, threshold=θ), *operands)
    np.testing.assert_array_equal(out, oracle.times)
    delta = cotangent(rng, out.shape)
    end, slope, silent = learning(rule, oracle)
    errors = end, delta * slope, steps, geometry, silent
    assert_equal(vjp(delta), conv_gradients(times, kernel, pulses, *errors))


@pytest.mark.parametrize(
    "name, count, rule",
    [
        ("2x2", 1, CONSTANT),
        ("2x2", 10, WINDOW),
        ("uneven window", 9, WINDOW),
        ("valid", T, CONSTANT),
    ],
)
def test_pooled_convolution_equals_oracle(name, count, rule, engine, rng):
    """In windows of few and of many rows, with outputs in one and several lanes."""
    case = dict(POOLED[name])
    image, shape, window = (case.pop(key) for key in ("image", "kernel", "window"))
    times, kernel = quiet(rng, (2, *image, shape[2])), dyadic(rng, shape)
    pulses = dyadic(rng, (count, shape[-1]), -2, 2)
    theta = thresholds(shape[-1])
    options = dict(num_steps=T, engine=engine, surrogate=rule)
    run = functools.partial(conv_pool, window=window, **case, **options)
    operands = times, kernel, pulses, theta
    out, vjp = jax.vjp(lambda t, k, r, θ: run(t, k, pulses=r, threshold=θ), *operands)
    geometry = (1, 1), explicit_pads({"shape": times.shape, "kernel": shape, **case})
    oracle = reference.conv(times, kernel, theta, T, *geometry, pulses=pulses)
    np.testing.assert_array_equal(out, reference.pool(oracle.times, window, window)[0])
    delta = cotangent(rng, out.shape)
    spread = reference.pool_gradient(oracle.times, window, window, delta)
    end, slope, silent = learning(rule, oracle)
    errors = end, spread * slope, T, geometry, silent
    assert_equal(vjp(delta), conv_gradients(times, kernel, pulses, *errors))


@pytest.mark.parametrize(
    "count, urgency, rule",
    [
        (1, 0.0, WINDOW),
        (10, 0.25, CONSTANT),
        (T, 0.0, WINDOW),
        (5, 0.25, WINDOW),
    ],
)
@pytest.mark.parametrize("inputs, outputs", [(9, 5), (40, 70)])
def test_dense_equals_oracle(inputs, outputs, count, urgency, rule, engine, rng):
    """And the potentials that break ties; an urgency adds T more of one weight."""
    times = spike_times(rng, (4, inputs))
    times[0] = T
    kernel = dyadic(rng, (inputs, outputs), -1, 2)
    pulses = dyadic(rng, (count, outputs), -2, 2)
    everything = pulses
    if urgency:
        everything = np.full((T, outputs), urgency)
        for p, step in enumerate(reference.clock(pulses, T)):
            everything[step] += pulses[p]
    theta = thresholds(outputs)
    oracle = reference.dense(times, kernel, theta, T, pulses=everything)
    shared = dict(num_steps=T, engine=engine, urgency=urgency)
    layer = functools.partial(ds.dense, surrogate=rule, **shared)
    operands = times, kernel, pulses, theta
    out, vjp = jax.vjp(lambda t, k, r, θ: layer(t, k, pulses=r, threshold=θ), *operands)
    np.testing.assert_array_equal(out, oracle.times)
    delta = cotangent(rng, out.shape)
    end, slope, silent = learning(rule, oracle)
    arrays = end, delta * slope, T
    expected = reference.dense_gradients(times, kernel, *arrays, silent_inputs=silent)
    assert_equal(vjp(delta), (*expected, *reference_gradients(pulses, *arrays)))

    running = ds.membrane_potentials(
        times, kernel, num_steps=T, urgency=urgency, pulses=pulses
    )
    fired = oracle.times < T
    assert fired.any() and not fired.all()
    np.testing.assert_array_equal(
        ds.decision_potentials(times, kernel, pulses=pulses, threshold=theta, **shared),
        np.where(fired, oracle.potential, running[-1]),
    )
    np.testing.assert_array_equal(
        np.where(fired, 0, np.max(running, axis=0)),
        np.where(fired, 0, oracle.potential),
    )


def test_not_before_and_unless(engine):
    """Worked, T = 100, θ = 100. The first neuron has both its inputs at step 10, and
    50 mV taken from it until step 50; the second fires at 50 unless its input comes."""
    times = np.array([[10, 10], [100, 100]], np.float32)
    kernel = np.array([[60, -60], [60, 0]], np.float32)
    pulses = np.array([[-50, 0], [50, 100]], np.float32)
    out = ds.dense(times, kernel, pulses=pulses, engine=engine)
    np.testing.assert_array_equal(out, [[50, 100], [100, 50]])


@pytest.mark.parametrize("kind", ["dense", "conv_pool"])
def test_composes(kind, engine, rng):
    """jit, vmap over images, weights and both, and float64 give what float32 gives."""
    shape, of_kernel = {
        "dense": ((3, 2, 9), (9, 5)),
        "conv_pool": ((3, 2, 4, 6, 2), (3, 3, 2, 5)),
    }[kind]
    options = dict(threshold=THETA, num_steps=T, engine=engine, surrogate=WINDOW)
    layer = functools.partial(ds.dense if kind == "dense" else conv_pool, **options)
    times = spike_times(rng, shape)
    kernel, pulses = dyadic(rng, (3, *of_kernel)), dyadic(rng, (3, 7, 5), -2, 2)

    def run(times, kernel, pulses):
        out, vjp = jax.vjp(lambda t, k, r: layer(t, k, pulses=r), times, kernel, pulses)
        return out, *vjp(
            jnp.round(8 * jnp.sin(jnp.arange(out.size))).reshape(out.shape)
        )

    alone = jax.jit(run)
    for axes in ((0, 0, 0), (0, None, None), (None, None, 0)):
        arrays = [
            x[0] if axis is None else x
            for x, axis in zip((times, kernel, pulses), axes, strict=True)
        ]
        each = [
            alone(
                *(x if a is None else x[n] for x, a in zip(arrays, axes, strict=True))
            )
            for n in range(3)
        ]
        expected = [np.stack(parts) for parts in zip(*each, strict=True)]
        assert_equal(jax.jit(jax.vmap(run, axes))(*arrays), expected)
    arrays = times[0], kernel[0], pulses[0]
    with float64():
        wide = alone(*(jnp.asarray(x, jnp.float64) for x in arrays))
        assert {x.dtype for x in wide} == {jnp.dtype("float64")}
    assert_equal(wide, run(*arrays))


@pytest.mark.parametrize(
    "spec, shape, padding, pulses, urgency",
    [
        ("5C3-P2-6C3-P2-9-4", (8, 8, 1), "SAME", (4, 10, 3, 5), 0.125),
        ("5C3-P2-6C3-4", (7, 9, 2), "SAME", (24, 1), 0.0),
        ("3C3s2-40C2-4", (9, 8, 1), "VALID", (7, 0, 5), 0.0),
        ("12-40-4", (12,), "SAME", (0, 24), 0.125),
        ("12-4", (12,), "SAME", (9,), 0.0),
    ],
)
def test_a_network_decides_the_same_however_it_is_run(
    spec, shape, padding, pulses, urgency, engine, rng
):
    """`infer`, `activity` and the trace; image 0 is without a spike."""
    network = ds.SpikingNetwork.from_spec(
        spec,
        num_steps=24,
        threshold=2.0,
        urgency=urgency,
        padding=padding,
        pulses=pulses,
        engine=engine,
    )
    times = rng.integers(0, 25, (9, *shape)).astype(np.float32)
    times[0] = 24
    params = jax.tree.map(
        lambda w: dyadic(rng, w.shape, -0.5, 2), network.init(jax.random.key(0), times)
    )
    for name, count in network.pulse_counts.items():
        assert ("pulses" in params["params"][name]) == (count > 0)
        if count:
            own = params["params"][name]["pulses"]
            assert own.shape[0] == count
            params["params"][name]["pulses"] = dyadic(rng, own.shape, -0.5, 1.5)

    @jax.jit  # one program, which compiles sooner than many small ones
    def run(params, times):
        trace = network.apply(params, times, method="trace")
        activity = network.apply(params, times, method="activity")
        return trace, ds.decide(trace), activity

    trace, full, activity = run(params, times)
    short = ds.infer(network, params, times)
    for name in ("label", "step", "spikes"):
        np.testing.assert_array_equal(getattr(short, name), getattr(full, name), name)
    assert full.step[0] < 24, "an image without a spike is decided by pulses alone"
    by_step = [
        (np.asarray(x).reshape(9, -1, 1) == np.arange(24)).sum(1) for x in trace.times
    ]
    np.testing.assert_array_equal(activity.counts, np.stack(by_step, 1))
    np.testing.assert_array_equal(activity.times, trace.times[-1])
    np.testing.assert_array_equal(activity.potentials, trace.potentials)


def test_numbers_of_pulses():
    """The last number stands for the layers that are left; of none there is no leaf."""
    network = ds.SpikingNetwork.from_spec("4C3-P2-8-10", pulses=[6, 2])
    assert network.pulse_counts == {"conv1": 6, "dense2": 2, "dense3": 2}
    assert network == network.clone(pulses=(6, 2))
    none = network.clone(pulses=())
    assert set(none.pulse_counts.values()) == {0}
    times = np.zeros((1, 4, 4, 1), np.float32)
    params = network.init(jax.random.key(0), times)["params"]
    assert {name: len(layer["pulses"]) for name, layer in params.items()} == {
        "conv1": 6,
        "dense2": 2,
        "dense3": 2,
    }
    assert not any(layer["pulses"].any() for layer in params.values())
    bare = none.init(jax.random.key(0), times)["params"]
    jax.tree.map(
        np.testing.assert_array_equal,
        bare,
        {k: {"kernel": v["kernel"]} for k, v in params.items()},
    )


def test_weights_keep_pulses(tmp_path, rng):
    network = ds.SpikingNetwork.from_spec("4C3-P2-10", pulses=(6, 0))
    times = spike_times(rng, (3, 4, 4, 1), 100)
    params = network.init(jax.random.key(0), times)
    params["params"]["conv1"]["pulses"] = dyadic(rng, (6, 4), -90, 90)
    ds.save_weights(tmp_path / "w", network, params)
    loaded = ds.load_weights(tmp_path / "w")
    assert loaded.network.pulses == (6, 0)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    with pytest.raises(ds.WeightsError, match=r"its pulses is \(6, 0\), expected"):
        ds.load_weights(tmp_path / "w", network=network.clone(pulses=()))
    for other in (network.clone(pulses=()), network.clone(pulses=(6, 1))):
        with pytest.raises(ValueError, match="are not those of the network"):
            ds.save_weights(tmp_path / "x", other, params)
    # Weights that were written before there were pulses.
    assert pretrained.load("mnist").network.pulses == ()


@pytest.mark.parametrize("norms", ["free", "held", "learned"])
@pytest.mark.parametrize("kind", [optimizers.Adam, optimizers.Muon])
def test_steps_of_kernels_do_not_depend_on_pulses(kind, norms, rng):
    """Pulses move by `pulse_rate` mV at most, whatever the norms of kernels."""
    shapes = {"conv1": (3, 3, 2, 4), "dense2": (20, 10)}

    def drawn(size):
        return {
            name: {"kernel": jnp.float32(rng.normal(0, size, shape))}
            for name, shape in shapes.items()
        }

    kernels, gradients = drawn(9.0), [drawn(1.0) for _ in range(5)]
    pulse = jnp.float32(rng.normal(0, 1e-3, (6, 4)))
    made = kind(0.05, norms=norms, pulse_rate=0.5, average=0.9, first_sum=20.0)
    chain = made.chain(tuple(shapes), optax.linear_schedule(1.0, 0.0, 10))

    def run(extra):
        moved, path = {"params": {**kernels, "conv1": kernels["conv1"] | extra}}, []
        state = chain.init(moved)
        for gradient in gradients:
            of_conv = gradient["conv1"] | {name: pulse for name in extra}
            steps, state = chain.update(
                {"params": {**gradient, "conv1": of_conv}}, state, moved
            )
            moved = optax.apply_updates(moved, steps)
            path.append(moved["params"])
        return path

    bare, more = run({}), run({"pulses": jnp.zeros((6, 4))})
    before = np.zeros((6, 4))
    for n, (one, other) in enumerate(zip(bare, more, strict=True)):
        for name in shapes:
            np.testing.assert_array_equal(one[name]["kernel"], other[name]["kernel"])
        after = np.asarray(other["conv1"]["pulses"])
        # Adam's steps by a gradient that stays are ±1, here by a rate that falls.
        expected = -0.5 * (1 - n / 10) * np.sign(pulse)
        np.testing.assert_allclose(after - before, expected, rtol=1e-2)
        before = after


def test_initial_weights_are_scaled_with_their_pulses(engine, rng):
    """The rates that were asked for: potentials are linear in both."""
    network = ds.SpikingNetwork.from_spec(
        "4C3-P2-30-20", num_steps=T, engine=engine, pulses=(3, 5, 0)
    )
    times = spike_times(rng, (40, 6, 6, 1))
    params = network.init(jax.random.key(0), times)
    for name in ("conv1", "dense2"):
        shape = params["params"][name]["pulses"].shape
        params["params"][name]["pulses"] = rng.normal(0, 9, shape).astype(np.float32)
    rates = (0.3, 0.4, 0.6)
    scaled = ds.calibrate(network, params, times, rates)
    trace = network.apply(scaled, times, method="trace")
    fired = dict(zip(network.names, trace.times[1:], strict=True))
    for name, rate in zip(network.weighted, rates, strict=True):
        assert np.mean(np.asarray(fired[name]) < T) == pytest.approx(rate, abs=0.05)
        ratios = jax.tree.map(
            lambda a, b: a / b, scaled["params"][name], params["params"][name]
        )
        flat = np.concatenate([np.ravel(each) for each in ratios.values()])
        np.testing.assert_allclose(flat, flat.mean(), rtol=1e-4)
