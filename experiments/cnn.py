"""How plain CNNs are trained: the teacher's and the ceiling's."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

Carry = tuple[dict, Any]  # the variables, the optimizer's state


def train_step(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    change: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[..., tuple[Carry, tuple[jax.Array, jax.Array]]]:
    """A jitted step: carry, key, images and labels to the carry, loss and accuracy.

    Args:
      network: of images and `train=`; with batch statistics.
      optimizer: of its parameters.
      loss: of logits [B, C] and labels [B], for each image.
      change: of a key and images: what the network sees of them.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Carry, key: jax.Array, images: jax.Array, labels: jax.Array):
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


def epoch(
    step: Callable,
    carry: Carry,
    keys: Iterable[jax.Array],
    batches: Sequence[np.ndarray],
    images: Any,
    labels: Any,
) -> tuple[Carry, np.ndarray]:
    """A step for each batch of indices; the carry, and means of loss and accuracy."""
    means = []
    for key, batch in zip(keys, batches, strict=True):
        carry, mean = step(carry, key, images[batch], labels[batch])
        means.append(mean)
    return carry, np.mean(jax.device_get(means), axis=0)


def in_chunks(
    function: Callable[[np.ndarray], jax.Array], images: Any, size: int = 500
) -> np.ndarray:
    """[N, …] of a function of images, some at a time. The last chunk is filled up, so
    that one compilation serves all."""
    images, count = np.asarray(images), len(images)
    chunks = np.arange(-(-count // size) * size).reshape(-1, size) % count
    return np.concatenate([function(images[chunk]) for chunk in chunks])[:count]
