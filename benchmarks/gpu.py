"""The CUDA kernels on a GPU: right, and how fast. `python3 -m benchmarks.gpu`"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax._engines import cuda, scan
from ds4nn_jax._engines.synapse import Conv, Dense
from ds4nn_jax.training import step

SAME = Conv((1, 1), ((1, 1), (1, 1)))
LAYERS = {
    "conv 28x28x1-64 P2": (SAME, (32, 28, 28, 1), (3, 3, 1, 64), (2, 2), 10),
    "conv 14x14x64-128 P2": (SAME, (32, 14, 14, 64), (3, 3, 64, 128), (2, 2), 10),
    "conv 14x14x128-128 P2": (SAME, (32, 14, 14, 128), (3, 3, 128, 128), (2, 2), 0),
    "conv 7x7x128-128": (SAME, (32, 7, 7, 128), (3, 3, 128, 128), (1, 1), 10),
    "dense 6272-10": (Dense(), (32, 6272), (6272, 10), (1, 1), 100),
    "dense 784-400": (Dense(), (32, 784), (784, 400), (1, 1), 10),
}


def ms(run, *arrays, times=50, many=10) -> str:
    """Median of a call's time, of `many` calls in a row."""
    taken = []
    jax.block_until_ready(run(*arrays))
    for _ in range(times):
        start = time.perf_counter()
        found = [run(*arrays) for _ in range(many)]
        jax.block_until_ready(found)
        taken.append((time.perf_counter() - start) / many * 1e3)
    return f"{statistics.median(taken):8.3f}"


def layer(rng, synapse, shape, kernel, pool, pulses):
    """Which results agree, how many real times differ, and the times of all passes."""
    size = int(np.prod(kernel[:-1]))
    t = np.where(rng.random(shape) < 0.25, rng.integers(0, 100, shape), 100)
    real = [rng.normal(0.5, 2, s) for s in (kernel, (pulses, kernel[-1]))]
    asked = dict(num_steps=100, pool=pool)
    peaks = dict(asked, peaks=True, counts=True)
    theta = jnp.full(kernel[-1], 0.1 * size + 4, jnp.float32)
    part, jit = functools.partial, jax.jit
    ahead = [jit(part(e.forward, synapse, **peaks)) for e in (cuda, scan)]
    asked["silent_inputs"] = True
    back = [jit(part(e.backward, synapse, **asked)) for e in (cuda, scan)]
    arrays = [jnp.asarray(x, jnp.float32) for x in (t, *real)]
    both = (run(*arrays, theta).times for run in ahead)
    differ = jnp.sum(jnp.not_equal(*both))
    arrays[1:] = [jnp.round(8 * x) / 8 for x in arrays[1:]]
    a, b = (run(*arrays, theta) for run in ahead)
    taught = np.round(8 * rng.normal(0, 1, a.times.shape)) / 8
    taught = jnp.asarray(taught * (rng.random(a.times.shape) < 0.3), jnp.float32)
    operands = [*arrays, b.end, taught, *([] if b.argmin is None else [b.argmin])]
    both = zip((a, b), (run(*operands) for run in back), strict=True)
    same = jax.tree.leaves(jax.tree.map(jnp.array_equal, *both))
    found = "".join("≠="[bool(x)] for x in same), f"{int(differ):5d}"
    arrays.append(theta)
    ours = ms(ahead[0], *arrays), ms(back[0], *operands)
    theirs = (ms(r, *x, times=2) for r, x in ((ahead[1], arrays), (back[1], operands)))
    return *found, f"{float(jnp.mean(a.times < 100)):.2f}", *ours, "scan", *theirs


def train(name):
    config = ds.presets.load(name)
    images = jax.random.randint(jax.random.key(0), (32, 28, 28, 1), 0, 256).astype(
        jnp.uint8
    )
    optimizer = ds.make_optimizer(config, 100)
    state = step.init(config, optimizer, jax.random.key(1), np.asarray(images))
    run = jax.jit(functools.partial(ds.train_step, config, optimizer))
    labels = jnp.arange(32) % 10
    return f"{ms(run, state, jax.device_put(images), labels)} ms a step"


if __name__ == "__main__":
    print(jax.devices()[0].device_kind, "usable:", cuda.usable("float32"), flush=True)
    for name in ("mnist", "fashion_mnist"):
        print(f"{name:24}", train(name), flush=True)
    print("layer: equal results, times that differ, fraction that fires, ms")
    for name, of in LAYERS.items():
        print(f"{name:24}", *layer(np.random.default_rng(0), *of), flush=True)
