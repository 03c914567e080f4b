"""A teacher: a residual CNN that gives soft labels for every epoch of a student's run.

    python -m experiments.teacher --dataset=fashion_mnist \\
        --flagfile=experiments/flagfiles/fashion.cfg --soft_labels=labels.npy

trains it on the images that a run of those flags learns from, none of those that it
holds out, and writes its softmax for the very images that the student sees in each
epoch, [epochs, N, classes] float16 for `--soft_labels`: batches and changes of images
follow from the flags. A student with another seed, batch size, augmentation, share held
out or more epochs sees others, and wants soft labels of its own. Images that an epoch
leaves out have the softmax of the plain image. Where the student sees mirrored images,
an image and its mirror image have the mean of both. All other flags are the student's.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import experiments
from ds4nn_jax import data
from ds4nn_jax._files import atomic_file
from ds4nn_jax.cli import flags, progress
from ds4nn_jax.networks import inference
from ds4nn_jax.training import batching
from ds4nn_jax.training.augmentation import Augmentation
from ds4nn_jax.training.config import TrainConfig

_SMOOTH = 0.05  # of the labels that the teacher learns from
_BATCH = 256
_RATE = 0.2  # of learning
_DECAY = 5e-4  # of its kernels
_WARM_UP = 0.15  # share of its steps


class ResidualNetwork(nn.Module):
    """A wide residual network: uint8 [B, H, W, C] to logits, float32.

    Attributes:
      width: times 16, 32 and 64 features.
      blocks: of two layers for each of the three.
      classes: number of outputs.
      mean: of the pixels.
      deviation: standard, of the pixels.
    """

    width: int
    blocks: int
    classes: int
    mean: float
    deviation: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        narrow = jax.default_backend() != "cpu"
        kind = dict(dtype=jnp.bfloat16 if narrow else jnp.float32)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, **kind
        )
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=init, **kind)
        x = (images.astype(jnp.float32) - self.mean) / self.deviation
        x = conv(16, (3, 3))(x)
        for features in (16 * self.width, 32 * self.width, 64 * self.width):
            for block in range(self.blocks):
                stride = 2 if block == 0 and features > 16 * self.width else 1
                y = nn.relu(norm()(x))
                if block == 0:
                    x = conv(features, (1, 1), stride)(y)
                y = nn.relu(norm()(conv(features, (3, 3), stride)(y)))
                x = x + conv(features, (3, 3))(y)
        x = nn.relu(norm()(x)).astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.classes)(x)


def erase(key: jax.Array, images: jax.Array) -> jax.Array:
    """Covers a rectangle of each image, with probability ½, with noise: uint8
    [B, H, W, C]. Its sides are from an eighth to a half of the image's."""
    sides = jnp.array(images.shape[1:3], jnp.float32)
    keys = jax.random.split(key, 4)
    chosen = jax.random.bernoulli(keys[0], jnp.float32(0.5), (len(images), 1, 1, 1))
    pair = (len(images), 2)
    size = sides * jax.random.uniform(keys[1], pair, minval=1 / 8, maxval=1 / 2)
    first = (sides - size) * jax.random.uniform(keys[2], pair)
    covered = []
    for axis in (0, 1):
        at = jnp.arange(images.shape[1 + axis]) + 0.5 - first[:, axis, None]
        covered.append((at >= 0) & (at <= size[:, axis, None]))
    inside = covered[0][:, :, None, None] & covered[1][:, None, :, None]
    noise = jax.random.bits(keys[3], images.shape, jnp.uint8)
    return jnp.where(chosen & inside, noise, images)


