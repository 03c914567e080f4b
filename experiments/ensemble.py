"""Makes one network of several of the same shape, whose output potentials are averaged.

    python -m experiments.ensemble fashion_mnist --mirror --out=merged.safetensors

The hidden layers stand side by side, without weights between them. Each output neuron
receives the mean of what it receives in the networks, also from reference neurons.
Networks without these join others that have them, with weights of 0.
--mirror adds to every network its mirror image: kernels of convolutions turned left to
right, and the weights of the outputs likewise. It decides as the network does on
mirrored images, as long as pooling windows cover them.
`ds4nn evaluate DATASET --evaluate=merged.safetensors` measures the result.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import ds4nn_jax as ds
import experiments
from ds4nn_jax.cli import progress
from ds4nn_jax.networks import pretrained, quantization
from ds4nn_jax.networks.spec import ConvSpec, PoolSpec

_Kernels = Mapping[str, Mapping[str, np.ndarray]]


@experiments.one_line("ensemble")
def main(argv: Sequence[str] | None = None) -> None:
    parser = experiments.parser("ensemble", __doc__)
    parser.add_argument("weights", nargs="+", help="names of shipped weights, or files")
    parser.add_argument("--mirror", action="store_true", help="and their mirror images")
    parser.add_argument("--out", required=True, help="file of weights to write")
    args = parser.parse_args(argv)
    networks, params, notes = zip(*map(pretrained.find, args.weights), strict=True)
    kept = {"merged": args.weights, **_shared(notes)}
    shape = kept.get("input_shape")
    network, joint = merged(networks, params, mirror=args.mirror, shape=shape)
    ds.save_weights(args.out, network, joint, notes=kept)
    print(f"{network.spec}, urgency {network.urgency:g}: {args.out}")


def merged(
    networks: Sequence[ds.SpikingNetwork],
    params: Sequence[dict],
    *,
    mirror: bool,
    shape: Sequence[int] | None = None,
) -> tuple[ds.SpikingNetwork, dict]:
    """One network whose output potentials are the means of those of all.

    Args:
      networks: of the same layers, T, θ and padding, and as many reference neurons or
        none.
      params: of each.
      mirror: adds to each what it makes of images mirrored left to right.
      shape: of an image, [H, W, C], to be mirrored.
    """
    made = [  # integers have a scale of their own
        quantization.in_millivolts(*pair) if quantization.is_whole(pair[1]) else pair
        for pair in zip(networks, params, strict=True)
    ]
    networks, params = zip(*made, strict=True)
    if any(
        "threshold" in layer for each in params for layer in each["params"].values()
    ):
        raise ValueError("weights with thresholds of their own cannot be merged")
    urgency = float(np.mean([network.urgency for network in networks]))
    pulsed = next((other for other in networks if other.pulses), networks[0])
    network = pulsed.clone(urgency=urgency)
    for other in networks:
        pulses = other.pulses or network.pulses
        if other.clone(urgency=urgency, pulses=pulses) != network:
            raise ValueError(f"networks differ: {network} and {other}")
    parts: list[_Kernels] = [each["params"] for each in params]
    if mirror:
        parts += [_mirrored(network, part, shape) for part in parts]
    layers = tuple(
        layer
        if isinstance(layer, PoolSpec)
        else layer._replace(features=len(parts) * layer.features)
        for layer in network.layers[:-1]
    )
    arrays = {}
    features = 0  # of the layer before, in each of the networks
    for name in network.weighted:
        first, last = name == network.weighted[0], name == network.weighted[-1]
        kernels = [_by_feature(part[name]["kernel"], features) for part in parts]
        kernel = _joint(np.stack(kernels), first=first, last=last)
        if np.ndim(parts[0][name]["kernel"]) == 2:
            kernel = kernel.reshape(-1, kernel.shape[-1])
        arrays[name] = {"kernel": kernel}
        if count := network.pulse_counts[name]:
            none = np.zeros((count, kernels[0].shape[-1]))
            pulses = [part[name].get("pulses", none) for part in parts]
            joint = np.mean(pulses, axis=0) if last else np.concatenate(pulses, axis=1)
            arrays[name]["pulses"] = np.float32(joint)
        features = kernels[0].shape[-1]
    return network.clone(layers=(*layers, network.layers[-1])), {"params": arrays}


def _joint(kernels: np.ndarray, *, first: bool, last: bool) -> np.ndarray:
    """One kernel […, I, O] of several [n, …, I, O]: each has its own inputs, behind the
    first layer, and its own outputs, before the last, which receive the mean."""
    count, (*places, rows, columns) = len(kernels), kernels.shape[1:]
    own = np.eye(count, dtype=np.float32)
    joint = np.einsum("ab,a...io->...aibo", own, kernels)
    if first:
        joint = joint.sum(axis=-4, keepdims=True)
    if last:
        joint = joint.sum(axis=-2, keepdims=True) / count
    shape = (1 if first else count) * rows, (1 if last else count) * columns
    return np.float32(joint.reshape(*places, *shape))


def _by_feature(kernel: np.ndarray, features: int) -> np.ndarray:
    """[…, I, O], I the features of the layer before; as it is where there is none."""
    if np.ndim(kernel) == 4 or not features:
        return np.asarray(kernel)
    return np.reshape(kernel, (-1, features, np.shape(kernel)[1]))


def _mirrored(
    network: ds.SpikingNetwork, kernels: _Kernels, shape: Sequence[int] | None
) -> _Kernels:
    """The weights that make of an image what `kernels` make of its mirror image."""
    if shape is None or len(shape) != 3:
        raise ValueError(
            "no input_shape [H, W, C] beside these weights: no mirror image"
        )
    padding, shapes = network.padding, _entering(network, shape)
    layers = [*zip(network.names, network.layers, shapes, strict=True)]
    if (not isinstance(padding, str) and len({*padding[1]}) > 1) or any(
        layer.stride != 1 or layer.size % 2 == 0
        if isinstance(layer, ConvSpec)
        else isinstance(layer, PoolSpec) and size[1] % layer.size
        for _, layer, size in layers
    ):
        raise ValueError(
            f"{network.spec} on images {tuple(shape)} sees other places of a mirror "
            "image: it needs the same padding left and right, convolutions with odd "
            "windows and stride 1, and pooling windows that cover all columns"
        )
    turned = {}
    for name, layer, size in layers:
        if isinstance(layer, PoolSpec):
            continue
        kernel = np.asarray(kernels[name]["kernel"])
        if isinstance(layer, ConvSpec):
            kernel = kernel[:, ::-1]
        elif len(size) == 3:
            kernel = kernel.reshape(*size, -1)[:, ::-1].reshape(kernel.shape)
        turned[name] = {**kernels[name], "kernel": kernel}  # pulses have no place
    return turned


def _entering(
    network: ds.SpikingNetwork, shape: Sequence[int]
) -> list[tuple[int, ...]]:
    """The shape of what enters each layer: [H, W, C] or [N]."""
    image = jax.ShapeDtypeStruct((1, *shape), np.float32)
    trace = functools.partial(network.init_with_output, method="trace")
    out, _ = jax.eval_shape(trace, jax.random.key(0), image)
    return [times.shape[1:] for times in out.times[:-1]]


def _shared(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What those weights that tell of their images agree on."""
    shared: dict[str, Any] = {}
    for name in ("dataset", "class_names", "input_shape"):
        values = [note[name] for note in notes if name in note]
        if any(value != values[0] for value in values):
            raise ValueError(f"{name} differs: {' and '.join(map(str, values))}")
        if values:
            shared[name] = values[0]
    return shared


if __name__ == "__main__":
    progress.program("experiments.ensemble", main)
