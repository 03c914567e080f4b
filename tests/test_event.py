"""The event engine against a loop over time, exactly: dyadic weights add exactly."""

import functools
import itertools
import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from precision import float64

import ds4nn_jax as ds
from benchmarks.agreement import disagreements
from ds4nn_jax._engines import event, scan
from ds4nn_jax._engines.synapse import Conv, Dense

pytest.importorskip("numba")

SAME3 = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))


def loops(synapse):
    """Forward and backward pass of the oracle."""
    if isinstance(synapse, Dense):
        return reference.dense, reference.dense_gradients
    shared = dict(strides=synapse.strides, pads=synapse.pads)
    passes = reference.conv, reference.conv_gradients
    return tuple(functools.partial(one, **shared) for one in passes)


def dyadic(rng, shape, scale=1.0, dtype=np.float32):
    """Multiples of 1/8 around a small positive mean."""
    return (np.round(rng.normal(0.3, scale, shape) * 8) / 8).astype(dtype)


def spikes(rng, shape, num_steps, active=0.5, dtype=np.float32):
    times = rng.integers(0, num_steps, shape)
    return np.where(rng.random(shape) < active, times, num_steps).astype(dtype)


LAYERS = {
    "dense": (Dense(), (5, 37), (37, 10)),
    "dense one input": (Dense(), (3, 1), (1, 3)),
    "dense many outputs": (Dense(), (2, 70), (70, 300)),
    "dense, images of a part together": (Dense(), (37, 64), (64, 10)),
    "dense, copied together": (Dense(), (37, 21), (21, 10)),
    "one pixel, images together": (Conv((1, 1), SAME3), (37, 1, 1, 16), (3, 3, 16, 4)),
    "conv 3x3 same": (Conv((1, 1), SAME3), (3, 6, 5, 8), (3, 3, 8, 20)),
    "conv 3x3 one channel": (Conv((1, 1), SAME3), (2, 8, 8, 1), (3, 3, 1, 64)),
    "conv 2x2 stride 2": (Conv((2, 2), NONE), (3, 6, 7, 9), (2, 2, 9, 5)),
    "conv 5x5 stride (2, 1)": (
        Conv((2, 1), ((2, 2), (1, 3))),
        (2, 7, 6, 3),
        (5, 5, 3, 17),
    ),
    "conv 1x1": (Conv((1, 1), NONE), (2, 3, 4, 40), (1, 1, 40, 130)),
    "conv stride beyond window": (Conv((3, 2), NONE), (2, 7, 7, 4), (1, 1, 4, 6)),
    "conv pads wider than window": (
        Conv((1, 2), ((0, 4), (5, 0))),
        (2, 3, 4, 12),
        (2, 3, 12, 33),
    ),
    "one pixel": (Conv((1, 1), SAME3), (2, 1, 1, 5), (3, 3, 5, 4)),
}
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


def forward(
    synapse, times, kernel, *, threshold=3.0, num_steps=12, peaks=True, engine=event
):
    run = functools.partial(engine.forward, synapse, num_steps=num_steps, peaks=peaks)
    return jax.jit(run)(times, kernel, none(kernel), each(kernel, threshold))[:3]


def each(kernel, threshold):
    return jnp.full(kernel.shape[-1], threshold, kernel.dtype)


def none(kernel):
    """Weights of no reference neurons."""
    return jnp.zeros((0, kernel.shape[-1]), kernel.dtype)


def backward(synapse, times, kernel, *arrays, num_steps=12, silent_inputs=False):
    run = functools.partial(
        event.backward, synapse, num_steps=num_steps, silent_inputs=silent_inputs
    )
    return jax.jit(run)(times, kernel, none(kernel), *arrays)[:2]


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(e))


@layers
@pytest.mark.parametrize("num_steps", [1, 12, 100])
def test_is_the_loop_over_time_and_neurons(layer, num_steps):
    synapse, t_shape, k_shape = layer
    integrate, gradients = loops(synapse)
    rng = np.random.default_rng(num_steps)
    times, kernel = spikes(rng, t_shape, num_steps), dyadic(rng, k_shape)
    expected = integrate(times, kernel, 3.0, num_steps)
    assert_equal(forward(synapse, times, kernel, num_steps=num_steps), expected)
    out = forward(synapse, times, kernel, num_steps=num_steps, peaks=False)
    assert_equal(out, (expected.times, None, None))
    end = np.where(rng.random(out[0].shape) < 0.2, num_steps, expected.t_star)
    delta = dyadic(rng, end.shape) * (rng.random(end.shape) < 0.4)
    arrays = times, kernel, np.float32(end), np.float32(delta)
    for silent_inputs in (False, True):
        rule = dict(num_steps=num_steps, silent_inputs=silent_inputs)
        assert_equal(backward(synapse, *arrays, **rule), gradients(*arrays, **rule))


