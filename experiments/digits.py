"""Trains a DS4NN network on the embedded UCI digits.

python -m experiments.digits --flagfile=experiments/flagfiles/digits_smoke.cfg
"""

from collections.abc import Sequence

import ds4nn_jax as ds
from ds4nn_jax.cli import progress, runner


def main(argv: Sequence[str] | None = None) -> ds.Report:
    return runner.main(argv, "digits")


if __name__ == "__main__":
    progress.program("experiments.digits", main)
