"""Networks as NIR graphs (Pedersen et al. 2024), and back. Needs the extra `nir`.

    layer                 nodes
    64C3                  Conv2d (no bias) → IF
    P2                    SumPool2d → IF with threshold 1: fires with its first input
    10                    Flatten, the first time → Linear → IF
    10, with an urgency   … → Affine, whose bias arrives at every step → IF; an
                          urgency in integers, which varies, is among the pulses
    10, with pulses       Input "LAYER_reference" [P] → Linear → the same IF
    64C3, with pulses     Input "LAYER_reference" [P, H, W] → Conv2d 1×1 → the same IF

NIR's neurons fire at v > `v_threshold`, again and again. Those of a graph fire at
V ≥ θ, because their `v_threshold` is the float32 just below θ, and once, because their
`v_reset` is minus the largest sum of positive weights. Reference neurons spike at the
steps in the metadata of their Input: {"steps": [t_0, …, t_P−1]}, t_p = ⌊p·T/P⌋. T is
not in the graph. Axes are channels first.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ds4nn_jax._engines.synapse import explicit_pads, pulse_steps
from ds4nn_jax.networks import quantization
from ds4nn_jax.networks.network import SpikingNetwork, check_params
from ds4nn_jax.networks.spec import ConvSpec, DenseSpec, PoolSpec, parse_spec

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
    check_params(network, params, silent)
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
            size = {"input": np.array((len(weights), *shape[:-1]))}
            steps = {"steps": pulse_steps(len(weights), network.num_steps)}
            own, weighing = f"{name}_reference", f"{name}_reference_in"
            references[own] = nir.Input(size, metadata=steps)
            references[weighing] = nir.Linear(weights.T)
            if len(shape) == 3:
                references[weighing] = _conv2d(weights[None, None], shape[:2])
            edges += [(own, weighing), (weighing, name)]
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
        if any(size % layer.size for size in before[:2]):
            raise ValueError(
                f"{name}: windows of {layer.size} leave a rest of {before[:2]}, "
                "which NIR's pooling would drop"
            )
        size = np.array([layer.size] * 2)
        pooling = nir.SumPool2d(size, size, np.zeros(2, int))
        return {f"{name}_in": pooling}, float(layer.size**2)
    kernel = np.asarray(params["params"][name]["kernel"], np.float32)
    if isinstance(layer, ConvSpec):
        pads = explicit_pads(
            network.padding, before[:2], kernel.shape[:2], layer.strides
        )
        if any(low != high for low, high in pads):
            raise ValueError(
                f"{name} pads {pads}: NIR pads both sides alike, so choose odd "
                "kernels or padding VALID"
            )
        sides = tuple(low for low, _ in pads)
        conv = _conv2d(kernel, before[:2], layer.strides, sides)
        return {f"{name}_in": conv}, _most(kernel)
    nodes: dict[str, nir.NIRNode] = {}
    if len(before) == 3:
        image = {"input": np.array(_channels_first(before))}
        nodes["flatten"] = nir.Flatten(image, start_dim=0)
        rows = kernel.reshape(*before, -1).transpose(2, 0, 1, 3)
        kernel = rows.reshape(kernel.shape)
    nodes[f"{name}_in"] = nir.Linear(kernel.T)
    return nodes, _most(kernel)


def _conv2d(
    kernel: np.ndarray,
    image: tuple[int, ...],
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
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
      ValueError: the graph is no chain, or differs from what `to_nir` makes of the
        network: other nodes, neurons that could fire again, a bias of hidden neurons.
    """
    pairs, references = _chain(graph)
    image = _image(graph, pairs[0][0][1])
    specs, layers, pads, neurons = _layers(pairs, references, image)
    inputs = [math.prod(image)] if isinstance(specs[0], DenseSpec) else []
    notation = "-".join(map(str, (*inputs, *specs)))
    parse_spec(notation)
    thetas = [layer["threshold"] for layer in layers]
    if len(np.unique(np.concatenate(thetas))) == 1:
        for layer in layers:
            del layer["threshold"]
    counts = tuple(len(layer.get("pulses", ())) for layer in layers)
    bias = np.ravel(getattr(pairs[-1][0][1], "bias", 0.0))
    network = SpikingNetwork.from_spec(
        notation,
        num_steps=num_steps,
        threshold=_shortest(thetas[-1].max()),
        padding=_padding(pads),
        urgency=_shortest(np.float32(bias[0])),
        pulses=counts if any(counts) else (),
        **attributes,
    )
    params = {"params": dict(zip(network.weighted, layers, strict=True))}
    _compare((pairs, references), _chain(to_nir(network, params, image)), neurons)
    return network, params


