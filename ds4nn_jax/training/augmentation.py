"""Random changes of training images that keep their labels. Pure, in a key."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ds4nn_jax import _checks
from ds4nn_jax._values import Value


@dataclasses.dataclass(frozen=True)
class Augmentation(Value):
    """What is done to the images of a training step; extend it for more.

    Attributes:
      shift: largest shift of an image in each direction, pixels.
      flip: whether images are mirrored left to right, each with probability ½.
      rotation: largest rotation about the centre either way, degrees, of each image
        with probability ½, see `rotate`.
    """

    shift: int = 0
    flip: bool = False
    rotation: float = 0.0

    def check(self) -> None:
        self.require("shift", self.shift >= 0, "≥ 0 pixels")
        self.require("rotation", 0 <= self.rotation <= 180, "0 … 180 degrees")

    def apply(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] of the same shape and type, changed by `key`."""
        shift_key, flip_key = jax.random.split(key)
        if self.shift:
            images = shift(shift_key, images, pixels=self.shift)
        if self.flip:
            images = flip(flip_key, images)
        if self.rotation:
            turn_key = jax.random.fold_in(key, 2)
            images = rotate(turn_key, images, degrees=self.rotation)
        return images


def shift(key: jax.Array, images: jax.Array, *, pixels: int) -> jax.Array:
    """Moves every image by its own number of pixels, black coming in.

    Args:
      key: random key.
      images: [B, H, W, C].
      pixels: largest shift in each direction, ≥ 0.

    Returns:
      Images of the same shape and type.
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
    """Mirrors each image with probability ½, left to right: [B, H, W, C]."""
    _checks.rank("images", images, "[B, H, W, C]")
    mirrored = jax.random.bernoulli(key, jnp.float32(0.5), (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def rotate(key: jax.Array, images: jax.Array, *, degrees: float) -> jax.Array:
    """Turns each image with probability ½ about its centre, by its own angle, black
    coming in.

    Every pixel takes the value of the nearest one: a mean of neighbours would be darker
    than the bright one and spike later, and a network that learns from blurred edges
    decides crisp ones late. For the same reason half of the images stay as they are.

    Args:
      key: random key.
      images: [B, H, W, C] uint8 or floating.
      degrees: largest angle either way, 0 … 180.

    Returns:
      Images of the same shape and type.
    """
    _checks.rank("images", images, "[B, H, W, C]")
    _, height, width, channels = images.shape
    limit = jnp.float32(degrees * math.pi / 180)
    angles = jax.random.uniform(key, (len(images),), jnp.float32, -limit, limit)
    half = jax.random.bernoulli(
        jax.random.fold_in(key, 1), jnp.float32(0.5), angles.shape
    )
    angles = jnp.where(half, angles, 0)
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    x = jnp.arange(width, dtype=jnp.float32)[None] - (width - 1) / 2

    def turned(image: jax.Array, angle: jax.Array) -> jax.Array:
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        rows = cosine * y - sine * x + (height - 1) / 2
        columns = sine * y + cosine * x + (width - 1) / 2
        nearest = [
            jax.scipy.ndimage.map_coordinates(image[..., c], [rows, columns], order=0)
            for c in range(channels)
        ]
        return jnp.stack(nearest, axis=-1)

    rotated = jax.vmap(turned)(jnp.asarray(images).astype(jnp.float32), angles)
    return rotated.astype(images.dtype)
