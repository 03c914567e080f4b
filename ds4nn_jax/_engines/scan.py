"""The scan engine: one `lax.scan` over the time steps, on any platform.

It is the meaning of the library: what another engine computes is right when it agrees
with this one. Memory does not grow with T: the scan is over blocks of a few time steps,
whose currents are one product, and the backward pass, where every synapse acts once,
needs no time steps at all.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from jax import lax

from ds4nn_jax._engines import pool as pooling
from ds4nn_jax._engines.synapse import (
    NO_POOL,
    Response,
    Synapse,
    current_on_matrix_units,
    flat,
    pulse_currents,
    pulse_steps,
    spikes_per_step,
)

_BLOCK, _BLOCK_ON_CPU = 10, 4  # steps, at most: their bookkeeping is unrolled
_CACHED = 2**19  # inputs of a block on a CPU: what its caches hold
_CURRENTS = 2**25  # of a block, at most, where there are matrix units
_PAIRS = 2**28  # input-output pairs of a block of the backward pass, likewise
_IMAGES = 128  # stands for a batch size that is left open (`jax.export`)


class _Membrane(NamedTuple):
    potential: jax.Array  # V(t)
    spike_time: jax.Array  # first t with V(t) ≥ θ, or T so far
    peak: jax.Array  # highest V up to the spike: V at the spike once it has fired
    peak_time: jax.Array  # the first step that reached it


def forward(
    synapse: Synapse,
    times: jax.Array,
    kernel: jax.Array,
    pulses: jax.Array,
    threshold: jax.Array,
    *,
    num_steps: int,
    peaks: bool,
    pool: tuple[int, int] = NO_POOL,
    counts: bool = False,
) -> Response:
    """Spike times and, if `peaks`, the peaks up to them: potential and step.

    V(t) = V(t−1) + Σ_i w_i·[t_i = t] + Σ_p r_p·[t_p = t] (Eq. 2, and P reference
    neurons), one spike, at the first V(t) ≥ θ (Eq. 3), θ one of the outputs [O].
    A neuron that fires has its peak at its spike; a silent one where V is highest.
    """
    out = jax.eval_shape(synapse.current, times, kernel)
    settings: Any = dict(num_steps=num_steps, peaks=peaks, counts=counts)

    def on_cpu(times: jax.Array, kernel: jax.Array, *others: jax.Array) -> Response:
        # Faster than XLA's convolutions on a CPU; a few images fit its caches.
        windows = synapse.windows(times, kernel, num_steps)
        rows = kernel.reshape(-1, kernel.shape[-1])
        batch, *image = windows.shape
        if jax.export.is_symbolic_dim(batch):
            size = 1 if len(image) > 1 else batch
        else:
            size = min(batch, _CACHED // max(1, _BLOCK_ON_CPU * math.prod(image)))
            size = next((n for n in range(size, 1, -1) if batch % n == 0), 1)
        response = lax.map(
            lambda part: _forward(
                jnp.dot, _BLOCK_ON_CPU, part, rows, *others, **settings
            ),
            windows.reshape(batch // size, size, *image),
        )
        return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), response)

    elsewhere = functools.partial(
        _forward,
        functools.partial(current_on_matrix_units, synapse),
        min(_BLOCK, max(1, _CURRENTS // max(1, _size(out.shape)))),
        **settings,
    )
    response = lax.platform_dependent(
        times, kernel, pulses, threshold, cpu=on_cpu, default=elsewhere
    )
    return response if pool == NO_POOL else _pooled(response, pool, num_steps)


def _size(shape: Sequence[int]) -> int:
    """Product of a shape [B, …]; an open B counts as a usual one."""
    batch, *rest = shape
    return math.prod(
        rest, start=_IMAGES if jax.export.is_symbolic_dim(batch) else batch
    )


def _forward(
    current: Callable,
    block: int,
    times: jax.Array,
    kernel: jax.Array,
    pulses: jax.Array,
    threshold: jax.Array,
    *,
    num_steps: int,
    peaks: bool,
    counts: bool,
) -> Response:
    """A scan over blocks of `block` steps."""
    batch, *image = times.shape
    out = jax.eval_shape(current, times, kernel)
    silent = jnp.full(out.shape, num_steps, out.dtype)
    rest = jnp.zeros(out.shape, out.dtype)
    threshold = threshold.reshape(*[1] * (len(out.shape) - 1), -1)
    if len(pulses):  # nothing arrives at the steps that fill up the last block
        reference = jnp.pad(pulse_currents(pulses, num_steps), ((0, 1), (0, 0)))

    def several(membrane: _Membrane, steps: jax.Array):
        column = steps.reshape(block, *[1] * times.ndim)
        arriving = (times[None] == column).astype(times.dtype)
        currents = current(arriving.reshape(block * batch, *image), kernel)
        currents = currents.reshape(block, *out.shape)
        fired = []
        if len(pulses):
            added = reference[steps.astype(jnp.int32)]
            currents += added.reshape(block, *[1] * (len(out.shape) - 1), -1)
        for index in range(block):
            membrane, fires = step(membrane, currents[index], steps[index])
            if counts:
                fired.append(jnp.sum(flat(fires), axis=1, dtype=jnp.int32))
        return membrane, jnp.stack(fired) if counts else None

    def step(membrane: _Membrane, arrived: jax.Array, t: jax.Array):
        potential = membrane.potential + arrived
        waiting = membrane.spike_time == num_steps
        fires = waiting & (potential >= threshold)
        spike_time = jnp.where(fires, t, membrane.spike_time)
        peak = peak_time = rest
        if peaks:
            higher = waiting & (potential > membrane.peak)
            peak = jnp.where(higher, potential, membrane.peak)
            peak_time = jnp.where(higher, t, membrane.peak_time)
        return _Membrane(potential, spike_time, peak, peak_time), fires

    lowest = jnp.full_like(rest, -jnp.inf) if peaks else rest
    start = _Membrane(rest, silent, lowest, rest)
    # The last block is filled up with steps at which nothing can happen.
    blocks = -(-num_steps // block)
    steps = jnp.arange(blocks * block, dtype=times.dtype)
    steps = jnp.where(steps < num_steps, steps, -1).reshape(blocks, block)
    end, fired = lax.scan(several, start, steps)
    response = Response(end.spike_time)
    if peaks:
        response = response._replace(potential=end.peak, end=end.peak_time)
    if counts:
        by_step = fired.reshape(blocks * block, batch)[:num_steps]
        response = response._replace(counts=by_step.T[:, None])
    return response


def _pooled(response: Response, pool: tuple[int, int], num_steps: int) -> Response:
    """The response behind the pooling, whose spikes are another row of counts."""
    argmin = pooling.argmin(response.times, pool)
    counts = response.counts
    times = pooling.gather(response.times, argmin, pool)
    potential, end = (
        None if x is None else pooling.gather(x, argmin, pool)
        for x in (response.potential, response.end)
    )
    if counts is not None:
        pooled = spikes_per_step(times, num_steps)
        counts = jnp.concatenate([counts, pooled[:, None]], axis=1)
    return Response(times, potential, end, argmin, counts)


def backward(
    synapse: Synapse,
    times: jax.Array,
    kernel: jax.Array,
    pulses: jax.Array,
    end: jax.Array,
    delta: jax.Array,
    argmin: jax.Array | None = None,
    *,
    num_steps: int,
    silent_inputs: bool,
    pool: tuple[int, int] = NO_POOL,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """∂E/∂t_i, ∂E/∂w and ∂E/∂r for neurons that integrate up to and including `end`.

    ∂E/∂w_ji = −Σ δ_j·[t_i ≤ end_j, i fired]  (Eq. 8, 12)
    ∂E/∂r_jp = −Σ δ_j·[t_p ≤ end_j]           (likewise: a reference neuron fires)
    δ_i      =  Σ_j δ_j·w_ji·[t_i ≤ end_j]    (Eq. 10)
    A silent input has δ_i = 0, or with `silent_inputs` Σ_j δ_j·w_ji: the effect of
    its spike, had there been one, on every neuron it reaches. With pooling `end` and
    `delta` are those of the neurons at `argmin`; the others have no error.
    """
    if argmin is not None:
        end, delta = (pooling.scatter(x, argmin, pool) for x in (end, delta))
    rows = kernel.reshape(-1, kernel.shape[-1])
    places = _size(delta.shape[:-1])
    run = functools.partial(
        _backward, synapse, num_steps=num_steps, silent_inputs=silent_inputs
    )
    many = max(1, min(places, _PAIRS // rows.size))
    return lax.platform_dependent(
        times,
        kernel,
        pulses,
        jnp.minimum(end, num_steps - 1),
        delta,
        cpu=functools.partial(run, 1),
        default=functools.partial(run, many),
    )


def _backward(
    synapse: Synapse,
    block: int,
    times: jax.Array,
    kernel: jax.Array,
    pulses: jax.Array,
    end: jax.Array,
    delta: jax.Array,
    *,
    num_steps: int,
    silent_inputs: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A scan over the places of all neurons, `block` of them at a time."""
    reference = jnp.asarray(pulse_steps(len(pulses), num_steps), times.dtype)
    windows_of = functools.partial(synapse.windows, kernel=kernel, fill=num_steps)
    windows, scatter = jax.vjp(windows_of, times)
    weights = kernel.reshape(-1, kernel.shape[-1]).T  # [O, K]

    def several(sums: tuple[jax.Array, ...], places: tuple[jax.Array, ...]):
        d_weights, d_pulses = sums  # [O, K], [O, P]
        t, last, error = places  # [block, K], [block, O], [block, O]
        t, error, last = t[:, None, :], error[:, :, None], last[:, :, None]
        causal = t <= last
        d_weights -= jnp.sum(jnp.where(causal, error, 0), axis=0)
        d_pulses -= jnp.sum(jnp.where(reference[None, None] <= last, error, 0), axis=0)
        if silent_inputs:
            causal |= t == num_steps
        d_t = jnp.sum(jnp.where(causal, error * weights[None], 0), axis=1)
        return (d_weights, d_pulses), d_t

    def in_blocks(x: jax.Array) -> jax.Array:
        """[blocks, block, features], filled up with places that have no error."""
        x = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        blocks = -(-x.shape[0] // block)
        x = jnp.pad(x, ((0, blocks * block - x.shape[0]), (0, 0)))
        return x.reshape(blocks, block, x.shape[-1])

    (d_weights, d_pulses), d_windows = lax.scan(
        several,
        (jnp.zeros_like(weights), jnp.zeros_like(pulses.T)),
        tuple(map(in_blocks, (windows, end, delta))),
    )
    d_windows = d_windows.reshape(-1, weights.shape[1])
    d_windows = d_windows[: math.prod(windows.shape[:-1])].reshape(windows.shape)
    (d_times,) = scatter(d_windows)
    return d_times, d_weights.T.reshape(kernel.shape), d_pulses.T
