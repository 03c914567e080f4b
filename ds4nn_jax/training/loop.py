"""From a configuration and a data set to a trained network.

`train` is the loop around `step` for data on the host, a generator of epochs; `fit` is
the same as one pure function.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax import _checks
from ds4nn_jax.networks import evaluation
from ds4nn_jax.networks.network import SpikingNetwork, check_params
from ds4nn_jax.networks.quantization import is_whole, quantize, real_weights
from ds4nn_jax.training import batching, parallel
from ds4nn_jax.training.batching import Arrays, Loader
from ds4nn_jax.training.config import TrainConfig
from ds4nn_jax.training.optimizers import averaged
from ds4nn_jax.training.step import (
    Params,
    StepMetrics,
    TrainState,
    init,
    make_optimizer,
    train_step,
)

# Steps that may wait for the device: a fast host would pile up batches.
_AHEAD = 32


class Checkpoint(NamedTuple):
    """Where a training run stands, all that it needs to go on: a pytree of arrays.

    Attributes:
      state: after `state.step` steps.
      epoch: int32, how many epochs are complete, validation and all.
      metrics: [steps of an epoch, 4] `StepMetrics` of the current epoch, a row a step;
        the steps still to come are zero.
      best: float32, highest validation accuracy of the epochs after a regularizer's
        targets had fallen, −1 before the first.
      data: uint8 [32], a digest of the training images and labels in their order.
    """

    state: TrainState
    epoch: jax.Array | np.ndarray
    metrics: np.ndarray
    best: jax.Array | np.ndarray
    data: np.ndarray


class Step(NamedTuple):
    """What `on_step` gets after a step.

    Attributes:
      number: of the step in its epoch, from 1.
      steps: of an epoch.
      metrics: of the step, on the device: reading them waits for it.
      checkpoint: gives a copy of the state of the run, and waits for the step.
    """

    number: int
    steps: int
    metrics: StepMetrics
    checkpoint: Callable[[], Checkpoint]


class EpochResult(NamedTuple):
    """What `train` yields after every epoch.

    Attributes:
      epoch: from 1.
      params: after the epoch, those of `network`.
      train: means over the epoch's batches, while the weights were changing.
      validation: report on the held-out images, None without any.
      best: whether it is the best epoch so far: highest strict validation accuracy, the
        later of equals, whose steps were smaller; without validation every one is.
        While a regularizer's targets still fall none is but the last.
      checkpoint: the state of the run after the epoch.
      network: the configuration's, or, where it has `bits`, that of integers.
    """

    epoch: int
    params: Params
    train: StepMetrics
    validation: evaluation.Report | None
    best: bool
    checkpoint: Checkpoint
    network: SpikingNetwork


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
      metrics of every epoch, each [epochs]. Parameters are in mV also where there are
      `bits`: `quantize` makes them whole.
    """
    images, labels = _checks.pairs(images, labels, config.network().num_classes)
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    steps = batching.steps_per_epoch(len(images), config.batch_size)
    optimizer = make_optimizer(config, steps)
    init_key, *epoch_keys = jax.random.split(key, config.epochs + 1)
    count = min(config.initial_weights.sample, len(images))
    sample = jax.random.choice(init_key, len(images), (count,), replace=False)
    state = init(config, optimizer, init_key, images[sample])

    def step(state: TrainState, batch: jax.Array):
        return train_step(config, optimizer, state, images[batch], labels[batch])

    def epoch(state: TrainState, key: jax.Array):
        order = jax.random.permutation(key, len(images))
        batches = order[: steps * config.batch_size].reshape(steps, -1)
        state, metrics = jax.lax.scan(step, state, batches)
        return state, jax.tree.map(jnp.mean, metrics)

    state, metrics = jax.lax.scan(epoch, state, jnp.stack(epoch_keys))
    return averaged(state.optimizer, state.params), metrics


