"""Earliest-spike pooling: the member of a window that fires first speaks for it."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def members(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int]
) -> list[jax.Array]:
    """Members of all windows in row order, each [B, H', W', O] of x [B, H, W, O]."""
    batch, height, width, features = x.shape
    rows, columns = height - window[0] + 1, width - window[1] + 1
    return [
        lax.slice(
            x,
            (0, row, column, 0),
            (batch, row + rows, column + columns, features),
            (1, *strides, 1),
        )
        for row in range(window[0])
        for column in range(window[1])
    ]


def earliest(
    times: jax.Array, window: tuple[int, int], strides: tuple[int, int]
) -> jax.Array:
    """Elementwise in both directions; the strict < leaves a tie to the first member."""
    return functools.reduce(
        lambda first, t: jnp.where(t < first, t, first), members(times, window, strides)
    )


def first_member(times: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Index in row order of the member that fires first, as a floating array."""
    first, *others = members(times, window, window)
    index = jnp.zeros_like(first)
    for k, t in enumerate(others, start=1):
        index = jnp.where(t < first, k, index)
        first = jnp.minimum(t, first)
    return index


def of_member(x: jax.Array, member: jax.Array, window: tuple[int, int]) -> jax.Array:
    """What x [B, H, W, O] holds for the given member of each window [B, H', W', O]."""
    choices = members(x, window, window)
    return functools.reduce(
        lambda chosen, k: jnp.where(member == k, choices[k], chosen),
        range(1, len(choices)),
        choices[0],
    )


def to_member(x: jax.Array, member: jax.Array, window: tuple[int, int]) -> jax.Array:
    """The transpose of `of_member`: x at the given members, 0 at all others."""
    (rows, columns), (batch, height, width, features) = window, x.shape
    index = jnp.arange(rows * columns, dtype=member.dtype)
    chosen = member[:, :, None, :, None] == index.reshape(rows, 1, columns, 1)
    spread = jnp.where(chosen, x[:, :, None, :, None], 0)
    return spread.reshape(batch, height * rows, width * columns, features)
