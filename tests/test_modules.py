import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

import ds4nn_jax as ds

T = 20


C, P, D = ds.ConvSpec, ds.PoolSpec, ds.DenseSpec


@pytest.mark.parametrize(
    "spec, size, layers",
    [
        ("64C3-P2-8C5s2-P3-10", None, (C(64, 3), P(2), C(8, 5, 2), P(3), D(10))),
        ("784-400-10", 784, (D(400), D(10))),
        ("P2-10", None, (P(2), D(10))),
    ],
)
def test_parse_spec(spec, size, layers):
    assert ds.parse_spec(spec) == (size, layers)
    assert ds.SpikingNetwork.from_spec(spec).spec == spec


@pytest.mark.parametrize(
    "spec, why, marked",
    [
        ("64C3-Q2-10", "'Q2' is none of", "Q2"),
        ("64C3--10", "'' is none of", ""),
        ("64C-10", "'64C' is none of", "64C"),
        ("64C3-P2", "last layer must be fully connected", "P2"),
        ("64C3-P0-10", "'P0' has a size of zero", "P0"),
        ("64C3-10-P2-10", "'P2' cannot follow a fully connected", "P2"),
        ("10", "an input size needs at least one layer", "10"),
        ("", "'' is none of", ""),
        ("64C3-٣", "'٣' is none of", "٣"),
        ("99999999999C3-10", "is none of", "99999999999C3"),
        ("64C3s0-10", "'64C3s0' has a size of zero", "64C3s0"),
        ("8C3-P2s2-10", "'P2s2': only a convolution has a stride", "P2s2"),
    ],
)
def test_malformed_spec_points_at_the_token(spec, why, marked):
    with pytest.raises(ValueError, match=why) as caught:
        ds.SpikingNetwork.from_spec(spec)
    _, shown, pointer = str(caught.value).split("\n")
    start, length = pointer.index("^"), pointer.count("^")
    assert shown == f"  {spec}"
    assert shown[start : start + length] == marked or not marked and length == 1


@given(st.text("0123456789CPc-x ", max_size=20))
def test_any_text_parses_or_is_refused(text):
    try:
        size, layers = ds.parse_spec(text)
    except ValueError as refusal:
        assert "network spec" in str(refusal)
    else:
        numbers = ([] if size is None else [size], layers)
        again = "-".join(map(str, (*numbers[0], *numbers[1])))
        assert ds.parse_spec(again) == (size, layers)


def test_network_equals_layers_by_hand(engine, rng):
    """The module does what composing the functions does, and what the oracle says.
    `4C3s2` takes every second window; SAME pads 4 × 4 images below and right."""
    network = ds.SpikingNetwork.from_spec(
        "3C3-P2-4C3s2-5", num_steps=T, threshold=4.0, engine=engine
    )
    times = rng.integers(0, T + 1, (2, 8, 8, 1)).astype(np.float32)
    params = network.init(jax.random.key(0), times)
    assert jax.tree.map(jnp.shape, params) == {
        "params": {
            "conv1": {"kernel": (3, 3, 1, 3)},
            "conv2": {"kernel": (3, 3, 3, 4)},
            "dense3": {"kernel": (16, 5)},
        }
    }
    exact = jax.tree.map(  # sums of eighths are exact: engines and oracle must agree
        lambda w: (rng.integers(-8, 17, w.shape) / 8).astype(np.float32), params
    )
    weights = [exact["params"][name]["kernel"] for name in network.weighted]
    first = reference.conv(times, weights[0], 4.0, T, pads=((1, 1), (1, 1))).times
    pooled, _ = reference.pool(first, (2, 2), (2, 2))
    pads = ((0, 1), (0, 1))
    second = reference.conv(pooled, weights[1], 4.0, T, strides=(2, 2), pads=pads).times
    entering = second.reshape(2, -1)
    last = reference.dense(entering, weights[2], 4.0, T)
    trace = network.apply(exact, times, method="trace")
    expected = times, first, pooled, second, last.times
    for actual, layer in zip(trace.times, expected, strict=True):
        np.testing.assert_array_equal(actual, layer)
    np.testing.assert_array_equal(network.apply(exact, times), last.times)
    final = np.where(entering[:, :, None] < T, weights[2], 0).sum(axis=1)
    potentials = np.where(last.times < T, last.potential, final)
    np.testing.assert_array_equal(trace.potentials, potentials)


