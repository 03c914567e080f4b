"""Steps for the weights of spiking layers: links of an optax chain.

A layer's weights are a kernel [..., O]; those of one neuron are all but the last axis.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib


def orthogonal_steps(momentum: float = 0.9) -> optax.GradientTransformation:
    """Steps whose singular values are all the same (Muon; Jordan et al. 2024).

    M ← μ·M + (1 − μ)·G, and of the singular value decomposition M = U·Σ·Vᵀ the step
    keeps U·Vᵀ, scaled to a root mean square of 1, with M [K, O] all weights K of the
    neurons O of a layer. Spikes only ever add, so gradients of spiking layers have few
    large singular values: of the squared gradient of the second convolution of
    `fashion.cfg` 96 % lay in the first of 128 directions at its first weights, 51 % at
    the end. Adam sees single weights and no directions; here each one in which the
    neurons can differ gets the same share of the step.

    Args:
      momentum: μ in [0, 1), Nesterov's.
    """

    def rows_and_columns(updates: optax.Updates) -> optax.Updates:
        return jax.tree.map(
            lambda u: optax.contrib.MuonDimensionNumbers(
                tuple(range(u.ndim - 1)), u.ndim - 1
            ),
            updates,
        )

    def rescaled(update: jax.Array) -> jax.Array:
        rank = min(update.size // update.shape[-1], update.shape[-1])
        return update * math.sqrt(update.size / rank)

    return optax.chain(
        optax.contrib.scale_by_muon(
            beta=momentum, weight_dimension_numbers=rows_and_columns
        ),
        optax.stateless(lambda updates, _: jax.tree.map(rescaled, updates)),
    )


def damp_common(factor: float) -> optax.GradientTransformation:
    """Shortens the part of a step that all weights of a neuron have in common.

    Spikes only ever add: inputs of a neuron all have the same sign, so its potential
    follows the mean of its weights far more steeply than any difference between them,
    and steps that suit the differences throw the potential about. u ← u − (1 − f)·ū
    with ū the mean over a neuron's weights; f = 0 is gradient centralisation (Yong et
    al. 2020).
    """

    def damped(update: jax.Array) -> jax.Array:
        axes = tuple(range(update.ndim - 1))
        return update - (1 - factor) * jnp.mean(update, axes, keepdims=True)

    return optax.stateless(lambda updates, _: jax.tree.map(damped, updates))


def hold_norms() -> optax.GradientTransformation:
    """Every neuron keeps the norm of its weights: w + u ← (w + u)·‖w‖/‖w + u‖.

    Behind all links of an optax chain that change the step.
    """

    def held(update: jax.Array, weights: jax.Array) -> jax.Array:
        axes = tuple(range(weights.ndim - 1))
        moved = weights + update
        norm = functools.partial(jnp.linalg.vector_norm, axis=axes, keepdims=True)
        length = norm(moved)
        return moved * (norm(weights) / jnp.where(length == 0, 1, length)) - weights

    return optax.stateless(lambda updates, params: jax.tree.map(held, updates, params))


def learn_norms() -> optax.GradientTransformation:
    """Norms follow their own gradient: ‖w + u‖ becomes ‖w‖ + w·u/‖w‖.

    A step across a weight vector makes it longer by ‖u‖²/2‖w‖, whatever its sign. With
    steps on the scale of the weights that grows without end, and in a network of
    spiking neurons larger weights fire earlier; this takes it out and leaves the part
    of the step along the vector. Behind all links of an optax chain that change the
    step.
    """

    def learned(update: jax.Array, weights: jax.Array) -> jax.Array:
        axes = tuple(range(weights.ndim - 1))
        moved = weights + update
        norm = functools.partial(jnp.linalg.vector_norm, axis=axes, keepdims=True)
        before, length = norm(weights), norm(moved)
        along = jnp.sum(weights * update, axes, keepdims=True)
        wanted = before + along / jnp.where(before == 0, 1, before)
        scale = jnp.maximum(wanted, 0) / jnp.where(length == 0, 1, length)
        return jnp.where(before == 0, update, moved * scale - weights)

    return optax.stateless(
        lambda updates, params: jax.tree.map(learned, updates, params)
    )


class AverageState(NamedTuple):
    """Of `average_weights`: steps taken, and the average of the weights after each."""

    steps: jax.Array
    average: optax.Params


def average_weights(decay: float) -> optax.GradientTransformation:
    """Leaves steps as they are and keeps a running average of the weights they lead to.

    w̄ ← d·w̄ + (1 − d)·w with d = min(decay, (1 + n)/(10 + n)) after n steps, so that
    initial weights are soon forgotten. Steps of spiking networks are noisy: spikes come
    or fail to come. The average is often where a lower learning rate would have led.
    The last link of an optax chain; `averaged` finds the average.
    """

    def init(params: optax.Params) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state: AverageState, params=None):
        weights = optax.apply_updates(params, updates)
        kept = jnp.minimum(decay, (1 + state.steps) / (10 + state.steps))
        average = optax.incremental_update(weights, state.average, 1 - kept)
        return updates, AverageState(state.steps + 1, average)

    return optax.GradientTransformation(init, update)


def averaged(state: optax.OptState) -> optax.Params:
    """The average that `average_weights` keeps in the state of a chain.

    Raises:
      KeyError: the chain has no such link.
    """
    average = optax.tree.get(state, "average")
    if average is None:
        raise KeyError("no average_weights in this optimizer")
    return average