def seen_in(
    config: TrainConfig, images: jax.Array, batches: jax.Array, first: jax.Array
) -> jax.Array:
    """The images of batches [steps, B] as the student's steps see them, from number
    `first` (0: of the run) on: [steps × B, H, W, C]."""
    base = jax.random.fold_in(jax.random.key(config.seed), 1)  # as `step.init`
    images = jnp.asarray(images)

    def changed(step: tuple[jax.Array, jax.Array]) -> jax.Array:
        number, batch = step
        key = jax.random.fold_in(base, number)  # as `step.train_step`
        return config.augmentation.apply(key, images[batch])

    steps = first + jnp.arange(len(batches), dtype=jnp.int32), batches
    made = jax.lax.map(changed, steps, batch_size=64)
    return made.reshape(-1, *images.shape[1:])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _softmax(network, variables: dict, images: jax.Array, mirror: bool) -> jax.Array:
    views = [images, images[:, :, ::-1]] if mirror else [images]
    logits = [network.apply(variables, view, train=False) for view in views]
    return jnp.mean(jax.nn.softmax(jnp.stack(logits)), axis=0)


def probabilities(network, variables: dict, images: Any, mirror: bool) -> np.ndarray:
    """A teacher's softmax, [N, classes] float32, for images [N, H, W, C]; with
    `mirror` the mean over them and their mirror images."""
    chunks = inference.batches_of(np.asarray(images), 500)
    return np.concatenate(
        [
            _softmax(network, variables, chunk, mirror)[:count]
            for _, chunk, count in chunks
        ]
    )


def _optimizer(total: int) -> optax.GradientTransformation:
    """For so many steps."""
    warm_up = max(1, round(_WARM_UP * total))
    schedule = optax.warmup_cosine_decay_schedule(0.0, _RATE, warm_up, total)
    kernels = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    return optax.chain(
        optax.add_decayed_weights(_DECAY, kernels),
        optax.sgd(schedule, momentum=0.9, nesterov=True),
    )


def _train(
    network, augmentation: Augmentation, epochs: int, seed, images, labels
) -> dict:
    """The variables after epochs on images [n, H, W, C] and labels [n]."""
    size = min(_BATCH, len(images))
    steps = len(images) // size
    optimizer = _optimizer(epochs * steps)
    step = _step(network, optimizer, augmentation)
    print(f"teacher of width {network.width}: compiling …", flush=True)
    key = jax.random.fold_in(jax.random.key(seed), 2)  # 1: the student's
    variables = network.init(key, images[:1], train=False)
    carry = variables, optimizer.init(variables["params"])
    for epoch in range(1, epochs + 1):
        clock, means = time.monotonic(), []
        order, drawn = jax.random.split(jax.random.fold_in(key, epoch))
        batches = np.asarray(jax.random.permutation(order, len(images)))
        batches = batches[: steps * size].reshape(steps, size)
        for draw, batch in zip(jax.random.split(drawn, steps), batches, strict=True):
            carry, mean = step(carry, draw, images[batch], labels[batch])
            means.append(mean)
        loss, accuracy = np.mean(jax.device_get(means), axis=0)
        print(
            f"epoch {epoch:3d}/{epochs}  loss {loss:.4f}  train {accuracy:.2%}"
            f"  |  {time.monotonic() - clock:.1f} s",
            flush=True,
        )
    return carry[0]


