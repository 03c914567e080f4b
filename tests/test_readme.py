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


def test_commands_name_what_is_there():
    """Of `make`, `python -m` and flagfiles; each is run by a test of its own."""
    root = Path(__file__).parents[1]
    targets = re.findall(r"^(\w+):", (root / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`?make (\w+)", README)) <= set(targets)
    modules = re.findall(r"python\s+-m\s+([\w.]+)", README)
    assert {"experiments.mnist", "benchmarks.network", "benchmarks.peers"} <= {*modules}
    for module in modules:
        assert (root / module.replace(".", "/")).with_suffix(".py").exists(), module
    for name in re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE):
        assert (root / f"experiments/flagfiles/{name}.cfg").exists(), name


def test_links_work_on_a_package_index():
    links = re.findall(r"\]\(([^)]+)\)|(?:src|href)=\"([^\"]+)\"", README)
    assert len(links) > 10
    assert all("".join(link).startswith("https://") for link in links)
