"""Decisions as they would be taken: nothing is computed after the first spike out."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ds4nn_jax import _checks
from ds4nn_jax._engines import choice
from ds4nn_jax._engines.plan import LINE, SWEEP, SWEEP_LANES, Line, Sweep
from ds4nn_jax._engines.pool import members
from ds4nn_jax._engines.synapse import (
    Conv,
    Dense,
    current,
    explicit_pads,
    flat,
    pulse_currents,
)
from ds4nn_jax._values import scalar
from ds4nn_jax.layers import _coding, _response
from ds4nn_jax.networks.network import SpikingNetwork
from ds4nn_jax.networks.spec import ConvSpec, PoolSpec
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
    _coding.compare(times, network.num_steps)
    leaves, structure = jax.tree.flatten((params, times))
    _check_shapes(
        network, structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
    )
    times = _checks.spike_times(times, network.num_steps)
    kernels = [params["params"][name]["kernel"] for name in network.weighted]
    for name, kernel in zip(network.weighted, kernels, strict=True):
        _checks.finite(f"kernel of {name}", kernel)
    others = *network.reference_weights(params), *network.thresholds(params)
    dtype = jnp.result_type(times, *kernels)
    arrays = [x.astype(dtype) for x in (times, *kernels, *others)]
    return _infer(network, all(map(_response.is_whole, kernels)), *arrays)


@functools.lru_cache(256)
def _check_shapes(network: SpikingNetwork, structure: Any, leaves: tuple) -> None:
    """Refuses what the network would; traces it once for the same shapes."""
    shapes = [jax.ShapeDtypeStruct(*leaf) for leaf in leaves]
    jax.eval_shape(network.apply, *jax.tree.unflatten(structure, shapes))


def classify(
    network: SpikingNetwork, params: dict, images: Any, *, batch_size: int = 100
) -> Inference:
    """From images to decisions: `infer` of what the network encodes, batch by batch.

    Args:
      network: its structure and engine.
      params: its parameters.
      images: [n, H, W, I] or [n, I], uint8 or floating in [0, 1].
      batch_size: images at a time; of no influence on the result.

    Returns:
      As `infer`, as NumPy arrays of all n images.

    Raises:
      As `infer`; TypeError, ValueError: images that `encode` refuses, or none.

    Example:
      >>> import ds4nn_jax as ds
      >>> digits = ds.data.load("digits")
      >>> config = ds.TrainConfig(spec="64-60-10", epochs=1)
      >>> (result,) = ds.train(config, digits.train_images, digits.train_labels)
      >>> decided = ds.classify(config.network(), result.params, digits.test_images)
      >>> decided.label.shape, decided.step.dtype
      ((359,), dtype('int32'))
    """
    images = _checks.array(images)
    if not images.ndim or not len(images):
        raise ValueError("no images")
    found = []
    for _, some, count in batches_of(images, batch_size):
        decided = infer(network, params, network.encode(some))
        found.append(jax.tree.map(lambda x, n=count: np.asarray(x[:n]), decided))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def batches_of(images: Any, size: int) -> Iterator[tuple[int, Any, int]]:
    """Where each batch starts, its images, and how many of these count: the last image
    fills the last batch up, so that one shape is compiled.

    Raises:
      ValueError, TypeError: the size is no positive whole number.
    """
    size = scalar("batch_size", int, size)
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    for start in range(0, len(images), size):
        some = images[start : start + size]
        count = len(some)
        if count < size:
            some = np.concatenate([some, some[-1:].repeat(size - count, 0)])
        yield start, some, count


@functools.partial(jax.jit, static_argnums=(0, 1))
def _infer(network: SpikingNetwork, whole: bool, times, *weights) -> Inference:
    """`weights` are the kernels of all layers, then those of their reference neurons,
    then their thresholds."""
    by_step = functools.partial(_steps, network, whole)
    sweep = functools.partial(_swept, network)
    kernels = weights[: len(network.weighted)]
    if network.engine == "scan":
        return by_step(times, *weights)
    if not _fits(network, _stages(network, times.shape[1:], kernels)):
        return by_step(times, *weights)
    shapes, only = _shapes(network, times.shape[0]), network.engine == "event"
    return choice.choose("sweep", sweep, by_step, shapes, times, *weights, only=only)


def _by_kind(weights: tuple) -> tuple[tuple, tuple, tuple]:
    layers = len(weights) // 3
    return weights[:layers], weights[layers : 2 * layers], weights[2 * layers :]


def _shapes(network: SpikingNetwork, batch: int) -> Inference:
    one: Any = jax.ShapeDtypeStruct((batch,), jnp.int32)
    each: Any = jax.ShapeDtypeStruct((batch, len(network.layers) + 1), jnp.int32)
    return Inference(one, one, each)


class _Stage(NamedTuple):
    """A layer with what its input and output look like."""

    size: int  # of its windows; of a dense layer 1
    synapse: Conv | Dense | None  # None: pooling
    shape: tuple[int, ...]  # of the input, without batch
    out: tuple[int, ...]


def _stages(
    network: SpikingNetwork, shape: tuple[int, ...], kernels, whole: bool = False
) -> list[_Stage]:
    stages: list[_Stage] = []
    kernels = iter(kernels)
    for spec in network.layers:
        if isinstance(spec, PoolSpec):
            height, width, features = shape
            out: tuple[int, ...]
            out = (height // spec.size, width // spec.size, features)
            stages.append(_Stage(spec.size, None, shape, out))
        elif isinstance(spec, ConvSpec):
            kernel = next(kernels)
            window = kernel.shape[:2]
            pads = explicit_pads(network.padding, shape[:2], window, spec.strides)
            synapse = Conv(spec.strides, pads, whole)
            spikes = jax.ShapeDtypeStruct((1, *shape), kernel.dtype)
            out = jax.eval_shape(synapse.current, spikes, kernel).shape[1:]
            stages.append(_Stage(spec.size, synapse, shape, out))
        else:
            shape, out = (math.prod(shape),), (spec.features,)
            next(kernels)
            stages.append(_Stage(1, Dense(whole), shape, out))
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


def _steps(network: SpikingNetwork, whole: bool, times, *weights) -> Inference:
    """All images together, all layers a step at a time, while one is undecided."""
    batch, *shape = times.shape
    num_steps = network.num_steps
    kernels, pulses, thresholds = _by_kind(weights)
    stages = _stages(network, tuple(shape), kernels, whole)
    currents = [pulse_currents(rows, num_steps) for rows in pulses]

    def advance(now: _Progress) -> _Progress:
        spikes = times == now.t.astype(times.dtype)
        of_layers = zip(kernels, currents, thresholds, strict=True)
        counts = [spikes]
        potentials, fired = [], []
        for stage, potential, before in zip(
            stages, now.potentials, now.fired, strict=True
        ):
            if stage.synapse is None:
                window = (stage.size, stage.size)
                of_window = members(spikes, window, window)
                fires = functools.reduce(jnp.logical_or, of_window) & ~before
            else:
                arriving = spikes.reshape(batch, *stage.shape).astype(times.dtype)
                kernel, reference, threshold = next(of_layers)
                arrived = current(stage.synapse, arriving, kernel)
                # As in the full scan: first all that comes at a step is summed.
                arrived += reference[now.t].reshape(*[1] * len(stage.out), -1)
                potential = potential + arrived
                theta = threshold.reshape(*[1] * len(stage.out), -1)
                fires = (potential >= theta) & ~before
            potentials.append(potential)
            fired.append(before | fires)
            counts.append(fires)
            spikes = fires
        undecided = now.step == num_steps
        counted = jnp.stack(
            [jnp.sum(flat(c), axis=1, dtype=jnp.int32) for c in counts], axis=1
        )
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
    # By the first spike, ties and silence alike by the potential, then by the index.
    silent = (end.step == num_steps)[:, None]
    deciding = silent | (end.outputs >= thresholds[-1][None])
    lifted = _response.comparable(end.outputs, thresholds[-1])
    label = jnp.argmax(jnp.where(deciding, lifted, -jnp.inf), axis=1).astype(jnp.int32)
    return Inference(label, end.step, end.spikes)


def _swept(network: SpikingNetwork, times, *weights) -> Inference:
    """Each image by itself: `_engines.sweep`, on the CPU's cores."""
    kernels, pulses, thresholds = _by_kind(weights)
    stages = _stages(network, times.shape[1:], kernels)
    plan = _plan(stages, [len(p) for p in pulses], len(times), network)
    of_layers = zip(kernels, pulses, thresholds, strict=True)
    rows = jnp.concatenate([_padded(*arrays) for arrays in of_layers])
    results = _shapes(network, len(times))
    return Inference(*choice.call("sweep", times.dtype, results, plan, times, rows))


