"""Our Linen network inside Flax NNX, trained with NNX's own optimizer.

    python -m experiments.examples.nnx_training

`nnx.bridge.ToNNX` wraps any Linen module; weights become NNX parameters.
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ds4nn_jax as ds
from ds4nn_jax import data


def main(epochs: int = 8, seed: int = 0) -> float:
    digits = data.load("digits")
    times, labels = ds.encode(digits.train_images), jnp.asarray(digits.train_labels)
    network = ds.SpikingNetwork.from_spec("64-200-10", surrogate="window")
    model = nnx.bridge.ToNNX(network, rngs=nnx.Rngs(seed)).lazy_init(times[:1])
    optimizer = nnx.Optimizer(model, optax.adam(0.3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, times, labels):
        def loss(model):
            out = model(times)
            target = ds.rules.Margin(offset=15).target(out, labels)
            return jnp.mean(ds.temporal_loss(out, target))

        optimizer.update(model, nnx.grad(loss)(model))

    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in rng.permutation(len(labels))[: 40 * 32].reshape(40, 32):
            step(model, optimizer, times[batch], labels[batch])

    decided = ds.predict(model(ds.encode(digits.test_images)))
    return float(np.mean(np.asarray(decided) == digits.test_labels))


if __name__ == "__main__":
    print(f"{main():.1%} of the test images decided correctly")
