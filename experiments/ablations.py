"""What each choice is worth where the paper is silent, or cannot be followed.

    python -m experiments.ablations [--tables=mnist,…] [--data_root=DIR] [--write]

Each row of the first tables changes one thing in what its first row has, trains five
epochs on the first 10,000 training images of MNIST, and is measured on the last 10,000
of them. The tables "recipe_…" train networks of several kinds by the recipes of several
presets, on the first and measured on the last images of their own training images. Test
images are not used. --write keeps the tables in `experiments/results`.
"""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax._files import write_atomically
from ds4nn_jax.cli import progress
from ds4nn_jax.layers.surrogates import Window
from ds4nn_jax.training.augmentation import Augmentation
from ds4nn_jax.training.initial_weights import FiringRates as Rates
from ds4nn_jax.training.initial_weights import Uniform
from ds4nn_jax.training.optimizers import Adam, FreeNorms, HeldNorms, LearnedNorms, Muon
from ds4nn_jax.training.regularizers import RateRegularizer
from ds4nn_jax.training.rules import Relative, Softmax

_HERE = Path(__file__).parent


class _Table(NamedTuple):
    """Runs that differ in what their rows change."""

    base: ds.TrainConfig
    rows: tuple[tuple[str, dict[str, Any]], ...]
    dataset: str = "mnist"
    images: int = 10_000
    held: int = 10_000
    epochs: int = 5
    halved: bool = False
    seeds: tuple[int, ...] = (0,)


_TABLE_1 = Uniform(((0, 80), (0, 50), (0, 5)))
_FREE = Adam(learning_rate=0.01)
# Without what pays in long runs alone, and has rows of its own.
_BEST = ds.presets.load("mnist")
_PLAIN = dataclasses.replace(
    _BEST,
    optimizer=dataclasses.replace(_BEST.optimizer, average=0.0),
    augmentation=dataclasses.replace(_BEST.augmentation, rotation=0.0),
)
_MNIST = (
    ("images shifted, weights not averaged", {}),
    ("images turned, too", dict(augmentation=_BEST.augmentation)),
    ("weights averaged", dict(optimizer=_BEST.optimizer)),
    ("padding VALID", dict(padding="VALID")),
    ("batches of 8", dict(batch_size=8)),
    ("batches of 128", dict(batch_size=128)),
    (
        "outputs start with a rate of 0.3",
        dict(initial_weights=Rates(conv=0.15, output=0.3)),
    ),
    (
        "outputs start with a rate of 0.95",
        dict(initial_weights=Rates(conv=0.15, output=0.95)),
    ),
    ("hidden layers start with 0.4", dict(initial_weights=Rates(conv=0.4))),
    ("Table 1's initial weights", dict(initial_weights=_TABLE_1)),
    ("Eq. 11 by the L2 norm", dict(output_rule=Softmax(normalization="l2"))),
    ("all weight norms free", dict(optimizer=_FREE)),
    ("silent neurons learn nothing", dict(surrogate="constant")),
    ("images not shifted", dict(augmentation=Augmentation())),
    ("horizon H = 15", dict(output_rule=Softmax(horizon=15))),
)
_RELATIVE = (
    ("as it is", {}),
    ("padding VALID", dict(padding="VALID")),
    ("batches of 16", dict(batch_size=16)),
    (
        "outputs start with a rate of 0.3",
        dict(initial_weights=Rates(conv=0.3, output=0.3)),
    ),
    ("Table 1's initial weights", dict(initial_weights=_TABLE_1)),
    ("Eq. 11 as printed (Σδ)", dict(output_rule=Relative(normalization="sum"))),
    ("Eq. 11 with Σ|δ|", dict(output_rule=Relative(normalization="l1"))),
    ("no normalisation", dict(output_rule=Relative(normalization="none"))),
)

# Targets fall within the 1,560 steps that these runs have.
_SPARSE = ds.presets.load("mnist_sparse")
_REGULARIZER = dataclasses.replace(_SPARSE.regularizer, steps=1000)
_SPARSE = dataclasses.replace(_SPARSE, regularizer=_REGULARIZER)
_MUON, _ANCHORED = _SPARSE.optimizer, _SPARSE.output_rule
_ADAM = Adam(0.01, norms=HeldNorms(), average=0.998, first_sum=_MUON.first_sum)
_FREE_SUMS = dataclasses.replace(_MUON, first_sum=None)
_DRAWN = dataclasses.replace(_SPARSE.initial_weights, edges=0.0)
_NOT_ANCHORED = dataclasses.replace(_ANCHORED, anchor=0.0)
_SPARSE_ROWS = (
    ("as it is, targets after 1,000 steps", {}),
    ("no regularizer", dict(regularizer=RateRegularizer())),
    ("no floor", dict(regularizer=dataclasses.replace(_REGULARIZER, floor=0.0))),
    (
        "pushed twice as hard",
        dict(regularizer=dataclasses.replace(_REGULARIZER, strength=0.3)),
    ),
    ("label not anchored", dict(output_rule=_NOT_ANCHORED)),
    ("neither", dict(regularizer=RateRegularizer(), output_rule=_NOT_ANCHORED)),
    ("Adam", dict(optimizer=_ADAM)),
    ("norms learned", dict(optimizer=dataclasses.replace(_MUON, norms=LearnedNorms()))),
    ("weights not averaged", dict(optimizer=dataclasses.replace(_MUON, average=0.0))),
    ("no urgency", dict(urgency=0.0)),
    ("first sums free", dict(optimizer=_FREE_SUMS)),
    ("first kernels as drawn", dict(initial_weights=_DRAWN)),
    ("both", dict(optimizer=_FREE_SUMS, initial_weights=_DRAWN)),
)

