"""Graphs executed step by step in NumPy: the same spike times as the network's."""

import dataclasses
import graphlib

import jax
import nir
import numpy as np
import pytest

import ds4nn_jax as ds
from ds4nn_jax.nir import from_nir, to_nir

# Spec, shape of an image, padding, urgency, and pulses of the first layers.
CASES = [
    ("3C3-P2-4C3-P2-5", (8, 8, 2), "SAME", 0.25, (7, 3)),
    ("3C2-P3-6-4", (7, 10, 1), "VALID", 0.0, ()),
    ("4C3-P2-P2-3", (6, 8, 1), ((2, 2), (1, 1)), 0.0, (20, 0)),
    ("12-7-3", (12,), "SAME", 0.25, (7, 3)),
    ("3C3s2-4C3-3", (9, 7, 2), "SAME", 0.0, ()),
    ("3C3s2-P2-3", (8, 8, 1), ((1, 1), (1, 1)), 0.25, ()),
    ("3C2s2-3", (8, 6, 1), "VALID", 0.25, (20, 0)),
]


def network_of(spec, shape, padding, seed=0, pulses=()):
    """Weights on a dyadic grid, so that sums are exact in any order."""
    network = ds.SpikingNetwork.from_spec(
        spec, num_steps=20, threshold=8.0, padding=padding, pulses=pulses
    )
    times = np.full((1, *shape), 20, np.float32)
    params = network.init(jax.random.key(seed), times)
    draw = np.random.default_rng(seed)
    return network, jax.tree.map(
        lambda w: (draw.integers(-8, 24, w.shape) / 4).astype(np.float32), params
    )


