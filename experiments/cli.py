"""`ds4nn`: the experiments as one command.

ds4nn train mnist                   by the best recipe known; or --preset, --flagfile
ds4nn evaluate mnist                python -m experiments.mnist --evaluate=pretrained
ds4nn predict image.png             what is in it, and when that was clear
ds4nn report                        python -m experiments.report
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import pretrained

from . import progress


def main(argv: Sequence[str] | None = None) -> None:
    """What a shell calls; `argv` without the name of the program.

    Raises:
      SystemExit: after --help, or with a message for what cannot be done.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    asked, rest = _parser().parse_known_args(argv)
    try:
        _run(asked, rest)
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"ds4nn {asked.command} needs the package {error.name}: "
            f"pip install 'ds4nn_jax[experiments]'"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ds4nn",
        description=__doc__.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=ds.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (("train", "train a network"), ("evaluate", "test one")):
        command = commands.add_parser(name, add_help=False, help=does)
        command.add_argument(
            "dataset", nargs="?", help="digits, mnist, fashion_mnist, …"
        )
    predict = commands.add_parser("predict", help="classify images")
    predict.add_argument("images", nargs="+", help="files that Pillow reads")
    predict.add_argument(
        "--weights", default="mnist", help="a shipped network, or a .safetensors file"
    )
    predict.add_argument(
        "--urgency", type=float, help="mV a step into the outputs; the network's own"
    )
    predict.add_argument(
        "--invert", action="store_true", help="for dark ink on a light ground"
    )
    commands.add_parser("report", add_help=False, help="tables and figures")
    return parser


def _run(asked: argparse.Namespace, rest: list[str]) -> None:
    if asked.command == "report":
        from . import report

        report.main(rest, "ds4nn report")
    elif asked.command == "predict":
        if rest:
            raise SystemExit(f"ds4nn predict: unknown flag {rest[0]}")
        _predict(asked)
    else:
        from . import runner

        if asked.dataset is None and not {"-h", "--help"} & {*rest}:
            raise SystemExit(
                f"ds4nn {asked.command}: which data set? As in: "
                f"ds4nn {asked.command} mnist"
            )
        dataset = asked.dataset or "digits"
        command = f"ds4nn {asked.command} {asked.dataset or 'DATASET'}"
        if asked.command == "evaluate" and not any("--evaluate" in a for a in rest):
            rest.append("--evaluate=pretrained")
        runner.main([command, *rest], dataset, command)


def _predict(asked: argparse.Namespace) -> None:
    try:
        if asked.weights in pretrained.names():
            weights = pretrained.load(asked.weights)
        else:
            weights = ds.load_weights(asked.weights)
        network, params, notes = weights
        if asked.urgency is not None:
            network = network.clone(urgency=asked.urgency)
        if "input_shape" not in notes:
            raise ValueError(f"{asked.weights} does not tell the shape of its images")
        images = [
            _read(Path(path), notes["input_shape"], asked.invert)
            for path in asked.images
        ]
        times = ds.encode(np.stack(images), num_steps=network.num_steps)
        decided = ds.infer(network, params, times)
    except (ds.CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"ds4nn predict: {error}") from error
    for path, label, step in zip(
        asked.images, decided.label.tolist(), decided.step.tolist(), strict=True
    ):
        when = (
            f"decided at step {step:g} of {network.num_steps}"
            if step < network.num_steps
            else "no output fired: the highest potential"
        )
        print(f"{path}: {notes['class_names'][label]} ({when})")


def _read(path: Path, shape: Sequence[int], invert: bool) -> np.ndarray:
    """An image file as uint8 of the given [H, W, C], scaled if it has another size."""
    from PIL import Image, ImageOps

    height, width, channels = shape
    with Image.open(path) as image:
        image = image.convert({1: "L", 3: "RGB"}[channels])
        if invert:
            image = ImageOps.invert(image)
        if image.size != (width, height):
            print(f"{path}: scaled from {image.size} to {(width, height)} pixels")
            image = image.resize((width, height), Image.Resampling.BOX)
        return np.asarray(image, np.uint8).reshape(shape)


def program() -> None:
    """The console script."""
    progress.program("ds4nn", main)


if __name__ == "__main__":
    program()