# Pulses and centred errors on a small network, in short runs.
_SMALL = ds.TrainConfig(
    spec="32C3-P2-32C3-32C3-10",
    urgency=0.2,
    pulses=(10,),
    centring=1.0,
    output_rule=Softmax(anchor=0.3, anchor_time=75),
    initial_weights=Rates(conv=0.2),
    optimizer=Muon(0.01, 0.005, norms=HeldNorms()),
    batch_size=32,
)
_STEPS = _SMALL.optimizer


def _rule(**change: Any) -> dict[str, Any]:
    return dict(output_rule=dataclasses.replace(_SMALL.output_rule, **change))


def _steps(**change: Any) -> dict[str, Any]:
    return dict(optimizer=dataclasses.replace(_STEPS, **change))


def _short(steps: int) -> dict[str, Any]:
    """The recipe for another T, all its times in proportion."""
    rule, share = _SMALL.output_rule, steps / _SMALL.num_steps
    names = ("offset", "temperature", "horizon", "anchor_time")
    times = {name: getattr(rule, name) * share for name in names}
    return dict(
        num_steps=steps,
        output_rule=dataclasses.replace(rule, **times),
        urgency=_SMALL.urgency / share,
    )


_SMALL_REGULARIZER = RateRegularizer(
    (0.06, 0.12, 0.2), floor=0.0, strength=0.1, start=0.25, steps=500
)
_SMALL_ROWS = (
    ("ten pulses, centred errors", {}),
    ("no pulses", dict(pulses=())),
    ("no centring", dict(centring=0.0)),
    ("neither", dict(pulses=(), centring=0.0)),
    ("5 pulses", dict(pulses=(5,))),
    ("20 pulses", dict(pulses=(20,))),
    ("T pulses", dict(pulses=(100,))),
    ("T pulses, steps of 0.02 mV", dict(pulses=(100,), **_steps(pulse_rate=0.02))),
    ("pulses in the first layer alone", dict(pulses=(10, 0))),
    ("pulses in hidden layers alone", dict(pulses=(10, 10, 10, 0))),
    ("pulses' steps of 0.03 mV", _steps(pulse_rate=0.03)),
    ("pulses' steps of 0.3 mV", _steps(pulse_rate=0.3)),
    ("half of the common error left", dict(centring=0.5)),
    ("no anchor", _rule(anchor=0.0)),
    ("anchor of 1", _rule(anchor=1.0)),
    ("no urgency", dict(urgency=0.0)),
    (
        "Adam, batches of 16",
        dict(optimizer=Adam(0.03, norms=HeldNorms()), batch_size=16),
    ),
    (
        "Adam, batches of 16, no anchor, no urgency, first rates of 0.25",
        dict(
            optimizer=Adam(0.03, norms=HeldNorms()),
            batch_size=16,
            urgency=0.0,
            output_rule=Softmax(),
            initial_weights=Rates(),
        ),
    ),
    ("batches of 16", dict(batch_size=16)),
    ("steps twice as large", _steps(learning_rate=0.02, output_rate=0.01)),
    ("steps in common not damped", _steps(common_step=1.0)),
    ("norms free", _steps(norms=FreeNorms())),
    ("norms learned", _steps(norms=LearnedNorms())),
    ("weights averaged", _steps(average=0.99)),
    ("first sums limited", _steps(first_sum=80.0)),
    ("first kernels find edges", dict(initial_weights=Rates(conv=0.2, edges=0.1))),
    ("horizon H = T", _rule(horizon=100)),
    ("a window of 100 mV", dict(surrogate=Window(100.0))),
    ("a window of 25 mV", dict(surrogate=Window(25.0))),
    ("target rates of 6, 12, 20 %", dict(regularizer=_SMALL_REGULARIZER)),
    (
        "… with a floor",
        dict(regularizer=dataclasses.replace(_SMALL_REGULARIZER, floor=0.5)),
    ),
    ("strides for pooling", dict(spec="32C3s2-32C3-32C3-10")),
    ("T = 32", _short(32)),
    ("T = 16", _short(16)),
)


