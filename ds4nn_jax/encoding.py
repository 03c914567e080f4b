"""Images to spike times and back: one spike per pixel, the brighter the earlier."""

import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax import _checks
from ds4nn_jax.types import SpikeTimes


def encode(images: jax.Array | np.ndarray, *, num_steps: int = 100) -> SpikeTimes:
    """Time-to-first-spike code of pixel intensities.

    t = ⌊(I_max − I)/I_max · T⌋    (Eq. 1)

    The brightest pixel fires at step 0. A black pixel gets T, which means silent: it
    sends nothing.

    Args:
      images: [...] uint8 with I_max = 255, or floating with I_max = 1.
      num_steps: T, the number of time steps.

    Returns:
      [...] float32 spike times (float64 for float64 images), whole steps in 0 … T.

    Raises:
      TypeError: images are neither uint8 nor floating.
      ValueError: T ≤ 0, or an intensity is NaN or outside [0, 1].

    Example:
      >>> import numpy as np
      >>> from ds4nn_jax import encode
      >>> encode(np.array([255, 254, 128, 1, 0], np.uint8))  # 100 is silent
      Array([  0.,   0.,  49.,  99., 100.], dtype=float32)
    """
    _checks.num_steps(num_steps)
    if not isinstance(images, jax.Array):
        images = np.asarray(images)
    if images.dtype == np.uint8:
        # 255·T stays far below 2³¹, so whole-number division is exact.
        dark = 255 - jnp.asarray(images).astype(jnp.int32)
        return (dark * num_steps // 255).astype(jnp.float32)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images must be uint8 (0 … 255) or floating (0 … 1), got {images.dtype}"
        )
    _checks.intensities(images)
    images = jnp.asarray(images)
    if images.dtype not in (jnp.float32, jnp.float64):
        images = images.astype(jnp.float32)
    # k/255 in floating point may land one rounding below a whole step: a few units in
    # the last place are forgiven so that floats and uint8 give the same spikes.
    forgiven = 2 * jnp.finfo(images.dtype).eps * num_steps
    return jnp.floor((1 - images) * num_steps + forgiven)


def raster(times: SpikeTimes, *, num_steps: int = 100) -> jax.Array:
    """Spike train S(t) = [t_i = t] of Eq. 2: times [...] -> bool [T, ...]."""
    _checks.num_steps(num_steps)
    times = jnp.asarray(times)
    steps = jnp.arange(num_steps, dtype=times.dtype)
    return times[None] == steps.reshape((num_steps,) + (1,) * times.ndim)


def decode(times: SpikeTimes, *, num_steps: int = 100) -> jax.Array:
    """Intensity shown by a spike time, for display: I = 1 − t/T; silence is black.

    Inverts `encode` up to its rounding: 0 ≤ decode(encode(I)) − I < 1/T (but I = 0 is
    exact).
    """
    _checks.num_steps(num_steps)
    return 1 - jnp.asarray(times) / num_steps
