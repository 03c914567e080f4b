import re
import subprocess
import sys
from pathlib import Path

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
