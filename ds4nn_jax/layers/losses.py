"""The temporal loss, and the error's way back through the layers.

An output rule (`rules`) gives target spike times; `temporal_loss` compares them with
the actual ones. Its gradient is the temporal error e = t − target (Eq. 5, 9), which is
0 once the target is met.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from ds4nn_jax.layers import _coding
from ds4nn_jax.types import SpikeTimes

Normalization = Literal["l2", "l1", "sum", "none"]


def temporal_loss(times: SpikeTimes, target: SpikeTimes) -> jax.Array:
    """E = ½·Σ_k (t_k − target_k)²  per image (Eq. 5–6): [B, C], [B, C] -> [B].

    ∂E/∂t = t − target (Eq. 9); the target takes no gradient.
    """
    if jnp.shape(times) != jnp.shape(target):
        raise ValueError(
            f"times {jnp.shape(times)} and target {jnp.shape(target)} differ in shape"
        )
    error = times - jax.lax.stop_gradient(target)
    return 0.5 * jnp.sum(error**2, axis=-1)


def normalize_gradient(x: jax.Array, *, method: Normalization = "l2") -> jax.Array:
    """Identity whose backward pass normalises the error of each sample (Eq. 11).

    δ ← δ/‖δ‖₂ ("l2", as S4NN's code), δ/Σ|δ| ("l1"), δ/Σδ ("sum", Eq. 11 as printed) or
    δ ("none"), sums over all axes but the first. A denominator of zero leaves δ as it
    is. Σδ may be negative or near zero, which flips the sign of the error or makes it
    huge: "sum" exists for comparison only and diverges in training.

    Args:
      x: [B, …].
      method: the norm.

    Returns:
      x.

    Example:
      >>> import jax, jax.numpy as jnp, ds4nn_jax as ds
      >>> jax.grad(lambda x: jnp.sum(x * jnp.array([[3.0, 4.0]])))(jnp.ones((1, 2)))
      Array([[3., 4.]], dtype=float32)
      >>> jax.grad(lambda x: jnp.sum(
      ...     ds.normalize_gradient(x) * jnp.array([[3.0, 4.0]])))(jnp.ones((1, 2)))
      Array([[0.6, 0.8]], dtype=float32)
    """
    if method not in ("l2", "l1", "sum", "none"):
        raise ValueError(f'method must be "l2", "l1", "sum" or "none", got {method!r}')
    if jnp.ndim(x) < 1:
        raise ValueError("x must have a batch axis: [B, …]")
    if method == "none":
        return x
    steps, result = _coding.steps_of(x), _normalized(method, x)
    return result if steps is None else _coding.remember(result, steps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def centre_errors(
    times: SpikeTimes, num_steps: int = 100, share: float = 1.0
) -> SpikeTimes:
    """Identity on spike times whose backward pass subtracts the mean error.

    δ_j ← δ_j − c·[j fired]·Σ_k δ_k·[k fired]/Σ_k [k fired], image by image, sums over
    all neurons of the layer. This mean moves all spikes earlier or later, so
    rates and decision times would drift.

    Args:
      times: [B, …] spike times.
      num_steps: T.
      share: c in [0, 1], how much of it is taken off.

    Returns:
      times.

    Example:
      >>> import jax, jax.numpy as jnp, ds4nn_jax as ds
      >>> times = jnp.array([[3.0, 5.0, 100.0]])  # the third is silent
      >>> jax.grad(lambda t: jnp.sum(
      ...     ds.centre_errors(t) * jnp.array([[1.0, 4.0, 2.0]])))(times)
      Array([[-1.5,  1.5,  2. ]], dtype=float32)
    """
    return times


def _centred_fwd(times: SpikeTimes, num_steps: int, share: float):
    return times, times < num_steps


def _centred_bwd(num_steps: int, share: float, fired: jax.Array, delta: jax.Array):
    axes = tuple(range(1, delta.ndim))
    count = jnp.sum(fired, axes, delta.dtype, keepdims=True)
    total = jnp.sum(jnp.where(fired, delta, 0), axes, keepdims=True)
    return (delta - jnp.where(fired, share * total / jnp.maximum(count, 1), 0),)


centre_errors.defvjp(_centred_fwd, _centred_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized(method: Normalization, x: jax.Array) -> jax.Array:
    return x


def _normalized_fwd(method: Normalization, x: jax.Array):
    return x, None


def _normalized_bwd(method: Normalization, _, delta: jax.Array):
    axes = tuple(range(1, delta.ndim))
    # The largest entry is taken out first: the squares of tiny errors would underflow.
    largest = jnp.max(jnp.abs(delta), axes, keepdims=True)
    delta = delta / jnp.where(largest == 0, 1, largest)
    if method == "l2":
        size = jnp.sqrt(jnp.sum(delta**2, axes, keepdims=True))
    elif method == "l1":
        size = jnp.sum(jnp.abs(delta), axes, keepdims=True)
    else:
        size = jnp.sum(delta, axes, keepdims=True)
    undivided = jnp.where(largest == 0, 1, 1 / largest)
    return (delta / jnp.where(size == 0, undivided, size),)


_normalized.defvjp(_normalized_fwd, _normalized_bwd)
