"""Firing-rate regularizer: keeps neurons from firing too often."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ds4nn_jax._values import Value
from ds4nn_jax.networks.network import SpikingNetwork
from ds4nn_jax.types import SpikeTimes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def regularize_rates(
    strength: float,
    num_steps: int,
    times: SpikeTimes,
    target: jax.typing.ArrayLike,
) -> SpikeTimes:
    """Identity on spike times [B, …, C] that pushes channels down to their target rate.

    δ_j ← δ_j − s·‖δ‖·(r_c/ρ − 1)₊    for a neuron j of channel c that fired

    with r_c the share of the channel's neurons, of all places and images of the batch,
    that fired, and ‖δ‖ the root mean square of the layer's error. Learning follows −δ:
    neurons of a channel that fires too often fire later.

    Args:
      strength: s ≥ 0.
      num_steps: T.
      times: [B, …, C] spike times.
      target: ρ in (0, 1].

    Returns:
      times.
    """
    return times


def _forward(strength, num_steps, times, target):
    return times, (times, target)


def _backward(strength, num_steps, residuals, delta):
    times, target = residuals
    fired = times < num_steps
    rate = jnp.mean(fired.astype(delta.dtype), axis=tuple(range(fired.ndim - 1)))
    square = jnp.mean(delta**2)
    target = jnp.asarray(target, delta.dtype)
    push = strength * jnp.sqrt(square)
    later = jnp.maximum(rate / target - 1, 0)
    pushed = delta - push * jnp.where(fired, later, 0)
    return pushed, jnp.zeros_like(target)


regularize_rates.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class RateRegularizer(Value):
    """Target rates, the share of fired neurons of every channel: `regularize_rates`.

    A target falls geometrically from `start` to its value, ρ(n) = ρ_0·(ρ/ρ_0)^x with
    x = min(n/N, 1) after n steps: pushed harder than learning keeps up with, rates fall
    below the target and accuracy follows. A target above `start` does not change.

    Attributes:
      targets: ρ of each hidden layer with weights, behind its pooling, in (0, 1]; the
        last stands for those that are left; empty: no regularizer.
      strength: s ≥ 0, of the layer's own error.
      start: ρ_0, the target at first, in (0, 1].
      steps: N, how many steps the targets take to fall.
    """

    targets: tuple[float, ...] = ()
    strength: float = 0.15
    start: float = 0.3
    steps: int = 10_000

    def check(self) -> None:
        in_range = all(0 < target <= 1 for target in self.targets)
        self.require("targets", in_range, "in (0, 1]")
        self.require("start", 0 < self.start <= 1, "in (0, 1]")
        self.require("strength", 0 <= self.strength < math.inf, "≥ 0")
        self.require("steps", self.steps >= 1, "at least 1")

    def settled(self, step: int) -> bool:
        """Whether targets are at their values after so many steps of training."""
        return step >= self.steps or all(rho >= self.start for rho in self.targets)

    def check_network(self, network: SpikingNetwork) -> None:
        """Refuses more targets than there are layers for them."""
        hidden = len(network.weighted) - 1
        few = f"no more than {hidden}, the hidden layers with weights of {network.spec}"
        self.require("targets", len(self.targets) <= hidden, few)

    def layers(
        self, hidden: int, step: jax.Array, num_steps: int
    ) -> tuple[Callable[[SpikeTimes], SpikeTimes], ...]:
        """The identity of each of the hidden layers after so many steps of training.

        Args:
          hidden: how many layers.
          step: n.
          num_steps: T.
        """
        if not self.targets:
            return ()
        done = jnp.minimum(step / self.steps, 1)
        targets = (*self.targets, *self.targets[-1:] * hidden)[:hidden]
        identity = functools.partial(regularize_rates, self.strength, num_steps)
        starts = (max(self.start, target) for target in targets)
        return tuple(
            functools.partial(identity, target=start * (target / start) ** done)
            for start, target in zip(starts, targets, strict=True)
        )
