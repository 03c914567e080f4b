"""Makes one network of several of the same shape, whose output potentials are averaged.

    python -m experiments.ensemble fashion_mnist --mirror --out=merged.safetensors

The hidden layers stand side by side, without weights between them. Each output neuron
receives the mean of what it receives in the networks, also from reference neurons.
--mirror adds to every network its mirror image: kernels of convolutions turned left to
right, and the weights of the outputs likewise. It decides as the network does on
mirrored images, as long as pooling windows cover them.
`ds4nn evaluate DATASET --evaluate=merged.safetensors` measures the result.
"""

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax.cli import progress
from ds4nn_jax.networks import pretrained
from ds4nn_jax.networks.spec import ConvSpec, PoolSpec

_Kernels = Mapping[str, Mapping[str, np.ndarray]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", nargs="+", help="names of shipped weights, or files")
    parser.add_argument("--mirror", action="store_true", help="and their mirror images")
    parser.add_argument("--out", required=True, help="file of weights to write")
    args = parser.parse_args(argv)
    try:
        networks, params, notes = zip(*map(pretrained.find, args.weights), strict=True)
        kept = {"merged": args.weights, **_shared(notes)}
        shape = kept.get("input_shape")
        network, joint = merged(networks, params, mirror=args.mirror, shape=shape)
        ds.save_weights(args.out, network, joint, notes=kept)
    except (ValueError, OSError) as error:
        raise SystemExit(f"experiments.ensemble: {error}") from error
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
      networks: of the same layers, T, θ, padding, urgency and numbers of pulses.
      params: of each.
      mirror: adds to each what it makes of images mirrored left to right.
      shape: of an image, [H, W, C], to be mirrored.

    Raises:
      ValueError: networks that differ; to be mirrored, an unknown shape or one without
        columns, convolutions with a stride or an even window, or pooling windows that
        do not cover an image.
    """
    network = networks[0]
    for other in networks:
        if other != network:
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
        kernel = _side_by_side(kernels, inputs=not first, outputs=not last)
        if np.ndim(parts[0][name]["kernel"]) == 2:
            kernel = kernel.reshape(-1, kernel.shape[-1])
        arrays[name] = {"kernel": kernel}
        if network.pulse_counts[name]:
            pulses = [part[name]["pulses"] for part in parts]
            joint = np.mean(pulses, axis=0) if last else np.concatenate(pulses, axis=1)
            arrays[name]["pulses"] = np.float32(joint)
        features = kernels[0].shape[-1]
    return network.clone(layers=(*layers, network.layers[-1])), {"params": arrays}


def _side_by_side(
    kernels: Sequence[np.ndarray], *, inputs: bool, outputs: bool
) -> np.ndarray:
    """One kernel […, I, O] of several; of joint inputs or outputs where they are not
    side by side: of outputs the mean."""
    *places, rows, columns = kernels[0].shape
    count = len(kernels)
    shape = (count if inputs else 1) * rows, (count if outputs else 1) * columns
    joint = np.zeros((*places, *shape), np.float32)
    for k, kernel in enumerate(kernels):
        row, column = k * rows * inputs, k * columns * outputs
        block = joint[..., row : row + rows, column : column + columns]
        block += kernel / (1 if outputs else count)
    return joint


def _by_feature(kernel: np.ndarray, features: int) -> np.ndarray:
    """[…, I, O], I the features of the layer before; as it is where there is none."""
    if np.ndim(kernel) == 4 or not features:
        return np.asarray(kernel)
    return np.reshape(kernel, (-1, features, np.shape(kernel)[1]))


def _mirrored(
    network: ds.SpikingNetwork, kernels: _Kernels, shape: Sequence[int] | None
) -> _Kernels:
    """The weights that make of an image what `kernels` make of its mirror image."""
    if shape is None:
        raise ValueError("no input_shape beside these weights: what is to be mirrored?")
    padding = network.padding
    if not isinstance(padding, str) and len({*padding[1]}) > 1:
        raise ValueError(
            f"a padding of {padding[1]} columns is not that of mirror images"
        )
    turned = {}
    shapes = _entering(network, shape)
    for name, layer, size in zip(network.names, network.layers, shapes, strict=True):
        if isinstance(layer, PoolSpec):
            _, columns, _ = size
            if columns % layer.size:
                raise ValueError(
                    f"{network.spec}: windows of {layer} do not cover {columns} "
                    "columns, and leave out others of a mirror image"
                )
            continue
        kernel = np.asarray(kernels[name]["kernel"])
        if isinstance(layer, ConvSpec):
            if layer.stride != 1 or layer.size % 2 == 0:
                raise ValueError(
                    f"{network.spec}: strides and even windows see other places of a "
                    "mirror image, windows must be odd and strides 1"
                )
            kernel = kernel[:, ::-1]
        elif len(size) == 3:
            by_place = kernel.reshape(*size, -1)[:, ::-1]
            kernel = by_place.reshape(kernel.shape)
        elif name == network.weighted[0]:
            raise ValueError(f"{name} sees no image: it has no mirror image")
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
