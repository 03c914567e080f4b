"""What is refused, and what is said then: one row for each thing to say.

Every row is tried before any work: nothing is written, and the message names what was
wrong and what would be right. Damaged bytes, position by position, are in
`test_data.py` and `test_checkpoints.py`, arbitrary specs in `test_modules.py`.
"""

import gzip
import struct
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.cli import commands
from ds4nn_jax.layers import losses
from ds4nn_jax.networks import energy, pretrained
from ds4nn_jax.networks.spec import parse_spec
from ds4nn_jax.training import augmentation, parallel, rules
from ds4nn_jax.training.checkpoints import CheckpointError, Checkpoints
from ds4nn_jax.training.initial_weights import FiringRates
from ds4nn_jax.training.regularizers import RateRegularizer
from experiments import digits

KEY = jax.random.key(0)
NAN, INF = float("nan"), float("inf")
TIMES = np.zeros((2, 4), np.float32)
KERNEL = np.ones((4, 3), np.float32)
IMAGES = np.zeros((2, 5, 5, 1), np.float32)
FILTERS = np.ones((3, 3, 1, 2), np.float32)
OUTPUTS, LABELS = np.full((2, 3), 100, np.float32), np.array([0, 2])
PIXELS = np.zeros((20, 8, 8, 1), np.uint8)
CLASSES = np.arange(20) % 10
SHARES = np.eye(10)[CLASSES]


def made(kind, *args, **more):
    return lambda _: kind(*args, **more)


def dense(times=TIMES, kernel=KERNEL, **more):
    return made(ds.dense, times, kernel, **more)


def conv(times=IMAGES, kernel=FILTERS, **more):
    return made(ds.conv, times, kernel, **more)


def config(**fields):
    return made(ds.TrainConfig, **fields)


def trained(images=PIXELS, labels=CLASSES, **fields):
    fields = dict(spec="64-10", batch_size=4, epochs=1, validation=0.0) | fields
    return lambda _: next(ds.train(ds.TrainConfig(**fields), images, labels))


def soft(shares, **fields):
    fields = dict(spec="64-10", batch_size=4, epochs=10, validation=0.0) | fields
    made = ds.TrainConfig(**fields)
    return lambda _: ds.train(made, PIXELS, CLASSES, soft_labels=np.array(shares))


def evaluated(images=PIXELS, kernel=(64, 10), **more):
    params = {"params": {"dense1": {"kernel": np.ones(kernel, np.float32)}}}
    return lambda _: ds.evaluate(network("64-10"), params, images, CLASSES, **more)


def relative(times=OUTPUTS, labels=LABELS, **more):
    return lambda _: ds.relative_target(times, labels, **(dict(offset=10) | more))


def network(spec="4-3", **fields):
    return ds.SpikingNetwork.from_spec(spec, **fields)


def applied(spec, times, **fields):
    return lambda _: network(spec, **fields).init(KEY, times)


def idx(folder: Path, body: bytes, name="x-images-idx3-ubyte"):
    path = folder / name
    path.write_bytes(body)
    return data.read_idx(path)


def header(kind=8, *shape):
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape)


def of_layer(kernel):
    return {"params": {"dense1": {"kernel": np.asarray(kernel, np.float32)}}}


def inferred(spec="4-3", times=TIMES, kernel=KERNEL):
    return lambda _: ds.infer(network(spec), of_layer(kernel), times)


def quantized(kernel=KERNEL, bits=4):
    return lambda _: ds.quantize(network(), of_layer(kernel), bits=bits)


def run(*flags):
    return lambda folder: digits.main(["digits", f"--out_dir={folder / 'run'}", *flags])


RANGES = "--initial_weights=uniform", "--initial_weights.ranges"

