import os
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ds4nn_jax import data
from ds4nn_jax._engines import library
from ds4nn_jax.layers import _coding
from experiments import digits

# In these files XLA optimises as it does for users. In all others it optimises little:
# programs mean the same and compile in half the time.
AS_USERS_RUN = {
    "test_docs",
    "test_event",
    "test_notebooks",
    "test_pretrained",
}


def pytest_runtest_setup(item):
    name, quick = "JAX_DISABLE_MOST_OPTIMIZATIONS", item.path.stem not in AS_USERS_RUN
    if os.environ.get(name) != str(int(quick)):
        os.environ[name] = str(int(quick))  # for other processes
        jax.config.update(name.lower(), quick)
        jax.clear_caches()  # so that equal runs are equal programs


# The engines that the same tests hold to the same meaning.
ENGINES = ["scan"] + (["event"] if library.fault() is None else [])


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(autouse=True)
def no_encoding_before(monkeypatch):
    """T of the latest `encode` is the process's; a test begins without one."""
    monkeypatch.setattr(_coding, "_latest", _coding.DEFAULT_STEPS)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr("ds4nn_jax.cli.figures.of_network", lambda *_: {})


@pytest.fixture
def rng():
    return np.random.default_rng(20230227)


def real_data_dir(name):
    """Folder with the real IDX files of a data set, or None."""
    shared = Path(__file__).parents[2] / "shared" / "data"
    for root in (os.environ.get("DS4NN_DATA_DIR"), shared):
        if root and (folder := Path(root) / name).is_dir():
            return folder
    return None


def compiler(language):
    """The command of a compiler of "c" or "c++": this machine's, or the wheel's."""
    names = {"c": ("cc", "gcc", "clang"), "c++": ("c++", "g++", "clang++")}[language]
    for name in names:
        if shutil.which(name):
            return [name]
    pytest.importorskip("ziglang", reason="needs a compiler: pip install ziglang")
    return [sys.executable, "-m", "ziglang", names[0]]


@pytest.fixture(scope="session")
def images():
    """(images [n, H, W, 1] uint8, labels, where from): real MNIST where it is at hand,
    else the embedded digits."""
    folder = real_data_dir("mnist")
    if folder is None:
        print("no real MNIST at hand: using the embedded digits")
    dataset = data.load("digits") if folder is None else data.load("mnist", folder)
    return dataset.test_images[:200], dataset.test_labels[:200]


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """(out_dir, report) of the digits' smoke run, as its flagfile makes it. Not to be
    written to."""
    out = tmp_path_factory.mktemp("smoke")
    flagfile = Path(__file__).parents[1] / "experiments/flagfiles/digits_smoke.cfg"
    return out, digits.main(["digits", f"--flagfile={flagfile}", f"--out_dir={out}"])
