"""Flax Linen layers: modules own the weights, `functions` does the work."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ds4nn_jax._engines.synapse import NO_POOL, Response
from ds4nn_jax.layers import _response, functions
from ds4nn_jax.layers.surrogates import Surrogate
from ds4nn_jax.types import SpikeTimes

Initializer = Callable[..., jax.Array]


def uniform_weights(low: float, high: float) -> Initializer:
    """Initial weights uniform in [low, high) mV, as in the paper's Table 1."""
    if not -float("inf") < low < high < float("inf"):
        raise ValueError(f"need finite low < high, got [{low}, {high})")

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, low, high)

    return init


def scaled_weights(threshold: float = 100.0) -> Initializer:
    """Initial weights on the scale of θ/√fan-in, their mean a little above zero.

    Uniform in [−a, 1.4·a) with a = θ/√(fan-in): the paper's all-positive ranges
    fire every neuron at once, smaller ones none. `initial_weights.calibrate` refines
    the scale on data.
    """

    def init(key, shape, dtype=jnp.float32):
        scale = threshold / math.prod(shape[:-1]) ** 0.5
        return jax.random.uniform(key, shape, dtype, -scale, 1.4 * scale)

    return init


def _prepared(
    layer: "SpikingDense | SpikingConv",
    times: SpikeTimes,
    shape: tuple[int, ...],
    **settings,
):
    """As `_response.prepared`, with the parameters of a module whose kernel has this
    shape; they are drawn while the network is initialised."""
    if not layer.is_initializing():
        if not layer.has_variable("params", "kernel"):
            raise ValueError(
                f"the parameters have no kernel of {layer.name}: they are not those "
                "of this network"
            )
        actual = jnp.shape(layer.get_variable("params", "kernel"))
        if actual != shape:
            raise ValueError(
                f"{layer.name} takes inputs of another size: its kernel is {actual}, "
                f"spike times of shape {times.shape} need {shape}: images of another "
                "size, or the parameters of another network"
            )
    init = layer.kernel_init or scaled_weights(layer.threshold)
    kernel, pulses = layer.param("kernel", init, shape, times.dtype), None
    if layer.pulses:
        zeros, of_pulses = nn.initializers.zeros, (layer.pulses, layer.features)
        pulses = layer.param("pulses", zeros, of_pulses, times.dtype)
    threshold = layer.get_variable("params", "threshold", layer.threshold)
    chosen = layer.num_steps, layer.engine, layer.surrogate
    return _response.prepared(times, kernel, pulses, threshold, *chosen, **settings)


class SpikingDense(nn.Module):
    """`functions.dense` that owns its kernel [I, O] and, where `pulses` says how many,
    the weights [P, O] of reference neurons, 0 at first. Arguments as there. A parameter
    "threshold" [O], which `init` does not make, takes the place of the number."""

    features: int
    threshold: float = 100.0
    num_steps: int = 100
    engine: functions.Engine = "auto"
    surrogate: str | Surrogate = "constant"
    urgency: float = 0.0
    pulses: int = 0
    kernel_init: Initializer | None = None

    def __call__(self, times: SpikeTimes) -> SpikeTimes:
        return self.respond(times).times

    @nn.compact
    def respond(self, times: SpikeTimes, *, counts: bool = False) -> Response:
        """Spike times and, with `counts`, the spikes of every step."""
        shape = (times.shape[-1], self.features)
        layer, *arrays = _prepared(self, times, shape, urgency=self.urgency)
        return _response.respond(layer, *arrays, counts=counts)


class SpikingConv(nn.Module):
    """`functions.conv` that owns its kernel [kh, kw, I, O] and, where `pulses` says how
    many, the weights [P, O] of reference neurons, 0 at first. Arguments as there. A
    parameter "threshold" [O], which `init` does not make, takes the place of the
    number."""

    features: int
    window: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: functions.Padding = "SAME"
    threshold: float = 100.0
    num_steps: int = 100
    engine: functions.Engine = "auto"
    surrogate: str | Surrogate = "constant"
    pulses: int = 0
    kernel_init: Initializer | None = None

    def __call__(self, times: SpikeTimes) -> SpikeTimes:
        return self.respond(times).times

    @nn.compact
    def respond(
        self,
        times: SpikeTimes,
        *,
        pool: tuple[int, int] = NO_POOL,
        counts: bool = False,
    ) -> Response:
        """Spike times behind the pooling and, with `counts`, spikes of each step."""
        shape = (*self.window, times.shape[-1], self.features)
        window = dict(strides=self.strides, padding=self.padding)
        layer, *arrays = _prepared(self, times, shape, **window)
        return _response.respond(layer, *arrays, pool=pool, counts=counts)


class SpikingPool(nn.Module):
    """`functions.earliest_pool` with square windows side by side."""

    size: int

    @nn.compact
    def __call__(self, times: SpikeTimes) -> SpikeTimes:
        square = (self.size, self.size)
        return functions.earliest_pool(times, window=square, strides=square)
