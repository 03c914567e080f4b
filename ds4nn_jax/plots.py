"""The paper's figures and a few more: arrays in, a matplotlib Figure out.

The only module that knows matplotlib. It draws on `Figure` objects alone, so it keeps
no global state and needs no display. Colours are Okabe and Ito's, or maps that stay
readable to colour-blind people and in grey print.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

_BLACK, _ORANGE, _SKY, _GREEN, _YELLOW, _BLUE, _VERMILION, _PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
_THOUSANDS = "{x:,.0f}"
_LINES = [(c, "-") for c in (_BLUE, _ORANGE, _GREEN, _SKY, _PURPLE)] + [
    (c, "--") for c in (_BLUE, _ORANGE, _GREEN, _SKY, _PURPLE)
]


def learning_curve(history: Sequence[Mapping[str, float]]) -> Figure:
    """Accuracy, and the cost of a decision, against the epoch.

    Args:
      history: one row per epoch with "epoch" and "train_accuracy" and, where there
        was a validation set, "val_accuracy", "val_decision_step" and "val_spikes" (per
        image). Accuracies lie in 0 … 1.

    Raises:
      ValueError: the history is empty.
    """
    if not history:
        raise ValueError("the history has no epoch to draw")
    epochs = [row["epoch"] for row in history]

    def draw(axes: Axes, key: str, label: str, colour: str, line: str, scale=1) -> None:
        values = scale * np.array([row.get(key, np.nan) for row in history], float)
        axes.plot(epochs, values, line, color=colour, markersize=4, label=label)

    validated = any("val_accuracy" in row for row in history)
    panels = 1 + validated
    figure = Figure(figsize=(4.8 * panels, 4), layout="constrained")
    first, *others = figure.subplots(1, panels, squeeze=False)[0]
    draw(first, "train_accuracy", "training", _BLUE, "o-", 100)
    first.set(ylabel="accuracy (%)")
    first.set_title("Accuracy", pad=26)
    handles = [first.lines]
    if validated:
        draw(first, "val_accuracy", "validation", _VERMILION, "s--", 100)
        steps, spikes = others[0], others[0].twinx()
        draw(steps, "val_decision_step", "decision step", _BLUE, "o-")
        draw(spikes, "val_spikes", "spikes", _VERMILION, "s--")
        steps.set_ylabel("mean decision step (time steps)", color=_BLUE)
        spikes.set_ylabel("mean spikes per image", color=_VERMILION)
        spikes.yaxis.set_major_formatter(_THOUSANDS)
        steps.set_title("Cost of a decision (validation)", pad=26)
        handles.append([*steps.lines, *spikes.lines])
    for axes, lines in zip([first, *others], handles, strict=True):
        axes.legend(
            handles=list(lines),
            loc="lower center",
            bbox_to_anchor=(0.5, 1),
            ncols=2,
            frameon=False,
        )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    return figure


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Confusion matrix (Fig. 4 and 6): counts in the cells, colour by share of the row.

    Args:
      matrix: [C, C] counts; the row is the true class, the column the decision.
      class_names: C names.

    Raises:
      ValueError: the matrix is not [C, C].
    """
    matrix = _square(matrix, class_names)
    total = matrix.sum()
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = _heat_map(
        shares,
        [[f"{count:,.0f}" for count in row] for row in matrix],
        class_names,
        colours="Blues",
        limits=(0, 100),
        unit="share of the true class (%)",
    )
    correct = f"{100 * np.trace(matrix) / total:.2f} %" if total else "none"
    axes.set(
        title=f"Confusion matrix: {correct} of {total:,.0f} images correct",
        xlabel="decision",
        ylabel="true class",
    )
    return figure


