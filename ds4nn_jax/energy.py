"""Estimated energy of a decision, against the same network with ReLU neurons.

Arithmetic alone, memory and routing left out: a spiking network adds a weight to a
potential for every spike and synapse, an ordinary one multiplies and adds for every
synapse. Energies are those of 32-bit floating point in 45 nm at 0.9 V, from Horowitz,
"Computing's energy problem (and what we can do about it)", ISSCC 2014, Fig. 1.1.9.
"""

import math
from collections.abc import Iterator, Sequence

import jax

from ds4nn_jax.modules import SpikingNetwork

ADDITION = 0.9e-12  # J
MULTIPLICATION = 3.7e-12  # J


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

    Raises:
      ValueError: not one number of spikes for the input and each layer, or an input
        that the network cannot take.
    """
    if len(layer_spikes) != len(network.layers) + 1:
        raise ValueError(
            f"layer_spikes must hold {len(network.layers) + 1} numbers, of the input "
            f"and of each layer of {network.spec}, got {len(layer_spikes)}"
        )
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

    Raises:
      ValueError: not one number of spikes for each layer, or an input that the network
        cannot take.
    """
    if len(layer_reference_spikes) != len(network.layers):
        raise ValueError(
            f"layer_reference_spikes must hold {len(network.layers)} numbers, of each "
            f"layer of {network.spec}, got {len(layer_reference_spikes)}"
        )
    return float(
        sum(
            layer_reference_spikes[layer] * math.prod(outputs)
            for layer, _, outputs in _layers_with_weights(network, input_shape)
        )
    )


def multiply_accumulates(network: SpikingNetwork, input_shape: tuple[int, ...]) -> int:
    """Multiplications with addition that ReLU neurons in place of spiking ones take.

    Arguments and errors as `synaptic_operations`.
    """
    return sum(
        math.prod(outputs[:-1]) * math.prod(kernel)
        for _, kernel, outputs in _layers_with_weights(network, input_shape)
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