def _step(network, optimizer, augmentation: Augmentation) -> Callable:
    """A jitted step: carry, key, images and labels to the carry, loss and accuracy."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: tuple, key: jax.Array, images: jax.Array, labels: jax.Array):
        variables, state = carry
        changed = augmentation.apply(key, images)
        changed = erase(jax.random.fold_in(key, 3), changed)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, network.classes), _SMOOTH)

        def objective(params: dict):
            logits, statistics = network.apply(
                {**variables, "params": params},
                changed,
                train=True,
                mutable=["batch_stats"],
            )
            loss = jnp.mean(optax.softmax_cross_entropy(logits, targets))
            return loss, (statistics, loss, jnp.mean(logits.argmax(1) == labels))

        params = variables["params"]
        gradient, (statistics, *means) = jax.grad(objective, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return ({**statistics, "params": params}, state), tuple(means)

    return step


def _write_labels(
    file: Path, config: TrainConfig, images, labels, kept, soft_labels: Callable
) -> None:
    """Those of every epoch; `soft_labels` [N, C] are of images and their labels."""
    on_device, see = jnp.asarray(images), jax.jit(functools.partial(seen_in, config))
    plain = soft_labels(on_device, labels)
    with (
        atomic_file(file) as unfinished,
        progress.counting("soft labels, epochs", config.epochs) as on_epoch,
    ):
        rows = np.lib.format.open_memmap(
            unfinished, "w+", np.float16, (config.epochs, *plain.shape)
        )
        for epoch in range(1, config.epochs + 1):
            batches = batching.epoch_batches(config, kept, epoch)
            at, first = batches.ravel(), (epoch - 1) * len(batches)
            rows[epoch - 1] = plain  # what the epoch leaves out
            changed = see(on_device, batches, first)
            rows[epoch - 1, at] = soft_labels(changed, labels[at])
            on_epoch(epoch)
        rows.flush()


@experiments.one_line("teacher")
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains and writes; returns what it prints last."""
    parser = experiments.parser("teacher", __doc__)
    for name, default, text in (
        ("epochs", 40, "of its training"),
        ("width", 4, "times 16, 32 and 64 features"),
        ("blocks", 2, "of two layers for each of the three"),
    ):
        parser.add_argument(f"--teacher_{name}", type=int, default=default, help=text)
    share = "of the labels in them, 0 … 1"
    parser.add_argument("--label_share", type=float, default=0.0, help=share)
    args, rest = parser.parse_known_args(argv)
    if not 0 <= args.label_share <= 1:
        parser.error(f"--label_share must be in 0 … 1, got {args.label_share}")
    if min(args.teacher_epochs, args.teacher_width, args.teacher_blocks) < 1:
        parser.error("--teacher_epochs, --teacher_width, --teacher_blocks: at least 1")
    student = flags.parse(["experiments.teacher", *rest], dataset="")
    if not (student.dataset and student.soft_labels):
        parser.error("needs --dataset, as in --dataset=mnist, and --soft_labels=FILE")
    return _run(args, student)


def _run(args: argparse.Namespace, student: flags.Options) -> dict[str, Any]:
    config, name = student.config, student.dataset
    file = Path(student.soft_labels or "")
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset = data.load(name, student.data_dir)
    limit = student.train_limit or None
    images, labels = dataset.train_images[:limit], dataset.train_labels[:limit]
    kept, held = batching.split(config, labels)
    batches = batching.epoch_batches(config, kept, 1)  # refused before any work
    print(
        f"{name}: {dataset.source}\n{len(kept)} images to learn from, {len(held)} held "
        f"out; {config.epochs} epochs of {len(batches)} batches",
        flush=True,
    )
    training = images[kept], labels[kept]
    pixels = float(training[0].mean()), float(training[0].std())
    shape = args.teacher_width, args.teacher_blocks, len(dataset.class_names)
    network = ResidualNetwork(*shape, *pixels)
    changes = _augmentation(config, name)
    variables = _train(network, changes, args.teacher_epochs, config.seed, *training)
    softmax = functools.partial(
        probabilities, network, variables, mirror=config.augmentation.flip
    )

    def soft_labels(images, labels) -> np.ndarray:
        true = np.eye(network.classes, dtype=np.float32)[labels]
        return args.label_share * true + (1 - args.label_share) * softmax(images)

    result: dict[str, Any] = {"dataset": name, "seed": config.seed}
    pairs = {"test": (dataset.test_images, dataset.test_labels)}
    pairs |= {"held_out": (images[held], labels[held])} if len(held) else {}
    for which, (some, truth) in pairs.items():
        right = softmax(some).argmax(1) == truth
        result[f"{which}_accuracy"] = float(np.mean(right))
    print(json.dumps(result), flush=True)
    _write_labels(file, config, images, labels, kept, soft_labels)
    return result


def _augmentation(config: TrainConfig, dataset: str) -> Augmentation:
    """The student's and more, erasing aside."""
    changes = config.augmentation
    shift = max(changes.shift, 2)
    mirrored = changes.flip or dataset == "fashion_mnist"
    return dataclasses.replace(changes, shift=shift, flip=mirrored)


if __name__ == "__main__":
    progress.program("experiments.teacher", main)
