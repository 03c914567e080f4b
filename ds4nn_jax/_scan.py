"""The scan engine: one `lax.scan` over the time steps, on any platform.

It is the meaning of the library: what another engine computes is right when it agrees
with this one. Both passes hold one step at a time, so memory does not grow with T.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ds4nn_jax import _pool
from ds4nn_jax._synapse import NO_POOL, Response, Synapse, spikes_per_step


class _Membrane(NamedTuple):
    potential: jax.Array  # V(t)
    spike_time: jax.Array  # first t with V(t) ≥ θ, or T so far
    peak: jax.Array  # highest V up to the spike: V at the spike once it has fired
    peak_time: jax.Array  # the first step that reached it


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
    """Spike times and, if `peaks`, the peaks up to them: potential and step.

    V(t) = V(t−1) + Σ_i w_i·[t_i = t] (Eq. 2), one spike, at the first V(t) ≥ θ (Eq. 3).
    A neuron that fires has its peak at its spike; a silent one where V is highest.
    """
    out = jax.eval_shape(synapse.current, times, kernel)
    silent = jnp.full(out.shape, num_steps, out.dtype)
    rest = jnp.zeros(out.shape, out.dtype)

    def count(fires: jax.Array) -> jax.Array:
        return jnp.sum(fires.reshape(len(fires), -1), axis=1, dtype=jnp.int32)

    def step(membrane: _Membrane, t: jax.Array):
        arriving = (times == t).astype(times.dtype)
        potential = membrane.potential + synapse.current(arriving, kernel)
        waiting = membrane.spike_time == num_steps
        fires = waiting & (potential >= threshold)
        spike_time = jnp.where(fires, t, membrane.spike_time)
        peak = peak_time = rest
        if peaks:
            higher = waiting & (potential > membrane.peak)
            peak = jnp.where(higher, potential, membrane.peak)
            peak_time = jnp.where(higher, t, membrane.peak_time)
        fired = count(fires) if counts else None
        return _Membrane(potential, spike_time, peak, peak_time), fired

    start = _Membrane(
        rest, silent, jnp.full_like(rest, -jnp.inf) if peaks else rest, rest
    )
    steps = jnp.arange(num_steps, dtype=times.dtype)
    end, fired = lax.scan(step, start, steps)
    response = Response(end.spike_time)
    if peaks:
        response = response._replace(potential=end.peak, until=end.peak_time)
    if counts:
        response = response._replace(counts=fired.T[:, None])
    return response if pool == NO_POOL else _pooled(response, pool, num_steps)


def _pooled(response: Response, pool: tuple[int, int], num_steps: int) -> Response:
    """What the pooling neurons pass on, with a row of their own spikes counted."""
    member = _pool.first_member(response.times, pool)
    counts = response.counts
    times = _pool.of_member(response.times, member, pool)
    potential, until = (
        None if x is None else _pool.of_member(x, member, pool)
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
    A silent input has δ_i = 0, or with `silent_inputs` Σ_j δ_j·w_ji: what its spike
    would have been worth to every neuron it reaches. With pooling `until` and `delta`
    are those of the first members; the others have no error.
    """
    if member is not None:
        until, delta = (_pool.to_member(x, member, pool) for x in (until, delta))

    def transposed(spikes: jax.Array, delta: jax.Array):
        _, transpose = jax.vjp(synapse.current, spikes, kernel)
        return transpose(delta)

    def step(gradients, t: jax.Array):
        d_times, d_kernel = gradients
        arriving = times == t
        listening = jnp.where(until >= t, delta, 0)
        at_t, weights = transposed(arriving.astype(times.dtype), listening)
        return (jnp.where(arriving, at_t, d_times), d_kernel - weights), None

    d_times = jnp.zeros_like(times)
    if silent_inputs:
        unheard, _ = transposed(d_times, delta)
        d_times = jnp.where(times == num_steps, unheard, d_times)
    steps = jnp.arange(num_steps, dtype=times.dtype)
    gradients, _ = lax.scan(step, (d_times, jnp.zeros_like(kernel)), steps)
    return gradients
