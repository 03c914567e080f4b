"""From a configuration and a data set to a trained network.

`train` is the loop around `step` for data sets on the host, a generator of epochs;
`fit` is the same as one pure function.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax import _checks, analysis, data, parallel
from ds4nn_jax.config import TrainConfig
from ds4nn_jax.step import (
    Params,
    StepMetrics,
    TrainState,
    init,
    kept_weights,
    make_optimizer,
    train_step,
)


class Snapshot(NamedTuple):
    """Where a training run stands, all that it needs to go on: a pytree of arrays.

    Attributes:
      state: after `state.step` steps.
      epoch: int32, how many epochs are complete, validation and all.
      seen: [steps of an epoch, 4] `StepMetrics` of the epoch under way, a row a step;
        the steps still to come are zero.
      best: float32, highest validation accuracy so far, −1 before the first.
    """

    state: TrainState
    epoch: jax.Array | np.ndarray
    seen: np.ndarray
    best: jax.Array | np.ndarray


class Step(NamedTuple):
    """What `train` tells `on_step`.

    Attributes:
      number: of the step in its epoch, from 1.
      steps: of an epoch.
      metrics: of the step.
      snapshot: copies what the run needs to go on after this step.
    """

    number: int
    steps: int
    metrics: StepMetrics
    snapshot: Callable[[], Snapshot]


class EpochResult(NamedTuple):
    """What `train` yields after every epoch.

    Attributes:
      epoch: from 1.
      params: after the epoch.
      train: means over the epoch's batches, while the weights were changing.
      validation: report on the held-out images, None without any.
      best: whether it is the best epoch so far: highest strict validation accuracy, the
        later of equals, whose steps were smaller; without validation every one is.
        While a rate guard's budgets still fall none is.
      snapshot: where the run stands after the epoch.
    """

    epoch: int
    params: Params
    train: StepMetrics
    validation: analysis.Report | None
    best: bool
    snapshot: Snapshot


def fit(
    config: TrainConfig, key: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[Params, StepMetrics]:
    """A whole training run as one pure function: `jax.vmap` it over keys for seeds.

    For data that fits on the device: every epoch is one `lax.scan` over its batches.

    Args:
      config: validation and seed are not used: all images train, `key` is the seed.
      key: random key of the initial weights and the shuffling.
      images: [n, …].
      labels: [n].

    Returns:
      The last parameters, or their average if the configuration asks for it, and the
      metrics of every epoch, each [epochs].

    Raises:
      ValueError, TypeError: as `train`.
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    analysis.check_pairs(images, labels, config.network().num_classes)
    steps = _steps_per_epoch(len(images), config.batch_size)
    optimizer = make_optimizer(config, steps)
    init_key, *epoch_keys = jax.random.split(key, config.epochs + 1)
    state = init(config, optimizer, init_key, images[: config.initial_weights.sample])

    def step(state: TrainState, batch: jax.Array):
        return train_step(config, optimizer, state, images[batch], labels[batch])

    def epoch(state: TrainState, key: jax.Array):
        order = jax.random.permutation(key, len(images))
        batches = order[: steps * config.batch_size].reshape(steps, -1)
        state, metrics = jax.lax.scan(step, state, batches)
        return state, jax.tree.map(jnp.mean, metrics)

    state, metrics = jax.lax.scan(epoch, state, jnp.stack(epoch_keys))
    return kept_weights(state), metrics


