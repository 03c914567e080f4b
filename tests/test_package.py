import subprocess
import sys

import ds4nn_jax as ds

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


def test_public_names_are_sorted_documented_and_there():
    assert list(ds.__all__) == sorted(ds.__all__)
    for name in ds.__all__:
        value = getattr(ds, name)
        assert name == "SpikeTimes" or value.__doc__, name
