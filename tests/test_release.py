"""A shipped network's card says how it was made and what it does."""

import shlex

import jax
import numpy as np
import pytest

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.cli import flags
from experiments import release


@pytest.fixture
def shipped(smoke_run, tmp_path):
    """(weights, card) of a run that did not do all as its preset does."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("best.safetensors", "metrics.jsonl", "flags.cfg"):
        (run / name).write_bytes((smoke_run[0] / name).read_bytes())
    with (run / "flags.cfg").open("a") as file:
        file.write("--epochs=3\n--regularizer.targets=0.1\n--soft_labels=teacher.npy\n")
    out = f"--out_dir={tmp_path / 'out'}"
    arguments = ["mine", f"--run_dir={run}", out, "--urgency=0.5"]
    with pytest.raises(SystemExit, match="these weights are real numbers"):
        release.main(arguments)
    release.main([*arguments, "--bits=8"])
    return tmp_path / "out/mine.safetensors", tmp_path / "out/mine.md"


def test_its_command_is_the_run_it_was(shipped, smoke_run):
    _, card = shipped
    text = card.read_text()
    command = text.partition("Trained by `")[2].partition("`")[0]
    _, program, *arguments = shlex.split(command)  # NPROC=…
    assert program == "ds4nn" and arguments.pop(0) == "train"
    asked = flags.parse(["ds4nn", *arguments], dataset="", command="train")
    flagfile = f"--flagfile={smoke_run[0] / 'flags.cfg'}"
    run = flags.parse(["x", flagfile], dataset="digits")
    assert asked.soft_labels == "teacher.npy"
    assert (asked.config.epochs, asked.config.regularizer.targets) == (3, (0.1,))
    assert asked.config.spec == run.config.spec
    assert str(smoke_run[0]) not in text
    assert "made by\nwhat `experiments/flagfiles/mine.cfg` begins with." in text
    assert "with an urgency of 0 mV a step; 0.5 was chosen on held" in text
    assert "of 8 bits" in text and "rounded after training" in text


def test_whole_numbers_stay_as_they_are(tmp_path, rng):
    """Weights, and an urgency in mV. The card tells bits and pulses."""
    digits, run = data.load("digits"), ["--spec=64-10", "--urgency=0.3", "--bits=3"]
    run += ["--pulses=5"]
    made = flags.parse(["x", *run], dataset="digits")
    kernel = rng.normal(0, 30, (64, 10)).astype(np.float32)
    pulses = rng.normal(0, 30, (5, 10)).astype(np.float32)
    params = {"params": {"dense1": {"kernel": kernel, "pulses": pulses}}}
    own = ds.quantize(made.config.network(), params, bits=3)
    notes = {"dataset": "digits", "seed": 0, "epoch": 1, "made_by": {"threads": "1"}}
    ds.save_weights(tmp_path / "best.safetensors", *own, notes=notes)
    (tmp_path / "flags.cfg").write_text(made.resolved)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    out = f"--out_dir={tmp_path / 'out'}"
    release.main(["mine", f"--run_dir={tmp_path}", out])
    network, params, card = ds.load_weights(tmp_path / "out/mine.safetensors")
    jax.tree.map(np.testing.assert_array_equal, params, own[1])
    assert (network.urgency, card["urgency"]) == (own[0].urgency, 0.3)
    text = (tmp_path / "out/mine.md").read_text()
    assert "integers of 3 bits" in text
    assert "of 0.3 mV (urgency) and of pulses (5 of dense1)" in text
    assert "`ds4nn evaluate mine` gives them again" in text
    report = ds.evaluate(network, params, digits.test_images, digits.test_labels)
    assert f"| strict accuracy | {report.accuracy:.2%} |" in text


def test_its_command_keeps_what_another_optimizer_shares_with_the_presets():
    changes = ["--preset=mnist", "--optimizer=muon", "--optimizer.norms=held"]
    run = flags.parse(["x", *changes], dataset="mnist")
    command = release._flags(run)
    assert flags.parse(["x", *command.split()], dataset="mnist").config == run.config
