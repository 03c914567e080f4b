"""From a configuration and a data set to a trained network.

`train` is the loop around `step` for data sets on the host, a generator of epochs;
`fit` is the same as one pure function.
"""

import collections
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax import _checks, data
from ds4nn_jax.networks import evaluation
from ds4nn_jax.networks.network import SpikingNetwork, check_params
from ds4nn_jax.networks.quantization import is_whole, quantize, real_weights
from ds4nn_jax.training import parallel
from ds4nn_jax.training.config import TrainConfig
from ds4nn_jax.training.step import (
    Params,
    StepMetrics,
    TrainState,
    init,
    kept_weights,
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
      seen: [steps of an epoch, 4] `StepMetrics` of the epoch under way, a row a step;
        the steps still to come are zero.
      best: float32, highest validation accuracy of the epochs after a regularizer's
        targets had fallen, −1 before the first.
      data: uint8 [32], a digest of the training images and labels in their order.
    """

    state: TrainState
    epoch: jax.Array | np.ndarray
    seen: np.ndarray
    best: jax.Array | np.ndarray
    data: np.ndarray


class Step(NamedTuple):
    """What `train` tells `on_step`.

    Attributes:
      number: of the step in its epoch, from 1.
      steps: of an epoch.
      metrics: of the step, on the device: who looks at them waits for it.
      checkpoint: copies what the run needs to go on after this step, and waits for it.
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
      checkpoint: where the run stands after the epoch.
      network: the configuration's, or, where it has `bits`, that of whole numbers.
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

    Raises:
      ValueError, TypeError: as `train`.
    """
    images, labels = _checks.pairs(images, labels, config.network().num_classes)
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    steps = _steps_per_epoch(len(images), config.batch_size)
    optimizer = make_optimizer(config, steps)
    init_key, *epoch_keys = jax.random.split(key, config.epochs + 1)
    count = min(config.initial_weights.sample, len(images))
    some = jax.random.choice(init_key, len(images), (count,), replace=False)
    state = init(config, optimizer, init_key, images[some])

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
        {"image": …, "label": …}: a torch DataLoader, a grain or TFDS pipeline. What can
        be iterated over once only goes on where the last epoch ended. Batch size and
        shuffling are then its own, and a checkpoint of such a run can only be gone on
        from between two epochs.
      labels: [n] integers 0 … C−1, or one-hot [n, C].
      soft_labels: [n, C] shares of the classes, for instance a teacher's, which the
        output rule gets for the labels; accuracies and the split are the labels'. Or
        [epochs, n, C], those of image i as epoch e changes it in row [e − 1, i].
        float16 will do, and a memory-mapped file.
      validation: held-out (images, labels), for the share that the configuration would
        hold out; batches have none but these.
      steps_per_epoch: of batches that do not know how many there are.
      params: first weights, to fine-tune a trained network, also one of `quantize`.
      start: a checkpoint of this same run to go on from; None: from the beginning.
      on_step: called after each step.
      mesh: of the devices that share out every batch (`parallel.data_mesh`); None: the
        default device. Sums are taken in another order, nothing else differs.

    Raises:
      ValueError, TypeError: images or labels do not fit each other, the network or the
        batch size, soft labels are of fewer epochs than the run, the initial weights
        cannot be scaled, the checkpoint is of another network, optimizer or data, or
        the batch size is no multiple of the devices.

    Example:
      >>> import ds4nn_jax as ds
      >>> digits = ds.data.load("digits")
      >>> config = ds.TrainConfig(spec="64-60-10", epochs=2)
      >>> *_, last = ds.train(config, digits.train_images, digits.train_labels)
      >>> last.validation.accuracy > 0.8
      True
    """
    run = _prepared(
        config, images, labels, soft_labels, validation, steps_per_epoch, params
    )
    if mesh is not None and config.batch_size % mesh.size:
        raise ValueError(
            f"batch_size must be a multiple of the {mesh.size} devices, "
            f"got {config.batch_size}"
        )
    if start is None:
        start = run.beginning()
    else:
        if not len(start.seen):
            start = start._replace(seen=_unseen(run.steps))
        _check_checkpoint(start, jax.eval_shape(run.beginning), run.digest)
    return _epochs(config, run, start, on_step, mesh)


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
    """What `train` starts from: first weights, no step taken.

    Arguments and errors as `train`; without steps_per_epoch, batches that do not know
    how many there are give a checkpoint with no rows in `seen`, which `train` fills in.

    Args:
      shapes: compute nothing; every leaf is then a `jax.ShapeDtypeStruct`. This is
        enough for `Checkpoints.latest`, and `train` refuses it. Always so for batches
        that can be iterated over only once: none of them is read.
    """
    once = labels is None and isinstance(images, Iterator)
    if once:
        images = _blank(config)
    counted = steps_per_epoch or labels is not None or hasattr(images, "__len__")
    run = _prepared(
        config,
        images,
        labels,
        soft_labels,
        steps=steps_per_epoch if counted else config.initial_weights.sample,
        params=params,
    )
    start = jax.eval_shape(run.beginning) if once or shapes else run.beginning()
    return start if counted and not once else start._replace(seen=_unseen(0))


def _blank(config: TrainConfig) -> list[tuple]:
    """A batch of the shape that the network takes."""
    inputs = config.network().input_size
    if inputs is None:
        raise ValueError(
            "batches that can be iterated over only once do not show their shape: "
            "pass a list of one batch instead, [(images, labels)]"
        )
    return [(np.zeros((1, inputs), np.uint8), np.zeros(1, np.int32))]


class _Run(NamedTuple):
    """A run of which everything has been checked, and nothing computed."""

    steps: int  # of an epoch
    batches: Callable[[int, int], Iterator[tuple]]  # of an epoch, after so many
    held: tuple[np.ndarray, np.ndarray] | None
    digest: np.ndarray
    beginning: Callable[[], Checkpoint]


def _prepared(
    config: TrainConfig,
    images: Any,
    labels: Any,
    soft_labels: np.ndarray | None = None,
    validation: tuple[Any, Any] | None = None,
    steps: int | None = None,
    params: Params | None = None,
) -> _Run:
    network = config.network()
    held = validation and _checks.pairs(*validation, network.num_classes)
    if labels is None:
        if soft_labels is not None:
            raise ValueError("soft labels go with images and labels as arrays")
        steps, some, batches = _loader(config, images, steps)
        digest = np.zeros(32, np.uint8)
    else:
        images, labels = _checks.pairs(images, labels, network.num_classes)
        if soft_labels is not None:
            soft_labels = np.asarray(_checks.array(soft_labels))
            _check_soft_labels(config, soft_labels, len(labels))
        kept, out = np.arange(len(labels)), np.arange(0)
        if held is None:
            kept, out = split(config, labels)
        if len(out):
            held = images[out], labels[out]
        steps = _steps_per_epoch(len(kept), config.batch_size)
        # Any of them: data sets come sorted by class. No epoch is number 0.
        order = data.epoch_permutation(len(kept), seed=config.seed, epoch=0)
        some = images[kept[order[: config.initial_weights.sample]]]
        arrays = images, labels, soft_labels
        digest = _digest(arrays)

        def batches(epoch: int, done: int) -> Iterator[tuple]:
            if not np.array_equal(_digest(arrays), digest):
                raise ValueError(
                    "the training images, labels or soft labels have changed since the "
                    "run began: give it arrays that nothing writes to, such as copies"
                )
            return _shuffled(config, kept, arrays, epoch, done)

    evaluation.advise(network, some)
    optimizer = make_optimizer(config, steps)
    if params is not None:
        if is_whole(params):
            params = real_weights(params, config.threshold)
        check_params(network, params, some)
        params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), dict(params))

    def beginning() -> Checkpoint:
        key = jax.random.key(config.seed)
        state = init(config, optimizer, key, some, params)
        zero, none = np.array(0, np.int32), np.array(-1, np.float32)
        return Checkpoint(state, zero, _unseen(steps), none, digest)

    return _Run(steps, batches, held, digest, beginning)


