"""Where the engines disagree on real weights, and how near θ those neurons were.

    python -m benchmarks.agreement --data_dir=DIR --weights=FILE.safetensors

Both engines get the same input spikes, layer by layer. Where a spike time differs, the
potential at the earlier of the two is summed again in float64. Float32 sums of the n
weights that arrived may be wrong by (n − 1)·ε·Σ|w|: a disagreement farther than that
from θ would be an error, a nearer one is rounding at the threshold. Prints Markdown.
"""

import argparse
from typing import NamedTuple

import numpy as np

import ds4nn_jax as ds
from benchmarks.engines import machine
from ds4nn_jax import data
from ds4nn_jax._engines.synapse import pulse_steps


class Disagreement(NamedTuple):
    """One neuron to which the engines give different spike times.

    Attributes:
      steps: its spike times, T for silence.
      distance: |V − θ| in float64 at the earlier of them, mV.
      bound: how far from θ rounding alone can explain it, mV.
    """

    steps: tuple[int, int]
    distance: float
    bound: float


def disagreements(
    network: ds.SpikingNetwork,
    kernel: np.ndarray,
    pulses: np.ndarray,
    entering: np.ndarray,
) -> tuple[int, list[Disagreement]]:
    """Neurons of one layer, and those on which scan and event engine disagree.

    Args:
      network: gives T, θ and padding ("SAME" windows of odd size, strides 1).
      kernel: [kh, kw, I, O] or [I, O].
      pulses: [P, O] of reference neurons.
      entering: [B, H, W, I] or [B, I] spike times.
    """
    layer, options = ds.dense, {}
    if kernel.ndim == 4:
        layer, options = ds.conv, {"padding": network.padding}
    options |= dict(num_steps=network.num_steps, threshold=network.threshold)
    options["pulses"] = pulses
    clock = pulse_steps(len(pulses), network.num_steps)
    scan, event = (
        np.asarray(layer(entering, kernel, engine=engine, **options))
        for engine in ("scan", "event")
    )
    found = []
    for index in np.argwhere(scan != event):
        *place, output = index
        steps = int(scan[tuple(index)]), int(event[tuple(index)])
        weights = kernel[..., output].astype(np.float64)
        arrived = np.concatenate(
            [
                weights[_window(entering, place, kernel.shape) <= min(steps)],
                pulses[clock <= min(steps), output].astype(np.float64),
            ]
        )
        found.append(
            Disagreement(
                steps,
                abs(arrived.sum() - network.threshold),
                max(len(arrived) - 1, 0)
                * float(np.finfo(np.float32).eps)
                * np.abs(arrived).sum(),
            )
        )
    return scan.size, found


def _window(entering: np.ndarray, place, kernel_shape) -> np.ndarray:
    """Spike times that reach a neuron, in the shape of its weights."""
    if len(kernel_shape) == 2:
        return entering[place[0]]
    height, width = kernel_shape[:2]
    around = [(size // 2, size // 2) for size in (height, width)]
    padded = np.pad(
        entering[place[0]], (*around, (0, 0)), constant_values=np.float32(np.inf)
    )
    y, x = place[1:]
    return padded[y : y + height, x : x + width]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="MNIST's IDX files")
    parser.add_argument("--weights", required=True, help="a trained network")
    parser.add_argument("--images", type=int, default=64, help="first test images")
    args = parser.parse_args()
    network, params, _ = ds.load_weights(args.weights)
    images = data.load("mnist", args.data_dir).test_images[: args.images]
    times = ds.encode(images, num_steps=network.num_steps)
    trace = network.apply(params, times, method="trace")
    entering = dict(zip(network.names, trace.times, strict=False))
    print(f"{machine()}; {network.spec}, {args.images} images\n")
    print("| layer | neurons | differ | largest abs(V − θ), mV | of the bound |")
    print("|---|---:|---:|---:|---:|")
    pulses = map(np.asarray, network.reference_weights(params))
    for name, reference in zip(network.weighted, pulses, strict=True):
        kernel = np.asarray(params["params"][name]["kernel"])
        before = np.asarray(entering[name])
        if kernel.ndim == 2:
            before = before.reshape(len(before), -1)
        neurons, found = disagreements(network, kernel, reference, before)
        row = f"| {name} | {neurons:,} | {len(found):,} "
        if not found:
            print(f"{row}| – | – |")
            continue
        farthest = max(each.distance for each in found)
        share = max(each.distance / each.bound for each in found)
        print(f"{row}| {farthest:.1e} | {share:.3f} |")


if __name__ == "__main__":
    main()
