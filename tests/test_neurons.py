"""Layers against the loop oracle, worked cases, and properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import ds4nn_jax as ds
from ds4nn_jax.layers import _response, functions

T = 12
THETA = 4.0


def spike_times(rng, shape, steps=T, silent=0.3):
    times = rng.integers(0, steps, shape)
    return np.where(rng.random(shape) < silent, steps, times).astype(np.float32)


def dyadic(rng, shape, low=-2.0, high=3.0):
    """Weights whose sums are exact in float32: multiples of 1/8."""
    return (rng.integers(low * 8, high * 8 + 1, shape) / 8).astype(np.float32)


def cotangent(rng, shape):
    return dyadic(rng, shape, -4, 4)


CONVS = {
    "same": dict(shape=(2, 5, 6, 2), kernel=(3, 3, 2, 3)),
    "valid": dict(shape=(2, 5, 6, 2), kernel=(3, 3, 2, 3), padding="VALID"),
    "one channel": dict(shape=(2, 6, 6, 1), kernel=(3, 3, 1, 4)),
    "1x1 window": dict(shape=(2, 3, 4, 3), kernel=(1, 1, 3, 2)),
    "even window": dict(shape=(1, 5, 5, 2), kernel=(2, 2, 2, 3)),
    "even window, stride 2": dict(
        shape=(1, 5, 6, 2), kernel=(4, 2, 2, 2), strides=(2, 2)
    ),
    "stride 2": dict(shape=(2, 7, 6, 2), kernel=(3, 3, 2, 2), strides=(2, 2)),
    "uneven strides": dict(shape=(1, 7, 6, 2), kernel=(3, 3, 2, 2), strides=(2, 1)),
    "stride beyond window": dict(
        shape=(1, 7, 7, 2), kernel=(1, 2, 2, 2), strides=(3, 3), padding="VALID"
    ),
    "uneven pads": dict(
        shape=(1, 4, 5, 2), kernel=(3, 2, 2, 2), padding=((2, 0), (0, 1))
    ),
    "5x5": dict(shape=(1, 5, 5, 1), kernel=(5, 5, 1, 2)),
    "one-pixel image": dict(shape=(2, 1, 1, 3), kernel=(3, 3, 3, 2)),
    "window is image": dict(shape=(2, 3, 3, 2), kernel=(3, 3, 2, 2), padding="VALID"),
}


def explicit_pads(case):
    """((top, bottom), (left, right)) of a case, by the definition of SAME."""
    padding = case.get("padding", "SAME")
    if padding == "VALID":
        return ((0, 0), (0, 0))
    if padding != "SAME":
        return padding
    pads = []
    for axis in (0, 1):
        size, window = case["shape"][1 + axis], case["kernel"][axis]
        stride = case.get("strides", (1, 1))[axis]
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        pads.append((total // 2, total - total // 2))
    return tuple(pads)


def conv_case(case, engine, surrogate="constant"):
    layer = functools.partial(
        ds.conv,
        threshold=THETA,
        num_steps=T,
        strides=case.get("strides", (1, 1)),
        padding=case.get("padding", "SAME"),
        engine=engine,
        surrogate=surrogate,
    )
    geometry = (case.get("strides", (1, 1)), explicit_pads(case))
    return layer, geometry


@pytest.mark.parametrize("name", CONVS)
def test_conv_equals_oracle(name, engine, rng):
    case = CONVS[name]
    layer, geometry = conv_case(case, engine)
    times, kernel = spike_times(rng, case["shape"]), dyadic(rng, case["kernel"])
    oracle = reference.conv(times, kernel, THETA, T, *geometry)
    out, vjp = jax.vjp(layer, times, kernel)
    np.testing.assert_array_equal(out, oracle.times)
    assert out.dtype == jnp.float32
    delta = cotangent(rng, out.shape)
    expected = reference.conv_gradients(
        times, kernel, oracle.times, delta, T, *geometry
    )
    for got, want in zip(vjp(delta), expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["same", "stride 2", "uneven pads"])
@pytest.mark.parametrize("width", [2.0, float("inf")])
def test_conv_window_rule_equals_oracle(name, width, engine, rng):
    case = CONVS[name]
    layer, geometry = conv_case(case, engine, ds.Window(width))
    times, kernel = spike_times(rng, case["shape"]), dyadic(rng, case["kernel"])
    oracle = reference.conv(times, kernel, THETA, T, *geometry)
    slope = np.maximum(0, 1 - np.abs(oracle.potential - THETA) / width)
    out, vjp = jax.vjp(layer, times, kernel)
    np.testing.assert_array_equal(out, oracle.times)
    assert ((out == T) & (slope > 0)).any(), "the case must hold silent learners"
    delta = cotangent(rng, out.shape)
    expected = reference.conv_gradients(
        times, kernel, oracle.t_star, delta * slope, T, *geometry, silent_inputs=True
    )
    for got, want in zip(vjp(delta), expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("surrogate", ["constant", ds.Window(2.0)])
@pytest.mark.parametrize("shape", [(3, 1, 1), (4, 9, 5), (2, 40, 10), (1, 3, 17)])
def test_dense_equals_oracle(shape, surrogate, engine, rng):
    batch, inputs, outputs = shape
    times = spike_times(rng, (batch, inputs))
    kernel = dyadic(rng, (inputs, outputs), -1, 2)
    oracle = reference.dense(times, kernel, THETA, T)
    layer = functools.partial(
        ds.dense, threshold=THETA, num_steps=T, engine=engine, surrogate=surrogate
    )
    out, vjp = jax.vjp(layer, times, kernel)
    np.testing.assert_array_equal(out, oracle.times)
    delta = cotangent(rng, out.shape)
    windowed = isinstance(surrogate, ds.Window)
    slope = np.maximum(0, 1 - np.abs(oracle.potential - THETA) / 2) if windowed else 1
    expected = reference.dense_gradients(
        times,
        kernel,
        oracle.t_star if windowed else oracle.times,
        delta * slope,
        T,
        silent_inputs=windowed,
    )
    for got, want in zip(vjp(delta), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_urgency_alone_fires(engine):
    """Without a single input: 30, 60, 90, 120 mV."""
    out = ds.dense(
        np.full((1, 2), 100, np.float32),
        np.ones((2, 1), np.float32),
        urgency=30.0,
        engine=engine,
    )
    np.testing.assert_array_equal(out, [[3]])


@pytest.mark.parametrize("window", [(2, 2), (3, 3), (2, 3), (1, 1)])
@pytest.mark.parametrize("strides", [(2, 2), (1, 1), (1, 3)])
def test_pool_equals_oracle(window, strides, rng):
    times = spike_times(rng, (2, 5, 6, 3), steps=4)  # four steps: many ties
    pool = functools.partial(ds.earliest_pool, window=window, strides=strides)
    out, vjp = jax.vjp(pool, times)
    np.testing.assert_array_equal(out, reference.pool(times, window, strides)[0])
    delta = cotangent(rng, out.shape)
    np.testing.assert_array_equal(
        vjp(delta)[0], reference.pool_gradient(times, window, strides, delta)
    )


POOLED = {
    "2x2": dict(image=(6, 4), kernel=(3, 3, 2, 5), window=(2, 2)),
    "uneven window": dict(image=(6, 4), kernel=(3, 3, 1, 70), window=(3, 2)),
    "whole image": dict(image=(3, 3), kernel=(2, 2, 9, 33), window=(3, 3)),
    "stride": dict(image=(8, 8), kernel=(3, 3, 2, 64), window=(2, 2), strides=(2, 1)),
    "valid": dict(image=(6, 8), kernel=(3, 3, 5, 130), window=(2, 3), padding="VALID"),
    "1x1": dict(image=(3, 4), kernel=(3, 3, 1, 3), window=(1, 1)),
}


def conv_pool(
    times,
    kernel,
    *,
    window=(2, 2),
    pulses=None,
    threshold,
    num_steps,
    engine,
    strides=(1, 1),
    padding="SAME",
    surrogate,
):
    """A convolution with the pooling behind it merged, as networks compute them."""
    geometry = engine, strides, padding, surrogate
    layer, *arrays = _response.conv_layer(
        times, kernel, pulses, threshold, num_steps, *geometry
    )
    return _response.respond(layer, *arrays, pool=window).times


@pytest.mark.parametrize("surrogate", ["constant", ds.Window(2.0)])
@pytest.mark.parametrize("name", POOLED)
def test_pooled_convolution_equals_oracle(name, surrogate, engine, rng):
    """Forward and both gradients: pooling's error scattered into the convolution's."""
    case = dict(POOLED[name])
    image, shape, window = (case.pop(key) for key in ("image", "kernel", "window"))
    times, kernel = spike_times(rng, (3, *image, shape[2])), dyadic(rng, shape)
    options = dict(threshold=THETA, num_steps=T, engine=engine, surrogate=surrogate)
    run = functools.partial(conv_pool, window=window, **case, **options)
    out, transpose = jax.vjp(run, times, kernel)

    strides = case.get("strides", (1, 1))
    padding = case.get("padding", "SAME")
    pads = jax.lax.padtype_to_pads(image, shape[:2], strides, padding)
    layer = reference.conv(times, kernel, THETA, T, strides, pads)
    pooled, _ = reference.pool(layer.times, window, window)
    np.testing.assert_array_equal(out, pooled)
    delta = cotangent(rng, out.shape)
    spread = reference.pool_gradient(layer.times, window, window, delta)
    windowed = surrogate != "constant"
    end = layer.t_star if windowed else layer.times
    if windowed:
        spread = spread * np.maximum(0, 1 - np.abs(layer.potential - THETA) / 2.0)
    expected = reference.conv_gradients(
        times, kernel, end, spread, T, strides, pads, silent_inputs=windowed
    )
    for got, want in zip(transpose(delta), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def one_neuron(times, weights, engine, threshold=THETA, steps=T):
    out = ds.dense(
        np.array([times], np.float32),
        np.array(weights, np.float32)[:, None],
        threshold=threshold,
        num_steps=steps,
        engine=engine,
    )
    return float(out[0, 0])


@pytest.mark.parametrize(
    "times, weights, expected",
    [
        pytest.param([3], [4], 3, id="threshold reached exactly fires"),
        pytest.param([3], [3.875], T, id="just below stays silent"),
        pytest.param([0], [4], 0, id="first step"),
        pytest.param([T - 1], [4], T - 1, id="last step"),
        pytest.param([T], [100], T, id="silent input sends nothing"),
        pytest.param([1, 5], [2, 2], 5, id="potential is kept, no leak"),
        pytest.param([2, 2], [6, -3], T, id="a step's inputs act together"),
        pytest.param([2, 3], [6, -3], 2, id="crossing and falling back has fired"),
        pytest.param([2, 3, 4], [3, -3, 4], 4, id="fall, then cross"),
        pytest.param([1, 2], [5, 5], 1, id="fires once"),
        pytest.param([5, 1], [3, 1], 5, id="inputs in any order"),
    ],
)
def test_worked_neuron(times, weights, expected, engine):
    assert one_neuron(times, weights, engine) == expected


def test_worked_gradient(engine):
    """Eq. 8–12 by hand: inputs at 1, 4, 6 and silent; outputs at 4 and silent."""
    times = np.array([[1, 4, 6, T]], np.float32)
    kernel = np.array([[2, 0.5], [3, 0.25], [1, 1], [9, 9]], np.float32)
    layer = functools.partial(ds.dense, threshold=THETA, num_steps=T, engine=engine)
    out, vjp = jax.vjp(layer, times, kernel)
    np.testing.assert_array_equal(out, [[4, T]])
    d_times, d_kernel = vjp(np.array([[10, 100]], np.float32))
    np.testing.assert_array_equal(
        d_kernel, [[-10, -100], [-10, -100], [0, -100], [0, 0]]
    )
    np.testing.assert_array_equal(d_times, [[20 + 50, 30 + 25, 100, 0]])


def test_window_lets_a_silent_neuron_learn(engine):
    """θ = 4, β = 2, V peaks at 3 in step 2: slope ½, inputs up to step 2 count."""
    times = np.array([[1, 2, 5]], np.float32)
    kernel = np.array([[1], [2], [-1]], np.float32)
    layer = functools.partial(
        ds.dense,
        threshold=THETA,
        num_steps=T,
        engine=engine,
        surrogate=ds.Window(2.0),
    )
    out, vjp = jax.vjp(layer, times, kernel)
    assert out[0, 0] == T
    d_times, d_kernel = vjp(jnp.ones((1, 1)))
    np.testing.assert_array_equal(d_kernel[:, 0], [-0.5, -0.5, 0])
    np.testing.assert_array_equal(d_times[0], [0.5, 1, 0])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shift=st.integers(0, 5),
    engine=st.sampled_from(["scan", "auto"]),
)
def test_time_shift(seed, shift, engine):
    """Inputs k steps later make outputs k steps later, as long as there is time."""
    rng = np.random.default_rng(seed)
    steps = 20
    times = spike_times(rng, (3, 5, 5, 2), steps=10).astype(np.float32)
    times[times == 10] = steps
    kernel = dyadic(rng, (3, 3, 2, 4))
    layer = functools.partial(
        ds.conv, kernel=kernel, threshold=THETA, num_steps=steps, engine=engine
    )
    later = np.where(times == steps, steps, times + shift)
    before, after = np.asarray(layer(times)), np.asarray(layer(later))
    np.testing.assert_array_equal(
        after, np.where(before == steps, steps, before + shift)
    )


@pytest.mark.parametrize("surrogate", ["constant", "window"])
def test_jit_equals_eager_and_vmap_equals_batch(surrogate, engine, rng):
    times, kernel = spike_times(rng, (4, 5, 5, 2)), dyadic(rng, (3, 3, 2, 3))
    layer = functools.partial(
        ds.conv, threshold=THETA, num_steps=T, engine=engine, surrogate=surrogate
    )

    def loss(times, kernel):
        return jnp.sum(layer(times, kernel) ** 2)

    out, gradients = layer(times, kernel), jax.grad(loss, (0, 1))(times, kernel)
    np.testing.assert_array_equal(jax.jit(layer)(times, kernel), out)
    jitted = jax.jit(jax.grad(loss, (0, 1)))(times, kernel)
    jax.tree.map(np.testing.assert_array_equal, jitted, gradients)

    def one(image, kernel):
        return layer(image[None], kernel)[0]

    np.testing.assert_array_equal(jax.vmap(one, (0, None))(times, kernel), out)
    kernels = jnp.stack([kernel, -kernel, 2 * kernel])
    many = jax.vmap(jax.grad(loss, (0, 1)), (None, 0))(times, kernels)
    for i, k in enumerate(kernels):
        single = jax.grad(loss, (0, 1))(times, k)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), many, single
        )


def test_memory_does_not_grow_with_time_steps():
    """Of the scan; the kernels' own memory is seen in `test_event.py`."""

    def temporary_bytes(steps):
        def loss(kernel, times):
            shared = dict(num_steps=steps, engine="scan", surrogate="window")
            return jnp.sum(ds.conv(times, kernel, **shared))

        kernel = jax.ShapeDtypeStruct((3, 3, 8, 16), jnp.float32)
        times = jax.ShapeDtypeStruct((4, 14, 14, 8), jnp.float32)
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(kernel, times).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(400) <= 1.1 * temporary_bytes(50)


