"""What is static about a layer, and its one custom gradient, written once for both
synapses (dense, convolution) and both engines."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax import _checks
from ds4nn_jax._engines import event, scan
from ds4nn_jax._engines.synapse import (
    NO_POOL,
    Conv,
    Dense,
    Response,
    Synapse,
    explicit_pads,
    pulse_currents,
)
from ds4nn_jax._values import chosen
from ds4nn_jax.layers.surrogates import Surrogate

Engine = Literal["auto", "scan", "event"]


class Layer(NamedTuple):
    """All that is static about a layer."""

    synapse: Synapse
    num_steps: int
    engine: Engine
    surrogate: Surrogate


def prepared(
    times,
    kernel,
    pulses,
    threshold,
    num_steps,
    engine,
    surrogate="constant",
    urgency=0.0,
    strides=None,
    padding="SAME",
) -> tuple[Layer, *tuple[jax.Array, ...]]:
    """The layer, and its operands: times, kernel, pulses [P, O], thresholds [O]. Only
    a convolution has strides."""
    is_dense, integers = strides is None, is_whole(kernel)
    axes = ("[B, I]", "[I, O]") if is_dense else ("[B, H, W, I]", "[kh, kw, I, O]")
    times, kernel = _checks.times_and_kernel(times, kernel, num_steps, *axes)
    synapse: Synapse = Dense(integers)
    if not is_dense:
        strides = _checks.pair("strides", strides)
        pads = explicit_pads(padding, times.shape[1:3], kernel.shape[:2], strides)
        synapse = Conv(strides, pads, integers)
    if engine not in ("auto", "scan", "event"):
        raise ValueError(f'engine must be "auto", "scan" or "event", got {engine!r}')
    surrogate = chosen("surrogate", Surrogate, surrogate)
    layer = Layer(synapse, int(num_steps), engine, surrogate)
    pulses = reference(pulses, kernel, num_steps, urgency, integers)
    return layer, times, kernel, pulses, thresholds(threshold, kernel)


def reference(
    pulses: jax.Array | None,
    kernel: jax.Array,
    num_steps: int,
    urgency: jax.typing.ArrayLike = 0.0,
    integers: bool = False,
) -> jax.Array:
    """Weights [P, O] of the reference neurons of a layer with this kernel.

    An urgency is T of them, one spike at each step, all with weight u; in whole
    numbers those whose sums are ⌊u·(t + 1)⌋.
    """
    outputs, dtype = kernel.shape[-1], jnp.promote_types(kernel.dtype, jnp.float32)
    if pulses is None:
        pulses = jnp.zeros((0, outputs), dtype)
    else:
        pulses = _checks.pulses(pulses, outputs, num_steps).astype(dtype)
    urgency = _checks.urgency(urgency)
    if _checks.is_traced(urgency) or urgency:
        if integers:  # exact: in float64, before any program runs
            totals = np.floor(np.float64(urgency) * np.arange(num_steps + 1))
            urgency = np.diff(totals)[:, None]
        pulses = pulse_currents(pulses, num_steps) + jnp.asarray(urgency, dtype)
    return pulses


def is_whole(kernel: jax.typing.ArrayLike) -> bool:
    """Whether a layer's weights are integers: int8."""
    return jnp.result_type(kernel) == jnp.int8


def thresholds(threshold, kernel: jax.Array) -> jax.Array:
    """θ of each output [O]."""
    outputs = kernel.shape[-1]
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    theta = jnp.asarray(_checks.threshold(threshold, outputs)).astype(dtype)
    return jnp.broadcast_to(theta, (outputs,))


def comparable(potentials: jax.Array, theta: jax.Array) -> jax.Array:
    """Potentials [B, O] with θ_max − θ_j added: equal distances from the thresholds [O]
    are equal, so one rule decides between outputs."""
    return potentials + (jnp.max(theta) - theta)[None]


def _dispatch(layer: Layer, function: str, *arrays: jax.Array, **static):
    """Calls `function` of the engine module that the layer names."""
    static["num_steps"] = layer.num_steps
    module = scan if layer.engine == "scan" else event
    if module is event:
        static["only"] = layer.engine == "event"
    call = functools.partial(getattr(module, function), layer.synapse, **static)
    return _undifferentiated(call, *arrays)


_ONCE = (
    "layers have first derivatives in reverse mode (jax.grad, jax.vjp): spikes have "
    "none of their own, so there is neither forward mode (jax.jvp, jax.jacfwd) nor a "
    "second derivative (jax.hessian)"
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _undifferentiated(call: Callable, *arrays: jax.Array):
    return call(*arrays)


@_undifferentiated.defjvp
def _refused(call: Callable, primals, tangents):
    raise TypeError(_ONCE)


def _forward(layer: Layer, times, kernel, pulses, threshold, **static) -> Response:
    arrays = times, kernel, pulses, threshold
    return _dispatch(layer, "forward", *arrays, **static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6))
def _response(
    layer: Layer, times, kernel, pulses, threshold, pool=NO_POOL, counts=False
) -> Response:
    """Spike times, behind the pooling, and spike counts with `counts`."""
    arrays = times, kernel, pulses, threshold
    response = _forward(layer, *arrays, peaks=False, pool=pool, counts=counts)
    return Response(response.times, counts=response.counts)


def _response_fwd(layer: Layer, times, kernel, pulses, threshold, pool, counts: bool):
    peaks, arrays = layer.surrogate.silent_learn, (times, kernel, pulses, threshold)
    response = _forward(layer, *arrays, peaks=peaks, pool=pool, counts=counts)
    # A neuron integrates up to its spike, which is also its peak; a silent one up to T
    # (its time) by the constant rule, up to its peak by the window rule.
    end = response.end if peaks else response.times
    residuals = (*arrays, end, response.potential, response.argmin)
    return Response(response.times, counts=response.counts), residuals


def _response_bwd(layer: Layer, pool, counts: bool, residuals, cotangent: Response):
    del counts
    *operands, threshold, end, potential, argmin = residuals
    silent_inputs, delta = False, cotangent.times
    if layer.surrogate.silent_learn:
        silent_inputs = True
        theta = threshold.reshape(*[1] * (delta.ndim - 1), -1)
        delta = delta * layer.surrogate.slope(potential, theta)
    arrays = (*operands, end, delta) + (() if argmin is None else (argmin,))
    static = dict(silent_inputs=silent_inputs, pool=pool)
    # A threshold is a reference neuron of weight −θ that spikes before all others.
    d_threshold = jnp.sum(delta, axis=tuple(range(delta.ndim - 1)))
    return *_dispatch(layer, "backward", *arrays, **static), d_threshold


_response.defvjp(_response_fwd, _response_bwd)

# Compiled once per layer and shape also where the caller does not jit.
_respond = jax.jit(_response, static_argnums=0, static_argnames=("pool", "counts"))
compiled_forward = jax.jit(_forward, static_argnums=0, static_argnames="peaks")


def respond(layer: Layer, *arrays: jax.Array, **outputs) -> Response:
    """What a layer does, with the gradient of its surrogate."""
    try:
        return _respond(layer, *arrays, **outputs)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(_ONCE) from error