@pytest.mark.parametrize(
    "batch, peaks, pulses",  # a batch of 1: rows of an image in parallel
    [(1, False, 0), (1, True, 3), (5, False, 3), (5, True, 0)],
)
def test_pooling_and_counts_are_those_of_the_scan(batch, peaks, pulses):
    rng = np.random.default_rng(6)
    synapse = Conv((1, 1), SAME3)
    arrays = spikes(rng, (batch, 12, 6, 3), 12), dyadic(rng, (3, 3, 3, 150))
    arrays += dyadic(rng, (pulses, 150)), np.float32(3 + np.arange(150) % 7 / 8)
    options = dict(num_steps=12, peaks=peaks, pool=(2, 3), counts=True)
    by_event, by_scan = (
        jax.jit(functools.partial(engine.forward, synapse, **options))(*arrays)
        for engine in (event, scan)
    )
    assert by_event.counts.dtype == jnp.int32
    assert_equal(jax.tree.leaves(by_event), jax.tree.leaves(by_scan))


def test_counts_over_seeds_and_images():
    rng = np.random.default_rng(7)
    times, kernels = spikes(rng, (4, 2, 20), 12), dyadic(rng, (3, 20, 6))

    def run(times, kernel):
        options = dict(num_steps=12, peaks=False, counts=True)
        arrays = times, kernel, none(kernel), each(kernel, 3.0)
        return event.forward(Dense(), *arrays, **options)

    both = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(times, kernels)
    expected = [[run(t, k).times for k in kernels] for t in times]
    np.testing.assert_array_equal(both.times, np.array(expected))
    fired = np.asarray(both.times)[..., None] == np.arange(12)
    assert_equal([both.counts], [fired.sum(axis=-2)[:, :, :, None]])


NEURONS = {  # events [(step, weight), …]: (spike, peak, end), θ = 4, T = 10
    "silence": ([(10, 9)], (10, 0, 0)),
    "potential is kept, no leak": ([(1, 2), (5, 2)], (5, 4, 5)),
    "inputs in any order": ([(5, 3), (1, 1)], (5, 4, 5)),
    "fires once": ([(1, 5), (2, 5)], (1, 5, 1)),
    "tie adds within the step": ([(3, 2), (3, 2)], (3, 4, 3)),
    "tie cancels within the step": ([(3, 9), (3, -6)], (10, 3, 3)),
    "tie cancels at the end of time": ([(9, 9), (9, -6)], (10, 3, 9)),
    "first step": ([(0, 4)], (0, 4, 0)),
    "last step": ([(9, 4)], (9, 4, 9)),
    "crosses and falls back": ([(2, 5), (3, -8)], (2, 5, 2)),
    "falls, then crosses": ([(2, 3), (3, -3), (4, 4)], (4, 4, 4)),
    "just below": ([(2, 3.875)], (10, 3.875, 2)),
    "first of two equal peaks": ([(2, 3), (4, -1), (6, 1)], (10, 3, 2)),
    "negative from the first step on": ([(0, -3), (5, 1)], (10, -2, 5)),
    "negative later": ([(4, -3), (5, 1)], (10, 0, 0)),
    "returns to zero": ([(0, -3), (5, 3)], (10, 0, 5)),
}


@pytest.mark.parametrize("more", [0, 40])  # silent inputs: wide windows sort otherwise
@pytest.mark.parametrize("engine", [event, scan])
def test_neurons_by_hand(engine, more):
    """Each an output of one layer, with inputs of its own."""
    events = [events for events, _ in NEURONS.values()]
    times, weights = zip(*itertools.chain(*events), strict=True)
    sizes = [*map(len, events)]
    kernel = np.zeros((len(times) + more, len(sizes)), np.float32)
    outputs = np.repeat(np.arange(len(sizes)), sizes)
    kernel[np.arange(len(times)), outputs] = weights
    arrays = np.array([[*times, *[10] * more]], np.float32), kernel
    options = dict(threshold=4.0, num_steps=10, engine=engine)
    found = forward(Dense(), *arrays, **options)
    quick, _, _ = forward(Dense(), *arrays, **options, peaks=False)
    for index, (name, (_, expected)) in enumerate(NEURONS.items()):
        assert tuple(float(x[0, index]) for x in found) == expected, name
        assert quick[0, index] == expected[0], name


