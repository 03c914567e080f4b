"""What accuracy costs, of several networks or of one that is urged, as figures."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path as MplPath
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

_BLACK, _BLUE, _VERMILION, _GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"

# Where the name of a point may stand: right, left, above, below, corners; then farther.
_DIRECTIONS = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
_DISTANCES = (7, 16, 28, 42, 58)  # points of 1/72 inch


class Point(NamedTuple):
    """A network among others.

    Attributes:
      name: drawn beside it.
      accuracy: in 0 … 1.
      spikes: mean an image up to the decision, None where it is not known.
      decision_step: its mean, None where it is not known.
      ours: drawn full, others' hollow.
    """

    name: str
    accuracy: float
    spikes: float | None
    decision_step: float | None
    ours: bool


def fronts(
    points: Sequence[Point],
    *,
    title: str,
    ceiling: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """Accuracy against spikes and against the decision step, each network by its name.

    A line joins those that none beats in both. A panel leaves out what is not known.

    Args:
      points: the networks.
      title: of the figure.
      ceiling: (steps, accuracy in 0 … 1): what could be known by each step, a dotted
        line against the decision step, as far as it is among the points.

    Raises:
      ValueError: no point with spikes or with a decision step, or one with less than
        one spike.
    """
    panels = [
        (label, known)
        for label, key in (
            ("mean spikes per image up to the decision", "spikes"),
            ("mean decision step", "decision_step"),
        )
        if (known := [(getattr(p, key), p) for p in points if getattr(p, key)])
    ]
    if not panels or any(p.spikes is not None and p.spikes < 1 for p in points):
        raise ValueError("expected points of at least one spike each")
    figure = Figure(figsize=(1 + 5 * len(panels), 4.6), layout="constrained")
    figure.suptitle(title)
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, known) in zip(drawn, panels, strict=True):
        for cost, point in known:
            axes.plot(
                cost,
                100 * point.accuracy,
                "o",
                color=_BLUE if point.ours else _BLACK,
                markerfacecolor=None if point.ours else "none",
                markersize=7,
            )
        front: list[tuple[float, float]] = []
        for cost, point in sorted(known, key=lambda pair: (pair[0], -pair[1].accuracy)):
            if not front or 100 * point.accuracy > front[-1][1]:
                front.append((cost, 100 * point.accuracy))
        axes.plot(*zip(*front, strict=True), color="grey", linewidth=1, zorder=0)
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
    for axes, (_, known) in zip(drawn, panels, strict=True):
        _name_points(axes, [(cost, 100 * p.accuracy, p.name) for cost, p in known])
    return figure


def by_urgency(
    urgencies: Sequence[float],
    accuracy: Sequence[float],
    decision_step: Sequence[float],
    silent: Sequence[float],
) -> Figure:
    """Accuracy, decision step and share decided by potentials against the urgency.

    Args:
      urgencies: u in mV a step, ascending.
      accuracy: in 0 … 1, of each.
      decision_step: its mean, of each.
      silent: share in 0 … 1 of the images for which no output fires, of each.

    Raises:
      ValueError: not as many of each, or none.
    """
    counts = [*map(len, (urgencies, accuracy, decision_step, silent))]
    if not counts[0] or len({*counts}) > 1:
        raise ValueError(f"expected as many of each, and at least one, got {counts}")
    figure = Figure(figsize=(9.6, 3), layout="constrained")
    for axes, values, label, colour in zip(
        figure.subplots(1, 3),
        (100 * np.array(accuracy), decision_step, 100 * np.array(silent)),
        ("accuracy (%)", "mean decision step", "decided by potentials (%)"),
        (_BLUE, _VERMILION, _GREEN),
        strict=True,
    ):
        axes.plot(urgencies, values, "o-", color=colour, markersize=4)
        axes.set(xlabel="urgency u (mV a step)", title=label)
        axes.ticklabel_format(useOffset=False)
        axes.grid(alpha=0.3)
    return figure


def by_bits(lines: Mapping[str, Sequence[tuple[int | None, float]]]) -> Figure:
    """Accuracy against bits a weight.

    Args:
      lines: by name, (bits, accuracy in 0 … 1), in this order; bits None: real numbers.

    Raises:
      ValueError: no line, or one without points.
    """
    if not lines or not all(lines.values()):
        raise ValueError("expected at least one line, and points of each")
    ticks = sorted({bits or np.inf for each in lines.values() for bits, _ in each})
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(
        lines.items(), itertools.cycle((_BLUE, _VERMILION, _GREEN, _BLACK))
    ):
        at = [ticks.index(bits or np.inf) for bits, _ in points]
        accuracy = [100 * share for _, share in points]
        axes.plot(at, accuracy, "o-", color=colour, markersize=4, label=name)
    names = ["real" if tick == np.inf else f"{tick}" for tick in ticks]
    axes.set_xticks(range(len(ticks)), names)
    axes.set(xlabel="bits a weight", ylabel="accuracy on the test images (%)")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def _name_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Each name inside the frame, clear of points, of other names and their leaders,
    and of lines as far as it goes; near its point."""
    at = axes.transData.transform([(x, y) for x, y, _ in points])
    half = 6 * axes.figure.dpi / 72
    taken = [Bbox([spot - half, spot + half]) for spot in at]
    names: list[Bbox] = []
    curves = [
        line.get_transform().transform_path(line.get_path()) for line in axes.lines
    ]
    leaders: list[MplPath] = []
    for spot, (x, y, name) in zip(at, points, strict=True):
        text = axes.annotate(
            name,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            # Above lines, which would strike it through.
            bbox=dict(facecolor="white", edgecolor="none", alpha=0.8, pad=0.5),
        )
        text.set_in_layout(False)  # names follow the layout, not the other way
        found = []
        for number, place in enumerate(itertools.product(_DISTANCES, _DIRECTIONS)):
            box = _placed(text, *place)
            leader = MplPath([spot, np.clip(spot, box.min, box.max)])
            outside = (axes.bbox.min > box.min) | (box.max > axes.bbox.max)
            clashes = box.count_overlaps(taken) + outside.sum()
            struck = sum(path.intersects_bbox(box, filled=False) for path in leaders)
            struck += sum(leader.intersects_bbox(name, filled=False) for name in names)
            crossed = sum(path.intersects_bbox(box, filled=False) for path in curves)
            cost = 1000 * clashes + 30 * struck + 6 * crossed + number
            found.append((cost, place, leader))
        _, place, leader = min(found, key=lambda each: each[0])
        names.append(_placed(text, *place))
        taken.append(names[-1])
        if place[0] > _DISTANCES[0]:
            leaders.append(leader)
            axes.annotate(
                "",
                (x, y),
                xytext=text.get_position(),
                textcoords="offset points",
                arrowprops=dict(arrowstyle="-", color="grey", shrinkA=0, shrinkB=4),
                zorder=1,
            )


def _placed(text: Annotation, distance: float, direction: tuple[int, int]) -> Bbox:
    """Where a name is once it stands in that direction from its point."""
    right, up = direction
    text.set(
        position=(distance * right, distance * up),
        ha=("right", "center", "left")[right + 1],
        va=("top", "center", "bottom")[up + 1],
    )
    return text.get_window_extent().padded(1)
