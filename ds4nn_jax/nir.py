"""Networks as NIR graphs (Pedersen et al. 2024), and back. Needs the extra `nir`.

NIR knows integrate-and-fire neurons that fire as often as they reach their threshold. A
neuron that fires once is one whose reset lies so far below that all that can still
arrive does not lift it again: `v_reset` is minus the largest sum of positive weights.
A simulator that does not take `v_reset` from the graph lets neurons fire again and
gives other times: snnTorch, Norse, Sinabs and spyx ignore it, SpikingJelly 2.0
takes it.
That times are equal is tested on a plain executor of the graph, not on any of them.

    layer                 nodes
    64C3                  Conv2d (no bias) → IF
    P2                    SumPool2d → IF with threshold 1: fires with its first input
    10                    Flatten, the first time → Linear → IF
    10, with an urgency   … → Affine, whose bias arrives at every step → IF; an
                          urgency in whole numbers, which varies, is among the pulses
    10, with pulses       Input "LAYER_reference" [P] → Linear → the same IF
    64C3, with pulses     Input "LAYER_reference" [P, H, W] → Conv2d 1×1 → the same IF

A reference neuron spikes once, whatever the image, at a step that is in the metadata of
its Input: {"steps": [t_0, …, t_P−1]}, t_p = ⌊p·T/P⌋. Whoever runs the graph feeds these
spikes in, of a convolution at all places.

NIR fires at v > v_threshold, these networks at V ≥ θ: `v_threshold` is the float32 just
below θ, which makes the two the same. NIR has no notion of a last step: T is not in the
graph. Axes are channels first, as NIR wants them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ds4nn_jax._engines.synapse import explicit_pads, pulse_steps
from ds4nn_jax.layers import _response
from ds4nn_jax.networks import quantization
from ds4nn_jax.networks.network import SpikingNetwork
from ds4nn_jax.networks.spec import ConvSpec, PoolSpec

try:
    import nir
except ImportError as error:
    raise ImportError("ds4nn_jax.nir needs NIR: pip install ds4nn_jax[nir]") from error


def to_nir(
    network: SpikingNetwork, params: dict, input_shape: Sequence[int]
) -> nir.NIRGraph:
    """The network as a graph for `nir.write`.

    Args:
      network: what is described.
      params: its parameters.
      input_shape: of one image, (H, W, C), or (I,) for a fully connected network.

    Returns:
      A chain of nodes from "input" to "output", named as the network's layers; the
      nodes that only weigh or sum are called LAYER_in. Beside it, of layers with
      pulses, LAYER_reference and LAYER_reference_in.

    Raises:
      ValueError: parameters or input do not fit, a padding differs between two sides,
        or pooling windows do not divide what they pool: NIR cannot say these.
    """
    silent = np.full((1, *input_shape), network.num_steps, np.float32)
    trace = jax.eval_shape(lambda p: network.apply(p, silent, method="trace"), params)
    shapes = [times.shape[1:] for times in trace.times]
    nodes = {"input": nir.Input({"input": np.array(_channels_first(shapes[0]))})}
    references: dict[str, nir.NIRNode] = {}
    edges = []
    arrays = network.reference_weights(params), network.thresholds(params)
    weighted = dict(zip(network.weighted, zip(*arrays, strict=True), strict=True))
    urgency = 0.0 if quantization.is_whole(params) else network.urgency
    layers = zip(network.names, network.layers, shapes, shapes[1:], strict=False)
    for name, layer, before, shape in layers:
        pulses, threshold = weighted.get(name, ((), np.ones(1)))
        summing, most = _summing(network, params, name, layer, before)
        if urgency and name == network.names[-1]:
            linear = summing[f"{name}_in"].weight
            bias = np.full(len(linear), urgency, np.float32)
            summing[f"{name}_in"] = nir.Affine(linear, bias)
            most += network.num_steps * urgency
            pulses = params["params"][name].get("pulses", ())
        nodes |= summing
        if len(pulses):
            weights = np.asarray(pulses, np.float32)
            most += _most(weights)
            names = f"{name}_reference", f"{name}_reference_in"
            reference = _reference(weights, shape[:-1], network.num_steps)
            references |= zip(names, reference, strict=True)
            edges += [names, (names[1], name)]
        neuron = np.ones(_channels_first(shape), np.float32)
        below = np.nextafter(np.asarray(threshold, np.float32), np.float32(0))
        below = below.reshape(-1, *[1] * (len(shape) - 1))  # channels first
        nodes[name] = nir.IF(
            r=neuron, v_threshold=below * neuron, v_reset=-most * neuron
        )
    nodes["output"] = nir.Output({"output": np.array(shapes[-1])})
    edges += zip(nodes, list(nodes)[1:], strict=False)
    return nir.NIRGraph(nodes | references, edges)


def _summing(
    network: SpikingNetwork, params: dict, name: str, layer, before: tuple[int, ...]
) -> tuple[dict[str, nir.NIRNode], float]:
    """The nodes in front of a layer's neurons, by name, and the most that these can
    receive."""
    if isinstance(layer, PoolSpec):
        if not _response.divides((layer.size, layer.size), (1, *before)):
            raise ValueError(
                f"{name}: windows of {layer.size} leave a rest of {before[:2]}, "
                "which NIR's pooling would drop"
            )
        size = np.array([layer.size] * 2)
        pooling = nir.SumPool2d(size, size, np.zeros(2, int))
        return {f"{name}_in": pooling}, float(layer.size**2)
    kernel = np.asarray(params["params"][name]["kernel"], np.float32)
    most = _most(kernel)
    if isinstance(layer, ConvSpec):
        window, strides = kernel.shape[:2], layer.strides
        pads = explicit_pads(network.padding, before[:2], window, strides)
        if any(low != high for low, high in pads):
            raise ValueError(
                f"{name} pads {pads}: NIR pads both sides alike, so choose odd "
                "kernels or padding VALID"
            )
        sides = tuple(low for low, _ in pads)
        return {f"{name}_in": _conv2d(kernel, before[:2], strides, sides)}, most
    nodes: dict[str, nir.NIRNode] = {}
    if len(before) == 3:
        image = {"input": np.array(_channels_first(before))}
        nodes["flatten"] = nir.Flatten(image, start_dim=0)
        kernel = kernel.reshape(*before, -1).transpose(2, 0, 1, 3)
        kernel = kernel.reshape(-1, kernel.shape[-1])
    nodes[f"{name}_in"] = nir.Linear(kernel.T)
    return nodes, most


def _reference(
    pulses: np.ndarray, places: tuple[int, ...], num_steps: int
) -> tuple[nir.Input, nir.NIRNode]:
    """Reference neurons of a layer that has neurons at these places, and what weighs
    their spikes."""
    steps = {"steps": pulse_steps(len(pulses), num_steps)}
    neurons = nir.Input({"input": np.array((len(pulses), *places))}, metadata=steps)
    if not places:
        return neurons, nir.Linear(pulses.T)
    return neurons, _conv2d(pulses[None, None], places, (1, 1), (0, 0))


def _conv2d(
    kernel: np.ndarray,
    image: tuple[int, ...],
    strides: tuple[int, int],
    padding: tuple[int, ...],
) -> nir.Conv2d:
    return nir.Conv2d(
        input_shape=image,
        weight=kernel.transpose(3, 2, 0, 1),
        stride=strides,
        padding=padding,
        dilation=(1, 1),
        groups=1,
        bias=np.zeros(kernel.shape[-1], np.float32),
    )


def from_nir(
    graph: nir.NIRGraph, *, num_steps: int = 100, **attributes
) -> tuple[SpikingNetwork, dict]:
    """The network that a graph describes, and its parameters.

    Args:
      graph: a chain of the nodes that `to_nir` makes, and their reference neurons, in
        any order. Its input may be flat, [C, H, W], [H, W], or have a batch axis of 1
        in front; it may begin with Flatten. An input of no shape, or of [1] as some
        exporters write, has the shape that the initial weights take. Thresholds are one
        for each neuron, one for each channel, or one for all.
      num_steps: T, also that of the reference neurons, if there are any.
      **attributes: others of `SpikingNetwork`: surrogate, normalization, engine.

    Returns:
      (network, parameters); `to_nir` inverts it.

    Raises:
      ValueError: the graph is no chain, has a node that is not among these, or neurons
        that single-spike integrate-and-fire neurons are not (a bias of hidden ones, or
        one that differs between the outputs, r ≠ 1, a threshold that differs within a
        channel, a reset from which they could fire again, reference neurons that spike
        at other steps than these).
    """
    for name, node in graph.nodes.items():
        if not np.isfinite(getattr(node, "weight", 0.0)).all():
            raise ValueError(f"{name}: weight has NaN or infinite values")
    params: dict = {}
    thresholds: list[np.ndarray] = []
    paddings: dict[str, tuple] = {}
    tokens: list[str] = []
    current: _Current | None = None
    pulses, chain = _pulses(graph, num_steps), _chain(graph)
    shape = _image(chain)
    bias, before = 0.0, ""  # of the neurons that came last
    for name, node in chain[1:-1]:
        if isinstance(node, nir.IF):
            if current is None:
                raise ValueError(f"{name}: an IF needs Conv2d, SumPool2d or Linear")
            layer, threshold = _neurons(
                name, node, current, pulses.get(name), num_steps
            )
            if layer:
                params[f"{current.kind}{len(params) + 1}"] = layer
                thresholds.append(threshold)
            if bias:
                raise ValueError(f"{before}: only the output neurons may have a bias")
            bias, before = current.bias, name
            tokens.append(current.token)
            shape, current = current.shape, None
        elif current is not None:
            raise ValueError(
                f"{name}: {type(node).__name__} stands where an IF must be: "
                "single-spike neurons do not leak"
            )
        elif isinstance(node, nir.Conv2d):
            paddings[name] = _pads(name, node, shape)
            current = _convolution(name, node, shape, paddings[name][0])
        elif isinstance(node, nir.SumPool2d):
            current = _pooling(name, node, shape)
        elif isinstance(node, nir.Linear | nir.Affine):
            current = _linear(name, node, shape)
            tokens = tokens or [str(math.prod(shape))]
        elif not isinstance(node, nir.Flatten):
            raise ValueError(f"{name}: {type(node).__name__} is no single-spike layer")
    if current is not None:
        raise ValueError("the last node needs an IF")
    if len(np.unique(np.concatenate(thresholds))) > 1:
        for layer, values in zip(params.values(), thresholds, strict=True):
            layer["threshold"] = values
    counts = tuple(len(layer.get("pulses", ())) for layer in params.values())
    network = SpikingNetwork.from_spec(
        "-".join(tokens),
        num_steps=num_steps,
        threshold=_shortest(thresholds[-1].max()),
        padding=_padding(paddings),
        urgency=bias,
        pulses=counts if any(counts) else (),
        **attributes,
    )
    return network, {"params": params}


class _Current(NamedTuple):
    """What flows into the next neurons: a layer but for its threshold."""

    kind: str
    token: str
    shape: tuple[int, ...]  # of the neurons: [O] or [C, H, W]
    kernel: np.ndarray | None
    most: float
    bias: float = 0.0


def _convolution(
    name: str, node: nir.Conv2d, image: tuple[int, ...], pads: tuple
) -> _Current:
    if np.any(node.bias) or node.groups != 1 or _pair(node.dilation) != (1, 1):
        raise ValueError(f"{name}: a Conv2d must have no bias, groups or dilation")
    down, right = _pair(node.stride)
    if down != right:
        raise ValueError(f"{name}: strides must be equal, got {node.stride}")
    kernel = np.ascontiguousarray(np.asarray(node.weight).transpose(2, 3, 1, 0))
    if kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"{name}: kernel must be square, got {kernel.shape[:2]}")
    token = str(ConvSpec(kernel.shape[3], kernel.shape[0], down))
    sides = (
        (size + low + high - kernel.shape[0]) // down + 1
        for size, (low, high) in zip(image[1:], pads, strict=True)
    )
    shape = (kernel.shape[3], *sides)
    return _Current("conv", token, shape, kernel, _most(kernel))


def _pads(name: str, node: nir.Conv2d, shape: tuple) -> tuple:
    """A convolution's pads, and what "SAME" would be."""
    channels = np.shape(node.weight)[1]
    if len(shape) != 3 or shape[0] != channels:
        raise ValueError(
            f"{name}: its input must be [{channels}, H, W], got {list(shape)}"
        )
    geometry = shape[1:], node.weight.shape[2:], _pair(node.stride)
    padding = (
        node.padding.upper()
        if isinstance(node.padding, str)
        else tuple((side, side) for side in _pair(node.padding))
    )
    return explicit_pads(padding, *geometry), explicit_pads("SAME", *geometry)


