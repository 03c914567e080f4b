"""Training on several devices, in one process and in two."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import digits

ROOT = Path(__file__).parents[1]
# Batches of 32 on 8 devices: parts of 4. Weights and metrics after two epochs.
RUN = """
import json, sys
import jax, numpy as np
import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.training import parallel

config = ds.TrainConfig(
    spec="8C3-P2-10", initial_weights=ds.initial_weights.FiringRates(conv=0.3),
    optimizer=ds.optimizers.Adam(learning_rate=0.02),
    augmentation=ds.augmentation.Augmentation(shift=1, flip=True),
    regularizer=ds.regularizers.RateRegularizer((0.2,), strength=0.5, steps=5),
    pulses=(5, 3), centring=0.9, batch_size=32, epochs=2, validation=0.2, num_steps=20,
)

def trained(mesh, limit=400):
    digits = data.load("digits")
    *_, last = ds.train(
        config, digits.train_images[:limit], digits.train_labels[:limit], mesh=mesh
    )
    return last

def numbers(result):
    leaves = jax.tree.leaves(result.params)
    return [*np.concatenate([leaf.ravel() for leaf in leaves]).tolist(),
            result.train.loss, result.train.accuracy, result.validation.accuracy]
"""


def run(code, *args, **env):
    return subprocess.Popen(
        [sys.executable, "-c", RUN + code, *args],
        env=os.environ | {"JAX_PLATFORMS": "cpu", **env},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    with process:
        try:
            out, error = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def alone():
    names = {}
    exec(RUN + "found = numbers(trained(None))", names)
    return names["found"]


@pytest.mark.slow
def test_eight_devices_do_as_one(alone):
    """And three of them refuse batches that they cannot share out."""
    code = """
refusals = []
for attempt in (
    lambda: trained(parallel.data_mesh(3)),
    lambda: parallel.shared_out(parallel.data_mesh(3), np.ones((32, 1))),
):
    try:
        attempt()
    except ValueError as error:
        refusals.append(str(error))
print(json.dumps([numbers(trained(parallel.data_mesh(8))), *refusals]))
"""
    flags = "--xla_force_host_platform_device_count=8"
    shared, first, second = finished(run(code, XLA_FLAGS=flags))
    np.testing.assert_allclose(shared, alone, rtol=1e-4, atol=1e-3)
    assert "batch_size must be a multiple of the 3 devices, got 32" in first
    assert "batch of 32 cannot be shared out to 3 devices" in second


@pytest.mark.slow
def test_two_processes_do_as_one(alone):
    port = free_port()
    code = f"""
jax.distributed.initialize("localhost:{port}", 2, int(sys.argv[1]))
assert jax.process_count() == 2
print(json.dumps(numbers(trained(parallel.data_mesh()))))
"""
    with run(code, "0") as first, run(code, "1") as second:
        first, second = finished(first), finished(second)
    assert first == second
    np.testing.assert_allclose(first, alone, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(tmp_path, no_figures):
    """Both are killed in the second epoch; one process ends what they began."""
    flags = (
        "--preset=default --spec=64-20-10 --initial_weights.dense=0.4 "
        "--optimizer.learning_rate=0.05 --augmentation.shift=1 --batch_size=10 "
        "--epochs=3 --train_limit=600"
    ).split()

    def started(out, *more):
        command = [sys.executable, "-m", "experiments.digits", *flags]
        return subprocess.Popen(
            [*command, f"--out_dir={out}", *more],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def rows(out):
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    port, together, alone = free_port(), tmp_path / "together", tmp_path / "alone"
    two = ["--distributed", f"--coordinator=localhost:{port}", "--num_processes=2"]
    first = started(together, *two, "--process_id=0")
    second = started(together, *two, "--process_id=1")
    with first, second:
        for line in first.stdout:
            if line.startswith("epoch   1/3  train"):
                break
        first.kill()
        second.kill()
    assert len(rows(together)) == 1
    for out, more in ((together, ["--resume"]), (alone, [])):
        digits.main(["digits", *flags, f"--out_dir={out}", *more])
    for a, b in zip(rows(together), rows(alone), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            assert a[name] == pytest.approx(b[name], rel=1e-3), name
