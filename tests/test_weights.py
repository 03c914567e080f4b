import json
import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ds4nn_jax as ds


@pytest.fixture(scope="module")
def network():
    return ds.SpikingNetwork.from_spec("4C3-P2-10", num_steps=50, threshold=20.0)


@pytest.fixture(scope="module")
def params(network):
    return network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


@pytest.fixture
def saved(tmp_path, network, params):
    path = tmp_path / "weights.safetensors"
    ds.save_weights(path, network, params, notes={"seed": 3})
    return path


def test_round_trip(saved, network, params):
    loaded = ds.load_weights(saved)
    assert loaded.notes == {"seed": 3}
    assert loaded.network.spec == "4C3-P2-10"
    assert (loaded.network.num_steps, loaded.network.threshold) == (50, 20.0)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    times = np.zeros((2, 4, 4, 1), np.float32)
    np.testing.assert_array_equal(
        loaded.network.apply(loaded.params, times), network.apply(params, times)
    )


def test_numbers_of_numpy_and_settings_come_back(tmp_path, params):
    network = ds.SpikingNetwork.from_spec(
        "4C3-P2-10",
        num_steps=np.int64(50),
        threshold=np.float32(20),
        urgency=jnp.float32(0.5),
        pulses=np.array([0, 0]),
        padding=[[1, 0], [0, 1]],
    )
    notes = {"accuracy": np.longdouble(0.5), "steps": np.arange(2)}
    ds.save_weights(tmp_path / "w", network, params, notes=notes)
    loaded = ds.load_weights(tmp_path / "w", network=network)
    assert loaded.notes == {"accuracy": 0.5, "steps": [0, 1]}
    assert type(network.num_steps) is int and type(network.urgency) is float
    network = ds.load_weights(tmp_path / "w").network
    assert network.urgency == 0.5 and network.padding == ((1, 0), (0, 1))
    with pytest.raises(TypeError, match="notes must be what JSON can hold: set"):
        ds.save_weights(tmp_path / "w", network, params, notes={"x": {1}})


@pytest.mark.parametrize(
    "spec, attributes, message",
    [
        ("4C3-10", {}, "its spec is '4C3-P2-10', expected '4C3-10'"),
        ("4C3-P2-10", {"threshold": 5.0}, "its threshold is 20.0, expected 5.0"),
        ("4C3-P2-10", {"urgency": 0.5}, "its urgency is 0.0, expected 0.5"),
    ],
)
def test_weights_of_another_network(saved, spec, attributes, message):
    attributes = {"num_steps": 50, "threshold": 20.0} | attributes
    other = ds.SpikingNetwork.from_spec(spec, **attributes)
    with pytest.raises(ds.WeightsError, match=f"belongs to another network: {message}"):
        ds.load_weights(saved, network=other)


def test_truncated_at_every_byte(saved, tmp_path):
    content = saved.read_bytes()
    cut = tmp_path / "cut"
    for length in [*range(0, 64), *range(64, len(content), 17), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(ds.WeightsError, match="truncated or no safetensors"):
            ds.load_weights(cut)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(position=st.integers(0, 2**31), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(saved, tmp_path, position, bit):
    content = bytearray(saved.read_bytes())
    content[position % len(content)] ^= 1 << bit
    path = tmp_path / "flipped"
    path.write_bytes(content)
    with pytest.raises(ds.WeightsError):
        ds.load_weights(path)


def test_files_of_others(tmp_path, saved):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(3)}, path)
    with pytest.raises(ds.WeightsError, match="holds no weights of ds4nn_jax"):
        ds.load_weights(path)
    narrow = np.zeros(3, jnp.float8_e4m3fn)  # which NumPy alone does not know
    safetensors.numpy.save_file({"w": narrow}, path)
    with pytest.raises(ds.WeightsError, match="holds no weights .*float8_e4m3fn"):
        ds.load_weights(path)
    path.write_bytes(b"\x80\x04\x95 a pickle is never opened")
    with pytest.raises(ds.WeightsError, match="no safetensors file"):
        ds.load_weights(path)
    size = int.from_bytes(saved.read_bytes()[:8], "little")
    metadata = json.loads(saved.read_bytes()[8 : 8 + size])["__metadata__"]
    newer = json.loads(json.loads(metadata["ds4nn_jax"])[0]) | {"version": 3}
    tensors = safetensors.numpy.load_file(saved)
    entry = json.dumps([json.dumps(newer), ""])
    safetensors.numpy.save_file(tensors, path, {"ds4nn_jax": entry})
    with pytest.raises(ds.WeightsError, match="format version 3, this library reads"):
        ds.load_weights(path)
    with pytest.raises(FileNotFoundError):
        ds.load_weights(tmp_path / "absent")


def test_nothing_is_lost_when_saving_fails(saved, network, params, monkeypatch):
    before = saved.read_bytes()
    broken = jax.tree.map(lambda w: w * np.nan, params)
    with pytest.raises(ValueError, match="kernel of conv1 must be finite"):
        ds.save_weights(saved, network, broken)
    with pytest.raises(ValueError, match="are not those of the network"):
        ds.save_weights(
            saved, network, {"params": dict(conv1=params["params"]["conv1"])}
        )
    with pytest.raises(TypeError, match="must be one of float16, .* got int16"):
        ds.save_weights(
            saved, network, jax.tree.map(lambda w: np.zeros(w.shape, np.int16), params)
        )
    with pytest.raises(FileNotFoundError):
        ds.save_weights(saved.parent / "no" / "w", network, params)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ds.save_weights(saved, network, params, notes={"seed": 4})
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name], "no litter"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_weights_of_every_width_come_back(tmp_path, network, params, dtype):
    narrow = jax.tree.map(lambda w: w.astype(dtype), params)
    ds.save_weights(tmp_path / "w", network, narrow)
    loaded = ds.load_weights(tmp_path / "w").params
    jax.tree.map(np.testing.assert_array_equal, loaded, narrow)
    assert {str(w.dtype) for w in jax.tree.leaves(loaded)} == {dtype}


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0, 0o666)])
def test_files_have_the_permissions_that_umask_leaves(
    tmp_path, network, params, mask, mode
):
    before = os.umask(mask)
    try:
        ds.save_weights(tmp_path / "w", network, params)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == mode
