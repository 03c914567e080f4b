"""The console script `ds4nn` is the experiments under one name."""

import numpy as np
import pytest
from PIL import Image

from ds4nn_jax import data
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


def test_predict_an_image_file(run, tmp_path, capsys):
    digits = data.load("digits")
    image = np.round(digits.test_images[0, ..., 0] * 255).astype(np.uint8)
    right, inverted, large = (tmp_path / f"{n}.png" for n in ("a", "b", "c"))
    Image.fromarray(image).save(right)
    Image.fromarray(255 - image).save(inverted)
    Image.fromarray(np.kron(image, np.ones((5, 5), np.uint8))).save(large)
    weights = f"--weights={run / 'best.safetensors'}"
    cli.main(["predict", str(right), str(large), weights])
    cli.main(["predict", str(inverted), "--invert", weights])
    first, scaled, second, third = sorted(capsys.readouterr().out.splitlines())
    answer = first.split(": ")[1]
    assert answer[0].isdigit()
    assert "scaled from (40, 40) to (8, 8) pixels" in second + third + scaled
    answers = {line.split(": ")[1] for line in (first, scaled, second, third)}
    assert answers == {answer, "scaled from (40, 40) to (8, 8) pixels"}


@pytest.mark.parametrize(
    "argv, message",
    [
        (["predict", "missing.png"], "ds4nn predict: .*missing.png"),
        (["predict", __file__], "ds4nn predict: cannot identify image file"),
        (["predict", "x.png", "--weights=none.safetensors"], "none.safetensors"),
        (["train", "digits", "--spec=10C3"], "last layer must be fully connected"),
        (["evaluate", "digits"], "no trained network 'digits'"),
    ],
)
def test_refuses(argv, message):
    with pytest.raises(SystemExit, match=message):
        cli.main(argv)
