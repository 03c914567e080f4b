"""Input checks. Each error names the wrong value and the valid ones.

Shapes, types and hyperparameters are checked always (when traced, at no run-time
cost). Values are checked outside `jit`, where that needs no wait: NumPy arrays and
arrays on CPUs; single numbers anywhere.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST_STEPS = 2**24  # beyond it float32 does not tell integers apart


def is_traced(x: Any) -> bool:
    """Whether x has no values yet."""
    return isinstance(x, jax.core.Tracer)


def readable(x: Any) -> bool:
    """Whether the values of x can be looked at here: not those of an accelerator, which
    would have to be waited for and copied."""
    if is_traced(x):
        return False
    on_devices = x.devices() if isinstance(x, jax.Array) else ()
    return all(device.platform == "cpu" for device in on_devices)


def need(holds: Any, rule: str, value: Any, kind: type[Exception] = ValueError) -> None:
    """Raises, with the rule and what broke it, unless it holds."""
    if not holds:
        raise kind(f"{rule}, got {value}")


def _need_type(rule: str, x: Any, kind: Any) -> None:
    need(jnp.issubdtype(x.dtype, kind), rule, x.dtype, TypeError)


def _need_all(rule: str, x: Any, holds: Callable) -> None:
    """The same of every value of x, where they are at hand: the first that breaks the
    rule is named."""
    if readable(x):
        values = np.asarray(x)
        wrong = ~holds(values)
        if wrong.any():
            need(False, rule, values[wrong].flat[0])


def _is_integer(x: Any, low: int, high: float = math.inf) -> bool:
    try:
        return not isinstance(x, bool) and low <= operator.index(x) <= high
    except TypeError:
        return False


def num_steps(steps: int) -> None:
    whole = _is_integer(steps, 1)
    need(whole, "num_steps must be a positive integer", repr(steps))
    most = f"at most 2²⁴ = {MOST_STEPS:,}: beyond it float32 does not tell steps apart"
    need(steps <= MOST_STEPS, f"num_steps must be {most}", steps)


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
    rule = f"threshold must be a number or one of each output [O] = ({outputs},)"
    need(values.shape in ((), (outputs,)), rule, f"shape {values.shape}")
    positive = lambda theta: np.isfinite(theta) & (theta > 0)  # noqa: E731
    _need_all("threshold must be a finite number > 0 mV", values, positive)
    return values


def urgency(value: Any) -> jax.Array | float:
    if is_traced(value):
        return value
    number = float(value)
    fits = number >= 0 and math.isfinite(number)
    need(fits, "urgency must be a finite number ≥ 0 mV a step", number)
    return number


def pulses(values: jax.Array | np.ndarray, outputs: int, steps: int) -> jax.Array:
    """Weights [P, O] of reference neurons, of which no two spike at once."""
    values = _on_host(values)
    _need_type("pulses must be numbers", values, jnp.number)
    fits = values.ndim == 2 and values.shape[1] == outputs and len(values) <= steps
    rule = f"pulses must have shape [P, O] with P ≤ T = {steps} and O = {outputs}"
    need(fits, rule, values.shape)
    finite("pulses", values)
    return jnp.asarray(values)


def pulse_counts(counts: tuple[int, ...], layers: int, steps: int) -> None:
    rule = f"pulses must be integers in 0 … T = {steps}, no more than one for "
    rule += f"each of the {layers} layers with weights"
    fits = all(_is_integer(n, 0, steps) for n in counts) and len(counts) <= layers
    need(fits, rule, repr(counts))


def rank(name: str, x: jax.Array, axes: str) -> None:
    """`axes` names the axes, as in "[B, H, W, I]"."""
    count = axes.count(",") + 1
    rule = f"{name} must have {count} axes {axes}"
    need(jnp.ndim(x) == count, rule, f"shape {jnp.shape(x)}")


def pair(name: str, value: Sequence[int]) -> tuple[int, int]:
    sizes = tuple(value) if isinstance(value, Sequence) else ()
    fits = len(sizes) == 2 and all(isinstance(v, int) and v > 0 for v in sizes)
    need(fits, f"{name} must be two positive integers", repr(value))
    return sizes[0], sizes[1]


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
    if kernel.dtype != jnp.int8:
        _need_type("kernel must be floating or int8", kernel, jnp.floating)
    finite("kernel", kernel)
    kernel = jnp.asarray(kernel)
    dtype = jnp.promote_types(times.dtype, kernel.dtype)
    rule = "spike times and kernel must be float32 or float64, to hold potentials"
    need(dtype in (jnp.float32, jnp.float64), rule, dtype, TypeError)
    times, kernel = times.astype(dtype), kernel.astype(dtype)
    rank("times", times, of_times)
    rank("kernel", kernel, of_kernel)
    if times.shape[-1] != kernel.shape[-2]:
        raise ValueError(
            f"times {times.shape} have {times.shape[-1]} input features, "
            f"kernel {kernel.shape} expects {kernel.shape[-2]}"
        )
    need(0 not in kernel.shape, "kernel must not be empty", f"shape {kernel.shape}")
    return times, kernel


def spike_times(times: jax.Array | np.ndarray, steps: int | None = None) -> jax.Array:
    """Times as a floating array; whole steps 0 … T where values are at hand."""
    times = _on_host(times)
    rule = "spike times must be a floating array (encode images with ds4nn_jax.encode)"
    _need_type(rule, times, jnp.floating)
    top, last = ("T", math.inf) if steps is None else (f"T = {steps}", steps)
    whole = lambda t: (t >= 0) & (t == np.floor(t)) & (t <= last)  # noqa: E731
    rule = f"spike times must be whole steps 0 … {top} ({top} is silent)"
    _need_all(rule, times, whole)
    return jnp.asarray(times)


def potentials(values: jax.Array | None, times: jax.Array) -> None:
    shape = None if values is None else jnp.shape(values)
    rule = f"potentials must have the shape of times {times.shape}"
    need(shape == times.shape, rule, shape)


def finite(name: str, x: jax.Array | np.ndarray) -> None:
    _need_all(f"{name} must be finite", x, np.isfinite)


def finite_weights(params: Mapping) -> None:
    for layer, arrays in params["params"].items():
        for name, array in arrays.items():
            finite(f"{name} of {layer}", array)


def bits(number: Any) -> None:
    fits = _is_integer(number, 1, 8)
    need(fits, "bits must be an integer in 1 … 8", repr(number))


def images(x: Any) -> jax.Array | np.ndarray:
    """Images of any shape as an array, uint8 or floating in [0, 1]."""
    x = array(x)
    if x.dtype == np.uint8:
        return x
    _need_type("images must be uint8 (0 … 255) or floating (0 … 1)", x, jnp.floating)
    rule = "floating images must lie in [0, 1] (divide by I_max, or pass uint8)"
    _need_all(rule, x, lambda values: (values >= 0) & (values <= 1))  # NaN included
    return x


def some_images(x: Any) -> jax.Array | np.ndarray:
    """As `images`, [n, …] with n > 0."""
    x = array(x)
    need(x.ndim and len(x), "no images", f"shape {x.shape}")
    return images(x)


def pairs(images: Any, targets: Any, classes: int) -> tuple[Any, Any]:
    """Images [n, …] and labels [n] as arrays, whatever container they come in.

    By position: a pandas Series is its values in their order, not by its index. Labels
    are integers 0 … C−1, or one-hot [n, C].
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
        rule = "labels must be one-hot, with a single 1 for each image, or soft_labels"
        fits = (hot | (targets == 0)).all() and (hot.sum(axis=1) == 1).all()
        need(fits, rule, f"others in {targets.shape}")
        targets = hot.argmax(axis=1)
    numbers = labels(targets, len(images), classes)
    return images, np.asarray(numbers) if of_numpy else numbers


