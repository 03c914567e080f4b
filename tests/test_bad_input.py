"""What is refused, and what is said then: one row for each way to be wrong.

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
from ds4nn_jax.networks import pretrained
from ds4nn_jax.networks.spec import parse_spec
from ds4nn_jax.training import augmentation, parallel
from ds4nn_jax.training.augmentation import Augmentation
from ds4nn_jax.training.checkpoints import CheckpointError, Checkpoints
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


def dense(times=TIMES, kernel=KERNEL, **more):
    return lambda _: ds.dense(times, kernel, **more)


def conv(times=IMAGES, kernel=FILTERS, **more):
    return lambda _: ds.conv(times, kernel, **more)


def config(**fields):
    return lambda _: ds.TrainConfig(**fields)


def trained(images=PIXELS, labels=CLASSES, **fields):
    fields = dict(spec="64-10", batch_size=4, epochs=1, validation=0.0) | fields
    return lambda _: next(ds.train(ds.TrainConfig(**fields), images, labels))


def soft(shares, **fields):
    made = ds.TrainConfig(spec="64-10", batch_size=4, validation=0.0, **fields)
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


def saved(folder: Path, params):
    ds.save_weights(folder / "w.safetensors", network(), params)


def of_layer(kernel):
    return {"params": {"dense1": {"kernel": np.asarray(kernel, np.float32)}}}


def run(*flags):
    return lambda folder: digits.main(["digits", f"--out_dir={folder / 'run'}", *flags])


def command(*arguments):
    return lambda _: commands.main(list(arguments))


# What is wrong, the call (given an empty folder), the error, part of its message.
V, T, C, D, X = ValueError, TypeError, ds.WeightsError, data.DataError, SystemExit
TABLE = [
    # Layers
    ("T = 0", dense(num_steps=0), V, "num_steps must be a positive whole number"),
    ("T < 0", dense(num_steps=-3), V, "num_steps must be a positive whole number"),
    ("T = 1.5", dense(num_steps=1.5), V, "num_steps must be a positive whole number"),
    ("T = True", dense(num_steps=True), V, "num_steps must be a positive whole number"),
    ("θ = 0", dense(threshold=0), V, "threshold must be a finite number > 0 mV"),
    ("θ < 0", dense(threshold=-1.0), V, "threshold must be a finite number > 0 mV"),
    ("θ NaN", dense(threshold=NAN), V, "threshold must be a finite number > 0 mV"),
    ("θ infinite", conv(threshold=INF), V, "threshold must be a finite number > 0 mV"),
    (
        "θ of others",
        dense(threshold=np.ones(4)),
        V,
        "a number or one of each output [O] = (3,), got shape (4,)",
    ),
    ("0 bits", lambda _: ds.TrainConfig(bits=0), V, "bits must be a whole number in 1"),
    (
        "9 bits",
        lambda _: ds.quantize(network(), of_layer(KERNEL), bits=9),
        V,
        "bits must be a whole number in 1 … 8, got 9",
    ),
    (
        "NaN in bits",
        lambda _: ds.quantize(network(), of_layer(KERNEL * NAN), bits=4),
        V,
        "kernel of dense1 must be finite",
    ),
    (
        "whole numbers twice",
        lambda _: ds.quantize(
            *ds.quantize(network(), of_layer(KERNEL), bits=4), bits=4
        ),
        V,
        "whole numbers already",
    ),
    ("u < 0", dense(urgency=-0.1), V, "urgency must be a finite number ≥ 0 mV a step"),
    ("u NaN", dense(urgency=NAN), V, "urgency must be a finite number ≥ 0 mV a step"),
    (
        "u infinite",
        lambda _: network(urgency=INF),
        V,
        "urgency must be a finite number",
    ),
    ("pulses of rank 1", dense(pulses=KERNEL[0]), V, "pulses must have shape [P, O]"),
    (
        "pulses of others",
        dense(pulses=KERNEL[:, :2]),
        V,
        "T = 100 and O = 3, got (4, 2",
    ),
    ("pulses of images", conv(pulses=FILTERS), V, "pulses must have shape [P, O]"),
    ("pulses > T", dense(pulses=KERNEL, num_steps=3), V, "with P ≤ T = 3"),
    (
        "pulses NaN",
        conv(pulses=np.full((1, 2), NAN)),
        V,
        "pulses must be finite, got 2",
    ),
    ("pulses of a network > T", lambda _: network(pulses=(101,)), V, "0 … T = 100"),
    ("pulses < 0", lambda _: network(pulses=(-1,)), V, "whole numbers in 0 … T = 100"),
    ("half a pulse", lambda _: network(pulses=(1.5,)), V, "whole numbers in 0 … T"),
    (
        "pulses of two layers",
        lambda _: network(pulses=(1, 1)),
        V,
        "each of the 1 layers",
    ),
    ("pulses of a run > T", config(num_steps=9, pulses=(10,)), V, "0 … T = 9"),
    ("centring > 1", config(centring=1.1), V, "centring must be in [0, 1], got 1.1"),
    (
        "pulses' steps < 0",
        lambda _: ds.optimizers.Adam(pulse_rate=-1),
        V,
        "pulse_rate must be ≥ 0 mV",
    ),
    ("whole-number times", dense(TIMES.astype(int)), T, "encode images"),
    ("half times", dense(TIMES.astype(np.float16), KERNEL.astype(np.float16)), T, "32"),
    ("a time between steps", dense(TIMES + 0.5), V, "whole steps 0 … T = 100"),
    ("a time < 0", dense(TIMES - 1), V, "whole steps 0 … T = 100"),
    ("a time > T", dense(TIMES + 101), V, "whole steps 0 … T = 100"),
    ("a time NaN", conv(IMAGES + NAN), V, "whole steps 0 … T = 100"),
    ("an infinite time", conv(IMAGES + INF), V, "whole steps 0 … T = 100"),
    ("weights NaN", dense(kernel=KERNEL * NAN), V, "kernel must be finite, got 12 NaN"),
    ("weights infinite", conv(kernel=FILTERS * INF), V, "kernel must be finite"),
    ("whole-number weights", dense(kernel=np.ones((4, 3), int)), T, "must be floating"),
    ("times of rank 1", dense(TIMES[0]), V, "times must have 2 axes [B, I]"),
    ("images of rank 3", conv(IMAGES[0]), V, "4 axes [B, H, W, I], got shape (5, 5, 1"),
    ("filters of rank 2", conv(kernel=KERNEL), V, "4 axes [kh, kw, I, O]"),
    ("features that differ", dense(TIMES[:, :3]), V, "3 input features, kernel (4, 3)"),
    ("channels that differ", conv(kernel=np.ones((3, 3, 2, 1))), V, "expects 2"),
    ("no neurons", dense(kernel=KERNEL[:, :0]), V, "kernel must not be empty"),
    ("padding unknown", conv(padding="FULL"), V, "padding"),
    ("kernel > image", conv(kernel=np.ones((7, 7, 1, 2)), padding="VALID"), V, "7"),
    ("stride 0", conv(strides=(0, 1)), V, "strides must be two positive whole numbers"),
    ("one stride", conv(strides=(1,)), V, "strides must be two positive whole numbers"),
    ("engine unknown", dense(engine="gpu"), V, 'engine must be "auto", "scan" or'),
    ("surrogate unknown", dense(surrogate="relu"), V, "one of constant, window, got"),
    ("window β = 0", lambda _: ds.Window(0), V, "width must be > 0 mV, got 0"),
    ("window β NaN", lambda _: ds.Window(NAN), V, "width must be > 0 mV"),
    (
        "pool of 0",
        lambda _: ds.earliest_pool(IMAGES, window=(0, 2)),
        V,
        "positive whole numb",
    ),
    ("pool of rank 2", lambda _: ds.earliest_pool(TIMES), V, "4 axes [B, H, W, "),
    (
        "forward mode",
        lambda _: jax.jvp(lambda k: ds.dense(TIMES, k), (KERNEL,), (KERNEL,)),
        T,
        "first derivatives in reverse mode (jax.grad",
    ),
    (
        "second derivatives",
        lambda _: jax.hessian(lambda k: ds.dense(TIMES, k).sum())(KERNEL),
        T,
        "first derivatives in reverse mode (jax.grad",
    ),
    (
        "parameters of another size",
        lambda _: network().apply(of_layer(KERNEL[:3]), TIMES),
        V,
        "its kernel is (3, 3), spike times of shape (2, 4) need (4, 3)",
    ),
    (
        "no parameters",
        lambda _: ds.classify(network(), {"params": {}}, PIXELS[:, :2, :2]),
        V,
        "the parameters have no kernel of dense1",
    ),
    # Encoding and augmentation
    ("images of 0 … 255 floats", lambda _: ds.encode(IMAGES + 255), V, "pass uint8"),
    ("images NaN", lambda _: ds.encode(IMAGES + NAN), V, "must lie in [0, 1]"),
    ("images < 0", lambda _: ds.encode(IMAGES - 1), V, "must lie in [0, 1]"),
    (
        "images int32",
        lambda _: ds.encode(np.zeros((1, 4), np.int32)),
        T,
        "uint8 (0 … 2",
    ),
    ("encoded in 0 steps", lambda _: ds.encode(IMAGES, num_steps=0), V, "num_steps"),
    (
        "a shift < 0",
        lambda _: augmentation.shift(KEY, PIXELS, pixels=-1),
        V,
        "≥ 0, got -1",
    ),
    # Networks
    ("spec empty", lambda _: parse_spec(""), V, "'' is none of 64C3"),
    ("spec no text", lambda _: parse_spec(10), V, "text like '64C3-P2-10'"),
    ("spec of 0 neurons", lambda _: parse_spec("4-0"), V, "network spec"),
    ("spec with a kernel of 0", lambda _: parse_spec("8C0-10"), V, "network spec"),
    ("spec with an odd token", lambda _: parse_spec("8C3-Q2-10"), V, "'Q2' is none of"),
    ("spec ending in pooling", lambda _: parse_spec("8C3-P2"), V, "network spec"),
    ("spec with Arabic digits", lambda _: parse_spec("٦٤-10"), V, "network spec"),
    ("spec with a space", lambda _: parse_spec("64 -10"), V, "network spec"),
    (
        "weight range turned round",
        applied("4-3", TIMES, initial_weights=((3, 1),)),
        V,
        "<",
    ),
    (
        "two ranges for a layer",
        applied("4-3", TIMES, initial_weights=((0, 1),) * 2),
        V,
        "1",
    ),
    ("inputs that do not fit", applied("5-3", TIMES), V, "takes 5 inputs an image"),
    # Errors of the output
    ("a label of −1", relative(labels=np.array([0, -1])), V, "0 … 2, got -1 … 0"),
    ("a label of C", relative(labels=np.array([0, 3])), V, "0 … 2, got 0 … 3"),
    ("floating labels", relative(labels=np.zeros(2)), T, "labels must be integers"),
    (
        "one-hot labels",
        relative(labels=np.eye(3, dtype=int)[:2]),
        V,
        "shape [B] = (2,)",
    ),
    ("labels of another batch", relative(labels=LABELS[:1]), V, "shape [B] = (2,)"),
    ("λ < 0", relative(offset=-1), V, "offset must be ≥ 0"),
    ("outputs of rank 1", relative(OUTPUTS[0]), V, "axes"),
    (
        "Eq. 11 by another norm",
        lambda _: losses.normalize_gradient(TIMES, method="max"),
        V,
        "me",
    ),
    (
        "targets of another shape",
        lambda _: ds.temporal_loss(OUTPUTS, TIMES),
        V,
        "differ",
    ),
    # Training
    ("labels of text", trained(labels=np.array(["a"] * 20)), T, "got ['a']: np.unique"),
    ("labels of objects", trained(labels=np.array([None] * 20)), T, "got [None]: np."),
    (
        "two-hot labels",
        trained(labels=np.ones((20, 10), int)),
        V,
        "a single 1 for each",
    ),
    ("no images", trained(PIXELS[:0], CLASSES[:0]), V, "no images"),
    ("channels first", trained(np.zeros((20, 3, 9, 9))), V, "look channels-first"),
    ("u of a run < 0", config(urgency=-1), V, "urgency must be ≥ 0 mV a step"),
    ("soft labels of 2", soft([[0.5, 0.5]] * 20), V, "shape [B, C] = (20, 10)"),
    ("soft labels > 1", soft(np.full((20, 10), 0.2)), V, "sum to 1 for each image"),
    ("soft labels NaN", soft(np.full((20, 10), NAN)), V, "sum to 1 for each image"),
    (
        "epochs of 2",
        soft([[[0.5, 0.5]] * 20] * 10),
        V,
        "epoch 1: soft labels must have",
    ),
    ("NaN, epoch 2", soft([SHARES] + 9 * [SHARES * NAN]), V, "epoch 2: soft labels"),
    ("9 of 10 epochs", soft([SHARES] * 9), V, "of 9 epochs, the run has 10"),
    ("whole soft labels", soft(np.eye(10, dtype=int)[CLASSES]), T, "must be floating"),
    ("soft labels by Eq. 4", soft(SHARES, output_rule="relative"), T, "classes alone"),
    ("text for soft labels", soft([["a"] * 10] * 20), T, "must be floating, got <U1"),
    ("a column of labels", trained(labels=CLASSES[:, None]), V, "labels[:, 0] has it"),
    (
        "labels beyond int32",
        trained(labels=CLASSES + 2**32),
        V,
        "0 … 9, got 4294967296",
    ),
    ("evaluated by 0", evaluated(batch_size=0), V, "batch_size must be at least 1, go"),
    (
        "evaluated by half",
        evaluated(batch_size=2.5),
        T,
        "batch_size must be a whole nu",
    ),
    ("images of 7×7", evaluated(PIXELS[:, :7, :7]), V, "takes 64 inputs an image"),
    ("another kernel", evaluated(kernel=(63, 10)), V, "images of shape (8, 8, 1)"),
    ("batch of 0", config(batch_size=0), V, "batch_size must be at least 1, got 0"),
    ("no epochs", config(epochs=0), V, "epochs must be at least 1, got 0"),
    (
        "η = 0",
        lambda _: ds.optimizers.Adam(learning_rate=0),
        V,
        "learning_rate must be a number > 0, got 0.0",
    ),
    (
        "η NaN",
        lambda _: ds.optimizers.Muon(learning_rate=NAN),
        V,
        "learning_rate must be a number > 0, got nan",
    ),
    ("half an epoch", config(epochs=16.5), T, "epochs must be a whole number, got 16."),
    (
        "an epoch of text",
        config(epochs="3"),
        T,
        "epochs must be a whole number, got '3",
    ),
    ("a number for a bool", lambda _: Augmentation(flip=1), T, "flip must be a bool"),
    ("no sequence of ranges", config(initial_weights=3), T, "must be a sequence"),
    (
        "ranges for two layers",
        config(initial_weights=((0, 1),) * 2),
        V,
        "each of the 3",
    ),
    (
        "an optax chain bare",
        config(optimizer=optax.adam(1)),
        T,
        "must be an instance of",
    ),
    (
        "a parameter of another rule",
        config(output_rule={"name": "margin", "horizon": 3}),
        T,
        "output_rule: margin has no 'horizon', only",
    ),
    (
        "a firing rate of 1",
        lambda _: ds.initial_weights.FiringRates(output=1),
        V,
        "output must be in (0, 1), got 1.0",
    ),
    (
        "a rule nobody knows",
        config(output_rule="mse"),
        V,
        "output_rule must be one of rel",
    ),
    (
        "all held out",
        config(validation=1.0),
        V,
        "validation must be in [0, 1), got 1.0",
    ),
    ("a seed < 0", config(seed=-1), V, "seed must be in 0 … 2³²−1, got -1"),
    (
        "t* > T",
        config(output_rule=ds.rules.Softmax(anchor_time=101)),
        V,
        "anchor_time must be in",
    ),
    ("no images", trained(PIXELS[:0], CLASSES[:0]), V, "image"),
    ("fewer images than a batch", trained(batch_size=21), V, "21"),
    (
        "fewer labels than images",
        trained(labels=CLASSES[:-1]),
        V,
        "labels must have sha",
    ),
    (
        "a label that has no output",
        trained(labels=CLASSES + 1),
        V,
        "labels must lie in 0 … 9",
    ),
    ("images of another size", trained(PIXELS[:, :4]), V, "takes 64 inputs an image"),
    (
        "images NaN in training",
        trained(PIXELS * np.float32(NAN)),
        V,
        "must lie in [0, 1]",
    ),
    ("more devices than there are", lambda _: parallel.data_mesh(99), V, "num_devices"),
    ("a report on nothing", lambda _: ds.report([], 10), V, "at least one image"),
    # Data files
    ("data set unknown", lambda _: data.load("minst"), data.DataNotFoundError, "minst"),
    (
        "a folder without data",
        lambda f: data.load("mnist", f),
        data.DataNotFoundError,
        "train-images",
    ),
    ("an empty file", lambda f: idx(f, b""), D, "idx"),
    ("no IDX file", lambda f: idx(f, b"P5 28 28 255 " * 9), D, "idx"),
    ("IDX of doubles", lambda f: idx(f, header(14, 1) + b"12345678"), D, "idx"),
    ("a cut IDX file", lambda f: idx(f, header(8, 2, 3) + b"12345"), D, "idx"),
    ("a longer IDX file", lambda f: idx(f, header(8, 2, 3) + b"1234567"), D, "idx"),
    ("a header that lies", lambda f: idx(f, header(8, *[2**32 - 1] * 4)), D, "idx"),
    (
        "gzip cut short",
        lambda f: idx(f, gzip.compress(header(8, 3) + b"abc")[:-9], "x.gz"),
        D,
        "",
    ),
    ("no gzip at all", lambda f: idx(f, header(8, 3) + b"abc", "x.gz"), D, "x.gz"),
    # Weights and runs
    (
        "weights that are missing",
        lambda f: ds.load_weights(f / "w"),
        FileNotFoundError,
        "No such",
    ),
    (
        "a folder for weights",
        lambda f: ds.load_weights(f),
        IsADirectoryError,
        "Is a directory",
    ),
    (
        "a pickle for weights",
        lambda f: ((f / "w").write_bytes(b"\x80\x04N."), ds.load_weights(f / "w")),
        C,
        "truncated or no safetensors file",
    ),
    (
        "saving NaN weights",
        lambda f: saved(f, of_layer(KERNEL * NAN)),
        V,
        "NaN or infin",
    ),
    ("saving another network's", lambda f: saved(f, {"params": {}}), V, "parameters"),
    (
        "a network never trained",
        lambda _: pretrained.load("cifar"),
        V,
        "there are fashion_mnist, fashion_mnist_sparse, mnist",
    ),
    (
        "a file for checkpoints",
        lambda f: ((f / "s").write_text(""), Checkpoints(f / "s", ds.TrainConfig())),
        CheckpointError,
        "cannot hold checkpoints",
    ),
    # Commands
    ("a flag misspelt", run("--epochz=3"), X, "Unknown command line flag 'epochz'"),
    (
        "a flag of another rule",
        run("--output_rule=margin", "--output_rule.horizon=3"),
        X,
        "--output_rule.horizon: margin has normalization, offset",
    ),
    ("a preset nobody knows", run("--preset=mnits"), X, "no preset 'mnits': there are"),
    ("a word for a number", run("--epochs=three"), X, "flag --epochs=three"),
    (
        "both resume and overwrite",
        run("--resume", "--overwrite"),
        X,
        "contradict each oth",
    ),
    ("resume an evaluation", run("--resume", "--evaluate=pretrained"), X, "contradict"),
    (
        "a coordinator alone",
        run("--coordinator=a:1"),
        X,
        "--coordinator needs --distri",
    ),
    (
        "devices that are not there",
        run("--num_devices=99"),
        X,
        "num_devices must be in",
    ),
    ("digits from a folder", run("--data_dir=here"), X, "comes with scikit-learn"),
    ("weights that are not there", run("--evaluate=absent"), X, "absent"),
    ("a command nobody knows", command("fly"), X, "fly"),
    ("no image to predict", command("predict", "absent.png"), X, "absent.png"),
]


@pytest.mark.parametrize(
    "call, error, message", [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_is_refused(call, error, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        call(tmp_path)
    assert message in str(caught.value) + capsys.readouterr().err
    if error is SystemExit:
        assert not any(tmp_path.iterdir()), "refused before anything was written"