def _pooling(name: str, node: nir.SumPool2d, image: tuple[int, ...]) -> _Current:
    sizes = {*_pair(node.kernel_size), *_pair(node.stride)}
    if len(sizes) != 1 or _pair(node.padding) != (0, 0):
        raise ValueError(
            f"{name}: pooling windows must be square, side by side and unpadded"
        )
    (size,) = sizes
    shape = (image[0], *(side // size for side in image[1:]))
    return _Current("pool", f"P{size}", shape, None, size**2)


def _linear(name: str, node: nir.Linear | nir.Affine, shape: tuple) -> _Current:
    kernel, inputs = np.asarray(node.weight).T, math.prod(shape)
    bias = np.asarray(getattr(node, "bias", 0.0), np.float32)
    if len(kernel) != inputs:
        raise ValueError(f"{name}: takes {len(kernel)} inputs, gets {inputs}")
    if np.ptp(bias) != 0 or bias.flat[0] < 0:
        raise ValueError(f"{name}: a bias must be one current ≥ 0 for all its neurons")
    if len(shape) == 3:
        kernel = kernel.reshape(*shape, -1).transpose(1, 2, 0, 3)
    kernel = np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]))
    most, urgency = _most(kernel), _shortest(bias.flat[0])
    outputs = kernel.shape[1]
    return _Current("dense", str(outputs), (outputs,), kernel, most, urgency)


