"""What the engines share: linear maps from spikes to current, and what they answer."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Both engines decide by comparing sums with a threshold, so the sums ask for full
# float32 products; a TPU's bfloat16 or a GPU's TF32 passes would move spike times.
PRECISION = lax.Precision.HIGHEST


class Dense(NamedTuple):
    """All to all: kernel [I, O], input [B, I], current [B, O]."""

    def current(self, spikes: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.dot(spikes, kernel, precision=PRECISION)


class Conv(NamedTuple):
    """Shared weights: kernel [kh, kw, I, O], input [B, H, W, I], NHWC.

    `pads` are ((top, bottom), (left, right)) rows and columns of silent inputs.
    """

    strides: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]

    def current(self, spikes: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            spikes,
            kernel,
            self.strides,
            self.pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=PRECISION,
        )


Synapse = Dense | Conv


class Response(NamedTuple):
    """What a layer does with its input; None where it was not asked for.

    With earliest-spike pooling behind the layer (windows side by side) the arrays hold
    one entry a pooling neuron: of the member of its window that fires first, in row
    order among equals, which is the only one to be taught.

    Attributes:
      times: [B, …] spike times.
      potential: [B, …] highest potential up to the spike, or at it.
      until: [B, …] the first step that reached it.
      member: [B, …] which member of the window fires first, counted in row order.
      counts: [B, 1 or 2, T] int32 spikes of each step: of the layer and, where there is
        pooling, of the pooling neurons.
    """

    times: jax.Array
    potential: jax.Array | None = None
    until: jax.Array | None = None
    member: jax.Array | None = None
    counts: jax.Array | None = None


NO_POOL = (1, 1)


def spikes_per_step(times: jax.Array, num_steps: int) -> jax.Array:
    """[B, T] int32 spikes of each step, of spike times [B, …]."""
    steps = times.reshape(len(times), -1).astype(jnp.int32)
    images = jnp.arange(len(times))[:, None]
    empty = jnp.zeros((len(times), num_steps), jnp.int32)
    return empty.at[images, steps].add(1, mode="drop")  # T, silence, drops out


Padding = str | Sequence[tuple[int, int]]


def explicit_pads(padding: Padding, image, window, strides):
    """Explicit ((top, bottom), (left, right)), checked to leave room for a window."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(
                f'padding must be "SAME", "VALID" or ((top, bottom), (left, right)), '
                f"got {padding!r}"
            )
        padding = lax.padtype_to_pads(image, window, strides, padding)
    pads = tuple(tuple(int(p) for p in side) for side in padding)
    if len(pads) != 2 or any(len(side) != 2 or min(side) < 0 for side in pads):
        raise ValueError(
            f"padding must be ((top, bottom), (left, right)) ≥ 0, got {padding!r}"
        )
    padded = tuple(size + sum(side) for size, side in zip(image, pads, strict=True))
    if any(extent > size for extent, size in zip(window, padded, strict=True)):
        raise ValueError(f"window {window} is larger than the padded image {padded}")
    return pads
