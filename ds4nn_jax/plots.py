"""The paper's figures and a few more: arrays in, a matplotlib Figure out.

The library's only module that knows matplotlib. It draws on `Figure` objects alone, so
it keeps no global state and needs no display. Colours are Okabe and Ito's, or maps that
stay readable to colour-blind people and in grey print. A decision is marked half a
step behind the spike that made it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import Animation, FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ds4nn_jax._files import atomic_file

_BLACK, _BLUE, _VERMILION, _GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
_ORANGE, _SKY, _PURPLE = "#E69F00", "#56B4E9", "#CC79A7"
_LINES = [
    (colour, line)
    for line in ("-", "--")
    for colour in (_BLUE, _ORANGE, _GREEN, _SKY, _PURPLE)
]
_THOUSANDS = "{x:,g}"
_FRAMES_A_SECOND, _MOST_FRAMES = 5, 40


def learning_curve(
    history: Sequence[Mapping[str, float]], *, best_epoch: int | None = None
) -> Figure:
    """Accuracy, and the cost of a decision, against the epoch.

    Args:
      history: one row per epoch with "epoch" and "train_accuracy" and, where there
        was a validation set, "val_accuracy", "val_decision_step" and "val_spikes" (per
        image). Accuracies lie in 0 … 1.
      best_epoch: whose weights were kept; marked by a dotted line.
    """
    if not history:
        raise ValueError("the history has no epoch to draw")
    epochs = [row["epoch"] for row in history]
    curves = {
        "accuracy (%)": ["train_accuracy", "val_accuracy"],
        "mean decision step (validation)": ["val_decision_step"],
        "mean spikes per image (validation)": ["val_spikes"],
    }
    styles = ("o-", _BLUE, "training"), ("s--", _VERMILION, "validation")
    shown = 3 if any("val_accuracy" in row for row in history) else 1
    figure, panels = _figure(1 + 3.8 * shown, 3.8, 1, shown)
    for axes, (title, keys) in zip(panels, curves.items(), strict=False):
        for key, (line, colour, name) in zip(keys, styles, strict=False):
            values = np.array([row.get(key, np.nan) for row in history], float)
            if np.isfinite(values).any():
                scale = 100 if "accuracy" in key else 1
                axes.plot(epochs, scale * values, line, color=colour, label=name)
        if best_epoch is not None:
            text = f"best: epoch {best_epoch}"
            axes.axvline(best_epoch, color=_BLACK, linestyle=":", label=text)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(_THOUSANDS)
        axes.grid(alpha=0.3)
    panels[0].legend()
    return figure


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Confusion matrix (Fig. 4 and 6): counts in the cells, colour by share of the row.

    Args:
      matrix: [C, C] counts; the row is the true class, the column the decision.
      class_names: C names.
    """
    matrix = _array("matrix", matrix, (len(class_names), len(class_names)))
    total = matrix.sum()
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    texts = [[f"{count:,.0f}" for count in row] for row in matrix]
    colours: dict[str, Any] = dict(cmap="Blues", vmin=0, vmax=100)
    unit = "share of the true class (%)"
    figure, axes = _heat_map(shares, texts, class_names, unit, **colours)
    correct = f"{100 * np.trace(matrix) / total:.2f} %" if total else "none"
    title = f"Confusion matrix: {correct} of {total:,.0f} images correct"
    axes.set(title=title, xlabel="decision", ylabel="true class")
    return figure


