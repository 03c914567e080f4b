"""What the report measures of a network, in one pass over a data set."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import _checks
from ds4nn_jax.layers import _response
from ds4nn_jax.networks import quantization
from ds4nn_jax.networks.network import check_params
from ds4nn_jax.networks.spec import PoolSpec


def without_pooling(network: ds.SpikingNetwork, layer_spikes: Sequence[float]) -> float:
    """Spikes of the neurons that are not of pooling layers.

    Args:
      network: its structure.
      layer_spikes: of the input, which is left out, and of every layer.
    """
    layers = zip(network.layers, layer_spikes[1:], strict=True)
    return sum(spikes for layer, spikes in layers if not isinstance(layer, PoolSpec))


def urgency(network: ds.SpikingNetwork, params: dict) -> float:
    """Its urgency in mV, where θ is 100 mV."""
    return round(network.urgency / quantization.millivolt(network, params), 9)


def urged(
    network: ds.SpikingNetwork, params: dict, urgency: float | None
) -> ds.SpikingNetwork:
    """With an urgency of so many mV, where θ is 100 mV; None: with its own."""
    if urgency is None:
        return network
    unit = quantization.millivolt(network, params)
    return network.clone(urgency=urgency * unit)


def reference(network: ds.SpikingNetwork, params: dict) -> str:
    """What the spikes of its reference neurons are called."""
    alone = network.urgency and not any(network.pulse_counts.values())
    of = f" of {urgency(network, params):g} mV" if alone else ""
    return f"reference spikes{of}"


class AtUrgency(NamedTuple):
    """What an urgency makes of a network; means over the images.

    Attributes:
      urgency: u, mV a step into every output.
      accuracy: strict.
      decision_step: T where no output fires.
      silent: share of the images for which no output fires: potentials decide.
      spikes: of all layers up to the decision, input and reference spikes apart.
    """

    urgency: float
    accuracy: float
    decision_step: float
    silent: float
    spikes: float


class Measured(NamedTuple):
    """A network on a data set.

    Attributes:
      test: its report.
      accuracy_by_step: [T] share of the images that `predict_by` gets right.
      decided_by_step: [T] share of the images for which an output has fired.
      urgencies: the same weights with each of the urgencies asked for.
    """

    test: ds.Report
    accuracy_by_step: np.ndarray
    decided_by_step: np.ndarray
    urgencies: tuple[AtUrgency, ...]


def measure(
    network: ds.SpikingNetwork,
    params: dict,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    urgencies: Sequence[float] = (),
    on_batch: Callable[[int], None] = lambda done: None,
    batch_size: int = 100,
) -> Measured:
    """Hidden layers are computed once, outputs for every urgency.

    Args:
      network: its structure.
      params: its parameters.
      images: [n, H, W, C].
      labels: [n].
      urgencies: mV a step, where θ is 100 mV.
      on_batch: called with the images done.
      batch_size: images at a time; of no influence on the result.

    Raises:
      ValueError: as `ds.evaluate`.
    """
    images, labels = _checks.pairs(images, labels, network.num_classes)
    check_params(network, params, images)
    theta = network.thresholds(params)[-1]
    unit = quantization.millivolt(network, params)
    shared = dict(num_steps=network.num_steps, threshold=theta, engine=network.engine)

    @jax.jit
    def batch(params, pixels):
        trace = network.apply(params, network.encode(pixels), method="trace")
        own = ds.decide(trace)
        guesses = ds.predict_by(
            trace.times[-1], output_potentials(network, params, trace)
        )
        *arrays, pulses = entering(network, params, trace)
        others = []
        for at in urgencies:
            options = dict(shared, urgency=at * unit, pulses=pulses)
            out = ds.dense(*arrays, **options)
            peaks = ds.decision_potentials(*arrays, **options)
            peaks = _response.comparable(peaks, theta)
            times = *trace.times[:-1], out
            decided = ds.decide(ds.Trace(times, peaks, network.num_steps))
            spikes = decided.spikes[:, 1:].sum(axis=1)
            others.append((decided.label, decided.step, spikes))
        return own, guesses.T, tuple(jnp.stack(x) for x in zip(*others, strict=True))

    decisions, right, first, others = [], [], [], []
    for start, some, count in ds.networks.inference.batches_of(images, batch_size):
        truth = labels[start : start + count]
        own, guesses, at = jax.device_get(batch(params, some))
        rows = ds.Decisions(*(None if x is own.fired else x[:count] for x in own))
        decisions.append((rows._replace(fired=own.fired), truth))
        right.append(guesses[:count] == truth[:, None])
        first.append(own.step[:count])
        others.append([x[:, :count] for x in at])
        on_batch(start + count)

    steps = np.arange(network.num_steps)
    test = ds.report(decisions, network.num_classes)
    by = np.concatenate(first)[:, None] <= steps
    found = [np.concatenate(x, axis=1) for x in zip(*others, strict=True)]
    each = [
        AtUrgency(
            at,
            accuracy=float(np.mean(label == labels)),
            decision_step=float(step.mean()),
            silent=float(np.mean(step == network.num_steps)),
            spikes=float(spikes.mean()),
        )
        for at, label, step, spikes in zip(urgencies, *found, strict=True)
    ]
    return Measured(
        test, np.concatenate(right).mean(axis=0), by.mean(axis=0), tuple(each)
    )


def output_potentials(
    network: ds.SpikingNetwork, params: dict, trace: ds.Trace
) -> jax.Array:
    """Potentials [T, B, C] of the output neurons, unreset, mV."""
    *arrays, pulses = entering(network, params, trace)
    return ds.membrane_potentials(
        *arrays,
        num_steps=network.num_steps,
        urgency=network.urgency,
        pulses=pulses,
    )


def entering(
    network: ds.SpikingNetwork, params: dict, trace: ds.Trace
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """What the output layer hears [B, I], its kernel [I, C], and its pulses [P, C]."""
    times, output = trace.times[-2], params["params"][network.names[-1]]
    return times.reshape(len(times), -1), output["kernel"], output.get("pulses")
