"""Rate guards: what keeps neurons from firing too often, or too rarely."""

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
def rate_guard(
    strength: float,
    floor: float,
    num_steps: int,
    times: SpikeTimes,
    budget: jax.typing.ArrayLike,
) -> SpikeTimes:
    """Identity on spike times [B, …, C] that pushes channels back into their budget.

    δ_j ← δ_j − s·‖δ‖·(r_c/ρ − 1)₊        for a neuron j of channel c that fired
    δ_j ← δ_j + s·‖δ‖·(1 − r_c/(f·ρ))₊    for one that stayed silent

    with r_c the share of the channel's neurons, of all places and images of the batch,
    that fired, and ‖δ‖ the root mean square of the layer's error. Learning follows −δ:
    the first makes neurons fire later, the second earlier. A silent neuron learns under
    surrogates that let it.

    Args:
      strength: s ≥ 0.
      floor: f in [0, 1): the share of the budget below which a channel is pushed up.
      num_steps: T.
      times: [B, …, C] spike times.
      budget: ρ in (0, 1].

    Returns:
      times.
    """
    return times


def _guard_fwd(strength, floor, num_steps, times, budget):
    return times, (times, budget)


def _guard_bwd(strength, floor, num_steps, residuals, delta):
    times, budget = residuals
    fired = times < num_steps
    rate = jnp.mean(fired.astype(delta.dtype), axis=tuple(range(fired.ndim - 1)))
    square = jnp.mean(delta**2)
    budget = jnp.asarray(budget, delta.dtype)
    push = strength * jnp.sqrt(square)
    later = jnp.maximum(rate / budget - 1, 0)
    earlier = jnp.maximum(1 - rate / (floor * budget), 0) if floor else 0
    pushed = delta + push * jnp.where(fired, -later, earlier)
    return pushed, jnp.zeros_like(budget)


rate_guard.defvjp(_guard_fwd, _guard_bwd)


@dataclasses.dataclass(frozen=True)
class RateGuard(Value):
    """Budgets for the share of fired neurons of every channel, see `rate_guard`.

    A budget falls geometrically from `first` to its value, ρ(n) = ρ_first·(ρ/ρ_first)^x
    with x = min(n/N, 1) after n steps: pushed harder than learning keeps up with, rates
    fall below the budget and accuracy follows. A budget above `first` stands from the
    beginning.

    Attributes:
      budgets: ρ of each hidden layer with weights, behind its pooling, in (0, 1]; the
        last stands for those that are left; empty: no guard.
      floor: f in [0, 1): the share of the budget below which channels are pushed up.
      strength: s ≥ 0, of the layer's own error.
      first: the budget at first, in (0, 1].
      steps: N, how many steps the budgets take to fall.
    """

    budgets: tuple[float, ...] = ()
    floor: float = 0.5
    strength: float = 0.15
    first: float = 0.3
    steps: int = 10_000

    def check(self) -> None:
        in_range = all(0 < budget <= 1 for budget in self.budgets)
        self.require("budgets", in_range, "in (0, 1]")
        self.require("first", 0 < self.first <= 1, "in (0, 1]")
        self.require("floor", 0 <= self.floor < 1, "in [0, 1)")
        self.require("strength", 0 <= self.strength < math.inf, "≥ 0")
        self.require("steps", self.steps >= 1, "at least 1")

    def settled(self, step: int) -> bool:
        """Whether budgets are at their values after so many steps of training."""
        return step >= self.steps or all(b >= self.first for b in self.budgets)

    def check_network(self, network: SpikingNetwork) -> None:
        """Refuses more budgets than there are layers for them."""
        hidden = len(network.weighted) - 1
        few = f"no more than {hidden}, the hidden layers with weights of {network.spec}"
        self.require("budgets", len(self.budgets) <= hidden, few)

    def layers(
        self, hidden: int, step: jax.Array, num_steps: int
    ) -> tuple[Callable[[SpikeTimes], SpikeTimes], ...]:
        """The guard of each of the hidden layers after so many steps of training.

        Args:
          hidden: how many layers.
          step: n.
          num_steps: T.
        """
        if not self.budgets:
            return ()
        done = jnp.minimum(step / self.steps, 1)
        budgets = (*self.budgets, *self.budgets[-1:] * hidden)[:hidden]
        guard = functools.partial(rate_guard, self.strength, self.floor, num_steps)
        begins = (max(self.first, budget) for budget in budgets)
        return tuple(
            functools.partial(guard, budget=begin * (b / begin) ** done)
            for begin, b in zip(begins, budgets, strict=True)
        )
