"""Reference neurons, which spike whatever the input, in networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_neurons import T, dyadic, spike_times

import ds4nn_jax as ds
from ds4nn_jax.training import optimizers


def test_not_before_and_unless(engine):
    """Worked, T = 100, θ = 100. The first neuron has both its inputs at step 10, and
    50 mV taken from it until step 50; the second fires at 50 unless its input comes."""
    times = np.array([[10, 10], [100, 100]], np.float32)
    kernel = np.array([[60, -60], [60, 0]], np.float32)
    pulses = np.array([[-50, 0], [50, 100]], np.float32)
    out = ds.dense(times, kernel, pulses=pulses, engine=engine)
    np.testing.assert_array_equal(out, [[50, 100], [100, 50]])


def test_numbers_of_pulses():
    """The last number stands for the layers that are left; of none there is no leaf."""
    network = ds.SpikingNetwork.from_spec("4C3-P2-8-10", pulses=[6, 2])
    assert network.pulse_counts == {"conv1": 6, "dense2": 2, "dense3": 2}
    assert network == network.clone(pulses=(6, 2))
    none = network.clone(pulses=())
    assert set(none.pulse_counts.values()) == {0}
    init = jax.jit(ds.SpikingNetwork.init, static_argnums=0)
    draws = jax.random.key(0), np.zeros((1, 4, 4, 1), np.float32)
    params = init(network, *draws)["params"]
    for layer, count in zip(params.values(), (6, 2, 2), strict=True):
        pulses = layer.pop("pulses")
        assert len(pulses) == count and not pulses.any()
    bare = init(none, *draws)["params"]
    jax.tree.map(np.testing.assert_array_equal, bare, params)


def test_weights_keep_pulses(tmp_path, rng):
    network = ds.SpikingNetwork.from_spec("4C3-P2-10", pulses=(6, 0))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    params = jax.tree.map(lambda w: dyadic(rng, w.shape, -90, 90), shapes)
    ds.save_weights(tmp_path / "w", network, params)
    loaded = ds.load_weights(tmp_path / "w")
    assert loaded.network.pulses == (6, 0)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    with pytest.raises(ds.WeightsError, match=r"its pulses is \(6, 0\), expected"):
        ds.load_weights(tmp_path / "w", network=network.clone(pulses=()))
    for other in (network.clone(pulses=()), network.clone(pulses=(6, 1))):
        with pytest.raises(ValueError, match="are not those of the network"):
            ds.save_weights(tmp_path / "x", other, params)


@pytest.mark.parametrize(
    "kind, norms",
    [
        (optimizers.Adam, "free"),
        (optimizers.Adam, "learned"),
        (optimizers.Muon, "held"),
    ],
)
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
    made = kind(0.05, norms=norms, pulse_rate=0.5, average=0.9)
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
    shapes = jax.eval_shape(network.init, jax.random.key(0), times)
    params = jax.tree.map(lambda w: np.float32(rng.normal(3, 9, w.shape)), shapes)
    rates = (0.3, 0.4, 0.6)
    scaled = ds.calibrate(network, params, times, rates)
    trace = jax.jit(functools.partial(network.apply, method="trace"))(scaled, times)
    fired = dict(zip(network.names, trace.times[1:], strict=True))
    for name, rate in zip(network.weighted, rates, strict=True):
        assert np.mean(np.asarray(fired[name]) < T) == pytest.approx(rate, abs=0.05)
        pair = zip(
            jax.tree.leaves(scaled["params"][name]),
            jax.tree.leaves(params["params"][name]),
            strict=True,
        )
        ratios = np.concatenate([np.ravel(a / b) for a, b in pair])
        np.testing.assert_allclose(ratios, ratios.mean(), rtol=1e-4)