def train(
    config: TrainConfig,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    soft_labels: np.ndarray | None = None,
    start: Snapshot | None = None,
    on_step: Callable[[Step], None] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[EpochResult]:
    """Trains on images in host memory, yielding after every epoch.

    Everything is checked, and the weights are initialised, before this returns; the
    first epoch starts with the first `next`. The shuffling of an epoch depends on
    (seed, epoch) alone and the augmentation of a step on (seed, step), so a run that
    starts from a snapshot of another gives the same bits. Best parameters are those of
    the last result whose `best` is true.

    Args:
      config: the run.
      images: [n, …] uint8, or floating in [0, 1].
      labels: [n] integers 0 … C−1.
      soft_labels: [n, C] shares of the classes, for instance a teacher's, which the
        output rule gets for the labels; accuracies and the split are the labels'.
      start: a snapshot of this same run to go on from; None: from the beginning.
      on_step: called after each step.
      mesh: of the devices that share out every batch (`parallel.data_mesh`); None: the
        default device. Sums are taken in another order, nothing else differs.

    Raises:
      ValueError, TypeError: images or labels do not fit each other, the network or the
        batch size, the initial weights cannot be scaled, the snapshot is of another
        network, optimizer or number of images, or the batch size is no multiple of the
        devices.
    """
    run = _prepared(config, images, labels)
    if soft_labels is not None:
        if not config.output_rule.takes_shares:
            kind = type(config.output_rule).__name__
            raise TypeError(f"soft labels: the output rule {kind} takes classes alone")
        _checks.shares(soft_labels, len(labels), config.network().num_classes)
    if mesh is not None and config.batch_size % mesh.size:
        raise ValueError(
            f"batch_size must be a multiple of the {mesh.size} devices, "
            f"got {config.batch_size}"
        )
    if start is None:
        start = run.beginning()
    else:
        _check_snapshot(start, jax.eval_shape(run.beginning))
    arrays = images, labels, soft_labels
    return _epochs(config, run, start, arrays, on_step, mesh)


def first_snapshot(
    config: TrainConfig, images: np.ndarray, labels: np.ndarray
) -> Snapshot:
    """What `train` starts from: initial weights, no step taken.

    Arguments and errors as `train`.
    """
    return _prepared(config, images, labels).beginning()


class _Prepared(NamedTuple):
    """A run of which everything has been checked, and nothing computed."""

    kept: np.ndarray
    held: np.ndarray
    beginning: Callable[[], Snapshot]


def _prepared(config: TrainConfig, images: np.ndarray, labels: np.ndarray) -> _Prepared:
    analysis.check_pairs(images, labels, config.network().num_classes)
    kept, held = np.arange(len(labels)), np.arange(0)
    if config.validation:
        kept, held = data.stratified_split(labels, config.validation, seed=config.seed)
    steps = _steps_per_epoch(len(kept), config.batch_size)
    optimizer = make_optimizer(config, steps)

    def beginning() -> Snapshot:
        some = images[kept[: config.initial_weights.sample]]
        state = init(config, optimizer, jax.random.key(config.seed), some)
        seen = np.zeros((steps, len(StepMetrics._fields)), np.float32)
        return Snapshot(state, np.array(0, np.int32), seen, np.array(-1, np.float32))

    return _Prepared(kept, held, beginning)


def _check_snapshot(start: Snapshot, expected: Snapshot) -> None:
    def kinds(snapshot: Snapshot) -> dict:
        leaves = jax.tree_util.tree_leaves_with_path(snapshot)
        return {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in leaves
        }

    given, wanted = kinds(start), kinds(expected)
    for name in sorted(given.keys() | wanted.keys()):
        if given.get(name) != wanted.get(name):
            raise ValueError(
                f"the snapshot is not one of this run: its {name} is "
                f"{given.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
            )


def _epochs(config, run, start, arrays, on_step, mesh) -> Iterator[EpochResult]:
    kept, held = run.kept, run.held
    images, labels, _ = arrays
    step = functools.partial(_step, config, len(start.seen), mesh)
    # Copies, here and in snapshots: each step writes to the memory of its own state.
    state = _copied(start.state)
    placed: Callable = np.asarray
    if mesh is not None:
        state = parallel.replicated(mesh, state)
        placed = functools.partial(parallel.shared_out, mesh)
    seen, best = np.array(start.seen), np.array(start.best)
    steps = len(seen)
    done = int(state.step) - int(start.epoch) * steps

    def snapshot(complete: int) -> Snapshot:
        return Snapshot(
            _copied(state), np.array(complete, np.int32), seen.copy(), np.array(best)
        )

    for epoch in range(int(start.epoch) + 1, config.epochs + 1):
        order = data.epoch_permutation(len(kept), seed=config.seed, epoch=epoch)
        for i in range(done, steps):
            batch = kept[order[i * config.batch_size : (i + 1) * config.batch_size]]
            taken = (None if a is None else placed(a[batch]) for a in arrays)
            state, metrics = step(state, *taken)
            metrics = jax.device_get(metrics)
            seen[i] = metrics
            if on_step is not None:
                here = functools.partial(snapshot, epoch - 1)
                on_step(Step(i + 1, steps, metrics, here))
        means = StepMetrics(*(float(np.mean(column)) for column in seen.T.copy()))
        params = jax.tree.map(np.array, kept_weights(state))
        report = None
        if len(held):
            report = analysis.evaluate(
                config.network(),
                params,
                images[held],
                labels[held],
                batch_size=config.batch_size,
            )
        score = math.inf if report is None else report.accuracy
        settled = epoch == config.epochs or config.guard.settled(int(state.step))
        better = settled and bool(np.float32(score) >= best)
        best = np.maximum(best, np.float32(score if settled else -1))
        seen, done = np.zeros_like(seen), 0
        yield EpochResult(epoch, params, means, report, better, snapshot(epoch))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _step(config, steps, mesh, state, images, labels, soft_labels):
    """`train_step`, compiled once for all runs of a configuration in a process."""
    optimizer = make_optimizer(config, steps)
    return train_step(config, optimizer, state, images, labels, mesh, soft_labels)


def _copied(state: TrainState) -> TrainState:
    """On a mesh, what this process has of it: all is everywhere."""
    return jax.tree.map(lambda x: x.addressable_data(0).copy(), state)


def _steps_per_epoch(images: int, batch_size: int) -> int:
    if images < batch_size:
        raise ValueError(
            f"batch_size {batch_size} is larger than the {images} training images"
        )
    return images // batch_size