@pytest.mark.parametrize(
    "spec, shape, padding, surrogate",
    [
        ("5C3-P2-6C3-P2-4", (8, 8, 1), "SAME", "constant"),
        ("5C3-P2-6C3-P2-4", (7, 9, 2), "SAME", "window"),  # pooling leaves a rest
        ("4C2-P3-P2-4", (13, 13, 1), "VALID", "window"),
        ("9-7-4", (9,), "SAME", "window"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("P2-3C3-P1-4C3-4", (6, 6, 2), ((2, 0), (1, 1)), "constant"),
                ("5C3s2-P2-6C3-P2-4", (16, 13, 2), "SAME", "window"),
            )
        ),
    ],
)
def test_activity_equals_trace(spec, shape, padding, surrogate, engine, rng):
    """Merging pooling into convolutions changes neither results nor gradients."""
    network = ds.SpikingNetwork.from_spec(
        spec,
        num_steps=T,
        threshold=4.0,
        padding=padding,
        surrogate=surrogate,
        engine=engine,
    )
    times = rng.integers(0, T + 1, (3, *shape)).astype(np.float32)
    params = jax.tree.map(
        lambda w: (rng.integers(-8, 25, w.shape) / 8).astype(np.float32),
        jax.jit(network.init)(jax.random.key(0), times),
    )
    # Jitted: one program each, where step by step there would be dozens to compile.
    trace, activity = (
        jax.jit(functools.partial(network.apply, method=method))(params, times)
        for method in ("trace", "activity")
    )
    np.testing.assert_array_equal(activity.times, trace.times[-1])
    np.testing.assert_array_equal(activity.potentials, trace.potentials)
    for k, layer in enumerate(trace.times):
        layer = np.asarray(layer).reshape(3, -1)
        counts = (layer[:, :, None] == np.arange(T)).sum(axis=1)
        np.testing.assert_array_equal(activity.counts[:, k], counts)
    assert (np.asarray(activity.counts[:, 1:-1]).sum(axis=(0, 2)) > 0).all()

    def error(params, times, method):
        out = network.apply(params, times, method=method).times
        out = out[-1] if method == "trace" else out
        return jnp.sum(out * jnp.arange(4) ** 2)

    gradient = jax.jit(jax.grad(error, argnums=(0, 1)), static_argnums=2)
    whole, merged = (
        gradient(params, times, method) for method in ("trace", "activity")
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        whole,
        merged,
    )
    assert np.any(whole[0]["params"][network.weighted[0]]["kernel"])


def test_network_gradient_by_hand(rng):
    """Two layers, L2 normalisation: Eq. 8–12 layer after layer, in NumPy."""
    network = ds.SpikingNetwork.from_spec("6-8-3", num_steps=T, threshold=2.0)
    times = rng.integers(0, T + 1, (4, 6)).astype(np.float32)
    w1 = (rng.integers(-4, 12, (6, 8)) / 8).astype(np.float32)
    w2 = (rng.integers(-4, 12, (8, 3)) / 8).astype(np.float32)
    params = {"params": {"dense1": {"kernel": w1}, "dense2": {"kernel": w2}}}
    labels = np.array([0, 1, 2, 0])

    def loss(params):
        out = network.apply(params, times)
        target = ds.relative_target(out, labels, offset=3, num_steps=T)
        return ds.temporal_loss(out, target).sum()

    gradient = jax.grad(loss)(params)["params"]

    def unit(delta):
        norm = np.sqrt((delta**2).sum(axis=1, keepdims=True))
        return delta / np.where(norm == 0, 1, norm)

    hidden = reference.dense(times, w1, 2.0, T).times
    out = reference.dense(hidden, w2, 2.0, T).times
    error = out - np.asarray(
        ds.relative_target(out.astype(np.float32), labels, offset=3, num_steps=T)
    )
    d_hidden, d_w2 = reference.dense_gradients(hidden, w2, out, unit(error), T)
    _, d_w1 = reference.dense_gradients(times, w1, hidden, unit(d_hidden), T)
    np.testing.assert_allclose(gradient["dense2"]["kernel"], d_w2, rtol=1e-5)
    np.testing.assert_allclose(gradient["dense1"]["kernel"], d_w1, rtol=1e-4, atol=1e-6)
    assert np.abs(d_w1).sum() > 0


def test_windowed_network_teaches_silent_neurons(rng):
    """All hidden neurons silent: the paper's rule moves nothing, the window does."""
    times = np.zeros((2, 4), np.float32)
    params = {
        "params": {
            "dense1": {"kernel": np.full((4, 3), 20, np.float32)},  # V = 80 < θ = 100
            "dense2": {"kernel": np.ones((3, 2), np.float32)},
        }
    }

    def first_layer_gradient(surrogate):
        network = ds.SpikingNetwork.from_spec("4-3-2", surrogate=surrogate)
        loss = lambda p: (network.apply(p, times) * np.array([1.0, 2.0])).sum()  # noqa: E731
        return jax.grad(loss)(params)["params"]["dense1"]["kernel"]

    assert not np.any(first_layer_gradient("constant"))
    assert np.all(np.abs(first_layer_gradient("window")) > 0)


def test_initial_weights():
    network = ds.SpikingNetwork.from_spec(
        "8C3-P2-10", initial_weights=((0, 80), (-1, 5))
    )
    params = network.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))["params"]
    for name, low, high in (("conv1", 0, 80), ("dense2", -1, 5)):
        kernel = params[name]["kernel"]
        assert low <= kernel.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < kernel.max() <= high


@pytest.mark.parametrize("steps", [64, 100, 200])
def test_images_coded_in_another_number_of_steps(steps, images):
    """More than T is an error; less cannot be told for sure, and is warned of."""
    network = ds.SpikingNetwork.from_spec("4C3-P2-10", num_steps=steps)
    batch = images[0][:4]
    params = network.init(jax.random.key(0), network.encode(batch))
    calls = (network.apply, lambda p, t: ds.infer(network, p, t))
    for call in calls:
        call(params, network.encode(batch))
        if steps == 100:
            continue
        with pytest.raises(ValueError, match=f"T = 100 .* the network has T = {steps}"):
            call(params, ds.encode(batch))
        values = np.asarray(ds.encode(batch))  # which no longer know
        if steps == 64:
            with pytest.raises(ValueError, match="whole steps 0 … T = 64"):
                call(params, values)
        else:
            with pytest.warns(UserWarning, match="the network has T = 200: encode"):
                call(params, values)
