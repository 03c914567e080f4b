"""The console script `ds4nn`: help, refusals, evaluation."""

import json
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


@pytest.mark.parametrize(
    "argv, message",
    [
        (["predict", "x.png", "--weights=none.safetensors"], "none.safetensors"),
        (["train", "digits", "--spec=10C3"], "last layer must be fully connected"),
        (["train"], "ds4nn train: which data set"),
        (["train", "minst"], "ds4nn train minst: no data set .*did you mean mnist"),
        (
            ["train", "--preset", "digits", "--spec=9C3", "mnist"],
            "ds4nn train mnist: network spec",
        ),
        (
            ["train", "digits", "mnist"],
            "ds4nn train digits: unexpected argument 'mnist'",
        ),
        (["evaluate", "--data_dir", "x", "digits"], "no trained network 'digits'"),
        (["train", "digits", "--epochz=3"], "ds4nn train: .*mean: epochs"),
        (["train", "mnist", "--dataset=digits"], "--dataset=digits says another"),
        (["train", "digits", "--init_from=mnist"], "is 64C3-P2-128C3-P2-10, the run"),
    ],
)
def test_refuses(argv, message):
    with pytest.raises(SystemExit, match=message):
        commands.main(argv)


@pytest.mark.parametrize(
    "command, words",
    [
        (["train", "digits"], ["--spec [32C3-P2-64C3-10]", "--resume", "smoke"]),
        (["train", "mnist", "--preset=paper"], ["--spec [64C3-P2-128C3-P2-10]"]),
        (["evaluate"], ["--test_limit", "--urgency"]),
        (["report"], ["--run_dir", "--data_dir"]),
        ([], ["ds4nn export mnist", "ds4nn report"]),
    ],
)
def test_help_has_what_a_command_needs(command, words, capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main([*command, "--help"])
    text, errors = capsys.readouterr()
    assert caught.value.code == 0 and not errors
    assert text.startswith(" ".join(["usage: ds4nn", *command[:1]]))
    if command and command[0] != "report":
        words = [*words, "--data_dir", "--helpfull"]
    assert all(word in text for word in words)
    assert text.count("\n") < 45 and "experiments." not in text
    assert ("--epochs" in text) == (command[:1] == ["train"])


@pytest.mark.slow
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


def test_evaluate_repeats_what_training_found(run, capsys):
    """And tells spikes with and without pooling."""
    commands.main(["evaluate", "digits", f"--evaluate={run / 'best.safetensors'}"])
    text = capsys.readouterr().out
    test = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"strict accuracy   {test['test_accuracy']:.2%}" in text
    total = int(text.split("\n  spikes")[1].split()[0])
    unpooled, by_layer = text.split("without pooling")[1].split("of all layers: ")
    layers = dict(part.split() for part in by_layer.splitlines()[0].split(", "))
    counts = {name: int(count) for name, count in layers.items()}
    assert sum(counts.values()) == pytest.approx(total, abs=len(counts))
    assert counts["pool1"] > 0
    assert int(unpooled.split()[0]) == pytest.approx(total - counts["pool1"], abs=2)


def test_urgency_of_an_evaluation_of_some_images(run, capsys):
    weights = f"--evaluate={run / 'best.safetensors'}"
    commands.main(["evaluate", "digits", weights, "--urgency=20", "--test_limit=70"])
    hurried = capsys.readouterr().out
    assert "test images 70 " in hurried
    assert "reference spikes of 20 mV" in hurried
    step = float(hurried.split("decision step")[1].split()[0])
    assert step < 5, "20 mV a step reach 100 mV by themselves at step 4"