def labels(values: jax.Array | np.ndarray, batch: int, classes: int) -> jax.Array:
    """Labels [B] as integers 0 … C−1."""
    values = array(values)
    _need_type("labels must be integers", values, jnp.integer)
    hint = " (labels[:, 0] has it)" if values.shape == (batch, 1) else ""
    rule = f"labels must have shape [B] = ({batch},){hint}"
    need(values.shape == (batch,), rule, values.shape)
    known = lambda values: (values >= 0) & (values < classes)  # noqa: E731
    _need_all(f"labels must lie in 0 … {classes - 1}", values, known)
    return jnp.asarray(values.astype(np.int32))


def soft_labels(values: jax.Array | np.ndarray, batch: int, classes: int) -> jax.Array:
    """Soft labels [B, C]: how much of each image belongs to each class."""
    values = _on_host(values)
    _need_type("soft labels must be floating", values, jnp.floating)
    rule = f"soft labels must have shape [B, C] = {(batch, classes)}"
    need(values.shape == (batch, classes), rule, values.shape)
    if readable(values) and values.size:
        rows = np.asarray(values)
        sums = rows.sum(axis=1, dtype=np.float32)  # of float16 too: it rounds by 5e-4
        holds = (rows >= 0).all(axis=1) & (np.abs(sums - 1) < 1e-3)
        rule = "soft labels must be shares ≥ 0 that sum to 1 for each image"
        need(holds.all(), rule, rows[np.argmin(holds)])  # NaN included
    return jnp.asarray(values)