def raster(
    times_by_layer: Sequence[tuple[str, np.ndarray]],
    num_steps: int,
    *,
    decision_step: float | None = None,
    on: SubFigure | None = None,
) -> Figure:
    """Spikes of one image: a dot per spike, a panel per layer from input to output.

    Args:
      times_by_layer: (name, flat spike times in steps) of each layer; T is silent.
      num_steps: T.
      decision_step: a dashed line behind it, if given.
      on: the part of a figure to draw on, instead of a new one.
    """
    if not all([times_by_layer, *(np.size(times) for _, times in times_by_layer)]):
        raise ValueError("expected layers, and neurons in each of them")
    rows = len(times_by_layer)
    figure, panels = _figure(8, 1.2 + 1.6 * rows, rows, on=on, sharex=True)
    figure.suptitle("Spikes of one image")
    for axes, (name, times) in zip(panels, times_by_layer, strict=True):
        times = np.ravel(times)
        fired = np.flatnonzero(times < num_steps)
        size = np.clip(60 / np.sqrt(len(fired) + 1), 1.5, 5)
        # Snapped to pixels, small dots would favour every other step.
        style: dict[str, Any] = dict(
            color=_BLUE, markersize=size, markeredgewidth=0, snap=False
        )
        axes.plot(times[fired], fired, "o", **style)
        silent = 100 * (1 - len(fired) / times.size)
        text = f"{name}: {times.size:,} neurons, {silent:.0f} % silent"
        axes.set_title(text, fontsize="medium", loc="left")
        axes.set_ylabel("neuron index")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(_THOUSANDS)
        margin = max(0.5, 0.03 * times.size)
        axes.set(xlim=(-1, num_steps + 1), ylim=(-margin, times.size - 1 + margin))
        axes.grid(axis="x", alpha=0.3)
        if decision_step is not None:
            axes.axvline(decision_step + 0.5, color=_VERMILION, linestyle="--")
    if decision_step is not None:
        text = f"– – decision at step {decision_step:g}"
        panels[0].set_title(text, fontsize="medium", loc="right", color=_VERMILION)
    panels[-1].set_xlabel("time step")
    return figure


def output_potentials(
    potentials: np.ndarray,
    times: np.ndarray,
    *,
    threshold: float,
    label: int | None,
    class_names: Sequence[str],
    decision_step: float,
    spikes_by_step: np.ndarray | None = None,
    on: SubFigure | None = None,
) -> Figure:
    """Potentials of the output neurons for one image (Fig. 3).

    V(t) holds from step t to the next. The deciding neuron is drawn thick, the label's
    less so; a dot marks every spike. Potentials far from the threshold leave the frame,
    the deciding one's excepted.

    Args:
      potentials: [T, C] V(t) in mV at the end of step t.
      times: [C] firing times in steps; T is silent.
      threshold: θ in mV.
      label: the true class, None where nobody knows it.
      class_names: C names.
      decision_step: a dashed line behind it; T is silence, and has none.
      spikes_by_step: [T] spikes of the whole network at each step; a second panel shows
        how many are still unsent at the decision.
      on: the part of a figure to draw on, instead of a new one.
    """
    steps, classes = len(potentials), len(class_names)
    potentials = _array("potentials", potentials, (steps, classes))
    times = _array("times", times, (classes,))
    first = times.min()
    rivals = potentials[min(int(first), steps - 1)]
    winner = int(np.argmax(np.where(times == first, rivals, -np.inf)))

    if spikes_by_step is None:
        figure, (axes,) = _figure(8, 4.2, on=on)
        axes.set_xlabel("time step")
    else:
        sent = np.cumsum(_array("spikes_by_step", spikes_by_step, (steps,)))
        panels: dict[str, Any] = dict(sharex=True, height_ratios=(3, 1))
        figure, (axes, below) = _figure(8, 5.6, 2, on=on, **panels)
        _cumulative_spikes(below, sent, decision_step)
    lines = _potential_lines(axes, class_names, winner, widths=(3, 1.2))
    for line, values in zip(lines, potentials.T, strict=True):
        _hold(line, values)
    if label is not None:
        lines[label].set_label(f"{class_names[label]} (label)")
        lines[label].set_linewidth(3 if label == winner else 2)
    fired = np.flatnonzero(times < steps)
    at = times[fired].astype(int)
    axes.plot(at, potentials[at, fired], "o", color=_BLACK, markersize=4, zorder=4)
    text = f"threshold {threshold:g} mV"
    lines.append(axes.axhline(threshold, color=_BLACK, linestyle=":", label=text))
    _decision(axes, decision_step, steps)
    if len(fired):
        end = f"‘{class_names[winner]}’ fires first, decision at step {decision_step:g}"
    else:
        end = f"no output fires, ‘{class_names[winner]}’ ends highest"
    start = "" if label is None else f"Image of ‘{class_names[label]}’: "
    limits = _potential_limits(potentials, winner, threshold)
    axes.set(xlim=(-1, steps), ylim=limits, title=start + end)
    axes.set_ylabel("membrane potential (mV)")
    _legend(axes, lines)
    return figure


