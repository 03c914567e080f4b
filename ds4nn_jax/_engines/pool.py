"""Earliest-spike pooling: a window fires with the first spike in it."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def taps(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int]
) -> list[jax.Array]:
    """Entries of all windows in row order, each [B, H', W', O] of x [B, H, W, O]."""
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
    """Elementwise in both directions; the strict < gives a tie to the first entry."""
    return functools.reduce(
        lambda first, t: jnp.where(t < first, t, first), taps(times, window, strides)
    )


def argmin(times: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Index in row order of each window's first spike, as a floating array."""
    first, *others = taps(times, window, window)
    index = jnp.zeros_like(first)
    for k, t in enumerate(others, start=1):
        index = jnp.where(t < first, k, index)
        first = jnp.minimum(t, first)
    return index


def gather(x: jax.Array, argmin: jax.Array, window: tuple[int, int]) -> jax.Array:
    """The entry of x [B, H, W, O] at the argmin of each window [B, H', W', O]."""
    entries = taps(x, window, window)
    return functools.reduce(
        lambda chosen, k: jnp.where(argmin == k, entries[k], chosen),
        range(1, len(entries)),
        entries[0],
    )


def scatter(x: jax.Array, argmin: jax.Array, window: tuple[int, int]) -> jax.Array:
    """The transpose of `gather`: x at the argmin of each window, 0 elsewhere."""
    (rows, columns), (batch, height, width, features) = window, x.shape
    index = jnp.arange(rows * columns, dtype=argmin.dtype)
    chosen = argmin[:, :, None, :, None] == index.reshape(rows, 1, columns, 1)
    spread = jnp.where(chosen, x[:, :, None, :, None], 0)
    return spread.reshape(batch, height * rows, width * columns, features)
