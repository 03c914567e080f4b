import os

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image, ImageSequence

from ds4nn_jax import plots

NAMES = ("cat", "dog", "a longer name")
ROWS = [
    {
        "epoch": epoch,
        "train_accuracy": 0.5 + 0.1 * epoch,
        "val_accuracy": 0.4 + 0.1 * epoch,
        "val_decision_step": 40.0 - epoch,
        "val_spikes": 1000.0 + 100 * epoch,
    }
    for epoch in (1, 2, 3)
]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def ticks(labels) -> tuple[str, ...]:
    return tuple(label.get_text() for label in labels)


def is_vertical_at(line, x) -> bool:
    return np.allclose(line.get_xdata(), x) and line.get_linestyle() == "--"


def overlapping(figure, drawn) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap on paper."""
    figure.savefig(os.devnull, format="png")  # lays the figure out
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn]
    return [
        (one, other)
        for k, (one, box) in enumerate(boxes)
        for other, another in boxes[k + 1 :]
        if one and other and box.overlaps(another)
    ]


class BoxOf:
    """An annotation without the line that leads to it."""

    def __init__(self, annotation):
        self._annotation = annotation
        self.get_text = annotation.get_text

    def get_window_extent(self):
        self._annotation.get_window_extent()  # places it
        return Text.get_window_extent(self._annotation)


# learning_curve


def test_learning_curve_draws_accuracy_in_percent_and_the_cost():
    figure = plots.learning_curve(ROWS)
    accuracy, steps, spikes = figure.axes
    training, validation = accuracy.lines
    np.testing.assert_array_equal(training.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(training.get_ydata(), [60, 70, 80])
    np.testing.assert_allclose(validation.get_ydata(), [50, 60, 70])
    np.testing.assert_allclose(steps.lines[0].get_ydata(), [39, 38, 37])
    np.testing.assert_allclose(spikes.lines[0].get_ydata(), [1100, 1200, 1300])
    assert accuracy.get_xlabel() == steps.get_xlabel() == "epoch"
    assert accuracy.get_ylabel() == "accuracy (%)"
    assert "time steps" in steps.get_ylabel()
    assert "spikes per image" in spikes.get_ylabel()
    assert ticks(accuracy.get_legend().texts) == ("training", "validation")
    assert ticks(steps.get_legend().texts) == ("decision step", "spikes")


def test_learning_curve_marks_the_epoch_whose_weights_were_kept():
    figure = plots.learning_curve(ROWS, best_epoch=3)
    for axes in figure.axes[:2]:
        np.testing.assert_allclose(axes.lines[-1].get_xdata(), 3)
        # Above the frame: beside the line it would lie on the curves.
        names = ticks(axes.get_legend().texts)
        assert len(names) == 3 and names[-1] == "best: epoch 3"


def test_learning_curve_of_one_epoch_without_validation():
    figure = plots.learning_curve([{"epoch": 1, "train_accuracy": 0.5}])
    (accuracy,) = figure.axes
    (line,) = accuracy.lines
    assert line.get_marker() == "o"  # a single point would else be invisible
    np.testing.assert_allclose(line.get_ydata(), [50])


# confusion and firing_times


def test_confusion_prints_counts_and_colours_shares():
    matrix = np.array([[8, 2, 0], [0, 1234, 0], [0, 0, 0]])
    figure = plots.confusion(matrix, NAMES)
    axes, bar = figure.axes
    assert texts(axes) == ["8", "2", "0", "0", "1,234", "0", "0", "0", "0"]
    assert [text.get_position() for text in axes.texts[:3]] == [(0, 0), (1, 0), (2, 0)]
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares, [[80, 20, 0], [0, 100, 0], [0, 0, 0]])
    assert axes.get_xlabel() == "decision" and axes.get_ylabel() == "true class"
    assert ticks(axes.get_xticklabels()) == ticks(axes.get_yticklabels()) == NAMES
    assert "99.84 % of 1,244 images" in axes.get_title()
    assert "%" in bar.get_ylabel()


def test_confusion_is_light_on_dark_and_dark_on_light():
    axes = plots.confusion(np.diag([5, 5, 5]), NAMES).axes[0]
    colours = np.array([text.get_color() for text in axes.texts]).reshape(3, 3)
    assert (np.diag(colours) == "white").all()
    assert (colours[~np.eye(3, dtype=bool)] == "black").all()
    axes = plots.confusion(np.zeros((3, 3), int), NAMES).axes[0]
    assert "none of 0 images" in axes.get_title()


def test_firing_times_prints_means_and_frames_the_correct_ones():
    means = np.array([[10.04, 50, np.nan], [60, 20, np.nan], [70, 80, np.nan]])
    axes, bar = plots.firing_times(means, NAMES).axes
    assert texts(axes) == ["10.0", "50.0", "–", "60.0", "20.0", "–"] + [
        "70.0",
        "80.0",
        "–",
    ]
    centres = [
        (patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2)
        for patch in axes.patches
    ]
    np.testing.assert_allclose(centres, [(0, 0), (1, 1), (2, 2)])
    assert axes.get_xlabel() == "class of the image"
    assert axes.get_ylabel() == "output neuron"
    assert "time steps" in bar.get_ylabel()
    assert axes.images[0].get_clim() == (10.04, 80)


@pytest.mark.parametrize("draw", [plots.confusion, plots.firing_times])
def test_texts_of_heat_maps_do_not_overlap(draw):
    names = [f"class {k} of all" for k in range(10)]
    figure = draw(np.full((10, 10), 1000) - np.eye(10), names)
    axes = figure.axes[0]
    assert overlapping(figure, axes.texts + axes.get_yticklabels()) == []


# raster


def test_raster_draws_the_spikes_and_tells_of_the_silent():
    hidden = np.array([3.0, 100, 99, 100])
    figure = plots.raster(
        [("input", np.zeros((2, 5))), ("64C3", hidden)], 100, decision_step=42
    )
    first, last = figure.axes
    spikes, decision = last.lines
    np.testing.assert_array_equal(spikes.get_xdata(), [3, 99])
    np.testing.assert_array_equal(spikes.get_ydata(), [0, 2])
    assert is_vertical_at(decision, 42.5)  # beside the spikes of step 42
    assert len(first.lines[0].get_xdata()) == 10
    assert first.get_title("left") == "input: 10 neurons, 0 % silent"
    assert last.get_title("left") == "64C3: 4 neurons, 50 % silent"
    assert "decision at step 42" in first.get_title("right")
    assert last.get_xlabel() == "time step"
    assert first.get_ylabel() == last.get_ylabel() == "neuron index"
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert low < 0 and high > 100


def test_raster_of_a_silent_layer_without_a_decision():
    (axes,) = plots.raster([("output", np.full(10, 20.0))], 20).axes
    (spikes,) = axes.lines
    assert len(spikes.get_xdata()) == 0
    assert axes.get_title("left") == "output: 10 neurons, 100 % silent"
    assert axes.get_title("right") == ""


# output_potentials


def draw_potentials(potentials, times, **options):
    options = {"threshold": 100.0, "label": 1, "class_names": NAMES} | options
    figure = plots.output_potentials(np.array(potentials), np.array(times), **options)
    (axes,) = figure.axes
    return figure, axes


RISING = np.array([[10, 20, -1000], [60, 110, -5000], [105, 130, -9000], [90, 90, 0]])


def test_output_potentials_marks_threshold_decision_and_the_first_to_fire():
    figure, axes = draw_potentials(RISING, [2, 1, 4], decision_step=1)
    *potentials, spikes, threshold, decision = axes.lines
    for k, line in enumerate(potentials):
        assert line.get_drawstyle() == "steps-post"  # it jumps, and holds
        np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 3, 4])
        np.testing.assert_array_equal(line.get_ydata(), [*RISING[:, k], RISING[-1, k]])
    widths = [line.get_linewidth() for line in potentials]
    assert np.argmax(widths) == 1
    np.testing.assert_array_equal(spikes.get_xdata(), [2, 1])
    np.testing.assert_array_equal(spikes.get_ydata(), [105, 110])
    np.testing.assert_array_equal(threshold.get_ydata(), [100, 100])
    assert is_vertical_at(decision, 1.5)
    assert axes.get_xlabel() == "time step"
    assert axes.get_ylabel() == "membrane potential (mV)"
    assert texts(axes) == ["threshold 100 mV", "a longer name", "cat", "dog (label)"]
    assert "‘dog’ fires first, decision at step 1" in axes.get_title()
    assert not figure.legends and axes.get_legend() is None


def test_output_potentials_keeps_the_threshold_in_view():
    axes = draw_potentials(RISING, [2, 1, 4], decision_step=1)[1]
    low, high = axes.get_ylim()
    assert -250 < low < 0 and 130 < high < 400
    axes = draw_potentials(RISING / 1000, [4, 4, 4], decision_step=4)[1]
    low, high = axes.get_ylim()
    assert low < 0 and high > 100
    axes = draw_potentials(RISING - 2000, [4, 4, 4], decision_step=4)[1]
    assert axes.get_ylim()[0] < -1990, "a silent winner far below"


@pytest.mark.parametrize(
    "times, winner, words",
    [
        ([2, 2, 4], "dog", "‘dog’ fires first"),  # a tie: the higher potential
        ([4, 4, 4], "cat", "no output fires, ‘cat’ ends highest"),  # then the lower
    ],
)
def test_output_potentials_highlights_what_decides(times, winner, words):
    axes = draw_potentials(RISING, times, decision_step=min(times))[1]
    thick = np.argmax([line.get_linewidth() for line in axes.lines])
    assert NAMES[thick] == winner
    assert words in axes.get_title()
    lines = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert any(is_vertical_at(line, 2.5) for line in lines) == (min(times) == 2)


def test_output_potentials_tells_ten_neurons_apart():
    figure = plots.output_potentials(
        np.zeros((5, 10)),
        np.full(10, 5),
        threshold=100,
        label=3,
        class_names=list("0123456789"),
        decision_step=5,
    )
    styles = [
        (line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines[:10]
    ]
    assert len(set(styles)) == 10


@pytest.mark.parametrize("ends", [np.zeros(26), np.linspace(-900, 900, 26)])
def test_names_at_the_ends_stay_apart_and_beside_the_frame(ends):
    """Also of as many classes as letters, most of which leave the frame."""
    figure = plots.output_potentials(
        np.stack([np.zeros(26), ends]),
        np.full(26, 2),
        threshold=100,
        label=3,
        class_names=[chr(97 + k) for k in range(26)],
        decision_step=2,
    )
    axes, names = figure.axes[0], figure.axes[0].texts[1:]
    assert overlapping(figure, [BoxOf(name) for name in names]) == []
    heights = [BoxOf(name).get_window_extent() for name in names]
    assert all(box.x0 > axes.bbox.x1 for box in heights)
    assert min(box.y0 for box in heights) > axes.bbox.y0 - 10
    assert max(box.y1 for box in heights) < axes.bbox.y1 + 10
    if ends[0] != ends[1]:  # in the order of the lines
        assert [n.get_text() for n in names] == sorted(n.get_text() for n in names)


def test_output_potentials_counts_what_is_still_unsent():
    figure = plots.output_potentials(
        RISING,
        np.array([2, 1, 4]),
        threshold=100,
        label=1,
        class_names=NAMES,
        decision_step=1,
        spikes_by_step=np.array([5, 3, 2, 0]),
    )
    axes, below = figure.axes
    np.testing.assert_array_equal(below.lines[0].get_ydata(), [5, 8, 10, 10])
    assert is_vertical_at(below.lines[1], 1.5)
    assert below.get_title("left") == "2 of 10 spikes unsent at the decision"
    assert below.get_xlabel() == "time step" and not axes.get_xlabel()


# accuracy_by_step


def test_accuracy_by_step_draws_both_shares_and_the_mean_decision():
    (axes,) = plots.accuracy_by_step(
        [0.1, 0.5, 0.9], [0, 0.4, 1], decision_step=1.5
    ).axes
    correct, decided, mean = axes.lines
    np.testing.assert_allclose(correct.get_ydata(), [10, 50, 90])
    np.testing.assert_allclose(decided.get_ydata(), [0, 40, 100])
    np.testing.assert_allclose(mean.get_xdata(), 1.5)
    assert "90.00 %" in axes.get_title() and "%" in axes.get_ylabel()
    assert [text.replace("\n", " ") for text in texts(axes)] == [
        "mean decision step 1.5",
        "correct if stopped here",
        "an output has fired",
    ]


def test_accuracy_by_step_under_a_ceiling():
    (axes,) = plots.accuracy_by_step(
        [0.1, 0.5, 0.9], [0, 0.4, 1], ceiling=([0, 2], [0.3, 0.99])
    ).axes
    ceiling = axes.lines[2]
    np.testing.assert_allclose(ceiling.get_xydata(), [[0, 30], [2, 99]])
    told = "a plain CNN that sees what has spiked by t"
    assert told in [text.replace("\n", " ") for text in texts(axes)]
    assert overlapping(axes.figure, [BoxOf(text) for text in axes.texts]) == []


# animation


def animated(tmp_path, **changed):
    """Frames of a decision at step 2 of 4: two pixels, two layers, two outputs."""
    given = {
        "input_times": np.array([[0.0, 2.0], [4.0, 4.0]]),
        "hidden": [("conv1", np.array([1.0, 4.0])), ("pool1", np.array([1.0]))],
        "potentials": np.array([[0.0, 10], [30, 40], [50, 120], [60, 130]]),
        "threshold": 100.0,
        "class_names": ("cat", "dog"),
        "decision_step": 2,
    }
    film = plots.animation(**given | changed)
    plots.save(film, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as image:
        frames = [
            (frame.info["duration"], np.asarray(frame.convert("RGB"), int))
            for frame in ImageSequence.Iterator(image)
        ]
    return film._fig, frames


def test_animation_ends_with_the_decision(tmp_path):
    figure, frames = animated(tmp_path)
    pixels, hidden, outputs = figure.axes
    assert figure.get_suptitle() == "step 2 of 4: decided, ‘dog’"
    assert pixels.get_title() == "input: 2 spikes"
    assert hidden.get_title() == "hidden: 2 spikes"
    np.testing.assert_allclose(hidden.lines[0].get_xdata(), [1, 1])
    cat, dog, threshold = outputs.lines
    np.testing.assert_allclose(dog.get_ydata(), [10, 40, 120, 120])
    np.testing.assert_allclose(threshold.get_ydata(), 100)
    assert dog.get_linewidth() > cat.get_linewidth()
    assert sum(duration for duration, _ in frames) == 3 * 200 + 2000
    first, second, third = (frame for _, frame in frames)  # and stays
    assert (first != second).any() and (second != third).any()
    assert os.listdir(tmp_path) == ["film.gif"]


@pytest.mark.slow
def test_animation_of_a_silent_network_says_so_and_passes_over_steps(tmp_path):
    figure, frames = animated(tmp_path, potentials=np.zeros((50, 2)), decision_step=50)
    assert figure.get_suptitle() == "step 49 of 50"
    assert len(frames) == 25  # every other step


# spikes_per_layer and save


def test_spikes_per_layer_prints_its_numbers():
    (axes,) = plots.spikes_per_layer([20.25, 1500.4, 0], ["input", "64C3", "10"]).axes
    assert [bar.get_height() for bar in axes.patches] == [20.25, 1500.4, 0]
    assert texts(axes) == ["20.2", "1,500", "0.0"]
    assert ticks(axes.get_xticklabels()) == ("input", "64C3", "10")
    assert axes.get_ylabel() == "mean spikes per image"
    assert "1,500 an image, and 20.2 of the input" in axes.get_title()


def test_save_writes_a_png_of_150_dpi_and_an_svg(tmp_path):
    path = tmp_path / "figure.png"
    plots.save(plots.spikes_per_layer([1, 2], ["a", "b"]), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (900, 570)  # 6 by 3.8 inches
        assert np.asarray(image.convert("L")).std() > 0
    plots.save(plots.spikes_per_layer([1, 2], ["a", "b"]), tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == ["figure.png", "figure.svg"]


def test_save_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    figure = plots.spikes_per_layer([1], ["$\\broken{$"])
    with pytest.raises(ValueError):
        plots.save(figure, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["figure.png"]


CURVES = [0.1, 0.5], [0.1, 1]
OUTPUTS = dict(threshold=100, class_names=NAMES, decision_step=1)


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plots.learning_curve([]), "no epoch"),
        (lambda: plots.confusion(np.zeros((3, 2)), NAMES), "each of 3 classes"),
        (lambda: plots.firing_times(np.zeros((4, 4)), NAMES), "each of 3 classes"),
        (lambda: plots.raster([], 100), "no layer"),
        (lambda: plots.raster([("1", np.zeros(0))], 100), "'1' has no neuron"),
        (lambda: draw_potentials(np.zeros((4, 2)), [0] * 3, **OUTPUTS), "expected pot"),
        (lambda: draw_potentials(np.zeros((0, 3)), [0] * 3, **OUTPUTS), "expected pot"),
        (
            lambda: draw_potentials(RISING, [2, 1, 4], spikes_by_step=[1], **OUTPUTS),
            r"must be \[4\]",
        ),
        (lambda: plots.accuracy_by_step([0.1, 0.5], [0.1]), "two curves"),
        (
            lambda: plots.accuracy_by_step(*CURVES, ceiling=([0, 1], [0.5])),
            "a step for each accuracy",
        ),
        (
            lambda: plots.animation(np.zeros((2, 2)), [], np.zeros((4, 2)), **OUTPUTS),
            r"potentials \[T, 3\]",
        ),
        (lambda: plots.spikes_per_layer([1, 2], ["a"]), "2 counts for 1"),
        (
            lambda: plots.save(plots.spikes_per_layer([1], ["a"]), "figure.jpg"),
            "as .png or .svg, not as 'figure.jpg'",
        ),
    ],
)
def test_refuses(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