def train(
    config: TrainConfig,
    images: Any,
    labels: Any = None,
    *,
    soft_labels: np.ndarray | None = None,
    validation: tuple[Any, Any] | None = None,
    steps_per_epoch: int | None = None,
    params: Params | None = None,
    start: Checkpoint | None = None,
    on_step: Callable[[Step], None] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[EpochResult]:
    """Trains on images in host memory, or on batches as they come, yielding after every
    epoch.

    Everything is checked, and the weights are initialised, before this returns; the
    first epoch starts with the first `next`. The shuffling of an epoch depends on
    (seed, epoch) alone and the augmentation of a step on (seed, step), so a run that
    starts from a checkpoint of another gives the same bits. Best parameters are those
    of the last result whose `best` is true.

    Args:
      config: the run.
      images: [n, …] uint8, or floating in [0, 1]. Without labels: the batches of an
        epoch, anything to iterate over that gives pairs (images, labels) or mappings
        {"image": …, "label": …}: a torch DataLoader, a grain or TFDS pipeline. A
        one-shot iterator continues where the last epoch ended. Batch size and
        shuffling are then its own, and such a run can only go on from a checkpoint
        between two epochs.
      labels: [n] integers 0 … C−1, or one-hot [n, C].
      soft_labels: [n, C] class probabilities, for instance a teacher's, which the
        output rule gets instead of the labels; accuracies and the split use the labels.
        Or [epochs, n, C]: those of image i as epoch e augments it in row [e − 1, i].
        float16 is enough, and a memory-mapped file works.
      validation: held-out (images, labels), instead of the share that the configuration
        holds out; batches have none but these.
      steps_per_epoch: of batches that do not know how many there are.
      params: initial weights, to fine-tune a trained network, also one of `quantize`.
      start: a checkpoint of this same run to go on from; None: from the beginning.
      on_step: called after each step.
      mesh: of the devices that share out every batch (`parallel.data_mesh`); None: the
        default device. Sums are taken in another order, nothing else differs.

    Example:
      >>> import ds4nn_jax as ds
      >>> digits = ds.data.load("digits")
      >>> config = ds.TrainConfig(spec="64-60-10", epochs=2)
      >>> *_, last = ds.train(config, digits.train_images, digits.train_labels)
      >>> last.validation.accuracy > 0.8
      True
    """
    if labels is None and steps_per_epoch is None and not hasattr(images, "__len__"):
        raise ValueError("batches without a length need steps_per_epoch")
    batches = _batches(config, images, labels, soft_labels, steps_per_epoch, validation)
    beginning = _beginning(config, batches, params)
    if mesh is not None and config.batch_size % mesh.size:
        raise ValueError(
            f"batch_size must be a multiple of the {mesh.size} devices, "
            f"got {config.batch_size}"
        )
    if start is None:
        start = beginning()
    else:
        if not len(start.metrics):
            start = start._replace(metrics=_no_metrics(batches.steps or 0))
        _check_checkpoint(start, jax.eval_shape(beginning), batches.digest)
    return _epochs(config, batches, start, on_step, mesh)


def initial_checkpoint(
    config: TrainConfig,
    images: Any,
    labels: Any = None,
    *,
    soft_labels: np.ndarray | None = None,
    steps_per_epoch: int | None = None,
    params: Params | None = None,
    shapes: bool = False,
) -> Checkpoint:
    """Where `train` starts: initial weights, no step taken.

    Arguments and errors as `train`. Batches that do not know how many there are need no
    steps_per_epoch: the checkpoint then has no rows of metrics, and `train` adds them.

    Args:
      shapes: compute nothing; every leaf is then a `jax.ShapeDtypeStruct`. This is
        enough for `Checkpoints.latest`, and `train` refuses it. Always so for batches
        that can be iterated over only once: none of them is read.
    """
    if labels is None and isinstance(images, Iterator):  # of which none may be lost
        inputs, shapes = config.network().input_size, True
        if inputs is None:
            raise ValueError(
                "batches that can be iterated over only once do not show their shape: "
                "pass a list of one batch instead, [(images, labels)]"
            )
        images = [(np.zeros((1, inputs), np.uint8), np.zeros(1, np.int32))]
    batches = _batches(config, images, labels, soft_labels, steps_per_epoch)
    beginning = _beginning(config, batches, params)
    return jax.eval_shape(beginning) if shapes else beginning()


def _batches(config, images, labels, soft_labels, steps, validation=None):
    """Of arrays, or of a loader if there are no labels."""
    classes = config.network().num_classes
    held_out = validation and _checks.pairs(*validation, classes)
    if labels is not None:
        return Arrays(config, images, labels, soft_labels, held_out)
    if soft_labels is not None:
        raise ValueError("soft labels go with images and labels as arrays")
    return Loader(config, images, steps, held_out)


def _beginning(
    config: TrainConfig, batches: Arrays | Loader, params: Params | None
) -> Callable[[], Checkpoint]:
    """What computes the first checkpoint; refuses here what does not fit."""
    network = config.network()
    evaluation.advise(network, batches.sample)
    optimizer = make_optimizer(config, batches.steps or 1)
    if params is not None:
        if is_whole(params):
            params = real_weights(params, config.threshold)
        check_params(network, params, batches.sample)
        params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), dict(params))

    def beginning() -> Checkpoint:
        key = jax.random.key(config.seed)
        return Checkpoint(
            state=init(config, optimizer, key, batches.sample, params),
            epoch=np.array(0, np.int32),
            metrics=_no_metrics(batches.steps or 0),
            best=np.array(-1, np.float32),
            data=batches.digest,
        )

    return beginning


