"""Images to spike times: one spike per pixel, the brighter the earlier."""

import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax import _checks
from ds4nn_jax.layers import _coding
from ds4nn_jax.types import SpikeTimes


def encode(images: jax.Array | np.ndarray, *, num_steps: int = 100) -> SpikeTimes:
    """Time-to-first-spike code of pixel intensities.

    t = ⌊(I_max − I)/I_max · T⌋    (Eq. 1)

    The brightest pixel fires at step 0. A black pixel gets T, which means silent: it
    sends nothing.

    Args:
      images: [...] uint8 with I_max = 255, or floating with I_max = 1. A float that is
        k/255 up to rounding, in float16 and bfloat16 too, counts as the grey k.
      num_steps: T, the number of time steps, at most 2²⁴.

    Returns:
      [...] float32 spike times (float64 for float64 images), whole steps in 0 … T.

    Example:
      >>> import numpy as np
      >>> from ds4nn_jax import encode
      >>> encode(np.array([255, 254, 128, 1, 0], np.uint8))  # 100 is silent
      Array([  0.,   0.,  49.,  99., 100.], dtype=float32)
    """
    _checks.num_steps(num_steps)
    return _coding.remember_encoded(spike_times(images, int(num_steps)), int(num_steps))


def spike_times(images: jax.Array | np.ndarray, steps: int) -> SpikeTimes:
    """As `encode`, for a network, which says T once."""
    images = jnp.asarray(_checks.images(images))
    if images.dtype == np.uint8:
        return _grey_times(images, steps).astype(jnp.float32)
    rounding = float(jnp.finfo(images.dtype).eps)
    if images.dtype not in (jnp.float32, jnp.float64):
        images = images.astype(jnp.float32)
    # Rounding must not move a grey to another step, whatever type it comes in. Other
    # intensities lie right at a step by chance only, decimals for instance.
    grey, forgiven = jnp.rint(255 * images), 2 * float(jnp.finfo(images.dtype).eps)
    is_grey = jnp.abs(255 * images - grey) <= max(rounding, forgiven) * grey
    forgiven = min(forgiven * steps, 0.5)
    between = jnp.minimum(jnp.floor((1 - images) * steps + forgiven), steps)
    exact = _grey_times(grey, steps).astype(images.dtype)
    return jnp.where(is_grey, exact, between)


def _grey_times(grey: jax.Array, steps: int) -> jax.Array:
    """⌊(255 − k)·T/255⌋ in integers: T = 255·q + r keeps them below 2³¹."""
    dark = 255 - grey.astype(jnp.int32)
    quotient, rest = divmod(steps, 255)
    return dark * quotient + dark * rest // 255
