"""Makes one network of several of the same shape, whose output potentials are averaged.

    python -m experiments.merge fashion_mnist --mirror --out=merged.safetensors

The hidden layers stand side by side, without weights between them; each output neuron
receives what those of the networks receive, divided by their number. --mirror adds to
every network its mirror image: kernels of convolutions turned left to right, and the
weights of the outputs likewise, which is what it makes of mirrored images, as long as
pooling windows cover them.
`--evaluate=merged.safetensors` of the experiments measures the result.
"""

import argparse
import math
from collections.abc import Mapping, Sequence

import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import pretrained
from ds4nn_jax.modules import ConvSpec, PoolSpec

from . import progress

_Kernels = Mapping[str, Mapping[str, np.ndarray]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", nargs="+", help="names of shipped weights, or files")
    parser.add_argument("--mirror", action="store_true", help="and their mirror images")
    parser.add_argument("--out", required=True, help="file of weights to write")
    asked = parser.parse_args(argv)
    try:
        networks, params, notes = zip(*map(pretrained.find, asked.weights), strict=True)
        network, together = merged(networks, params, mirror=asked.mirror)
        kept = {"dataset": notes[0].get("dataset"), "merged": asked.weights}
        ds.save_weights(asked.out, network, together, notes=kept)
    except (ValueError, OSError) as error:
        raise SystemExit(f"experiments.merge: {error}") from error
    print(f"{network.spec}, urgency {network.urgency:g}: {asked.out}")


def merged(
    networks: Sequence[ds.SpikingNetwork], params: Sequence[dict], *, mirror: bool
) -> tuple[ds.SpikingNetwork, dict]:
    """One network whose output potentials are the means of those of all.

    Args:
      networks: of the same layers, T, θ, padding and urgency.
      params: of each.
      mirror: adds to each what it makes of images mirrored left to right.

    Raises:
      ValueError: networks that differ; to be mirrored, images that are not square, or
        convolutions with a stride or an even window.
    """
    network = networks[0]
    for other in networks:
        if other != network:
            raise ValueError(f"networks differ: {network} and {other}")
    parts: list[_Kernels] = [each["params"] for each in params]
    if mirror:
        parts += [_mirrored(network, part) for part in parts]
    layers = tuple(
        layer
        if isinstance(layer, PoolSpec)
        else layer._replace(features=len(parts) * layer.features)
        for layer in network.layers[:-1]
    )
    names = network.weighted
    together = {}
    features = 0  # of the layer before, in each of the networks
    for name in names:
        first, last = name == names[0], name == names[-1]
        kernels = [_by_feature(part[name]["kernel"], features) for part in parts]
        *places, inputs, outputs = kernels[0].shape
        rows, columns = (1 if end else len(parts) for end in (first, last))
        joint = np.zeros((*places, rows * inputs, columns * outputs), np.float32)
        for k, kernel in enumerate(kernels):
            row = 0 if first else k * inputs
            column = 0 if last else k * outputs
            block = joint[..., row : row + inputs, column : column + outputs]
            block += kernel / (len(parts) if last else 1)
        dense = np.ndim(parts[0][name]["kernel"]) == 2
        joint = joint.reshape(-1, columns * outputs) if dense else joint
        together[name] = {"kernel": joint}
        features = outputs
    return network.clone(layers=(*layers, network.layers[-1])), {"params": together}


def _by_feature(kernel: np.ndarray, features: int) -> np.ndarray:
    """[…, I, O], I the features of the layer before; as it is where there is none."""
    if np.ndim(kernel) == 4 or not features:
        return np.asarray(kernel)
    return np.reshape(kernel, (-1, features, np.shape(kernel)[1]))


def _mirrored(network: ds.SpikingNetwork, kernels: _Kernels) -> _Kernels:
    """The weights that make of an image what `kernels` make of its mirror image."""
    turned, features = {}, 1
    for name in network.weighted:
        kernel = np.asarray(kernels[name]["kernel"])
        if kernel.ndim == 4:
            turned[name] = {"kernel": kernel[:, ::-1]}
        elif features:
            side = math.isqrt(len(kernel) // features)
            if side * side * features != len(kernel):
                raise ValueError(f"{name} sees no square image: it has no mirror image")
            square = kernel.reshape(side, side, features, -1)[:, ::-1]
            turned[name] = {"kernel": square.reshape(kernel.shape)}
        else:
            turned[name] = {"kernel": kernel}
        features = kernel.shape[-1] if kernel.ndim == 4 else 0
    convolutions = [layer for layer in network.layers if isinstance(layer, ConvSpec)]
    if any(conv.stride != 1 or conv.size % 2 == 0 for conv in convolutions):
        raise ValueError(
            f"{network.spec}: strides and even windows see other places of a mirror "
            "image, windows must be odd and strides 1"
        )
    return turned


if __name__ == "__main__":
    progress.program("experiments.merge", main)
