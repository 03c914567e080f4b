"""What the README shows runs as it stands, and does what it says."""

import re
from pathlib import Path

import numpy as np

from ds4nn_jax import data

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_examples_run_in_order():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(code, names)
    correct = np.asarray(names["decided"].label) == data.load("digits").test_labels[:8]
    assert correct.mean() >= 0.75
    assert names["d_kernel"].shape == names["kernel"].shape
    assert np.abs(names["d_kernel"]).sum() > 0


def test_code_map_names_files_that_exist():
    root = Path(__file__).parents[1]
    for path in re.findall(r"`((?:ds4nn_jax|experiments|benchmarks)/[\w/.]*)`", README):
        assert (root / path).exists(), path