def raster(
    times_by_layer: Sequence[tuple[str, np.ndarray]],
    num_steps: int,
    *,
    decision_step: float | None = None,
) -> Figure:
    """Spikes of one image: a dot per spike, a panel per layer from input to output.

    Args:
      times_by_layer: (name, flat spike times in steps) of each layer; T is silent.
      num_steps: T.
      decision_step: marked by a dashed line, if given.

    Raises:
      ValueError: there is no layer, or one without a neuron.
    """
    if not times_by_layer:
        raise ValueError("there is no layer to draw")
    rows = len(times_by_layer)
    figure = Figure(figsize=(8, 1.2 + 1.6 * rows), layout="constrained")
    figure.suptitle("Spikes of one image")
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, times) in zip(panels, times_by_layer, strict=True):
        times = np.ravel(times)
        if not times.size:
            raise ValueError(f"layer {name!r} has no neuron")
        fired = np.flatnonzero(times < num_steps)
        size = np.clip(60 / np.sqrt(len(fired) + 1), 1.5, 5)
        axes.plot(
            times[fired],
            fired,
            "o",
            color=_BLUE,
            markersize=size,
            markeredgewidth=0,
            snap=False,  # snapped to pixels, small dots favour every other step
        )
        axes.set_title(
            f"{name}: {times.size:,} neurons, "
            f"{100 * (1 - len(fired) / times.size):.0f} % silent",
            fontsize="medium",
            loc="left",
        )
        axes.set_ylabel("neuron index")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(_THOUSANDS)
        margin = max(0.5, 0.03 * times.size)
        axes.set(xlim=(-1, num_steps + 1), ylim=(-margin, times.size - 1 + margin))
        axes.grid(axis="x", alpha=0.3)
        if decision_step is not None:
            axes.axvline(decision_step, color=_VERMILION, linestyle="--")
    if decision_step is not None:
        panels[0].set_title(
            f"– – decision at step {decision_step:g}",
            fontsize="medium",
            loc="right",
            color=_VERMILION,
        )
    panels[-1].set_xlabel("time step")
    return figure


