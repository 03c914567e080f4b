"""Draws the figures of `docs/ideas.md` from what the library computes.

    python docs/figures.py

writes `docs/images/*.svg`, and the animation of the README.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.style
import numpy as np
from matplotlib.animation import Animation
from matplotlib.figure import Figure
from PIL import Image

import ds4nn_jax as ds
from ds4nn_jax import data, plots
from ds4nn_jax.cli import measures

IMAGES = Path(__file__).parent / "images"
BLACK, BLUE, ORANGE, RED = "#222222", "#0072B2", "#E69F00", "#D55E00"
# The same text gives the same file, and letters stay letters.
matplotlib.rcParams |= {
    "svg.hashsalt": "ds4nn_jax",
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def figure(columns: int = 1, height: float = 3.0, **options):
    canvas = Figure(figsize=(7.2, height), layout="constrained")
    return canvas, canvas.subplots(1, columns, **options)


def cells(axes, values, labels, *, colours: str, limits=(0, 100)) -> None:
    """A matrix with a number in every cell; dark cells get light letters."""
    axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    low, high = limits
    for (y, x), text in np.ndenumerate(labels):
        dark = (values[y, x] - low) / (high - low) < 0.5
        colour = "white" if dark else BLACK
        axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set(xticks=[], yticks=[])


def time_coding() -> Figure:
    """A digit as intensities and as Eq. 1's spike times."""
    image = data.load("digits").test_images[0, :, :, 0]
    times = np.asarray(ds.encode(image))
    canvas, (left, right) = figure(2, 3.7)
    percent = image / 2.55
    cells(left, percent, percent.round().astype(int).astype(str), colours="gray")
    left.set_title("intensity I (%)", fontsize=11)
    labels = np.where(times < 100, times.astype(int).astype(str), "–")
    cells(right, 100 - times, labels, colours="cividis")
    right.set_title("spike time t (step); – is silent", fontsize=11)
    return canvas


def neuron() -> Figure:
    """Five synapses, one potential, one spike."""
    times = np.array([[8.0, 20.0, 35.0, 52.0, 70.0]])
    weights = np.array([[45.0], [30.0], [-25.0], [60.0], [20.0]])
    potential = np.asarray(ds.membrane_potentials(times, weights))[:, 0, 0]
    (spike,) = np.asarray(ds.dense(times, weights))[0]
    canvas, axes = figure()
    axes.step(np.arange(100), potential, where="post", color=BLUE, linewidth=2)
    axes.axhline(100, color=BLACK, linestyle=":")
    axes.text(1, 103, "θ = 100 mV")
    axes.plot(spike, potential[int(spike)], "o", color=RED, markersize=9)
    axes.annotate(
        f"fires once, at t = {spike:.0f}",
        (spike, potential[int(spike)]),
        (spike - 2, 128),
        color=RED,
        ha="right",
    )
    for time, weight in zip(times[0], weights[:, 0], strict=True):
        axes.annotate(
            f"{weight:+.0f}".replace("-", "−"),
            (time, -18),
            (time, -48),
            ha="center",
            arrowprops={"arrowstyle": "->", "color": BLACK},
        )
    axes.set(xlim=(0, 100), ylim=(-52, 145), xlabel="time step", ylabel="V (mV)")
    return canvas


def pooling() -> Figure:
    """Earliest spikes of 2×2 windows."""
    times = np.array([[30, 12, 100, 64], [45, 100, 71, 100]] + [[100, 100, 9, 9]] * 2)
    times[3] = [100, 100, 50, 20]
    pooled = ds.earliest_pool(times.astype(float)[None, ..., None])[0, ..., 0]
    pooled = np.asarray(pooled)
    canvas, (left, right) = figure(2, 2.9)
    for axes, values, title in (
        (left, times, "spike times"),
        (right, pooled, "earliest of each 2×2 window"),
    ):
        labels = np.where(values < 100, values.astype(int).astype(str), "–")
        cells(axes, 100 - values, labels, colours="cividis")
        axes.set_title(title, fontsize=11)
    left.axhline(1.5, color=RED, linewidth=2)
    left.axvline(1.5, color=RED, linewidth=2)
    return canvas


def drawing() -> np.ndarray:
    """A seven, drawn by hand; the pen gets lighter: [1, 28, 28, 1] uint8."""
    image = np.zeros((1, 28, 28, 1), np.uint8)
    image[0, 6:9, 7:20, 0] = 200
    for row in range(9, 23):
        column = 18 - (row - 9) // 2
        image[0, row, column - 1 : column + 2, 0] = 200 - 8 * (row - 9)
    return image


def seven() -> tuple[tuple[str, ...], list[np.ndarray], np.ndarray]:
    """What `mnist` makes of that seven: the names of its layers, the spike times of the
    input and of each layer, and V [T, C] of the outputs in mV."""
    network, params, _ = ds.pretrained.load("mnist")
    trace = network.apply(params, ds.encode(drawing()), method="trace")
    potentials, _ = measures.first_potentials(network, params, trace)
    return network.names, [np.asarray(times)[0] for times in trace.times], potentials


