"""What each choice is worth where the paper is silent, or cannot be followed.

    python -m experiments.ablations [--data_dir=DIR] [--write]

Each row changes one thing in the preset "mnist" or "mnist_relative", trains five epochs
on the first 10,000 training images of MNIST, and is measured on the last 10,000 of
them. Test images are not used. --write puts the tables into `experiments/results`.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.augmentation import Augmentation
from ds4nn_jax.checkpoints import write_atomically
from ds4nn_jax.first_weights import FiringRates as Rates
from ds4nn_jax.first_weights import Uniform
from ds4nn_jax.optimizers import Adam
from ds4nn_jax.rules import Relative, Softmax

from . import progress

_HERE = Path(__file__).parent
_IMAGES, _EPOCHS = 10_000, 5

_TABLE_1 = Uniform(((0, 80), (0, 50), (0, 5)))
_FREE = Adam(learning_rate=0.01)
_CHANGES = {
    "mnist": (
        ("as it is", {}),
        ("padding VALID", dict(padding="VALID")),
        ("batches of 8", dict(batch_size=8)),
        ("batches of 128", dict(batch_size=128)),
        ("outputs start with a rate of 0.3", dict(initial_weights=Rates(0.15, 0.3))),
        ("outputs start with a rate of 0.95", dict(initial_weights=Rates(0.15, 0.95))),
        ("hidden layers start with 0.4", dict(initial_weights=Rates(0.4, 0.7))),
        ("Table 1's initial weights", dict(initial_weights=_TABLE_1)),
        ("Eq. 11 by the L2 norm", dict(output_rule=Softmax(normalization="l2"))),
        ("all weight norms free", dict(optimizer=_FREE)),
        ("silent neurons learn nothing", dict(surrogate="constant")),
        ("images not shifted", dict(augmentation=Augmentation())),
        ("horizon H = 15", dict(output_rule=Softmax(horizon=15))),
    ),
    "mnist_relative": (
        ("as it is", {}),
        ("padding VALID", dict(padding="VALID")),
        ("batches of 16", dict(batch_size=16)),
        ("outputs start with a rate of 0.3", dict(initial_weights=Rates(0.3, 0.3))),
        ("Table 1's initial weights", dict(initial_weights=_TABLE_1)),
        ("Eq. 11 as printed (Σδ)", dict(output_rule=Relative(normalization="sum"))),
        ("Eq. 11 with Σ|δ|", dict(output_rule=Relative(normalization="l1"))),
        ("no normalisation", dict(output_rule=Relative(normalization="none"))),
    ),
}
_HEADER = (
    "| {}, {} epochs of {:,} images | accuracy (%) | silent (%) | step | spikes |\n"
    "|---|---:|---:|---:|---:|\n"
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", help="where MNIST lies")
    parser.add_argument("--write", action="store_true", help="keep the tables")
    asked = parser.parse_args(argv)
    images = data.load("mnist", asked.data_dir)
    tables = []
    for name, changes in _CHANGES.items():
        table = _HEADER.format(name, _EPOCHS, _IMAGES)
        print(table, end="", flush=True)
        config = ds.presets.load(name)
        for what, change in changes:
            row = _row(what, _trained(config, change, images))
            print(row, end="", flush=True)
            table += row
        tables.append(table)
    if asked.write:
        text = "\n".join(["`python -m experiments.ablations --write`\n", *tables])
        write_atomically(_HERE / "results" / "ablations.md", text.encode())


def _trained(config: ds.TrainConfig, change: dict, images: data.Dataset) -> ds.Report:
    config = dataclasses.replace(config, epochs=_EPOCHS, validation=0.0, **change)
    first, last = slice(None, _IMAGES), slice(-_IMAGES, None)
    training = images.train_images[first], images.train_labels[first]
    *_, result = ds.train(config, *training)
    held = images.train_images[last], images.train_labels[last]
    return ds.evaluate(config.network(), result.params, *held)


def _row(what: str, seen: ds.Report) -> str:
    return (
        f"| {what} | {100 * seen.accuracy:.2f} | {100 * seen.silent:.2f} "
        f"| {seen.decision_step:.1f} | {seen.spikes:,.0f} |\n"
    )


if __name__ == "__main__":
    progress.program("experiments.ablations", main)
