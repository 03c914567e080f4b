"""Event against scan engine and against the dense convolution of the same layer.

    python -m benchmarks.engines [--quick]

Prints Markdown. What is compared runs interleaved in one process; times are medians in
ms, ratios those of the medians. Spike times and weights are random.
"""

import argparse
import functools
import os
import re
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax.layers import functions

CHANNELS, OUTPUTS, IMAGE, BATCH, STEPS, ACTIVE = 64, 128, 14, 64, 100, 0.4


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median ms of each, run in turns; the first round compiles."""
    taken = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


def inputs(
    *, batch=BATCH, image=IMAGE, channels=CHANNELS, outputs=OUTPUTS, steps=STEPS
):
    random = np.random.default_rng(0)
    shape = (batch, image, image, channels)
    silent = random.random(shape) >= ACTIVE
    times = np.where(silent, steps, random.integers(0, steps, shape))
    kernel = random.normal(0.4, 2.5, (3, 3, channels, outputs)) * (64 / channels) ** 0.5
    return jnp.asarray(times, jnp.float32), jnp.asarray(kernel, jnp.float32)


def layer_runs(engine: str, *, steps=STEPS, surrogate="constant", **sizes):
    """Forward; and forward with both gradients, 2×2 pooling behind the layer."""
    times, kernel = inputs(steps=steps, **sizes)
    layer = functools.partial(
        functions.conv, num_steps=steps, engine=engine, surrogate=surrogate
    )

    def error(times, kernel):
        return functions.earliest_pool(layer(times, kernel)).sum()

    both = jax.jit(layer), jax.jit(jax.grad(error, (0, 1)))
    return [functools.partial(function, times, kernel) for function in both]


def convolve(x, kernel):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=names
    )


def dense_convolution(**sizes):
    return functools.partial(jax.jit(convolve), *inputs(**sizes))


def network_step(conv: Callable, dense: Callable, pool: Callable, batch=BATCH):
    """Gradients of 64C3-P2-128C3-P2-10 on 28×28 images."""
    times, first = inputs(batch=batch, image=28, channels=1, outputs=64)
    _, second = inputs()
    last = np.random.default_rng(1).normal(0.05, 1, (7 * 7 * 128, 10))
    kernels = (first, second, jnp.asarray(last, jnp.float32))

    def error(kernels):
        hidden = pool(conv(pool(conv(times, kernels[0])), kernels[1]))
        return dense(hidden.reshape(batch, -1), kernels[2]).sum()

    return functools.partial(jax.jit(jax.grad(error)), kernels)


def spiking(engine: str, surrogate: str = "constant", batch=BATCH):
    conv, dense = (
        functools.partial(layer, engine=engine, surrogate=surrogate)
        for layer in (functions.conv, functions.dense)
    )
    return network_step(conv, dense, functions.earliest_pool, batch)


def relu():
    def pool(x):
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    return network_step(lambda *a: jax.nn.relu(convolve(*a)), jnp.matmul, pool)


def table(title: str, measured: dict[str, float], reference: str) -> None:
    print(f"\n| {title} | ms | times {reference} |\n|---|---:|---:|")
    for name, ms in measured.items():
        print(f"| {name} | {ms:.2f} | {ms / measured[reference]:.2f} |")


def growth(axis: str, values, rounds: int) -> None:
    print(f"\n| {axis} | event forward | gradients | dense convolution | ratio |")
    print("|---:|---:|---:|---:|---:|")
    for value in values:
        forward, gradients = layer_runs("event", **{axis: value})
        sizes = {} if axis == "steps" else {axis: value}
        runs = {"f": forward, "g": gradients, "c": dense_convolution(**sizes)}
        ms = medians(runs, rounds)
        print(f"| {value} | {ms['f']:.2f} | {ms['g']:.2f} | {ms['c']:.2f} ", end="")
        print(f"| {ms['f'] / ms['c']:.2f} |")


def machine() -> str:
    model = re.search("model name.*: (.*)", Path("/proc/cpuinfo").read_text())
    packages = ("jax", "jaxlib", "numba", "numpy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return f"{os.cpu_count()} cores, {model[1] if model else 'CPU'}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="timings of each")
    parser.add_argument("--quick", action="store_true", help="without the scan engine")
    args = parser.parse_args()
    print(f"{machine()}; T = {STEPS}, batch {BATCH}, {ACTIVE:.0%} of inputs active")
    layer = {"dense convolution": dense_convolution()}
    network = {"ReLU CNN": relu()}
    for rule in ("constant", "window"):
        forward, gradients = layer_runs("event", surrogate=rule)
        layer |= {f"event, {rule}, forward": forward}
        layer |= {f"event, {rule}, gradients": gradients}
        network |= {f"event, {rule}": spiking("event", rule)}
    name = f"conv {CHANNELS}→{OUTPUTS}, 3×3, {IMAGE}×{IMAGE}"
    table(name, medians(layer, args.rounds), "dense convolution")
    title = "training step of 64C3-P2-128C3-P2-10, 28×28"
    table(title, medians(network, args.rounds), "ReLU CNN")
    if not args.quick:
        forward = {engine: layer_runs(engine)[0] for engine in ("event", "scan")}
        table(f"{name}, forward", medians(forward, 3), "event")
        # XLA's CPU gradients of a convolution take seconds an image in a scan.
        for title, run in (
            (f"{name}, gradients", lambda engine: layer_runs(engine, batch=2)[1]),
            ("training step", lambda engine: spiking(engine, batch=2)),
        ):
            runs = {engine: run(engine) for engine in ("event", "scan")}
            table(f"{title}, batch 2", medians(runs, 1), "event")
    growth("steps", (50, 100, 200, 400), args.rounds)
    growth("batch", (1, 8, 32, 64, 128), args.rounds)
    growth("channels", (16, 64, 128), args.rounds)


if __name__ == "__main__":
    main()