def output_potentials(
    potentials: np.ndarray,
    times: np.ndarray,
    *,
    threshold: float,
    label: int,
    class_names: Sequence[str],
    decision_step: float,
    spikes_by_step: np.ndarray | None = None,
) -> Figure:
    """Potentials of the output neurons for one image (Fig. 3).

    The deciding neuron is drawn thick, the label's less so; a dot marks every spike.
    Potentials far from the threshold leave the frame, the deciding one's excepted.

    Args:
      potentials: [T, C] V(t) in mV at the end of step t.
      times: [C] firing times in steps; T is silent.
      threshold: θ in mV.
      label: the true class.
      class_names: C names.
      decision_step: marked by a dashed line.
      spikes_by_step: [T] spikes of the whole network at each step; a second panel shows
        how many are still unsent at the decision.

    Raises:
      ValueError: the shapes do not fit each other.
    """
    potentials, times = np.asarray(potentials, float), np.asarray(times)
    steps, classes = len(potentials), len(class_names)
    if spikes_by_step is not None and np.shape(spikes_by_step) != (steps,):
        raise ValueError(
            f"spikes_by_step must be [{steps}], as potentials have that many steps, "
            f"got {np.shape(spikes_by_step)}"
        )
    if potentials.shape != (steps, classes) or times.shape != (classes,) or not steps:
        raise ValueError(
            f"expected potentials [T, {classes}] and times [{classes}], got "
            f"{potentials.shape} and {times.shape}"
        )
    first = times.min()
    rivals = potentials[min(int(first), steps - 1)]
    winner = int(np.argmax(np.where(times == first, rivals, -np.inf)))

    if spikes_by_step is None:
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
    else:
        figure = Figure(figsize=(8, 5.6), layout="constrained")
        axes, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        _cumulative_spikes(below, np.asarray(spikes_by_step), decision_step)
    for k, name in enumerate(class_names):
        colour, line = _LINES[k % len(_LINES)]
        axes.plot(
            np.arange(steps),
            potentials[:, k],
            "-" if k == winner else line,
            color=_VERMILION if k == winner else colour,
            linewidth=3 if k == winner else 2 if k == label else 1.2,
            zorder=3 if k == winner else 2,
            label=name + " (label)" * (k == label),
        )
    fired = np.flatnonzero(times < steps)
    at = times[fired].astype(int)
    axes.plot(at, potentials[at, fired], "o", color=_BLACK, markersize=4, zorder=4)
    axes.axhline(threshold, color=_BLACK, linestyle=":")
    axes.axvline(decision_step, color=_BLACK, linestyle="--", linewidth=1)
    axes.annotate(
        f"threshold {threshold:g} mV",
        (0.01, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
    )
    floor = min(-2 * threshold, potentials[:, winner].min())
    axes.set(
        xlim=(-1, steps + 1),
        ylim=(
            1.1 * np.clip(potentials.min(), floor, -0.1 * threshold),
            1.1 * np.clip(potentials.max(), 1.2 * threshold, 3 * threshold),
        ),
        xlabel="time step" if spikes_by_step is None else None,
        ylabel="membrane potential (mV)",
        title=f"Image of ‘{class_names[label]}’: "
        + (
            f"‘{class_names[winner]}’ fires first, decision at step {decision_step:g}"
            if len(fired)
            else f"no output fires, ‘{class_names[winner]}’ ends highest"
        ),
    )
    figure.legend(loc="outside right upper", title="output neuron")
    return figure


def firing_times(mean_times: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Mean firing time of each output neuron for every class (Fig. 2 and 5).

    Args:
      mean_times: [C, C] in steps; the row is the output neuron, the column the class of
        the images. NaN for a class without images. The correct ones are framed.
      class_names: C names.

    Raises:
      ValueError: mean_times is not [C, C].
    """
    mean_times = _square(mean_times, class_names)
    figure, axes = _heat_map(
        mean_times,
        [["–" if np.isnan(t) else f"{t:.1f}" for t in row] for row in mean_times],
        class_names,
        colours="cividis",
        limits=(np.nanmin(mean_times), np.nanmax(mean_times)),
        unit="mean firing time (time steps)",
    )
    for k in range(len(class_names)):
        frame = Rectangle((k - 0.46, k - 0.46), 0.92, 0.92, fill=False)
        frame.set(edgecolor=_VERMILION, linewidth=2.5)
        axes.add_patch(frame)
    axes.set(
        title="Mean firing time of the output neurons",
        xlabel="class of the image",
        ylabel="output neuron",
    )
    return figure


def spikes_per_layer(counts: Sequence[float], layer_names: Sequence[str]) -> Figure:
    """Mean number of spikes up to the decision in each layer (Fig. 1).

    Args:
      counts: of the input, then of each layer (`Report.layer_spikes`).
      layer_names: as many names.

    Raises:
      ValueError: there are not as many counts as names.
    """
    if len(counts) != len(layer_names):
        raise ValueError(f"{len(counts)} counts for {len(layer_names)} layer names")
    figure = Figure(figsize=(max(6.0, 1.2 * len(counts)), 3.8), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(range(len(counts)), counts, color=_BLUE, width=0.6)
    axes.bar_label(bars, [_number(count) for count in counts], padding=2)
    axes.set_xticks(range(len(counts)), layer_names)
    axes.set(
        title=f"Spikes up to the decision: {_number(sum(counts[1:]))} an image,"
        f" and {_number(counts[0])} of the input",
        xlabel="layer",
        ylabel="mean spikes per image",
    )
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def accuracy_by_step(
    accuracy: np.ndarray, decided: np.ndarray, *, decision_step: float | None = None
) -> Figure:
    """What is known if one stops at step t, and for how many images it is final.

    Args:
      accuracy: [T] share of the images that `predict_by` gets right at each step.
      decided: [T] share of the images for which an output has fired by then.
      decision_step: mean decision step, marked by a dotted line.

    Raises:
      ValueError: not two curves of the same length.
    """
    accuracy, decided = np.asarray(accuracy, float), np.asarray(decided, float)
    if accuracy.ndim != 1 or accuracy.shape != decided.shape or not accuracy.size:
        raise ValueError(
            f"expected two curves [T], got {accuracy.shape} and {decided.shape}"
        )
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(len(accuracy))
    axes.plot(steps, 100 * accuracy, color=_BLUE, label="correct if stopped here")
    axes.plot(steps, 100 * decided, "--", color=_VERMILION, label="an output has fired")
    if decision_step is not None:
        axes.axvline(
            decision_step,
            color=_BLACK,
            linestyle=":",
            label=f"mean decision step {decision_step:.1f}",
        )
    axes.set(
        title=f"Stopping early: {100 * accuracy[-1]:.2f} % when all have decided",
        xlabel="time step",
        ylabel="share of the images (%)",
        xlim=(0, len(accuracy) - 1),
        ylim=(0, 101),
    )
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def accuracy_against_spikes(
    points: Sequence[tuple[str, float, float, bool]], *, title: str
) -> Figure:
    """Accuracy against spikes per image; a line joins the Pareto front of all points.

    Args:
      points: (name, mean spikes per image, accuracy in 0 … 1, whether it is ours).
      title: of the figure.

    Raises:
      ValueError: there is no point, or one with less than one spike.
    """
    if not points or min(spikes for _, spikes, _, _ in points) < 1:
        raise ValueError("expected points of at least one spike each")
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    markers = iter("osD^vPX*<>" * (1 + len(points) // 10))
    colours = iter([c for c, _ in _LINES] * (1 + len(points) // 10))
    for name, spikes, accuracy, ours in points:
        axes.plot(
            spikes,
            100 * accuracy,
            next(markers),
            color=next(colours) if ours else _BLACK,
            markerfacecolor=None if ours else "none",
            markersize=8,
            linestyle="none",
            label=name if ours else f"{name} (published)",
        )
    front, best = [], -np.inf
    for _, spikes, accuracy, _ in sorted(points, key=lambda p: (p[1], -p[2])):
        if accuracy > best:
            front.append((spikes, 100 * accuracy))
            best = accuracy
    axes.plot(*zip(*front, strict=True), color="grey", linewidth=1, zorder=0)
    axes.set(
        xscale="log",
        xlabel="mean spikes per image up to the decision",
        ylabel="accuracy on the test images (%)",
        title=title,
    )
    axes.xaxis.set_major_formatter(_THOUSANDS)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a .png of 150 dots per inch or a .svg, whole or not at all.

    Raises:
      ValueError: another kind of file.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"figures are saved as .png or .svg, not as {path.name!r}")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        figure.savefig(unfinished, format=kind, dpi=150)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _cumulative_spikes(axes: Axes, spikes: np.ndarray, decision_step: float) -> None:
    sent = np.cumsum(spikes)
    unsent = sent[-1] - sent[min(int(decision_step), len(sent) - 1)]
    axes.step(np.arange(len(sent)), sent, where="post", color=_BLUE)
    axes.axvline(decision_step, color=_BLACK, linestyle="--", linewidth=1)
    axes.set_title(
        f"{unsent:,.0f} of {sent[-1]:,.0f} spikes unsent at the decision",
        fontsize="medium",
        loc="left",
    )
    axes.set(xlabel="time step", ylabel="spikes sent")
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.grid(alpha=0.3)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _square(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    matrix, classes = np.asarray(matrix, float), len(class_names)
    if matrix.shape != (classes, classes) or not classes:
        raise ValueError(
            f"expected one row and one column for each of {classes} classes, got "
            f"shape {matrix.shape}"
        )
    return matrix


def _heat_map(
    values: np.ndarray,
    texts: Sequence[Sequence[str]],
    names: Sequence[str],
    *,
    colours: str,
    limits: tuple[float, float],
    unit: str,
) -> tuple[Figure, Axes]:
    """A square of coloured cells with a text in each, light where the cell is dark."""
    classes = len(names)
    side = max(4.0, 0.62 * classes)
    figure = Figure(figsize=(side + 1.8, side + 0.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    brightness = image.to_rgba(values)[..., :3] @ (0.299, 0.587, 0.114)
    for row, column in np.ndindex(classes, classes):
        dark = brightness[row, column] < 0.5
        axes.text(
            column,
            row,
            texts[row][column],
            ha="center",
            va="center",
            fontsize=9,
            color="white" if dark else "black",
        )
    turned = max(map(len, names)) > 3
    axes.set_xticks(range(classes), names, rotation=45 if turned else 0)
    if turned:
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), names)
    figure.colorbar(image, label=unit, shrink=0.85)
    return figure, axes
