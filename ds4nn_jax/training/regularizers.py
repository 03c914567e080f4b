"""Firing-rate regularizer: keeps neurons from firing too often, or too rarely."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ds4nn_jax._values import Value
from ds4nn_jax.networks.network import SpikingNetwork
from ds4nn_jax.types import SpikeTimes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def regularize_rates(
    strength: float,
    floor: float,
    num_steps: int,
    times: SpikeTimes,
    target: jax.typing.ArrayLike,
) -> SpikeTimes:
    """Identity on spike times [B, …, C] that pushes channels back to their target rate.

    δ_j ← δ_j − s·‖δ‖·(r_c/ρ − 1)₊        for a neuron j of channel c that fired
    δ_j ← δ_j + s·‖δ‖·(1 − r_c/(f·ρ))₊    for one that stayed silent

    with r_c the share of the channel's neurons, of all places and images of the batch,
    that fired, and ‖δ‖ the root mean square of the layer's error. Learning follows −δ:
    the first makes neurons fire later, the second earlier. A silent neuron learns under
    surrogates that let it.

    Args:
      strength: s ≥ 0.
      floor: f in [0, 1): the share of the target below which a channel is pushed up.
      num_steps: T.
      times: [B, …, C] spike times.
      target: ρ in (0, 1].

    Returns:
      times.
    """
    return times


def _forward(strength, floor, num_steps, times, target):
    return times, (times, target)


def _backward(strength, floor, num_steps, residuals, delta):
    times, target = residuals
    fired = times < num_steps
    rate = jnp.mean(fired.astype(delta.dtype), axis=tuple(range(fired.ndim - 1)))
    square = jnp.mean(delta**2)
    target = jnp.asarray(target, delta.dtype)
    push = strength * jnp.sqrt(square)
    later = jnp.maximum(rate / target - 1, 0)
    earlier = jnp.maximum(1 - rate / (floor * target), 0) if floor else 0
    pushed = delta + push * jnp.where(fired, -later, earlier)
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
      floor: f in [0, 1): the share of the target below which channels are pushed up.
      strength: s ≥ 0, of the layer's own error.
      start: ρ_0, the target at first, in (0, 1].
      steps: N, how many steps the targets take to fall.
    """

    targets: tuple[float, ...] = ()
    floor: float = 0.5
    strength: float = 0.15
    start: float = 0.3
    steps: int = 10_000

    def check(self) -> None:
        in_range = all(0 < target <= 1 for target in self.targets)
        self.require("targets", in_range, "in (0, 1]")
        self.require("start", 0 < self.start <= 1, "in (0, 1]")
        self.require("floor", 0 <= self.floor < 1, "in [0, 1)")
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
        identity = functools.partial(
            regularize_rates, self.strength, self.floor, num_steps
        )
        starts = (max(self.start, target) for target in targets)
        return tuple(
            functools.partial(identity, target=start * (target / start) ** done)
            for start, target in zip(starts, targets, strict=True)
        )
