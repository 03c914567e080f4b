import dataclasses
import gc
import json
import logging
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.cli import runner
from ds4nn_jax.training import checkpoints
from ds4nn_jax.training.checkpoints import CheckpointError, Checkpoints
from experiments import digits

CONFIG = ds.TrainConfig(
    spec="64-20-10",
    initial_weights=ds.initial_weights.FiringRates(dense=0.4),
    optimizer=ds.optimizers.Adam(learning_rate=0.1),
    augmentation=ds.augmentation.Augmentation(shift=1),
    batch_size=10,
    epochs=3,
)
FLAGS = (
    "--preset=default --spec=64-20-10 --initial_weights.dense=0.4 "
    "--optimizer.learning_rate=0.05 --batch_size=10 --epochs=3 --train_limit=300 "
    "--augmentation.shift=1"
).split()


@pytest.fixture(scope="module")
def images():
    dataset = data.load("digits")
    return dataset.train_images[:100], dataset.train_labels[:100]


@pytest.fixture(scope="module")
def saved(images):
    """The beginning, one after every step of an epoch, and one after the epoch."""
    kept = [ds.initial_checkpoint(CONFIG, *images)]
    run = ds.train(CONFIG, *images, on_step=lambda step: kept.append(step.checkpoint()))
    after = next(run).checkpoint
    return [*kept, after]


def same(a, b):
    def equal(x, y):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype

    jax.tree.map(equal, a, b)


def test_the_latest_comes_back(tmp_path, saved):
    """Of a folder with any name, two remain. The end of an epoch follows its last step:
    both have taken the same steps, but only one has been validated."""
    folder = tmp_path / "a[1]" / "back\\slash"
    store = Checkpoints(folder, CONFIG)
    assert store.latest(saved[0]) is None
    for checkpoint in saved:
        store.save(checkpoint)
        same(store.latest(saved[0]), checkpoint)
    assert [int(checkpoint.epoch) for checkpoint in saved[-2:]] == [0, 1]
    same(Checkpoints(folder, CONFIG).latest(saved[0]), saved[-1])
    assert len(list(folder.iterdir())) == 2


class Stream:
    """Batches that do not know how many there are."""

    def __init__(self, images, labels):
        self._batches = [
            (images[k : k + 10], labels[k : k + 10]) for k in range(0, 90, 10)
        ]

    def __iter__(self):
        yield from self._batches


def test_a_stream_goes_on(tmp_path, images):
    """From disk, to the weights that an undisturbed run has; of what can be iterated
    over once no batch is lost on the way."""
    once = iter(Stream(*images))
    runs = [
        ds.initial_checkpoint(CONFIG, batches) for batches in (Stream(*images), once)
    ]
    assert len(list(once)) == 9
    first, last = list(ds.train(CONFIG, Stream(*images), steps_per_epoch=9))[::2]
    store = Checkpoints(tmp_path, CONFIG)
    store.save(first.checkpoint)
    for like in runs:
        start = store.latest(like)
        same(start, first.checkpoint)
    *_, again = ds.train(CONFIG, Stream(*images), steps_per_epoch=9, start=start)
    same(again.checkpoint, last.checkpoint)


def test_another_run_is_refused(tmp_path, saved, monkeypatch):
    Checkpoints(tmp_path, CONFIG, dataset="digits").save(saved[0])
    other = dataclasses.replace(CONFIG, output_rule="margin")
    for store, message in (
        (
            Checkpoints(tmp_path, other, dataset="digits"),
            r'output_rule is "Softmax\(.*\)", expected "Margin\(.*offset=10.0\)"',
        ),
        (
            Checkpoints(tmp_path, CONFIG, dataset="mnist"),
            "dataset is 'digits', expected 'mnist'",
        ),
    ):
        with pytest.raises(CheckpointError, match=f"of another run: its {message}"):
            store.latest(saved[0])
    monkeypatch.setattr(checkpoints, "FORMAT", "ds4nn_jax checkpoint 4")
    with pytest.raises(CheckpointError, match="format is '.* 3', expected '.* 4'"):
        Checkpoints(tmp_path, CONFIG, dataset="digits").latest(saved[0])


