"""The firing-rate regularizer against loops over channels, its schedule, a run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.training import step
from ds4nn_jax.training.regularizers import RateRegularizer, regularize_rates

T = 20


def pushed(delta, times, target, strength, floor):
    """The docstring's equation, channel by channel and neuron by neuron."""
    out, scale = delta.copy(), np.sqrt((delta**2).mean())
    for c in range(times.shape[-1]):
        fired = times[..., c] < T
        rate = fired.sum() / fired.size
        for index in np.ndindex(fired.shape):
            if fired[index]:
                out[*index, c] -= strength * scale * max(rate / target - 1, 0)
            elif floor:
                low = max(1 - rate / (floor * target), 0)
                out[*index, c] += strength * scale * low
    return out


@pytest.mark.parametrize(
    "shape, target, floor",
    [((4, 3, 5, 6), 0.3, 0.5), ((8, 7), 0.9, 0.9), ((8, 7), 0.1, 0.0)],
)
def test_equals_the_loop(shape, target, floor, rng):
    times = rng.integers(0, T, shape).astype(np.float32)
    rates = np.linspace(0, 1, shape[-1])  # from silent to always
    times = np.where(rng.random(shape) < rates, times, T)
    delta = rng.normal(size=shape).astype(np.float32)
    out, vjp = jax.vjp(
        lambda t, rho: regularize_rates(0.2, floor, T, t, rho), times, target
    )
    np.testing.assert_array_equal(out, times)
    d_times, d_target = vjp(jnp.asarray(delta))
    expected = pushed(delta, times, target, 0.2, floor)
    np.testing.assert_allclose(d_times, expected, rtol=1e-5, atol=1e-6)
    assert d_target == 0
    assert np.abs(expected - delta).max() > 0


def test_targets_fall_geometrically():
    """One above the start does not fall."""
    regularizer = RateRegularizer(targets=(0.03, 0.12), start=0.3, steps=100)

    def targets(step, hidden=3):
        layers = regularizer.layers(hidden, jnp.int32(step), T)
        return [float(layer.keywords["target"]) for layer in layers]

    half = [0.3 * 0.1**0.5, 0.3 * 0.4**0.5, 0.3 * 0.4**0.5]
    assert targets(0) == pytest.approx([0.3] * 3)
    assert targets(50) == pytest.approx(half)
    assert targets(100) == targets(900) == pytest.approx([0.03, 0.12, 0.12])
    assert [regularizer.settled(step) for step in (0, 99, 100)] == [False, False, True]
    regularizer = RateRegularizer(targets=(0.03, 0.5), start=0.3, steps=100)
    assert targets(0, hidden=2) == pytest.approx([0.3, 0.5])
    assert targets(100, hidden=2) == pytest.approx([0.03, 0.5])
    assert RateRegularizer().layers(3, jnp.int32(0), T) == ()
    assert RateRegularizer().settled(0)
    assert RateRegularizer((0.5, 0.3), start=0.3, steps=100).settled(0)


@pytest.mark.parametrize(
    "spec, behind",
    [
        ("P2-4C3-P2-P2-5", (4,)),
        ("4C3-P5-3C3-P2-6-5", (2, 4, 5)),  # windows that do not cover the image
    ],
)
def test_is_behind_every_hidden_layer_and_its_pooling(spec, behind, rng):
    """Each regularizer sees the spike times that the trace has behind the pooling."""
    network = ds.SpikingNetwork.from_spec(spec, num_steps=T, threshold=3.0)
    times = rng.integers(0, T + 1, (3, 12, 12, 1)).astype(np.float32)

    @jax.jit
    def run(params):
        inputs = []

        def watch(x):
            inputs.append(x)
            return x

        network.apply(params, times, [watch] * len(behind), method="activity")
        return inputs, network.apply(params, times, method="trace").times

    inputs, trace = run(jax.jit(network.init)(jax.random.key(0), times))
    for actual, index in zip(inputs, behind, strict=True):
        np.testing.assert_array_equal(actual, trace[index])


def test_a_push_is_not_centred(rng):
    """The regularizer of a layer whose errors are centred sees what is left of them."""
    times = rng.integers(0, 2 * T, (5, 4, 4, 3)).clip(max=T).astype(np.float32)
    delta = jnp.asarray(rng.normal(2, 1, times.shape), jnp.float32)
    regularizer = RateRegularizer((0.2,), strength=0.5, steps=1)
    config = ds.TrainConfig(num_steps=T, regularizer=regularizer, centring=1.0)
    (push,) = regularizer.layers(1, jnp.int32(1), T)

    def back(identity, delta):
        return jax.vjp(identity, times)[1](delta)[0]

    expected = back(push, back(lambda t: ds.centre_errors(t, T), delta))
    both = back(functools.partial(step._centred, config, push), delta)
    np.testing.assert_array_equal(both, expected)
    fired = times < T
    assert np.asarray(both)[fired].sum() < -1, "the fired are pushed later, all in all"


@pytest.mark.slow
def test_a_run_keeps_to_its_targets():
    digits = data.load("digits")
    images, labels = digits.train_images[:600], digits.train_labels[:600]
    free = ds.TrainConfig(spec="8C3-P2-10", epochs=8, batch_size=20)
    regularizer = RateRegularizer(targets=(0.05,), strength=0.5, steps=50)
    spikes = []
    for config in (free, dataclasses.replace(free, regularizer=regularizer)):
        *_, last = ds.train(config, images, labels)
        report = ds.evaluate(config.network(), last.params, images, labels)
        spikes.append(sum(report.layer_spikes[1:3]))
    assert spikes[1] < 0.6 * spikes[0], spikes


def test_a_run_that_goes_on_forgets_its_score_before_its_targets():
    """The last epoch of a run is kept even if its targets are still falling, but does
    not compete with those of the run that goes on from it."""
    digits = data.load("digits")
    images, labels = digits.train_images[:300], digits.train_labels[:300]
    regularizer = RateRegularizer(targets=(0.1,), steps=40)
    config = ds.TrainConfig(
        spec="8C3-P2-10",
        regularizer=regularizer,
        epochs=2,
        batch_size=20,
        validation=0.2,
    )
    first, last = ds.train(config, images, labels)
    assert (first.best, last.best) == (False, True)
    longer = dataclasses.replace(config, epochs=5)
    # 12 steps an epoch: from the fourth on targets are at their values.
    third, fourth, _ = ds.train(longer, images, labels, start=last.checkpoint)
    assert (third.best, fourth.best) == (False, True)
    assert last.checkpoint.best == third.checkpoint.best < 0
    assert fourth.checkpoint.best == np.float32(fourth.validation.accuracy)
