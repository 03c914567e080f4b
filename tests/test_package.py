import ast
import graphlib
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
from ds4nn_jax.cli import commands
commands.main(["predict", {str(tmp_path / "one.png")!r}])
commands.main(["report"])
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


ROOMS = (
    {"types", "_checks", "_values", "_files", "_pictures"},
    {"_engines"},
    {"layers"},
    {"networks"},
    {"data", "nir", "plots"},
    {"training"},
    {"cli"},
)


def test_each_room_imports_only_those_above_it():
    """And no two files import each other, nor does one of them the laboratory."""
    package = ROOT / "ds4nn_jax"
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in package.rglob("*.py")
        if path.stem != "__init__"
    }
    imports = {
        name: {
            imported
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom | ast.Import)
            for alias in node.names
            for module in (getattr(node, "module", alias.name),)
            for imported in (module, f"{module}.{alias.name}")
        }
        for name, path in files.items()
    }
    number = {name: i for i, room in enumerate(ROOMS) for name in room}
    for name, imported in imports.items():
        assert not any(module.split(".")[0] == "experiments" for module in imported)
        for other in imported & set(files):
            rooms = [number[module.split(".")[1]] for module in (other, name)]
            assert rooms[0] <= rooms[1], (name, other)
    graph = {name: imported & set(files) for name, imported in imports.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises on a circle
