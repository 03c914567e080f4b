"""The examples run as they stand and learn."""

import pytest

from experiments.examples import nnx_training, pure_jax, seeds


@pytest.mark.parametrize("example, reached", [(pure_jax, 0.85), (nnx_training, 0.85)])
def test_learns_the_digits(example, reached):
    assert example.main(epochs=5) > reached


def test_three_seeds_at_once_are_three_runs():
    accuracies = seeds.main()
    assert min(accuracies) > 0.85 and len(set(accuracies)) > 1
