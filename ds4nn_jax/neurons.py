"""Layers of single-spike neurons as pure functions from spike times to spike times.

The public functions check and prepare; `_response` carries the one custom
gradient, written once for both synapses (dense, convolution) and both engines.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ds4nn_jax import _checks
from ds4nn_jax._engines import event, scan
from ds4nn_jax._engines import pool as pooling
from ds4nn_jax._engines.synapse import (
    NO_POOL,
    Conv,
    Dense,
    Padding,
    Response,
    Synapse,
    explicit_pads,
)
from ds4nn_jax.surrogates import Surrogate, Window, resolve
from ds4nn_jax.types import SpikeTimes

Engine = Literal["auto", "scan", "event"]


def dense(
    times: SpikeTimes,
    kernel: jax.Array,
    *,
    threshold: float = 100.0,
    num_steps: int = 100,
    engine: Engine = "auto",
    surrogate: str | Surrogate = "constant",
) -> SpikeTimes:
    """First spike times of a fully connected layer of non-leaky IF neurons.

    V_j(t) = V_j(t−1) + Σ_i w_ij·[t_i = t]    (Eq. 2)
    t_j = first t with V_j(t) ≥ θ, else T     (Eq. 3)

    The cotangent of `times` is δ = ∂E/∂t. With the constant surrogate
    ∂E/∂w_ij = −δ_j·[t_i ≤ t_j, i fired] (Eq. 8, 12) and δ_i = Σ_j δ_j·w_ij·[t_i ≤ t_j]
    (Eq. 10), a silent t_j counting as T, a silent input having δ_i = 0.

    Args:
      times: [B, I] spike times of the inputs, whole steps 0 … T; T is silent.
      kernel: [I, O] weights, mV.
      threshold: θ > 0, mV.
      num_steps: T.
      engine: "scan", "event" (CPU), or "auto": event where the computation is compiled
        for a CPU, scan elsewhere, and where numba cannot work, with one warning.
      surrogate: "constant", "window", or a value of `ds4nn_jax.surrogates`.

    Returns:
      [B, O] spike times of the neurons.

    Raises:
      TypeError: times or kernel are not floating.
      ValueError: shapes do not fit, T ≤ 0, θ ≤ 0; outside jit also times that are no
        whole steps in 0 … T, or weights that are not finite.
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
    layer, *arrays = dense_layer(times, kernel, threshold, num_steps, engine, surrogate)
    return respond(layer, *arrays).times


def conv(
    times: SpikeTimes,
    kernel: jax.Array,
    *,
    threshold: float = 100.0,
    num_steps: int = 100,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    engine: Engine = "auto",
    surrogate: str | Surrogate = "constant",
) -> SpikeTimes:
    """First spike times of a convolution of non-leaky IF neurons.

    As `dense`, with weights shared over positions: each gradient of a weight is the sum
    over the positions that share it. What lies outside the image is silent.

    Args:
      times: [B, H, W, I] spike times of the inputs, whole steps 0 … T; T is silent.
      kernel: [kh, kw, I, O] weights, mV (cross-correlation, as in every framework).
      threshold: θ > 0, mV.
      num_steps: T.
      strides: rows and columns between neighbouring windows.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)).
      engine: as for `dense`.
      surrogate: as for `dense`.

    Returns:
      [B, H', W', O] spike times of the neurons.

    Raises:
      As `dense`; ValueError also for strides < 1, an unknown padding, or a window
      larger than the padded image.

    Example:
      >>> import numpy as np, ds4nn_jax as ds
      >>> times = np.array([4.0, 7.0, 9.0]).reshape(1, 1, 3, 1)
      >>> ds.conv(times, np.full((1, 2, 1, 1), 60.0), padding="VALID").ravel()
      Array([7., 9.], dtype=float32)
    """
    layer, *arrays = conv_layer(
        times, kernel, threshold, num_steps, engine, strides, padding, surrogate
    )
    return respond(layer, *arrays).times


