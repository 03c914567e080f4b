"""What each choice is worth where the paper is silent, or cannot be followed.

    python -m experiments.ablations [--tables mnist …] [--data_root=DIR] [--write]

Each row changes one thing in what the first has, trains five epochs on the first 10,000
training images of MNIST, and is measured on the last 10,000 of them; the table "small"
says what it has instead. Test images are not used. --write keeps the tables in
`experiments/results`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ds4nn_jax as ds
import experiments
from ds4nn_jax import data
from ds4nn_jax._files import write_atomically
from ds4nn_jax.cli import progress
from ds4nn_jax.layers.surrogates import Window
from ds4nn_jax.training.augmentation import Augmentation
from ds4nn_jax.training.initial_weights import FiringRates, Uniform
from ds4nn_jax.training.optimizers import Adam, FreeNorms, HeldNorms, LearnedNorms, Muon
from ds4nn_jax.training.regularizers import RateRegularizer
from ds4nn_jax.training.rules import Softmax

_Changes = dict[str, Any]  # of a configuration, by paths: "optimizer.norms"


def _changed(value: Any, changes: _Changes) -> Any:
    """A configuration, or a value of one, with some fields changed."""
    fields: dict[str, Any] = {}
    for path, new in changes.items():
        name, _, rest = path.partition(".")
        now = fields.get(name, getattr(value, name))
        fields[name] = _changed(now, {rest: new}) if rest else new
    return dataclasses.replace(value, **fields)


class _Table(NamedTuple):
    """Runs that differ in what their rows change."""

    base: ds.TrainConfig
    rows: dict[str, _Changes]
    dataset: str = "mnist"
    images: int = 10_000
    held: int = 10_000
    epochs: int = 5
    halved: bool = False
    seeds: tuple[int, ...] = (0,)


_TABLE_1 = {"initial_weights": Uniform(((0, 80), (0, 50), (0, 5)))}
_OUTPUT_RATE, _CONV_RATE = "initial_weights.output", "initial_weights.conv"
_BEST = _changed(ds.presets.load("mnist"), {"pulses": (), "centring": 0.0})
# Without what pays in long runs alone, and has rows of its own.
_PLAIN = _changed(_BEST, {"optimizer.average": 0.0, "augmentation.rotation": 0.0})
_MNIST: dict[str, _Changes] = {
    "images shifted, weights not averaged": {},
    "images turned, too": {"augmentation": _BEST.augmentation},
    "weights averaged": {"optimizer": _BEST.optimizer},
    "padding VALID": {"padding": "VALID"},
    "batches of 8": {"batch_size": 8},
    "batches of 128": {"batch_size": 128},
    "outputs start with a rate of 0.3": {_OUTPUT_RATE: 0.3},
    "outputs start with a rate of 0.95": {_OUTPUT_RATE: 0.95},
    "hidden layers start with 0.4": {_CONV_RATE: 0.4},
    "Table 1's initial weights": _TABLE_1,
    "Eq. 11 by the L2 norm": {"output_rule.normalization": "l2"},
    "all weight norms free": {"optimizer": Adam(learning_rate=0.01)},
    "silent neurons learn nothing": {"surrogate": "constant"},
    "images not shifted": {"augmentation": Augmentation()},
    "horizon H = 15": {"output_rule.horizon": 15},
}
_RELATIVE: dict[str, _Changes] = {
    "as it is": {},
    "padding VALID": {"padding": "VALID"},
    "batches of 16": {"batch_size": 16},
    "outputs start with a rate of 0.3": {_OUTPUT_RATE: 0.3},
    "Table 1's initial weights": _TABLE_1,
    "Eq. 11 as printed (Σδ)": {"output_rule.normalization": "sum"},
    "Eq. 11 with Σ|δ|": {"output_rule.normalization": "l1"},
    "no normalisation": {"output_rule.normalization": "none"},
}

# Pulses and centred errors on a small network, in short runs.
_SMALL = ds.TrainConfig(
    spec="32C3-P2-32C3-32C3-10",
    urgency=0.2,
    pulses=(10,),
    centring=1.0,
    output_rule=Softmax(anchor=0.3, anchor_time=75),
    initial_weights=FiringRates(conv=0.2),
    optimizer=Muon(0.01, 0.005, norms=HeldNorms()),
    batch_size=32,
)
_SMALL_ADAM = {"optimizer": Adam(0.03, norms=HeldNorms()), "batch_size": 16}
_PLAINEST = {
    "urgency": 0.0,
    "output_rule": Softmax(anchor=0),
    "initial_weights": FiringRates(),
}
_REGULARIZER = RateRegularizer(
    (0.06, 0.12, 0.2), floor=0.0, strength=0.1, start=0.25, steps=500
)


def _short(steps: int) -> _Changes:
    """The recipe for another T, all its times in proportion."""
    share = steps / _SMALL.num_steps
    names = ("offset", "temperature", "horizon", "anchor_time")
    times = {name: share * getattr(_SMALL.output_rule, name) for name in names}
    rule = dataclasses.replace(_SMALL.output_rule, **times)
    urgency = _SMALL.urgency / share
    return {"num_steps": steps, "output_rule": rule, "urgency": urgency}


_SMALL_ROWS: dict[str, _Changes] = {
    "ten pulses, centred errors": {},
    "no pulses": {"pulses": ()},
    "no centring": {"centring": 0.0},
    "neither": {"pulses": (), "centring": 0.0},
    "5 pulses": {"pulses": (5,)},
    "20 pulses": {"pulses": (20,)},
    "T pulses": {"pulses": (100,)},
    "T pulses, steps of 0.02 mV": {"pulses": (100,), "optimizer.pulse_rate": 0.02},
    "pulses in the first layer alone": {"pulses": (10, 0)},
    "pulses in hidden layers alone": {"pulses": (10, 10, 10, 0)},
    "pulses' steps of 0.03 mV": {"optimizer.pulse_rate": 0.03},
    "pulses' steps of 0.3 mV": {"optimizer.pulse_rate": 0.3},
    "half of the common error left": {"centring": 0.5},
    "no anchor": {"output_rule.anchor": 0.0},
    "anchor of 1": {"output_rule.anchor": 1.0},
    "no urgency": {"urgency": 0.0},
    "Adam, batches of 16": _SMALL_ADAM,
    "Adam, batches of 16, no anchor, no urgency, first rates of 0.25": {
        **_SMALL_ADAM,
        **_PLAINEST,
    },
    "batches of 16": {"batch_size": 16},
    "steps twice as large": {
        "optimizer.learning_rate": 0.02,
        "optimizer.output_rate": 0.01,
    },
    "steps in common not damped": {"optimizer.common_step": 1.0},
    "norms free": {"optimizer.norms": FreeNorms()},
    "norms learned": {"optimizer.norms": LearnedNorms()},
    "weights averaged": {"optimizer.average": 0.99},
    "first kernels find edges": {"initial_weights.edges": 0.1},
    "horizon H = T": {"output_rule.horizon": 100},
    "a window of 100 mV": {"surrogate": Window(100.0)},
    "a window of 25 mV": {"surrogate": Window(25.0)},
    "target rates of 6, 12, 20 %": {"regularizer": _REGULARIZER},
    "… with a floor": {"regularizer": _changed(_REGULARIZER, {"floor": 0.5})},
    "strides for pooling": {"spec": "32C3s2-32C3-32C3-10"},
    "T = 32": _short(32),
    "T = 16": _short(16),
}


_TABLES = {
    "mnist": _Table(_PLAIN, _MNIST),
    "mnist_relative": _Table(ds.presets.load("mnist_relative"), _RELATIVE),
    "small": _Table(
        _SMALL,
        _SMALL_ROWS,
        dataset="fashion_mnist",
        images=12_000,
        held=5000,
        epochs=4,
        halved=True,
        seeds=(0, 1, 2),
    ),
}
_HEADER = (
    "| {}: {}, {} epochs of {:,} images | accuracy (%) | silent (%) | step | spikes |\n"
    "|---|---:|---:|---:|---:|\n"
)


@experiments.one_line("ablations")
def main(argv: Sequence[str] | None = None) -> None:
    parser = experiments.parser("ablations", __doc__)
    parser.add_argument("--tables", nargs="+", choices=_TABLES, default=[*_TABLES])
    parser.add_argument("--data_root", help="folder with a folder for each data set")
    parser.add_argument("--write", action="store_true", help="keep the tables")
    args = parser.parse_args(argv)
    images = {name: _images(_TABLES[name], args.data_root) for name in args.tables}
    for name in args.tables:
        table = _TABLES[name]
        text = _HEADER.format(name, table.base.spec, table.epochs, table.images)
        print(text, end="", flush=True)
        for title, changes in table.rows.items():
            seeds = ({**changes, "seed": seed} for seed in table.seeds)
            row = _row(title, [_trained(table, each, *images[name]) for each in seeds])
            print(row, end="", flush=True)
            text += row
        if args.write:
            command = f"`python -m experiments.ablations --tables={name} --write`\n\n"
            path = Path(__file__).parent / "results" / f"ablations-{name}.md"
            write_atomically(path, (command + text).encode())


def _images(table: _Table, root: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Training images for the table, and their labels."""
    name = table.dataset
    dataset = data.load(name, Path(root) / name if root and name != "digits" else None)
    images, labels = dataset.train_images, dataset.train_labels
    if table.halved:
        rows, columns = images.shape[1] // 2, images.shape[2] // 2
        squares = images.reshape(len(images), rows, 2, columns, 2, -1)
        images = squares.mean((2, 4)).round().astype(np.uint8)
    return images, labels


def _trained(table: _Table, changes: _Changes, images, labels) -> ds.Report:
    config = _changed(table.base, {"epochs": table.epochs, "validation": 0.0} | changes)
    first, last = slice(None, table.images), slice(-table.held, None)
    *_, result = ds.train(config, images[first], labels[first])
    return ds.evaluate(config.network(), result.params, images[last], labels[last])


def _row(title: str, reports: list[ds.Report]) -> str:
    """Means over seeds, and the range of accuracies."""
    percent = [100 * report.accuracy for report in reports]
    accuracy = f"{np.mean(percent):.2f}"
    if len(percent) > 1:
        accuracy += f" ({min(percent):.2f}–{max(percent):.2f})"
    silent, step, spikes = (
        np.mean([getattr(report, name) for report in reports])
        for name in ("silent", "decision_step", "spikes")
    )
    title = title.replace("|", r"\|")
    return (
        f"| {title} | {accuracy} | {100 * silent:.2f} | {step:.1f} | {spikes:,.0f} |\n"
    )


if __name__ == "__main__":
    progress.program("experiments.ablations", main)
