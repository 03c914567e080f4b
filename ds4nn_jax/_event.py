"""The event engine, for CPUs: every synapse acts at most once, so a layer owes one pass
over the spikes that arrive, not T passes.

Forward: sort the events of each window by step, add their weight rows to potentials
held in registers, stop when every neuron of the window has fired. Backward: visit only
neurons with an error. Both need memory for their inputs and outputs, whatever T is.

Whether the engine can work is asked where a computation is lowered for the CPU, and
only there: where it cannot, and where the program is to be exported (machine code of
this process is of no use to another), the scan takes its place.
"""

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive
from jax.interpreters import mlir

from ds4nn_jax import _event_library, _scan
from ds4nn_jax._synapse import NO_POOL, Dense, Response, Synapse

_PARTS = 16  # of a batch in the backward pass; fixed, so that sums never reorder
_PARTIAL_SUMS = 2**24  # weights in all parts together
_FORWARD_PARTS = 32  # of a batch in the forward pass
_WIDE, _NARROW = 32, 16  # lanes of a block of float32; of float64 half as many

Shape = jax.ShapeDtypeStruct


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
    scan = functools.partial(
        _scan.forward,
        synapse,
        threshold=threshold,
        num_steps=num_steps,
        peaks=peaks,
        pool=pool,
        counts=counts,
    )
    event = functools.partial(
        _forward, synapse, threshold, num_steps, peaks, pool, counts
    )
    return on_cpu("forward", event, scan, times, kernel)


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
    scan = functools.partial(
        _scan.backward,
        synapse,
        num_steps=num_steps,
        silent_inputs=silent_inputs,
        pool=pool,
    )
    event = functools.partial(_backward, synapse, num_steps, silent_inputs, pool)
    taught = (until, delta) if member is None else (until, delta, member)
    return on_cpu("backward", event, scan, times, kernel, *taught)


