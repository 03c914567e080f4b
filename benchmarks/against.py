"""This library's speed over its own at an earlier commit, on this machine.

    python -m benchmarks.against COMMIT [--rounds=15] [--processes=2]

Whole processes take turns, this tree's and the commit's (in a worktree of its own), so
that a machine whose speed swings does so for both; medians within a process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = {
    "forward": "conv 64→128, 14×14, batch 64, forward",
    "constant": "… with gradients, constant rule",
    "window": "… with gradients, window rule",
    "step window": "training step of 64C3-P2-128C3-P2-10, batch 64, window rule",
    "step constant": "… constant rule",
    "dense": "dense convolution, for comparison",
}


def child(rounds: int) -> dict[str, float]:
    """Median milliseconds of each kind, with the library that this process finds."""
    runs = _runs()
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for name, run in runs.items():
        run()
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {kind: statistics.median(seen) for kind, seen in times.items()}


def _runs() -> dict[str, Callable]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import ds4nn_jax as ds

    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(0, 5, (3, 3, 64, 128)) + 1, jnp.float32)
    times = rng.integers(0, 100, (64, 14, 14, 64))
    times = jnp.asarray(np.where(rng.random(times.shape) < 0.4, times, 100), "float32")
    spiking = jax.jit(ds.conv)

    def gradients(surrogate: str):
        def error(times, kernel):
            return jnp.sum(ds.conv(times, kernel, surrogate=surrogate))

        return jax.jit(jax.grad(error, argnums=(0, 1)))

    dense = jax.jit(
        lambda x, k: jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )

    def step(surrogate: str):
        network = ds.SpikingNetwork.from_spec(
            "64C3-P2-128C3-P2-10", surrogate=surrogate
        )
        images = rng.integers(0, 256, (64, 28, 28, 1)).astype(np.uint8)
        images = np.where(rng.random(images.shape) < 0.2, images, 0)
        coded, labels = ds.encode(images), rng.integers(0, 10, 64)
        params = network.init(jax.random.key(0), coded)
        params = ds.calibrate(network, params, coded, (0.15, 0.15, 0.7))
        optimizer = optax.adam(0.1)

        def loss(params):
            activity = network.apply(params, coded, method="activity")
            target = ds.relative_target(activity.times, labels, offset=10.0)
            return jnp.mean(ds.temporal_loss(activity.times, target))

        @jax.jit
        def run(params, state):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        return run, (params, optimizer.init(params))

    waits = jax.block_until_ready
    runs: dict[str, Callable] = {"forward": lambda: waits(spiking(times, kernel))}
    for rule in ("constant", "window"):
        run = gradients(rule)
        runs[rule] = lambda run=run: waits(run(times, kernel))
        whole, state = step(rule)
        runs[f"step {rule}"] = lambda run=whole, state=state: waits(run(*state))
    return {**runs, "dense": lambda: waits(dense(times, kernel))}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", help="what to compare with")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each")
    parser.add_argument("--processes", type=int, default=2, help="of each tree")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.child:
        print(json.dumps(child(asked.rounds)))
        return
    if not asked.commit:
        parser.error("name a commit")
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder, "commit")
        subprocess.run(
            [*git, "add", "--quiet", "--detach", str(other), asked.commit], check=True
        )
        try:
            seen = [
                [_timed(tree, asked.rounds) for tree in (other, ROOT)]
                for _ in range(asked.processes)
            ]
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    print(f"| | {asked.commit} | now | ratio |\n|---|---:|---:|---:|")
    for kind, name in KINDS.items():
        before, now = zip(*((a[kind], b[kind]) for a, b in seen), strict=True)
        ratio = statistics.mean(now) / statistics.mean(before)
        columns = (", ".join(f"{x:.1f}" for x in side) for side in (before, now))
        print("| " + " | ".join((name, *columns, f"{ratio:.2f}")) + " |")


def _timed(tree: Path, rounds: int) -> dict[str, float]:
    print(f"timing {tree} …", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), "--child", f"--rounds={rounds}"],
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
