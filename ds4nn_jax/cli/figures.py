"""The figures of a trained network, as runs and the report draw them."""

import contextlib

import matplotlib.style
import numpy as np
from matplotlib.animation import Animation
from matplotlib.figure import Figure

import ds4nn_jax as ds
from ds4nn_jax import data, plots
from ds4nn_jax.cli.measures import output_potentials


def style() -> contextlib.AbstractContextManager[None]:
    """matplotlib's own settings, whatever the user's are: LaTeX, fonts, colours."""
    return matplotlib.style.context("default")


def of_network(
    network: ds.SpikingNetwork, params: dict, images: data.Dataset, test: ds.Report
) -> dict[str, Figure]:
    """Figures by name: the network's report, and the first test image, whatever the
    network makes of it: not the best looking one."""
    names = literal(images.class_names)
    layers = ("input", *network.names)
    done = trace(network, params, images.test_images[0])
    times = np.asarray(done.times[-1][0])
    every = np.concatenate([np.ravel(t) for t in done.times[1:]]).astype(int)
    emitted = np.bincount(every, minlength=network.num_steps)[: network.num_steps]
    return {
        "confusion": plots.confusion(test.confusion, names),
        "raster": raster(network, done),
        "output_potentials": plots.output_potentials(
            np.asarray(output_potentials(network, params, done)[:, 0]),
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


def animation(
    network: ds.SpikingNetwork,
    params: dict,
    image: np.ndarray,
    class_names: tuple[str, ...],
) -> Animation:
    """Spikes and output potentials of one image [H, W, C] up to its decision."""
    done = trace(network, params, image)
    hidden = zip(network.names[:-1], done.times[1:-1], strict=True)
    return plots.animation(
        np.asarray(done.times[0][0]),
        [(name, np.asarray(times)) for name, times in hidden],
        np.asarray(output_potentials(network, params, done)[:, 0]),
        threshold=network.threshold,
        class_names=literal(class_names),
        decision_step=int(done.times[-1].min()),
    )


def literal(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names that matplotlib draws to the letter: dollars would be mathematics."""
    return tuple(name.replace("$", r"\$") for name in names)


def trace(network: ds.SpikingNetwork, params: dict, image: np.ndarray) -> ds.Trace:
    """What a network does with one image [H, W, C]."""
    return network.apply(params, network.encode(image[None]), method="trace")


def raster(network: ds.SpikingNetwork, trace: ds.Trace) -> Figure:
    """All spikes of the one image of a trace."""
    flat = [np.asarray(times).reshape(-1) for times in trace.times]
    decision = int(flat[-1].min())
    return plots.raster(
        list(zip(("input", *network.names), flat, strict=True)),
        network.num_steps,
        decision_step=decision if decision < network.num_steps else None,
    )