# What is said, the error, and calls (given an empty folder) that are refused so.
V, T, D, X = ValueError, TypeError, data.DataError, SystemExit
TABLE = [
    # Layers
    (
        "num_steps must be a positive integer",
        V,
        *(dense(num_steps=steps) for steps in (0, -3, 1.5, True)),
        made(ds.encode, IMAGES, num_steps=0),
    ),
    (
        "threshold must be a finite number > 0 mV",
        V,
        *(dense(threshold=threshold) for threshold in (0, -1.0, NAN)),
        conv(threshold=INF),
    ),
    ("each output [O] = (3,), got shape (4,)", V, dense(threshold=np.ones(4))),
    (
        "urgency must be a finite number ≥ 0 mV a step",
        V,
        *(dense(urgency=urgency) for urgency in (-0.1, NAN)),
        made(network, urgency=INF),
    ),
    (
        "pulses must have shape [P, O]",
        V,
        dense(pulses=KERNEL[0]),
        conv(pulses=FILTERS),
    ),
    ("T = 100 and O = 3, got (4, 2", V, dense(pulses=KERNEL[:, :2])),
    ("with P ≤ T = 3", V, dense(pulses=KERNEL, num_steps=3)),
    ("pulses must be finite", V, conv(pulses=np.full((1, 2), NAN))),
    (
        "pulses must be integers in 0 … T = 100",
        V,
        *(made(network, pulses=(n,)) for n in (101, -1, 1.5)),
    ),
    ("each of the 1 layers", V, made(network, pulses=(1, 1))),
    ("0 … T = 9", V, config(num_steps=9, pulses=(10,))),
    ("centring must be in [0, 1], got 1.1", V, config(centring=1.1)),
    ("pulse_rate must be ≥ 0 mV", V, made(ds.optimizers.Adam, pulse_rate=-1)),
    ("encode images", T, dense(TIMES.astype(int))),
    ("32", T, dense(TIMES.astype(np.float16), KERNEL.astype(np.float16))),
    (
        "whole steps 0 … T = 100",
        V,
        *(dense(TIMES + x) for x in (0.5, -1, 101)),
        *(conv(IMAGES + x) for x in (NAN, INF)),
    ),
    ("kernel must be finite, got nan", V, dense(kernel=KERNEL * NAN)),
    ("kernel must be finite", V, conv(kernel=FILTERS * INF)),
    ("must be floating", T, dense(kernel=np.ones((4, 3), int))),
    ("times must have 2 axes [B, I]", V, dense(TIMES[0])),
    ("4 axes [B, H, W, I], got shape (5, 5, 1", V, conv(IMAGES[0])),
    ("4 axes [kh, kw, I, O]", V, conv(kernel=KERNEL)),
    ("3 input features, kernel (4, 3)", V, dense(TIMES[:, :3])),
    ("expects 2", V, conv(kernel=np.ones((3, 3, 2, 1)))),
    ("kernel must not be empty", V, dense(kernel=KERNEL[:, :0])),
    ("padding", V, conv(padding="FULL")),
    ("7", V, conv(kernel=np.ones((7, 7, 1, 2)), padding="VALID")),
    (
        "strides must be two positive integers",
        V,
        conv(strides=(0, 1)),
        conv(strides=(1,)),
    ),
    ('engine must be "auto", "scan" or', V, dense(engine="gpu")),
    ("one of constant, window, got", V, dense(surrogate="relu")),
    ("width must be > 0 mV", V, made(ds.Window, 0), made(ds.Window, NAN)),
    ("positive integers", V, made(ds.earliest_pool, IMAGES, window=(0, 2))),
    ("4 axes [B, H, W, ", V, made(ds.earliest_pool, TIMES)),
    (
        "first derivatives in reverse mode (jax.grad",
        T,
        lambda _: jax.jvp(lambda k: ds.dense(TIMES, k), (KERNEL,), (KERNEL,)),
        lambda _: jax.hessian(lambda k: ds.dense(TIMES, k).sum())(KERNEL),
    ),
    # Encoding and augmentation
    ("pass uint8", V, made(ds.encode, IMAGES + 255)),
    (
        "must lie in [0, 1]",
        V,
        made(ds.encode, IMAGES + NAN),
        made(ds.encode, IMAGES - 1),
        trained(PIXELS * np.float32(NAN)),
    ),
    ("uint8 (0 … 2", T, made(ds.encode, np.zeros((1, 4), np.int32))),
    ("≥ 0, got -1", V, made(augmentation.shift, KEY, PIXELS, pixels=-1)),
    (
        "4 axes [B, H, W, C]",
        V,
        made(augmentation.flip, KEY, PIXELS[0]),
        made(augmentation.shift, KEY, PIXELS[0], pixels=1),
        made(augmentation.rotate, KEY, PIXELS[0], degrees=1),
    ),
    # Networks
    ("text like '64C3-P2-10'", V, made(parse_spec, 10)),
    ("<", V, applied("4-3", TIMES, initial_weights=((3, 1),))),
    ("1", V, applied("4-3", TIMES, initial_weights=((0, 1),) * 2)),
    ("takes 5 inputs an image", V, applied("5-3", TIMES), inferred("5-3")),
    ("whole steps 0 … T = 100", V, inferred(times=TIMES + 101)),
    ("kernel of dense1 must be finite", V, inferred(kernel=KERNEL * NAN)),
    ("larger than the image", V, applied("8C3-P9-10", IMAGES)),
    ("2 axes", V, made(ds.predict, OUTPUTS[0])),
    ("potentials must have the shape", V, made(ds.predict, OUTPUTS, OUTPUTS[:1])),
    (
        "layer_spikes must hold 2 numbers",
        V,
        made(energy.synaptic_operations, network(), (4,), (1, 2, 3)),
    ),
    (
        "layer_reference_spikes must hold 1 numbers",
        V,
        made(energy.reference_operations, network(), (4,), (1, 2)),
    ),
    (
        "times of shape (2, 4) need (4, 3)",
        V,
        lambda _: network().apply(of_layer(KERNEL[:3]), TIMES),
    ),
    (
        "no kernel of dense1",
        V,
        lambda _: ds.classify(network(), {"params": {}}, PIXELS[:, :2, :2]),
    ),
    ("bits must be an integer in 1", V, config(bits=0)),
    ("bits must be an integer in 1 … 8, got 9", V, quantized(bits=9)),
    ("kernel of dense1 must be finite", V, quantized(KERNEL * NAN)),
    ("integers already", V, lambda _: ds.quantize(*quantized()(None), bits=4)),
    # Errors of the output
    ("0 … 2, got 3", V, relative(labels=np.array([0, 3]))),
    ("labels must be integers", T, relative(labels=np.zeros(2))),
    (
        "shape [B] = (2,)",
        V,
        relative(labels=np.eye(3, dtype=int)[:2]),
        relative(labels=LABELS[:1]),
    ),
    ("offset must be ≥ 0", V, relative(offset=-1)),
    (
        "potentials must have the shape",
        V,
        made(rules.Softmax().target, OUTPUTS, LABELS, OUTPUTS[:1]),
        made(rules.Softmax().target, OUTPUTS, LABELS),
    ),
    ("0 … 2, got -1", V, relative(labels=np.array([0, -1]))),
    (
        "other_time must be in 0 … T = 90, got 100",
        V,
        made(rules.Fixed().target, OUTPUTS - 90, LABELS, num_steps=90),
        config(output_rule="fixed", num_steps=90),
    ),
    ("temperature must be > 0", V, made(rules.Softmax, temperature=0)),
    ("horizon must be > 0", V, made(rules.Softmax, horizon=0)),
    ("anchor must be ≥ 0", V, made(rules.Softmax, anchor=-1)),
    ("axes", V, relative(OUTPUTS[0])),
    ("method", V, made(losses.normalize_gradient, TIMES, method="max")),
    ("differ", V, made(ds.temporal_loss, OUTPUTS, TIMES)),
    # Training
    ("got ['a']: np.unique", T, trained(labels=np.array(["a"] * 20))),
    ("got [None]: np.", T, trained(labels=np.array([None] * 20))),
    ("a single 1 for each", V, trained(labels=np.ones((20, 10), int))),
    ("no images", V, trained(PIXELS[:0], CLASSES[:0])),
    ("look channels-first", V, trained(np.zeros((20, 3, 9, 9)))),
    ("labels[:, 0] has it", V, trained(labels=CLASSES[:, None])),
    ("0 … 9, got 4294967296", V, trained(labels=CLASSES + 2**32)),
    ("labels must lie in 0 … 9", V, trained(labels=CLASSES + 1)),
    ("labels must have sha", V, trained(labels=CLASSES[:-1])),
    ("21", V, trained(batch_size=21)),
    (
        "takes 64 inputs an image",
        V,
        trained(PIXELS[:, :4]),
        evaluated(PIXELS[:, :7, :7]),
    ),
    ("images of shape (8, 8, 1)", V, evaluated(kernel=(63, 10))),
    ("batch_size must be at least 1, go", V, evaluated(batch_size=0)),
    ("batch_size must be an integer", T, evaluated(batch_size=2.5)),
    ("[B, C] = (20, 10)", V, soft([[0.5] * 2] * 20), soft([[[0.5] * 2] * 20] * 10)),
    (
        "sum to 1 for each image",
        V,
        soft(np.full((20, 10), 0.2)),
        soft(np.full((20, 10), NAN)),
    ),
    ("soft labels must be shares", V, soft([SHARES] + 9 * [SHARES * NAN])),
    ("of 9 epochs, the run has 10", V, soft([SHARES] * 9)),
    ("must be floating", T, soft(np.eye(10, dtype=int)[CLASSES])),
    ("must be floating, got <U1", T, soft([["a"] * 10] * 20)),
    ("classes alone", T, soft(SHARES, output_rule="relative")),
    ("batch_size must be at least 1, got 0", V, config(batch_size=0)),
    ("epochs must be at least 1, got 0", V, config(epochs=0)),
    ("epochs must be an integer, got '3", T, config(epochs="3")),
    ("learning_rate must be a number > 0, got 0", V, made(ds.optimizers.Adam, 0)),
    ("learning_rate must be a number > 0, got nan", V, made(ds.optimizers.Muon, NAN)),
    ("average must be in [0, 1)", V, made(ds.optimizers.Adam, average=1.0)),
    ("common_step must be in [0, 1]", V, made(ds.optimizers.Muon, common_step=2)),
    ("period must be at least 1", V, made(ds.schedules.StepDecay, period=0)),
    ("images must be at least 1", V, made(FiringRates, images=0)),
    ("edges must be in [0, 1)", V, made(FiringRates, edges=1)),
    (
        "edges must be 0 for 64-10",
        V,
        config(spec="64-10", initial_weights=FiringRates(edges=0.2)),
    ),
    ("targets must be in (0, 1]", V, made(RateRegularizer, (0.1, 0.0))),
    ("start must be in (0, 1]", V, made(RateRegularizer, start=0)),
    ("floor must be in [0, 1)", V, made(RateRegularizer, floor=1)),
    ("strength must be ≥ 0", V, made(RateRegularizer, strength=INF)),
    ("steps must be at least 1", V, made(RateRegularizer, steps=0)),
    (
        "targets must be no more than 1, the hidden layers",
        V,
        config(spec="8C3-P2-10", regularizer=RateRegularizer((0.1, 0.2))),
    ),
    ("shift must be ≥ 0 pixels", V, made(augmentation.Augmentation, shift=-1)),
    ("flip must be a bool", T, made(augmentation.Augmentation, flip=1)),
    ("threshold must be > 0 mV", V, config(threshold=NAN)),
    ("one of cosine, step_decay", V, config(schedule="linear")),
    ("engine must be one of", V, config(engine="gpu")),
    ("have 2 entries", V, config(initial_weights=((0, 1, 2),) * 2)),
    ("must be a sequence", T, config(initial_weights=3)),
    ("must be an instance of", T, config(optimizer=optax.adam(1))),
    (
        "margin has no 'horizon', only",
        T,
        config(output_rule={"name": "margin", "horizon": 3}),
    ),
    ("output must be in (0, 1), got 1.0", V, made(FiringRates, output=1)),
    ("validation must be in [0, 1), got 1.0", V, config(validation=1.0)),
    ("seed must be in 0 … 2³²−1, got -1", V, config(seed=-1)),
    (
        "anchor_time must be in",
        V,
        config(output_rule=ds.rules.Softmax(anchor_time=101)),
    ),
    ("num_devices", V, made(parallel.data_mesh, 99)),
    ("at least one image", V, made(ds.report, [], 10)),
    # Data files
    ("minst", data.DataNotFoundError, made(data.load, "minst")),
    ("train-images", data.DataNotFoundError, lambda f: data.load("mnist", f)),
    (
        "idx",
        D,
        lambda f: idx(f, b""),
        lambda f: idx(f, b"P5 28 28 255 " * 9),
        lambda f: idx(f, header(14, 1) + b"12345678"),  # doubles
        lambda f: idx(f, header(8, 2, 3) + b"12345"),
        lambda f: idx(f, header(8, 2, 3) + b"1234567"),
        lambda f: idx(f, header(8, *[2**32 - 1] * 4)),
    ),
    (
        "x.gz",
        D,
        lambda f: idx(f, gzip.compress(header(8, 3) + b"abc")[:-9], "x.gz"),
        lambda f: idx(f, header(8, 3) + b"abc", "x.gz"),
    ),
    # Weights and runs
    ("Is a directory", IsADirectoryError, ds.load_weights),
    ("there are fashion_mnist, fashion_m", V, made(pretrained.load, "cifar")),
    (
        "cannot hold checkpoints",
        CheckpointError,
        lambda f: ((f / "s").write_text(""), Checkpoints(f / "s", ds.TrainConfig())),
    ),
    # Commands
    ("Unknown command line flag 'epochz'", X, run("--epochz=3")),
    (
        "horizon: margin has normalization, o",
        X,
        run("--output_rule=margin", "--output_rule.horizon=3"),
    ),
    ("firing_rates has conv, dense, edges", X, run("--initial_weights.ranges=0:1")),
    ("ranges must be a sequence, got 2.0", X, run(*RANGES, "0:1,2")),
    ("low < high", X, run(*RANGES, "3:1,0:1,0:1")),
    ("no preset 'mnits': there are", X, run("--preset=mnits")),
    ("epochs must be at least 1", X, run("--epochs=0")),
    ("--optimizer.learning_rate=a", X, run("--optimizer.learning_rate=a")),
    ("train_limit", X, run("--train_limit=-1")),
    ("unexpected argument 'digits'", X, run("digits")),
    ("absent.cfg", X, run("--flagfile=absent.cfg")),
    (
        "contradict each oth",
        X,
        run("--resume", "--overwrite"),
        run("--resume", "--evaluate=pretrained"),
    ),
    ("--coordinator needs --distri", X, run("--coordinator=a:1")),
    ("num_devices must be in", X, run("--num_devices=99")),
    ("digits takes no data_dir", X, run("--data_dir=here")),
    ("absent", X, run("--evaluate=absent")),
    ("fly", X, made(commands.main, ["fly"])),
]


@pytest.mark.parametrize("message, error, calls", [(m, e, c) for m, e, *c in TABLE])
def test_is_refused(message, error, calls, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for call in calls:
        with pytest.raises(error) as caught:
            call(tmp_path)
        assert message in str(caught.value) + capsys.readouterr().err
        if error is SystemExit:
            assert not any(tmp_path.iterdir()), "refused before anything was written"
