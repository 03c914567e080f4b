"""Networks of integers: weights of a few bits, and a whole threshold a channel.

Spikes carry no scale, so a channel with weights w and threshold θ fires when one with
w/s and θ/s does. With whole w/s, sums are exact in every order and on every machine.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax import _checks
from ds4nn_jax._engines.synapse import pulse_currents
from ds4nn_jax.layers import _response
from ds4nn_jax.networks.network import SpikingNetwork

Params = dict

EXACT = 2**24  # float32 holds every integer up to here
_MOST = 2**23  # of thresholds: those of channels with next to no weights


def quantize(
    network: SpikingNetwork, params: Mapping, *, bits: int
) -> tuple[SpikingNetwork, Params]:
    """The network with whole weights of so many bits, and whole thresholds.

    q = round(w/s), |q| ≤ 2^(b−1) − 1 (±1 for b = 1), θ_c = round(θ/s + ½)

    s is one of each channel, of the output layer one for all, so that their potentials
    can be compared: max |w|/(2^(b−1) − 1); mean |w| for one bit; for two the mean of
    those |w| that are at least 0.7 of the mean. Pulses are rounded so that their sums
    up to each step are nearest. Rounding costs accuracy: train on
    (`TrainConfig.bits`, `train(…, params=…)`).

    Args:
      network: with weights in mV.
      params: its parameters.
      bits: b, 1 … 8.

    Returns:
      (network, parameters): kernels int8, pulses and thresholds int32. Threshold and
      urgency of the network are in the unit of the output layer; the urgency of a step
      t is ⌊u·(t + 1)⌋ − ⌊u·t⌋.

    Raises:
      ValueError: sums could reach 2²⁴, where float32 is no longer exact.

    Example:
      >>> import jax, numpy as np, ds4nn_jax as ds
      >>> network = ds.SpikingNetwork.from_spec("2-2")
      >>> kernel = np.array([[60.0, 30.0], [-20.0, 90.0]], np.float32)
      >>> params = {"params": {"dense1": {"kernel": kernel}}}
      >>> whole, params = ds.quantize(network, params, bits=3)
      >>> params["params"]["dense1"]["kernel"], whole.threshold
      (array([[ 2,  1],
             [-1,  3]], dtype=int8), 4.0)
    """
    _checks.bits(bits)
    if is_whole(params):
        raise ValueError("these weights are integers already")
    _checks.finite_weights(params)
    layers: dict = {}
    for name, arrays in params["params"].items():
        weights, theta, _ = _rounded(network, name, arrays, bits)
        layers[name] = {
            "kernel": np.asarray(weights["kernel"]).astype(np.int8),
            "threshold": np.asarray(theta).astype(np.int32),
        }
        if "pulses" in weights:
            layers[name]["pulses"] = np.asarray(weights["pulses"]).astype(np.int32)
    theta = layers[network.names[-1]]["threshold"].max()
    unit = (float(theta) - 0.5) / network.threshold
    whole = network.clone(threshold=float(theta), urgency=network.urgency * unit)
    check_exact(whole, {"params": layers})
    return whole, {"params": layers}


def rounded(
    network: SpikingNetwork, params: Mapping, bits: int
) -> tuple[SpikingNetwork, Params]:
    """What training sees: the same spikes as `quantize` gives, in mV, with gradients
    straight through the rounding.

    s·V ≥ θ where V ≥ θ_c − ½, since s = θ/(θ_c − ½): rounding errors of float32 stay
    far below the half. An urgency is among the pulses.
    """
    layers: dict = {}
    for name, arrays in params["params"].items():
        weights, _, scale = _rounded(network, name, arrays, bits)
        layers[name] = dict(arrays)
        for kind, whole in weights.items():
            real = arrays[kind]
            layers[name][kind] = real + jax.lax.stop_gradient(scale * whole - real)
    if not network.urgency:
        return network, {"params": layers}
    output, steps = layers[network.names[-1]], network.num_steps
    none = jnp.zeros((0, network.num_classes), output["kernel"].dtype)
    theirs = pulse_currents(output.get("pulses", none), steps)
    totals = jnp.floor(network.urgency / scale * jnp.arange(steps + 1)[:, None])
    output["pulses"] = theirs + jax.lax.stop_gradient(scale * jnp.diff(totals, axis=0))
    counts = *list(network.pulse_counts.values())[:-1], steps
    return network.clone(urgency=0.0, pulses=counts), {"params": layers}


def _rounded(
    network: SpikingNetwork, name: str, arrays: Mapping, bits: int
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """Whole weights of a layer, as floats, its θ_c [O], and its scales s [O]."""
    kernel = jnp.asarray(arrays["kernel"])
    theta = jnp.asarray(arrays.get("threshold", network.threshold), kernel.dtype)
    most, size = max(1, 2 ** (bits - 1) - 1), jnp.abs(kernel)
    axes = tuple(range(kernel.ndim - (name != network.names[-1])))
    if bits <= 2:
        mean = jnp.mean(size, axis=axes, keepdims=True)
        large = size >= (0.7 * mean if bits == 2 else 0)
        step = jnp.mean(size, axis=axes, where=large)
    else:
        step = jnp.max(size, axis=axes) / most
    whole = jnp.clip(jnp.round(theta / step + 0.5), 1, _MOST)
    whole = jnp.broadcast_to(whole, kernel.shape[-1:])
    scale = theta / (whole - 0.5)
    if bits == 1:
        weights = {"kernel": jnp.where(kernel < 0, -1.0, 1.0).astype(kernel.dtype)}
    else:
        weights = {"kernel": jnp.clip(jnp.round(kernel / scale), -most, most)}
    if "pulses" in arrays:
        totals = jnp.round(jnp.cumsum(arrays["pulses"], axis=0) / scale)
        weights["pulses"] = jnp.diff(totals, axis=0, prepend=0)
    return weights, whole, scale


def real_weights(params: Mapping, threshold: float) -> Params:
    """Weights in mV of the integers of `quantize`, for a network of this θ."""

    def layer(arrays: Mapping) -> dict:
        scale = threshold / (np.asarray(arrays["threshold"], np.float32) - 0.5)
        names = (name for name in arrays if name != "threshold")
        return {name: np.float32(arrays[name] * scale) for name in names}

    return {"params": {k: layer(v) for k, v in params["params"].items()}}


def millivolt(network: SpikingNetwork, params: Mapping) -> float:
    """What a mV, where θ is 100 mV, is in the unit of the network's urgency: a
    hundredth of the output layer's threshold, of integers of θ_c − ½."""
    return (network.threshold - 0.5 * is_whole(params)) / 100