def _recipe(name: str) -> dict[str, Any]:
    """What a preset says of learning, for any network."""
    preset = ds.presets.load(name)
    learning = ("surrogate", "output_rule", "initial_weights", "optimizer", "schedule")
    fields = (*learning, "augmentation", "batch_size", "regularizer")
    return {field: getattr(preset, field) for field in fields}


_RECIPES = (
    ("default", {}),
    ("default, urgency 0.3", dict(urgency=0.3)),
    ("mnist", _recipe("mnist")),
    ("mnist_dense", _recipe("mnist_dense")),
    ("fashion_mnist", _recipe("fashion_mnist")),
)
_recipes = functools.partial(_Table, rows=_RECIPES, held=5000, epochs=4)
_TABLES = {
    "mnist": _Table(_PLAIN, _MNIST),
    "mnist_relative": _Table(ds.presets.load("mnist_relative"), _RELATIVE),
    "mnist_sparse": _Table(_SPARSE, _SPARSE_ROWS),
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
    "recipe_digits": _recipes(
        ds.TrainConfig(spec="32C3-P2-64C3-10"),
        dataset="digits",
        images=1200,
        held=200,
        epochs=8,
    ),
    "recipe_mnist": _recipes(ds.TrainConfig(spec="64C3-P2-128C3-P2-10")),
    "recipe_dense": _recipes(ds.TrainConfig(spec="784-400-10")),
    "recipe_small": _recipes(
        ds.TrainConfig(spec="32C3-P2-32C3-32C3-10"),
        dataset="fashion_mnist",
        images=12_000,
        halved=True,
    ),
    "recipe_fashion": _recipes(
        ds.TrainConfig(spec="128C3-P2-128C3-P2-128C3-10"), dataset="fashion_mnist"
    ),
}
_HEADER = (
    "| {}: {}, {} epochs of {:,} images | accuracy (%) | silent (%) | step | spikes |\n"
    "|---|---:|---:|---:|---:|\n"
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = ",".join(_TABLES)
    parser.add_argument("--tables", default=every, help=f"which; all are {every}")
    parser.add_argument("--data_root", help="folder with a folder for each data set")
    parser.add_argument("--write", action="store_true", help="keep the tables")
    asked = parser.parse_args(argv)
    names = asked.tables.split(",")
    if unknown := set(names) - set(_TABLES):
        parser.error(f"no table {sorted(unknown)}: there are {every}")
    needed = {_TABLES[name].dataset for name in names}
    loaded = {dataset: _loaded(dataset, asked.data_root) for dataset in needed}
    for name in names:
        table = _TABLES[name]
        spec = table.base.spec
        text = _HEADER.format(name, spec, table.epochs, table.images)
        print(text, end="", flush=True)
        arrays = _images(table, loaded[table.dataset])
        for what, change in table.rows:
            reports = [
                _trained(table, change | dict(seed=seed), *arrays)
                for seed in table.seeds
            ]
            row = _row(what, reports)
            print(row, end="", flush=True)
            text += row
        if asked.write:
            command = f"`python -m experiments.ablations --tables={name} --write`\n\n"
            where = _HERE / "results" / f"ablations-{name}.md"
            write_atomically(where, (command + text).encode())


def _loaded(name: str, root: str | None) -> data.Dataset:
    return data.load(name, Path(root) / name if root and name != "digits" else None)


def _images(table: _Table, loaded: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Training images for the table, and their labels."""
    images, labels = loaded.train_images, loaded.train_labels
    if table.halved:
        rows, columns = images.shape[1] // 2, images.shape[2] // 2
        squares = images.reshape(len(images), rows, 2, columns, 2, -1)
        images = squares.mean((2, 4)).round().astype(np.uint8)
    if len(images) < table.images + table.held:
        raise SystemExit(f"experiments.ablations: only {len(images)} images")
    return images, labels


def _trained(table: _Table, change: dict, images, labels) -> ds.Report:
    config = dataclasses.replace(
        table.base, epochs=table.epochs, validation=0.0, **change
    )
    first, last = slice(None, table.images), slice(-table.held, None)
    *_, result = ds.train(config, images[first], labels[first])
    return ds.evaluate(config.network(), result.params, images[last], labels[last])


def _row(what: str, reports: list[ds.Report]) -> str:
    """Means over seeds, and the range of accuracies."""
    what = what.replace("|", r"\|")
    percent = [100 * report.accuracy for report in reports]
    accuracy = f"{np.mean(percent):.2f}"
    if len(percent) > 1:
        accuracy += f" ({min(percent):.2f}–{max(percent):.2f})"
    silent, step, spikes = (
        np.mean([getattr(report, name) for report in reports])
        for name in ("silent", "decision_step", "spikes")
    )
    return (
        f"| {what} | {accuracy} | {100 * silent:.2f} | {step:.1f} | {spikes:,.0f} |\n"
    )


if __name__ == "__main__":
    progress.program("experiments.ablations", main)
