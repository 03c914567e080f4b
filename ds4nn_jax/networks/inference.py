"""Decisions with early exit: computation stops at the first output spike."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ds4nn_jax import _checks
from ds4nn_jax._engines import choice, early_exit
from ds4nn_jax._engines.early_exit import Stage
from ds4nn_jax._engines.pool import taps
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
    """The decision on each image, and what it cost.

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
    until an output fires. With the event engine every image stops by itself; with the
    scan engine a batch stops when its last image is decided.

    Args:
      network: its structure and engine.
      params: its parameters.
      times: [B, H, W, I] or [B, I] input spike times.

    Returns:
      The same labels, steps and spike counts as `decide` of the full `trace`.
    """
    _coding.compare(times, network.num_steps)
    leaves, structure = jax.tree.flatten((params, times))
    _check_shapes(
        network, structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
    )
    times = _checks.spike_times(times, network.num_steps)
    kernels = [params["params"][name]["kernel"] for name in network.weighted]
    _checks.finite_weights(params)
    dtype = jnp.result_type(times, *kernels)
    others = network.reference_weights(params), network.thresholds(params)
    weights = [
        x.astype(dtype) for layer in zip(kernels, *others, strict=True) for x in layer
    ]
    integers = all(map(_response.is_whole, kernels))
    return _infer(network, integers, times.astype(dtype), *weights)


@functools.lru_cache(256)
def _check_shapes(network: SpikingNetwork, structure: Any, leaves: tuple) -> None:
    """Traces the network, which refuses wrong shapes; once for the same ones."""
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

    Example:
      >>> import ds4nn_jax as ds
      >>> digits = ds.data.load("digits")
      >>> config = ds.TrainConfig(spec="64-60-10", epochs=1)
      >>> (result,) = ds.train(config, digits.train_images, digits.train_labels)
      >>> decided = ds.classify(config.network(), result.params, digits.test_images)
      >>> decided.label.shape, decided.step.dtype
      ((359,), dtype('int32'))
    """
    batches = []
    for _, batch, count in batches_of(_checks.some_images(images), batch_size):
        decided = infer(network, params, network.encode(batch))
        batches.append(jax.tree.map(lambda x, n=count: np.asarray(x[:n]), decided))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def batches_of(images: Any, size: int) -> Iterator[tuple[int, Any, int]]:
    """Where each batch starts, its images, and how many of them count: the last image
    fills the last batch up, so that one shape is compiled."""
    size = scalar("batch_size", int, size)
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        count = len(batch)
        if count < size:
            batch = np.concatenate([batch, batch[-1:].repeat(size - count, 0)])
        yield start, batch, count


@functools.partial(jax.jit, static_argnums=(0, 1))
def _infer(network: SpikingNetwork, integers: bool, times, *weights) -> Inference:
    """`weights` are kernel, pulses [P, O] and thresholds [O] of each layer that has
    weights; `integers`: kernels are integers of 8 bits."""
    layers = stages(network, times.shape[1:], weights[::3], integers)
    by_step = functools.partial(_steps, layers, network.num_steps)
    if network.engine == "scan" or not early_exit.fits(layers, network.num_steps):
        return Inference(*by_step(times, *weights))
    kernel = functools.partial(early_exit.decide, layers, network.num_steps)
    shapes = early_exit.results(layers, times.shape[0])
    only = network.engine == "event"
    arrays = times, *weights
    return Inference(
        *choice.choose("early_exit", kernel, by_step, shapes, *arrays, only=only)
    )


