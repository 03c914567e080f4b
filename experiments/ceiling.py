"""What could be known by step t: a plain CNN that sees only what has spiked by then.

    python -m experiments.ceiling --dataset=fashion_mnist --out=known.json

trains a network of the same shape, ReLU neurons with batch normalization and max
pooling in place of spiking ones, by cross-entropy. Of half of the training images only
the pixels are left that spike by a step drawn anew each time; the step is a second
channel. Its accuracy on the test images by every fifth step is a ceiling for decisions
that are taken by then, as good as this network and its training are. It holds out what
a run of the data set's preset with the same --seed holds out, and changes images as
that preset does.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ds4nn_jax as ds
import experiments
from ds4nn_jax import data
from ds4nn_jax._files import write_atomically
from ds4nn_jax.cli import progress
from ds4nn_jax.networks.spec import ConvSpec, DenseSpec, PoolSpec, parse_spec
from ds4nn_jax.training import presets
from experiments import cnn

_RATE = 2e-3  # of learning, at first


class PlainNetwork(nn.Module):
    """The layers of a spec with ReLU neurons: [B, H, W, I] or [B, I] to logits."""

    spec: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        *hidden, output = parse_spec(self.spec)[1]
        assert isinstance(output, DenseSpec)  # parse_spec sees to it
        for layer in hidden:
            if isinstance(layer, PoolSpec):
                x = nn.max_pool(x, *2 * ((layer.size, layer.size),))
                continue
            if isinstance(layer, ConvSpec):
                window = (layer.size, layer.size)
                x = nn.Conv(layer.features, window, layer.strides, use_bias=False)(x)
            else:
                x = nn.Dense(layer.features, use_bias=False)(x.reshape(len(x), -1))
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.relu(x)
        return nn.Dense(output.features)(x.reshape(len(x), -1))


def seen_by(images: jax.Array, step: jax.Array, *, num_steps: int) -> jax.Array:
    """What has spiked by a step: uint8 [B, H, W, I] and [B] to floats [B, H, W, I + 1].

    Pixels that spike later are black; the last channel is (t + 1)/T.
    """
    by = step[:, None, None, None]
    spiked = ds.encode(images, num_steps=num_steps) <= by
    left = jnp.where(spiked, images / jnp.float32(255), 0)
    clock = jnp.broadcast_to((by + 1) / num_steps, (*images.shape[:3], 1))
    return jnp.concatenate([left, clock.astype(left.dtype)], axis=3)


@experiments.one_line("ceiling")
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains and reports; returns what it prints last."""
    parser = experiments.parser("ceiling", __doc__)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data_dir", help="where the data set lies")
    parser.add_argument("--spec", help="the network; that of the data set's preset")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write the result as JSON into this file")
    args = parser.parse_args(argv)
    known = args.dataset in presets.names()
    config = presets.load(args.dataset if known else "default")
    spec, num_steps = args.spec or config.spec, config.num_steps
    if args.out:  # before hours of work
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    images = data.load(args.dataset, args.data_dir)
    pixels, labels = images.train_images, images.train_labels
    used, held = data.stratified_split(labels, config.validation, seed=args.seed)
    print(f"{args.dataset}: {images.source}\n{spec}", flush=True)
    network = PlainNetwork(spec)
    variables = _train(args, network, config, pixels[used], labels[used])

    @jax.jit
    def logits(some: jax.Array, by: jax.Array) -> jax.Array:
        visible = seen_by(some, jnp.full(len(some), by), num_steps=num_steps)
        return network.apply(variables, visible, train=False)

    def accuracy(some: np.ndarray, truth: np.ndarray, by: int) -> float:
        decided = cnn.in_chunks(lambda x: logits(x, by), some).argmax(1)
        return float(np.mean(decided == truth))

    result: dict[str, Any] = {
        "dataset": args.dataset,
        "spec": spec,
        "seed": args.seed,
        "held_out_accuracy": accuracy(pixels[held], labels[held], num_steps - 1),
        "steps": [*range(0, num_steps, 5), num_steps - 1],
        "test_accuracy": [],
    }
    for by in result["steps"]:
        share = accuracy(images.test_images, images.test_labels, by)
        result["test_accuracy"].append(share)
        print(f"by step {by:3d}  {share:.2%}", flush=True)
    if args.out:
        write_atomically(Path(args.out), (json.dumps(result) + "\n").encode())
    print(json.dumps(result))
    return result


def _train(args, network, config, images, labels) -> dict:
    """The variables after all epochs."""
    num_steps = config.num_steps

    def optimizer(steps: int) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(_RATE, steps)
        return optax.adamw(schedule, weight_decay=1e-3)

    def change(key: jax.Array, pixels: jax.Array) -> jax.Array:
        """Half of them as far as they have spiked by a step of their own."""
        changes, halves, drawn = jax.random.split(key, 3)
        by = jax.random.randint(drawn, (len(pixels),), 0, num_steps)
        by = jnp.where(jax.random.bernoulli(halves, 0.5, by.shape), by, num_steps - 1)
        pixels = config.augmentation.apply(changes, pixels)
        return seen_by(pixels, by, num_steps=num_steps)

    return cnn.train(
        network,
        optimizer,
        optax.softmax_cross_entropy_with_integer_labels,
        change,
        jax.random.key(args.seed),
        images,
        labels,
        epochs=args.epochs,
        size=args.batch_size,
    )


if __name__ == "__main__":
    progress.program("experiments.ceiling", main)