def in_millivolts(
    network: SpikingNetwork, params: Mapping
) -> tuple[SpikingNetwork, Params]:
    """A network of integers with weights in mV, θ = 100, and the same spikes."""
    urgency = round(network.urgency / millivolt(network, params), 9)
    real = network.clone(threshold=100.0, urgency=urgency)
    return real, real_weights(params, 100.0)


def is_whole(params: Mapping) -> bool:
    """Whether the weights are integers, as `quantize` gives them."""
    layers = params["params"].values()
    return all(_response.is_whole(arrays["kernel"]) for arrays in layers)


def largest_sums(network: SpikingNetwork, params: Mapping) -> dict[str, int]:
    """What |V| of each layer with whole weights cannot exceed, whatever spikes arrive
    and in whatever order they are added."""
    references = network.reference_weights(dict(params))
    bounds = {}
    for name, reference in zip(network.weighted, references, strict=True):
        kernel = np.asarray(params["params"][name]["kernel"], np.int64)
        rows = kernel.reshape(-1, kernel.shape[-1])
        rows = np.concatenate([rows, np.asarray(reference, np.int64)])
        up, down = np.maximum(rows, 0).sum(axis=0), np.minimum(rows, 0).sum(axis=0)
        bounds[name] = int(max(up.max(), -down.min()))
    return bounds


def check_exact(network: SpikingNetwork, params: Mapping) -> None:
    """Refuses whole weights whose sums could leave what float32 holds exactly."""
    for name, most in largest_sums(network, params).items():
        if most >= EXACT:
            raise ValueError(
                f"{name}: sums of its whole weights reach {most}, float32 is exact "
                f"below 2²⁴ = {EXACT}: use fewer bits, inputs or pulses"
            )
