"""Output rules: what the output neurons should have done, and the error's way back.

Every rule gives target spike times. `temporal_loss` compares them with the actual ones,
and its gradient is the temporal error e = t − target (Eq. 5, 9), of which a target
already met leaves nothing. Targets take no gradient themselves.

The names are the rules' own: "relative" is the paper's.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from ds4nn_jax import _checks
from ds4nn_jax.types import SpikeTimes

Normalization = Literal["l2", "l1", "sum", "none"]


def relative_target(
    times: SpikeTimes, labels: jax.Array, *, offset: float, num_steps: int = 100
) -> SpikeTimes:
    """The paper's dynamic target (Eq. 4).

    T_label = max(τ_min − λ, 0);  T_other = min(τ_max + λ, T)

    with τ_min, τ_max the earliest and latest output of the image, silence counting as
    T. It is never met: an output that leads by any margin is asked to lead by λ more.

    Args:
      times: [B, C] output spike times.
      labels: [B] classes.
      offset: λ ≥ 0, time steps.
      num_steps: T.

    Returns:
      [B, C] target times.

    Raises:
      TypeError: times are not floating, labels not integers.
      ValueError: shapes do not fit, T ≤ 0, λ < 0, or a label is out of range.

    Example:
      >>> import numpy as np, ds4nn_jax as ds
      >>> ds.relative_target(np.array([[20.0, 35.0, 60.0]]), np.array([1]), offset=10)
      Array([[70., 10., 70.]], dtype=float32)
    """
    times, is_label = _outputs(times, labels, num_steps)
    _not_negative("offset", offset)
    first = jnp.min(times, axis=1, keepdims=True)
    last = jnp.max(times, axis=1, keepdims=True)
    return jnp.where(
        is_label,
        jnp.maximum(first - offset, 0),
        jnp.minimum(last + offset, num_steps),
    )


def margin_target(
    times: SpikeTimes, labels: jax.Array, *, offset: float, num_steps: int = 100
) -> SpikeTimes:
    """Eq. 4 until it is earned: no error once the label leads all others by λ.

    Where t_label + λ ≤ t_other for every other output, the target is the actual times;
    elsewhere it is `relative_target`. So training can converge.

    Arguments, result and errors as `relative_target`.

    Example:
      >>> import numpy as np, ds4nn_jax as ds
      >>> times = np.array([[20.0, 35.0, 60.0]])
      >>> ds.margin_target(times, np.array([0]), offset=10)  # leads by 15
      Array([[20., 35., 60.]], dtype=float32)
    """
    asked = relative_target(times, labels, offset=offset, num_steps=num_steps)
    times, is_label = _outputs(times, labels, num_steps)
    leads = _label_time(times, is_label) + offset <= _first_other(times, is_label)
    return jnp.where(leads, times, asked)


def s4nn_target(
    times: SpikeTimes, labels: jax.Array, *, offset: float, num_steps: int = 100
) -> SpikeTimes:
    """S4NN's target (Kheradpisheh & Masquelier 2020, Eq. 13–14), γ = `offset`.

    T_label = τ_min;  T_other = τ_min + γ if t_other < τ_min + γ, else t_other

    If every output is silent: T_label = T − γ, and T for the others. Targets are kept
    within 0 … T.

    Arguments, result and errors as `relative_target`.
    """
    times, is_label = _outputs(times, labels, num_steps)
    _not_negative("offset", offset)
    first = jnp.min(times, axis=1, keepdims=True)
    late_enough = jnp.minimum(jnp.maximum(times, first + offset), num_steps)
    target = jnp.where(is_label, first, late_enough)
    silent = jnp.where(is_label, max(num_steps - offset, 0), float(num_steps))
    return jnp.where(first == num_steps, silent, target).astype(times.dtype)


def fixed_target(
    times: SpikeTimes,
    labels: jax.Array,
    *,
    label_time: float,
    other_time: float,
    num_steps: int = 100,
) -> SpikeTimes:
    """The same target for every image: one time for the label, one for the others.

    The kind of target of Mostafa (2018) and Comsa et al. (2020), as the paper's Table 3
    compares it.

    Args:
      times: [B, C] output spike times.
      labels: [B] classes.
      label_time: target of the label's output, 0 … T.
      other_time: target of the others, 0 … T.
      num_steps: T.

    Returns:
      [B, C] target times.

    Raises:
      As `relative_target`; ValueError also for a time outside 0 … T.
    """
    times, is_label = _outputs(times, labels, num_steps)
    for name, value in (("label_time", label_time), ("other_time", other_time)):
        _within_run(name, value, num_steps)
    return jnp.where(is_label, label_time, other_time).astype(times.dtype)


def hinge_target(
    times: SpikeTimes,
    labels: jax.Array,
    potentials: jax.Array,
    *,
    offset: float,
    num_steps: int = 100,
    threshold: float = 100.0,
    reach: float = 30.0,
) -> SpikeTimes:
    """Errors of one step's size, only where the decision is wrong or narrow.

    target = t − e with
      e_label = 1 if the label is silent or some other output fires before t_label + λ
      e_other = −1 if it fires before t_label + λ
      e_other = −clip((V − (θ − ρ))/ρ, 0, 1) if it is silent with potential V
      and 0 otherwise.

    Args:
      times: [B, C] output spike times.
      labels: [B] classes.
      potentials: [B, C] potential of each output at its spike, or its final one, mV.
      offset: λ ≥ 0, time steps.
      num_steps: T.
      threshold: θ, mV.
      reach: ρ > 0, how far below θ a silent wrong output is still pushed down, mV.

    Returns:
      [B, C] target times, not clipped to 0 … T: their distance from `times` counts.

    Raises:
      As `relative_target`; ValueError also for potentials of another shape or ρ ≤ 0.
    """
    times, is_label = _outputs(times, labels, num_steps)
    _not_negative("offset", offset)
    potentials = _potentials(potentials, times)
    if not reach > 0:
        raise ValueError(f"reach must be > 0 mV, got {reach}")
    silent = times == num_steps
    label_time = _label_time(times, is_label)
    close = ~silent & (times < label_time + offset)
    rivals = jnp.any(close & ~is_label, axis=1, keepdims=True)
    nearly = jnp.clip((potentials - (threshold - reach)) / reach, 0, 1)
    error = jnp.where(
        is_label,
        (silent | rivals).astype(times.dtype),
        -jnp.where(silent, nearly, close.astype(times.dtype)),
    )
    return times - error


def softmax_target(
    times: SpikeTimes,
    labels: jax.Array,
    potentials: jax.Array,
    *,
    offset: float,
    temperature: float,
    horizon: float = 100.0,
    anchor: float = 0.0,
    label_time: float = 0.0,
    num_steps: int = 100,
    threshold: float = 100.0,
) -> SpikeTimes:
    """Errors of a cross-entropy over spike times: target = t − (onehot·(1 + a) − p).

    p = softmax(−(ℓ + λ·onehot)/τ);  a = κ·clip((ℓ − t*)/T, −1, 1)

    with ℓ the spike time or, for a silent output, T + H·(θ − V)/θ. The label counts as
    λ later than it is, so the errors fade once it leads by λ and some τ. They sum to
    zero, so no common drift moves all outputs, and are less than a step: use them
    without `normalize_gradient`, which would make fading errors whole again.

    H trades latency for accuracy: with H = T silence costs nothing where potentials
    decide as well, and networks become slow; with a small one two silent outputs can
    never differ by enough, and the label has to fire early.

    Errors that sum to zero leave it to chance when all of an image's outputs fire, and
    over many steps a network of several layers drifts to step 0 or into silence. The
    anchor κ > 0 draws the label towards t*, from both sides, and holds it there.

    Args:
      times: [B, C] output spike times.
      labels: [B] classes.
      potentials: [B, C] potential of each output at its spike, or its final one, mV.
      offset: λ ≥ 0, time steps.
      temperature: τ > 0, time steps.
      horizon: H > 0, how much later than T an output with V = 0 counts, time steps.
      anchor: κ ≥ 0, the label's error when it is T steps from t*, time steps.
      label_time: t*, 0 … T.
      num_steps: T.
      threshold: θ, mV.

    Returns:
      [B, C] target times, less than 1 + κ steps from `times`.

    Raises:
      As `relative_target`; ValueError also for potentials of another shape, τ ≤ 0,
        H ≤ 0, κ < 0 or t* outside 0 … T.
    """
    times, is_label = _outputs(times, labels, num_steps)
    _not_negative("offset", offset)
    potentials = _potentials(potentials, times)
    for name, value in (("temperature", temperature), ("horizon", horizon)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0 time steps, got {value}")
    _not_negative("anchor", anchor)
    _within_run("label_time", label_time, num_steps)
    missing = horizon * (threshold - potentials) / threshold
    latency = times + jnp.where(times == num_steps, missing, 0)
    onehot = is_label.astype(times.dtype)
    p = jax.nn.softmax(-(latency + offset * onehot) / temperature, axis=1)
    drawn = anchor * jnp.clip((latency - label_time) / num_steps, -1, 1)
    return times - (onehot * (1 + drawn) - p)


def temporal_loss(times: SpikeTimes, target: SpikeTimes) -> jax.Array:
    """E = ½·Σ_k (t_k − target_k)²  per image (Eq. 5–6): [B, C], [B, C] -> [B].

    ∂E/∂t = t − target (Eq. 9); the target takes no gradient.

    Raises:
      ValueError: shapes differ.
    """
    if jnp.shape(times) != jnp.shape(target):
        raise ValueError(
            f"times {jnp.shape(times)} and target {jnp.shape(target)} differ in shape"
        )
    error = times - jax.lax.stop_gradient(target)
    return 0.5 * jnp.sum(error**2, axis=-1)


def normalize_gradient(x: jax.Array, *, method: Normalization = "l2") -> jax.Array:
    """Identity whose backward pass normalises the error of each sample (Eq. 11).

    δ ← δ/‖δ‖₂ ("l2", as S4NN's code), δ/Σ|δ| ("l1"), δ/Σδ ("sum", Eq. 11 as printed) or
    δ ("none"), sums over all axes but the first. A denominator of zero leaves δ as it
    is. Σδ may be negative or near zero, which turns the error round or makes it huge:
    "sum" is there to be studied and diverges in training.

    Args:
      x: [B, …].
      method: the norm.

    Returns:
      x.

    Raises:
      ValueError: an unknown method, or x without a batch axis.

    Example:
      >>> import jax, jax.numpy as jnp, ds4nn_jax as ds
      >>> jax.grad(lambda x: jnp.sum(x * jnp.array([[3.0, 4.0]])))(jnp.ones((1, 2)))
      Array([[3., 4.]], dtype=float32)
      >>> jax.grad(lambda x: jnp.sum(
      ...     ds.normalize_gradient(x) * jnp.array([[3.0, 4.0]])))(jnp.ones((1, 2)))
      Array([[0.6, 0.8]], dtype=float32)
    """
    if method not in ("l2", "l1", "sum", "none"):
        raise ValueError(f'method must be "l2", "l1", "sum" or "none", got {method!r}')
    if jnp.ndim(x) < 1:
        raise ValueError("x must have a batch axis: [B, …]")
    return x if method == "none" else _normalized(method, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized(method: Normalization, x: jax.Array) -> jax.Array:
    return x


def _normalized_fwd(method: Normalization, x: jax.Array):
    return x, None


def _normalized_bwd(method: Normalization, _, delta: jax.Array):
    axes = tuple(range(1, delta.ndim))
    # The largest entry is taken out first: the squares of tiny errors would underflow.
    largest = jnp.max(jnp.abs(delta), axes, keepdims=True)
    delta = delta / jnp.where(largest == 0, 1, largest)
    if method == "l2":
        size = jnp.sqrt(jnp.sum(delta**2, axes, keepdims=True))
    elif method == "l1":
        size = jnp.sum(jnp.abs(delta), axes, keepdims=True)
    else:
        size = jnp.sum(delta, axes, keepdims=True)
    undivided = jnp.where(largest == 0, 1, 1 / largest)
    return (delta / jnp.where(size == 0, undivided, size),)


_normalized.defvjp(_normalized_fwd, _normalized_bwd)


def _outputs(times, labels, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Checked output times without gradient, and which of them are the labels'."""
    _checks.num_steps(num_steps)
    times = jax.lax.stop_gradient(jnp.asarray(times))
    if not jnp.issubdtype(times.dtype, jnp.floating):
        raise TypeError(f"spike times must be a floating array, got {times.dtype}")
    _checks.rank("times", times, "[B, C]")
    labels = _checks.labels(labels, *times.shape)
    return times, jax.nn.one_hot(labels, times.shape[1], dtype=bool)


def _potentials(potentials, times: jax.Array) -> jax.Array:
    if jnp.shape(potentials) != times.shape:
        raise ValueError(
            f"potentials must have the shape of times {times.shape}, "
            f"got {jnp.shape(potentials)}"
        )
    return jax.lax.stop_gradient(jnp.asarray(potentials))


def _label_time(times: jax.Array, is_label: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(is_label, times, 0), axis=1, keepdims=True)


def _first_other(times: jax.Array, is_label: jax.Array) -> jax.Array:
    return jnp.min(jnp.where(is_label, jnp.inf, times), axis=1, keepdims=True)


def _within_run(name: str, value: float, num_steps: int) -> None:
    if not 0 <= value <= num_steps:
        raise ValueError(f"{name} must lie in 0 … {num_steps}, got {value}")


def _not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name} must be ≥ 0 time steps, got {value}")
