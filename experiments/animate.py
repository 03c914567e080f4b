"""A decision as it happens: spikes and output potentials of a test image, as a GIF.

    python -m experiments.animate mnist --out=decision.gif

of a network of the library, or of a run's best.safetensors.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ds4nn_jax import data, plots
from ds4nn_jax.cli import figures, progress
from ds4nn_jax.networks import pretrained


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="experiments.animate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", help="a shipped network, or a .safetensors file")
    parser.add_argument("--data_dir", help="where its data set lies; the usual places")
    parser.add_argument("--image", type=int, default=0, help="index of the test image")
    parser.add_argument("--out", default="decision.gif", help="the .gif to write")
    args = parser.parse_args(argv)
    try:
        if Path(args.out).suffix != ".gif":
            raise ValueError(f"--out must end in .gif, got {args.out!r}")
        network, params, notes = pretrained.find(args.weights)
        if "dataset" not in notes:
            raise ValueError(f"{args.weights} does not name its data set")
        images = data.load(notes["dataset"], args.data_dir)
        if not 0 <= args.image < len(images.test_images):
            raise ValueError(
                f"--image must lie in 0 … {len(images.test_images) - 1}, "
                f"got {args.image}"
            )
        image = images.test_images[args.image]
        with figures.style():
            drawn = figures.animation(network, params, image, images.class_names)
            plots.save(drawn, args.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"experiments.animate: {error}") from error
    print(f"{args.out}: {Path(args.out).stat().st_size:,} bytes")


if __name__ == "__main__":
    progress.program("experiments.animate", main)
