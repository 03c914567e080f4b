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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from ds4nn_jax import _event_library, _scan
from ds4nn_jax._event_plan import LANES, Plan
from ds4nn_jax._synapse import NO_POOL, Dense, Response, Synapse

_PARTS = 16  # of a batch in the backward pass; fixed, so that sums never reorder
_PARTIAL_SUMS = 2**24  # weights in all parts together
_FORWARD_PARTS = 32  # of a batch in the forward pass

Shape = jax.ShapeDtypeStruct


def available() -> bool:
    """Whether the engine can work in this process."""
    return _event_library.fault() is None


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
    only: bool = True,
) -> Response:
    """Spike times and, if `peaks`, the highest potential up to the spike and its step.

    V(t) = V(t−1) + Σ_i w_i·[t_i = t]  (Eq. 2), fires at the first V(t) ≥ θ (Eq. 3).
    A neuron that fires has its peak at its spike; a silent one where V is highest.
    Unless `only`, the scan takes over where this engine cannot work.
    """
    asked: dict[str, Any] = dict(
        threshold=threshold, num_steps=num_steps, peaks=peaks, pool=pool, counts=counts
    )
    shapes = _response(synapse, num_steps, peaks, pool, counts, times, kernel)
    event = functools.partial(_forward, synapse, **asked)
    scan = functools.partial(_scan.forward, synapse, **asked)
    return choose("forward", event, scan, shapes, times, kernel, only=only)


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
    only: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """∂E/∂t_i and ∂E/∂w for neurons that listened up to and including `until`.

    ∂E/∂w_ji = −Σ δ_j·[t_i ≤ until_j, i fired]  (Eq. 8, 12)
    δ_i      =  Σ_j δ_j·w_ji·[t_i ≤ until_j]    (Eq. 10)
    A silent input has δ_i = 0, or with `silent_inputs` Σ_j δ_j·w_ji. With pooling
    `until` and `delta` are those of the first members; the others have no error.
    """
    asked: dict[str, Any] = dict(
        num_steps=num_steps, silent_inputs=silent_inputs, pool=pool
    )
    event = functools.partial(_backward, synapse, **asked)
    scan = functools.partial(_scan.backward, synapse, **asked)
    arrays = (times, kernel, until, delta) + (() if member is None else (member,))
    shapes = Shape(times.shape, times.dtype), Shape(kernel.shape, times.dtype)
    return choose("backward", event, scan, shapes, *arrays, only=only)


