"""What the report measures of a network, in one pass over a data set."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax.layers import _response
from ds4nn_jax.networks import quantization
from ds4nn_jax.networks.spec import PoolSpec


def without_pooling(network: ds.SpikingNetwork, layer_spikes: Sequence[float]) -> float:
    """Spikes of all layers but pooling; the first of `layer_spikes` are the input's."""
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


class Measured(NamedTuple):
    """A network on a data set.

    Attributes:
      test: its report.
      accuracy_by_step: [T] share of the images that `predict_by` gets right.
      decided_by_step: [T] share of the images for which an output has fired.
      urgencies: a report of the same weights with each urgency, by mV a step.
    """

    test: ds.Report
    accuracy_by_step: np.ndarray
    decided_by_step: np.ndarray
    urgencies: dict[float, ds.Report]


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
    """Hidden layers are computed once, outputs for every urgency, in mV a step where θ
    is 100 mV. Images [n, H, W, C], labels [n]; `on_batch` is told how many are done."""
    variants = [network, *(urged(network, params, each) for each in urgencies)]

    @jax.jit
    def batch(params, pixels):
        trace = network.apply(params, network.encode(pixels), method="trace")
        potentials = output_potentials(network, params, trace)
        by_step = ds.predict_by(trace.times[-1], potentials).T
        return by_step, [ds.decide(_decided_by(v, params, trace)) for v in variants]

    correct: list[np.ndarray] = []
    decisions: list[list] = [[] for _ in variants]
    for start, pixels, count in ds.networks.inference.batches_of(images, batch_size):
        truth = labels[start : start + count]
        # The last batch is filled up.
        by_step, decided = jax.device_get(batch(params, pixels))
        correct.append(by_step[:count] == truth[:, None])
        for gathered, each in zip(decisions, decided, strict=True):
            rows = jax.tree.map(lambda x, n=count: x[:n], each)
            gathered.append((rows._replace(fired=each.fired), truth))
        on_batch(start + count)
    test, *others = (ds.report(each, network.num_classes) for each in decisions)
    steps = np.concatenate([rows.step for rows, _ in decisions[0]])
    fired = steps[:, None] <= np.arange(network.num_steps)
    return Measured(
        test,
        np.concatenate(correct).mean(axis=0),
        fired.mean(axis=0),
        dict(zip(urgencies, others, strict=True)),
    )


def _decided_by(network: ds.SpikingNetwork, params: dict, trace: ds.Trace) -> ds.Trace:
    """The trace of a network that differs in its urgency alone."""
    arrays, options = _output(network, params, trace)
    theta = network.thresholds(params)[-1]
    options |= {"threshold": theta, "engine": network.engine}
    return ds.Trace(
        (*trace.times[:-1], ds.dense(*arrays, **options)),
        _response.comparable(ds.decision_potentials(*arrays, **options), theta),
        network.num_steps,
        network.reference_neurons,
    )


def output_potentials(
    network: ds.SpikingNetwork, params: dict, trace: ds.Trace
) -> jax.Array:
    """Potentials [T, B, C] of the output neurons, unreset, in the unit of weights."""
    arrays, options = _output(network, params, trace)
    return ds.membrane_potentials(*arrays, **options)


def first_potentials(
    network: ds.SpikingNetwork, params: dict, trace: ds.Trace
) -> tuple[np.ndarray, float]:
    """Those of the first image, [T, C], and θ, in mV: of integers θ is 100."""
    theta = 100.0 if quantization.is_whole(params) else network.threshold
    potentials = output_potentials(network, params, trace)[:, 0]
    return np.asarray(potentials) * (theta / network.threshold), theta


def _output(
    network: ds.SpikingNetwork, params: dict, trace: ds.Trace
) -> tuple[tuple[jax.Array, jax.Array], dict[str, Any]]:
    """Of the output layer: spike times into it [B, I], its kernel [I, C], the rest."""
    times, output = trace.times[-2], params["params"][network.names[-1]]
    return (times.reshape(len(times), -1), output["kernel"]), {
        "num_steps": network.num_steps,
        "urgency": network.urgency,
        "pulses": output.get("pulses"),
    }
