import ast
import fnmatch
import graphlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

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
    """In an empty folder, without the laboratory."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {
        re.split(r"\W", entry)[0]
        for entry in project["optional-dependencies"]["experiments"]
    }
    assert extra >= {"matplotlib", "scikit"}
    renamed = {"scikit": "sklearn", "tensorflow": "tensorflow_datasets"}
    blocked = ["experiments", *(renamed.get(name, name) for name in extra)]
    bar = np.zeros((28, 28), np.uint8)
    bar[4:24, 12:16] = 255
    Image.fromarray(bar).save(tmp_path / "one.png")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked}))
from ds4nn_jax.cli import commands
for argv in (
    ["predict", "one.png"], ["report"], ["train", "mnist", "--data_dir=absent"]
):
    try:
        commands.main(argv)
    except SystemExit as error:
        print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    one, *_, report, train = run.stdout.splitlines()
    assert one.startswith("one.png: 1 (decided at step "), run.stderr
    extra = "pip install 'ds4nn_jax[experiments]'"
    assert report == f"ds4nn report needs jinja2: {extra}"
    assert train == f"ds4nn train mnist: figures need matplotlib: {extra}"


def test_a_wheel_has_each_file_of_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    listed = settings["setuptools"]["package-data"]
    packages = set(settings["setuptools"]["packages"])
    for path in (ROOT / "ds4nn_jax").rglob("*"):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        folders = [f for f in path.parents if (f / "__init__.py").exists()]
        package = ".".join(folders[0].relative_to(ROOT).parts)
        name = path.relative_to(folders[0]).as_posix()
        assert package in packages, path
        assert path.suffix == ".py" or any(
            fnmatch.fnmatch(name, pattern) for pattern in listed[package]
        ), path


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
