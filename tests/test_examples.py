"""The examples run as they stand and learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.training.checkpoints import CheckpointError, Checkpoints
from experiments.examples import nnx_training, own_rule, seeds


@pytest.mark.slow
def test_nnx_training_learns_the_digits():
    assert nnx_training.main(epochs=5) > 0.85


def test_a_rule_of_ones_own_learns_the_digits():
    assert own_rule.main() > 0.9


def test_three_seeds_at_once_are_three_runs():
    accuracies = seeds.main()
    assert min(accuracies) > 0.85 and len(set(accuracies)) > 1


@pytest.mark.slow
def test_values_of_ones_own_go_through_everything(tmp_path):
    """`train`, a run resumed from checkpoints, `fit`, saved weights."""
    config = dataclasses.replace(own_rule.CONFIG, epochs=2)
    digits = data.load("digits")
    some = digits.train_images[:400], digits.train_labels[:400]
    whole = list(ds.train(config, *some))
    assert whole[-1].train.accuracy > whole[0].train.accuracy > 0.2
    Checkpoints(tmp_path, config).save(whole[0].checkpoint)
    same = dataclasses.replace(config, output_rule=own_rule.Lead())
    start = Checkpoints(tmp_path, same).latest(ds.initial_checkpoint(same, *some))
    *_, later = ds.train(same, *some, start=start)
    jax.tree.map(np.testing.assert_array_equal, later.params, whole[-1].params)
    other = dataclasses.replace(config, output_rule=own_rule.Lead(steps=3))
    with pytest.raises(
        CheckpointError, match=r"Lead\(.*steps=10.0\).*Lead\(.*steps=3.0\)"
    ):
        Checkpoints(tmp_path, other).latest(start)
    fit = jax.jit(ds.fit, static_argnums=0)
    _, metrics = fit(config, jax.random.key(0), *map(jnp.asarray, some))
    assert metrics.accuracy[-1] > metrics.accuracy[0]
    programs = fit._cache_size()
    fit(same, jax.random.key(0), *map(jnp.asarray, some))
    assert fit._cache_size() == programs, "equal values are one program"
    ds.save_weights(tmp_path / "w", config.network(), later.params)
    loaded = ds.load_weights(tmp_path / "w", network=config.network())
    assert loaded.network.surrogate == own_rule.Bell()
    gradient = jax.grad(lambda p: loaded.network.apply(p, ds.encode(some[0][:4])).sum())
    assert np.abs(gradient(loaded.params)["params"]["dense1"]["kernel"]).max() > 0
