"""A network of one's own on `ds.conv` and `ds.dense`, with a loop of one's own.

    python -m experiments.examples.pure_jax

No Flax, no trainer of ours: parameters are a dict, the loss is a cross-entropy over the
negative spike times, the optimizer is any of optax.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ds4nn_jax as ds
from ds4nn_jax import data

SURROGATE = ds.Window(50.0)
RULE = ds.rules.Softmax(offset=10, temperature=5, horizon=100)


def init(key: jax.Array) -> dict:
    """8×8 images → 16 features of 3×3 → pooled to 4×4 → 10 classes; weights in mV."""
    first, second = jax.random.split(key)
    return {
        "conv": jax.random.uniform(first, (3, 3, 1, 16), minval=-20, maxval=35),
        "dense": jax.random.uniform(second, (256, 10), minval=-6, maxval=9),
    }


def forward(params: dict, times: ds.SpikeTimes) -> tuple[jax.Array, jax.Array]:
    """Output spike times and potentials, each [B, 10]."""
    hidden = ds.conv(times, params["conv"], surrogate=SURROGATE)
    hidden = ds.earliest_pool(hidden).reshape(len(times), -1)
    out = ds.dense(hidden, params["dense"], surrogate=ds.Window(float("inf")))
    return out, ds.decision_potentials(hidden, params["dense"])


def loss(params: dict, times: ds.SpikeTimes, labels: jax.Array) -> jax.Array:
    out, potentials = forward(params, times)
    target = RULE.target(out, labels, potentials)
    return jnp.mean(ds.temporal_loss(out, target))


def main(epochs: int = 20, seed: int = 0) -> float:
    digits = data.load("digits")
    times, labels = ds.encode(digits.train_images), jnp.asarray(digits.train_labels)
    params = init(jax.random.key(seed))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.3, epochs * 40))

    @jax.jit
    def step(params, state, batch):
        gradient = jax.grad(loss)(params, times[batch], labels[batch])
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in rng.permutation(len(labels))[: 40 * 32].reshape(40, 32):
            params, state = step(params, state, batch)

    decided = ds.predict(*forward(params, ds.encode(digits.test_images)))
    return float(np.mean(np.asarray(decided) == digits.test_labels))


if __name__ == "__main__":
    print(f"{main():.1%} of the test images decided correctly")
