"""Initial weights: frozen values that draw the parameters with which a run begins.

The initializers of single kernels are those of `layers.modules`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax import _checks
from ds4nn_jax._engines.synapse import flat
from ds4nn_jax._values import Value
from ds4nn_jax.layers import functions
from ds4nn_jax.layers.encoding import spike_times
from ds4nn_jax.networks.network import SpikingNetwork
from ds4nn_jax.types import SpikeTimes

Params = dict


@dataclasses.dataclass(frozen=True)
class InitialWeights(Value):
    """To define your own, extend this and write `draw`."""

    def draw(
        self, network: SpikingNetwork, key: jax.Array, images: jax.Array | np.ndarray
    ) -> Params:
        """Parameters of the network; images [B, …] are `sample` training images, or
        fewer where there are fewer."""
        raise NotImplementedError

    @property
    def sample(self) -> int:
        """How many training images `draw` looks at."""
        return 1

    def check_network(self, network: SpikingNetwork) -> None:
        """Refuses what does not fit the network, before anything is computed."""


@dataclasses.dataclass(frozen=True)
class Uniform(InitialWeights):
    """Uniform in a range for each layer, as in the paper's Table 1.

    Attributes:
      ranges: (low, high) mV for each layer with weights; empty: by fan-in, see
        `modules.scaled_weights`.
    """

    ranges: tuple[tuple[float, float], ...] = ()

    def draw(self, network, key, images) -> Params:
        if self.ranges:
            network = network.clone(initial_weights=self.ranges)
        return _init(network, key, spike_times(images[:1], network.num_steps))

    def check_network(self, network: SpikingNetwork) -> None:
        if self.ranges:
            network.clone(initial_weights=self.ranges)  # refuses what does not fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class FiringRates(InitialWeights):
    """By fan-in, then scaled layer by layer until a set share of the driven neurons
    fires on training images, see `calibrate`; without the urgency.

    Attributes:
      conv: share of the driven neurons of every convolution, in (0, 1).
      dense: of every hidden fully connected layer: these are small and want more.
      output: of the output layer.
      images: how many training images it is measured on.
      edges: of a first convolution whose kernels have sums of zero, so that they fire
        at edges and not in flat regions; 0: as all other convolutions.
    """

    conv: float = 0.25
    dense: float = 0.7
    output: float = 0.7
    images: int = 200
    edges: float = 0.0

    def check(self) -> None:
        for name in ("conv", "dense", "output"):
            self.require(name, 0 < getattr(self, name) < 1, "in (0, 1)")
        self.require("edges", 0 <= self.edges < 1, "in [0, 1)")
        self.require("images", self.images >= 1, "at least 1")

    @property
    def sample(self) -> int:
        return self.images

    def draw(self, network, key, images) -> Params:
        times = spike_times(images[: self.images], network.num_steps)
        params = _init(network, key, times[:1])
        hidden = [
            self.conv if name.startswith("conv") else self.dense
            for name in network.weighted[:-1]
        ]
        if self.edges:
            first = params["params"][network.weighted[0]]
            first["kernel"] -= jnp.mean(first["kernel"], (0, 1, 2), keepdims=True)
            hidden[0] = self.edges
        return calibrate(network, params, times, (*hidden, self.output))

    def check_network(self, network: SpikingNetwork) -> None:
        first = network.weighted[0]
        fits = not self.edges or first.startswith("conv")
        self.require("edges", fits, f"0 for {network.spec}: it begins densely")


def calibrate(
    network: SpikingNetwork,
    params: Params,
    times: SpikeTimes,
    firing_rates: tuple[float, ...],
) -> Params:
    """Scales each layer's weights until a set share of its driven neurons fires.

    A neuron is driven by an image if at least one spike reaches it; on MNIST most of
    the first layer sees black and is not. Without a reset V is linear in the weights,
    those of reference neurons included, so w ← w·θ/q with q the (1 − rate) quantile
    of max_t V(t) over driven neurons does it in one pass per layer, front to back. Too
    small initial weights are silent for good, too large ones fire at once.

    Args:
      network: whose layers are scaled.
      params: its parameters.
      times: [B, …] input spike times.
      firing_rates: in (0, 1), one for each layer with weights.

    Returns:
      Parameters of the same structure. Under jit a layer that cannot be scaled (q ≤ 0)
      is left as it is.

    Raises:
      ValueError: outside jit, a layer has fewer excitable neurons than should fire.
    """
    rates = dict(zip(network.weighted, firing_rates, strict=True))
    scaled: dict[str, Any] = {}
    for index, name in enumerate(network.names):
        layer = params["params"].get(name)
        if layer is not None:
            if layer["kernel"].ndim == 2:
                times = flat(times)
            peaks, driven = _excitation(network, index, times, layer)
            quantile = _quantile(peaks, driven, 1 - rates[name])
            if not _checks.is_traced(quantile) and not quantile > 0:
                excited = float(jnp.mean(driven & (peaks > 0)))
                raise ValueError(
                    f"firing_rates: {rates[name]:.0%} of the driven neurons of {name} "
                    f"cannot be made to fire, only {excited:.0%} of all neurons are "
                    "ever excited: ask for fewer, or let the initial weights be more "
                    "positive"
                )
            scale = jnp.where(quantile > 0, network.threshold / quantile, 1)
            scaled[name] = {key: weights * scale for key, weights in layer.items()}
        layer = {name: scaled[name]} if name in scaled else {}
        times = _passed(network, index, layer, times)
    return {"params": scaled}


# Compiled once for a network in a process, however many runs begin with it.
@functools.partial(jax.jit, static_argnums=0)
def _init(network: SpikingNetwork, key: jax.Array, times: SpikeTimes) -> Any:
    return network.init(key, times)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _passed(network: SpikingNetwork, index: int, params, times) -> Any:
    """What leaves the layer of that index."""
    return network.apply(
        {"params": params}, times, method=lambda net, t: net.stack[index](t)
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _excitation(
    network: SpikingNetwork, index: int, times: SpikeTimes, layer: Params
) -> tuple[jax.Array, jax.Array]:
    """Highest potentials of a layer if nothing fired, and which neurons are driven."""
    peaks_of = functools.partial(
        functions.peak_potentials,
        times,
        num_steps=network.num_steps,
        strides=getattr(network.layers[index], "strides", (1, 1)),
        padding=network.padding,
        engine=network.engine,
    )
    peaks = peaks_of(layer["kernel"], pulses=layer.get("pulses"))
    driven = peaks_of(jnp.ones_like(layer["kernel"][..., :1])) > 0
    return peaks, jnp.broadcast_to(driven, peaks.shape)


def _quantile(values: jax.Array, counted: jax.Array, q: float) -> jax.Array:
    """The q-quantile of the values counted; 0 of none."""
    if _checks.readable(values):  # NumPy does without sorting everything
        kept = np.asarray(values)[np.asarray(counted)]
        return jnp.asarray(np.quantile(kept, q) if kept.size else 0, values.dtype)
    # Without a NaN among the results, at which `jax_debug_nans` would stop.
    kept = jnp.where(counted, values, jnp.nan)
    return jnp.where(jnp.any(counted), jnp.nanquantile(kept, q), 0)
