"""A network of whole numbers gives the same spikes whoever computes it.

    python -m benchmarks.exact mnist_sparse --data_dir=DIR

Spike times of all layers, labels, decision steps and spikes of each layer up to the
decision, of all test images: both engines in float32 and float64, with JAX's x64 on and
off, `infer` by its kernel and by its loop, eight devices, and NumPy. Each row has the
hash of the results; all must be equal. Real weights are rounded to --bits first.
"""

import argparse
import functools
import hashlib
import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import ds4nn_jax as ds
from benchmarks.engines import machine
from ds4nn_jax import data
from ds4nn_jax.networks import pretrained, quantization
from ds4nn_jax.networks.inference import batches_of
from ds4nn_jax.training import parallel

_BATCH = 80
_ROWS = {  # by the environment of a process
    "x64 off": ["event float32", "scan float32", "kernel float32", "loop float32"],
    "x64 on": [
        *["event float32", "scan float32", "event float64", "scan float64"],
        *["kernel float32", "kernel float64", "loop float64"],
    ],
    "eight devices": ["event float32", "scan float32"],
    "no JAX": ["NumPy"],
}
_FLAGS = {
    "x64 on": {"JAX_ENABLE_X64": "1"},
    "eight devices": {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
}


class Hash:
    """Of spike times, and of decisions, in the order of the images."""

    def __init__(self):
        self._times, self._decisions = hashlib.sha256(), hashlib.sha256()
        self._any = False

    def add(self, decided, times=()) -> None:
        for array in times:
            self._any = True
            self._times.update(np.asarray(array).astype(np.int16).tobytes())
        for array in decided:
            self._decisions.update(np.asarray(array).astype(np.int32).tobytes())

    def told(self) -> tuple[str, str]:
        times = self._times.hexdigest()[:12] if self._any else "–"
        return times, self._decisions.hexdigest()[:12]


def of_engine(network, params, images, how: str) -> tuple[str, str]:
    """Hashes of what an engine, or `infer` with it, finds."""
    kind, dtype = how.split()
    full = kind in ("event", "scan")
    engine = {"kernel": "event", "loop": "scan"}.get(kind, kind)
    network, found = network.clone(engine=engine), Hash()
    place = None
    if jax.device_count() > 1:
        spec = PartitionSpec(parallel.AXIS)
        place = NamedSharding(parallel.data_mesh(), spec)
    trace = jax.jit(functools.partial(network.apply, method="trace"))
    for _, some, count in batches_of(images, _BATCH):
        times = network.encode(some).astype(dtype)
        times = times if place is None else jax.device_put(times, place)
        if full:
            traced = trace(params, times)
            decided, layers = ds.decide(traced), [t[:count] for t in traced.times]
        else:
            decided, layers = ds.infer(network, params, times), []
        kept = (decided.label, decided.step, decided.spikes)
        found.add([x[:count] for x in kept], layers)
    return found.told()


def of_numpy(network, params, images) -> tuple[str, str]:
    """Hashes of what loops over time find, image by image, in whole numbers.

    Convolutions have windows of odd size, "SAME" and of stride 1; pooling windows
    divide what they pool."""
    found, steps = Hash(), network.num_steps
    for start in range(0, len(images), _BATCH):
        every = [_decided(network, params, x) for x in images[start : start + _BATCH]]
        layers = [np.stack(times) for times in zip(*(x[0] for x in every), strict=True)]
        potentials = np.stack([x[1] for x in every])
        step = layers[-1].min(axis=1)
        first = layers[-1] == step[:, None]
        label = np.where(first, potentials, potentials.min() - 1).argmax(axis=1)
        flat = [times.reshape(len(every), -1) for times in layers]
        last = np.minimum(step, steps - 1)[:, None]
        spikes = np.stack([(times <= last).sum(axis=1) for times in flat], axis=1)
        found.add((label, step, spikes), layers)
    return found.told()


def _decided(network, params, image) -> tuple[list[np.ndarray], np.ndarray]:
    """Spike times of all layers, and the outputs' potentials."""
    steps, potentials = network.num_steps, np.zeros(0)
    times = [(255 - image.astype(np.int64)) * steps // 255]
    references = network.reference_weights(params), network.thresholds(params)
    others = dict(zip(network.weighted, zip(*references, strict=True), strict=True))
    for name, spec in zip(network.names, network.layers, strict=True):
        if isinstance(spec, ds.PoolSpec):
            height, width, channels = times[-1].shape
            places = height // spec.size, spec.size, width // spec.size, spec.size
            times.append(times[-1].reshape(*places, channels).min(axis=(1, 3)))
            continue
        kernel = np.asarray(params["params"][name]["kernel"], np.int64)
        pulses, theta = map(np.asarray, others[name])
        fired, potentials = _fired(times[-1], kernel, pulses, theta, steps)
        times.append(fired)
    return times, potentials


def _fired(times, kernel, pulses, theta, steps) -> tuple[np.ndarray, np.ndarray]:
    """Spike times, and potentials at the spike or, of silent neurons, at the end."""
    if kernel.ndim == 2:
        times, kernel = times.reshape(1, 1, -1), kernel[None, None]
    (height, width, _), size = times.shape, len(kernel)
    padded = np.zeros((height + size - 1, width + size - 1, len(theta)), np.int64)
    turned, edge = kernel[::-1, ::-1], size // 2
    potentials = padded[edge : edge + height, edge : edge + width]
    fired = np.full(potentials.shape, steps)
    at_spike = np.zeros(potentials.shape, np.int64)
    clock = np.arange(len(pulses)) * steps // max(1, len(pulses))
    for step in range(steps):
        for y, x, c in zip(*np.nonzero(times == step), strict=True):
            padded[y : y + size, x : x + size] += turned[:, :, c]
        potentials += pulses[clock == step].sum(axis=0, dtype=np.int64)
        fires = (potentials >= theta) & (fired == steps)
        fired[fires], at_spike[fires] = step, potentials[fires]
    at_spike = np.where(fired == steps, potentials, at_spike)
    return (fired, at_spike) if kernel.shape[0] > 1 else (fired[0, 0], at_spike[0, 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("weights", help="a shipped network, or a .safetensors file")
    add("--data_dir", help="of the data set it was trained on")
    add("--bits", type=int, default=8, help="of weights that are not whole yet")
    add("--images", type=int, default=10_000, help="first test images")
    add("--environment", choices=_ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.environment is None:
        _table(args)
        return
    network, params, notes = pretrained.find(args.weights)
    if not quantization.is_whole(params):
        network, params = ds.quantize(network, params, bits=args.bits)
    loaded = data.load(notes["dataset"], args.data_dir)
    for how in _ROWS[args.environment]:
        start = time.monotonic()
        find = of_numpy if how == "NumPy" else functools.partial(of_engine, how=how)
        told = find(network, params, loaded.test_images[: args.images])
        seconds = time.monotonic() - start
        print(json.dumps([args.environment, how, *told, round(seconds)]), flush=True)


def _table(args: argparse.Namespace) -> None:
    """Every environment in a process of its own.

    Raises:
      SystemExit: two that differ, or one that failed.
    """
    print(f"{machine()}; {args.weights}, {args.images:,} test images\n")
    print("| process | computed by | spike times | decisions | seconds |")
    print("|---|---|---|---|---:|", flush=True)
    rows = []
    for environment in _ROWS:
        command = [sys.executable, "-m", "benchmarks.exact", *sys.argv[1:]]
        flags = os.environ | _FLAGS.get(environment, {})
        with subprocess.Popen(
            [*command, f"--environment={environment}"],
            env=flags,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            for line in process.stdout or ():
                rows.append(json.loads(line))
                print(f"| {' | '.join(map(str, rows[-1]))} |", flush=True)
        if process.returncode:
            raise SystemExit(f"{environment}: ended with {process.returncode}")
    times, decisions = ({row[k] for row in rows} - {"–"} for k in (2, 3))
    if len(times) > 1 or len(decisions) > 1:
        raise SystemExit("they differ")
    print("\nAll equal.")


if __name__ == "__main__":
    main()
