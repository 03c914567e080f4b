"""Trains a DS4NN network on MNIST.

python -m experiments.mnist --flagfile=experiments/flagfiles/mnist_smoke.cfg
"""

from collections.abc import Sequence

import ds4nn_jax as ds
from ds4nn_jax.cli import progress, runner


def main(argv: Sequence[str] | None = None) -> ds.Report:
    return runner.main(argv, "mnist")


if __name__ == "__main__":
    progress.program("experiments.mnist", main)
