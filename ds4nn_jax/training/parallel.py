"""Training on several devices: batches are sharded, parameters are replicated.

Data parallelism on JAX's SPMD: one program over a mesh with the single axis "data". It
is the same on eight devices of a machine and on processes of many machines, once each
has called `jax.distributed.initialize`. Every process holds the whole data set and the
same seed, hence the same batches; it computes its part of each.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def data_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh of the first `num_devices` devices of all processes; None takes all.

    Raises:
      ValueError: there are fewer, or several processes would not all take part.
    """
    devices = jax.devices()
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise ValueError(
            f"num_devices must be in 1 … {len(devices)}, which is how many there are "
            f"({devices[0].platform}), got {count}"
        )
    used = {device.process_index for device in devices[:count]}
    if len(used) < jax.process_count():
        raise ValueError(
            f"{count} devices leave out some of the {jax.process_count()} processes"
        )
    return jax.make_mesh((count,), (AXIS,), (AxisType.Auto,), devices=devices[:count])


def replicated(mesh: Mesh, tree: Any) -> Any:
    """The same arrays, which every process holds, on every device of the mesh."""

    host = jax.tree.map(np.copy, to_host(tree))  # placing may alias what it takes
    placed = jax.tree.map(lambda leaf: _placed(mesh, PartitionSpec(), leaf), host)
    return from_host(placed, tree)


def to_host(tree: Any) -> Any:
    """The same tree of NumPy arrays, random keys as the numbers behind them."""

    def numbers(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(numbers, tree)


def from_host(tree: Any, like: Any) -> Any:
    """What `to_host` made of a tree, with the types of leaves that `like` has."""

    def typed(leaf, model):
        if jax.dtypes.issubdtype(model.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(leaf)
        return leaf if isinstance(model, np.ndarray) else jax.numpy.asarray(leaf)

    return jax.tree.map(typed, tree, like)


def from_first(tree: Any) -> Any:
    """What process 0 holds, in every process: arrays of the same shapes everywhere."""
    return from_host(multihost_utils.broadcast_one_to_all(to_host(tree)), tree)


def shared_out(mesh: Mesh, batch: np.ndarray) -> jax.Array:
    """A host array [B, …], the same in every process, a part of B on each device."""
    if len(batch) % mesh.size:
        raise ValueError(
            f"a batch of {len(batch)} cannot be shared out to {mesh.size} devices: "
            "choose a multiple"
        )
    return _placed(mesh, PartitionSpec(AXIS), batch)


def _placed(mesh: Mesh, spec: PartitionSpec, host: np.ndarray) -> jax.Array:
    # device_put only takes what lies on devices of this process.
    return jax.make_array_from_callback(
        host.shape, NamedSharding(mesh, spec), lambda part: host[part]
    )
