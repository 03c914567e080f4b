"""Stopping at the decision changes nothing but the work."""

import functools

import jax
import numpy as np
import pytest
from conftest import ENGINES

import ds4nn_jax as ds

T = 24


def exact(network, times, rng):
    """Weights on a grid of eighths: sums are exact, whatever their order."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), times)
    return jax.tree.map(
        lambda w: (rng.integers(-4, 20, w.shape) / 8).astype(np.float32), shapes
    )


@functools.partial(jax.jit, static_argnums=0)
def traced(network, params, times):
    """One program, which compiles sooner than many small ones."""
    return tuple(
        network.apply(params, times, method=method) for method in ("trace", "activity")
    )


CASES = [
    ("5C3-P2-6C3-P2-9-4", (8, 8, 1), "SAME", 2.0, 0.125, (4, 10, 3, 5)),
    ("3C3-4C3-6-4", (5, 5, 1), ((2, 0), (1, 1)), 2.0, 0.125, ()),
    ("P2-3C1-P2-4", (9, 8, 2), "SAME", 1000.0, 0.0, ()),
    ("12-40-4", (12,), "SAME", 1.0, 0.125, (0, 24)),
    # The scan, which compiles longer, runs those above.
    ("5C3-P2-6C3-4", (7, 9, 2), "SAME", 1.0, 0.0, (24, 1)),
    ("3C2-P3-4", (8, 8, 1), "VALID", 2.0, 0.0, ()),
    ("5C3s2-P2-6C3s2-4", (12, 9, 2), "SAME", 2.0, 0.0, ()),
    ("3C3s2-40C2-4", (9, 8, 1), "VALID", 2.0, 0.0, (7, 0, 5)),
    ("12-9-4", (12,), "SAME", 1.0, 0.125, ()),
    ("12-4", (12,), "SAME", 2.0, 0.0, (9,)),
    ("12-4", (12,), "SAME", 1000.0, 0.0, ()),
]
RUNS = [
    (engine, *case)
    for engine in ENGINES
    for case in CASES[: 4 if engine == "scan" else None]
]


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_equals_full_forward(run, rng):
    """`infer`, `activity` and the trace; image 0 is without a spike."""
    engine, spec, shape, padding, threshold, urgency, pulses = run
    network = ds.SpikingNetwork.from_spec(
        spec,
        num_steps=T,
        threshold=threshold,
        urgency=urgency,
        pulses=pulses,
        padding=padding,
        engine=engine,
    )
    times = rng.integers(0, T + 1, (9, *shape)).astype(np.float32)
    times[0] = T
    params = exact(network, times, rng)
    for name, count in network.pulse_counts.items():
        assert ("pulses" in params["params"][name]) == (count > 0)
    if threshold == 2:  # one of each neuron or channel
        for layer in params["params"].values():
            more = np.arange(layer["kernel"].shape[-1]) % 3 / 8
            layer["threshold"] = np.float32(threshold + more)
    trace, activity = traced(network, params, times)
    full = ds.decide(trace)
    short = ds.infer(network, params, times)
    for name in ("label", "step", "spikes"):
        np.testing.assert_array_equal(getattr(short, name), getattr(full, name), name)
    silent = np.asarray(full.step) == T
    assert silent.all() if threshold == 1000 else not silent[1:].all()
    if pulses:
        assert full.step[0] < T, "an image without a spike is decided by pulses alone"
    else:  # by urgency alone
        assert full.step[0] == (threshold / urgency - 1 if urgency else T)
    by_step = [
        (np.asarray(x).reshape(9, -1, 1) == np.arange(T)).sum(1) for x in trace.times
    ]
    np.testing.assert_array_equal(activity.counts, np.stack(by_step, 1))
    np.testing.assert_array_equal(activity.times, trace.times[-1])
    np.testing.assert_array_equal(activity.potentials, trace.potentials)


def test_worked_decision(engine):
    """Two outputs tie at step 5 and the higher potential wins; step 6 is not seen."""
    network = ds.SpikingNetwork.from_spec("4-3", num_steps=T, engine=engine)
    kernel = np.array([[60, 60, 0], [50, 45, 0], [0, 0, 500], [9, 9, 9]], np.float32)
    times = np.array([[2, 5, 6, T], [T, T, T, T]], np.float32)
    got = ds.infer(network, {"params": {"dense1": {"kernel": kernel}}}, times)
    np.testing.assert_array_equal(got.label, [0, 0])
    np.testing.assert_array_equal(got.step, [5, T])
    np.testing.assert_array_equal(got.spikes, [[2, 2], [0, 0]])


def test_real_images(images, rng):
    """Real images and real-valued weights: the same labels, steps and counts."""
    times = ds.encode(images[0][:50])
    network = ds.SpikingNetwork.from_spec("8C3-P2-8C3-P2-10")
    shapes = jax.eval_shape(network.init, jax.random.key(1), times)
    params = jax.tree.map(
        lambda w: rng.normal(60 / np.sqrt(w.size / w.shape[-1]), 40, w.shape), shapes
    )
    params = jax.tree.map(np.float32, params)
    full = ds.decide(traced(network, params, times)[0])
    short = ds.infer(network, params, times)
    for name in ("label", "step", "spikes"):
        np.testing.assert_array_equal(getattr(short, name), getattr(full, name), name)
    assert 0 < np.mean(full.fired[1]) < 1 and np.mean(full.step) < 100


def test_composes(engine, rng):
    network = ds.SpikingNetwork.from_spec(
        "3C3-P2-4", num_steps=T, threshold=4.0, engine=engine
    )
    times = rng.integers(0, T + 1, (6, 4, 4, 1)).astype(np.float32)
    params = exact(network, times, rng)

    def infer(times):
        return ds.infer(network, params, times)

    whole = infer(times)
    jitted = jax.jit(infer)(times)
    mapped = jax.vmap(infer)(times.reshape(3, 2, 4, 4, 1))
    for name in ("label", "step", "spikes"):
        expected = getattr(whole, name)
        np.testing.assert_array_equal(getattr(jitted, name), expected)
        np.testing.assert_array_equal(
            getattr(mapped, name).reshape(expected.shape), expected
        )