def _image(chain: list[tuple[str, nir.NIRNode]]) -> tuple[int, ...]:
    """The shape of one image: [I] or [C, H, W]."""
    name, node = chain[0]
    size = node.input_type["input"]
    shape = () if size is None else tuple(int(length) for length in np.ravel(size))
    if shape in ((), (1,)):
        shape = _first_inputs(name, chain)
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) not in (1, 2, 3):
        raise ValueError(
            f"the input must be [I], [H, W], [C, H, W] or [1, C, H, W], got {shape}"
        )
    return (1, *shape) if len(shape) == 2 else shape


def _first_inputs(name: str, chain: list[tuple[str, nir.NIRNode]]) -> tuple[int, ...]:
    """The shape that the first weights need, for an input that does not say its own."""
    for _, node in chain[1:]:
        if isinstance(node, nir.Linear | nir.Affine):
            return (np.shape(node.weight)[1],)
        if isinstance(node, nir.Conv2d) and node.input_shape is not None:
            return (np.shape(node.weight)[1], *_pair(node.input_shape))
        if not isinstance(node, nir.Flatten):
            break
    raise ValueError(f"the input {name!r} must say its shape, [C, H, W]")


def _most(kernel: np.ndarray) -> float:
    """The most that a neuron can receive: all its positive weights [..., O]."""
    axes = tuple(range(kernel.ndim - 1))
    return float(np.maximum(kernel, 0).sum(axes, dtype=np.float64).max())


