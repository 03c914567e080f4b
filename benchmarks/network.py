"""Whole networks on real MNIST: training step, growth with T, memory, early decisions.

    python -m benchmarks.network --data_dir=DIR

Prints Markdown. What is compared runs interleaved in one process; times are medians in
ms, ratios those of the medians.
"""

import argparse
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ds4nn_jax as ds
from benchmarks.engines import machine, medians, table
from ds4nn_jax import data
from ds4nn_jax.training import step

BATCH = 64
CONFIG = ds.TrainConfig(
    spec="64C3-P2-128C3-P2-10",
    urgency=0,
    pulses=(),
    centring=0,
    output_rule="margin",
    optimizer=ds.optimizers.Adam(learning_rate=0.02),
    batch_size=32,
    epochs=1,
    engine="event",
)


class ReluCNN(nn.Module):
    """The same layers with rectified linear units and max pooling."""

    @nn.compact
    def __call__(self, x):
        for features in (64, 128):
            x = nn.relu(nn.Conv(features, (3, 3), use_bias=False)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10, use_bias=False)(x.reshape(x.shape[0], -1))


def relu_step(images, labels):
    """A usual training step in Flax: softmax cross-entropy, Adam."""
    network, optimizer = ReluCNN(), optax.adam(1e-3)
    images = jnp.asarray(images, jnp.float32) / 255

    def loss(params):
        logits = network.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state):
        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = network.init(jax.random.key(0), images[:1])
    return functools.partial(step, params, optimizer.init(params))


def spiking_step(images, labels, **changes):
    """`ds.train_step`: encoding, both passes, Adam, and the metrics it reports."""
    config = dataclasses.replace(CONFIG, **changes)
    optimizer = ds.make_optimizer(config, 100)
    # Calibrated once, by the event engine: the same weights for every engine and T.
    calibrated = dataclasses.replace(config, engine="event")
    state = step.init(calibrated, optimizer, jax.random.key(0), images)
    run = jax.jit(functools.partial(ds.train_step, config, optimizer))
    return functools.partial(run, state, images, labels)


def temporary_megabytes(step) -> float:
    lowered = step.func.lower(*step.args)
    return lowered.compile().memory_analysis().temp_size_in_bytes / 2**20


def s4nn_step(images, labels, steps):
    """S4NN's training of 784-400-10 as plain NumPy: one image at a time, whole raster.

    Written anew from the paper of Kheradpisheh and Masquelier (2020): non-leaky IF,
    γ target, normalised errors, gradient descent.
    """
    rng = np.random.default_rng(0)
    weights = [rng.uniform(0, 5, (784, 400)), rng.uniform(0, 10, (400, 10))]
    times = np.asarray(ds.encode(images, num_steps=steps)).reshape(len(images), -1)

    def layer(t, w):
        raster = t[:, None] == np.arange(steps)
        fires = np.cumsum(w.T @ raster, axis=1) >= 100
        return np.where(fires.any(axis=1), fires.argmax(axis=1), steps)

    def step():
        for t, label in zip(times, labels, strict=True):
            hidden = layer(t, weights[0])
            out = layer(hidden, weights[1])
            first = out.min()
            target = np.where(out < first + 3, min(first + 3, steps), out)
            target[label] = first
            delta = (out - target) / steps
            delta /= max(np.linalg.norm(delta), 1e-9)
            heard = (hidden[:, None] <= out) & (hidden[:, None] < steps)
            back = (weights[1] * heard) @ delta * (hidden < steps)
            back /= max(np.linalg.norm(back), 1e-9)
            weights[1] += 0.1 * delta * heard
            heard = (t[:, None] <= hidden) & (t[:, None] < steps)
            weights[0] += 0.1 * back * heard

    return step


def decisions(name, network, params, images, rounds: int) -> None:
    """What deciding early saves, for one image and for a batch."""

    def decide(params, times):
        return ds.decide(network.apply(params, times, method="trace"))

    def activity(params, times):
        return network.apply(params, times, method="activity")

    functions = {
        "output spike times (`apply`)": network.apply,
        "label, step, spikes (`decide` of the `trace`)": decide,
        "output times and potentials, spikes by step (`activity`)": activity,
        "`infer`": functools.partial(ds.infer, network),
    }
    for batch in (1, BATCH):
        times = ds.encode(images[:batch])
        runs = {
            what: functools.partial(jax.jit(function), params, times)
            for what, function in functions.items()
        }
        table(f"{name}, batch {batch}", medians(runs, rounds), "`infer`")


