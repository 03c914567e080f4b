"""A training run killed again and again, and what it ends with.

    python -m benchmarks.kills [--kills=20] [--seed=0]

Trains on the embedded digits once undisturbed, and once killed by SIGKILL at random
moments and resumed each time, until it was killed often enough and may end. Both must
leave the same weights, byte for byte, and the same metrics but for the seconds.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLAGS = (
    "--preset=default --spec=16C3-P2-32C3-10 --optimizer.learning_rate=0.02 "
    "--optimizer.norms=held --augmentation.shift=1 --batch_size=16 --epochs=200"
).split()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    moments = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        with _started(Path(folder, "first"), "--epochs=1") as run:
            run.communicate()  # compiles the kernels, which later runs find
        began = time.monotonic()
        with _started(whole) as run:
            next(line for line in run.stdout if line.startswith("epoch"))
            ready = time.monotonic() - began
            run.communicate()
        if run.returncode != 0:
            sys.exit("the undisturbed run failed")
        print("| kill | after (s) | steps on disk |\n|---:|---:|---:|")
        done = 0
        while done < asked.kills:
            patience = ready * moments.uniform(0.5, 1.5)  # half of them while it loads
            run = _started(killed, "--resume")
            try:
                run.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                run.kill()
                run.communicate()
                done += 1
                print(f"| {done} | {patience:.1f} | {_steps(killed)} |", flush=True)
            else:
                sys.exit(f"the run ended after {done} kills: ask for fewer")
        run = _started(killed, "--resume")
        run.communicate()
        if run.returncode != 0:
            sys.exit(f"the run could not go on after {done} kills")
        same = (whole / "best.safetensors").read_bytes() == (
            killed / "best.safetensors"
        ).read_bytes()
        rows = _rows(whole) == _rows(killed)
    print(f"\nweights equal, byte for byte: {same}; metrics equal: {rows}")
    sys.exit(not (same and rows))


def _started(out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.digits", *FLAGS]
    command += [f"--out_dir={out}", "--checkpoint_minutes=0.02", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _steps(out: Path) -> int:
    whole = [int(p.name) for p in (out / "checkpoints").glob("*") if p.name.isdigit()]
    return max(whole, default=0)


def _rows(out: Path) -> list[dict]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


if __name__ == "__main__":
    main()