def _no_metrics(steps: int) -> np.ndarray:
    """`Checkpoint.metrics` before an epoch."""
    return np.zeros((steps, len(StepMetrics._fields)), np.float32)


def _check_checkpoint(
    start: Checkpoint, expected: Checkpoint, digest: np.ndarray
) -> None:
    if isinstance(start.data, jax.ShapeDtypeStruct):
        raise ValueError(
            "this checkpoint has shapes but no weights: use it for "
            "`Checkpoints.latest`, and start=None to begin"
        )
    actual, right = (
        {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(checkpoint)
        }
        for checkpoint in (start, expected)
    )
    for name in sorted(actual.keys() | right.keys()):
        if actual.get(name) != right.get(name):
            raise ValueError(
                "the checkpoint is not one of this run, but of another network, "
                f"optimizer, batch_size or number of images: its {name} is "
                f"{actual.get(name)}, expected {right.get(name)}"
            )
    if not np.array_equal(start.data, digest):
        raise ValueError(
            "the checkpoint is of a run on other data: its images, labels or "
            "their order differ"
        )


def _epochs(config, batches, start, on_step, mesh) -> Iterator[EpochResult]:
    steps = batches.steps
    everywhere = mesh and jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = functools.partial(_step, config, steps, everywhere)
    # Copies, here and in checkpoints: each step writes to the memory of its own state.
    state = _copied(start.state)
    place: Callable = np.asarray
    replicate: Callable = jnp.array
    if mesh is not None:
        place = functools.partial(parallel.shared_out, mesh)
        replicate = functools.partial(parallel.replicated, mesh)
        state = replicate(state)
    rows, best = replicate(start.metrics), np.array(start.best)
    skip = int(state.step) - int(start.epoch) * steps
    ahead: collections.deque[StepMetrics] = collections.deque()

    def checkpoint(epoch: int) -> Checkpoint:
        complete = np.array(epoch, np.int32)
        metrics, score = np.array(rows), np.array(best)
        return Checkpoint(_copied(state), complete, metrics, score, batches.digest)

    for epoch in range(int(start.epoch) + 1, config.epochs + 1):
        for number, batch in enumerate(batches.epoch(epoch, skip), skip + 1):
            state, rows, metrics = step(state, rows, *jax.tree.map(place, batch))
            ahead.append(metrics)
            if len(ahead) > _AHEAD:
                jax.block_until_ready(ahead.popleft())
            if on_step is not None:
                here = functools.partial(checkpoint, epoch - 1)
                on_step(Step(number, steps, metrics, here))
        means = StepMetrics(*np.mean(np.array(rows).T.copy(), axis=1).tolist())
        rows, skip = replicate(_no_metrics(steps)), 0
        last = epoch == config.epochs
        network, params, report = _validated(config, batches, state, last)
        score = np.float32(math.inf if report is None else report.accuracy)
        settled = config.regularizer.settled(int(state.step))
        # The last epoch is kept even so, but a run that goes on must not compete with
        # what it was worth before its targets had fallen.
        better = (settled or last) and bool(score >= best)
        if settled:
            best = np.maximum(best, score)
        yield EpochResult(
            epoch, params, means, report, better, checkpoint(epoch), network
        )


def _validated(
    config: TrainConfig, batches: Arrays | Loader, state: TrainState, last: bool
) -> tuple[SpikingNetwork, Params, evaluation.Report | None]:
    """The network and weights after an epoch, and their report."""
    network, params = config.network(), averaged(state.optimizer, state.params)
    params = jax.tree.map(np.array, params)
    if config.bits is not None:
        network, params = quantize(network, params, bits=config.bits)
    if batches.held_out is None:
        return network, params, None
    images, labels = batches.held_out
    report = evaluation.reported(network, params, images, labels, config.batch_size)
    if last:  # before, it may still be learning
        evaluation.advise(config.network(), images, report)
    return network, params, report


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _step(config, steps, everywhere, state, rows, images, labels, soft_labels):
    """`train_step`, compiled once for all runs of a configuration in a process. Its
    metrics also go into their row, for the host to fetch all at once. `everywhere` is
    the sharding of state and metrics on several devices."""
    optimizer, row = make_optimizer(config, steps), state.step % steps
    state, metrics = train_step(config, optimizer, state, images, labels, soft_labels)
    rows = rows.at[row].set(jnp.stack(metrics, dtype=rows.dtype))
    if everywhere is not None:
        return jax.lax.with_sharding_constraint((state, rows, metrics), everywhere)
    return state, rows, metrics


def _copied(state: TrainState) -> TrainState:
    """This process's copy; on a mesh the state is replicated."""
    return jax.tree.map(lambda x: x.addressable_data(0).copy(), state)
