import os

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ds4nn_jax import plots

NAMES = ("cat", "dog", "a longer name")


def texts(axes) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in axes.texts]


def ticks(labels) -> tuple[str, ...]:
    return tuple(label.get_text() for label in labels)


def dashed_at(axes) -> list[float]:
    return [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]


def legend(axes) -> list[str]:
    texts = axes.get_legend().get_texts()
    return [text.get_text().replace("\n", " ") for text in texts]


def test_learning_curve_draws_accuracy_cost_and_the_epoch_kept():
    rows = [
        {
            "epoch": epoch,
            "train_accuracy": 0.5 + 0.1 * epoch,
            "val_accuracy": 0.4 + 0.1 * epoch,
            "val_decision_step": 40.0 - epoch,
            "val_spikes": 1000.0 + 100 * epoch,
        }
        for epoch in (1, 2, 3)
    ]
    accuracy, steps, spikes = plots.learning_curve(rows, best_epoch=3).axes
    training, validation, _ = accuracy.lines
    np.testing.assert_array_equal(training.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(training.get_ydata(), [60, 70, 80])
    np.testing.assert_allclose(validation.get_ydata(), [50, 60, 70])
    np.testing.assert_allclose(steps.lines[0].get_ydata(), [39, 38, 37])
    np.testing.assert_allclose(spikes.lines[0].get_ydata(), [1100, 1200, 1300])
    for axes in (accuracy, steps, spikes):
        np.testing.assert_allclose(axes.lines[-1].get_xdata(), 3)
    assert legend(accuracy) == ["training", "validation", "best: epoch 3"]
    (accuracy,) = plots.learning_curve([{"epoch": 1, "train_accuracy": 0.5}]).axes
    (line,) = accuracy.lines
    assert line.get_marker() == "o"  # a single point would else be invisible


def test_confusion_prints_counts_and_colours_shares():
    """Light text on dark, dark on light."""
    matrix = np.array([[8, 2, 0], [0, 1234, 0], [0, 0, 0]])
    axes, bar = plots.confusion(matrix, NAMES).axes
    assert texts(axes) == ["8", "2", "0", "0", "1,234", "0", "0", "0", "0"]
    assert [text.get_position() for text in axes.texts[:3]] == [(0, 0), (1, 0), (2, 0)]
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares, [[80, 20, 0], [0, 100, 0], [0, 0, 0]])
    light = [text.get_color() == "white" for text in axes.texts]
    assert light == [share > 50 for share in np.ravel(shares)]
    assert ticks(axes.get_xticklabels()) == ticks(axes.get_yticklabels()) == NAMES
    assert "99.84 % of 1,244 images" in axes.get_title() and "%" in bar.get_ylabel()
    axes = plots.confusion(np.zeros((3, 3), int), NAMES).axes[0]
    assert "none of 0 images" in axes.get_title()


def test_firing_times_prints_means_and_frames_the_correct_ones():
    means = np.array([[10.04, 50, np.nan], [60, 20, np.nan], [70, 80, np.nan]])
    axes, bar = plots.firing_times(means, NAMES).axes
    assert texts(axes) == "10.0 50.0 – 60.0 20.0 – 70.0 80.0 –".split()
    centres = [
        (patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2)
        for patch in axes.patches
    ]
    np.testing.assert_allclose(centres, [(0, 0), (1, 1), (2, 2)])
    assert axes.get_xlabel() == "class of the image" and "steps" in bar.get_ylabel()


def test_raster_draws_the_spikes_and_tells_of_the_silent():
    hidden = np.array([3.0, 100, 99, 100])
    figure = plots.raster(
        [("input", np.zeros((2, 5))), ("64C3", hidden)], 100, decision_step=42
    )
    first, last = figure.axes
    np.testing.assert_array_equal(last.lines[0].get_xydata(), [[3, 0], [99, 2]])
    assert len(first.lines[0].get_xdata()) == 10
    assert dashed_at(last) == [42.5]  # beside the spikes of step 42
    assert first.get_title("left") == "input: 10 neurons, 0 % silent"
    assert last.get_title("left") == "64C3: 4 neurons, 50 % silent"
    assert "decision at step 42" in first.get_title("right")
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert low < 0 and high > 100
    (axes,) = plots.raster([("output", np.full(10, 20.0))], 20).axes
    assert len(axes.lines) == 1 and len(axes.lines[0].get_xdata()) == 0
    assert axes.get_title("right") == ""


RISING = np.array([[10, 20, -1000], [60, 110, -5000], [105, 130, -9000], [90, 90, 0]])


def draw_potentials(times=(2, 1, 4), potentials=RISING, **options):
    options = {"threshold": 100.0, "label": 1, "class_names": NAMES} | options
    decision = dict(decision_step=min(times))
    return plots.output_potentials(potentials, times, **decision | options)


def test_output_potentials_marks_threshold_decision_and_what_is_unsent():
    figure = draw_potentials(spikes_by_step=[5, 3, 2, 0])
    axes, below = figure.axes
    *potentials, spikes, threshold, _ = axes.lines
    for k, line in enumerate(potentials):
        assert line.get_drawstyle() == "steps-post"  # it jumps, and holds
        np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 3, 4])
        np.testing.assert_array_equal(line.get_ydata(), [*RISING[:, k], RISING[-1, k]])
    np.testing.assert_array_equal(spikes.get_xydata(), [[2, 105], [1, 110]])
    np.testing.assert_array_equal(threshold.get_ydata(), [100, 100])
    assert dashed_at(axes) == dashed_at(below) == [1.5]
    ends = ["threshold 100 mV", "cat", "dog (label)", "a longer name"]
    assert legend(axes) == ends  # from the highest to the lowest
    np.testing.assert_array_equal(below.lines[0].get_ydata(), [5, 8, 10, 10])
    assert below.get_title("left") == "2 of 10 spikes unsent at the decision"
    assert below.get_xlabel() == "time step" and not axes.get_xlabel()


