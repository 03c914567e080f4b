"""How soon a process is at work: from `import` to the end of its first training step.

    python -m benchmarks.start [--processes=5]

64C3-P2-128C3-P2-10, batch 32, calibrated on 200 images, with XLA's persistent cache as
`--compilation_cache` sets it. The first process compiles everything; those after it are
told as medians, beyond what `import jax, flax, optax` alone takes. Prints Markdown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.engines import machine

CHILD = """
import json, time
begin = time.perf_counter()
import jax, flax, flax.linen, optax
imported = time.perf_counter()
import numpy as np
import ds4nn_jax as ds
config = ds.TrainConfig(
    spec="64C3-P2-128C3-P2-10", urgency=0, pulses=(), centring=0, output_rule="margin",
    optimizer=ds.optimizers.Adam(learning_rate=0.02), batch_size=32, epochs=1,
)
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (640, 28, 28, 1)) * (rng.random((640, 28, 28, 1)) < 0.3)
images, labels = images.astype(np.uint8), rng.integers(0, 10, 640)
def first(step):
    took = {"imports": imported - begin, "rest": time.perf_counter() - imported}
    print(json.dumps(took), flush=True)
    raise SystemExit
for _ in ds.train(config, images, labels, on_step=first):
    pass
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kernels = Path(folder, "kernels")
        environment = os.environ | {
            "NUMBA_CACHE_DIR": str(kernels),
            "JAX_COMPILATION_CACHE_DIR": str(Path(folder, "xla")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

        def run() -> dict:
            child = [sys.executable, "-c", CHILD]
            done = subprocess.run(
                child, env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            return json.loads(done.stdout)

        def kept() -> int:
            return sum(path.stat().st_size for path in kernels.rglob("*"))

        began = time.perf_counter()
        first, after_one = run(), kept()
        print(f"{machine()}; {time.perf_counter() - began:.0f} s the first process\n")
        later = [run() for _ in range(asked.processes)]
        print("| | first process | later processes, median |\n|---|---:|---:|")
        for name, key in (("import jax, flax, optax", "imports"), ("the rest", "rest")):
            median = statistics.median(each[key] for each in later)
            print(f"| {name} (s) | {first[key]:.2f} | {median:.2f} |")
        print(f"| bytes of kernels kept | {after_one:,} | {kept():,} |")


if __name__ == "__main__":
    main()
