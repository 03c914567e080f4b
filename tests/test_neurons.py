"""Layers against the loop oracle, worked cases, and properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from precision import float64

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


CONSTANT, NARROW, WIDE = ds.Constant(), ds.Window(2.0), ds.Window(64.0)
CONVS = {
    "same": dict(shape=(2, 5, 6, 2), kernel=(3, 3, 2, 3)),
    "one pulse": dict(shape=(2, 5, 6, 2), kernel=(3, 3, 2, 3), pulses=1, rule=WIDE),
    "valid": dict(
        shape=(2, 5, 6, 2), kernel=(3, 3, 2, 3), padding="VALID", rule=NARROW
    ),
    # More reference neurons than inputs, in a longer T.
    "one channel": dict(
        shape=(2, 6, 6, 1), kernel=(3, 3, 1, 4), pulses=2 * T - 3, rule=WIDE
    ),
    "even window, stride 2": dict(
        shape=(1, 5, 6, 2), kernel=(4, 2, 2, 2), strides=(2, 2)
    ),
    "uneven strides": dict(
        shape=(2, 7, 6, 2), kernel=(3, 3, 2, 2), strides=(2, 1), pulses=10
    ),
    "uneven pads": dict(
        shape=(2, 4, 5, 2), kernel=(3, 2, 2, 2), padding=((2, 0), (0, 1)), pulses=5
    ),
    "5x5": dict(shape=(1, 5, 5, 1), kernel=(5, 5, 1, 2), rule=ds.Window(float("inf"))),
    "one-pixel image": dict(
        shape=(2, 1, 1, 3), kernel=(3, 3, 3, 2), pulses=T, rule=WIDE
    ),
}


def explicit_pads(case):
    """((top, bottom), (left, right)) of a case."""
    padding = case.get("padding", "SAME")
    if not isinstance(padding, str):
        return padding
    shapes = case["shape"][1:3], case["kernel"][:2], case.get("strides", (1, 1))
    return jax.lax.padtype_to_pads(*shapes, padding)


def layer_inputs(rng, shape, kernel, pulses, steps=T):
    """Times, weights, those of reference neurons and a threshold of each output.

    With reference neurons the first image is silent, and the others in part.
    """
    times = spike_times(rng, shape, steps)
    if pulses:
        times[0] = times[:, : shape[1] // 2] = steps
    outputs = kernel[-1]
    theta = np.float32(THETA * (3 + np.arange(outputs) % 3) / 4)
    return times, dyadic(rng, kernel), dyadic(rng, (pulses, outputs), -2, 2), theta


def differentiated(layer, *arrays):
    """What a layer does, and its gradients by all arrays."""

    def run(times, kernel, pulses, threshold):
        pulses = pulses if len(pulses) else None
        return layer(times, kernel, pulses=pulses, threshold=threshold)

    return jax.vjp(run, *arrays)


def assert_gradients(found, oracle, arrays, delta, rule, geometry, steps=T):
    """Those of the loops. −θ is a pulse that all neurons get."""
    times, kernel, pulses, theta = arrays
    end, silent = oracle.times, rule.silent_learn
    if silent:
        end, missing = oracle.t_star, np.abs(oracle.potential - theta)
        delta = delta * np.maximum(0, 1 - missing / rule.width)
    errors = end, delta, steps
    start = reference.pulse_gradients(np.zeros((1, len(theta))), end, delta, 1)
    expected = (
        *reference.conv_gradients(
            times, kernel, *errors, *geometry, silent_inputs=silent
        ),
        reference.pulse_gradients(pulses, *errors),
        -start[0],
    )
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", CONVS)
def test_conv_equals_oracle(name, engine, rng):
    """Windows without an input spike, and a whole image of them, get pulses alone."""
    case = CONVS[name]
    pulses, rule = case.get("pulses", 0), case.get("rule", CONSTANT)
    steps = max(T, 2 * pulses) if pulses > T else T
    strides, padding = case.get("strides", (1, 1)), case.get("padding", "SAME")
    layer = functools.partial(
        ds.conv,
        num_steps=steps,
        strides=strides,
        padding=padding,
        engine=engine,
        surrogate=rule,
    )
    geometry = strides, explicit_pads(case)
    arrays = layer_inputs(rng, case["shape"], case["kernel"], pulses, steps)
    times, kernel, weights, theta = arrays
    oracle = reference.conv(times, kernel, theta, steps, *geometry, pulses=weights)
    out, vjp = differentiated(layer, *arrays)
    np.testing.assert_array_equal(out, oracle.times)
    assert out.dtype == jnp.float32
    if rule.silent_learn:
        near = oracle.potential > theta - rule.width
        assert (near & (oracle.times == steps)).any(), "silent neurons must learn"
    delta = cotangent(rng, out.shape)
    assert_gradients(vjp(delta), oracle, arrays, delta, rule, geometry, steps)


@pytest.mark.parametrize(
    "shape, rule, pulses, urgency",
    [
        ((3, 1, 1), NARROW, 0, 0.0),
        ((4, 9, 5), CONSTANT, 0, 0.0),
        ((4, 9, 5), WIDE, 1, 0.0),
        ((4, 9, 5), CONSTANT, 10, 0.25),
        ((2, 40, 10), NARROW, 0, 0.0),
        ((4, 40, 70), WIDE, T, 0.0),
        ((4, 40, 70), WIDE, 5, 0.25),
        ((1, 3, 17), CONSTANT, 0, 0.0),
    ],
)
def test_dense_equals_oracle(shape, rule, pulses, urgency, engine, rng):
    """And its potentials; an urgency adds T more pulses of one weight."""
    batch, inputs, outputs = shape
    times, _, weights, theta = layer_inputs(
        rng, (batch, inputs), (inputs, outputs), pulses
    )
    kernel = dyadic(rng, (inputs, outputs), -1, 2)
    everything = np.full((T, outputs), urgency)
    for p, step in enumerate(reference.clock(weights, T)):
        everything[step] += weights[p]
    oracle = reference.dense(times, kernel, theta, T, pulses=everything)
    shared = dict(num_steps=T, engine=engine, urgency=urgency)
    arrays = times, kernel, weights, theta
    out, vjp = differentiated(
        functools.partial(ds.dense, surrogate=rule, **shared), *arrays
    )
    np.testing.assert_array_equal(out, oracle.times)
    delta = cotangent(rng, out.shape)
    pixel = (slice(None), None, None)  # a dense layer is a convolution of one pixel
    *neurons, errors = (x[pixel] for x in (*oracle, delta))
    d_times, d_kernel, *others = vjp(delta)
    assert_gradients(
        (d_times[pixel], d_kernel[None, None], *others),
        reference.Neurons(*neurons),
        (times[pixel], kernel[None, None], weights, theta),
        errors,
        rule,
        (),
    )
    trace = (times <= np.arange(T)[:, None, None]) @ kernel
    trace += np.cumsum(everything, axis=0)[:, None]
    ends = dict(pulses=weights if pulses else None, num_steps=T)
    running = ds.membrane_potentials(times, kernel, urgency=urgency, **ends)
    np.testing.assert_array_equal(running, trace)
    at_decision = ds.decision_potentials(
        times, kernel, threshold=theta, engine=engine, urgency=urgency, **ends
    )
    fired = oracle.times < T
    np.testing.assert_array_equal(
        at_decision, np.where(fired, oracle.potential, trace[-1])
    )
    if not urgency:
        peaks = functions.peak_potentials(times, kernel, engine=engine, **ends)
        np.testing.assert_array_equal(peaks, trace.max(axis=0))


@pytest.mark.parametrize(
    "window, strides",
    [
        ((2, 2), (2, 2)),
        ((3, 3), (1, 1)),
        ((3, 3), (2, 2)),
        ((2, 3), (1, 3)),
        ((1, 1), (2, 2)),
    ],
)
def test_pool_equals_oracle(window, strides, rng):
    times = spike_times(rng, (2, 5, 6, 3), steps=4)  # four steps: many ties
    pool = functools.partial(ds.earliest_pool, window=window, strides=strides)
    out, vjp = jax.vjp(pool, times)
    np.testing.assert_array_equal(out, reference.pool(times, window, strides)[0])
    delta = cotangent(rng, out.shape)
    np.testing.assert_array_equal(
        vjp(delta)[0], reference.pool_gradient(times, window, strides, delta)
    )


POOLED = {  # in windows of few and of many rows, with outputs in one and several lanes
    "2x2": dict(image=(6, 4), kernel=(3, 3, 2, 5), window=(2, 2), pulses=10, rule=WIDE),
    "uneven window": dict(
        image=(6, 4), kernel=(3, 3, 1, 70), window=(3, 2), pulses=9, rule=WIDE
    ),
    "whole image": dict(image=(3, 3), kernel=(2, 2, 9, 33), window=(3, 3), rule=NARROW),
    "stride": dict(image=(8, 8), kernel=(3, 3, 2, 64), window=(2, 2), strides=(2, 1)),
    "valid": dict(
        image=(6, 8), kernel=(3, 3, 5, 130), window=(2, 3), padding="VALID", pulses=T
    ),
    "1x1": dict(image=(3, 4), kernel=(3, 3, 1, 3), window=(1, 1), pulses=1),
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
    window_of = dict(strides=strides, padding=padding)
    layer, *arrays = _response.prepared(
        times, kernel, pulses, threshold, num_steps, engine, surrogate, **window_of
    )
    return _response.respond(layer, *arrays, pool=window).times


@pytest.mark.parametrize("name", POOLED)
def test_pooled_convolution_equals_oracle(name, engine, rng):
    """Forward and all gradients: pooling's error scattered into the convolution's."""
    case = {"rule": CONSTANT, "pulses": 0} | POOLED[name]
    image, shape, window, rule, pulses = (
        case.pop(key) for key in ("image", "kernel", "window", "rule", "pulses")
    )
    arrays = layer_inputs(rng, (2, *image, shape[2]), shape, pulses)
    times, kernel, weights, theta = arrays
    options = dict(num_steps=T, engine=engine, surrogate=rule)
    layer = functools.partial(conv_pool, window=window, **case, **options)
    out, vjp = differentiated(layer, *arrays)
    pads = explicit_pads({"shape": times.shape, "kernel": shape, **case})
    geometry = case.get("strides", (1, 1)), pads
    oracle = reference.conv(times, kernel, theta, T, *geometry, pulses=weights)
    np.testing.assert_array_equal(out, reference.pool(oracle.times, window, window)[0])
    delta = cotangent(rng, out.shape)
    spread = reference.pool_gradient(oracle.times, window, window, delta)
    assert_gradients(vjp(delta), oracle, arrays, spread, rule, geometry)


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


@pytest.mark.parametrize("kind", ["dense", "conv_pool"])
def test_composes(kind, engine, rng):
    """jit, vmap over images and over weights, and float64 give what eager calls do."""
    shape, of_kernel = {
        "dense": ((2, 9), (9, 5)),
        "conv_pool": ((2, 4, 6, 2), (3, 3, 2, 5)),
    }[kind]
    options = dict(threshold=THETA, num_steps=T, engine=engine, surrogate=WIDE)
    layer = functools.partial(ds.dense if kind == "dense" else conv_pool, **options)
    arrays = spike_times(rng, (3, *shape)), dyadic(rng, (3, *of_kernel))
    arrays = *arrays, dyadic(rng, (3, 7, 5), -2, 2)

    def run(times, kernel, pulses):
        out, vjp = jax.vjp(lambda t, k, r: layer(t, k, pulses=r), times, kernel, pulses)
        delta = jnp.round(8 * jnp.sin(jnp.arange(out.size)))
        return out, *vjp(delta.reshape(out.shape))

    compiled = jax.jit(run)
    first = tuple(x[0] for x in arrays)
    for axes in ((0, None, None), (None, 0, 0), (0, 0, 0)):
        pairs = [*zip(arrays, axes, strict=True)]
        calls = [
            compiled(*(x[0 if axis is None else n] for x, axis in pairs))
            for n in range(3)
        ]
        over = [x[0] if axis is None else x for x, axis in pairs]
        mapped = jax.jit(jax.vmap(run, axes))
        for found, *expected in zip(mapped(*over), *calls, strict=True):
            np.testing.assert_array_equal(found, np.stack(expected))
        # Several networks are one call of a kernel, as several batches are.
        assert engine == "scan" or "while" not in mapped.lower(*over).as_text()
    with float64():
        wide = compiled(*(jnp.asarray(x, jnp.float64) for x in first))
        assert {x.dtype for x in wide} == {jnp.dtype("float64")}
    for found, *expected in zip(run(*first), wide, compiled(*first), strict=True):
        for other in expected:
            np.testing.assert_array_equal(found, other)


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


def test_refuses_windows_that_do_not_fit():
    """Rows that `test_bad_input.py` does not have."""
    image = np.zeros((2, 4, 4, 3), np.float32)
    with pytest.raises(ValueError, match="padding must be"):
        ds.conv(image, np.ones((3, 3, 3, 5)), padding=((0, -1), (0, 0)))
    with pytest.raises(ValueError, match=r"window \(5, 5\) is larger than the image"):
        ds.earliest_pool(image, window=(5, 5))
    with pytest.raises(ValueError, match="strides must be"):
        ds.earliest_pool(image, strides=(2, 0))
