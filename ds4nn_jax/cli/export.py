"""`ds4nn export`: a trained network as C sources, as arrays for scripts, or as NIR."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import ds4nn_jax as ds
from ds4nn_jax.cli import progress
from ds4nn_jax.networks import export, pretrained

_PICTURES = 10  # that the program classifies


def add_parser(commands: Any) -> None:
    """Adds `export` to the subparsers; `main` does what it parsed."""
    parser = commands.add_parser("export", help="write a network as C, npz or NIR")
    add = parser.add_argument
    add("weights", help="a shipped network, or a .safetensors file")
    add("--format", choices=("c", "npz", "nir"), default="c", help="(default: c)")
    add("--out_dir", type=Path, required=True, help="a folder that is not there yet")
    add("--bits", type=int, help="round real weights to so many bits first")
    add("--stop", choices=("decision", "never"), default="decision", help="of C")
    add("--data_dir", help="of the data set that C's pictures are from")
    add("--images", type=Path, help="a .npy of uint8 pictures instead")


def main(args: argparse.Namespace) -> None:
    """Writes the network into a new folder, whole or not at all.

    Raises:
      SystemExit: with a message for what cannot be written.
    """
    write = {"c": _write_c, "npz": _write_npz, "nir": _write_nir}[args.format]
    try:
        progress.check_platform()
        if args.out_dir.exists():
            raise ValueError(f"{args.out_dir} is there already")
        weights = pretrained.find(args.weights)
        if args.bits is not None:
            network, params = ds.quantize(*weights[:2], bits=args.bits)
            weights = ds.Weights(network, params, weights.notes)
        args.out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.out_dir.parent) as parent:
            folder = Path(parent, "new")
            folder.mkdir()
            write(args, weights, folder)
            folder.rename(args.out_dir)
    except (ImportError, ValueError, TypeError, OSError) as error:
        raise SystemExit(f"ds4nn export: {error}") from error
    for path in sorted(args.out_dir.iterdir()):
        print(f"{path}  {path.stat().st_size:,} bytes")


def _write_c(args: argparse.Namespace, weights: ds.Weights, folder: Path) -> None:
    network, params, notes = weights
    export.check_whole(params)  # before any data are looked for
    if args.images is not None:
        images = np.load(args.images, allow_pickle=False)
    elif "dataset" in notes:
        dataset = ds.data.load(notes["dataset"], args.data_dir)
        images = dataset.test_images[:_PICTURES]
    else:
        raise ValueError(
            "the weights do not say which data they are for: --images=FILE.npy gives "
            "pictures for main.c"
        )
    files = export.to_c(network, params, images, stop=args.stop == "decision")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _write_npz(args: argparse.Namespace, weights: ds.Weights, folder: Path) -> None:
    structure, arrays = export.to_arrays(weights.network, weights.params)
    contents: dict[str, Any] = arrays
    np.savez(folder / "weights.npz", **contents)
    text = json.dumps(structure, indent=1) + "\n"
    (folder / "network.json").write_text(text, encoding="utf-8")


def _write_nir(args: argparse.Namespace, weights: ds.Weights, folder: Path) -> None:
    from ds4nn_jax import nir as graphs

    network, params, notes = weights
    size = network.input_size
    shape = notes.get("input_shape") if size is None else [size]
    if shape is None:
        raise ValueError("the weights do not say of which shape their images are")
    graphs.nir.write(folder / "network.nir", graphs.to_nir(network, params, shape))
