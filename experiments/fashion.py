"""Trains a DS4NN network on Fashion-MNIST.

python -m experiments.fashion --flagfile=experiments/flagfiles/fashion_smoke.cfg
"""

from collections.abc import Sequence

import ds4nn_jax as ds
from ds4nn_jax.cli import progress, runner


def main(argv: Sequence[str] | None = None) -> ds.Report:
    return runner.main(argv, "fashion_mnist")


if __name__ == "__main__":
    progress.program("experiments.fashion", main)
