"""How input spikes become input current: the linear maps that layers are made of."""

from typing import NamedTuple

import jax
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
