"""The figures of a trained network, as runs and the report draw them."""

from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import ds4nn_jax as ds
from ds4nn_jax import data, plots


class Stopping(NamedTuple):
    """What is known if one stops at step t; each [T].

    Attributes:
      accuracy: share of the images that `predict_by` gets right.
      decided: share of the images for which an output has fired.
    """

    accuracy: np.ndarray
    decided: np.ndarray


def of_network(
    network: ds.SpikingNetwork, params: dict, images: data.Dataset, test: ds.Report
) -> dict[str, Figure]:
    """Figures by name: the network's report, and the first test image, whatever the
    network makes of it: not the best looking one."""
    names = images.class_names
    layers = ("input", *network.names)
    times, potentials, trace = _first_image(network, params, images)
    every = np.concatenate([np.ravel(t) for t in trace.times[1:]]).astype(int)
    emitted = np.bincount(every, minlength=network.num_steps)[: network.num_steps]
    return {
        "confusion": plots.confusion(test.confusion, names),
        "raster": _raster(network, trace),
        "output_potentials": plots.output_potentials(
            potentials,
            times,
            threshold=network.threshold,
            label=int(images.test_labels[0]),
            class_names=names,
            decision_step=int(np.min(times)),
            spikes_by_step=emitted,
        ),
        "firing_times": plots.firing_times(test.firing_times, names),
        "spikes_per_layer": plots.spikes_per_layer(test.layer_spikes, layers),
    }


def raster(network: ds.SpikingNetwork, params: dict, image: np.ndarray) -> Figure:
    """All spikes of one image [H, W, C]."""
    return _raster(network, _trace(network, params, image))


def stopping(
    network: ds.SpikingNetwork,
    params: dict,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 100,
) -> Stopping:
    """Accuracy against the step at which one stops, over a data set."""

    @jax.jit
    def batch(pixels, truth):
        trace = network.apply(
            params, ds.encode(pixels, num_steps=network.num_steps), method="trace"
        )
        potentials = _output_potentials(network, params, trace)
        right = ds.predict_by(trace.times[-1], potentials) == truth
        first = trace.times[-1].min(axis=1)
        decided = first <= np.arange(network.num_steps)[:, None]
        return right.sum(axis=1), decided.sum(axis=1)

    sums = np.zeros((2, network.num_steps))
    for start in range(0, len(labels), batch_size):
        chosen = slice(start, start + batch_size)
        sums += np.array(batch(images[chosen], labels[chosen]))
    return Stopping(*(sums / len(labels)))


def _trace(network, params, image) -> ds.Trace:
    times = ds.encode(image[None], num_steps=network.num_steps)
    return network.apply(params, times, method="trace")


def _raster(network: ds.SpikingNetwork, trace: ds.Trace) -> Figure:
    flat = [np.asarray(times).reshape(-1) for times in trace.times]
    return plots.raster(
        list(zip(("input", *network.names), flat, strict=True)),
        network.num_steps,
        decision_step=int(flat[-1].min()),
    )


def _first_image(network, params, images):
    trace = _trace(network, params, images.test_images[0])
    potentials = _output_potentials(network, params, trace)
    return np.asarray(trace.times[-1][0]), np.asarray(potentials[:, 0]), trace


def _output_potentials(network, params, trace) -> jax.Array:
    entering = trace.times[-2].reshape(len(trace.times[-2]), -1)
    kernel = params["params"][network.names[-1]]["kernel"]
    return ds.membrane_potentials(
        entering, kernel, num_steps=network.num_steps, urgency=network.urgency
    )
