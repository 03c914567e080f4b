"""The event engine, for CPUs: every synapse acts at most once, so a layer owes one pass
over the spikes that arrive, not T passes.

Forward: sort the events of each window by step, add their weight rows to potentials
held in registers, stop when every neuron of the window has fired. Backward: visit only
neurons with an error. Both need memory for their inputs and outputs, whatever T is.

JAX reaches the loops through `buffer_callback`: they read and write XLA's own buffers.
(`pure_callback` copies them, and deadlocks on one core: it hands its arguments to the
thread that waits for it.) numba is imported at the first call.
"""

import concurrent.futures
import functools
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from ds4nn_jax._synapse import NO_POOL, Dense, Response, Synapse

_PARTS = 16  # of a batch in the backward pass; fixed, so that sums never reorder
_PARTIAL_SUMS = 2**24  # weights in all parts together


def available() -> bool:
    """Whether numba can be imported."""
    return importlib.util.find_spec("numba") is not None


def require() -> None:
    """Raises ImportError, saying what to install, where numba is missing."""
    if not available():
        raise ImportError(
            'engine="event" needs numba: pip install numba, or use engine="scan"'
        )


def forward(
    synapse: Synapse,
    times: jax.Array,
    kernel: jax.Array,
    *,
    threshold: float,
    num_steps: int,
    peaks: bool,
    pool: tuple[int, int] = NO_POOL,
    counts: bool = False,
) -> Response:
    """Spike times and, if `peaks`, the highest potential up to the spike and its step.

    V(t) = V(t−1) + Σ_i w_i·[t_i = t]  (Eq. 2), fires at the first V(t) ≥ θ (Eq. 3).
    A neuron that fires has its peak at its spike; a silent one where V is highest.
    """
    require()
    shape = jax.eval_shape(synapse.current, times, kernel).shape
    batch = shape[0]
    if pool != NO_POOL:
        shape = (batch, shape[1] // pool[0], shape[2] // pool[1], shape[3])
    out: Any = jax.ShapeDtypeStruct(shape, times.dtype)
    rows = 1 if pool == NO_POOL else 2
    counted: Any = jax.ShapeDtypeStruct((batch, rows, num_steps), np.int32)
    response = Response(
        out,
        out if peaks else None,
        out if peaks else None,
        None if pool == NO_POOL else out,
        counted if counts else None,
    )
    host = functools.partial(_host_forward, synapse, threshold, num_steps, pool)
    call = buffer_callback(host, response, vmap_method="expand_dims")
    return call(times, kernel)


def backward(
    synapse: Synapse,
    times: jax.Array,
    kernel: jax.Array,
    until: jax.Array,
    delta: jax.Array,
    member: jax.Array | None = None,
    *,
    num_steps: int,
    silent_inputs: bool,
    pool: tuple[int, int] = NO_POOL,
) -> tuple[jax.Array, jax.Array]:
    """∂E/∂t_i and ∂E/∂w for neurons that listened up to and including `until`.

    ∂E/∂w_ji = −Σ δ_j·[t_i ≤ until_j, i fired]  (Eq. 8, 12)
    δ_i      =  Σ_j δ_j·w_ji·[t_i ≤ until_j]    (Eq. 10)
    A silent input has δ_i = 0, or with `silent_inputs` Σ_j δ_j·w_ji. With pooling
    `until` and `delta` are those of the first members; the others have no error.
    """
    require()
    host = functools.partial(_host_backward, synapse, num_steps, silent_inputs, pool)
    out = jax.ShapeDtypeStruct(times.shape, times.dtype)
    out_kernel = jax.ShapeDtypeStruct(kernel.shape, times.dtype)
    call = buffer_callback(host, (out, out_kernel), vmap_method="expand_dims")
    return call(times, kernel, until, delta, until if member is None else member)


def _host_forward(synapse, threshold, num_steps, pool, context, results, times, kernel):
    """`forward` on buffers with any number of leading axes of `vmap`."""
    from ds4nn_jax import _event_kernels

    del context
    times, kernel = np.asarray(times), np.asarray(kernel)
    response = jax.tree.map(np.asarray, results)
    rank, kernel_rank = _ranks(synapse)
    groups = _size(kernel.shape[:-kernel_rank])
    if groups > 1:  # else the mapped axes are but a larger batch
        lead = response.times.shape[:-rank]
        times = np.broadcast_to(times, lead + times.shape[-rank:])
        kernel = np.broadcast_to(kernel, lead + kernel.shape[-kernel_rank:])
        groups = _size(lead)
    times = _inputs(synapse, times, groups)
    out = [None if x is None else _images(synapse, x, groups) for x in response[:4]]
    spike_times, potential, until, member = (out[0] if x is None else x for x in out)
    weights, lanes = _blocks(_matrices(kernel, groups), 512 // times.itemsize)
    run = _event_kernels.forward(lanes, response.potential is not None)
    images = parts(times.shape[1], 8 * workers())
    rows = parts(spike_times.shape[2], 2 * workers() // (groups * len(images)))
    # Every part of an image counts for itself.
    counted = response.counts is not None
    shape = (times.shape[1], 2, num_steps) if counted else (0, 0, 0)
    counts = np.zeros((len(rows), groups, *shape), np.int32)

    def task(part):
        group, images, row = part
        run(
            times[group],
            weights[group],
            *_geometry(synapse, kernel),
            pool,
            times.dtype.type(threshold),
            num_steps,
            images,
            rows[row],
            spike_times.shape[2:],
            *(x[group].reshape(-1) for x in (spike_times, potential, until, member)),
            counts[row, group],
        )

    in_parallel(task, itertools.product(range(groups), images, range(len(rows))))
    if counted:
        kinds = response.counts.shape[-2]
        total = counts.sum(axis=0, dtype=np.int32)[:, :, :kinds]
        response.counts[...] = total.reshape(response.counts.shape)


def _host_backward(synapse, num_steps, silent_inputs, pool, context, results, *buffers):
    """`backward` on buffers with any number of leading axes of `vmap`."""
    from ds4nn_jax import _event_kernels

    del context
    rank, kernel_rank = _ranks(synapse)
    d_times, d_kernel = (np.asarray(result) for result in results)
    lead = d_times.shape[:-rank]
    groups = _size(lead)

    def full(buffer, rank):
        array = np.asarray(buffer)
        return np.broadcast_to(array, lead + array.shape[array.ndim - rank :])

    times, kernel, *taught = buffers
    times, until, delta, member = (
        _inputs(synapse, full(buffer, rank), groups) for buffer in (times, *taught)
    )
    d_times = _images(synapse, d_times, groups)
    kernel = full(kernel, kernel_rank)
    matrices = _matrices(kernel, groups)
    weights, lanes = _blocks(matrices.swapaxes(1, 2), 128 // times.itemsize)
    images = parts(times.shape[1], min(_PARTS, _PARTIAL_SUMS // matrices[0].size))
    shape = (groups, len(images), weights.shape[1])
    d_weights = aligned_zeros(shape, times.dtype)
    run = _event_kernels.backward(lanes)

    def task(part):
        group, index = part
        run(
            times[group],
            weights[group],
            *_geometry(synapse, kernel),
            pool,
            num_steps,
            silent_inputs,
            images[index],
            until[group],
            delta[group],
            member[group],
            d_times[group],
            d_weights[group, index],
        )

    in_parallel(task, itertools.product(range(groups), range(len(images))))
    _, rows, outputs = matrices.shape
    blocks = d_weights.sum(axis=1).reshape(groups, -1, outputs, lanes)
    by_row = blocks.swapaxes(2, 3).reshape(groups, -1, outputs)
    _matrices(d_kernel, groups)[...] = by_row[:, :rows]


def _ranks(synapse: Synapse) -> tuple[int, int]:
    """Axes of times and of the kernel."""
    return (2, 2) if isinstance(synapse, Dense) else (4, 4)


def _geometry(synapse: Synapse, kernel: np.ndarray):
    """Window, strides, and the rows above and columns left of the image."""
    if isinstance(synapse, Dense):
        return (1, 1), (1, 1), (0, 0)
    (top, _), (left, _) = synapse.pads
    return kernel.shape[-4:-2], synapse.strides, (top, left)


def _images(synapse: Synapse, array: np.ndarray, groups: int) -> np.ndarray:
    """[groups, B, H, W, features], contiguous; a dense layer has 1×1 images."""
    image = (1, 1) if isinstance(synapse, Dense) else array.shape[-3:-1]
    batch = _size(array.shape[: -_ranks(synapse)[0] + 1]) // groups
    shape = (groups, batch, *image, array.shape[-1])
    return np.ascontiguousarray(array).reshape(shape)


def _inputs(synapse: Synapse, array: np.ndarray, groups: int) -> np.ndarray:
    """Images marked read-only, all of them: numba compiles for each kind it meets."""
    images = _images(synapse, array, groups)
    images.flags.writeable = False
    return images


def _matrices(kernel: np.ndarray, groups: int) -> np.ndarray:
    """[groups, kh·kw·I, O]."""
    return kernel.reshape(groups, _size(kernel.shape[:-1]) // groups, kernel.shape[-1])


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _blocks(matrices: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """[groups, rows, columns] → [groups, blocks·rows·lanes] and the lanes of a block.

    The width is such that blocks are few and few lanes of the last one stand idle.
    """
    groups, rows, columns = matrices.shape
    widths = (most, most // 2, most // 4, most // 8)
    lanes = min(widths, key=lambda width: -(-columns // width) * (width + most // 8))
    blocks = -(-columns // lanes)
    split = aligned_zeros((groups, blocks, rows, lanes), matrices.dtype)
    for block in range(blocks):
        part = matrices[:, :, block * lanes : (block + 1) * lanes]
        split[:, block, :, : part.shape[2]] = part
    return split.reshape(groups, -1), lanes


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that begin with a cache line: vectors across two lines cost twice."""
    line, size = 64, _size(shape) * dtype.itemsize
    memory = np.zeros(size + line, np.uint8)
    start = -memory.ctypes.data % line
    return memory[start : start + size].view(dtype).reshape(shape)


def parts(length: int, count: int) -> list[tuple[int, int]]:
    """`length` items in at most `count` even ranges."""
    count = max(1, min(length, count))
    edges = [length * k // count for k in range(count + 1)]
    return list(itertools.pairwise(edges))


@functools.cache
def workers() -> int:
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else (os.cpu_count() or 1)
    )


@functools.cache
def _pool(process: int) -> concurrent.futures.ThreadPoolExecutor:
    """Helper threads of a process; a fork starts its own."""
    return concurrent.futures.ThreadPoolExecutor(max(1, workers() - 1), "ds4nn-event")


def in_parallel(task: Callable, todo: Iterable) -> None:
    """Runs every part. The caller works too, so no call waits for a free thread."""
    todo = list(todo)
    ticket = itertools.count()  # next() is atomic

    def drain():
        while (index := next(ticket)) < len(todo):
            task(todo[index])

    helpers = min(workers(), len(todo)) - 1
    futures = [_pool(os.getpid()).submit(drain) for _ in range(helpers)]
    drain()
    for future in futures:
        if not future.cancel():
            future.result()
