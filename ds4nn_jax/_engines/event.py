"""The event engine, for CPUs: every synapse acts at most once, so a layer needs one
pass over the spikes that arrive, not T passes.

Forward: sort the events of each window by step, add their weight rows to potentials
held in registers, stop when every neuron of the window has fired. Backward: visit only
neurons with an error. Both need memory for their inputs and outputs, whatever T is.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ds4nn_jax._engines import cuda, scan
from ds4nn_jax._engines.choice import call, choose
from ds4nn_jax._engines.plan import LANES, Plan
from ds4nn_jax._engines.shapes import Shape, geometry, needed, response
from ds4nn_jax._engines.synapse import NO_POOL, Response, Synapse

_PARTS = 16  # of a batch in the backward pass; fixed, so that sums never reorder
_PARTIAL_SUMS = 2**23  # weights in all parts together
_FORWARD_PARTS = 32  # of a batch in the forward pass


def forward(
    synapse: Synapse,
    times: jax.Array,
    kernel: jax.Array,
    *others: jax.Array,
    only: bool = True,
    **settings: Any,
) -> Response:
    """As `scan.forward`. Where this engine cannot work the scan takes over, or with
    `only` an error is raised."""
    event = functools.partial(_forward, synapse, **settings)
    by_step = functools.partial(scan.forward, synapse, **settings)
    on_gpu = functools.partial(cuda.forward, synapse, **settings)
    shapes = response(synapse, times, kernel, **settings)
    arrays = times, kernel, *others
    return choose("forward", event, by_step, shapes, *arrays, only=only, cuda=on_gpu)


def backward(
    synapse: Synapse,
    times: jax.Array,
    *others: jax.Array,
    only: bool = True,
    **settings: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `scan.backward`; `only` as for `forward`."""
    event = functools.partial(_backward, synapse, **settings)
    by_step = functools.partial(scan.backward, synapse, **settings)
    on_gpu = functools.partial(cuda.backward, synapse, **settings)
    shapes = tuple(Shape(x.shape, times.dtype) for x in (times, *others[:2]))
    arrays = times, *others
    return choose("backward", event, by_step, shapes, *arrays, only=only, cuda=on_gpu)


def _forward(
    synapse,
    times,
    kernel,
    pulses,
    threshold,
    *,
    num_steps,
    peaks,
    pool=NO_POOL,
    counts=False,
) -> Response:
    settings = dict(num_steps=num_steps, peaks=peaks, pool=pool, counts=counts)
    shapes = response(synapse, times, kernel, **settings)
    layout = geometry(synapse, times, kernel, shapes.times.shape, pool)
    rows = jnp.concatenate([kernel.reshape(-1, kernel.shape[-1]), pulses])
    wide, narrow = LANES[times.dtype.name]
    images = min(layout["images"], _FORWARD_PARTS)
    plan = Plan(
        **layout,
        pulses=len(pulses),
        steps=num_steps,
        lanes=narrow if rows.shape[1] <= narrow else wide,
        image_parts=images,
        row_parts=min(layout["out_height"], max(1, 8 // images)),
        flag=peaks,
        counts=0 if shapes.counts is None else shapes.counts.shape[1],
    )
    # A row of zeros behind the others fills up groups of events; then the thresholds.
    rows = jnp.concatenate([rows, jnp.zeros_like(rows[:1]), threshold[None]])
    weights = _blocks(rows, plan.lanes)
    # The kernel always has five results; those that nobody needs are empty.
    empty: Any = Shape((0,), times.dtype)
    spikes = Shape((plan.images, plan.row_parts, plan.counts, num_steps), jnp.int32)
    results = [*(empty if x is None else x for x in shapes[:4]), spikes]
    *arrays, by_part = call("forward", times.dtype, results, plan, times, weights)
    arrays.append(jnp.sum(by_part, 1, jnp.int32))
    return needed(shapes, arrays)


def _backward(
    synapse,
    times,
    kernel,
    pulses,
    end,
    delta,
    argmin=None,
    *,
    num_steps,
    silent_inputs,
    pool=NO_POOL,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    layout = geometry(synapse, times, kernel, delta.shape, pool)
    rows = kernel.reshape(-1, kernel.shape[-1])
    inputs, size = layout["inputs"], rows.shape[0]
    wide, narrow = LANES[times.dtype.name]
    # Blocks within a pixel's inputs need no copy; else the fewer idle lanes the better.
    narrower = inputs % wide and (inputs % narrow == 0 or size <= narrow)
    plan = Plan(
        **layout,
        pulses=len(pulses),
        steps=num_steps,
        lanes=narrow if narrower else wide,
        image_parts=min(layout["images"], _PARTS, max(1, _PARTIAL_SUMS // rows.size)),
        flag=silent_inputs,
    )
    results = [Shape(x.shape, times.dtype) for x in (times, kernel, pulses)]
    argmin = end if argmin is None else argmin
    arrays = times, _blocks(rows.T, plan.lanes), end, delta, argmin
    d_times, d_kernel, d_pulses = call("backward", times.dtype, results, plan, *arrays)
    return d_times, d_kernel, d_pulses


def _blocks(matrix: jax.Array, lanes: int) -> jax.Array:
    """[rows, columns] → [blocks, rows, lanes], idle lanes 0."""
    rows, columns = matrix.shape
    blocks = -(-columns // lanes)
    full = jnp.pad(matrix, ((0, 0), (0, blocks * lanes - columns)))
    return full.reshape(rows, blocks, lanes).swapaxes(0, 1)