def test_output_potentials_keeps_the_threshold_in_view():
    low, high = draw_potentials().axes[0].get_ylim()
    assert -250 < low < 0 and 130 < high < 400
    low, high = draw_potentials([4, 4, 4], RISING / 1000).axes[0].get_ylim()
    assert low < 0 and high > 100
    low, _ = draw_potentials([4, 4, 4], RISING - 2000).axes[0].get_ylim()
    assert low < -1990, "a silent winner far below"


@pytest.mark.parametrize(
    "times, winner, words",
    [
        ([2, 1, 4], "dog", "‘dog’ fires first, decision at step 1"),
        ([2, 2, 4], "dog", "‘dog’ fires first"),  # a tie: the higher potential
        ([4, 4, 4], "cat", "no output fires, ‘cat’ ends highest"),  # then the lower
    ],
)
def test_output_potentials_highlights_what_decides(times, winner, words):
    (axes,) = draw_potentials(times).axes
    thick = np.argmax([line.get_linewidth() for line in axes.lines])
    assert NAMES[thick] == winner and words in axes.get_title()
    assert dashed_at(axes) == ([min(times) + 0.5] if min(times) < 4 else [])


def test_lines_of_ten_classes_differ():
    names = [chr(97 + k) for k in range(26)]
    (axes,) = draw_potentials([2] * 26, np.zeros((2, 26)), class_names=names).axes
    lines = axes.lines[:10]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 10


def test_accuracy_by_step_draws_shares_ceiling_and_the_mean_decision():
    figure = plots.accuracy_by_step(
        [0.1, 0.5, 0.9], [0, 0.4, 1], decision_step=1.5, ceiling=([0, 2], [0.3, 0.99])
    )
    (axes,) = figure.axes
    correct, decided, ceiling, mean = axes.lines
    np.testing.assert_allclose(correct.get_ydata(), [10, 50, 90])
    np.testing.assert_allclose(decided.get_ydata(), [0, 40, 100])
    np.testing.assert_allclose(ceiling.get_xydata(), [[0, 30], [2, 99]])
    np.testing.assert_allclose(mean.get_xdata(), 1.5)
    assert legend(axes) == [
        "correct if stopped here",
        "an output has fired",
        "a plain CNN that sees what has spiked by t",
        "mean decision step 1.5",
    ]
    (axes,) = plots.accuracy_by_step([0.1, 0.5, 0.9], [0, 0.4, 1]).axes
    assert len(axes.lines) == 2 and "90.00 %" in axes.get_title()


def animated(tmp_path, **changes):
    """Frames of a decision at step 2 of 4: two pixels, two layers, two outputs."""
    options = {
        "input_times": np.array([[0.0, 2.0], [4.0, 4.0]]),
        "hidden": [("conv1", np.array([1.0, 4.0])), ("pool1", np.array([1.0]))],
        "potentials": np.array([[0.0, 10], [30, 40], [50, 120], [60, 130]]),
        "threshold": 100.0,
        "class_names": ("cat", "dog"),
        "decision_step": 2,
    }
    film = plots.animation(**options | changes)
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


def test_spikes_per_layer_prints_its_numbers_and_is_saved(tmp_path):
    """As a png of 150 dpi and as an svg; nothing half written."""
    figure = plots.spikes_per_layer([20.25, 1500.4, 0], ["input", "64C3", "10"])
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [20.25, 1500.4, 0]
    assert texts(axes) == ["20.2", "1,500", "0.0"]
    assert ticks(axes.get_xticklabels()) == ("input", "64C3", "10")
    assert "1,500 an image, and 20.2 of the input" in axes.get_title()
    path = tmp_path / "figure.png"
    plots.save(figure, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (900, 570)  # 6 by 3.8 inches
    plots.save(figure, tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text(encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(ValueError):
        plots.save(plots.spikes_per_layer([1], ["$\\broken{$"]), path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["figure.png", "figure.svg"]


OUTPUTS = dict(threshold=100, class_names=NAMES, decision_step=1)


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plots.learning_curve([]), "no epoch"),
        (lambda: plots.confusion(np.zeros((3, 2)), NAMES), r"\(3, 3\).*\(3, 2\)"),
        (lambda: plots.raster([("1", np.zeros(0))], 100), "expected layers"),
        (
            lambda: draw_potentials(potentials=np.zeros((0, 3))),
            r"not empty, got \(0, 3\)",
        ),
        (lambda: draw_potentials(spikes_by_step=[1]), "expected spikes_by_step"),
        (lambda: plots.accuracy_by_step([0.1, 0.5], [0.1]), "expected decided"),
        (
            lambda: plots.animation(np.zeros((2, 2)), [], np.zeros((4, 2)), **OUTPUTS),
            r"potentials of shape \(4, 3\)",
        ),
        (lambda: plots.spikes_per_layer([1, 2], ["a"]), "expected counts"),
        (lambda: plots.save(draw_potentials(), "a.jpg"), "end in .png or .svg"),
    ],
)
def test_refuses(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
