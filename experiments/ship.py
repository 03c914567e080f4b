"""Makes shipped weights, and their model card, of a finished run.

    python -m experiments.ship mnist --run_dir=runs/mnist [--data_dir=DIR]

Large kernels are rounded to float16, which halves the file; the card's figures are
those of the rounded weights on the test images, as `--evaluate=pretrained` prints them.
"""

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.checkpoints import write_atomically

_CARD = """# {dataset}: {spec}

Trained by `{environment}python -m experiments.{module}
--flagfile=experiments/flagfiles/{module}.cfg --seed={seed}` (`ds4nn_jax` at {commit}).
Best of {epochs} epochs on held-out training images: epoch {epoch}, {val_accuracy:.2%}
there. The test images were used to report only. Large kernels are stored as float16;
all are used as float32.

| on the {images:,} test images | |
|---|---:|
| strict accuracy | {accuracy:.2%} |
| lenient accuracy (a tie counts) | {lenient_accuracy:.2%} |
| ties | {tied:.2%} |
| all outputs silent, decided by potentials | {silent:.2%} |
| mean decision step, of T = {num_steps} | {decision_step:.1f} |
| mean spikes up to the decision, pooling included | {spikes:,.0f} |
| dead neurons | {dead:.1%} |

`python -m experiments.{module} --evaluate=pretrained` gives them again.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=("mnist", "fashion_mnist"))
    parser.add_argument("--run_dir", required=True, help="out_dir of the run")
    parser.add_argument("--data_dir", help="where the data set lies")
    parser.add_argument(
        "--out_dir", default="ds4nn_jax/weights", help="where weights and card go"
    )
    parser.add_argument(
        "--nproc", type=int, help="XLA's threads in the run, for the card to name"
    )
    asked = parser.parse_args(argv)
    network, params, notes = ds.load_weights(Path(asked.run_dir) / "best.safetensors")
    halved = jax.tree.map(_rounded, params)
    rounded = jax.tree.map(lambda w: w.astype(np.float32), halved)
    images = data.load(asked.dataset, asked.data_dir)
    test = ds.evaluate(network, rounded, images.test_images, images.test_labels)
    rows = (Path(asked.run_dir) / "metrics.jsonl").read_text().splitlines()
    card = {
        **notes,
        **test.summary(),
        "class_names": list(images.class_names),
        "input_shape": list(images.test_images.shape[1:]),
        "spec": network.spec,
        "num_steps": network.num_steps,
        "epochs": len(rows) - 1,
        "commit": _commit(),
        "nproc": asked.nproc,
        "module": asked.dataset.removesuffix("_mnist"),
    }
    out = Path(asked.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    weights = out / f"{asked.dataset}.safetensors"
    ds.save_weights(weights, network, halved, notes=card)
    environment = f"NPROC={asked.nproc} " if asked.nproc else ""
    text = _CARD.format(environment=environment, **card)
    write_atomically(out / f"{asked.dataset}.md", text.encode())
    print(text)


def _rounded(kernel: np.ndarray) -> np.ndarray:
    """The first convolution's few weights stay as they are: where an image is flat, all
    spikes of a window come at once, and learning can leave a sum right at θ."""
    return kernel.astype(np.float16) if kernel.size > 10_000 else kernel


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout[
        :-1
    ]


if __name__ == "__main__":
    main()