def test_real_images_equal_oracle(images, engine, rng):
    """Real spike times, weights on an exact grid."""
    times = ds.encode(images[0][:2])
    kernel = dyadic(rng, (3, 3, 1, 4), -20, 60)
    oracle = reference.conv(times, kernel, 100.0, 100, pads=((1, 1), (1, 1)))
    np.testing.assert_array_equal(ds.conv(times, kernel, engine=engine), oracle.times)
    assert 0.05 < np.mean(oracle.times < 100) < 0.95


def test_potentials_equal_oracle(engine, rng):
    times, kernel = spike_times(rng, (3, 20)), dyadic(rng, (20, 5), -1, 1)
    trace = np.zeros((T, 3, 5))
    for t in range(T):
        for b, i, o in np.ndindex(3, 20, 5):
            trace[t, b, o] += kernel[i, o] * (times[b, i] <= t)
    np.testing.assert_array_equal(
        ds.membrane_potentials(times, kernel, num_steps=T), trace
    )
    fired = reference.dense(times, kernel, 2.0, T).times
    assert 0 < np.mean(fired < T) < 1
    at = np.take_along_axis(trace, np.minimum(fired, T - 1).astype(int)[None], 0)[0]
    np.testing.assert_array_equal(
        ds.decision_potentials(
            times, kernel, threshold=2.0, num_steps=T, engine=engine
        ),
        at,
    )
    np.testing.assert_array_equal(
        functions.peak_potentials(times, kernel, num_steps=T, engine=engine),
        trace.max(axis=0),
    )


def test_refuses_windows_that_do_not_fit():
    """Rows that `test_bad_input.py` does not have."""
    image = np.zeros((2, 4, 4, 3), np.float32)
    with pytest.raises(ValueError, match="padding must be"):
        ds.conv(image, np.ones((3, 3, 3, 5)), padding=((0, -1), (0, 0)))
    with pytest.raises(ValueError, match=r"window \(5, 5\) is larger than the image"):
        ds.earliest_pool(image, window=(5, 5))
    with pytest.raises(ValueError, match="strides must be"):
        ds.earliest_pool(image, strides=(2, 0))
