"""The figures of a trained network, as runs and the report draw them."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

import ds4nn_jax as ds
from ds4nn_jax import data, plots
from ds4nn_jax.cli import measures

_BLACK, _BLUE, _VERMILION, _GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"

# Where the name of a point may stand: right, left, above, below, corners; then farther.
_DIRECTIONS = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
_DISTANCES = (7, 16, 28, 42, 58)  # points of 1/72 inch
_NAME: dict[str, Any] = dict(  # above lines, which would strike it through
    textcoords="offset points",
    fontsize=8,
    bbox=dict(facecolor="white", edgecolor="none", alpha=0.8, pad=0.5),
)


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


def literal(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names that matplotlib draws to the letter: dollars would be mathematics."""
    return tuple(name.replace("$", r"\$") for name in names)


def trace(network: ds.SpikingNetwork, params: dict, image: np.ndarray) -> ds.Trace:
    """What a network does with one image [H, W, C]."""
    times = network.encode(image[None])
    result: Any = network.apply(params, times, method="trace")
    return result


def raster(network: ds.SpikingNetwork, trace: ds.Trace) -> Figure:
    """All spikes of the one image of a trace."""
    decision = int(trace.times[-1].min())
    return plots.raster(
        [*zip(("input", *network.names), map(np.ravel, trace.times), strict=True)],
        network.num_steps,
        decision_step=decision if decision < network.num_steps else None,
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
    """Accuracy against spikes and against the decision step, each network by its name.

    A line joins those that none beats in both; a panel leaves out what is not known.
    The ceiling is steps and what could be known by them, in 0 … 1: a dotted line
    against the decision step, as far as it is among the points.
    """
    costs = {
        "mean spikes per image up to the decision": [
            (max(1, p.spikes), p) for p in points if p.spikes is not None
        ],
        "mean decision step": [
            (p.decision_step, p) for p in points if p.decision_step is not None
        ],
    }
    panels = {label: known for label, known in costs.items() if known}
    figure = Figure(figsize=(1 + 5 * len(panels), 4.6), layout="constrained")
    figure.suptitle(title)
    columns = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, known) in zip(columns, panels.items(), strict=True):
        _front(axes, known)
        axes.set(xlabel=label, ylabel="accuracy on the test images (%)")
        if "spikes" in label:
            axes.set_xscale("log")
            axes.tick_params(axis="x", labelsize="small")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.margins(0.2)
        axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
        axes.grid(alpha=0.3)
        if ceiling is not None and "step" in label:
            steps, accuracy = ceiling
            axes.autoscale(False)
            axes.plot(steps, 100 * np.array(accuracy), ":", color=_VERMILION, zorder=0)
    figure.draw_without_rendering()  # lays out: names are placed on paper
    for axes, known in zip(columns, panels.values(), strict=True):
        _name_points(axes, known)
    return figure


def _front(axes: Axes, points: Sequence[tuple[float, Point]]) -> None:
    """Networks by their cost, and a line through those that none beats in both."""
    best: list[tuple[float, float]] = []
    for cost, point in sorted(points, key=lambda pair: (pair[0], -pair[1].accuracy)):
        colour, inside = (_BLUE, _BLUE) if point.ours else (_BLACK, "none")
        place = cost, 100 * point.accuracy
        axes.plot(*place, "o", color=colour, markerfacecolor=inside, markersize=7)
        if not best or place[1] > best[-1][1]:
            best.append(place)
    axes.plot(*zip(*best, strict=True), color="grey", linewidth=1, zorder=0)


def _name_points(axes: Axes, points: Sequence[tuple[float, Point]]) -> None:
    """Each name inside the frame, near its point, clear of points and other names."""
    places = [(cost, 100 * point.accuracy) for cost, point in points]
    half = 6 * axes.figure.dpi / 72
    taken = [Bbox([at - half, at + half]) for at in axes.transData.transform(places)]

    def clashes(place: tuple) -> float:
        box = _placed(text, *place)
        outside = np.greater(axes.bbox.min, box.min) | (box.max > axes.bbox.max)
        return box.count_overlaps(taken) + float(np.sum(outside))

    for place, (_, point) in zip(places, points, strict=True):
        text = axes.annotate(point.name, place, (0, 0), **_NAME)
        text.set_in_layout(False)  # names follow the layout, not the other way
        distance, direction = min(
            itertools.product(_DISTANCES, _DIRECTIONS), key=clashes
        )
        taken.append(_placed(text, distance, direction))
        if distance > _DISTANCES[0]:
            line = dict(arrowstyle="-", color="grey", shrinkA=0, shrinkB=4)
            start = text.get_position(), "data", "offset points"
            axes.annotate("", place, *start, arrowprops=line, zorder=1)


def _placed(text: Annotation, distance: float, direction: tuple[int, int]) -> Bbox:
    """Where a name is once it stands in that direction from its point."""
    right, up = direction
    text.set(
        position=(distance * right, distance * up),
        ha=("right", "center", "left")[right + 1],
        va=("top", "center", "bottom")[up + 1],
    )
    return text.get_window_extent().padded(1)


def by_urgency(reports: Mapping[float, ds.Report]) -> Figure:
    """Accuracy, decision step and share decided by potentials, of the same weights with
    each urgency in mV a step, ascending."""
    figure = Figure(figsize=(9.6, 3), layout="constrained")
    panels = (
        ("accuracy", 100, "accuracy (%)", _BLUE),
        ("decision_step", 1, "mean decision step", _VERMILION),
        ("silent", 100, "decided by potentials (%)", _GREEN),
    )
    for axes, panel in zip(figure.subplots(1, 3), panels, strict=True):
        name, scale, label, colour = panel
        values = [scale * getattr(report, name) for report in reports.values()]
        axes.plot([*reports], values, "o-", color=colour, markersize=4)
        axes.set(xlabel="urgency u (mV a step)", title=label)
        axes.ticklabel_format(useOffset=False)
        axes.grid(alpha=0.3)
    return figure
