"""One training run for each of several seeds, as one compiled program.

    python -m experiments.examples.seeds

`ds.fit` is a pure function of a random key, so `jax.vmap` gives many runs at once.
"""

import jax
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import data

CONFIG = ds.TrainConfig(
    spec="64-100-10",
    output_rule=ds.rules.Margin(offset=15),
    initial_weights=ds.initial_weights.FiringRates(dense=0.4, output=0.7),
    optimizer=ds.optimizers.Adam(learning_rate=0.05),
    batch_size=32,
    epochs=5,
)


def main(seeds: int = 3) -> list[float]:
    digits = data.load("digits")
    keys = jax.random.split(jax.random.key(0), seeds)
    run = jax.jit(jax.vmap(ds.fit, in_axes=(None, 0, None, None)), static_argnums=0)
    params, _ = run(CONFIG, keys, digits.train_images, digits.train_labels)
    accuracies = []
    for seed in range(seeds):
        mine = jax.tree.map(
            lambda stacked, seed=seed: np.asarray(stacked[seed]), params
        )
        report = ds.evaluate(
            CONFIG.network(), mine, digits.test_images, digits.test_labels
        )
        accuracies.append(report.accuracy)
    return accuracies


if __name__ == "__main__":
    print(", ".join(f"{accuracy:.1%}" for accuracy in main()))
