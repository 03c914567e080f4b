import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

import ds4nn_jax as ds

ROOT = Path(__file__).parents[1]
HEAVY = ("tensorflow_datasets", "tensorflow", "matplotlib", "numba", "orbax", "sklearn")


def test_import_is_light_and_silent():
    code = "import sys, ds4nn_jax; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not loaded.stderr
    assert not set(loaded.stdout.split()) & set(HEAVY)


def test_base_install_predicts_and_names_the_extra_that_is_missing(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {
        re.split(r"\W", entry)[0]
        for entry in project["optional-dependencies"]["experiments"]
    }
    assert extra >= {"matplotlib", "scikit"}
    blocked = {"scikit": "sklearn", "tensorflow": "tensorflow_datasets"}
    bar = np.zeros((28, 28), np.uint8)
    bar[4:24, 12:16] = 255
    Image.fromarray(bar).save(tmp_path / "one.png")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({[blocked.get(name, name) for name in extra]}))
from experiments import cli
cli.main(["predict", {str(tmp_path / "one.png")!r}])
cli.main(["report"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "one.png: 1 (decided at step" in done.stdout
    assert re.search(r"needs matplotlib: .*ds4nn_jax\[experiments\]", done.stderr)
    assert "Traceback" not in done.stderr


def test_public_names_are_documented_and_there():
    assert len(set(ds.__all__)) == len(ds.__all__)
    for name in ds.__all__:
        value = getattr(ds, name)
        assert name == "SpikeTimes" or value.__doc__, name


def test_each_file_imports_only_files_above_it():
    """In the order in which WORKSPACE.md tells the architecture."""
    text = (ROOT / "WORKSPACE.md").read_text(encoding="utf-8")
    told = text.split("```")[1].split("experiments/")[0]
    names = re.findall(r"^ {0,2}((?:\w+/?, )*\w+/?,?)(?: |$)", told, re.MULTILINE)
    order = [name for line in names for name in re.findall(r"\w+", line)]
    package = ROOT / "ds4nn_jax"
    files = {
        path.stem: path for path in package.rglob("*.py") if path.stem != "__init__"
    }
    assert sorted(files) == sorted(set(order) - {"_engines", "weights"})
    for name, path in files.items():
        source = path.read_text(encoding="utf-8")
        for module, what in re.findall(
            r"^ *from (ds4nn_jax[\w.]*) import (\([^)]*\)|.*)", source, re.MULTILINE
        ):
            parts = module.split(".")[1:] + re.findall(r"\w+", what)
            for other in set(parts) & set(files):
                assert order.index(other) < order.index(name), (name, other)
