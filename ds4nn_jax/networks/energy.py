"""Estimated energy of a decision, against the same network with ReLU neurons.

A spiking network adds a weight to a potential for every spike and synapse, an ordinary
one multiplies and adds for every synapse. Both also move bytes between memory and
arithmetic, which takes more energy than either; routing is left out. Energies are those
of 45 nm at 0.9 V, from Horowitz, "Computing's energy problem (and what we can do about
it)", ISSCC 2014, Fig. 1.1.9.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from ds4nn_jax import _checks
from ds4nn_jax.networks.network import SpikingNetwork

ADDITION = 0.9e-12  # J, of 32-bit floating point
MULTIPLICATION = 3.7e-12
WHOLE_ADDITION = 0.1e-12  # J, of 32-bit integers
WHOLE_MULTIPLICATION = 0.2e-12  # of 8 bits
BYTE = 100e-12 / 8  # J, of 1 MiB of SRAM on the chip, which gives 8 bytes at a time


class Bytes(NamedTuple):
    """What is read and written, in bytes.

    Attributes:
      weights: read.
      potentials: read and written.
      spikes: written and read; of ReLU neurons their activations.
    """

    weights: float
    potentials: float
    spikes: float


def synaptic_operations(
    network: SpikingNetwork,
    input_shape: tuple[int, ...],
    layer_spikes: Sequence[float],
) -> float:
    """Additions of a weight to a potential: Σ spikes entering a layer · its fan-out.

    The fan-out of a convolution of stride s is kh·kw·O/s², as it is away from the
    border; pooling has no weights and adds nothing. Spikes of reference neurons come on
    top of it, see `reference_operations`.

    Args:
      network: its structure.
      input_shape: of one image, [H, W, I] or [I].
      layer_spikes: spikes of the input and of each layer (`Report.layer_spikes`).
    """
    count, numbers = len(network.layers) + 1, len(layer_spikes)
    rule = f"layer_spikes must hold {count} numbers, of the input and of each layer"
    _checks.need(numbers == count, f"{rule} of {network.spec}", numbers)
    return float(
        sum(
            layer_spikes[layer]
            * math.prod(kernel)
            / kernel[-2]
            / getattr(network.layers[layer], "stride", 1) ** 2
            for layer, kernel, _ in _layers_with_weights(network, input_shape)
        )
    )


def reference_operations(
    network: SpikingNetwork,
    input_shape: tuple[int, ...],
    layer_reference_spikes: Sequence[float],
) -> float:
    """Additions for the spikes of reference neurons: each reaches every neuron of its
    layer, of a convolution those of all places and channels.

    Args:
      network: its structure.
      input_shape: of one image, [H, W, I] or [I].
      layer_reference_spikes: of each layer (`Report.layer_reference_spikes`).
    """
    count, numbers = len(network.layers), len(layer_reference_spikes)
    rule = f"layer_reference_spikes must hold {count} numbers, of each layer"
    _checks.need(numbers == count, f"{rule} of {network.spec}", numbers)
    return float(
        sum(
            layer_reference_spikes[layer] * math.prod(outputs)
            for layer, _, outputs in _layers_with_weights(network, input_shape)
        )
    )


def multiply_accumulates(network: SpikingNetwork, input_shape: tuple[int, ...]) -> int:
    """Multiplications with addition that ReLU neurons in place of spiking ones take.

    Arguments as `synaptic_operations`.
    """
    return sum(
        math.prod(outputs[:-1]) * math.prod(kernel)
        for _, kernel, outputs in _layers_with_weights(network, input_shape)
    )


def bytes_moved(
    network: SpikingNetwork,
    input_shape: tuple[int, ...],
    layer_spikes: Sequence[float],
    layer_reference_spikes: Sequence[float] | None = None,
    *,
    bits: int = 8,
) -> Bytes:
    """Bytes that a decision moves where layers advance together, spike by spike.

    Every addition reads a weight of so many bits, and reads and writes a potential of
    16 bits. Every spike, the input's and those of pooling included, is written and read
    once as an address of 32 bits. Nothing is cached: each potential is in memory until
    the decision.

    Args:
      network: its structure.
      input_shape: of one image, [H, W, I] or [I].
      layer_spikes: spikes of the input and of each layer (`Report.layer_spikes`).
      layer_reference_spikes: of each layer (`Report.layer_reference_spikes`), whose
        weights have 16 bits; None: there are none.
      bits: of a weight.
    """
    additions = synaptic_operations(network, input_shape, layer_spikes)
    references = 0.0
    if layer_reference_spikes is not None:
        references = reference_operations(network, input_shape, layer_reference_spikes)
    return Bytes(
        weights=additions * bits / 8 + 2 * references,
        potentials=4 * (additions + references),
        spikes=8.0 * sum(layer_spikes),
    )


def relu_bytes_moved(
    network: SpikingNetwork, input_shape: tuple[int, ...], *, bits: int = 8
) -> Bytes:
    """Bytes that ReLU neurons in place of spiking ones move, one neuron after another.

    Every multiplication reads a weight and an activation of so many bits, and the sum
    stays in a register until it is written as an activation. Pooling is left out.

    Arguments as `multiply_accumulates`.
    """
    products = multiply_accumulates(network, input_shape)
    neurons = sum(
        math.prod(outputs) for *_, outputs in _layers_with_weights(network, input_shape)
    )
    return Bytes(
        weights=products * bits / 8,
        potentials=0.0,
        spikes=(products + neurons) * bits / 8,
    )


def _layers_with_weights(
    network: SpikingNetwork, input_shape: tuple[int, ...]
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Index, shape of the kernel and shape of the output of an image."""
    times = jax.ShapeDtypeStruct((1, *input_shape), "float32")
    params = jax.eval_shape(network.init, jax.random.key(0), times)
    trace = jax.eval_shape(
        lambda p, t: network.apply(p, t, method="trace"), params, times
    )
    for index, name in enumerate(network.names):
        if name in network.weighted:
            kernel = params["params"][name]["kernel"].shape
            yield index, kernel, trace.times[index + 1].shape[1:]
