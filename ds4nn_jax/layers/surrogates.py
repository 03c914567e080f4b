"""Surrogates for ∂t/∂V; a spike time has no derivative.

A surrogate is a frozen, hashable value; `dense`, `conv` and the modules take one, or
the name of one with its defaults: "constant" or "window". To define your own,
write a frozen dataclass that extends `Surrogate` and has a `slope`.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from ds4nn_jax._values import Value


@dataclasses.dataclass(frozen=True)
class Surrogate(Value):
    """−∂t/∂V at V(t*), with t* the spike time of a neuron that fired and the time of
    the highest potential of one that stayed silent.

    So a silent neuron takes part: it learns from what arrived up to t*, and as an input
    it has the error δ_i = Σ_j δ_j·w_ji.
    """

    silent_learn: ClassVar[bool] = True

    def slope(self, potential: jax.Array, threshold: float) -> jax.Array:
        """−∂t/∂V at the potentials V(t*), mV: an array of the same shape."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Constant(Surrogate):
    """The paper's rule: ∂t/∂V → −1.

    A silent neuron counts as firing at T; as an input it has no error: δ = 0.
    """

    silent_learn: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Window(Surrogate):
    """Membrane window: ∂t/∂V → −max(0, 1 − |V(t*) − θ|/β).

    A silent neuron near the threshold learns; a neuron driven far over the threshold in
    one step, or far below it, learns nothing.

    Attributes:
      width: β > 0 in mV. With β = ∞ the slope is 1 as in the paper's rule, and silent
        neurons take part: the choice for an output layer behind windowed ones.
    """

    width: float = 50.0

    def check(self) -> None:
        self.require("width", self.width > 0, "> 0 mV")

    def slope(self, potential: jax.Array, threshold: float) -> jax.Array:
        if math.isinf(self.width):
            return jnp.ones_like(potential)
        return jnp.maximum(0, 1 - jnp.abs(potential - threshold) / self.width)