def _potential_limits(
    potentials: np.ndarray, winner: int, threshold: float
) -> tuple[float, float]:
    """From the lowest potential to the highest, as far as these are near θ."""
    floor = min(-2 * threshold, potentials[:, winner].min())
    low = np.clip(potentials.min(), floor, -0.1 * threshold)
    high = np.clip(potentials.max(), 1.2 * threshold, 3 * threshold)
    return 1.1 * low, 1.1 * high


def firing_times(mean_times: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Mean firing time of each output neuron for every class (Fig. 2 and 5).

    Args:
      mean_times: [C, C] in steps; the row is the output neuron, the column the class of
        the images. NaN for a class without images. The correct ones are framed.
      class_names: C names.
    """
    mean_times = _array("mean_times", mean_times, (len(class_names), len(class_names)))
    texts = [["–" if np.isnan(t) else f"{t:.1f}" for t in row] for row in mean_times]
    unit = "mean firing time (time steps)"
    figure, axes = _heat_map(mean_times, texts, class_names, unit, cmap="cividis")
    for k in range(len(class_names)):
        frame: dict[str, Any] = dict(fill=False, edgecolor=_VERMILION, linewidth=2.5)
        axes.add_patch(Rectangle((k - 0.46, k - 0.46), 0.92, 0.92, **frame))
    title = "Mean firing time of the output neurons"
    axes.set(title=title, xlabel="class of the image", ylabel="output neuron")
    return figure


def spikes_per_layer(counts: Sequence[float], layer_names: Sequence[str]) -> Figure:
    """Mean number of spikes up to the decision in each layer (Fig. 1).

    Args:
      counts: of the input, then of each layer (`Report.layer_spikes`).
      layer_names: as many names.
    """
    spikes = _array("counts", counts, (len(layer_names),))
    figure, (axes,) = _figure(max(6.0, 1.2 * len(spikes)), 3.8)
    bars = axes.bar(range(len(spikes)), spikes, color=_BLUE, width=0.6)
    axes.bar_label(bars, [_number(count) for count in spikes], padding=2)
    axes.set_xticks(range(len(spikes)), layer_names)
    sent, entering = _number(sum(spikes[1:])), _number(spikes[0])
    title = f"Spikes up to the decision: {sent} an image, and {entering} of the input"
    axes.set(title=title, xlabel="layer", ylabel="mean spikes per image")
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def accuracy_by_step(
    accuracy: np.ndarray,
    decided: np.ndarray,
    *,
    decision_step: float | None = None,
    ceiling: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """What is known if one stops at step t, and for how many images it is final.

    Args:
      accuracy: [T] share of the images that `predict_by` gets right at each step.
      decided: [T] share of the images for which an output has fired by then.
      decision_step: mean decision step, marked by a dotted line.
      ceiling: steps, and the accuracy by them of a plain CNN that sees what has spiked.
    """
    accuracy = _array("accuracy", accuracy, (len(accuracy),))
    decided = _array("decided", decided, accuracy.shape)
    figure, (axes,) = _figure(7.6, 4)
    axes.plot(100 * accuracy, "-", color=_BLUE, label="correct if stopped here")
    axes.plot(100 * decided, "--", color=_VERMILION, label="an output has fired")
    if ceiling is not None:
        at, shares = _array("ceiling", ceiling, (2, len(ceiling[0])))
        text = "a plain CNN that sees\nwhat has spiked by t"
        axes.plot(at, 100 * shares, "-.", color=_GREEN, label=text)
    if decision_step is not None:
        text = f"mean decision step {decision_step:.1f}"
        axes.axvline(decision_step, color=_BLACK, linestyle=":", label=text)
    axes.set(
        title=f"Stopping early: {100 * accuracy[-1]:.2f} % by the last step",
        xlabel="time step",
        ylabel="share of the images (%)",
        xlim=(0, max(1, len(accuracy) - 1)),
        ylim=(0, 101),
    )
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def animation(
    input_times: np.ndarray,
    hidden: Sequence[tuple[str, np.ndarray]],
    potentials: np.ndarray,
    *,
    threshold: float,
    class_names: Sequence[str],
    decision_step: float,
) -> Animation:
    """An image's spikes and output potentials, step by step up to the decision.

    Left the pixels as they spike, in the middle the hidden neurons, layer upon layer,
    right the potentials. The last frame stays for two seconds; of a late decision some
    steps are passed over. `save` writes it as .gif.

    Args:
      input_times: [H, W] or [H, W, I] spike times in steps; T is silent.
      hidden: (name, spike times) of each hidden layer, from the first.
      potentials: [T, C] V(t) of the outputs in mV at the end of step t.
      threshold: θ in mV.
      class_names: C names.
      decision_step: the last step shown; T if no output fires.
    """
    steps, classes = len(potentials), len(class_names)
    image = np.asarray(input_times, float)
    image = image.min(axis=2) if image.ndim == 3 else image
    image = _array("input_times", image, np.shape(input_times)[:2])
    potentials = _array("potentials", potentials, (steps, classes))
    last = min(int(decision_step), steps - 1)
    winner = int(np.argmax(potentials[last]))
    figure, panels = _figure(9, 3.4, 1, 3, width_ratios=(1, 1.25, 1.25))
    figure.set_dpi(90)
    pixels, middle, right = panels
    draw_pixels = _pixels(pixels, image)
    dots, times, heights = _spike_dots(middle, hidden)
    lines = _potential_lines(right, class_names, winner, widths=(2.5, 1.5))
    right.axhline(threshold, color=_BLACK, linestyle=":")
    right.set(
        ylim=(-1.5 * threshold, 1.3 * max(threshold, potentials[last, winner])),
        xlabel="time step",
        title="output potentials (mV), θ dotted",
    )
    for axes in (middle, right):
        axes.set_xlim(-0.5, last + 1)

    def draw(t: int) -> None:
        draw_pixels(t)
        sent = times <= t
        dots.set_data(times[sent], heights[sent])
        middle.set_title(f"hidden: {np.sum(sent):,.0f} spikes")
        for line, values in zip(lines, potentials[: t + 1].T, strict=True):
            _hold(line, values)
        end = f": decided, ‘{class_names[winner]}’" if t == decision_step else ""
        figure.suptitle(f"step {t} of {steps}{end}")

    draw(last)
    _legend(right, lines)
    figure.draw_without_rendering()  # laid out once: frames stand still, and are quick
    figure.set_layout_engine("none")
    stride = -(-(last + 1) // _MOST_FRAMES)
    frames = [*range(last % stride, last + 1, stride), *[last] * (2 * _FRAMES_A_SECOND)]
    return FuncAnimation(
        figure, draw, frames, init_func=lambda: None, cache_frame_data=False
    )


def _pixels(axes: Axes, image: np.ndarray) -> Callable[[int], None]:
    """A panel of the pixels; what draws those that have spiked by a step."""
    shown = axes.imshow(np.zeros((*image.shape, 3)))
    axes.set(xticks=[], yticks=[])

    def draw(t: int) -> None:
        colours = np.zeros((*image.shape, 3))
        colours[image <= t] = 0.8
        colours[image == t] = to_rgb(_ORANGE)
        shown.set_data(colours)
        axes.set_title(f"input: {np.sum(image <= t):,.0f} spikes")

    return draw


def _spike_dots(
    axes: Axes, layers: Sequence[tuple[str, np.ndarray]]
) -> tuple[Line2D, np.ndarray, np.ndarray]:
    """A panel with a band for each layer: its dots, still none, and times and heights
    of all neurons."""
    spikes = [
        (time, level + 0.1 + 0.8 * np.arange(len(time)) / len(time))
        for level, (_, times) in enumerate(layers)
        if (time := np.ravel(times)).size
    ]
    times, heights = np.concatenate([np.zeros((2, 0)), *map(np.array, spikes)], axis=1)
    (dots,) = axes.plot([], [], "o", color=_BLUE, markersize=2.2, markeredgewidth=0)
    axes.set(ylim=(0, max(1, len(layers))), xlabel="time step")
    axes.set_yticks(np.arange(len(layers)) + 0.5, [name for name, _ in layers])
    axes.set_yticks(range(1, len(layers)), minor=True)
    axes.tick_params(axis="y", length=0, which="both")
    axes.grid(axis="y", which="minor", alpha=0.5)
    return dots, times, heights


def _potential_lines(
    axes: Axes, class_names: Sequence[str], winner: int, *, widths: tuple[float, float]
) -> list[Line2D]:
    """A line for each output neuron, still empty; the winner's has the first width."""
    styles = [_LINES[k % len(_LINES)] for k in range(len(class_names))]
    styles[winner] = (_VERMILION, "-")
    lines = [
        axes.plot([], [], line, color=colour, linewidth=widths[1], label=name)[0]
        for (colour, line), name in zip(styles, class_names, strict=True)
    ]
    lines[winner].set(linewidth=widths[0], zorder=3)
    return lines


def _hold(line: Line2D, potentials: np.ndarray) -> None:
    """V(t) [T], each of which holds until the next."""
    line.set_drawstyle("steps-post")
    line.set_data(np.arange(len(potentials) + 1), [*potentials, potentials[-1]])


def save(figure: Figure | Animation, path: str | os.PathLike) -> None:
    """Writes a figure as .png of 150 dots per inch or .svg, an animation as .gif; a
    file appears complete or not at all."""
    path = Path(path)
    kinds = ("gif",) if isinstance(figure, Animation) else ("png", "svg")
    kind = path.suffix.removeprefix(".")
    if kind not in kinds:
        raise ValueError(f"{path.name!r} must end in .{' or .'.join(kinds)}")
    with atomic_file(path) as unfinished:
        if isinstance(figure, Animation):
            figure.save(unfinished, writer=PillowWriter(fps=_FRAMES_A_SECOND))
        else:
            figure.savefig(unfinished, format=kind, dpi=150)


def _cumulative_spikes(axes: Axes, sent: np.ndarray, decision_step: float) -> None:
    unsent = sent[-1] - sent[min(int(decision_step), len(sent) - 1)]
    axes.step(np.arange(len(sent)), sent, where="post", color=_BLUE)
    _decision(axes, decision_step, len(sent))
    text = f"{unsent:,.0f} of {sent[-1]:,.0f} spikes unsent at the decision"
    axes.set_title(text, fontsize="medium", loc="left")
    axes.set(xlabel="time step", ylabel="spikes sent")
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.grid(alpha=0.3)


def _decision(axes: Axes, step: float, num_steps: int) -> None:
    if step < num_steps:
        axes.axvline(step + 0.5, color=_BLACK, linestyle="--", linewidth=1)


def _legend(axes: Axes, lines: Sequence[Line2D]) -> None:
    """The names of lines beside the frame, in the order of their ends."""
    handles = sorted(lines, key=lambda line: -float(np.asarray(line.get_ydata())[-1]))
    axes.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        ncols=1 + len(handles) // 16,
        frameon=False,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _array(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """In floating point, of that shape, with no axis of length 0."""
    array = np.asarray(values, float)
    if array.shape != shape or not array.size:
        expected = f"expected {name} of shape {shape}, not empty"
        raise ValueError(f"{expected}, got {array.shape}")
    return array


def _figure(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    on: SubFigure | None = None,
    **options: Any,
) -> tuple[Any, list[Axes]]:
    """A figure, in inches, or `on`, and its panels."""
    figure = on or Figure(figsize=(width, height), layout="constrained")
    return figure, [*figure.subplots(rows, columns, squeeze=False, **options).flat]


def _heat_map(
    values: np.ndarray,
    texts: Sequence[Sequence[str]],
    names: Sequence[str],
    unit: str,
    **colours: Any,
) -> tuple[Figure, Axes]:
    """A square of coloured cells with a text in each, light where the cell is dark."""
    classes = len(names)
    side = max(4.0, 0.62 * classes)
    figure, (axes,) = _figure(side + 1.8, side + 0.6)
    image = axes.imshow(values, **colours)
    brightness = image.to_rgba(values)[..., :3] @ (0.299, 0.587, 0.114)
    style: dict[str, Any] = dict(ha="center", va="center", fontsize=9)
    for (row, column), light in np.ndenumerate(brightness):
        colour = "white" if light < 0.5 else "black"
        axes.text(column, row, texts[row][column], color=colour, **style)
    turned: dict = {}
    if max(map(len, names)) > 3:
        turned = dict(rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xticks(range(classes), names, **turned)
    axes.set_yticks(range(classes), names)
    figure.colorbar(image, label=unit, shrink=0.85)
    return figure, axes
