"""Refusals of bad input, each naming what was wrong and what would be right.

Shapes, types and hyperparameters are checked always (when traced, at no run-time
cost). Values are checked outside `jit`, where that needs no wait: NumPy arrays and
arrays on CPUs; single numbers anywhere.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST_STEPS = 2**24  # beyond it float32 does not tell whole numbers apart


def is_traced(x: Any) -> bool:
    """Whether x has no values yet."""
    return isinstance(x, jax.core.Tracer)


def at_hand(x: Any) -> bool:
    """Whether the values of x can be looked at here: not those of an accelerator, which
    would have to be waited for and copied."""
    if is_traced(x):
        return False
    on_devices = x.devices() if isinstance(x, jax.Array) else ()
    return all(device.platform == "cpu" for device in on_devices)


def _is_integer(x: Any, low: int, high: float = math.inf) -> bool:
    try:
        return not isinstance(x, bool) and low <= operator.index(x) <= high
    except TypeError:
        return False


def num_steps(steps: int) -> None:
    if not _is_integer(steps, 1):
        raise ValueError(f"num_steps must be a positive whole number, got {steps!r}")
    if steps > MOST_STEPS:
        raise ValueError(
            f"num_steps must be at most 2²⁴ = {MOST_STEPS:,}, got {steps:,}: beyond it "
            "float32 does not tell steps apart"
        )


def array(x: Any) -> jax.Array | np.ndarray:
    """As an array in this machine's byte order, which is all that JAX takes."""
    if isinstance(x, jax.Array):
        return x
    x = np.asarray(x)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _on_host(x: Any) -> jax.Array | np.ndarray:
    """As `array`, of the type that JAX gives it; NumPy arrays stay where they are."""
    x = array(x)
    if isinstance(x, jax.Array):
        return x
    with np.errstate(over="ignore"):  # what becomes infinite is refused as such
        return x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)


def threshold(values: jax.typing.ArrayLike, outputs: int) -> jax.Array | np.ndarray:
    """θ of all outputs, or one of each [O]."""
    if not isinstance(values, jax.Array):
        values = np.asarray(values, float)
    if values.shape not in ((), (outputs,)):
        raise ValueError(
            f"threshold must be a number or one of each output [O] = ({outputs},), "
            f"got shape {values.shape}"
        )
    if at_hand(values):
        wrong = ~(np.isfinite(values) & (np.asarray(values) > 0))
        if wrong.any():
            first = np.asarray(values)[wrong].flat[0]
            raise ValueError(f"threshold must be a finite number > 0 mV, got {first}")
    return values


def urgency(value: Any) -> jax.Array | float:
    if is_traced(value):
        return value
    number = float(value)
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"urgency must be a finite number ≥ 0 mV a step, got {number}")
    return number


def pulses(values: jax.Array | np.ndarray, outputs: int, steps: int) -> jax.Array:
    """Weights [P, O] of reference neurons, of which no two spike at once."""
    values = _on_host(values)
    if not jnp.issubdtype(values.dtype, jnp.number):
        raise TypeError(f"pulses must be numbers, got {values.dtype}")
    if values.ndim != 2 or values.shape[1] != outputs or len(values) > steps:
        raise ValueError(
            f"pulses must have shape [P, O] with P ≤ T = {steps} and O = {outputs}, "
            f"got {values.shape}"
        )
    finite("pulses", values)
    return jnp.asarray(values)


def pulse_counts(counts: tuple[int, ...], layers: int, steps: int) -> None:
    integers = all(isinstance(n, int) and not isinstance(n, bool) for n in counts)
    if not integers or not all(0 <= n <= steps for n in counts) or len(counts) > layers:
        raise ValueError(
            f"pulses must be whole numbers in 0 … T = {steps}, no more than one for "
            f"each of the {layers} layers with weights, got {counts!r}"
        )


def rank(name: str, x: jax.Array, axes: str) -> None:
    """`axes` names the axes, as in "[B, H, W, I]"."""
    expected = axes.count(",") + 1
    if jnp.ndim(x) != expected:
        raise ValueError(
            f"{name} must have {expected} axes {axes}, got shape {jnp.shape(x)}"
        )


def pair(name: str, value: Sequence[int]) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(v, int) and v > 0 for v in pair):
        raise ValueError(f"{name} must be two positive whole numbers, got {value!r}")
    return pair


def times_and_kernel(
    times: jax.Array | np.ndarray,
    kernel: jax.Array | np.ndarray,
    steps: int,
    of_times: str,
    of_kernel: str,
) -> tuple[jax.Array, jax.Array]:
    """Both as arrays of one floating type that have these axes and fit; values are
    checked where they are at hand."""
    num_steps(steps)
    times = spike_times(times, steps)
    kernel = _on_host(kernel)
    if not (jnp.issubdtype(kernel.dtype, jnp.floating) or kernel.dtype == jnp.int8):
        raise TypeError(f"kernel must be floating or int8, got {kernel.dtype}")
    finite("kernel", kernel)
    kernel = jnp.asarray(kernel)
    dtype = jnp.promote_types(times.dtype, kernel.dtype)
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(
            f"spike times {times.dtype} and kernel {kernel.dtype} must be float32 or "
            "float64: narrower types cannot hold potentials near the threshold"
        )
    times, kernel = times.astype(dtype), kernel.astype(dtype)
    rank("times", times, of_times)
    rank("kernel", kernel, of_kernel)
    if times.shape[-1] != kernel.shape[-2]:
        raise ValueError(
            f"times {times.shape} have {times.shape[-1]} input features, "
            f"kernel {kernel.shape} expects {kernel.shape[-2]}"
        )
    if 0 in kernel.shape:
        raise ValueError(f"kernel must not be empty, got shape {kernel.shape}")
    return times, kernel


