"""Output rules: what the output neurons should have done.

A rule is a frozen value whose `target` gives target spike times for `temporal_loss`.
Targets take no gradient themselves. To define your own, write a frozen dataclass
that extends `OutputRule`; `experiments/examples/own_rule.py` trains with one.

    >>> import numpy as np, ds4nn_jax as ds
    >>> ds.rules.Margin(offset=10).target(np.array([[20.0, 35.0]]), np.array([1]))
    Array([[45., 10.]], dtype=float32)
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ds4nn_jax import _checks
from ds4nn_jax._values import Value
from ds4nn_jax.layers import _coding
from ds4nn_jax.layers._coding import DEFAULT_STEPS
from ds4nn_jax.layers.losses import Normalization
from ds4nn_jax.types import SpikeTimes


@dataclasses.dataclass(frozen=True)
class OutputRule(Value):
    """Target times of the output neurons, image by image.

    Attributes:
      normalization: of the errors between layers (Eq. 11), "l2", "l1", "sum" or "none";
        see `losses.normalize_gradient`.
    """

    normalization: Normalization = dataclasses.field(default="l2", kw_only=True)
    takes_soft_labels: ClassVar[bool] = False  # [B, C], instead of labels [B]

    def target(
        self,
        times: SpikeTimes,
        labels: jax.Array,
        potentials: jax.Array | None = None,
        *,
        num_steps: int = 100,
        threshold: float = 100.0,
    ) -> SpikeTimes:
        """Target times [B, C], not necessarily within 0 … T: t − target is the error.

        Args:
          times: [B, C] output spike times.
          labels: [B] classes; or, for a rule that takes them, soft labels [B, C]:
            class probabilities, for instance a teacher's.
          potentials: [B, C] potential of each output at its spike, or its final one,
            mV; for rules that look at them.
          num_steps: T.
          threshold: θ, mV.
        """
        raise NotImplementedError

    def check_steps(self, num_steps: int) -> None:
        """Refuses parameters that do not fit T, before anything is computed."""

    def _within(self, name: str, num_steps: int) -> None:
        holds = 0 <= getattr(self, name) <= num_steps
        self.require(name, holds, f"in 0 … T = {num_steps}")


def relative_target(
    times: SpikeTimes,
    labels: jax.Array,
    *,
    offset: float,
    num_steps: int = DEFAULT_STEPS,
) -> SpikeTimes:
    """The paper's dynamic target (Eq. 4).

    T_label = max(τ_min − λ, 0);  T_other = min(τ_max + λ, T)

    with τ_min, τ_max the earliest and latest output of the image, silence counting as
    T. Outputs never reach it: a label that is first still has to be λ earlier.

    Args:
      times: [B, C] output spike times.
      labels: [B] classes.
      offset: λ ≥ 0, time steps.
      num_steps: T, as for `dense`.

    Returns:
      [B, C] target times.

    Example:
      >>> import numpy as np, ds4nn_jax as ds
      >>> ds.relative_target(np.array([[20.0, 35.0, 60.0]]), np.array([1]), offset=10)
      Array([[70., 10., 70.]], dtype=float32)
    """
    num_steps = _coding.resolve_steps(num_steps, times)
    times, is_label = _outputs(times, labels, num_steps)
    if not offset >= 0:
        raise ValueError(f"offset must be ≥ 0 time steps, got {offset}")
    first = jnp.min(times, axis=1, keepdims=True)
    last = jnp.max(times, axis=1, keepdims=True)
    return jnp.where(
        is_label,
        jnp.maximum(first - offset, 0),
        jnp.minimum(last + offset, num_steps),
    )


@dataclasses.dataclass(frozen=True)
class _Offset(OutputRule):
    """A rule with a lead in time; `offset` ≥ 0 in time steps."""

    offset: float = 10.0

    def check(self) -> None:
        self.require("offset", self.offset >= 0, "≥ 0 time steps")


@dataclasses.dataclass(frozen=True)
class Relative(_Offset):
    """The paper's dynamic target (Eq. 4), see `relative_target`.

    Attributes:
      offset: λ ≥ 0, time steps.
    """

    def target(self, times, labels, potentials=None, *, num_steps=100, threshold=100.0):
        return relative_target(times, labels, offset=self.offset, num_steps=num_steps)


@dataclasses.dataclass(frozen=True)
class Margin(_Offset):
    """Eq. 4, without error once the label leads all others by λ.

    Where t_label + λ ≤ t_other for every other output, the target is the actual times;
    elsewhere it is `relative_target`. So training can converge.

    Attributes:
      offset: λ ≥ 0, time steps.
    """

    def target(self, times, labels, potentials=None, *, num_steps=100, threshold=100.0):
        target = relative_target(times, labels, offset=self.offset, num_steps=num_steps)
        times, is_label = _outputs(times, labels, num_steps)
        label = jnp.sum(jnp.where(is_label, times, 0), axis=1, keepdims=True)
        other = jnp.min(jnp.where(is_label, jnp.inf, times), axis=1, keepdims=True)
        return jnp.where(label + self.offset <= other, times, target)


@dataclasses.dataclass(frozen=True)
class S4NN(_Offset):
    """S4NN's target (Kheradpisheh & Masquelier 2020, Eq. 13–14).

    T_label = τ_min;  T_other = τ_min + γ if t_other < τ_min + γ, else t_other

    If every output is silent: T_label = T − γ, and T for the others. Targets are kept
    within 0 … T.

    Attributes:
      offset: γ ≥ 0, time steps.
    """

    def target(self, times, labels, potentials=None, *, num_steps=100, threshold=100.0):
        times, is_label = _outputs(times, labels, num_steps)
        first = jnp.min(times, axis=1, keepdims=True)
        late_enough = jnp.minimum(jnp.maximum(times, first + self.offset), num_steps)
        target = jnp.where(is_label, first, late_enough)
        silent = jnp.where(is_label, max(num_steps - self.offset, 0), float(num_steps))
        return jnp.where(first == num_steps, silent, target).astype(times.dtype)


@dataclasses.dataclass(frozen=True)
class Fixed(OutputRule):
    """The same target for every image: one time for the label, one for the others.

    The kind of target of Mostafa (2018) and Comsa et al. (2020), as the paper's Table 3
    compares it.

    Attributes:
      label_time: target of the label's output, 0 … T.
      other_time: target of the others, 0 … T.
    """

    label_time: float = 0.0
    other_time: float = 100.0

    def check_steps(self, num_steps: int) -> None:
        self._within("label_time", num_steps)
        self._within("other_time", num_steps)

    def target(self, times, labels, potentials=None, *, num_steps=100, threshold=100.0):
        times, is_label = _outputs(times, labels, num_steps)
        self.check_steps(num_steps)
        return jnp.where(is_label, self.label_time, self.other_time).astype(times.dtype)


@dataclasses.dataclass(frozen=True)
class Softmax(OutputRule):
    """Errors of a cross-entropy over spike times: target = t − (q·(1 + a) − p).

    p = softmax(−(ℓ + λ·q)/τ);  a = κ·clip((ℓ − t*)/T, −1, 1)

    with q 1 for the label and 0 for the others, or soft labels, and ℓ the spike time
    or, for a silent output, T + H·(θ − V)/θ. λ is added to the label's time, so
    errors vanish once it leads by λ plus a few τ. They sum to zero, so no common drift
    moves all outputs, and are less than a step: use them without a normalization, which
    would scale vanishing errors up again.

    H trades latency for accuracy: with H = T silence costs nothing where potentials
    decide as well, and networks become slow; with a small one two silent outputs can
    never differ by enough, and the label has to fire early.

    Errors that sum to zero leave it to chance when all of an image's outputs fire, and
    over many steps a network of several layers drifts to step 0 or into silence. The
    anchor κ > 0 pulls the label's time towards t*, from earlier and later times.

    Attributes:
      offset: λ ≥ 0, time steps.
      temperature: τ > 0, time steps.
      horizon: H > 0, how much later than T an output with V = 0 counts, time steps:
        smaller ones make faster networks.
      anchor: κ ≥ 0, the label's error when it is T steps from t*, time steps.
      anchor_time: t*, 0 … T; None: T/2.
    """

    normalization: Normalization = dataclasses.field(default="none", kw_only=True)
    takes_soft_labels: ClassVar[bool] = True
    offset: float = 10.0
    temperature: float = 5.0
    horizon: float = 50.0
    anchor: float = 0.3
    anchor_time: float | None = None

    def check(self) -> None:
        self.require("offset", self.offset >= 0, "≥ 0 time steps")
        self.require("temperature", self.temperature > 0, "> 0 time steps")
        self.require("horizon", self.horizon > 0, "> 0 time steps")
        self.require("anchor", self.anchor >= 0, "≥ 0 time steps")

    def check_steps(self, num_steps: int) -> None:
        if self.anchor_time is not None:
            self._within("anchor_time", num_steps)

    def target(self, times, labels, potentials=None, *, num_steps=100, threshold=100.0):
        if (
            jnp.issubdtype(jnp.result_type(labels), jnp.floating)
            and jnp.ndim(labels) > 1
        ):
            q = _checks.soft_labels(labels, *jnp.shape(times))
            times, _ = _outputs(times, jnp.argmax(q, axis=1), num_steps)
        else:
            times, q = _outputs(times, labels, num_steps)
        q = q.astype(times.dtype)
        self.check_steps(num_steps)
        _checks.potentials(potentials, times)
        potentials = jax.lax.stop_gradient(jnp.asarray(potentials))
        missing = self.horizon * (threshold - potentials) / threshold
        latency = times + jnp.where(times == num_steps, missing, 0)
        p = jax.nn.softmax(-(latency + self.offset * q) / self.temperature, axis=1)
        middle = num_steps / 2
        anchor_time = middle if self.anchor_time is None else self.anchor_time
        away = jnp.clip((latency - anchor_time) / num_steps, -1, 1)
        return times - (q * (1 + self.anchor * away) - p)


def _outputs(times, labels, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Checked output times without gradient, and which of them are the labels'."""
    _coding.resolve_steps(num_steps, times)
    times = jax.lax.stop_gradient(jnp.asarray(times))
    if not jnp.issubdtype(times.dtype, jnp.floating):
        raise TypeError(f"spike times must be a floating array, got {times.dtype}")
    _checks.rank("times", times, "[B, C]")
    labels = _checks.labels(labels, *times.shape)
    return times, jax.nn.one_hot(labels, times.shape[1], dtype=bool)
