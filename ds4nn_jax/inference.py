"""Decisions as they would be taken: nothing is computed after the first spike out."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.buffer_callback import buffer_callback

from ds4nn_jax import _checks, _event, neurons
from ds4nn_jax._synapse import Conv, Dense, explicit_pads
from ds4nn_jax.modules import ConvSpec, PoolSpec, SpikingNetwork
from ds4nn_jax.types import SpikeTimes


class Inference(NamedTuple):
    """What became of each image by the time it was decided.

    Attributes:
      label: [B] int32 strict decision, as `predict` of the whole forward pass.
      step: [B] int32 decision step; T where no output fired.
      spikes: [B, L+1] int32 spikes of the input and of each layer up to and including
        that step.
    """

    label: jax.Array
    step: jax.Array
    spikes: jax.Array


def infer(network: SpikingNetwork, params: dict, times: SpikeTimes) -> Inference:
    """Decides each image at its first output spike and stops there.

    There is no delay between layers, so all of them advance together, step by step,
    until the outputs have spoken. With the event engine every image stops by itself;
    with the scan engine a batch stops when its last image is decided.

    Args:
      network: its structure and engine.
      params: its parameters.
      times: [B, H, W, I] or [B, I] input spike times.

    Returns:
      The same labels, steps and spike counts as `decide` of the full `trace`.

    Raises:
      As `SpikingNetwork.__call__`.
    """
    jax.eval_shape(network.apply, params, times)  # refuses what the network would
    times = _checks.spike_times(times, network.num_steps)
    kernels = [params["params"][name]["kernel"] for name in network.weighted]
    for name, kernel in zip(network.weighted, kernels, strict=True):
        _checks.finite(f"kernel of {name}", kernel)
    dtype = jnp.result_type(times, *kernels)
    arrays = [x.astype(dtype) for x in (times, *kernels)]
    return _infer(network, *arrays)


@functools.partial(jax.jit, static_argnums=0)
def _infer(network: SpikingNetwork, times, *kernels) -> Inference:
    by_step = functools.partial(_steps, network)
    sweep = functools.partial(_swept, network)
    if network.engine == "scan" or not _event.available():
        return by_step(times, *kernels)
    if network.engine == "event":
        return sweep(times, *kernels)
    return lax.platform_dependent(times, *kernels, cpu=sweep, default=by_step)


class _Stage(NamedTuple):
    """A layer with what its input and output look like."""

    spec: ConvSpec | PoolSpec | None  # None: dense
    synapse: Conv | Dense | None  # None: pooling
    shape: tuple[int, ...]  # of the input, without batch
    out: tuple[int, ...]


def _stages(network: SpikingNetwork, shape: tuple[int, ...], kernels) -> list[_Stage]:
    stages, kernels = [], iter(kernels)
    for spec in network.layers:
        if isinstance(spec, PoolSpec):
            height, width, features = shape
            out = (height // spec.size, width // spec.size, features)
            stages.append(_Stage(spec, None, shape, out))
        elif isinstance(spec, ConvSpec):
            kernel = next(kernels)
            pads = explicit_pads(network.padding, shape[:2], kernel.shape[:2], (1, 1))
            synapse = Conv((1, 1), pads)
            spikes = jax.ShapeDtypeStruct((1, *shape), kernel.dtype)
            out = jax.eval_shape(synapse.current, spikes, kernel).shape[1:]
            stages.append(_Stage(spec, synapse, shape, out))
        else:
            shape, out = (math.prod(shape),), (spec.features,)
            next(kernels)
            stages.append(_Stage(None, Dense(), shape, out))
        shape = out
    return stages


class _Progress(NamedTuple):
    """All layers at the end of a step; pooling layers have a potential of 0."""

    t: jax.Array
    potentials: tuple[jax.Array, ...]
    fired: tuple[jax.Array, ...]
    outputs: jax.Array  # [B, C] output potentials, frozen at the decision
    step: jax.Array
    spikes: jax.Array


def _steps(network: SpikingNetwork, times, *kernels) -> Inference:
    """All images together, all layers a step at a time, while one is undecided."""
    batch, *shape = times.shape
    num_steps = network.num_steps
    stages = _stages(network, tuple(shape), kernels)

    def advance(now: _Progress) -> _Progress:
        spikes, weights = times == now.t, iter(kernels)
        counts = [spikes]
        potentials, fired = [], []
        for stage, potential, before in zip(
            stages, now.potentials, now.fired, strict=True
        ):
            if stage.synapse is None:
                fires = neurons.earliest_pool(
                    jnp.where(spikes, 0.0, 1.0),
                    window=(stage.spec.size,) * 2,
                    strides=(stage.spec.size,) * 2,
                )
                fires = (fires == 0) & ~before
            else:
                arriving = spikes.reshape(batch, *stage.shape).astype(times.dtype)
                potential = potential + stage.synapse.current(arriving, next(weights))
                fires = (potential >= network.threshold) & ~before
            potentials.append(potential)
            fired.append(before | fires)
            counts.append(fires)
            spikes = fires
        undecided = now.step == num_steps
        counted = jnp.stack([c.reshape(batch, -1).sum(axis=1) for c in counts], axis=1)
        return _Progress(
            now.t + 1,
            tuple(potentials),
            tuple(fired),
            jnp.where(undecided[:, None], potentials[-1], now.outputs),
            jnp.where(undecided & spikes.any(axis=1), now.t, now.step),
            now.spikes + jnp.where(undecided[:, None], counted, 0),
        )

    def rest(dtype, stage: _Stage) -> jax.Array:
        return jnp.zeros((batch, *stage.out), dtype)

    start = _Progress(
        jnp.zeros((), jnp.int32),
        tuple(rest(times.dtype, stage) for stage in stages),
        tuple(rest(bool, stage) for stage in stages),
        rest(times.dtype, stages[-1]),
        jnp.full((batch,), num_steps, jnp.int32),
        jnp.zeros((batch, len(stages) + 1), jnp.int32),
    )
    end = lax.while_loop(
        lambda now: (now.t < num_steps) & jnp.any(now.step == num_steps),
        advance,
        start,
    )
    # An output that fires lies above all that do not, so one rule decides: by the first
    # spike, ties and silence alike by the potential, then by the index.
    label = jnp.argmax(end.outputs, axis=1).astype(jnp.int32)
    return Inference(label, end.step, end.spikes)


def _swept(network: SpikingNetwork, times, *kernels) -> Inference:
    """Each image by itself: `_sweep`, on the CPU's cores."""
    batch, *shape = times.shape
    stages = _stages(network, tuple(shape), kernels)
    result = Inference(
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.ShapeDtypeStruct((batch, len(stages) + 1), jnp.int32),
    )
    table, most = _table(stages, [kernel.shape for kernel in kernels])
    host = functools.partial(
        _host_sweep, table, most, network.threshold, network.num_steps
    )
    call = buffer_callback(host, result, vmap_method="sequential")
    return call(times, jnp.concatenate([kernel.ravel() for kernel in kernels]))


