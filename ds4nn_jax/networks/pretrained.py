"""Trained networks that come with the library.

    network, params, card = pretrained.load("mnist")

Each is a safetensors file in the folder `shipped`, with a model card beside it: the
command, seed and data that made it, and what it reaches on the test images.
"""

from importlib import resources
from pathlib import Path

from ds4nn_jax.networks.weights import Weights, load_weights

_FOLDER = resources.files("ds4nn_jax.networks") / "shipped"


def names() -> tuple[str, ...]:
    """What `load` can load."""
    files = (Path(file.name) for file in _FOLDER.iterdir())
    return tuple(sorted(f.stem for f in files if f.suffix == ".safetensors"))


def find(name: str) -> Weights:
    """A trained network by its name, as `load` gives it, or the weights of a file, as
    `load_weights` does. Errors as theirs."""
    return load(name) if name in names() else load_weights(name)


def load(name: str) -> Weights:
    """A trained network, its parameters of few bits, and its card as notes.

    Args:
      name: one of `names()`.

    Raises:
      ValueError: no such network.
      WeightsError: the file is damaged.
    """
    if name not in names():
        raise ValueError(f"no trained network {name!r}: there are {', '.join(names())}")
    with resources.as_file(_FOLDER / f"{name}.safetensors") as path:
        return load_weights(path)
