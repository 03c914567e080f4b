"""The console script `ds4nn` is the experiments under one name."""

import pytest

from experiments import cli


@pytest.fixture
def run(smoke_run):
    return smoke_run[0]


def test_evaluate_repeats_what_training_found(run, capsys):
    cli.main(["evaluate", "digits", f"--evaluate={run / 'best.safetensors'}"])
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
    ],
)
def test_refuses(argv, message):
    with pytest.raises(SystemExit, match=message):
        cli.main(argv)