def _channels_first(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[2], *shape[:2]) if len(shape) == 3 else tuple(shape)


def _pair(value) -> tuple[int, int]:
    first, second = (int(v) for v in np.broadcast_to(value, 2))
    return first, second


def _shortest(stored: np.float32) -> float:
    """The shortest decimal that is stored so: 0.3 of the float32 nearest to it."""
    return float(str(stored))


def _threshold(name: str, node: nir.IF, current: _Current, most: float) -> np.ndarray:
    """θ [O] of neurons that can receive at most so much."""
    for field in ("r", "v_threshold", "v_reset"):
        shape, neurons = np.shape(getattr(node, field)), current.shape
        channels = (neurons[0],), (neurons[0], 1, 1)
        if math.prod(shape) != 1 and shape not in (neurons, *channels):
            raise ValueError(
                f"{name}: {field} has shape {list(shape)}, its neurons are "
                f"{list(neurons)}"
            )
    if np.any(node.r != 1):
        raise ValueError(f"{name}: r must be 1, scale the weights instead")
    below = np.asarray(node.v_threshold, np.float32)
    if below.size == 1:
        below = np.full(current.shape[0], below.ravel()[0])
    below = below.reshape(current.shape[0], -1)
    if np.ptp(below, axis=1).any():
        raise ValueError(f"{name}: the neurons of a channel must share one threshold")
    below = below[:, 0]
    if float(np.max(node.v_reset)) + most > below.min():
        raise ValueError(
            f"{name}: neurons could fire again, their v_reset of "
            f"{np.max(node.v_reset):g} must be {-most:g} or less"
        )
    return np.nextafter(below, np.float32(np.inf))