def _table(stages: list[_Stage], kernel_shapes) -> tuple[np.ndarray, np.ndarray]:
    """The layer table of `_sweep`, and the scratch that an image needs."""
    from ds4nn_jax import _sweep

    lines, weights, potentials, places = [], 0, 0, 1
    shapes = iter(kernel_shapes)
    for stage in stages:
        line = dict.fromkeys(_sweep.FIELDS, 0)
        line |= dict(weights=weights, potentials=potentials, outputs=stage.out[-1])
        if stage.synapse is not None:
            shape = next(shapes)
            weights += math.prod(shape)
        if stage.spec is None:
            # Everything to everything: a 1×1 convolution of an image of one pixel.
            line |= dict.fromkeys(("height", "width", "rows", "columns"), 1)
            line |= dict(inputs=stage.shape[0], out_height=1, out_width=1)
        else:
            names = ("height", "width", "inputs")
            line |= dict(zip(names, stage.shape, strict=True))
            line |= dict(out_height=stage.out[0], out_width=stage.out[1])
            line |= dict(rows=stage.spec.size, columns=stage.spec.size)
            places = max(places, stage.out[0] * stage.out[1])
        if isinstance(stage.synapse, Conv):
            (top, _), (left, _) = stage.synapse.pads
            line |= dict(top=top, left=left)
        line["pools"] = stage.synapse is None
        potentials += math.prod(stage.out)
        lines.append([line[field] for field in _sweep.FIELDS])
    largest = max(math.prod(s) for stage in stages for s in (stage.shape, stage.out))
    return np.array(lines), np.array([potentials, places, largest])


def _host_sweep(table, most, threshold, num_steps, context, results, times, weights):
    from ds4nn_jax import _sweep

    del context
    times, weights = np.asarray(times), np.asarray(weights)
    label, step, spikes = (np.asarray(result) for result in results)
    times = times.reshape(len(times), -1)

    def task(part):
        some = slice(*part)
        _sweep.sweep(
            times[some],
            table,
            weights,
            weights.dtype.type(threshold),
            num_steps,
            most,
            label[some],
            step[some],
            spikes[some],
        )

    _event._in_parallel(task, _event._parts(len(times), 4 * _event._workers()))
