import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import ds4nn_jax as ds

T = 10
#            clear win      tie, V decides   tie, index      all silent, V decides
TIMES = [[3.0, 7.0, T], [5.0, 4.0, 4.0], [2.0, 2.0, 9.0], [T, T, T]]
VOLTS = [
    [100.0, 150.0, 0.0],
    [100.0, 101.0, 120.0],
    [110.0, 110.0, 200.0],
    [9.0, 40, 3],
]


def test_predict_is_strict():
    times, potentials = np.array(TIMES), np.array(VOLTS)
    np.testing.assert_array_equal(ds.predict(times, potentials), [0, 2, 0, 1])
    np.testing.assert_array_equal(ds.predict(times), [0, 1, 0, 0])
    inhibited = np.array([[-7.0, -3.0, -9.0]])  # all silent: the least inhibited
    assert ds.predict(np.full((1, 3), T), inhibited)[0] == 1


def test_predict_by_waits_for_the_first_spike():
    """One image, θ = 100: output 2 leads early, output 1 fires first, at step 2."""
    potentials = np.array([[10, 0, 50], [60, 90, 50], [70, 120, 50], [300, 120, 50.0]])
    times = np.array([[3.0, 2.0, 4.0]])
    decided = ds.predict_by(times, potentials[:, None])
    np.testing.assert_array_equal(decided[:, 0], [2, 1, 1, 1])


def test_predict_by_ends_in_the_strict_decision():
    potentials = np.repeat(np.array(VOLTS)[None], T, axis=0)
    decided = ds.predict_by(np.array(TIMES), potentials)
    np.testing.assert_array_equal(decided[-1], [0, 2, 0, 1])
    with pytest.raises(ValueError, match=r"potentials must be \[T, B, C\]"):
        ds.predict_by(np.array(TIMES), np.array(VOLTS))


def worked_trace():
    hidden = [[0.0, 3, 4, T], [4.0, 9, 1, T], [T, T, T, T], [9.0, T, T, T]]
    inputs = [[0.0, 9], [1, 2], [2, T], [0, 0]]
    return ds.Trace(
        times=tuple(map(jnp.asarray, (inputs, hidden, TIMES))),
        potentials=jnp.asarray(VOLTS),
        num_steps=T,
    )


def test_cost_of_a_decision_by_hand():
    decisions = ds.decide(worked_trace())
    np.testing.assert_array_equal(decisions.label, [0, 2, 0, 1])
    np.testing.assert_array_equal(decisions.step, [3, 4, 2, T])
    # up to and including the step: inputs, hidden, outputs (the winners, ties included)
    np.testing.assert_array_equal(
        decisions.spikes, [[1, 2, 1], [2, 2, 2], [1, 0, 2], [2, 1, 0]]
    )
    np.testing.assert_array_equal(decisions.fired[0], [True, True, True, False])
    np.testing.assert_array_equal(decisions.fired[1], [True, True, True])


def test_report_by_hand():
    decisions = ds.decide(worked_trace())
    labels = np.array([0, 1, 0, 2])
    whole = ds.report([(decisions, labels)], 3)
    assert whole.images == 4
    assert whole.accuracy == 0.5
    assert whole.lenient_accuracy == 0.75  # the tie of image 1 includes its label
    assert whole.tied == 0.5 and whole.silent == 0.25
    assert whole.decision_step == (3 + 4 + 2 + T) / 4
    assert whole.spikes == (3 + 4 + 2 + 1) / 4
    assert whole.layer_spikes == (6 / 4, 5 / 4, 5 / 4)
    assert whole.layer_dead == (0.25, 0.0) and whole.dead == pytest.approx(1 / 7)
    np.testing.assert_array_equal(whole.confusion, [[2, 0, 0], [0, 0, 1], [0, 1, 0]])
    np.testing.assert_allclose(
        whole.firing_times, [[2.5, 5, T], [4.5, 4, T], [(T + 9) / 2, 4, T]]
    )
    np.testing.assert_allclose(whole.class_steps, [2.5, 4, T])
    np.testing.assert_allclose(whole.class_spikes, [2.5, 4, 1])
    of_one_class = ds.report([(decisions, np.zeros(4, int))], 3)
    assert np.isnan(of_one_class.firing_times[:, 1:]).all()
    assert np.isnan(of_one_class.class_steps).tolist() == [False, True, True]


def test_reference_spikes_by_hand():
    """Decisions at steps 3, 4, 2 and never, T = 10: three reference neurons spike at 0,
    3 and 6, ten at every step."""
    trace = dataclasses.replace(worked_trace(), reference=(3, 10))
    decisions = ds.decide(trace)
    np.testing.assert_array_equal(
        decisions.reference_spikes, [[2, 4], [2, 5], [1, 3], [3, 10]]
    )
    whole = ds.report([(decisions, np.array([0, 1, 0, 2]))], 3)
    assert whole.layer_reference_spikes == (2.0, 5.5)
    assert whole.summary()["reference_spikes"] == whole.reference_spikes == 7.5
    alone = ds.report([(ds.decide(worked_trace()), np.array([0, 1, 0, 2]))], 3)
    assert alone.reference_spikes == 0 and alone.layer_reference_spikes == (0, 0)
    assert alone.spikes == whole.spikes


def test_the_reference_neurons_of_a_network():
    """An urgency spikes at every step: its neurons are those of the pulses, too."""
    network = ds.SpikingNetwork.from_spec("4C3-P2-10", num_steps=T, pulses=(3, 2))
    assert network.reference_neurons == (3, 0, 2)
    assert network.clone(urgency=0.5).reference_neurons == (3, 0, T)
    assert network.clone(pulses=()).reference_neurons == (0, 0, 0)


def test_report_does_not_depend_on_batches(rng):
    out = rng.integers(0, T + 1, (12, 4)).astype(np.float32)
    hidden = rng.integers(0, T + 1, (12, 3, 3, 2)).astype(np.float32)
    volts = rng.normal(size=(12, 4)).astype(np.float32)
    labels = rng.integers(0, 4, 12)

    def batch(rows):
        times = tuple(jnp.asarray(x[rows]) for x in (hidden, hidden, out))
        trace = ds.Trace(times, jnp.asarray(volts[rows]), T)
        return ds.decide(trace), labels[rows]

    whole = ds.report([batch(slice(0, 12))], 4)
    parts = ds.report([batch(slice(i, i + 5)) for i in (0, 5, 10)], 4)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_advice_is_given_once(caplog):
    """White images: all pixels at step 0, all outputs at once, then silent ones."""
    network = ds.SpikingNetwork.from_spec("4-3", num_steps=T)
    white, labels = np.full((4, 4), 255, np.uint8), np.zeros(4, int)
    for size in (50.0, 50.0, 1.0):
        params = {"params": {"dense1": {"kernel": np.full((4, 3), size)}}}
        ds.evaluate(network, params, white, labels)
    said = [record.getMessage() for record in caplog.records]
    for words, line in zip(
        ("100% of the pixels", "in 100%", "all images are", "100% of the images"),
        said,
        strict=True,
    ):
        assert line.startswith(words)