# orbax reads all arrays at once and abandons the others when one fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damage_is_refused(tmp_path, saved, caplog):
    """Every file of a checkpoint, cut short or with a bit flipped, is refused or reads
    the same. orbax alone reads arrays with flipped bits without a word."""
    store = Checkpoints(tmp_path, CONFIG)
    store.save(saved[0])
    store.save(saved[1])
    caplog.set_level(logging.CRITICAL, "asyncio")

    def outcome(file, content, damaged):
        file.write_bytes(damaged)
        try:
            same(Checkpoints(tmp_path, CONFIG).latest(saved[0]), saved[1])
        except CheckpointError as error:
            assert "remove it to go on from an older one" in str(error)
            return "refused"
        except AssertionError:
            return "another"
        finally:
            file.write_bytes(content)
        return "same"

    def flipped(content, position):
        damaged = bytearray(content)
        damaged[position] ^= 1
        return bytes(damaged)

    files = {f: f.read_bytes() for f in (tmp_path / "1").rglob("*") if f.is_file()}
    files = {file: content for file, content in files.items() if len(content) > 1}
    for damage in (lambda c: c[: len(c) // 2], lambda c: flipped(c, len(c) // 2)):
        outcomes = [outcome(file, c, damage(c)) for file, c in files.items()]
        assert outcomes.count("refused") >= 2 and "another" not in outcomes
    file = max(files, key=lambda file: len(files[file]))
    content = files[file]
    bits = [flipped(content, k) for k in range(500, len(content), 1000)]
    assert "another" not in [outcome(file, content, damaged) for damaged in bits]
    gc.collect()  # what was abandoned complains here, not in the next test
    assert outcome(file, content, content) == "same"


def test_a_full_disk_leaves_the_last_one(tmp_path, saved, monkeypatch):
    store = Checkpoints(tmp_path, CONFIG)
    store.save(saved[0])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._manager, "save", full)
    message = r"No space left on device; whole ones there: \[0\]"
    with pytest.raises(CheckpointError, match=message):
        store.save(saved[1])
    same(Checkpoints(tmp_path, CONFIG).latest(saved[0]), saved[0])


RESUME = "--resume goes on from here\n"


def without_seconds(out):
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(autouse=True, scope="module")
def no_figures():
    """They have tests of their own and take as long as these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner._Run, "_draw", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    digits.main(["x", *FLAGS, f"--out_dir={out}"])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on(end, tmp_path, undisturbed):
    """Stopped in the second epoch, resumed: weights byte for byte, metrics whole."""
    command = [sys.executable, "-m", "experiments.digits", *FLAGS]
    command += [f"--out_dir={tmp_path}", "--checkpoint_minutes=0.00001"]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as run:
        lines = []
        for line in run.stdout:
            lines.append(line)
            if line.startswith("epoch"):
                run.send_signal(end)
                break
        lines += run.stdout.readlines()
    killed = end == signal.SIGKILL
    assert run.returncode == (-end if killed else 128 + end)
    farewell = [line for line in lines if "--resume goes on" in line]
    assert farewell == ([] if killed else [f"stopped by {end.name}; {RESUME}"])
    assert len(without_seconds(tmp_path)) < 4
    digits.main(["x", *FLAGS, f"--out_dir={tmp_path}", "--resume"])
    assert "resume" not in (tmp_path / "flags.cfg").read_text()
    best = "best.safetensors"
    assert (tmp_path / best).read_bytes() == (undisturbed / best).read_bytes()
    assert without_seconds(tmp_path) == without_seconds(undisturbed)


def test_a_second_signal_ends_a_run_at_once(monkeypatch):
    def leave(number, message):
        raise SystemExit(128 + number)

    monkeypatch.setattr(runner.progress, "leave_at_once", leave)
    stopping = runner._Stopping(None, 0, None)
    stopping._ask(signal.SIGINT, None)
    with pytest.raises(SystemExit) as left:
        stopping._ask(signal.SIGINT, None)
    assert left.value.code == 130


@pytest.mark.parametrize(
    "module", ["digits", pytest.param("report", marks=pytest.mark.slow)]
)
def test_ctrl_c_ends_a_program_with_one_line(module, undisturbed, tmp_path):
    command = [sys.executable, "-u", "-m", f"experiments.{module}"]
    if module == "digits":
        command += [f"--evaluate={undisturbed / 'best.safetensors'}"]
    else:
        command += [f"--run_dir={undisturbed}", f"--out_dir={tmp_path}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as run:
        run.stdout.readline()
        run.send_signal(signal.SIGINT)
        _, message = run.communicate()
    assert run.returncode == 130
    assert message == f"experiments.{module}: interrupted\n"


def test_resuming_a_complete_run_changes_nothing(undisturbed):
    """With other flags it is refused."""
    before = without_seconds(undisturbed)
    command = ["x", *FLAGS, f"--out_dir={undisturbed}", "--resume"]
    digits.main(command)
    assert without_seconds(undisturbed) == before
    with pytest.raises(SystemExit, match="another run: its seed is 0, expected 1"):
        digits.main([*command, "--seed=1"])