def training_steps(images, labels, rounds: int) -> None:
    """Ours beside a usual one, and with reference pulses."""
    steps = {
        "ReLU CNN (Flax, Adam)": relu_step(images, labels),
        "event, window rule": spiking_step(images, labels),
        "event, constant rule": spiking_step(images, labels, surrogate="constant"),
    }
    table("training step, T = 100", medians(steps, rounds), "ReLU CNN (Flax, Adam)")

    of = {n: spiking_step(images, labels, pulses=(n,) * (n > 0)) for n in (0, 5, 10)}
    pulses = {f"event, {n} pulses in every layer": run for n, run in of.items()}
    table(
        "training step, T = 100",
        medians(pulses, rounds),
        "event, 0 pulses in every layer",
    )


def growth(images, labels, rounds: int) -> None:
    """Time and memory of a step against T."""
    grown = {f"T = {t}": spiking_step(images, labels, num_steps=t) for t in (50, 400)}
    table("training step, event", medians(grown, rounds), "T = 50")
    print(
        "\n| temporary memory of a training step | MiB | times T = 50 |"
        "\n|---|---:|---:|"
    )
    for engine in ("event", "scan"):
        used = [
            temporary_megabytes(
                spiking_step(images, labels, engine=engine, num_steps=t)
            )
            for t in (50, 400)
        ]
        print(f"| {engine}, T = 400 | {used[1]:.1f} | {used[1] / used[0]:.3f} |")


def scans(images, labels, rounds: int, *, large: bool) -> None:
    """The event engine beside the scan, also in the large network if `large`."""
    if large:
        few = {e: spiking_step(images, labels, engine=e) for e in ("event", "scan")}
        table("training step, T = 100", medians(few, 1), "event")

    for rule in ("constant", "window"):
        runs = {
            engine: spiking_step(
                images[:32],
                labels[:32],
                spec="16C3-P2-32C3-10",
                surrogate=rule,
                engine=engine,
            )
            for engine in ("event", "scan")
        }
        title = f"training step of 16C3-P2-32C3-10, batch 32, {rule} rule"
        table(title, medians(runs, rounds // 3), "event")


def dense(images, labels) -> None:
    """S4NN's network beside NumPy."""
    flat = {
        "ours (event)": spiking_step(
            images,
            labels,
            spec="784-400-10",
            initial_weights=ds.initial_weights.FiringRates(dense=0.4),
            num_steps=256,
        ),
        "NumPy, one image at a time": s4nn_step(images, labels, 256),
    }
    table("training step of 784-400-10, T = 256", medians(flat, 3), "ours (event)")


def early_decisions(mnist: data.Dataset, rounds: int, count: int) -> None:
    """Of the shipped network, and of one after an epoch of `count` images."""
    shipped, weights, _ = ds.pretrained.load("mnist")
    decisions("shipped network", shipped, weights, mnist.test_images, rounds)
    print(f"\nEarly decisions, after one epoch of {count} training images:")
    *_, trained = ds.train(
        CONFIG,
        mnist.train_images[:count],
        mnist.train_labels[:count],
    )
    network, params = CONFIG.network(), trained.params
    decisions("trained network", network, params, mnist.test_images, rounds)
    report = ds.evaluate(
        network, params, mnist.test_images[:2000], mnist.test_labels[:2000]
    )
    print(
        f"\n(first 2000 test images: {report.accuracy:.2%} strict, decided at step "
        f"{report.decision_step:.1f} of {CONFIG.num_steps})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="where the IDX files of MNIST lie")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each")
    parser.add_argument("--train_images", type=int, default=60_000)
    parser.add_argument("--without_scan", action="store_true", help="minutes less")
    args = parser.parse_args()
    mnist = data.load("mnist", args.data_dir)
    images, labels = mnist.train_images[:BATCH], mnist.train_labels[:BATCH]
    print(f"{machine()}; {CONFIG.spec}, batch {BATCH}, real MNIST")

    training_steps(images, labels, args.rounds)
    growth(images, labels, args.rounds)
    scans(images, labels, args.rounds, large=not args.without_scan)
    dense(images, labels)
    early_decisions(mnist, args.rounds, args.train_images)


if __name__ == "__main__":
    main()
