"""Weights on disk: safetensors files that say which network they belong to."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from ds4nn_jax import _checks
from ds4nn_jax._files import write_atomically
from ds4nn_jax._values import plain
from ds4nn_jax.networks.network import SpikingNetwork

FORMAT = "ds4nn_jax weights"
VERSION = 2  # 2: also integers; files of real weights are of version 1
_DTYPES = "float16", "bfloat16", "float32", "float64", "int8", "int32"
_ENTRY = "ds4nn_jax"  # of the file's metadata: [header as JSON text, SHA-256]
_SETTINGS = "num_steps", "threshold", "padding", "urgency", "pulses"


class WeightsError(ValueError):
    """A file that does not hold the weights expected; the message says why."""


class Weights(NamedTuple):
    """A network, its parameters, and what was noted about them."""

    network: SpikingNetwork
    params: dict
    notes: dict


def save_weights(
    path: str | os.PathLike,
    network: SpikingNetwork,
    params: Mapping,
    *,
    notes: Mapping | None = None,
) -> None:
    """Writes parameters and the network they fit, whole or not at all.

    Args:
      path: the file, by custom `*.safetensors`; replaced if it exists.
      network: stored as spec, T, θ, padding, urgency and pulses: what decides
        spike times.
      params: {"params": {layer: {"kernel": array}}} with finite weights. Whole ones
        (`quantize`) take the bits that they need.
      notes: anything JSON can hold: seed, command, accuracy. `ds4nn predict` reads
        "input_shape", "class_names" and "pictures", see `data.Pictures`.

    """
    params = jax.device_get(params)
    _checks.finite_weights(params)
    tensors = {
        f"{layer}/{name}": np.ascontiguousarray(array)
        for layer, arrays in params["params"].items()
        for name, array in arrays.items()
    }
    counts = network.pulse_counts
    expected = {f"{layer}/kernel" for layer in counts}
    expected |= {f"{layer}/pulses" for layer, count in counts.items() if count}
    if set(tensors) - {f"{layer}/threshold" for layer in counts} != expected:
        raise ValueError(
            f"parameters {sorted(tensors)} are not those of the network "
            f"{network.spec}: {sorted(expected)}"
        )
    packed = {}
    for name, array in tensors.items():
        if array.dtype.name not in _DTYPES:
            raise TypeError(
                f"{name} must be one of {', '.join(_DTYPES)}, got {array.dtype}"
            )
        if array.dtype == np.int8:
            packed[name] = [fewest_bits(array), *array.shape]
            tensors[name] = pack(array, packed[name][0])
    header = {name: getattr(network, name) for name in ("spec", *_SETTINGS)}
    header |= {"format": FORMAT, "version": 1, "notes": dict(notes or {})}
    if packed:
        header |= {"version": VERSION, "packed": packed}
    try:
        text = json.dumps(header, sort_keys=True, default=_for_json)
    except TypeError as error:
        raise TypeError(f"notes must be what JSON can hold: {error}") from error
    # One entry: safetensors writes several in no fixed order, and the same weights
    # should be the same bytes.
    signed = json.dumps([text, digest(text, sorted(tensors.items()))])
    write_atomically(Path(path), safetensors.numpy.save(tensors, {_ENTRY: signed}))


def load_weights(
    path: str | os.PathLike, *, network: SpikingNetwork | None = None
) -> Weights:
    """Reads what `save_weights` wrote. Nothing in the file is executed.

    Args:
      path: the file.
      network: if given, the one the weights must fit: same spec, T, θ, padding,
        urgency and pulses. It is returned as it is, so it also chooses surrogate and
        engine.

    Raises:
      WeightsError: truncated, altered, or no weights of this library; a newer format;
        another network.
    """
    Path(path).open("rb").close()  # names what is no file
    try:
        with safetensors.safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            text, checksum = json.loads((file.metadata() or {})[_ENTRY])
        header = dict(json.loads(text))
    except (KeyError, AttributeError) as error:  # a type that NumPy does not have
        raise WeightsError(f"{path} holds no weights of ds4nn_jax: {error}") from error
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{path} is truncated or no safetensors file: {error}"
        ) from error
    if header.get("version") not in (1, VERSION):
        raise WeightsError(
            f"{path} has format version {header.get('version')}, this library reads "
            f"{VERSION}: use the version of ds4nn_jax that wrote it, or a newer one"
        )
    if digest(text, sorted(tensors.items())) != checksum:
        raise WeightsError(f"{path} is damaged: its checksum does not match")
    oldest = {"urgency": 0.0, "pulses": ()}  # have no others
    stored: dict[str, Any] = {n: header.get(n, oldest.get(n)) for n in _SETTINGS}
    of_file = SpikingNetwork.from_spec(header["spec"], **stored)
    network = network or of_file
    for name in ("spec", *_SETTINGS):
        value, expected = getattr(of_file, name), getattr(network, name)
        if value != expected:
            raise WeightsError(
                f"{path} belongs to another network: its {name} is {value!r}, "
                f"expected {expected!r}"
            )
    params: dict = {}
    for name, array in tensors.items():
        if name in (packed := header.get("packed", {})):
            bits, *shape = packed[name]
            array = _unpack(array, bits, shape)
        layer, leaf = name.split("/")
        params.setdefault(layer, {})[leaf] = array
    return Weights(network, {"params": params}, header["notes"])


def fewest_bits(weights: np.ndarray) -> int:
    """The fewest bits that hold whole weights: ±1 one, else |q| ≤ 2^(b−1) − 1."""
    most = int(np.abs(weights.astype(int)).max(initial=1))
    return 1 if np.all(np.abs(weights) == 1) else min(8, most.bit_length() + 1)


def pack(weights: np.ndarray, bits: int) -> np.ndarray:
    """Whole weights one behind the other, as two's complement of so many bits; with one
    bit 1 means −1."""
    if bits == 8:
        return weights
    codes = weights < 0 if bits == 1 else weights
    rows = np.unpackbits(codes.astype(np.uint8).reshape(-1, 1), axis=1)
    return np.packbits(rows[:, 8 - bits :])


def _unpack(packed: np.ndarray, bits: int, shape: list[int]) -> np.ndarray:
    if bits == 8:
        return packed
    size = math.prod(shape)
    rows = np.unpackbits(packed, count=size * bits).reshape(size, bits)
    if bits == 1:
        return (1 - 2 * rows.astype(np.int8)).reshape(shape)
    # The first bit is the sign: it fills the bits in front of it.
    full = np.pad(rows, ((0, 0), (8 - bits, 0)), mode="edge")
    return np.packbits(full, axis=1).view(np.int8).reshape(shape)


def _for_json(value: Any) -> Any:
    if (number := plain(value)) is value:
        raise TypeError(f"{type(value).__name__} {value!r:.40} is none of its types")
    return number


def digest(header: str, arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """SHA-256 of a text, then of arrays with their names."""
    digest = hashlib.sha256(header.encode())
    for name, array in arrays:
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