def _neurons(
    name: str,
    node: nir.IF,
    current: _Current,
    pulses: np.ndarray | None,
    num_steps: int,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The weights of a layer, none of pooling, and its θ [O]."""
    arrays = {"kernel": current.kernel, "pulses": pulses}
    layer = {key: array for key, array in arrays.items() if array is not None}
    most = current.most + num_steps * current.bias
    if current.kernel is None and layer:
        raise ValueError(f"{name}: pooling neurons have no reference neurons")
    if pulses is not None:
        most += _most(pulses)
    threshold = _threshold(name, node, current, most)
    if not layer and (threshold != 1).any():
        raise ValueError(
            f"{name}: a pooling neuron fires with its first input, so its "
            f"threshold is 1, got {threshold.max():g}"
        )
    return layer, threshold


def _padding(paddings: dict[str, tuple]):
    """The one padding of all convolutions: each has its pads and those of "SAME"."""
    if all(pads == same for pads, same in paddings.values()):
        return "SAME"
    kinds = {pads for pads, _ in paddings.values()}
    if kinds == {((0, 0), (0, 0))}:
        return "VALID"
    if len(kinds) != 1:
        raise ValueError(f"convolutions must pad alike, got {paddings}")
    return kinds.pop()


def _reference_neurons(graph: nir.NIRGraph) -> dict[str, str]:
    """Names of Inputs that are reference neurons, and what weighs their spikes."""
    edges = dict(graph.edges)
    return {
        name: edges.get(name, "")
        for name, node in graph.nodes.items()
        if isinstance(node, nir.Input) and "steps" in node.metadata
    }


def _pulses(graph: nir.NIRGraph, num_steps: int) -> dict[str, np.ndarray]:
    """Weights [P, O] of reference neurons, by the IF that they reach."""
    pulses: dict[str, np.ndarray] = {}
    for name, weighing in _reference_neurons(graph).items():
        node, reached = graph.nodes.get(weighing), dict(graph.edges).get(weighing, "")
        plain = isinstance(node, nir.Linear)
        if isinstance(node, nir.Conv2d):
            sizes = node.weight.shape[2:], _pair(node.stride), _pair(node.padding)
            plain = sizes == ((1, 1), (1, 1), (0, 0)) and not np.any(node.bias)
        fires = isinstance(graph.nodes.get(reached), nir.IF)
        if not plain or not fires or reached in pulses:
            raise ValueError(
                f"{name}: reference neurons must reach an IF of their own, through a "
                "Linear or a 1×1 Conv2d without bias"
            )
        weights = np.asarray(node.weight)
        pulses[reached] = np.ascontiguousarray(weights.reshape(weights.shape[:2]).T)
        steps = np.asarray(graph.nodes[name].metadata["steps"]).tolist()
        expected = pulse_steps(len(pulses[reached]), num_steps).tolist()
        if steps != expected:
            raise ValueError(
                f"{name}: with T = {num_steps} these reference neurons spike at steps "
                f"{expected}, got {steps}"
            )
    return pulses


def _chain(graph: nir.NIRGraph) -> list[tuple[str, nir.NIRNode]]:
    """Nodes from input to output, without reference neurons."""
    fault = ValueError("the graph must be a chain from one input to one output")
    aside = {name for pair in _reference_neurons(graph).items() for name in pair}
    edges = [edge for edge in graph.edges if edge[0] not in aside]
    nodes = {name: node for name, node in graph.nodes.items() if name not in aside}
    after = dict(edges)
    starts = [name for name, node in nodes.items() if isinstance(node, nir.Input)]
    one_each = len(after) == len({*after.values()}) == len(edges)
    if len(starts) != 1 or not one_each:
        raise fault
    chain, name = [], starts[0]
    while name is not None:
        chain.append((name, nodes[name]))
        name = after.pop(name, None)
    if len(chain) != len(nodes) or not isinstance(chain[-1][1], nir.Output):
        raise fault
    return chain