def conv2d(node, spikes):
    pads = [(side, side) for side in node.padding]
    padded = np.pad(spikes, [(0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, node.weight.shape[2:], axis=(1, 2)
    )
    down, right = node.stride
    windows = windows[:, ::down, ::right]
    return np.tensordot(node.weight, windows, ((1, 2, 3), (0, 3, 4)))


def pool2d(node, spikes):
    windows = np.lib.stride_tricks.sliding_window_view(
        spikes, node.kernel_size, axis=(1, 2)
    )
    down, right = node.stride
    return windows[:, ::down, ::right].sum((3, 4))


def executed(graph, times, num_steps):
    """First spike of every IF, and how often any fired: NIR as it is defined."""
    before = {name: [] for name in graph.nodes}
    for name, following in graph.edges:
        before[following].append(name)
    order = tuple(graphlib.TopologicalSorter(before).static_order())
    potentials = {
        name: np.zeros(node.v_threshold.shape)
        for name, node in graph.nodes.items()
        if isinstance(node, nir.IF)
    }
    first = {name: np.full(v.shape, num_steps) for name, v in potentials.items()}
    fired = {name: np.zeros(v.shape, int) for name, v in potentials.items()}
    for step in range(num_steps):
        out = {}
        for name in order:
            node = graph.nodes[name]
            flow = sum(out[other] for other in before[name])
            if "steps" in node.metadata:
                now = node.metadata["steps"] == step
                places = node.input_type["input"][1:]
                flow = np.broadcast_to(now, (*places, len(now))).astype(float)
                flow = channels_first(flow)
            elif isinstance(node, nir.Input):
                flow = (times == step).astype(float)
            elif isinstance(node, nir.Conv2d):
                flow = conv2d(node, flow)
            elif isinstance(node, nir.SumPool2d):
                flow = pool2d(node, flow)
            elif isinstance(node, nir.Linear | nir.Affine):
                flow = node.weight @ flow + getattr(node, "bias", 0)
            elif isinstance(node, nir.Flatten):
                flow = flow.reshape(-1)
            elif isinstance(node, nir.IF):
                potentials[name] += node.r * flow
                flow = potentials[name] > node.v_threshold
                potentials[name][flow] = node.v_reset[flow]
                first[name][flow & (fired[name] == 0)] = step
                fired[name] += flow
            out[name] = flow
    return first, max(int(count.max()) for count in fired.values())


def channels_first(image):
    return np.moveaxis(image, -1, 0) if image.ndim == 3 else image


@pytest.mark.parametrize("spec, shape, padding, urgency, pulses", CASES)
def test_the_graph_fires_as_the_network_and_leads_back_to_it(
    spec, shape, padding, urgency, pulses, tmp_path
):
    network, params = network_of(spec, shape, padding, pulses=pulses)
    network = network.clone(urgency=urgency)
    images = np.random.default_rng(1).integers(0, 21, (6, *shape)).astype(np.float32)
    trace = network.apply(params, images, method="trace")
    graph = to_nir(network, params, shape)
    spikes = 0
    for number, image in enumerate(images):
        first, most = executed(graph, channels_first(image), 20)
        assert most == 1, "every neuron fires at most once"
        for name, times in zip(network.names, trace.times[1:], strict=True):
            expected = channels_first(np.asarray(times[number]))
            np.testing.assert_array_equal(first[name], expected, err_msg=name)
            spikes += int((expected < 20).sum())
    assert spikes > 30
    nir.write(tmp_path / "net.nir", graph)
    again, found = from_nir(nir.read(tmp_path / "net.nir"), num_steps=20)
    for name in ("spec", "threshold", "urgency", "pulse_counts"):
        assert getattr(again, name) == getattr(network, name), name
    jax.tree.map(np.testing.assert_array_equal, found, params)
    np.testing.assert_array_equal(again.apply(found, images), trace.times[-1])


def test_decimals_come_back():
    network, params = network_of("12-7-3", (12,), "SAME")
    graph = to_nir(network.clone(urgency=0.3, threshold=0.7), params, (12,))
    again, _ = from_nir(graph, num_steps=20)
    assert (again.urgency, again.threshold) == (0.3, 0.7)


def test_whole_numbers_there_and_back():
    """A threshold of each channel, and an urgency that is among the pulses."""
    network, params = network_of("5C3-P2-6-4", (6, 6, 2), "SAME", pulses=(3, 0))
    params["params"]["conv1"]["kernel"] *= np.arange(4, 9, dtype=np.float32) / 8
    network, params = ds.quantize(network.clone(urgency=0.3), params, bits=3)
    again, found = from_nir(to_nir(network, params, (6, 6, 2)), num_steps=20)
    assert again.urgency == 0 and tuple(again.pulse_counts.values()) == (3, 0, 20)
    for name, layer in params["params"].items():
        for kind in ("kernel", "threshold"):
            np.testing.assert_array_equal(found["params"][name][kind], layer[kind])
    times = np.random.default_rng(2).integers(4, 99, (8, 6, 6, 2)).clip(max=20)
    times = times.astype(np.float32)
    expected = network.apply(params, times)
    assert len(np.unique(expected)) > 3
    np.testing.assert_array_equal(again.apply(found, times), expected)


def test_a_graph_that_begins_with_flatten():
    """As every fully connected network of torch does: its input are images."""
    network, params = network_of("16-5-3", (4, 4, 1), "SAME")
    graph = to_nir(network, params, (4, 4, 1))
    again, found = from_nir(graph, num_steps=20)
    assert (again.spec, again.input_size) == ("16-5-3", 16)
    images = np.random.default_rng(3).integers(0, 21, (6, 4, 4, 1)).astype(np.float32)
    expected = network.apply(params, images)
    np.testing.assert_array_equal(again.apply(found, images), expected)
    np.testing.assert_array_equal(again.apply(found, images.reshape(6, 16)), expected)


@pytest.mark.parametrize(
    "spec, shape, size, thresholds",
    [
        ("16-3", (4, 4, 1), (4, 4), "all"),
        ("3C3-P2-3", (8, 8, 1), (8, 8), "all"),
        ("3C3-P2-3", (8, 8, 1), (1, 1, 8, 8), "channels"),
        ("64-5-3", (64,), (1,), "one"),
        ("64-5-3", (64,), None, "all"),
        ("3C3-P2-3", (8, 8, 1), None, "one"),
        ("3C3-P2-3", (8, 8, 1), (1,), "channels"),
    ],
)
def test_what_other_exporters_write(spec, shape, size, thresholds):
    """Inputs without channels, with a batch axis or without a shape; thresholds that
    are not of each neuron."""
    network, params = network_of(spec, shape, "SAME")
    graph = to_nir(network, params, shape)
    size = None if size is None else np.array(size)
    nodes = graph.nodes | {"input": nir.Input({"input": size})}
    for name, node in nodes.items():
        if isinstance(node, nir.IF) and thresholds != "all":
            few = node.v_threshold.flat[:1].reshape(())
            if thresholds == "channels" and node.v_threshold.ndim == 3:
                few = node.v_threshold[:, :1, :1]
            reset = np.full_like(few, node.v_reset.min())
            nodes[name] = nir.IF(np.ones_like(few), v_threshold=few, v_reset=reset)
    again, found = from_nir(
        nir.NIRGraph(nodes, graph.edges, type_check=False), num_steps=20
    )
    assert (again.spec, again.threshold) == (spec, network.threshold)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_what_nir_cannot_say():
    network, params = network_of("3C2-4", (6, 6, 1), "SAME")
    with pytest.raises(ValueError, match="conv1 pads .*: NIR pads both sides alike"):
        to_nir(network, params, (6, 6, 1))
    network, params = network_of("3C3-P2-4", (7, 6, 1), "SAME")
    with pytest.raises(ValueError, match=r"pool1: windows of 2 leave a rest of \(7, 6"):
        to_nir(network, params, (7, 6, 1))


def changed(graph, name, **fields):
    nodes = graph.nodes | {name: dataclasses.replace(graph.nodes[name], **fields)}
    return nir.NIRGraph(nodes, graph.edges, type_check=False)


def biased(name, bias):
    def change(graph):
        affine = nir.Affine(graph.nodes[name].weight, np.asarray(bias, np.float32))
        return nir.NIRGraph(graph.nodes | {name: affine}, graph.edges, type_check=False)

    return change


def rewired(edges):
    return lambda graph: nir.NIRGraph(graph.nodes, edges(graph), type_check=False)


def shallow(graph):
    return changed(graph, "dense2", v_reset=graph.nodes["dense2"].v_reset + 9)


LEAKY = nir.LI(*[np.ones((3, 8, 8))] * 3)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            ("conv1", dict(v_reset=np.zeros((3, 8, 8)))),
            "conv1: neurons could fire again",
        ),
        (shallow, "dense2: neurons could fire again"),
        (("conv1", dict(r=np.full((3, 8, 8), 2.0))), "conv1: r must be 1"),
        (
            ("conv1_in", dict(bias=np.ones(3))),
            r"conv1_in: bias must be \[0.0, 0.0, 0.0",
        ),
        (("conv1_in", dict(stride=(1, 2))), r"stride must be \[1, 1\], got \[1, 2\]"),
        (("conv1_in", dict(dilation=(2, 2))), "conv1_in: dilation must be"),
        (("pool1_in", dict(stride=np.ones(2, int))), r"pool1_in: .*, got \[1, 1\]"),
        (
            ("pool1", dict(v_threshold=np.full((3, 4, 4), 2.0))),
            "pool1: .* threshold is 1",
        ),
        (
            ("conv1", dict(v_threshold=np.arange(192.0).reshape(3, 8, 8))),
            "conv1: the neurons of a channel must share one threshold",
        ),
        (("conv1_in", dict(weight=np.ones((3, 2, 3, 3)))), "parameters do not fit"),
        (("conv1_in", dict(weight=np.full((3, 1, 3, 3), np.nan))), "must be finite"),
        (("dense2_in", dict(weight=np.ones((5, 47)))), "parameters do not fit"),
        (
            biased("dense3_in", [1, 1, 1, 2]),
            r"dense3_in: bias .*, got \[1.0, 1.0, 1.0, 2",
        ),
        (biased("dense3_in", [-1] * 4), "urgency must be a finite number ≥ 0"),
        (biased("dense2_in", [1] * 5), "dense2_in: bias must be 0, got"),
        (rewired(lambda graph: graph.edges[1:]), "must be a chain"),
        (rewired(lambda g: [*g.edges, ("conv1", "output")]), "must be a chain"),
        (
            lambda g: nir.NIRGraph(
                g.nodes | {"conv1": LEAKY}, g.edges, type_check=False
            ),
            "conv1: LI is out of place",
        ),
        (
            lambda g: nir.NIRGraph.from_list(
                *(g.nodes[name] for name in ("input", "conv1_in", "output")),
                type_check=False,
            ),
            "Output is out of place",
        ),
        (
            ("conv1_reference_in", dict(stride=(2, 2))),
            "conv1_reference: stride must be",
        ),
        (
            rewired(
                lambda g: [
                    (a, "pool1" if a == "dense2_reference_in" else b)
                    for a, b in g.edges
                ]
            ),
            "dense2_reference.*: reference neurons must reach",
        ),
    ],
)
def test_other_graphs_are_refused(change, message):
    network, params = network_of("3C3-P2-5-4", (8, 8, 1), "SAME", pulses=(5, 2, 0))
    graph = to_nir(network, params, (8, 8, 1))
    graph = (
        change(graph) if callable(change) else changed(graph, change[0], **change[1])
    )
    with pytest.raises(ValueError, match=message):
        from_nir(graph, num_steps=20)


def test_reference_neurons_of_another_t_are_refused():
    network, params = network_of("3C3-P2-4", (8, 8, 1), "SAME", pulses=(5, 2))
    graph = to_nir(network, params, (8, 8, 1))
    steps = graph.nodes["conv1_reference"].metadata["steps"]
    np.testing.assert_array_equal(steps, [0, 4, 8, 12, 16])
    assert graph.nodes["dense2_reference"].input_type["input"].tolist() == [2]
    with pytest.raises(
        ValueError, match=r"conv1_reference: steps .* \[0, 2, 4, 6, 8\]"
    ):
        from_nir(graph, num_steps=10)