def _layers(
    pairs: list, references: dict[str, tuple], image: tuple[int, ...]
) -> tuple[list, list[dict], list[tuple], list[dict]]:
    """Specifications, parameters, of each convolution its pads and what "SAME" would
    be, and the neurons of every layer."""
    shape = image
    specs: list[Any] = []
    pads: list[tuple] = []
    neurons: list[dict] = []
    layers: list[dict] = []
    for (name, node), (fires, cells) in pairs:
        spec, kernel = _layer(name, node, shape)
        if isinstance(spec, ConvSpec):
            pads.append(_pads(node, spec, shape))
            sides = zip(shape[:2], pads[-1][0], strict=True)
            places = ((n + sum(p) - spec.size) // spec.stride + 1 for n, p in sides)
            shape = (*places, spec.features)
        elif isinstance(spec, PoolSpec):
            shape = (shape[0] // spec.size, shape[1] // spec.size, shape[2])
        else:
            shape = (spec.features,)
        specs.append(spec)
        neurons.append(_fields(fires, cells, _channels_first(shape)))
        if kernel is not None:
            below = neurons[-1]["v_threshold"][:, 0]
            layer = dict(threshold=np.nextafter(below, np.float32(np.inf)))
            layer["kernel"] = np.ascontiguousarray(kernel)
            if fires in references:
                weight = np.asarray(getattr(references[fires][2], "weight", 0.0))
                if weight.ndim < 2 or weight.shape[2:] not in ((), (1, 1)):
                    raise ValueError(f"{fires}: pulses need a Linear or 1×1 Conv2d")
                layer["pulses"] = weight.reshape(weight.shape[:2]).T.copy()
            layers.append(layer)
    return specs, layers, pads, neurons


def _chain(graph: nir.NIRGraph) -> tuple[list, dict[str, tuple]]:
    """For each layer the node that weighs or sums, and its neurons; and reference
    neurons, with what weighs their spikes, by the IF that they reach."""
    after = dict(graph.edges)
    aside: set[str] = set()
    references: dict[str, tuple] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Input) and "steps" in node.metadata:
            weighing = after.get(name, "")
            aside |= {name, weighing}
            references[after.get(weighing, "")] = name, node, graph.nodes.get(weighing)
    nodes = {name: node for name, node in graph.nodes.items() if name not in aside}
    edges = [edge for edge in graph.edges if edge[0] not in aside]
    after = dict(edges)
    chain: list[tuple[str, Any]] = []
    name = next((k for k, node in nodes.items() if isinstance(node, nir.Input)), "")
    while name in nodes:
        chain.append((name, nodes[name]))
        name = after.pop(name, "")
    if not len(chain) == len(nodes) == len(edges) + 1 > 2:
        raise ValueError("the graph must be a chain from one input to one output")
    chain = [pair for pair in chain[1:] if not isinstance(pair[1], nir.Flatten)]
    summing = nir.Conv2d | nir.SumPool2d | nir.Linear | nir.Affine
    expected: tuple[Any, ...] = (*(summing, nir.IF) * (len(chain) // 2), nir.Output)
    for (name, node), kind in zip(chain, expected, strict=False):
        if not isinstance(node, kind):
            raise ValueError(
                f"{name}: {type(node).__name__} is out of place: layers are Conv2d, "
                "SumPool2d, Linear or Affine, then an IF"
            )
    return list(zip(chain[:-1:2], chain[1::2], strict=True)), references


def _image(graph: nir.NIRGraph, first: Any) -> tuple[int, ...]:
    """The shape of one image: [I] or [H, W, C]. `first` is the node of the first
    weights: its shape serves an input that does not say its own."""
    inputs = (n for n in graph.nodes.values() if isinstance(n, nir.Input))
    size = next(n for n in inputs if "steps" not in n.metadata).input_type["input"]
    shape = () if size is None else tuple(int(length) for length in np.ravel(size))
    if shape in ((), (1,)):
        shape = np.shape(getattr(first, "weight", ()))[1:2]
        if isinstance(first, nir.Conv2d):
            shape += () if first.input_shape is None else _pair(first.input_shape)
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == 2:
        shape = 1, *shape
    if len(shape) not in (1, 3):
        raise ValueError(
            f"the input must be [I], [H, W], [C, H, W] or [1, C, H, W], got {shape}"
        )
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


def _layer(name: str, node: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The layer that a node is for an input [I] or [H, W, C], and its kernel."""
    if isinstance(node, nir.Conv2d | nir.SumPool2d) and len(shape) != 3:
        raise ValueError(f"{name}: its input must be [C, H, W], got {list(shape)}")
    if isinstance(node, nir.SumPool2d):
        return PoolSpec(_pair(node.kernel_size)[0]), None
    weight = np.asarray(node.weight)
    if isinstance(node, nir.Conv2d):
        layer = ConvSpec(len(weight), weight.shape[2], _pair(node.stride)[0])
        return layer, weight.transpose(2, 3, 1, 0)
    if len(shape) == 3 and weight.shape[1] == math.prod(shape):
        images = weight.reshape(-1, shape[2], *shape[:2])
        weight = images.transpose(0, 2, 3, 1).reshape(weight.shape)
    return DenseSpec(len(weight)), weight.T


def _pads(node: nir.Conv2d, layer: ConvSpec, shape: tuple[int, ...]) -> tuple:
    geometry = shape[:2], node.weight.shape[2:], layer.strides
    padding: Any = node.padding
    named = isinstance(padding, str)  # "same" or "valid"
    padding = padding.upper() if named else [(n, n) for n in _pair(padding)]
    return explicit_pads(padding, *geometry), explicit_pads("SAME", *geometry)


def _padding(pads: list[tuple]) -> Any:
    """The one padding of all convolutions."""
    if all(padding == same for padding, same in pads):
        return "SAME"
    if len({padding for padding, _ in pads}) > 1:
        raise ValueError(f"convolutions must pad alike, got {pads}")
    return pads[0][0] if np.any(pads[0][0]) else "VALID"


def _fields(name: str, node: nir.IF, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """r, v_threshold and v_reset of neurons [C, …], each as [C, places]."""
    fields, places = {}, math.prod(shape[1:])
    for field in ("r", "v_threshold", "v_reset"):
        values = np.asarray(getattr(node, field), np.float32)
        if values.size not in (1, shape[0], shape[0] * places):
            raise ValueError(
                f"{name}: {field} has shape {list(values.shape)}, its neurons are "
                f"{list(shape)}"
            )
        rows = values.reshape(shape[0] if values.size > 1 else 1, -1)
        fields[field] = np.broadcast_to(rows, (shape[0], places))
    return fields


def _compare(graph: tuple, expected: tuple, neurons: list[dict]) -> None:
    """Refuses a graph that is not, but for its names, the one of the network."""
    references, layers = graph[1], zip(graph[0], expected[0], neurons, strict=True)
    for (one, (name, _)), (other, (other_name, cells)), fields in layers:
        _same(one[0], one[1], other[1])
        if other_name in expected[1]:
            reference, *nodes = references.pop(name)
            for pair in zip(nodes, expected[1][other_name][1:], strict=True):
                _same(reference, *pair)
        right = _fields(name, cells, cells.r.shape)
        if np.any(fields["r"] != 1):
            raise ValueError(f"{name}: r must be 1, scale the weights instead")
        if np.any(fields["v_threshold"] != right["v_threshold"]):
            raise ValueError(
                f"{name}: the neurons of a channel must share one threshold, pooling "
                "neurons fire with their first input: their threshold is 1"
            )
        if np.any(fields["v_reset"] - right["v_reset"] > right["v_threshold"]):
            raise ValueError(
                f"{name}: neurons could fire again, their v_reset must be "
                f"{right['v_reset'].min():g} or less"
            )
    if references:
        names = [name for name, *_ in references.values()]
        raise ValueError(f"{names}: reference neurons must reach weighted neurons' IF")


def _same(name: str, node: Any, expected: Any) -> None:
    """Refuses a node that sums in another way, or spikes at other steps."""
    for field in ("stride", "dilation", "groups", "bias", "kernel_size", "steps"):
        value, right = (
            np.asarray(n.metadata.get(field, getattr(n, field, 0)))
            for n in (node, expected)
        )
        unlike = value.shape and right.shape and value.shape != right.shape
        if unlike or np.any(value != right):
            raise ValueError(
                f"{name}: {field} must be {right.tolist()}, got {value.tolist()}"
            )


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