def decision() -> Figure:
    """Ten outputs race; the first to the threshold is the answer."""
    _, (*_, times), potentials = seven()
    first = int(times.min())
    canvas, axes = figure(height=3.4)
    winner = int(np.argmax(np.where(times == first, potentials[first], -np.inf)))
    for k, potential in enumerate(potentials.T):
        colour = RED if k == winner else "#999999"
        axes.plot(
            potential,
            color=colour,
            linewidth=2.5 if k == winner else 1,
            drawstyle="steps-post",
        )
    axes.axhline(100, color=BLACK, linestyle=":")
    axes.axvline(first, color=BLACK, linestyle="--", linewidth=1)
    axes.plot(first, potentials[first, winner], "o", color=RED, markersize=9)
    axes.text(first - 1.5, 130, f"‘{winner}’ at step {first}", color=RED, ha="right")
    axes.text(first + 1.5, -185, "not computed", color="#666666")
    axes.axvspan(first, 100, color="#f1f1f1", zorder=-1)
    axes.set(xlim=(0, 99), ylim=(-200, 160), xlabel="time step", ylabel="V (mV)")
    return canvas


def animation() -> Animation:
    """All spikes until that decision."""
    names, (pixels, *hidden, outputs), potentials = seven()
    return plots.animation(
        pixels,
        [*zip(names[:-1], hidden, strict=True)],
        potentials,
        threshold=100.0,
        class_names=[str(digit) for digit in range(10)],
        decision_step=int(outputs.min()),
    )


def surrogates() -> Figure:
    """The surrogates of −∂t/∂V."""
    peak = np.linspace(0, 200, 201)
    canvas, axes = figure()
    axes.step(peak, peak >= 100, where="post", color=ORANGE, label="Constant()")
    window = ds.Window(50.0).slope(peak, 100.0)
    axes.plot(peak, window, color=BLUE, linewidth=2, label="Window(50.0)")
    axes.axvline(100, color=BLACK, linestyle=":")
    axes.text(50, 0.35, "silent,\nbut near:\nlearns", ha="center", color=BLUE)
    axes.set(xlabel="potential V(t*) at the spike, or the highest (mV)")
    axes.set(ylabel="−∂t/∂V", xlim=(0, 200), ylim=(0, 1.15))
    axes.legend(loc="upper left", frameon=False)
    return canvas


def urgency() -> Figure:
    """The same input with and without a bias current into the output neuron."""
    times = np.array([[10.0, 25.0, 45.0, 60.0, 85.0]])
    weights = np.array([[30.0], [22.0], [18.0], [12.0], [25.0]])
    canvas, axes = figure()
    for u, colour, height in ((0.0, BLUE, 128), (0.4, RED, 112)):
        potential = np.asarray(ds.membrane_potentials(times, weights, urgency=u))
        spike = float(np.asarray(ds.dense(times, weights, urgency=u))[0, 0])
        line = potential[:, 0, 0]
        axes.plot(line, color=colour, linewidth=2, drawstyle="steps-post")
        axes.plot(spike, line[int(spike)], "o", color=colour, markersize=9)
        axes.text(
            spike - 1, height, f"u = {u:g}: t = {spike:.0f}", color=colour, ha="right"
        )
    axes.axhline(100, color=BLACK, linestyle=":")
    axes.set(xlim=(0, 99), ylim=(0, 145), xlabel="time step", ylabel="V (mV)")
    return canvas


def regularizer() -> Figure:
    """The push on a neuron against its channel's rate; target 0.12, floor 0.5."""
    neurons, target, strength, floor = 200, 0.12, 0.15, 0.5
    rates, later, earlier = [], [], []
    for fired in range(1, 61):
        times = jnp.where(jnp.arange(neurons) < fired, 20.0, 100.0)[:, None]

        def through(t):
            regularized = ds.regularizers.regularize_rates(
                strength, floor, 100, t, target
            )
            return jnp.sum(
                jnp.where(jnp.arange(neurons)[:, None] % 2, -1, 1) * regularized
            )

        gradient = np.asarray(jax.grad(through)(times))[:, 0]
        push = gradient - np.where(np.arange(neurons) % 2, -1, 1)
        rates.append(fired / neurons)
        later.append(push[0])
        earlier.append(push[-1])
    canvas, axes = figure()
    axes.plot(rates, later, color=RED, linewidth=2, label="on those that fired: later")
    axes.plot(rates, earlier, color=BLUE, linewidth=2, label="on the silent: earlier")
    axes.axvline(target, color=BLACK, linestyle=":")
    axes.text(target + 0.003, -0.2, "target ρ")
    axes.axhline(0, color=BLACK, linewidth=0.8)
    axes.set(
        xlabel="share of the channel's neurons that fired", ylabel="added to δ / ‖δ‖"
    )
    axes.legend(loc="lower left", frameon=False)
    return canvas


FIGURES = (
    time_coding,
    neuron,
    pooling,
    decision,
    surrogates,
    urgency,
    regularizer,
)

if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for draw in FIGURES:
        path = IMAGES / f"{draw.__name__}.svg"
        draw().savefig(path, metadata={"Date": None})
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB")
    Image.fromarray(drawing()[0, ..., 0]).save(IMAGES / "seven.png")
    with matplotlib.style.context("default"):
        plots.save(animation(), IMAGES / "decision.gif")