def _forward(synapse, threshold, num_steps, peaks, pool, counts, times, kernel):
    out = jax.eval_shape(synapse.current, times, kernel).shape
    response = jax.eval_shape(
        functools.partial(
            _scan.forward,
            synapse,
            threshold=threshold,
            num_steps=num_steps,
            peaks=peaks,
            pool=pool,
            counts=counts,
        ),
        times,
        kernel,
    )
    geometry = _geometry(synapse, times, kernel, out, pool)
    rows = kernel.reshape(-1, kernel.shape[-1])
    lanes = _lanes(times.dtype, rows.shape[1] <= _NARROW * 4 // times.dtype.itemsize)
    images = min(geometry["images"], _FORWARD_PARTS)
    plan = _plan(
        **geometry,
        steps=num_steps,
        threshold=bits(threshold),
        lanes=lanes,
        image_parts=images,
        row_parts=min(geometry["out_height"], max(1, 8 // images)),
        flag=peaks,
        counts=0 if response.counts is None else response.counts.shape[1],
    )
    # A row of zeros behind the others fills up groups of events.
    weights = _blocks(jnp.pad(rows, ((0, 1), (0, 0))), lanes)
    flat, structure = jax.tree.flatten(response)
    results = call("forward", times.dtype, flat, plan, times, weights)
    return jax.tree.unflatten(structure, results)


def _backward(
    synapse, num_steps, silent_inputs, pool, times, kernel, until, delta, member=None
):
    out = jax.eval_shape(synapse.current, times, kernel).shape
    geometry = _geometry(synapse, times, kernel, out, pool)
    rows = kernel.reshape(-1, kernel.shape[-1])
    inputs, size = geometry["inputs"], rows.shape[0]
    wide = _lanes(times.dtype, narrow=False)
    # Blocks within a pixel's inputs need no copy; else few lanes shall stand idle.
    narrow = inputs % wide and (inputs % (wide // 2) == 0 or size <= wide // 2)
    lanes = wide // 2 if narrow else wide
    plan = _plan(
        **geometry,
        steps=num_steps,
        lanes=lanes,
        image_parts=min(geometry["images"], _PARTS, max(1, _PARTIAL_SUMS // rows.size)),
        flag=silent_inputs,
    )
    results = [Shape(times.shape, times.dtype), Shape(kernel.shape, times.dtype)]
    member = until if member is None else member
    weights = _blocks(rows.T, lanes)
    arrays = times, weights, until, delta, member
    return tuple(call("backward", times.dtype, results, plan, *arrays))


class _Plan(NamedTuple):
    """What is static about a call; the kernels read it as int64 words in this order."""

    images: int
    height: int
    width: int
    inputs: int
    out_height: int  # behind the pooling
    out_width: int
    outputs: int
    rows: int
    columns: int
    row_stride: int
    column_stride: int
    top: int
    left: int
    pool_rows: int
    pool_columns: int
    steps: int
    threshold: int
    lanes: int
    image_parts: int
    row_parts: int
    flag: int  # forward: peaks are asked for; backward: silent inputs take part
    counts: int  # rows of spike counts asked for: 0, 1 or, with those of pooling, 2


def _plan(*, threshold: int = 0, row_parts: int = 1, counts: int = 0, **fields) -> _Plan:
    return _Plan(threshold=threshold, row_parts=row_parts, counts=counts, **fields)


def _geometry(synapse: Synapse, times, kernel, out, pool) -> dict[str, int]:
    """Images, windows and strides; a dense layer has 1×1 images."""
    if isinstance(synapse, Dense):
        image, after, window, strides, corner = (1, 1), (1, 1), (1, 1), (1, 1), (0, 0)
    else:
        (top, _), (left, _) = synapse.pads
        image, after, corner = times.shape[1:3], out[1:3], (top, left)
        window, strides = kernel.shape[:2], synapse.strides
    return dict(
        images=times.shape[0],
        height=image[0],
        width=image[1],
        inputs=times.shape[-1],
        out_height=after[0] // pool[0],
        out_width=after[1] // pool[1],
        outputs=kernel.shape[-1],
        rows=window[0],
        columns=window[1],
        row_stride=strides[0],
        column_stride=strides[1],
        top=corner[0],
        left=corner[1],
        pool_rows=pool[0],
        pool_columns=pool[1],
    )


def _lanes(dtype: np.dtype, narrow: bool) -> int:
    return (_NARROW if narrow else _WIDE) * 4 // dtype.itemsize


def bits(value: float) -> int:
    """A float64 as the int64 of the same bits."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _blocks(matrix: jax.Array, lanes: int) -> jax.Array:
    """[rows, columns] → [blocks, rows, lanes], idle lanes 0."""
    rows, columns = matrix.shape
    blocks = -(-columns // lanes)
    full = jnp.pad(matrix, ((0, 0), (0, blocks * lanes - columns)))
    return full.reshape(rows, blocks, lanes).swapaxes(0, 1)


def call(
    kernel: str,
    dtype: np.dtype,
    results: Sequence[Any],
    plan: Sequence[int],
    *arrays: jax.Array,
) -> Sequence[jax.Array]:
    """Calls a compiled kernel; where the computation is lowered for the CPU."""
    name = _event_library.target(kernel, dtype.name)
    return jax.ffi.ffi_call(name, results)(*arrays, plan=np.array(plan, np.int64))


def on_cpu(kernel: str, event: Callable, scan: Callable, *arrays: jax.Array) -> Any:
    """event(*arrays), which calls `kernel`, where it can be had; else scan(*arrays).

    Both mean the same. A mapped axis of the first array alone makes a larger batch, any
    other is a loop over calls.
    """
    shapes, structure = jax.tree.flatten(jax.eval_shape(scan, *arrays))
    if 0 in arrays[0].shape:
        return jax.tree.unflatten(structure, [jnp.zeros(x.shape, x.dtype) for x in shapes])

    @custom_vmap
    def run(*arrays):
        shapes = jax.tree.leaves(jax.eval_shape(scan, *arrays))
        static = tuple((x.shape, x.dtype) for x in shapes)
        found = event_p.bind(
            *arrays, kernel=kernel, event=event, scan=scan, shapes=static
        )
        return jax.tree.unflatten(structure, found)

    @run.def_vmap
    def mapped(size, in_batched, *arrays):
        first, *others = in_batched
        if first and not any(others) and kernel != "backward":
            images, *rest = arrays
            many = run(images.reshape(-1, *images.shape[2:]), *rest)
            found = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), many)
        else:

            def each(some):
                given = iter(some)
                pairs = zip(arrays, in_batched, strict=True)
                return run(*(next(given) if moves else x for x, moves in pairs))

            pairs = zip(arrays, in_batched, strict=True)
            found = jax.lax.map(each, [x for x, moves in pairs if moves])
        return found, jax.tree.map(lambda _: True, found)

    return run(*arrays)


event_p = Primitive("ds4nn_event")
event_p.multiple_results = True


@event_p.def_abstract_eval
def _abstract(*arrays, shapes, **static):
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in shapes]


@event_p.def_impl
def _eager(*arrays, **static):
    with jax.disable_jit(False):
        return jax.jit(functools.partial(event_p.bind, **static))(*arrays)


def _lower_on_cpu(ctx, *operands, kernel, event, scan, shapes):
    exporting = ctx.module_context.lowering_parameters.for_export
    dtype = ctx.avals_in[0].dtype.name
    chosen = scan if exporting or not _event_library.usable(kernel, dtype) else event
    leaves = mlir.lower_fun(lambda *arrays: jax.tree.leaves(chosen(*arrays)))
    return leaves(ctx, *operands)


def _refuse(ctx, *operands, **static):
    platforms = ", ".join(ctx.module_context.platforms)
    raise NotImplementedError(
        f'engine="event" computes on CPUs, not on {platforms}: use "auto" or "scan"'
    )


mlir.register_lowering(event_p, _refuse)
mlir.register_lowering(event_p, _lower_on_cpu, platform="cpu")