def stages(
    network: SpikingNetwork, shape: tuple[int, ...], kernels, integers: bool = False
) -> list[Stage]:
    """The layers of a network on images of a shape, without batch."""
    layers: list[Stage] = []
    kernels = iter(kernels)
    for spec in network.layers:
        out: tuple[int, ...]
        if isinstance(spec, PoolSpec):
            out = (shape[0] // spec.size, shape[1] // spec.size, shape[2])
            layers.append(Stage(spec.size, None, shape, out))
        elif isinstance(spec, ConvSpec):
            kernel = next(kernels)
            window = kernel.shape[:2]
            pads = explicit_pads(network.padding, shape[:2], window, spec.strides)
            synapse = Conv(spec.strides, pads, integers)
            spikes = jax.ShapeDtypeStruct((1, *shape), kernel.dtype)
            out = jax.eval_shape(synapse.current, spikes, kernel).shape[1:]
            layers.append(Stage(spec.size, synapse, shape, out))
        else:
            shape, out = (math.prod(shape),), (spec.features,)
            next(kernels)
            layers.append(Stage(1, Dense(integers), shape, out))
        shape = out
    return layers


class _Progress(NamedTuple):
    """All layers at the end of a step; pooling layers have a potential of 0."""

    t: jax.Array
    potentials: tuple[jax.Array, ...]
    fired: tuple[jax.Array, ...]
    outputs: jax.Array  # [B, C] output potentials, frozen at the decision
    step: jax.Array
    spikes: jax.Array


def _steps(
    layers: list[Stage], num_steps: int, times, *weights
) -> tuple[jax.Array, ...]:
    """All images together, all layers a step at a time, while one is undecided:
    labels, steps and spikes."""
    by_layer = [weights[k : k + 3] for k in range(0, len(weights), 3)]
    currents = [pulse_currents(pulses, num_steps) for _, pulses, _ in by_layer]

    def advance(now: _Progress) -> _Progress:
        spikes = times == now.t.astype(times.dtype)
        counts = [_count(spikes)]
        weighted = zip(by_layer, currents, strict=True)
        potentials, fired = [], []
        for k, stage in enumerate(layers):
            potential, before = now.potentials[k], now.fired[k]
            if stage.synapse is None:
                window = (stage.size, stage.size)
                entries = taps(spikes, window, window)
                fires = functools.reduce(jnp.logical_or, entries) & ~before
            else:
                (kernel, _, threshold), reference = next(weighted)
                arriving = spikes.reshape(times.shape[0], *stage.shape)
                arriving = arriving.astype(times.dtype)
                arrived = current(stage.synapse, arriving, kernel)
                # As in the full scan: first all that comes at a step is summed.
                arrived += reference[now.t].reshape(*[1] * len(stage.out), -1)
                potential = potential + arrived
                theta = threshold.reshape(*[1] * len(stage.out), -1)
                fires = (potential >= theta) & ~before
            potentials.append(potential)
            fired.append(before | fires)
            counts.append(_count(fires))
            spikes = fires
        undecided = now.step == num_steps
        return _Progress(
            now.t + 1,
            tuple(potentials),
            tuple(fired),
            jnp.where(undecided[:, None], potentials[-1], now.outputs),
            jnp.where(undecided & spikes.any(axis=1), now.t, now.step),
            now.spikes + jnp.where(undecided[:, None], jnp.stack(counts, axis=1), 0),
        )

    end = lax.while_loop(
        lambda now: (now.t < num_steps) & jnp.any(now.step == num_steps),
        advance,
        _start(layers, num_steps, times),
    )
    # By the first spike, ties and silence alike by the potential, then by the index.
    theta = by_layer[-1][2]
    silent = (end.step == num_steps)[:, None]
    deciding = silent | (end.outputs >= theta[None])
    potentials = _response.comparable(end.outputs, theta)
    label = jnp.argmax(jnp.where(deciding, potentials, -jnp.inf), axis=1)
    return label.astype(jnp.int32), end.step, end.spikes


def _count(spikes: jax.Array) -> jax.Array:
    return jnp.sum(flat(spikes), axis=1, dtype=jnp.int32)


def _start(layers: list[Stage], num_steps: int, times: jax.Array) -> _Progress:
    batch = times.shape[0]

    def zeros(dtype) -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros((batch, *stage.out), dtype) for stage in layers)

    return _Progress(
        jnp.zeros((), jnp.int32),
        zeros(times.dtype),
        zeros(bool),
        jnp.zeros((batch, *layers[-1].out), times.dtype),
        jnp.full((batch,), num_steps, jnp.int32),
        jnp.zeros((batch, len(layers) + 1), jnp.int32),
    )
