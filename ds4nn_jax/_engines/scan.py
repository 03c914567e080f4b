"""The scan engine: one `lax.scan` over the time steps, on any platform.

It is the meaning of the library: what another engine computes is right when it agrees
with this one. Memory does not grow with T: a turn of the scan takes a few time steps,
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

_TURN, _TURN_ON_CPU = 10, 4  # steps, at most: their bookkeeping is unrolled
_NEAR = 2**19  # inputs of a turn on a CPU: what its caches hold
_CURRENTS = 2**25  # of a turn, at most, where there are matrix units
_PAIRS = 2**28  # input-output pairs of a turn of the backward pass, likewise
_IMAGES = 128  # taken for the batch where its size is left open (`jax.export`)


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
        # Faster than XLA's convolutions of a CPU; a few images at a time stay near.
        heard = synapse.windows(times, kernel, num_steps)
        rows = kernel.reshape(-1, kernel.shape[-1])
        batch, *image = heard.shape
        if jax.export.is_symbolic_dim(batch):
            some = 1 if len(image) > 1 else batch
        else:
            some = min(batch, _NEAR // max(1, _TURN_ON_CPU * math.prod(image)))
            some = next((n for n in range(some, 1, -1) if batch % n == 0), 1)
        found = lax.map(
            lambda heard: _forward(
                jnp.dot, _TURN_ON_CPU, heard, rows, *others, **settings
            ),
            heard.reshape(batch // some, some, *image),
        )
        return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), found)

    elsewhere = functools.partial(
        _forward,
        functools.partial(current_on_matrix_units, synapse),
        min(_TURN, max(1, _CURRENTS // max(1, _size(out.shape)))),
        **settings,
    )
    response = lax.platform_dependent(
        times, kernel, pulses, threshold, cpu=on_cpu, default=elsewhere
    )
    return response if pool == NO_POOL else _pooled(response, pool, num_steps)


def _size(shape: Sequence[int]) -> int:
    """Product of a shape [B, …], if need be of a usual B."""
    batch, *rest = shape
    return math.prod(
        rest, start=_IMAGES if jax.export.is_symbolic_dim(batch) else batch
    )


def _forward(
    current: Callable,
    turn: int,
    times: jax.Array,
    kernel: jax.Array,
    pulses: jax.Array,
    threshold: jax.Array,
    *,
    num_steps: int,
    peaks: bool,
    counts: bool,
) -> Response:
    """A scan whose turns are `turn` steps each."""
    batch, *image = times.shape
    out = jax.eval_shape(current, times, kernel)
    silent = jnp.full(out.shape, num_steps, out.dtype)
    rest = jnp.zeros(out.shape, out.dtype)
    threshold = threshold.reshape(*[1] * (len(out.shape) - 1), -1)
    if len(pulses):  # nothing arrives at the steps that fill up the last turn
        reference = jnp.pad(pulse_currents(pulses, num_steps), ((0, 1), (0, 0)))

    def several(membrane: _Membrane, steps: jax.Array):
        column = steps.reshape(turn, *[1] * times.ndim)
        arriving = (times[None] == column).astype(times.dtype)
        currents = current(arriving.reshape(turn * batch, *image), kernel)
        currents = currents.reshape(turn, *out.shape)
        fired = []
        if len(pulses):
            added = reference[steps.astype(jnp.int32)]
            currents += added.reshape(turn, *[1] * (len(out.shape) - 1), -1)
        for index in range(turn):
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

    start = _Membrane(
        rest, silent, jnp.full_like(rest, -jnp.inf) if peaks else rest, rest
    )
    # The last turn is filled up with steps at which nothing can happen.
    turns = -(-num_steps // turn)
    steps = jnp.arange(turns * turn, dtype=times.dtype)
    steps = jnp.where(steps < num_steps, steps, -1).reshape(turns, turn)
    end, fired = lax.scan(several, start, steps)
    response = Response(end.spike_time)
    if peaks:
        response = response._replace(potential=end.peak, until=end.peak_time)
    if counts:
        by_step = fired.reshape(turns * turn, batch)[:num_steps]
        response = response._replace(counts=by_step.T[:, None])
    return response


def _pooled(response: Response, pool: tuple[int, int], num_steps: int) -> Response:
    """What the pooling neurons pass on, with a row of their own spikes counted."""
    member = pooling.first_member(response.times, pool)
    counts = response.counts
    times = pooling.of_member(response.times, member, pool)
    potential, until = (
        None if x is None else pooling.of_member(x, member, pool)
        for x in (response.potential, response.until)
    )
    if counts is not None:
        own = spikes_per_step(times, num_steps)
        counts = jnp.concatenate([counts, own[:, None]], axis=1)
    return Response(times, potential, until, member, counts)


def backward(
    synapse: Synapse,
    times: jax.Array,
    kernel: jax.Array,
    pulses: jax.Array,
    until: jax.Array,
    delta: jax.Array,
    member: jax.Array | None = None,
    *,
    num_steps: int,
    silent_inputs: bool,
    pool: tuple[int, int] = NO_POOL,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """∂E/∂t_i, ∂E/∂w and ∂E/∂r for neurons that listened up to and including `until`.

    ∂E/∂w_ji = −Σ δ_j·[t_i ≤ until_j, i fired]  (Eq. 8, 12)
    ∂E/∂r_jp = −Σ δ_j·[t_p ≤ until_j]           (likewise: a reference neuron fires)
    δ_i      =  Σ_j δ_j·w_ji·[t_i ≤ until_j]    (Eq. 10)
    A silent input has δ_i = 0, or with `silent_inputs` Σ_j δ_j·w_ji: what its spike
    would have been worth to every neuron it reaches. With pooling `until` and `delta`
    are those of the first members; the others have no error.
    """
    if member is not None:
        until, delta = (pooling.to_member(x, member, pool) for x in (until, delta))
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
        jnp.minimum(until, num_steps - 1),
        delta,
        cpu=functools.partial(run, 1),
        default=functools.partial(run, many),
    )


def _backward(
    synapse: Synapse,
    turn: int,
    times: jax.Array,
    kernel: jax.Array,
    pulses: jax.Array,
    until: jax.Array,
    delta: jax.Array,
    *,
    num_steps: int,
    silent_inputs: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A scan over the places of all neurons, `turn` of them at a time."""
    reference = jnp.asarray(pulse_steps(len(pulses), num_steps), times.dtype)
    heard_in = functools.partial(synapse.windows, kernel=kernel, fill=num_steps)
    windows, gather = jax.vjp(heard_in, times)
    weights = kernel.reshape(-1, kernel.shape[-1]).T  # [O, K]

    def several(learnt: tuple[jax.Array, ...], some: tuple[jax.Array, ...]):
        d_weights, d_pulses = learnt  # [O, K], [O, P]
        t, limit, error = some  # [turn, K], [turn, O], [turn, O]
        t, error = t[:, None, :], error[:, :, None]
        heard = t <= limit[:, :, None]
        taught = jnp.sum(jnp.where(heard, error, 0), axis=0)
        if silent_inputs:
            heard |= t == num_steps
        d_t = jnp.sum(jnp.where(heard, error * weights[None], 0), axis=1)
        reached = reference[None, None] <= limit[:, :, None]
        pulsed = jnp.sum(jnp.where(reached, error, 0), axis=0)
        return (d_weights - taught, d_pulses - pulsed), d_t

    def in_turns(x: jax.Array) -> jax.Array:
        """[turns, turn, features], filled up with places that have no error."""
        x = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        turns = -(-x.shape[0] // turn)
        x = jnp.pad(x, ((0, turns * turn - x.shape[0]), (0, 0)))
        return x.reshape(turns, turn, x.shape[-1])

    (d_weights, d_pulses), d_windows = lax.scan(
        several,
        (jnp.zeros_like(weights), jnp.zeros_like(pulses.T)),
        tuple(map(in_turns, (windows, until, delta))),
    )
    d_windows = d_windows.reshape(-1, weights.shape[1])
    d_windows = d_windows[: math.prod(windows.shape[:-1])].reshape(windows.shape)
    (d_times,) = gather(d_windows)
    return d_times, d_weights.T.reshape(kernel.shape), d_pulses.T
