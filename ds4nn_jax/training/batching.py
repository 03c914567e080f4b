"""The batches of a run: from arrays in host memory, or from a loader.

Both kinds have the `steps` of an epoch, a `sample` of the images for the initial
weights, the images `held_out` for validation, a `digest` of the data, and `epoch`,
which yields triples (images, labels, soft labels or None).
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ds4nn_jax import _checks, data
from ds4nn_jax.training.config import TrainConfig

Pair = tuple[np.ndarray, np.ndarray]  # images, labels


class Arrays:
    """Batches of arrays [n, …] in an order that (seed, epoch) alone decides."""

    def __init__(
        self, config: TrainConfig, images, labels, soft_labels, held_out: Pair | None
    ):
        images, labels = _checks.pairs(images, labels, config.network().num_classes)
        if soft_labels is not None:
            soft_labels = np.asarray(_checks.array(soft_labels))
            _check_soft_labels(config, soft_labels, len(labels))
        kept = np.arange(len(labels))
        if held_out is None:
            kept, out = split(config, labels)
            held_out = (images[out], labels[out]) if len(out) else None
        self._config, self._kept = config, kept
        self._arrays = images, labels, soft_labels
        self.held_out = held_out
        self.steps = steps_per_epoch(len(kept), config.batch_size)
        # Any of them: data sets come sorted by class. No epoch is number 0.
        order = data.epoch_permutation(len(kept), seed=config.seed, epoch=0)
        self.sample = images[kept[order[: config.initial_weights.sample]]]
        self.digest = _digest(self._arrays)

    def epoch(self, number: int, skip: int) -> Iterator[tuple]:
        """The batches of an epoch, from 1, without the first `skip`."""
        if not np.array_equal(_digest(self._arrays), self.digest):
            raise ValueError(
                "the training images, labels or soft labels have changed since the "
                "run began: give it arrays that nothing writes to, such as copies"
            )
        images, labels, soft = self._arrays
        if soft is not None and soft.ndim == 3:
            soft = soft[number - 1]
        for batch in epoch_batches(self._config, self._kept, number)[skip:]:
            rows = None if soft is None else np.asarray(soft[batch], np.float32)
            yield np.asarray(images[batch]), np.asarray(labels[batch]), rows


class Loader:
    """Batches as a loader gives them: an iterable, or an iterator that goes on where
    the last epoch ended. `steps` is None if nobody says how many an epoch has."""

    def __init__(self, config: TrainConfig, loader, steps, held_out: Pair | None):
        if isinstance(loader, np.ndarray | jax.Array):
            raise TypeError("labels are missing: images alone teach nothing")
        if steps is None and hasattr(loader, "__len__"):
            steps = len(loader)
        self._loader, self._classes = loader, config.network().num_classes
        self.steps, self.held_out = steps, held_out
        self.digest = np.zeros(32, np.uint8)
        source, sample = iter(loader), config.initial_weights.sample
        ahead: list[Pair] = []
        for batch in itertools.islice(source, steps):
            ahead.append(_pair(batch, self._classes))
            if sum(len(labels) for _, labels in ahead) >= sample:
                break
        if not ahead:
            raise ValueError("no batches to train on")
        self.sample = np.concatenate([images for images, _ in ahead])[:sample]
        if source is loader:  # an iterator does not give these again
            self._loader = itertools.chain(ahead, source)

    def epoch(self, number: int, skip: int) -> Iterator[tuple]:
        """The batches of an epoch, from 1."""
        if skip:
            raise ValueError("a run on batches goes on between two epochs only")
        count = 0
        for batch in itertools.islice(self._loader, self.steps):
            yield *_pair(batch, self._classes), None
            count += 1
        if self.steps and count < self.steps:
            raise ValueError(f"epoch {number} has {count} batches of {self.steps}")


def split(config: TrainConfig, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images [n] that a run learns from, and of those it holds out."""
    if not config.validation:
        return np.arange(len(labels)), np.arange(0)
    labels = np.asarray(labels)
    return data.stratified_split(labels, config.validation, seed=config.seed)


def steps_per_epoch(images: int, batch_size: int) -> int:
    if images < batch_size:
        raise ValueError(
            f"batch_size {batch_size} is larger than the {images} training images"
        )
    return images // batch_size


def epoch_batches(config: TrainConfig, kept: np.ndarray, epoch: int) -> np.ndarray:
    """The batches of an epoch, from 1: [steps, batch size] of the indices `kept`."""
    steps = steps_per_epoch(len(kept), config.batch_size)
    order = data.epoch_permutation(len(kept), seed=config.seed, epoch=epoch)
    return kept[order[: steps * config.batch_size]].reshape(steps, -1)


def _pair(batch: Any, classes: int) -> Pair:
    if isinstance(batch, Mapping) and {"image", "label"} <= batch.keys():
        batch = batch["image"], batch["label"]
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        kind = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise TypeError(
            'a batch must be a pair (images, labels) or a mapping with "image" and '
            f'"label", got {kind}'
        )
    # Copies: a loader may fill its arrays anew while a step still waits for these.
    images, labels = map(np.array, batch)
    return _checks.pairs(images, labels, classes)


def _check_soft_labels(config: TrainConfig, soft: np.ndarray, images: int) -> None:
    if not config.output_rule.takes_soft_labels:
        kind = type(config.output_rule).__name__
        raise TypeError(f"soft labels: the output rule {kind} takes classes alone")
    epochs = soft if soft.ndim == 3 else soft[None]
    if soft.ndim == 3 and len(soft) < config.epochs:
        raise ValueError(
            f"soft labels are of {len(soft)} epochs, the run has {config.epochs}"
        )
    for rows in epochs:
        _checks.soft_labels(rows, images, config.network().num_classes)


def _digest(arrays: tuple) -> np.ndarray:
    """Of images, labels and soft labels, in their order."""
    digest = hashlib.blake2b(digest_size=32)
    for array in arrays:
        if array is not None:
            array = np.ascontiguousarray(array)
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(array.data)
    return np.frombuffer(digest.digest(), np.uint8)
