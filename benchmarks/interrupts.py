"""Ctrl-C at random moments, and what is left of the process.

    python -m benchmarks.interrupts [--interrupts=300] [--seed=0]

For each kind of work a process of its own does nothing else, and is sent SIGINT again
and again. It must get `KeyboardInterrupt` each time and nothing else, live, and
compute the same bits afterwards. The exit status is told beside it: jaxlib itself may
crash when an interpreter ends in which it was interrupted while tracing or compiling
(with `engine="scan"`, without a line of ours in machine code, just as well). Markdown.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import jax
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import data

KINDS = ("conv", "gradient", "infer", "train", "evaluate")
_CONFIG = ds.TrainConfig(
    spec="8C3-P2-16C3-10",
    initial_weights=ds.initial_weights.FiringRates(conv=0.4),
    optimizer=ds.optimizers.Adam(learning_rate=0.02),
    batch_size=20,
    epochs=2,
)


def work_of(kind: str) -> Callable[[], list[np.ndarray]]:
    """Something that takes long enough to be interrupted, and what it computes."""
    rng = np.random.default_rng(0)
    times = rng.integers(0, 101, (32, 28, 28, 8)).astype(np.float32)
    kernel = rng.integers(-4, 9, (3, 3, 8, 32)).astype(np.float32)
    digits = data.load("digits")
    images, labels = digits.train_images[:400], digits.train_labels[:400]
    if kind == "conv":
        return lambda: [ds.conv(times, kernel)]
    if kind == "gradient":

        def error(times, kernel):
            return (ds.conv(times, kernel, surrogate="window") ** 2).sum()

        gradient = jax.jit(jax.grad(error, (0, 1)))
        return lambda: list(gradient(times, kernel))
    if kind == "train":

        def train():
            *_, last = ds.train(_CONFIG, images, labels)
            return jax.tree.leaves(last.params)

        return train
    network, params, _ = ds.pretrained.load("mnist")
    pictures = rng.integers(0, 256, (100, 28, 28, 1)).astype(np.uint8)
    if kind == "infer":
        encoded = ds.encode(pictures)
        return lambda: list(ds.infer(network, params, encoded))
    truth = np.zeros(len(pictures), int)
    return lambda: [ds.evaluate(network, params, pictures, truth).confusion]


def endure(kind: str, interrupts: int, seed: int) -> None:
    """What a child does; prints a line of JSON."""
    # Whoever starts this in the background may have told it to ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = work_of(kind)

    def bits() -> list[bytes]:
        return [np.asarray(x).tobytes() for x in work()]

    moments, seen = random.Random(seed), collections.Counter()
    expected, wrong, sent = bits(), 0, 0
    for count in range(interrupts):
        raised = threading.Event()

        def interrupt(raised=raised):
            # Until it is noticed: JAX loses one that comes while it collects garbage.
            nonlocal sent
            time.sleep(moments.uniform(0, 0.2))
            while not raised.is_set():
                sent += 1
                os.kill(os.getpid(), signal.SIGINT)
                raised.wait(1)

        sender = threading.Thread(target=interrupt)
        try:
            sender.start()
            while True:
                work()
        except BaseException as error:
            raised.set()
            seen[type(error).__name__] += 1
        sender.join()
        if kind != "train" or count % 50 == 49:
            wrong += bits() != expected
    print(json.dumps({"seen": seen, "wrong": wrong, "sent": sent}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interrupts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        endure(asked.child, asked.interrupts, asked.seed)
        return
    print("| work | SIGINTs | raised | wrong results afterwards | exit status |")
    print("|---|---:|---|---:|---:|")
    bad = False
    for kind in KINDS:
        command = [sys.executable, "-m", "benchmarks.interrupts", f"--child={kind}"]
        command += [f"--interrupts={asked.interrupts}", f"--seed={asked.seed}"]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        said = json.loads(child.stdout or "{}")
        seen, wrong = said.get("seen", {}), said.get("wrong", "–")
        raised = ", ".join(f"{count} {name}" for name, count in seen.items()) or "–"
        sent, status = said.get("sent", "–"), child.returncode
        print(f"| {kind} | {sent} | {raised} | {wrong} | {status} |", flush=True)
        bad |= wrong != 0 or seen != {"KeyboardInterrupt": asked.interrupts}
    sys.exit(bad)


if __name__ == "__main__":
    main()
