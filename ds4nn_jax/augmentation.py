"""Random changes of training images that keep their labels. Pure, in a key."""

import dataclasses

import jax
import jax.numpy as jnp

from ds4nn_jax import _checks
from ds4nn_jax._values import Value


@dataclasses.dataclass(frozen=True)
class Augmentation(Value):
    """What is done to the images of a training step; extend it for more.

    Attributes:
      shift: images are moved by up to so many pixels in each direction.
      flip: whether images are mirrored left to right, every other one.
    """

    shift: int = 0
    flip: bool = False

    def check(self) -> None:
        self.require("shift", self.shift >= 0, "≥ 0 pixels")

    def apply(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] of the same shape and type, changed by `key`."""
        shift_key, flip_key = jax.random.split(key)
        if self.shift:
            images = shift(shift_key, images, pixels=self.shift)
        if self.flip:
            images = flip(flip_key, images)
        return images


def shift(key: jax.Array, images: jax.Array, *, pixels: int) -> jax.Array:
    """Moves every image by its own whole number of pixels, black coming in.

    Args:
      key: random key.
      images: [B, H, W, C].
      pixels: largest shift in each direction, ≥ 0.

    Returns:
      Images of the same shape and type.

    Raises:
      ValueError: pixels < 0, or images of another rank.
    """
    _checks.rank("images", images, "[B, H, W, C]")
    if pixels < 0:
        raise ValueError(f"pixels must be ≥ 0, got {pixels}")
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    corners = jax.random.randint(
        key, (len(images), 2), 0, 2 * pixels + 1, dtype=jnp.int32
    )

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        start = (*corner, jnp.zeros_like(corner[0]))
        return jax.lax.dynamic_slice(image, start, images.shape[1:])

    return jax.vmap(cut)(padded, corners)


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors every other image, on average, left to right: [B, H, W, C].

    Raises:
      ValueError: images of another rank.
    """
    _checks.rank("images", images, "[B, H, W, C]")
    mirrored = jax.random.bernoulli(key, jnp.float32(0.5), (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)
