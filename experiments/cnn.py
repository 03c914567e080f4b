"""How plain CNNs are trained: the teacher's and the ceiling's."""

import functools
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


def train(
    network: nn.Module,
    optimizer: Callable[[int], optax.GradientTransformation],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    change: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    size: int,
) -> dict:
    """The variables after epochs of batches of a size.

    Args:
      network: of images and `train=`; with batch statistics.
      optimizer: of its parameters, for so many steps.
      loss: of logits [B, C] and labels [B], for each image.
      change: of a key and images: what the network sees of them.
      key: of initial weights, batches and changes.
      images: [N, H, W, C] uint8.
      labels: [N].
      epochs: how many.
      size: of a batch.
    """
    size = min(size, len(images))
    steps = len(images) // size
    chain = optimizer(epochs * steps)
    step = _step(network, chain, loss, change)
    print("compiling …", flush=True)
    first = jax.eval_shape(change, key, images[:1])
    variables = network.init(key, jnp.zeros(first.shape, first.dtype), train=False)
    carry = variables, chain.init(variables["params"])
    for epoch in range(1, epochs + 1):
        clock, means = time.monotonic(), []
        order, drawn = jax.random.split(jax.random.fold_in(key, epoch))
        batches = np.asarray(jax.random.permutation(order, len(images)))
        batches = batches[: steps * size].reshape(steps, size)
        for draw, batch in zip(jax.random.split(drawn, steps), batches, strict=True):
            carry, mean = step(carry, draw, images[batch], labels[batch])
            means.append(mean)
        value, accuracy = np.mean(jax.device_get(means), axis=0)
        print(
            f"epoch {epoch:3d}/{epochs}  loss {value:.4f}  train {accuracy:.2%}"
            f"  |  {time.monotonic() - clock:.1f} s",
            flush=True,
        )
    return carry[0]


def _step(network, optimizer, loss, change) -> Callable:
    """A jitted step: carry, key, images and labels to the carry, loss and accuracy."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: tuple, key: jax.Array, images: jax.Array, labels: jax.Array):
        variables, state = carry
        images = change(key, images)

        def objective(params: dict):
            logits, changed = network.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            value = jnp.mean(loss(logits, labels))
            return value, (changed, value, jnp.mean(logits.argmax(1) == labels))

        params = variables["params"]
        gradient, (changed, *means) = jax.grad(objective, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return ({**changed, "params": params}, state), tuple(means)

    return step


def in_chunks(
    function: Callable[[np.ndarray], jax.Array], images: Any, size: int = 500
) -> np.ndarray:
    """[N, …] of a function of images, some at a time. The last chunk is filled up, so
    that one compilation serves all."""
    images, count = np.asarray(images), len(images)
    chunks = np.arange(-(-count // size) * size).reshape(-1, size) % count
    return np.concatenate([function(images[chunk]) for chunk in chunks])[:count]