def _unseen(steps: int) -> np.ndarray:
    """`Checkpoint.seen` before an epoch; of no steps where their number is unknown."""
    return np.zeros((steps, len(StepMetrics._fields)), np.float32)


def _check_soft_labels(config: TrainConfig, shares: np.ndarray, images: int) -> None:
    if not config.output_rule.takes_shares:
        kind = type(config.output_rule).__name__
        raise TypeError(f"soft labels: the output rule {kind} takes classes alone")
    classes = config.network().num_classes
    if np.ndim(shares) != 3:
        _checks.shares(shares, images, classes)
        return
    if len(shares) < config.epochs:
        raise ValueError(
            f"soft labels are of {len(shares)} epochs, the run has {config.epochs}"
        )
    for epoch, each in enumerate(shares, 1):
        try:
            _checks.shares(each, images, classes)
        except (ValueError, TypeError) as error:
            raise type(error)(f"epoch {epoch}: {error}") from error


def _digest(arrays: tuple) -> np.ndarray:
    """Of images, labels and soft labels, in their order."""
    digest = hashlib.blake2b(digest_size=32)
    for array in arrays:
        if array is not None:
            array = np.ascontiguousarray(array)
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(array.data)
    return np.frombuffer(digest.digest(), np.uint8)


def split(config: TrainConfig, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images [n] that a run learns from, and of those it holds out."""
    if not config.validation:
        return np.arange(len(labels)), np.arange(0)
    labels = np.asarray(labels)
    return data.stratified_split(labels, config.validation, seed=config.seed)


def epoch_batches(config: TrainConfig, kept: np.ndarray, epoch: int) -> np.ndarray:
    """The batches of an epoch, from 1: [steps, batch size] of the indices `kept`."""
    steps = _steps_per_epoch(len(kept), config.batch_size)
    order = data.epoch_permutation(len(kept), seed=config.seed, epoch=epoch)
    return kept[order[: steps * config.batch_size]].reshape(steps, -1)


def _shuffled(config, kept, arrays, epoch: int, done: int) -> Iterator[tuple]:
    images, labels, soft = arrays
    if np.ndim(soft) == 3:
        soft = soft[epoch - 1]
    for batch in epoch_batches(config, kept, epoch)[done:]:
        shares = None if soft is None else np.asarray(soft[batch], np.float32)
        yield np.asarray(images[batch]), np.asarray(labels[batch]), shares


def _loader(config: TrainConfig, loader: Any, steps: int | None):
    """Steps of an epoch, images to begin with, and the batches of an epoch."""
    if isinstance(loader, np.ndarray | jax.Array):
        raise TypeError("labels are missing: images alone teach nothing")
    if steps is None and not hasattr(loader, "__len__"):
        raise ValueError(
            "batches that do not know how many there are need steps_per_epoch"
        )
    steps = len(loader) if steps is None else steps
    classes, sample = config.network().num_classes, config.initial_weights.sample
    ahead: list = []
    source = iter(loader)
    while sum(len(pair[0]) for pair in ahead) < sample and len(ahead) < steps:
        try:
            ahead.append(_pair(next(source), classes))
        except StopIteration:
            break
    if not ahead:
        raise ValueError("no batches to train on")
    # What can be iterated over once has given these away.
    once = itertools.chain(ahead, source) if source is loader else None

    def batches(epoch: int, done: int) -> Iterator[tuple]:
        if done:
            raise ValueError("a run on batches goes on between two epochs only")
        given, count = iter(loader) if once is None else once, 0
        for pair in itertools.islice(given, steps):
            count += 1
            yield *_pair(pair, classes), None
        if count < steps:
            raise ValueError(f"epoch {epoch} has {count} batches of {steps}")

    return steps, np.concatenate([images for images, _ in ahead])[:sample], batches


def _pair(batch: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(batch, Mapping) and {"image", "label"} <= batch.keys():
        batch = batch["image"], batch["label"]
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        told = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise TypeError(
            'a batch must be a pair (images, labels) or a mapping with "image" and '
            f'"label", got {told}'
        )
    # Copies: a loader may fill its arrays anew while a step still waits for these.
    images, labels = map(np.array, batch)
    return _checks.pairs(images, labels, classes)


def _check_checkpoint(
    start: Checkpoint, expected: Checkpoint, digest: np.ndarray
) -> None:
    def kinds(checkpoint: Checkpoint) -> dict[str, str]:
        return {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(checkpoint)
        }

    if isinstance(start.data, jax.ShapeDtypeStruct):
        raise ValueError(
            "this checkpoint has shapes but no weights: use it for "
            "`Checkpoints.latest`, and start=None to begin"
        )
    steps, per_epoch = len(start.seen), len(expected.seen)
    if steps != per_epoch:
        raise ValueError(
            f"the checkpoint is not one of this run: its epochs have {steps} steps, "
            f"expected {per_epoch}: another batch_size, or another number of images"
        )
    given, wanted = kinds(start), kinds(expected)
    for name in sorted(given.keys() | wanted.keys()):
        if given.get(name) != wanted.get(name):
            raise ValueError(
                f"the checkpoint is not one of this run: its {name} is "
                f"{given.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
            )
    if not np.array_equal(start.data, digest):
        raise ValueError(
            "the checkpoint is of a run on other data: its images or labels, or their "
            "order, are not these"
        )


def _epochs(config, run, start, on_step, mesh) -> Iterator[EpochResult]:
    same = mesh and jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = functools.partial(_step, config, run.steps, same)
    # Copies, here and in checkpoints: each step writes to the memory of its own state.
    state = _copied(start.state)
    placed: Callable = np.asarray
    everywhere: Callable = jnp.array
    if mesh is not None:
        placed = functools.partial(parallel.shared_out, mesh)
        everywhere = functools.partial(parallel.replicated, mesh)
        state = everywhere(state)
    seen, best = everywhere(start.seen), np.array(start.best)
    done = int(state.step) - int(start.epoch) * run.steps
    ahead: collections.deque[StepMetrics] = collections.deque()

    def checkpoint(complete: int) -> Checkpoint:
        at, rows = np.array(complete, np.int32), np.array(seen)
        return Checkpoint(_copied(state), at, rows, np.array(best), run.digest)

    for epoch in range(int(start.epoch) + 1, config.epochs + 1):
        for i, batch in enumerate(run.batches(epoch, done), done):
            state, seen, metrics = step(
                state, seen, *(b if b is None else placed(b) for b in batch)
            )
            ahead.append(metrics)
            if len(ahead) > _AHEAD:
                jax.block_until_ready(ahead.popleft())
            if on_step is not None:
                here = functools.partial(checkpoint, epoch - 1)
                on_step(Step(i + 1, run.steps, metrics, here))
        rows = np.array(seen)
        means = StepMetrics(*(float(np.mean(column)) for column in rows.T.copy()))
        network, params = config.network(), jax.tree.map(np.array, kept_weights(state))
        if config.bits is not None:
            network, params = quantize(network, params, bits=config.bits)
        report = None
        if run.held is not None:
            images, labels = run.held
            report = evaluation.reported(
                network, params, images, labels, config.batch_size
            )
            if epoch == config.epochs:  # before, it may still be learning
                evaluation.advise(config.network(), images, report)
        score = math.inf if report is None else report.accuracy
        settled = config.regularizer.settled(int(state.step))
        # The last epoch is kept even so, but a run that goes on must not compete with
        # what it was worth before its targets had fallen.
        last = epoch == config.epochs
        better = (settled or last) and bool(np.float32(score) >= best)
        if settled:
            best = np.maximum(best, np.float32(score))
        seen, done = everywhere(np.zeros_like(rows)), 0
        end = checkpoint(epoch)
        yield EpochResult(epoch, params, means, report, better, end, network)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _step(config, steps, same, state, seen, images, labels, soft_labels):
    """`train_step`, compiled once for all runs of a configuration in a process. Its
    metrics go into their row of `seen` as well, for the host to fetch all at once.
    `same` is the sharding of what all devices have, if there are several."""
    optimizer, row = make_optimizer(config, steps), state.step % steps
    state, metrics = train_step(config, optimizer, state, images, labels, soft_labels)
    seen = seen.at[row].set(jnp.stack(metrics, dtype=seen.dtype))
    if same is not None:
        return jax.lax.with_sharding_constraint((state, seen, metrics), same)
    return state, seen, metrics


def _copied(state: TrainState) -> TrainState:
    """On a mesh, what this process has of it: all is everywhere."""
    return jax.tree.map(lambda x: x.addressable_data(0).copy(), state)


def _steps_per_epoch(images: int, batch_size: int) -> int:
    if images < batch_size:
        raise ValueError(
            f"batch_size {batch_size} is larger than the {images} training images"
        )
    return images // batch_size
