"""Layers of single-spike neurons as pure functions from spike times to spike times.

The public functions check and prepare; `_response` has the custom gradient.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ds4nn_jax import _checks
from ds4nn_jax._engines import pool as pooling
from ds4nn_jax._engines.synapse import Dense, Padding, pulse_currents
from ds4nn_jax.layers import _coding, _response
from ds4nn_jax.layers._coding import DEFAULT_STEPS
from ds4nn_jax.layers._response import Engine
from ds4nn_jax.layers.surrogates import Surrogate
from ds4nn_jax.types import SpikeTimes


def dense(
    times: SpikeTimes,
    kernel: jax.Array,
    *,
    threshold: jax.typing.ArrayLike = 100.0,
    num_steps: int = DEFAULT_STEPS,
    engine: Engine = "auto",
    surrogate: str | Surrogate = "constant",
    urgency: float = 0.0,
    pulses: jax.Array | None = None,
) -> SpikeTimes:
    """First spike times of a fully connected layer of non-leaky IF neurons.

    V_j(t) = V_j(t−1) + Σ_i w_ij·[t_i = t] + Σ_p r_pj·[t_p = t]    (Eq. 2)
    t_j = first t with V_j(t) ≥ θ, else T                          (Eq. 3)

    The second sum, zero in the paper, is of P reference neurons that spike once each
    at t_p = ⌊p·T/P⌋, whatever the input (synchronization pulses; Comsa et al. 2020).
    With weights of either sign a neuron can fire unless, or not before.

    The cotangent of `times` is δ = ∂E/∂t. With the constant surrogate
    ∂E/∂w_ij = −δ_j·[t_i ≤ t_j, i fired] (Eq. 8, 12) and δ_i = Σ_j δ_j·w_ij·[t_i ≤ t_j]
    (Eq. 10), a silent t_j counting as T, a silent input having δ_i = 0; ∂E/∂r_pj is
    that of a weight whose input fires at t_p.

    Args:
      times: [B, I] spike times of the inputs, whole steps 0 … T; T is silent.
      kernel: [I, O] weights, mV; int8 for integers (`quantize`), which get an
        urgency in integers, too, and take no gradient.
      threshold: θ > 0, mV, of all neurons, or [O] of each; ∂E/∂θ_j = Σ δ_j.
      num_steps: T. Times that come straight from `encode` or a layer know theirs:
        left out it is that, and another is refused. Of other times it is 100.
      engine: "scan", "event" (CPUs, NVIDIA GPUs), or "auto": event where the program
        is compiled for one of these, scan elsewhere, and, with one warning, where numba
        cannot work or, for a GPU, `nvcc` is missing.
      surrogate: "constant", "window", or a value of `ds4nn_jax.layers.surrogates`.
      urgency: u ≥ 0, mV a step: a current that every neuron gets besides its inputs:
        T pulses, all of weight u.
      pulses: [P, O] weights r of the reference neurons, mV, P ≤ T; None: no such.

    Returns:
      [B, O] spike times of the neurons.

    Raises:
      ImportError: engine "event" where numba cannot work.

    Example:
      >>> import jax, numpy as np, ds4nn_jax as ds
      >>> times = np.array([[3.0, 5.0, 100.0]])  # the third input is silent
      >>> kernel = np.array([[60.0, 60.0], [50.0, 30.0], [90.0, 90.0]])
      >>> ds.dense(times, kernel)  # 60 mV at step 3, then 110 mV ≥ θ, or 90 mV
      Array([[  5., 100.]], dtype=float32)
      >>> jax.grad(lambda k: ds.dense(times, k)[0, 0])(kernel)  # −1 for what arrived
      Array([[-1.,  0.],
             [-1.,  0.],
             [ 0.,  0.]], dtype=float32)
    """
    steps = _coding.resolve_steps(num_steps, times)
    layer, *arrays = _response.prepared(
        times, kernel, pulses, threshold, steps, engine, surrogate, urgency
    )
    return _coding.remember(_response.respond(layer, *arrays).times, steps)


def conv(
    times: SpikeTimes,
    kernel: jax.Array,
    *,
    threshold: jax.typing.ArrayLike = 100.0,
    num_steps: int = DEFAULT_STEPS,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    engine: Engine = "auto",
    surrogate: str | Surrogate = "constant",
    pulses: jax.Array | None = None,
) -> SpikeTimes:
    """First spike times of a convolution of non-leaky IF neurons.

    As `dense`, with weights shared over positions: each gradient of a weight is the sum
    over the positions that share it. What lies outside the image is silent; reference
    neurons reach all positions.

    Args:
      times: [B, H, W, I] spike times of the inputs, whole steps 0 … T; T is silent.
      kernel: [kh, kw, I, O] weights, mV (cross-correlation, as in every framework).
      threshold: θ > 0, mV, of all neurons, or [O] of each channel.
      num_steps: T, as for `dense`.
      strides: rows and columns between neighbouring windows.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)).
      engine: as for `dense`.
      surrogate: as for `dense`.
      pulses: [P, O] weights of the reference neurons, as for `dense`.

    Returns:
      [B, H', W', O] spike times of the neurons.

    Example:
      >>> import numpy as np, ds4nn_jax as ds
      >>> times = np.array([4.0, 7.0, 9.0]).reshape(1, 1, 3, 1)
      >>> ds.conv(times, np.full((1, 2, 1, 1), 60.0), padding="VALID").ravel()
      Array([7., 9.], dtype=float32)
    """
    steps = _coding.resolve_steps(num_steps, times)
    geometry = dict(strides=strides, padding=padding)
    layer, *arrays = _response.prepared(
        times, kernel, pulses, threshold, steps, engine, surrogate, **geometry
    )
    return _coding.remember(_response.respond(layer, *arrays).times, steps)


def earliest_pool(
    times: SpikeTimes,
    *,
    window: tuple[int, int] = (2, 2),
    strides: tuple[int, int] = (2, 2),
) -> SpikeTimes:
    """Earliest spike of each window: t = min over the window of t_i.

    The paper's pooling neuron (weights and threshold 1) fires with its first input. The
    error goes to the input that fired first; among ties to the first in row order.

    Args:
      times: [B, H, W, I] spike times.
      window: rows and columns of the pooling window.
      strides: rows and columns between windows. No padding: windows that do not fit
        are dropped ("VALID").

    Returns:
      [B, H', W', I] spike times; silent where the whole window is.

    Example:
      >>> import numpy as np, ds4nn_jax as ds
      >>> times = np.array([[4.0, 7.0], [100.0, 9.0]]).reshape(1, 2, 2, 1)
      >>> ds.earliest_pool(times).ravel()
      Array([4.], dtype=float32)
    """
    steps = _coding.steps_of(times)
    times = _checks.spike_times(times)
    _checks.rank("times", times, "[B, H, W, I]")
    window = _checks.pair("window", window)
    strides = _checks.pair("strides", strides)
    image = times.shape[1:3]
    if window[0] > image[0] or window[1] > image[1]:
        raise ValueError(f"window {window} is larger than the image {image}")
    pooled = pooling.earliest(times, window, strides)
    return pooled if steps is None else _coding.remember(pooled, steps)


def membrane_potentials(
    times: SpikeTimes,
    kernel: jax.Array,
    *,
    num_steps: int = DEFAULT_STEPS,
    urgency: float = 0.0,
    pulses: jax.Array | None = None,
) -> jax.Array:
    """Potential of every neuron of a dense layer at every step, unreset (Eq. 2).

    Args:
      times: [B, I] spike times of the inputs.
      kernel: [I, O] weights, mV.
      num_steps: T, as for `dense`.
      urgency: u ≥ 0, mV a step.
      pulses: [P, O], as for `dense`.

    Returns:
      [T, B, O] potentials V_j(t), mV, as they would run on after a spike.
    """
    integers = _response.is_whole(kernel)
    num_steps = _coding.resolve_steps(num_steps, times)
    axes = "[B, I]", "[I, O]"
    times, kernel = _checks.times_and_kernel(times, kernel, num_steps, *axes)
    pulses = _response.reference(pulses, kernel, num_steps, urgency, integers)

    def step(potential: jax.Array, now: tuple[jax.Array, jax.Array]):
        t, reference = now
        arriving = (times == t).astype(times.dtype)
        arrived = Dense().current(arriving, kernel) + reference[None]
        potential = potential + arrived
        return potential, potential

    rest = jnp.zeros((times.shape[0], kernel.shape[1]), times.dtype)
    steps = jnp.arange(num_steps, dtype=times.dtype)
    return lax.scan(step, rest, (steps, pulse_currents(pulses, num_steps)))[1]


def decision_potentials(
    times: SpikeTimes,
    kernel: jax.Array,
    *,
    threshold: jax.typing.ArrayLike = 100.0,
    num_steps: int = DEFAULT_STEPS,
    engine: Engine = "auto",
    urgency: float = 0.0,
    pulses: jax.Array | None = None,
) -> jax.Array:
    """What breaks ties: V_j(t_j) of a neuron that fires, V_j(T − 1) of a silent one.

    Arguments as `dense`. Takes no gradient.

    Returns:
      [B, O] potentials, mV.
    """
    num_steps = _coding.resolve_steps(num_steps, times)
    layer, *arrays = _response.prepared(
        times, kernel, pulses, threshold, num_steps, engine, urgency=urgency
    )
    times, kernel, pulses, theta = lax.stop_gradient(arrays)
    response = _response.compiled_forward(
        layer, times, kernel, pulses, theta, peaks=True
    )
    fired = (times < num_steps).astype(times.dtype)
    final = Dense().current(fired, kernel) + jnp.sum(pulses, axis=0, keepdims=True)
    return jnp.where(response.times < num_steps, response.potential, final)


def peak_potentials(
    times: SpikeTimes,
    kernel: jax.Array,
    *,
    num_steps: int = DEFAULT_STEPS,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    engine: Engine = "auto",
    pulses: jax.Array | None = None,
) -> jax.Array:
    """max_t V(t) of every neuron if none fired: what θ has to lie below.

    Args:
      times: [B, I] or [B, H, W, I] spike times of the inputs.
      kernel: [I, O] (dense) or [kh, kw, I, O] (convolution) weights, mV.
      num_steps: T, as for `dense`.
      strides: of a convolution, as for `conv`.
      padding: of a convolution, as for `conv`.
      engine: as for `dense`.
      pulses: [P, O] weights of the reference neurons, as for `dense`.

    Returns:
      [B, O] or [B, H', W', O] potentials, mV.
    """
    num_steps = _coding.resolve_steps(num_steps, times)
    never = 1e30  # mV: finite, as every threshold, and out of reach
    geometry = dict(strides=strides, padding=padding) if jnp.ndim(kernel) != 2 else {}
    layer, *arrays = _response.prepared(
        times, kernel, pulses, never, num_steps, engine, **geometry
    )
    return _response.compiled_forward(layer, *arrays, peaks=True).potential