def conv_pool(
    times: SpikeTimes,
    kernel: jax.Array,
    *,
    window: tuple[int, int] = (2, 2),
    threshold: float = 100.0,
    num_steps: int = 100,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    engine: Engine = "auto",
    surrogate: str | Surrogate = "constant",
) -> SpikeTimes:
    """A convolution and the earliest-spike pooling behind it, as one layer.

    Equals `earliest_pool(conv(times, kernel, …), window=window, strides=window)` in
    both directions. The event engine keeps only what pooling passes on, which is a
    quarter of the memory for 2×2 windows, and less time for it.

    Args:
      times: [B, H, W, I] spike times of the inputs, whole steps 0 … T; T is silent.
      kernel: [kh, kw, I, O] weights, mV.
      window: rows and columns of the pooling windows, side by side; the convolution's
        output must divide into them.
      threshold, num_steps, strides, padding, engine, surrogate: as for `conv`.

    Returns:
      [B, H'/rows, W'/columns, O] spike times of the pooling neurons.

    Raises:
      As `conv`; ValueError also for a window that does not divide the output.
    """
    window = _pair("window", window)
    layer, *arrays = conv_layer(
        times, kernel, threshold, num_steps, engine, strides, padding, surrogate
    )
    shape = jax.eval_shape(layer.synapse.current, *arrays).shape
    if not divides(window, shape):
        raise ValueError(
            f"window {window} does not divide the convolution's output {shape[1:3]}: "
            "use earliest_pool, which drops what is left over"
        )
    return respond(layer, *arrays, pool=window).times


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

    Raises:
      TypeError: times are not floating.
      ValueError: times are not [B, H, W, I], a window or stride < 1, or a window larger
        than the image.

    Example:
      >>> import numpy as np, ds4nn_jax as ds
      >>> times = np.array([[4.0, 7.0], [100.0, 9.0]]).reshape(1, 2, 2, 1)
      >>> ds.earliest_pool(times).ravel()
      Array([4.], dtype=float32)
    """
    times = _checks.spike_times(times)
    _checks.rank("times", times, "[B, H, W, I]")
    window, strides = _pair("window", window), _pair("strides", strides)
    image = times.shape[1:3]
    if window[0] > image[0] or window[1] > image[1]:
        raise ValueError(f"window {window} is larger than the image {image}")
    return pooling.earliest(times, window, strides)


def membrane_potentials(
    times: SpikeTimes, kernel: jax.Array, *, num_steps: int = 100
) -> jax.Array:
    """Potential of every neuron of a dense layer at every step, unreset (Eq. 2).

    Args:
      times: [B, I] spike times of the inputs.
      kernel: [I, O] weights, mV.
      num_steps: T.

    Returns:
      [T, B, O] potentials V_j(t), mV, as they would run on after a spike.
    """
    _checks.num_steps(num_steps)
    times, kernel = _checks.times_and_kernel(times, kernel, num_steps)
    _checks.rank("times", times, "[B, I]")
    _checks.rank("kernel", kernel, "[I, O]")
    _check_features(times, kernel)

    def step(potential: jax.Array, t: jax.Array):
        arriving = (times == t).astype(times.dtype)
        potential = potential + Dense().current(arriving, kernel)
        return potential, potential

    rest = jnp.zeros((times.shape[0], kernel.shape[1]), times.dtype)
    return lax.scan(step, rest, jnp.arange(num_steps, dtype=times.dtype))[1]


def decision_potentials(
    times: SpikeTimes,
    kernel: jax.Array,
    *,
    threshold: float = 100.0,
    num_steps: int = 100,
    engine: Engine = "auto",
) -> jax.Array:
    """What breaks ties: V_j(t_j) of a neuron that fires, V_j(T − 1) of a silent one.

    Arguments and errors as `dense`. Takes no gradient.

    Returns:
      [B, O] potentials, mV.
    """
    layer, times, kernel = dense_layer(times, kernel, threshold, num_steps, engine)
    times, kernel = lax.stop_gradient((times, kernel))
    response = _compiled_forward(layer, times, kernel, peaks=True)
    final = Dense().current((times < num_steps).astype(times.dtype), kernel)
    return jnp.where(response.times < num_steps, response.potential, final)


def peak_potentials(
    times: SpikeTimes,
    kernel: jax.Array,
    *,
    num_steps: int = 100,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    engine: Engine = "auto",
) -> jax.Array:
    """max_t V(t) of every neuron if none fired: what θ has to lie below.

    Args:
      times: [B, I] or [B, H, W, I] spike times of the inputs.
      kernel: [I, O] (dense) or [kh, kw, I, O] (convolution) weights, mV.
      num_steps: T.
      strides: of a convolution, as for `conv`.
      padding: of a convolution, as for `conv`.
      engine: as for `dense`.

    Returns:
      [B, O] or [B, H', W', O] potentials, mV.

    Raises:
      As `dense` and `conv`.
    """
    never = 1e30  # mV: finite, as every threshold, and out of reach
    if jnp.ndim(kernel) == 2:
        layer, *arrays = dense_layer(times, kernel, never, num_steps, engine)
    else:
        layer, *arrays = conv_layer(
            times, kernel, never, num_steps, engine, strides, padding
        )
    return _compiled_forward(layer, *arrays, peaks=True).potential


class Layer(NamedTuple):
    """All that is static about a layer."""

    synapse: Synapse
    threshold: float
    num_steps: int
    engine: Engine
    surrogate: Surrogate


def dense_layer(
    times, kernel, threshold, num_steps, engine, surrogate="constant"
) -> tuple[Layer, jax.Array, jax.Array]:
    layer = _layer(Dense(), threshold, num_steps, engine, surrogate)
    times, kernel = _checks.times_and_kernel(times, kernel, num_steps)
    _checks.rank("times", times, "[B, I]")
    _checks.rank("kernel", kernel, "[I, O]")
    _check_features(times, kernel)
    return layer, times, kernel


def conv_layer(
    times, kernel, threshold, num_steps, engine, strides, padding, surrogate="constant"
) -> tuple[Layer, jax.Array, jax.Array]:
    _checks.num_steps(num_steps)
    times, kernel = _checks.times_and_kernel(times, kernel, num_steps)
    _checks.rank("times", times, "[B, H, W, I]")
    _checks.rank("kernel", kernel, "[kh, kw, I, O]")
    _check_features(times, kernel)
    strides = _pair("strides", strides)
    pads = explicit_pads(padding, times.shape[1:3], kernel.shape[:2], strides)
    layer = _layer(Conv(strides, pads), threshold, num_steps, engine, surrogate)
    return layer, times, kernel


def _layer(synapse, threshold, num_steps, engine, surrogate) -> Layer:
    _checks.num_steps(num_steps)
    threshold = _checks.threshold(threshold)
    if engine not in ("auto", "scan", "event"):
        raise ValueError(f'engine must be "auto", "scan" or "event", got {engine!r}')
    return Layer(synapse, threshold, int(num_steps), engine, resolve(surrogate))


def _dispatch(layer: Layer, function: str, *arrays: jax.Array, **static):
    """Calls `function` of the engine module that the layer names."""

    def of(module) -> Callable:
        return functools.partial(
            getattr(module, function),
            layer.synapse,
            num_steps=layer.num_steps,
            **static,
        )

    if layer.engine == "scan":
        return of(scan)(*arrays)
    return of(event)(*arrays, only=layer.engine == "event")


def _forward(layer: Layer, times, kernel, **asked) -> Response:
    return _dispatch(
        layer, "forward", times, kernel, threshold=layer.threshold, **asked
    )


def respond(
    layer: Layer,
    times: SpikeTimes,
    kernel: jax.Array,
    *,
    pool: tuple[int, int] = NO_POOL,
    counts: bool = False,
) -> Response:
    """Spike times, behind the pooling, and spike counts if asked for."""
    return _first_spikes(layer, pool, counts, times, kernel)


def divides(window: tuple[int, int], shape: tuple[int, ...]) -> bool:
    """Whether pooling windows cover images [B, H, W, O] without a rest."""
    return shape[1] % window[0] == 0 and shape[2] % window[1] == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _response(layer: Layer, pool, counts: bool, times, kernel) -> Response:
    found = _forward(layer, times, kernel, peaks=False, pool=pool, counts=counts)
    return Response(found.times, counts=found.counts)


def _response_fwd(layer: Layer, pool, counts: bool, times, kernel):
    peaks = isinstance(layer.surrogate, Window)
    found = _forward(layer, times, kernel, peaks=peaks, pool=pool, counts=counts)
    # A fired neuron listened until its spike, which is also where its peak is; a silent
    # one until T (its time) by the constant rule, until its peak by the window rule.
    until = found.until if peaks else found.times
    residuals = (times, kernel, until, found.potential, found.member)
    return Response(found.times, counts=found.counts), residuals


def _response_bwd(layer: Layer, pool, counts: bool, residuals, cotangent: Response):
    del counts
    times, kernel, until, potential, member = residuals
    silent_inputs, delta = False, cotangent.times
    if isinstance(layer.surrogate, Window):
        silent_inputs = True
        delta = delta * layer.surrogate.slope(potential, layer.threshold)
    arrays = (times, kernel, until, delta) + (() if member is None else (member,))
    return _dispatch(layer, "backward", *arrays, silent_inputs=silent_inputs, pool=pool)


_response.defvjp(_response_fwd, _response_bwd)

# Compiled once per layer and shape also where the caller does not jit.
_first_spikes = jax.jit(_response, static_argnums=(0, 1, 2))
_compiled_forward = jax.jit(_forward, static_argnums=0, static_argnames="peaks")


def _check_features(times: jax.Array, kernel: jax.Array) -> None:
    if times.shape[-1] != kernel.shape[-2]:
        raise ValueError(
            f"times {times.shape} have {times.shape[-1]} input features, "
            f"kernel {kernel.shape} expects {kernel.shape[-2]}"
        )
    if 0 in kernel.shape:
        raise ValueError(f"kernel must not be empty, got shape {kernel.shape}")


def _pair(name: str, value: Sequence[int]) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(v, int) and v > 0 for v in pair):
        raise ValueError(f"{name} must be two positive whole numbers, got {value!r}")
    return pair
