"""What the engines share: linear maps from spikes to currents, and their response."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ds4nn_jax._engines.pool import taps


class Dense(NamedTuple):
    """All to all: kernel [I, O], input [B, I], current [B, O].

    `whole`: weights are integers of 8 bits.
    """

    whole: bool = False

    def current(self, spikes: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.dot(spikes, kernel, **_exact(kernel))

    def windows(self, times: jax.Array, kernel: jax.Array, fill: float) -> jax.Array:
        """[B, K]: the inputs of each image's neurons."""
        return times


class Conv(NamedTuple):
    """Shared weights: kernel [kh, kw, I, O], input [B, H, W, I], NHWC.

    `pads` are ((top, bottom), (left, right)) rows and columns of silent inputs, `whole`
    as for `Dense`.
    """

    strides: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    whole: bool = False

    def current(self, spikes: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            spikes,
            kernel,
            self.strides,
            self.pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            **_exact(kernel),
        )

    def windows(self, times: jax.Array, kernel: jax.Array, fill: float) -> jax.Array:
        """[B, H', W', K]: the inputs of each place, in the order of a kernel's rows."""
        times = jnp.pad(times, ((0, 0), *self.pads, (0, 0)), constant_values=fill)
        window = kernel.shape[0], kernel.shape[1]
        return jnp.concatenate(taps(times, window, self.strides), axis=-1)


Synapse = Dense | Conv


def pulse_steps(count: int, num_steps: int) -> np.ndarray:
    """[P] steps t_p = ⌊p·T/P⌋ at which the reference neurons of a layer spike."""
    return np.arange(count) * num_steps // max(count, 1)


def pulse_currents(pulses: jax.Array, num_steps: int) -> jax.Array:
    """Weights [P, O] of reference neurons → their current at each step [T, O]."""
    count, outputs = pulses.shape
    if count == num_steps:
        return pulses
    silence = jnp.zeros((num_steps, outputs), pulses.dtype)
    return silence.at[pulse_steps(count, num_steps)].add(pulses)


def _exact(kernel: jax.Array) -> dict[str, Any]:
    """Both engines decide by comparing sums with a threshold, so products are those of
    full float32: a TPU's bfloat16 or a GPU's TF32 passes would move spike times. Those
    of slices in bfloat16 are exact, and summed in float32."""
    if kernel.dtype == jnp.bfloat16:
        return dict(preferred_element_type=jnp.float32)
    return dict(precision=lax.Precision.HIGHEST)


def slices(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """Three bfloat16 arrays whose exact sum is a float32 kernel.

    8 + 8 + 8 bits of a mantissa of 24. `reduce_precision`, because XLA may drop a
    conversion there and back.
    """
    rest, pieces = kernel, []
    for _ in range(3):
        piece = lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        pieces.append(piece.astype(jnp.bfloat16))
        rest = rest - piece
    return tuple(pieces)


def current_on_matrix_units(
    synapse: Synapse, spikes: jax.Array, kernel: jax.Array
) -> jax.Array:
    """`current` of spikes that are 0 or 1, as three bfloat16 products in one.

    Spikes are exact in bfloat16, a weight is the sum of three (`slices`), and sums are
    taken in float32: so the currents are float32's, up to its rounding, at the speed
    of a matrix unit. TF32, or bfloat16 alone, would move spike times. Integers of
    8 bits are exact in bfloat16: one product.
    """
    if synapse.whole:
        low = spikes.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
        return synapse.current(*low).astype(kernel.dtype)
    if kernel.dtype != jnp.float32:
        return synapse.current(spikes, kernel)
    sliced = jnp.concatenate(slices(kernel), axis=-1)
    currents = synapse.current(spikes.astype(jnp.bfloat16), sliced)
    first, second, third = jnp.split(currents, 3, axis=-1)
    return (third + second) + first


def current(synapse: Synapse, spikes: jax.Array, kernel: jax.Array) -> jax.Array:
    """`synapse.current` of spikes that are 0 or 1, as suits the platform."""
    return lax.platform_dependent(
        spikes,
        kernel,
        cpu=synapse.current,
        default=functools.partial(current_on_matrix_units, synapse),
    )


class Response(NamedTuple):
    """What a layer does with its input; None where it is not computed.

    With earliest-spike pooling behind the layer (windows side by side) the arrays have
    one entry for each pooling neuron: that of the first neuron of its window to fire
    (among equals the first in row order), the only one that gets an error.

    Attributes:
      times: [B, …] spike times.
      potential: [B, …] highest potential up to the spike, or at it.
      end: [B, …] the first step that reached it: the end of the integration.
      argmin: [B, …] index of that neuron in its window, in row order.
      counts: [B, 1 or 2, T] int32 spikes of each step: of the layer and, where there is
        pooling, of the pooling neurons.
    """

    times: jax.Array
    potential: jax.Array | None = None
    end: jax.Array | None = None
    argmin: jax.Array | None = None
    counts: jax.Array | None = None


NO_POOL = (1, 1)


def flat(x: jax.Array) -> jax.Array:
    """[B, …] → [B, N], also where B = 0."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def spikes_per_step(times: jax.Array, num_steps: int) -> jax.Array:
    """[B, T] int32 spikes of each step, of spike times [B, …]."""
    steps = flat(times).astype(jnp.int32)
    batch = times.shape[0]  # not len: a batch of any size is exported, too
    images = jnp.arange(batch)[:, None]
    empty = jnp.zeros((batch, num_steps), jnp.int32)
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
