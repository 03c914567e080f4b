"""The figures of a trained network, as runs and the report draw them."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

import ds4nn_jax as ds
from ds4nn_jax import data, plots
from ds4nn_jax.cli import measures

_BLUE, _VERMILION, _GREEN = "#0072B2", "#D55E00", "#009E73"
_COLOURS = (_BLUE, _VERMILION, _GREEN, "#CC79A7", "#E69F00", "#000000")


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
    result, steps = trace(network, params, images.test_images[0]), network.num_steps
    times = np.asarray(result.times[-1][0])
    potentials, threshold = measures.first_potentials(network, params, result)
    every = np.concatenate([np.ravel(t) for t in result.times[1:]]).astype(int)
    return {
        "confusion": plots.confusion(test.confusion, names),
        "raster": raster(network, result),
        "output_potentials": plots.output_potentials(
            potentials,
            times,
            threshold=threshold,
            label=int(images.test_labels[0]),
            class_names=names,
            decision_step=int(np.min(times)),
            spikes_by_step=np.bincount(every, minlength=steps)[:steps],
        ),
        "firing_times": plots.firing_times(test.firing_times, names),
        "spikes_per_layer": plots.spikes_per_layer(test.layer_spikes, layers),
    }


def literal(names: Sequence[str]) -> tuple[str, ...]:
    """Names that matplotlib draws to the letter: dollars would be mathematics."""
    return tuple(name.replace("$", r"\$") for name in names)


def trace(network: ds.SpikingNetwork, params: dict, image: np.ndarray) -> ds.Trace:
    """What a network does with one image [H, W, C]."""
    times = network.encode(image[None])
    result: Any = network.apply(params, times, method="trace")
    return result


def raster(
    network: ds.SpikingNetwork, trace: ds.Trace, on: SubFigure | None = None
) -> Figure:
    """All spikes of the one image of a trace, see `plots.raster`."""
    decision = int(trace.times[-1].min())
    return plots.raster(
        [*zip(("input", *network.names), map(np.ravel, trace.times), strict=True)],
        network.num_steps,
        decision_step=decision if decision < network.num_steps else None,
        on=on,
    )


class Point(NamedTuple):
    """A network among others: accuracy in 0 … 1, mean spikes an image and step up to
    the decision, spikes without those of pooling neurons; None is not known. Ours are
    drawn full, others' hollow."""

    name: str
    structure: str
    accuracy: float
    spikes: float | None = None
    decision_step: float | None = None
    unpooled: float | None = None
    ours: bool = True


def fronts(
    points: Sequence[Point],
    *,
    title: str,
    ceiling: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """Accuracy against spikes and against the decision step, where they are known.

    A line joins those that none beats in both. The ceiling is steps and what could be
    known by them, in 0 … 1: a dotted line against the decision step, as far as it is
    among the points.
    """
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    figure.suptitle(title)
    spikes, steps = figure.subplots(1, 2)
    handles = _front(spikes, points, "spikes") | _front(steps, points, "decision_step")
    spikes.set(xlabel="mean spikes per image up to the decision", xscale="log")
    spikes.tick_params(axis="x", labelsize="small")
    spikes.xaxis.set_major_formatter("{x:,.0f}")
    spikes.xaxis.set_minor_formatter(NullFormatter())
    spikes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    steps.set(xlabel="mean decision step")
    for axes in (spikes, steps):
        axes.set(ylabel="accuracy on the test images (%)")
        axes.margins(0.1)
        axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
        axes.grid(alpha=0.3)
    if ceiling is not None:
        at, accuracy = ceiling
        steps.autoscale(False)
        steps.plot(at, 100 * np.array(accuracy), ":", color=_VERMILION, zorder=0)
    names = literal([points[k].name for k in handles])
    figure.legend(handles.values(), names, loc="outside right upper", fontsize=8)
    return figure


def _front(axes: Axes, points: Sequence[Point], cost: str) -> dict[int, Line2D]:
    """Points against a cost, by their index, and a line through those that none beats
    in both."""
    styles = itertools.cycle(itertools.product("osD^v", _COLOURS))
    drawn, places = {}, []
    for k, (point, (marker, colour)) in enumerate(zip(points, styles, strict=False)):
        if (value := getattr(point, cost)) is not None:
            place = max(1, value), 100 * point.accuracy  # none have no logarithm
            places.append(place)
            (drawn[k],) = axes.plot(*place, marker, color=colour, markersize=7)
            drawn[k].set_markerfacecolor(colour if point.ours else "none")
    front: list[tuple[float, float]] = []
    for place in sorted(places, key=lambda place: (place[0], -place[1])):
        if not front or place[1] > front[-1][1]:
            front.append(place)
    axes.plot(*np.transpose(front), color="grey", linewidth=1, zorder=0)
    return drawn
