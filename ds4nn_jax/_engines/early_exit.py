"""Early exit on CPUs: each image stops at its first output spike.

The JAX side of `early_exit_kernel`, which computes the layers of one image together, a
few time steps at a time.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax._engines.choice import call
from ds4nn_jax._engines.plan import EXIT_LANES, LAYER, NETWORK, LayerPlan, NetworkPlan
from ds4nn_jax._engines.shapes import Shape
from ds4nn_jax._engines.synapse import Conv, Dense

_PARTS = 64  # of a batch; images differ in how soon they are decided
_MOST_STEPS, _MOST_NEURONS = 2**16 - 2, 2**24  # what a spike's word can hold


class Stage(NamedTuple):
    """A layer of a network, with the shapes of its input and output."""

    size: int  # of its windows; 1 if dense
    synapse: Conv | Dense | None  # None: pooling
    shape: tuple[int, ...]  # of the input, without batch
    out: tuple[int, ...]


def fits(stages: list[Stage], num_steps: int) -> bool:
    """Whether the kernel can compute these layers: it has no strides, and a spike is
    one 64-bit word."""
    neurons = max(math.prod(shape) for s in stages for shape in (s.shape, s.out))
    strides = {s.synapse.strides for s in stages if isinstance(s.synapse, Conv)}
    small = num_steps <= _MOST_STEPS and neurons <= _MOST_NEURONS
    return small and strides <= {(1, 1)}


def results(stages: list[Stage], batch: int) -> list[Any]:
    """Shapes of labels [B], steps [B], and spikes of the input and each layer [B, L+1],
    up to and including the decision step."""
    shapes = (batch,), (batch,), (batch, len(stages) + 1)
    return [Shape(shape, jnp.int32) for shape in shapes]


def decide(
    stages: list[Stage], num_steps: int, times: jax.Array, *weights: jax.Array
) -> list[jax.Array]:
    """As `results` says. `weights` are kernel, pulses [P, O] and thresholds [O] of each
    layer that has weights, one layer behind the other."""
    by_layer = [weights[k : k + 3] for k in range(0, len(weights), 3)]
    pulses = [len(rows) for _, rows, _ in by_layer]
    plan = _plan(stages, pulses, len(times), num_steps)
    rows = jnp.concatenate([_padded(*arrays) for arrays in by_layer])
    shapes = results(stages, len(times))
    return [*call("early_exit", times.dtype, shapes, plan, times, rows)]


def _padded(kernel: jax.Array, pulses: jax.Array, threshold: jax.Array) -> jax.Array:
    """Flat rows of weights, then of thresholds, in whole blocks of lanes."""
    rows = jnp.concatenate([kernel.reshape(-1, kernel.shape[-1]), pulses])
    idle = -rows.shape[1] % EXIT_LANES
    rows = jnp.pad(rows, ((0, 0), (0, idle)))
    never = jnp.pad(threshold, (0, idle), constant_values=jnp.inf)
    return jnp.concatenate([rows.ravel(), never])


def _plan(
    stages: list[Stage], pulses: list[int], batch: int, num_steps: int
) -> np.ndarray:
    """The kernel's words: sizes, layers, orders of windows."""
    layers: list[LayerPlan] = []
    orders: list[np.ndarray] = []
    weights = potentials = pooled = events = 0
    order_at = len(NETWORK) + len(stages) * len(LAYER)
    references = iter(pulses)
    for stage, following in zip(stages, (*stages[1:], None), strict=True):
        # A dense layer has images of one pixel.
        image, after = (1, 1, *stage.shape)[-3:], (1, 1, *stage.out)[-3:]
        top = left = 0
        if isinstance(stage.synapse, Conv):
            (top, _), (left, _) = stage.synapse.pads
        geometry = *image, stage.size, stage.size, top, left, *after
        layer = LayerPlan(stage.synapse is None, *geometry)
        stride = -(-stage.out[-1] // EXIT_LANES) * EXIT_LANES
        layer = layer._replace(stride=stride, order=order_at)
        positions = math.prod(stage.out[:-1])
        if stage.synapse is None:
            order = _windows(stage)
            layer = layer._replace(potentials=pooled)
            pooled += positions * stage.out[-1]
        else:
            order = np.arange(positions)
            if following is not None and following.synapse is None:
                # Windows of one pooling window follow each other, the rest comes last.
                windows = _windows(following)
                order = np.argsort(windows % (windows.max() + 2), kind="stable")
            layer = layer._replace(weights=weights, potentials=potentials)
            layer = layer._replace(pulses=next(references))
            size = layer.rows * layer.columns * layer.inputs + layer.pulses
            weights += (size + 1) * layer.stride
            potentials += positions * layer.stride
            events = max(events, positions * (size + 1))
        layers.append(layer._replace(visits=len(order)))
        orders.append(order)
        order_at += len(order)
    sizes = NetworkPlan(
        images=batch,
        layers=len(stages),
        steps=num_steps,
        parts=min(batch, _PARTS),
        potentials=potentials,
        pooled=pooled,
        places=max(math.prod(stage.out[:-1]) for stage in stages),
        largest=max(math.prod(s) for stage in stages for s in (stage.shape, stage.out)),
        events=events,
    )
    return np.concatenate([sizes, np.ravel(layers), *orders])


def _windows(pool: Stage) -> np.ndarray:
    """The pooling window of each input pixel, −1 for pixels of no window."""
    (height, width, _), size = pool.shape, pool.size
    y, x = np.divmod(np.arange(height * width), width)
    y, x = y // size, x // size
    inside = (y < pool.out[0]) & (x < pool.out[1])
    return np.where(inside, y * pool.out[1] + x, -1)