@pytest.mark.slow
@settings(max_examples=6, deadline=None, phases=[Phase.generate])  # no shrinking
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_equals_the_scan_on_any_geometry(data, seed):
    """Forward, with pooling and counts, and backward, in both rules; dyadic weights."""
    draw, rng = data.draw, np.random.default_rng(seed)
    num_steps, pads = draw(st.integers(1, 40)), st.tuples(*[st.integers(0, 2)] * 2)
    window, strides = (draw(st.tuples(*[st.integers(1, 3)] * 2)) for _ in range(2))
    synapse = Conv(strides, (draw(pads), draw(pads)))
    image = [
        draw(st.integers(max(1, size - sum(pad)), 7))
        for size, pad in zip(window, synapse.pads, strict=True)
    ]
    inputs, outputs = draw(st.integers(1, 33)), draw(st.integers(1, 40))
    shape = draw(st.integers(1, 3)), *image, inputs
    times = spikes(rng, shape, num_steps, draw(st.sampled_from([0, 0.1, 0.6, 1])))
    kernel = dyadic(rng, (*window, inputs, outputs))
    pulses = dyadic(rng, (draw(st.integers(0, num_steps)), outputs))
    theta = np.float32(1 + np.arange(outputs) % 9 / 8) * draw(st.integers(1, 4))
    out = jax.eval_shape(synapse.current, times, kernel).shape
    divisors = ([n for n in range(1, size + 1) if size % n == 0] for size in out[1:3])
    pool = tuple(draw(st.sampled_from(sizes)) for sizes in divisors)
    peaks = draw(st.booleans())

    def both(engine):
        options = dict(num_steps=num_steps, pool=pool)
        response = engine.forward(
            synapse, times, kernel, pulses, theta, **options, peaks=peaks, counts=True
        )
        end = response.end if peaks else response.times
        error = np.round(3 * np.sin(np.arange(end.size))).reshape(end.shape)
        arrays = times, kernel, pulses, end, error.astype(np.float32)
        arrays += () if response.argmin is None else (response.argmin,)
        return response, engine.backward(
            synapse, *arrays, **options, silent_inputs=peaks
        )

    by_event, by_scan = jax.jit(lambda: (both(event), both(scan)))()
    assert_equal(jax.tree.leaves(by_event), jax.tree.leaves(by_scan))


def test_an_early_end_of_a_window_keeps_peaks():
    times = np.arange(40, dtype=np.float32)[None]
    out = forward(Dense(), times, np.ones((40, 130), np.float32), num_steps=40)
    assert_equal(out, [np.full((1, 130), value) for value in (2, 3, 2)])


def test_float64_keeps_its_precision():
    with float64():
        rng = np.random.default_rng(0)
        synapse, t_shape, k_shape = LAYERS["conv 3x3 same"]
        integrate, gradients = loops(synapse)
        times = spikes(rng, t_shape, 12, dtype=np.float64)
        kernel = dyadic(rng, k_shape, dtype=np.float64) + 2.0**-40
        expected = integrate(times, kernel, 3.0, 12)
        assert_equal(forward(synapse, times, kernel), expected)
        delta = dyadic(rng, expected.times.shape, dtype=np.float64)
        arrays = times, kernel, expected.t_star, delta
        assert_equal(backward(synapse, *arrays), gradients(*arrays, 12))


def test_times_off_the_grid_are_silent_not_a_crash():
    times = jnp.array([[-1.0, jnp.nan, 1e9, 3.0]] * 2)
    spike, _, _ = forward(Dense(), times, jnp.full((4, 1), 5.0))
    assert (spike == 3).all()


SMALL_RUN = """
    import functools, os, jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from ds4nn_jax._engines import event
    from ds4nn_jax._engines.synapse import Conv

    synapse = Conv((1, 1), ((1, 1), (1, 1)))
    rng = np.random.default_rng(0)
    times = rng.integers(0, 101, (64, 14, 14, 16)).astype(np.float32)
    kernel = (rng.integers(-8, 12, (3, 3, 16, 32)) / 8).astype(np.float32)

    pulses = np.zeros((0, 32), np.float32)

    def run(times, kernel, num_steps=100):
        arrays = times, kernel, pulses
        threshold = jnp.full((32,), 3.0)
        spike, peak, end, *_ = event.forward(
            synapse, *arrays, threshold, num_steps=num_steps, peaks=True
        )
        d_times, d_kernel, _ = event.backward(
            synapse, *arrays, end, peak, num_steps=num_steps, silent_inputs=True
        )
        return spike, peak, d_times, d_kernel

    def same(a, b):
        return all((np.asarray(x) == np.asarray(y)).all() for x, y in zip(a, b))

    alone = jax.jit(run)(times, kernel)
"""


