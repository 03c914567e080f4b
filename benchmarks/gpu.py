"""The CUDA kernels on a GPU: right, and how fast. `python3 -m benchmarks.gpu`"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import step
from ds4nn_jax._engines import cuda, scan
from ds4nn_jax._engines.synapse import Conv, Dense

SAME = Conv((1, 1), ((1, 1), (1, 1)))
LAYERS = {
    "conv 28x28x1-64 P2": (SAME, (32, 28, 28, 1), (3, 3, 1, 64), (2, 2), 10),
    "conv 28x28x1-128 P2": (SAME, (32, 28, 28, 1), (3, 3, 1, 128), (2, 2), 0),
    "conv 14x14x64-128 P2": (SAME, (32, 14, 14, 64), (3, 3, 64, 128), (2, 2), 10),
    "conv 14x14x128-128 P2": (SAME, (32, 14, 14, 128), (3, 3, 128, 128), (2, 2), 0),
    "conv 7x7x128-128": (SAME, (32, 7, 7, 128), (3, 3, 128, 128), (1, 1), 10),
    "dense 6272-10": (Dense(), (32, 6272), (6272, 10), (1, 1), 100),
    "dense 784-400": (Dense(), (32, 784), (784, 400), (1, 1), 10),
    "dense 400-10": (Dense(), (32, 400), (400, 10), (1, 1), 0),
}


def ms(run, *arrays, times=50, many=20) -> float:
    """Median of a call's time, of `many` calls in a row."""
    taken = []
    jax.block_until_ready(run(*arrays))
    for _ in range(times):
        start = time.perf_counter()
        for _ in range(many):
            found = run(*arrays)
        jax.block_until_ready(found)
        taken.append((time.perf_counter() - start) / many * 1e3)
    return statistics.median(taken)


def layer(rng, synapse, shape, kernel, pool, pulses, active=0.25):
    size, found = int(np.prod(kernel[:-1])), []
    t = np.where(rng.random(shape) < active, rng.integers(0, 100, shape), 100)
    settings = dict(num_steps=100, pool=pool)
    for weights in ("dyadic", "real"):
        w, p = (rng.normal(0.5, 2, s) for s in (kernel, (pulses, kernel[-1])))
        if weights == "dyadic":
            w, p = (np.round(8 * x) / 8 for x in (w, p))
        arrays = [jnp.asarray(x, jnp.float32) for x in (t, w, p)]
        asked = dict(settings, threshold=0.1 * size + 4, peaks=True, counts=True)
        ours, theirs = (
            jax.jit(functools.partial(e.forward, synapse, **asked))
            for e in (cuda, scan)
        )
        a, b = ours(*arrays), theirs(*arrays)
        if weights == "real":
            found.append(f"{int(jnp.sum(a.times != b.times)):6d}")
            break
        delta = jnp.round(8 * jax.random.normal(jax.random.key(0), a.times.shape)) / 8
        delta = jnp.where(
            jax.random.uniform(jax.random.key(1), delta.shape) < 0.3, delta, 0
        )
        member = () if a.member is None else (a.member,)
        taught = [*arrays, b.until, delta, *member]
        back, slow = (
            jax.jit(
                functools.partial(e.backward, synapse, silent_inputs=True, **settings)
            )
            for e in (cuda, scan)
        )
        both = (a, back(*taught)), (b, slow(*taught))
        same = jax.tree.leaves(jax.tree.map(jnp.array_equal, *both))
        found.append("".join("≠="[bool(x)] for x in same))
        found += [f"{float(jnp.mean(a.times < 100)):.2f} fire"]
        found += [f"{ms(ours, *arrays):7.3f}", f"{ms(back, *taught):7.3f} ms"]
        found += [f"(scan {ms(theirs, *arrays, times=3):.2f}"]
        found += [f"{ms(slow, *taught, times=3):.2f})"]
    return found


def train(name):
    config = ds.presets.load(name)
    images = jax.random.randint(jax.random.key(0), (32, 28, 28, 1), 0, 256).astype(
        jnp.uint8
    )
    optimizer = ds.make_optimizer(config, 100)
    state = step.init(config, optimizer, jax.random.key(1), np.asarray(images))
    run = jax.jit(functools.partial(ds.train_step, config, optimizer))
    return f"{ms(run, state, images, jnp.arange(32) % 10):.3f} ms a step"


if __name__ == "__main__":
    print(jax.devices()[0].device_kind, "usable:", cuda.usable("float32"), flush=True)
    for name, of in LAYERS.items():
        print(f"{name:24}", *layer(np.random.default_rng(0), *of), flush=True)
    for name in ("mnist", "fashion_mnist"):
        print(f"{name:24}", train(name), flush=True)
