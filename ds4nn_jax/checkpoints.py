"""Weights on disk: safetensors files that say which network they belong to."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from ds4nn_jax._files import whole
from ds4nn_jax.modules import SpikingNetwork

FORMAT = "ds4nn_jax weights"
VERSION = 1
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jax.numpy.bfloat16,
    "F8_E4M3": jax.numpy.float8_e4m3fn,
    "F8_E5M2": jax.numpy.float8_e5m2,
}
_ENTRY = "ds4nn_jax"  # of the file's metadata: [header as JSON text, SHA-256]


class CheckpointError(ValueError):
    """A file that does not hold what was asked for; the message says why."""


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
      params: {"params": {layer: {"kernel": array}}} with finite weights.
      notes: anything JSON can hold: seed, command, accuracy. `ds4nn predict` reads
        "input_shape", "class_names" and "pictures", see `data.Pictures`.

    Raises:
      ValueError: layers that are not the network's, or NaN or infinite weights.
      TypeError: notes that JSON cannot hold.
      OSError: the file cannot be written; an older one is then left as it was.
    """
    path = Path(path)
    tensors = {
        f"{layer}/{name}": np.ascontiguousarray(array)
        for layer, arrays in jax.device_get(params["params"]).items()
        for name, array in arrays.items()
    }
    counts = network.pulse_counts
    expected = {f"{layer}/kernel" for layer in counts}
    expected |= {f"{layer}/pulses" for layer, count in counts.items() if count}
    if set(tensors) != expected:
        raise ValueError(
            f"parameters {sorted(tensors)} are not those of the network "
            f"{network.spec}: {sorted(expected)}"
        )
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite weights: nothing written")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "spec": network.spec,
        "num_steps": network.num_steps,
        "threshold": network.threshold,
        "padding": network.padding,
        "urgency": network.urgency,
        "pulses": list(network.pulses),
        "notes": dict(notes or {}),
    }
    try:
        text = json.dumps(header, sort_keys=True, default=_plain)
    except TypeError as error:
        raise TypeError(f"notes must be what JSON can hold: {error}") from error
    # One entry: safetensors writes several in no fixed order, and the same weights
    # should be the same bytes.
    signed = json.dumps([text, digest(text, sorted(tensors.items()))])
    content = safetensors.numpy.save(tensors, {_ENTRY: signed})
    write_atomically(path, content)


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
      FileNotFoundError: no such file.
      CheckpointError: truncated, altered, or no weights of this library; a newer
        format; another network.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        tensors = {
            name: np.frombuffer(told["data"], _DTYPES[told["dtype"]]).reshape(
                told["shape"]
            )
            for name, told in safetensors.deserialize(content)
        }
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        text, noted = json.loads(metadata.get(_ENTRY, '["{}", ""]'))
        header = json.loads(text)
    except KeyError as error:
        raise CheckpointError(f"{path} holds {error}, which are no weights") from error
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: {error}"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no weights of ds4nn_jax")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {header.get('version')}, this library reads "
            f"{VERSION}: use the version of ds4nn_jax that wrote it, or a newer one"
        )
    if digest(text, sorted(tensors.items())) != noted:
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    stored = {name: header[name] for name in ("num_steps", "threshold", "padding")}
    stored["urgency"] = header.get("urgency", 0.0)
    stored["pulses"] = tuple(header.get("pulses", ()))
    own = SpikingNetwork.from_spec(header["spec"], **stored)
    network = own if network is None else network
    for name in ("spec", *stored):
        value = getattr(own, name)
        if getattr(network, name) != value:
            raise CheckpointError(
                f"{path} belongs to another network: its {name} is {value!r}, "
                f"expected {getattr(network, name)!r}"
            )
    params: dict = {}
    for name, array in tensors.items():
        layer, leaf = name.split("/")
        params.setdefault(layer, {})[leaf] = array
    return Weights(network, {"params": params}, header["notes"])


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and JAX as Python's."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    raise TypeError(f"{type(value).__name__} {value!r:.40} is none of its types")


def write_atomically(path: Path, content: bytes) -> None:
    """The file appears whole under its name, or an older one stays.

    Raises:
      OSError: the directory is missing or not writable, or the disk is full.
    """
    # With the permissions that umask leaves.
    with whole(path) as unfinished, unfinished.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def digest(header: str, arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """SHA-256 of a text, then of arrays with their names."""
    digest = hashlib.sha256(header.encode())
    for name, array in arrays:
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
