"""A rule, a surrogate and an optimizer of one's own, through our trainer unchanged.

    python -m experiments.examples.own_rule

Each is a frozen dataclass: its fields are its parameters, its name is what checkpoints
and error messages tell, and equal values share one compilation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

import ds4nn_jax as ds
from ds4nn_jax import data


@dataclasses.dataclass(frozen=True)
class Lead(ds.rules.OutputRule):
    """The label `steps` before its first rival, rivals closer than that as much later,
    until it leads."""

    steps: float = 10.0

    def target(self, times, labels, potentials=None, *, num_steps=100, threshold=100.0):
        is_label = jax.nn.one_hot(labels, times.shape[1], dtype=bool)
        label = jnp.sum(jnp.where(is_label, times, 0), axis=1, keepdims=True)
        rivals = jnp.where(is_label, jnp.inf, times)
        first = jnp.min(rivals, axis=1, keepdims=True)
        later = jnp.where(rivals < label + self.steps, times + self.steps, times)
        earlier = jnp.maximum(first - self.steps, 0)
        asked = jnp.where(is_label, earlier, jnp.minimum(later, num_steps))
        leads = label <= first - self.steps
        return jax.lax.stop_gradient(jnp.where(leads, times, asked))


@dataclasses.dataclass(frozen=True)
class Bell(ds.surrogates.Surrogate):
    """−∂t/∂V = exp(−((V(t*) − θ)/width)²)."""

    width: float = 40.0

    def slope(self, potential, threshold):
        return jnp.exp(-(((potential - threshold) / self.width) ** 2))


@dataclasses.dataclass(frozen=True)
class Nadam(ds.optimizers.Optimizer):
    """optax's Nadam, under the run's schedule; steps in mV."""

    learning_rate: float = 1.0

    def chain(self, layers, schedule):
        return optax.nadam(lambda step: self.learning_rate * schedule(step))


CONFIG = ds.TrainConfig(
    spec="64-100-10",
    surrogate=Bell(),
    output_rule=Lead(),
    initial_weights=ds.initial_weights.FiringRates(dense=0.4),
    optimizer=Nadam(),
    batch_size=32,
    epochs=5,
)


def main(config: ds.TrainConfig = CONFIG) -> float:
    digits = data.load("digits")
    for result in ds.train(config, digits.train_images, digits.train_labels):
        print(f"epoch {result.epoch}: {result.validation.accuracy:.1%} held out")
    test = digits.test_images, digits.test_labels
    return ds.evaluate(config.network(), result.params, *test).accuracy


if __name__ == "__main__":
    print(f"{main():.1%} of the test images")
