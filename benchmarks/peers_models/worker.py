"""One library in one process, which `benchmarks.peers` asks for its times.

    python worker.py MODULE INPUTS.npz MEMORY_GIB

A request is a line of JSON on standard input, its answer a line on standard output:

    {"do": "build", "batch": 8, "steps": 100, "variant": "loop"}  -> {"versions": {…}}
    {"do": "train", "seconds": 1.0}  -> {"times": […]}  at least one step; or "infer"
    {"do": "memory"}                 -> {"peak": bytes, "temporary": bytes or null}

What cannot be done is answered {"error": "…"}. It runs in an environment without
ds4nn_jax, so it imports nothing of it; only the module for our own library does.
"""

import importlib
import json
import os
import resource
import sys
import time
from importlib import metadata

import numpy as np


def spike_train(times: np.ndarray, steps: int) -> np.ndarray:
    """[B, H, W, C] spike times -> [T, B, H, W, C] float32; T and later is silent."""
    clock = np.arange(steps).reshape(steps, *[1] * times.ndim)
    return (times == clock).astype(np.float32)


def peak_memory() -> int:
    """Bytes resident at most. Linux's ru_maxrss would include the parent's at fork."""
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Server:
    """Holds the model; every step gets the next batch of the images."""

    def __init__(self, module: str, inputs: str):
        self.module = importlib.import_module(module)
        self.inputs = np.load(inputs)
        self.turn = 0

    def build(self, batch: int, steps: int, variant: str) -> dict:
        weights = [self.inputs[name] for name in ("conv1", "conv2", "dense")]
        self.model = self.module.Model(weights, steps, variant)
        labels = self.inputs["labels"]
        starts = range(0, len(labels) - batch + 1, batch)
        raw = getattr(self.model, "takes_images", False)
        source = self.inputs["images" if raw else f"times{steps}"]
        self.batches = []
        for start in list(starts)[:16]:
            some = source[start : start + batch]
            some = some if raw else spike_train(some, steps)
            pair = self.model.batch(some, labels[start : start + batch])
            self.batches.append(pair)
        names = self.module.PACKAGES
        return {"versions": {name: metadata.version(name) for name in names}}

    def steps(self, kind: str, seconds: float) -> dict:
        times = []
        while not times or sum(times) < seconds:
            x, labels = self.batches[self.turn % len(self.batches)]
            self.turn += 1
            start = time.perf_counter()
            if kind == "train":
                self.model.train(x, labels)
            else:
                self.model.infer(x)
            times.append(time.perf_counter() - start)
        return {"times": times}

    def memory(self) -> dict:
        temporary = getattr(self.model, "temporary", None)
        return {"peak": peak_memory(), "temporary": temporary}

    def answer(self, do: str, **arguments) -> dict:
        if do in ("train", "infer"):
            return self.steps(do, **arguments)
        return {"build": self.build, "memory": self.memory}[do](**arguments)


def main() -> None:
    module, inputs, gibibytes = sys.argv[1:]
    # Libraries print: what they print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    limit = int(float(gibibytes) * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    server = None
    for line in sys.stdin:
        try:
            server = server or Server(module, inputs)
            answer = server.answer(**json.loads(line))
        except Exception as error:  # reported as a row of the table
            first = (str(error).strip() or "no message").splitlines()[0]
            answer = {"error": f"{type(error).__name__}: {first[:160]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
