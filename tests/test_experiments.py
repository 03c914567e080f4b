"""Every entry point through `main` with its flagfile."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import conftest
import filelock
import jax
import numpy as np
import pytest
from PIL import Image

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.cli import commands, flags, progress
from experiments import digits, fashion, mnist

FLAGFILES = Path(__file__).parents[1] / "experiments" / "flagfiles"


def flagfile(name):
    return f"--flagfile={FLAGFILES / name}.cfg"


def rows(out):
    return [
        json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()
    ]


def test_digits_smoke(smoke_run):
    out, report = smoke_run
    assert report.images == 359
    *epochs, test = rows(out)
    assert [row["epoch"] for row in epochs] == [1, 2]
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]
    assert test["test_accuracy"] == report.accuracy > 0.3
    best = max(epochs, key=lambda row: (row["val_accuracy"], row["epoch"]))
    assert test["best_epoch"] == best["epoch"]
    figures = {path.name for path in out.glob("*.png")}
    assert figures == {
        f"{name}.png"
        for name in (
            "confusion",
            "firing_times",
            "learning_curve",
            "output_potentials",
            "raster",
            "spikes_per_layer",
        )
    }
    repeated, made = (
        flags.parse(["x", f"--flagfile={path}"], dataset="digits").config
        for path in (out / "flags.cfg", FLAGFILES / "digits_smoke.cfg")
    )
    assert repeated == made


@pytest.mark.slow
def test_a_run_on_images_in_folders(tmp_path, monkeypatch, no_figures, capsys):
    """Without a terminal epochs have lines of steps."""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN", 0)
    given, folder = data.load("digits"), tmp_path / "odd and even"
    for name in ("even", "odd"):
        (folder / name).mkdir(parents=True)
    for k, label in enumerate(given.train_labels[:100]):
        image = Image.fromarray(given.train_images[k, ..., 0])
        image.save(folder / ("even", "odd")[label % 2] / f"{k}.png")
    flags = [f"--out_dir={tmp_path}", "--preset=smoke", "--epochs=2"]
    commands.main(["train", str(folder), *flags])
    network, _, notes = ds.load_weights(tmp_path / "best.safetensors")
    assert (network.spec, notes["class_names"]) == (
        "16C3-P2-32C3-P2-2",
        ["even", "odd"],
    )
    assert "--spec=16C3-P2-32C3-P2-2\n" in (tmp_path / "flags.cfg").read_text()
    assert "epoch   1/2  step 1 of " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("entry, name", [(mnist, "mnist"), (fashion, "fashion_mnist")])
def test_real_images(entry, name, tmp_path, no_figures):
    """The smoke flagfile, cut to one epoch of 640 images."""
    folder = conftest.real_data_dir(name)
    if folder is None:
        pytest.skip(f"real {name} is not at hand (DS4NN_DATA_DIR)")
    short = "mnist" if entry is mnist else "fashion"
    report = entry.main(
        [
            short,
            flagfile(f"{short}_smoke"),
            f"--data_dir={folder}",
            f"--out_dir={tmp_path}",
            "--train_limit=640",
            "--test_limit=1000",
            "--epochs=1",
            "--spec=8C3-P2-8C3-P2-10",
            "--batch_size=16",
        ]
    )
    assert report.images == 1000
    assert report.accuracy > 0.15, "one short epoch is above chance"


@pytest.mark.parametrize("path", sorted(FLAGFILES.glob("*.cfg")), ids=lambda p: p.stem)
def test_every_flagfile_is_a_valid_run(path):
    options = flags.parse(["x", f"--flagfile={path}"], dataset="digits")
    assert options.out_dir == f"runs/{path.stem}"
    options.config.network()


def test_paper_flagfile_is_table_1():
    config = flags.parse(["x", flagfile("mnist_paper")], dataset="mnist").config
    assert config == ds.presets.load("paper")
    assert config.network().spec == "64C3-P2-128C3-P2-10"
    assert (config.num_steps, config.threshold) == (100, 100.0)
    assert config.output_rule == ds.rules.Relative(offset=10, normalization="l2")
    assert config.surrogate == ds.Constant()
    assert config.initial_weights.ranges[:2] == ((0.0, 80.0), (0.0, 50.0))
    assert config.optimizer == ds.optimizers.Adam(learning_rate=0.1, unit="mV")
    assert config.schedule == ds.schedules.StepDecay(decay=0.9, period=5)


@pytest.mark.parametrize("name", ds.presets.names())
def test_resolved_flags_are_the_configuration(name, tmp_path):
    """Every preset, changed by a flag, comes back from the flagfile of its run; read by
    an experiment whose data set has a preset of its own."""
    argv = ["x", f"--preset={name}", "--seed=3", "--optimizer.average=0.5"]
    options = flags.parse([*argv, "--out_dir=x"], dataset="digits")
    base = ds.presets.load(name)
    optimizer = dataclasses.replace(base.optimizer, average=0.5)
    assert options.config == dataclasses.replace(base, seed=3, optimizer=optimizer)
    (tmp_path / "flags.cfg").write_text(options.resolved)
    argv = ["x", f"--flagfile={tmp_path / 'flags.cfg'}"]
    assert flags.parse(argv, dataset="fashion_mnist") == options


@pytest.mark.parametrize(
    "dataset, preset", [("digits", "digits"), ("mnist", "mnist"), ("svhn", "default")]
)
def test_without_flags_a_data_set_has_the_best_known_recipe(dataset, preset):
    options = flags.parse(["x"], dataset=dataset)
    assert options.config == ds.presets.load(preset) and options.preset == preset


def test_every_flag_has_a_help_under_its_value(capsys):
    with pytest.raises(SystemExit) as caught:
        flags.parse(["x", "--helpfull"], dataset="digits")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(ds.TrainConfig):
        assert re.search(rf"--(\[no\])?{field.name}[:.].*\S", text), field.name
    groups = re.split(r"^(\w+):$", text, flags=re.MULTILINE)
    told = dict(zip(groups[1::2], groups[2::2], strict=True))
    for group, flag in (
        ("output_rule", "--output_rule.temperature: (softmax) τ > 0"),
        ("optimizer", "--optimizer.norms: <free|held|learned>"),
        ("schedule", "--schedule.period: (step_decay)"),
        ("run", "--out_dir"),
    ):
        assert flag in told[group], flag


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--noresume"], "already holds a run.*--overwrite"),
        (["--noresume", "--overwrite", "--batch_size=5000"], "batch_size 5000 is larg"),
        (
            ["--noresume", "--overwrite", "--initial_weights.conv=0.999999"],
            "cannot be made to fire",
        ),
        (["--epochs=1"], "for 2 epochs already, --epochs=1 are fewer"),
    ],
)
def test_a_run_that_cannot_start_leaves_the_earlier_one(smoke_run, arguments, message):
    out, _ = smoke_run

    def contents():
        return {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}

    before = contents()
    with pytest.raises(SystemExit, match=message):
        digits.main(
            ["digits", flagfile("digits_smoke"), f"--out_dir={out}", *arguments]
        )
    assert contents() == before


@pytest.mark.slow
def test_going_on_for_longer(smoke_run, no_figures, tmp_path):
    """What was trained stays, an epoch is added; one run at a time."""
    out = tmp_path / "run"
    shutil.copytree(smoke_run[0], out)
    before = rows(out)
    argv = ["digits", flagfile("digits_smoke"), f"--out_dir={out}", "--epochs=3"]
    with filelock.FileLock(out / ".lock"):
        with pytest.raises(SystemExit, match="another run is writing to"):
            digits.main(argv)
    digits.main(argv)
    after = rows(out)
    assert after[:2] == before[:2] and after[2]["epoch"] == 3 and len(after) == 4


@pytest.mark.slow
def test_fine_tuning_begins_with_the_weights(
    smoke_run, tmp_path, monkeypatch, no_figures, capsys
):
    """Steps of nothing: what is kept is what was given. And ~ is the home directory.
    A run that goes on knows with what it began, and does without it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(smoke_run[0] / "best.safetensors", tmp_path / "w.safetensors")
    flags = [flagfile("digits_smoke"), "--noresume", "--epochs=1"]
    flags.append("--optimizer.learning_rate=1e-12")
    flags.append("--out_dir=~/made/hidden=[64, 32]\\")  # orbax cannot have such names
    digits.main(["digits", *flags, "--init_from=~/w.safetensors"])
    made = tmp_path / "made" / "hidden=[64, 32]\\"
    given, kept = (
        ds.load_weights(folder / "best.safetensors").params
        for folder in (smoke_run[0], made)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), given, kept)
    (tmp_path / "w.safetensors").unlink()
    with pytest.raises(
        SystemExit, match="w.safetensors, --init_from=mnist says another"
    ):
        digits.main(["digits", *flags, "--resume", "--init_from=mnist"])
    capsys.readouterr()
    digits.main(["digits", *flags, "--resume", "--epochs=2"])
    assert "epoch 1 of 2, with 50% of the learning rate" in capsys.readouterr().out
    assert [row.get("epoch") for row in rows(made)] == [1, 2, None]
    digits.main(["digits", *flags, "--resume", "--epochs=2"])
    text = capsys.readouterr().out
    assert "all 2 epochs are done" in text and "compiling" not in text
    flags = (made / "flags.cfg").read_text()
    assert f"# ds4nn_jax: {ds.__version__}" in flags and "# date: 20" in flags
    assert f"--init_from={tmp_path / 'w.safetensors'}\n" in flags
    # The schedule of the first epoch was that of one.
    assert "# to repeat it: --epochs=1 until epoch 1, then --resume with" in flags


def test_out_dir_that_is_a_file(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("mine")
    with pytest.raises(SystemExit, match="experiments.digits: .*file"):
        digits.main(["digits", flagfile("digits_smoke"), f"--out_dir={occupied}"])
    assert occupied.read_text() == "mine"


def test_missing_data_names_the_places(tmp_path):
    with pytest.raises(SystemExit, match="no data set 'mnist' found"):
        mnist.main(["mnist", flagfile("mnist_smoke"), f"--data_dir={tmp_path}"])