def _response(synapse, num_steps, peaks, pool, counts, times, kernel) -> Response:
    """The shapes that a forward pass gives."""
    shape = jax.eval_shape(synapse.current, times, kernel).shape
    pooled = pool != NO_POOL
    if pooled:
        shape = (shape[0], shape[1] // pool[0], shape[2] // pool[1], shape[3])
    out: Any = Shape(shape, times.dtype)
    counted: Any = Shape((shape[0], 1 + pooled, num_steps), jnp.int32)
    return Response(
        out,
        out if peaks else None,
        out if peaks else None,
        out if pooled else None,
        counted if counts else None,
    )


def _forward(
    synapse, times, kernel, *, threshold, num_steps, peaks, pool, counts
) -> Response:
    shapes = _response(synapse, num_steps, peaks, pool, counts, times, kernel)
    geometry = _geometry(synapse, times, kernel, shapes.times.shape, pool)
    rows = kernel.reshape(-1, kernel.shape[-1])
    wide, narrow = LANES[times.dtype.name]
    images = min(geometry["images"], _FORWARD_PARTS)
    plan = _plan(
        **geometry,
        steps=num_steps,
        threshold=bits(threshold),
        lanes=narrow if rows.shape[1] <= narrow else wide,
        image_parts=images,
        row_parts=min(geometry["out_height"], max(1, 8 // images)),
        flag=peaks,
        counts=0 if shapes.counts is None else shapes.counts.shape[1],
    )
    # A row of zeros behind the others fills up groups of events.
    weights = _blocks(jnp.pad(rows, ((0, 1), (0, 0))), plan.lanes)
    flat, structure = jax.tree.flatten(shapes)
    results = call("forward", times.dtype, flat, plan, times, weights)
    return jax.tree.unflatten(structure, results)


def _backward(
    synapse,
    times,
    kernel,
    until,
    delta,
    member=None,
    *,
    num_steps,
    silent_inputs,
    pool,
) -> tuple[jax.Array, jax.Array]:
    geometry = _geometry(synapse, times, kernel, delta.shape, pool)
    rows = kernel.reshape(-1, kernel.shape[-1])
    inputs, size = geometry["inputs"], rows.shape[0]
    wide, narrow = LANES[times.dtype.name]
    # Blocks within a pixel's inputs need no copy; else few lanes shall stand idle.
    narrower = inputs % wide and (inputs % narrow == 0 or size <= narrow)
    plan = _plan(
        **geometry,
        steps=num_steps,
        lanes=narrow if narrower else wide,
        image_parts=min(geometry["images"], _PARTS, max(1, _PARTIAL_SUMS // rows.size)),
        flag=silent_inputs,
    )
    results = [Shape(times.shape, times.dtype), Shape(kernel.shape, times.dtype)]
    member = until if member is None else member
    arrays = times, _blocks(rows.T, plan.lanes), until, delta, member
    d_times, d_kernel = call("backward", times.dtype, results, plan, *arrays)
    return d_times, d_kernel


def _plan(*, threshold: int = 0, row_parts: int = 1, counts: int = 0, **fields) -> Plan:
    return Plan(threshold=threshold, row_parts=row_parts, counts=counts, **fields)


def _geometry(synapse: Synapse, times, kernel, out, pool) -> dict[str, int]:
    """Images, windows and strides; a dense layer has 1×1 images.

    `out` is the shape of what leaves the layer, behind the pooling.
    """
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
        out_height=after[0],
        out_width=after[1],
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
    plan: Sequence[int] | np.ndarray,
    *arrays: jax.Array,
) -> Sequence[jax.Array]:
    """Calls a compiled kernel; where the computation is lowered for the CPU."""
    name = _event_library.target(kernel, dtype.name)
    return jax.ffi.ffi_call(name, results)(*arrays, plan=np.array(plan, np.int64))


def choose(
    kernel: str,
    event: Callable,
    scan: Callable,
    shapes: Any,
    *arrays: jax.Array,
    only: bool = False,
) -> Any:
    """event(*arrays) on a CPU where its `kernel` can be had, else scan(*arrays).

    Both mean the same and give arrays like `shapes`. With `only`, the event engine is
    asked for by name: no other will do.
    """
    leaves, structure = jax.tree.flatten(shapes)
    if 0 in arrays[0].shape:
        zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        return jax.tree.unflatten(structure, zeros)
    if only:
        _event_library.require(kernel, arrays[0].dtype.name)
    static = tuple((leaf.shape, jnp.dtype(leaf.dtype)) for leaf in leaves)
    found = engine_p.bind(
        *arrays,
        kernel=kernel,
        event=functools.partial(_leaves, event),
        scan=functools.partial(_leaves, scan),
        shapes=static,
        by_image=kernel != "backward",
        only=only,
    )
    return jax.tree.unflatten(structure, found)


def _leaves(function: Callable, *arrays: jax.Array) -> list[jax.Array]:
    return jax.tree.leaves(function(*arrays))


# The choice between the engines, taken where a computation is lowered. (Not
# `lax.platform_dependent`: that traces both of them, which is most of a start.)
engine_p = Primitive("ds4nn_engine")
engine_p.multiple_results = True


@engine_p.def_abstract_eval
def _abstract(*arrays, shapes, **static):
    varying = frozenset().union(*(getattr(x, "vma", ()) for x in arrays))
    varies = {"vma": varying} if varying else {}
    return [jax.core.ShapedArray(shape, dtype, **varies) for shape, dtype in shapes]


@engine_p.def_impl
def _eager(*arrays, **static):
    with jax.disable_jit(False):
        return jax.jit(functools.partial(engine_p.bind, **static))(*arrays)


def _mapped(arrays, axes, *, event, scan, shapes, by_image, **static):
    """A mapped axis of images makes a larger batch, any other is a loop over calls.

    `by_image`: results have an axis of images in front, as the first array has.
    """
    size = next(x.shape[n] for x, n in zip(arrays, axes, strict=True) if n is not None)
    arrays = [
        x if n is None else jnp.moveaxis(x, n, 0)
        for x, n in zip(arrays, axes, strict=True)
    ]
    moving = tuple(n is not None for n in axes)
    by_image &= moving[0] and not any(moving[1:])
    over = _over_images if by_image else _over_calls
    found = engine_p.bind(
        *arrays,
        event=functools.partial(over, event, moving),
        scan=jax.vmap(scan, tuple(0 if m else None for m in moving)),
        shapes=tuple(((size, *shape), dtype) for shape, dtype in shapes),
        by_image=by_image,
        **static,
    )
    return found, [0] * len(shapes)


def _over_images(event: Callable, moving, images: jax.Array, *others) -> list:
    size, batch = images.shape[:2]
    found = event(images.reshape(size * batch, *images.shape[2:]), *others)
    return [x.reshape(size, batch, *x.shape[1:]) for x in found]


def _over_calls(event: Callable, moving, *arrays: jax.Array) -> list[jax.Array]:
    def each(some):
        given = iter(some)
        pairs = zip(arrays, moving, strict=True)
        return event(*(next(given) if moves else x for x, moves in pairs))

    return jax.lax.map(each, [x for x, m in zip(arrays, moving, strict=True) if m])


batching.primitive_batchers[engine_p] = _mapped


def _lower_for_cpu(ctx, *operands, kernel, event, scan, **static):
    exporting = ctx.module_context.lowering_parameters.for_export
    dtype = ctx.avals_in[0].dtype.name
    usable = not exporting and _event_library.usable(kernel, dtype)
    chosen = event if usable else scan
    return mlir.lower_fun(chosen, multiple_results=True)(ctx, *operands)


def _lower_elsewhere(ctx, *operands, scan, only, **static):
    if only:
        platforms = ", ".join(ctx.module_context.platforms)
        raise NotImplementedError(
            f'engine="event" computes on CPUs, not on {platforms}: use "auto" or "scan"'
        )
    return mlir.lower_fun(scan, multiple_results=True)(ctx, *operands)


mlir.register_lowering(engine_p, _lower_elsewhere)
mlir.register_lowering(engine_p, _lower_for_cpu, platform="cpu")