_PARTS = 64  # of a batch; images differ in how soon they are decided
_MOST_STEPS, _MOST_NEURONS = 2**16 - 2, 2**24  # what fits into a word of the sweep


def _fits(network: SpikingNetwork, stages: list[_Stage]) -> bool:
    """Whether the sweep can: a spike is one of its words, windows lie side by side."""
    neurons = max(math.prod(shape) for s in stages for shape in (s.shape, s.out))
    side_by_side = all(getattr(s, "stride", 1) == 1 for s in network.layers)
    few = network.num_steps <= _MOST_STEPS and neurons <= _MOST_NEURONS
    return side_by_side and few


def _stride(outputs: int) -> int:
    return -(-outputs // SWEEP_LANES) * SWEEP_LANES


def _padded(kernel: jax.Array, pulses: jax.Array, threshold: jax.Array) -> jax.Array:
    rows = jnp.concatenate([kernel.reshape(-1, kernel.shape[-1]), pulses])
    idle = _stride(rows.shape[1]) - rows.shape[1]
    rows = jnp.pad(rows, ((0, 0), (0, idle)))
    never = jnp.pad(threshold, (0, idle), constant_values=jnp.inf)
    return jnp.concatenate([rows.ravel(), never])


def _plan(
    stages: list[_Stage], pulses: list[int], batch: int, network: SpikingNetwork
) -> np.ndarray:
    """The words that `_engines.sweep` reads: sizes, layers, orders of windows."""
    lines: list[Line] = []
    orders: list[np.ndarray] = []
    weights = potentials = pooled = events = 0
    at = len(SWEEP) + len(stages) * len(LINE)
    references = iter(pulses)
    for stage, behind in zip(stages, (*stages[1:], None), strict=True):
        # A dense layer has images of one pixel.
        image, after = (1, 1, *stage.shape)[-3:], (1, 1, *stage.out)[-3:]
        top = left = 0
        if isinstance(stage.synapse, Conv):
            (top, _), (left, _) = stage.synapse.pads
        geometry = *image, stage.size, stage.size, top, left, *after
        line = Line(stage.synapse is None, *geometry)
        line = line._replace(stride=_stride(stage.out[-1]), order=at)
        positions = math.prod(stage.out[:-1])
        if stage.synapse is None:
            order = _windows(stage)
            line = line._replace(potentials=pooled)
            pooled += positions * stage.out[-1]
        else:
            order = np.arange(positions)
            if behind is not None and behind.synapse is None:
                # Windows that are pooled together in turn, what is left over last.
                windows = _windows(behind)
                order = np.argsort(windows % (windows.max() + 2), kind="stable")
            line = line._replace(weights=weights, potentials=potentials)
            line = line._replace(pulses=next(references))
            size = line.rows * line.columns * line.inputs + line.pulses
            weights += (size + 1) * line.stride
            potentials += positions * line.stride
            events = max(events, positions * (size + 1))
        lines.append(line._replace(visits=len(order)))
        orders.append(order)
        at += len(order)
    sizes = Sweep(
        images=batch,
        layers=len(stages),
        steps=network.num_steps,
        parts=min(batch, _PARTS),
        potentials=potentials,
        pooled=pooled,
        places=max(math.prod(stage.out[:-1]) for stage in stages),
        largest=max(math.prod(s) for stage in stages for s in (stage.shape, stage.out)),
        events=events,
    )
    return np.concatenate([sizes, np.ravel(lines), *orders])


def _windows(pool: _Stage) -> np.ndarray:
    """The pooling window of each input pixel, −1 for those left over."""
    (height, width, _), size = pool.shape, pool.size
    y, x = np.divmod(np.arange(height * width), width)
    y, x = y // size, x // size
    inside = (y < pool.out[0]) & (x < pool.out[1])
    return np.where(inside, y * pool.out[1] + x, -1)