def spike_times(times: jax.Array | np.ndarray, steps: int | None = None) -> jax.Array:
    """Times as a floating array; whole steps 0 … T where values are at hand."""
    times = _on_host(times)
    if not jnp.issubdtype(times.dtype, jnp.floating):
        raise TypeError(
            f"spike times must be a floating array, got {times.dtype}: "
            "encode images with ds4nn_jax.encode, or cast whole steps to float32"
        )
    if at_hand(times):
        values = np.asarray(times)
        wrong = ~((values >= 0) & (values == np.floor(values)))
        if steps is not None:
            wrong |= values > steps
        if wrong.any():
            top = "T" if steps is None else f"T = {steps}"
            raise ValueError(
                f"spike times must be whole steps 0 … {top} ({top} is silent), "
                f"got {values[wrong].flat[0]}"
            )
    return jnp.asarray(times)


def potentials(values: jax.Array | None, times: jax.Array) -> None:
    shape = None if values is None else jnp.shape(values)
    if shape != times.shape:
        raise ValueError(
            f"potentials must have the shape of times {times.shape}, got {shape}"
        )


def finite(name: str, x: jax.Array | np.ndarray) -> None:
    if at_hand(x):
        wrong = ~np.isfinite(np.asarray(x))
        if wrong.any():
            raise ValueError(
                f"{name} must be finite, got {wrong.sum()} NaN or infinite of "
                f"{wrong.size} values"
            )


def finite_weights(params: Mapping) -> None:
    for layer, arrays in params["params"].items():
        for name, array in arrays.items():
            finite(f"{name} of {layer}", array)


def bits(number: Any) -> None:
    if not _is_integer(number, 1, 8):
        raise ValueError(f"bits must be a whole number in 1 … 8, got {number!r}")


def images(x: Any) -> jax.Array | np.ndarray:
    """Images of any shape as an array, uint8 or floating in [0, 1]."""
    x = array(x)
    if x.dtype == np.uint8:
        return x
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"images must be uint8 (0 … 255) or floating (0 … 1), got {x.dtype}"
        )
    if at_hand(x):
        values = np.asarray(x)
        if not ((values >= 0) & (values <= 1)).all():  # NaN included
            raise ValueError(
                "floating images must lie in [0, 1], got values from "
                f"{values.min()} to {values.max()}: divide by I_max, or pass uint8"
            )
    return x


def some_images(x: Any) -> jax.Array | np.ndarray:
    """As `images`, [n, …] with n > 0."""
    x = array(x)
    if not x.ndim or not len(x):
        raise ValueError("no images")
    return images(x)


def pairs(images: Any, targets: Any, classes: int) -> tuple[Any, Any]:
    """Images [n, …] and labels [n] as arrays, whatever container they come in.

    By position: a pandas Series is its values in their order, not by its index.

    Args:
      images: [n, …] uint8, or floating in [0, 1].
      targets: [n] integers 0 … C−1, or one-hot [n, C].
      classes: C.
    """
    images, targets = some_images(images), array(targets)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise ValueError(
            f"images {images.shape} look channels-first [n, C, H, W]: "
            "np.moveaxis(images, 1, -1) makes them [n, H, W, C]"
        )
    if targets.dtype.kind in "OUS":
        raise TypeError(
            f"labels must be integers 0 … {classes - 1}, got {targets.ravel()[:1]}: "
            "np.unique(labels, return_inverse=True) numbers them"
        )
    of_numpy = not isinstance(targets, jax.Array)
    if targets.shape == (len(images), classes) and classes > 1:
        hot = targets == 1
        if not ((hot | (targets == 0)).all() and (hot.sum(axis=1) == 1).all()):
            raise ValueError(
                f"labels {targets.shape} must be one-hot, with a single 1 for each "
                "image; shares of classes are soft_labels"
            )
        targets = hot.argmax(axis=1)
    numbers = labels(targets, len(images), classes)
    return images, np.asarray(numbers) if of_numpy else numbers


def labels(values: jax.Array | np.ndarray, batch: int, classes: int) -> jax.Array:
    """Labels [B] as whole numbers 0 … C−1."""
    values = array(values)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {values.dtype}")
    if values.shape != (batch,):
        column = values.shape == (batch, 1)
        raise ValueError(
            f"labels must have shape [B] = ({batch},), got {values.shape}"
            f"{': labels[:, 0] has it' if column else ''}"
        )
    if at_hand(values) and values.size:
        low, high = np.asarray(values).min(), np.asarray(values).max()
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels must lie in 0 … {classes - 1}, got {low} … {high}"
            )
    return jnp.asarray(values.astype(np.int32))


def soft_labels(values: jax.Array | np.ndarray, batch: int, classes: int) -> jax.Array:
    """Soft labels [B, C]: how much of each image belongs to each class."""
    values = _on_host(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"soft labels must be floating, got {values.dtype}")
    if values.shape != (batch, classes):
        raise ValueError(
            f"soft labels must have shape [B, C] = {(batch, classes)}, "
            f"got {values.shape}"
        )
    if at_hand(values) and values.size:
        rows = np.asarray(values)
        sums = rows.sum(axis=1, dtype=np.float32)  # of float16 too: it rounds by 5e-4
        holds = (rows >= 0).all(axis=1) & (np.abs(sums - 1) < 1e-3)
        if not holds.all():  # NaN included
            image = int(np.argmin(holds))
            raise ValueError(
                "soft labels must be shares ≥ 0 that sum to 1 for each image, "
                f"image {image} has {rows[image].tolist()}"
            )
    return jnp.asarray(values)