def in_subprocess(code, prefix=(), **environment):
    result = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(SMALL_RUN + code)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_results_do_not_depend_on_threads():
    """Real weights, whose sums show their order; one core must not deadlock either."""
    code = """
    import hashlib
    weights = rng.normal(0.2, 1, kernel.shape).astype(np.float32)
    call = jax.jit(run)
    found = {b"".join(np.asarray(x).tobytes() for x in call(times, weights))
             for _ in range(10)}
    digests = [hashlib.sha256(each).hexdigest() for each in found]
    print(len(os.listdir("/proc/self/task")), *digests)
    """
    one_core = ("taskset", "-c", str(min(os.sched_getaffinity(0))))
    alone = in_subprocess(code, prefix=one_core, NPROC="1").split()
    several = in_subprocess(code, NPROC="5").split()
    assert int(alone[0]) < int(several[0]), "as many threads"
    assert alone[1:] == several[1:] and len(alone) == 2


def test_eight_devices_and_several_threads_agree_with_one():
    """Some calls are still at work when the interpreter ends."""
    in_subprocess(
        """
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(times, NamedSharding(mesh, P("data")))
    shared = jax.device_put(kernel, NamedSharding(mesh, P()))
    plain = jax.jit(run).lower(sharded, shared).compile()
    assert same(plain(sharded, shared), alone)
    assert "f32[8,14,14,32]" in plain.as_text()  # its images alone
    assert "f32[64,14,14,32]" not in plain.as_text()

    def summed(times, kernel):
        *rest, d_kernel = run(times, kernel)
        return *rest, jax.lax.psum(d_kernel, "data")

    specs = (P("data"), P("data"), P("data"), P())
    mapped = jax.shard_map(
        summed, mesh=mesh, in_specs=(P("data"), P()), out_specs=specs, check_vma=False
    )
    for _ in range(10):
        assert same(jax.jit(mapped)(sharded, shared), alone)

    import concurrent.futures
    call = jax.jit(run)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: call(times, kernel), range(30)))
    assert all(same(each, alone) for each in found)
    last = [call(times, kernel) for _ in range(20)]  # dispatched, never waited for
    """,
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )


@pytest.mark.parametrize("grid", [None, 0.1])
def test_disagreements_on_real_weights_are_rounding_at_the_threshold(grid, images, rng):
    """On multiples of 0.1, none of them a float, sums land on θ over and over."""
    network = ds.SpikingNetwork.from_spec("8C3-P2-10", threshold=1.0)
    times = np.asarray(ds.encode(images[0][:20]))
    weights = rng.normal(0.1, 0.3, (3, 3, 1, 8)), rng.normal(0, 0.1, (5, 8))
    if grid is not None:
        weights = [np.round(each / grid) * grid for each in weights]
    kernel, pulses = (each.astype(np.float32) for each in weights)
    neurons, found = disagreements(network, kernel, pulses, times)
    assert neurons == 8 * times.size
    assert all(each.distance <= each.bound < 1e-4 for each in found)
    assert bool(found) == (grid is not None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gradient", "evaluate"])
def test_ctrl_c_is_a_keyboard_interrupt_and_breaks_nothing(kind):
    command = [sys.executable, "-m", "benchmarks.interrupts", "--interrupts=5"]
    done = subprocess.run(
        [*command, f"--child={kind}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["seen"] == {"KeyboardInterrupt": 5} and said["wrong"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_memory_does_not_grow_with_time_steps_and_its_lack_is_an_error():
    """The kernels' memory is their own: XLA's analysis does not show it. 16 MiB are
    enough for T = 10,000, not for a wide layer: then XLA raises, and goes on."""
    in_subprocess(
        """
    import resource
    many = jax.jit(functools.partial(run, num_steps=10_000))
    few_images = times[:8]
    many = many.lower(few_images, kernel).compile()
    wide = jnp.zeros((1, 3, 40000, 64)), jnp.zeros((3, 3, 64, 2))
    others = jnp.zeros((0, 2)), jnp.full((2,), 3.0)
    layer = jax.jit(lambda t, k: event.forward(
        synapse, t, k, *others, num_steps=100, peaks=False
    ).times)
    compiled = layer.lower(*wide).compile()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, resource.RLIM_INFINITY))
    jax.block_until_ready(many(few_images, kernel))
    try:
        jax.block_until_ready(compiled(*wide))
    except Exception as error:
        assert "no memory" in str(error), error
    else:
        raise SystemExit("it went through")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert same(jax.jit(run)(times, kernel), alone)
    """
    )
