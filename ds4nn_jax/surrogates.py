"""What stands for ∂t/∂V, the derivative that a spike time does not have.

A surrogate is a frozen, hashable value; `dense`, `conv` and the modules take one, or
the name of one with its defaults: "constant" or "window".
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Constant:
    """The paper's rule: ∂t/∂V → −1.

    A silent neuron counts as firing at T; as an input it has no error: δ = 0.
    """


@dataclasses.dataclass(frozen=True)
class Window:
    """Membrane window: ∂t/∂V → −max(0, 1 − |V(t*) − θ|/β).

    t* is the spike time of a neuron that fired and the time of the highest potential of
    one that stayed silent. So a silent neuron near the threshold takes part: it learns
    from what arrived up to t*, and as an input it has the error δ_i = Σ_j δ_j·w_ji.
    A neuron driven far over the threshold in one step, or far below it, learns nothing.

    Attributes:
      width: β > 0 in mV. With β = ∞ the slope is 1 as in the paper's rule, and silent
        neurons take part: the choice for an output layer behind windowed ones.
    """

    width: float = 50.0

    def __post_init__(self):
        if not self.width > 0:
            raise ValueError(f"window width must be > 0 mV, got {self.width}")

    def slope(self, potential: jax.Array, threshold: float) -> jax.Array:
        """−∂t/∂V at the potential V(t*), in [0, 1]."""
        if math.isinf(self.width):
            return jnp.ones_like(potential)
        return jnp.maximum(0, 1 - jnp.abs(potential - threshold) / self.width)


Surrogate = Constant | Window

_BY_NAME: dict[str, Surrogate] = {"constant": Constant(), "window": Window()}


def resolve(surrogate: str | Surrogate) -> Surrogate:
    """A surrogate as it is, or by its name.

    Raises:
      ValueError: no surrogate has that name.
    """
    if isinstance(surrogate, Constant | Window):
        return surrogate
    if surrogate in _BY_NAME:
        return _BY_NAME[surrogate]
    raise ValueError(
        f"unknown surrogate {surrogate!r}: choose one of {sorted(_BY_NAME)}, "
        "or pass ds4nn_jax.Window(width=…)"
    )
