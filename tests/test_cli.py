"""The console script `ds4nn` is the experiments under one name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ds4nn_jax as ds
from ds4nn_jax.cli import commands, runner


@pytest.fixture
def run(smoke_run):
    return smoke_run[0]


@pytest.mark.slow
def test_evaluate_repeats_what_training_found(run, capsys):
    commands.main(["evaluate", "digits", f"--evaluate={run / 'best.safetensors'}"])
    evaluated = capsys.readouterr().out
    found = (run / "metrics.jsonl").read_text().splitlines()[-1]
    accuracy = float(found.split('"test_accuracy": ')[1].split(",")[0])
    assert f"strict accuracy   {accuracy:.2%}" in evaluated


@pytest.mark.parametrize(
    "argv, message",
    [
        (["predict", "x.png", "--weights=none.safetensors"], "none.safetensors"),
        (["train", "digits", "--spec=10C3"], "last layer must be fully connected"),
        (["evaluate", "digits"], "no trained network 'digits'"),
        (["train"], "ds4nn train: which data set"),
        (["train", "minst"], "ds4nn train minst: no data set .*did you mean mnist"),
        (["train", "--epochs", "1", "minst"], "ds4nn train minst: no data set"),
        (
            ["train", "--preset", "digits", "--spec=9C3", "mnist"],
            "ds4nn train mnist: network spec",
        ),
        (
            ["train", "digits", "mnist"],
            "ds4nn train digits: unexpected argument 'mnist'",
        ),
        (["evaluate", "--data_dir", "x", "digits"], "no trained network 'digits'"),
        (["train", "fashion-mnist"], "did you mean fashion_mnist"),
        (["train", "digits", "--epochz=3"], "ds4nn train: .*mean: epochs"),
        (["train", "mnist", "--dataset=digits"], "--dataset=digits says another"),
        (["train", "digits", "--init_from=mnist"], "is 64C3-P2-128C3-P2-10, the run"),
        (["train", "digits", "--batch_size=0"], "batch_size must be at least 1"),
    ],
)
def test_refuses(argv, message):
    with pytest.raises(SystemExit, match=message):
        commands.main(argv)


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["report", "-h"]])
def test_help_is_on_stdout(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main(argv)
    told = capsys.readouterr()
    assert caught.value.code == 0 and told.err == ""
    assert told.out.startswith("usage: ds4nn")


@pytest.mark.parametrize(
    "command, words",
    [
        (["train", "digits"], ["--spec [32C3-P2-64C3-10]", "--resume", "digits_smoke"]),
        (["train", "mnist", "--preset=paper"], ["--spec [64C3-P2-128C3-P2-10]"]),
        (["evaluate"], ["--test_limit", "--urgency"]),
    ],
)
def test_help_has_what_a_command_needs(command, words, capsys):
    with pytest.raises(SystemExit):
        commands.main([*command, "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in [*words, "--data_dir", "--helpfull"])
    assert text.count("\n") < 45 and "experiments." not in text
    assert ("--epochs" in text) == (command[0] == "train")


def test_terminals_and_platforms_of_another_kind(tmp_path):
    """Without docstrings, letters or a TPU: text in ASCII, and one line of error."""
    variables = {
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": str(Path(commands.__file__).parents[2]),
    }
    command = [sys.executable, "-OO", "-m", "ds4nn_jax.cli.commands"]
    tpu = {"JAX_PLATFORMS": "tpu"}
    lacks = ": JAX_PLATFORMS=tpu is not on .*\n"
    for arguments, more, message in (
        (["train", "--help"], {}, ""),
        (["train", "digits", "--epochs=1"], tpu, "ds4nn train digits" + lacks),
        (["export", "mnist", "--out_dir=x"], tpu, "ds4nn export" + lacks),
        (
            ["predict", "--figure=x", "x.png"],
            {"MPLBACKEND": "none"},
            "ds4nn predict: .*'none' is not a valid value for backend.*\n",
        ),
    ):
        done = subprocess.run(
            [*command, *arguments],
            env=os.environ | variables | {"JAX_PLATFORMS": "cpu"} | more,
            cwd=tmp_path,
            capture_output=True,
            encoding="ascii",
        )
        assert done.returncode == bool(message), done.stderr
        assert re.fullmatch(message, done.stderr)


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == ds.__version__


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ds4nn_jax.cli.runner", None)
    monkeypatch.delattr("ds4nn_jax.cli.runner", raising=False)
    with pytest.raises(SystemExit, match=r"pip install 'ds4nn_jax\[experiments\]'"):
        commands.main(["evaluate", "mnist"])


def test_weights_of_another_data_set_are_named(run, tmp_path, capsys):
    network, params, notes = ds.load_weights(run / "best.safetensors")
    assert notes["made_by"]["ds4nn_jax"] == ds.__version__
    assert notes["made_by"].get("commit") == runner.commit().get("commit")
    path = tmp_path / "w.safetensors"
    ds.save_weights(path, network, params, notes=notes | {"dataset": "mnist"})
    commands.main(["evaluate", "digits", f"--evaluate={path}"])
    assert "trained on 'mnist'" in capsys.readouterr().out


def test_an_evaluation_tells_spikes_with_and_without_pooling(run, capsys):
    commands.main(["evaluate", "digits", f"--evaluate={run / 'best.safetensors'}"])
    told = capsys.readouterr().out
    whole = int(told.split("\n  spikes")[1].split()[0])
    own, by_layer = told.split("without pooling")[1].split("of all layers: ")
    layers = dict(part.split() for part in by_layer.splitlines()[0].split(", "))
    counts = {name: int(count) for name, count in layers.items()}
    assert sum(counts.values()) == pytest.approx(whole, abs=len(counts))
    assert counts["pool1"] > 0
    assert int(own.split()[0]) == pytest.approx(whole - counts["pool1"], abs=2)


def test_urgency_of_an_evaluation_of_some_images(run, capsys):
    weights = f"--evaluate={run / 'best.safetensors'}"
    commands.main(["evaluate", "digits", weights, "--urgency=20", "--test_limit=70"])
    hurried = capsys.readouterr().out
    assert "test images 70 " in hurried
    assert "reference spikes of 20 mV" in hurried
    step = float(hurried.split("decision step")[1].split()[0])
    assert step < 5, "20 mV a step reach 100 mV by themselves at step 4"
