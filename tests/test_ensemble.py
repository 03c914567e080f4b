import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ds4nn_jax as ds
from experiments import ensemble

SPECS = "6C3-P2-5C3-3", "4C3-P2-6-3"


def a_network(spec, rng, shape=(8, 8, 1), padding="SAME", pulses=()):
    """With weights that let about half of its neurons fire on small images."""
    network = ds.SpikingNetwork.from_spec(
        spec, padding=padding, pulses=pulses, num_steps=20
    )
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))

    def drawn(path, weights):
        if path[-1].key == "pulses":
            return rng.normal(0, 30, weights.shape)
        return rng.normal(60 / np.sqrt(weights.shape[0]), 40, weights.shape)

    return network, jax.tree.map_with_path(drawn, shapes)


@functools.partial(jax.jit, static_argnums=0)
def potentials(network, params, images):
    """[T, B, C] of the outputs."""
    times = network.apply(params, network.encode(images), method="trace").times[-2]
    output = params["params"][network.weighted[-1]]
    return ds.membrane_potentials(
        jnp.reshape(times, (len(images), -1)),
        output["kernel"],
        pulses=output.get("pulses"),
        num_steps=network.num_steps,
    )


@pytest.mark.parametrize(
    "spec, shape, padding, pulses",
    [
        ("4C3-P2-5C3-3", (8, 6, 2), "SAME", (4, 0, 7)),
        (SPECS[1], (8, 10, 1), "VALID", (5,)),
        ("96-7-5-3", (8, 6, 2), "SAME", (6, 3, 0)),
    ],
)
def test_merged_potentials_are_the_means(spec, shape, padding, pulses, rng):
    """Of three networks, one without reference neurons, and of what they make of the
    mirrored images."""
    images = rng.integers(0, 256, (5, *shape)).astype(np.uint8)
    made = [a_network(spec, rng, shape, padding, each) for each in ((), pulses, pulses)]
    networks, params = zip(*made, strict=True)
    whole, joint = ensemble.merged(networks, params, mirror=True, shape=shape)
    pair = images, images[:, :, ::-1]
    alone = [potentials(*each, x) for each in made for x in pair]
    assert np.std(alone, axis=0).mean() > 1  # they differ
    mean = np.mean(alone, axis=0)
    np.testing.assert_allclose(potentials(whole, joint, images), mean, atol=1e-2)


def test_whole_numbers_are_merged_in_millivolts(rng):
    """Twice the same network is the network; others with thresholds are refused."""
    network, params = a_network(SPECS[0], rng, pulses=(4, 3))
    network = network.clone(urgency=0.5)
    whole, weights = ds.quantize(network, params, bits=5)
    joined, joint = ensemble.merged([whole] * 2, [weights] * 2, mirror=False)
    images = rng.integers(0, 200, (40, 8, 8, 1)) * (rng.random((40, 8, 8, 1)) < 0.3)
    images = images.astype(np.uint8)
    expected = ds.classify(whole, weights, images)
    decided = ds.classify(joined, joint, images)
    np.testing.assert_array_equal(decided.label, expected.label)
    np.testing.assert_array_equal(decided.step, expected.step)
    assert len(np.unique(expected.step)) > 2 and joined.urgency == 0.5
    mixed, _ = ensemble.merged(
        [whole, network.clone(urgency=0.0)], [weights, params], mirror=False
    )
    assert mixed.urgency == 0.25
    params["params"]["conv1"]["threshold"] = np.full(6, 90.0, np.float32)
    with pytest.raises(ValueError, match="thresholds of their own"):
        ensemble.merged([network], [params], mirror=False)


def test_merged_weights_are_written(tmp_path, rng):
    """Weights that load and tell of their images; one network by itself stays as it
    is. Weights of other images are refused."""
    network, params = a_network(SPECS[0], rng, pulses=(4, 0))
    notes = {
        "dataset": "mine",
        "class_names": ["a", "b", "c"],
        "input_shape": [8, 8, 1],
    }
    ds.save_weights(tmp_path / "a.safetensors", network, params, notes=notes)
    out = tmp_path / "b.safetensors"
    ensemble.main([f"{tmp_path}/a.safetensors", f"--out={out}"])
    again, same, told = ds.load_weights(out)
    assert told == notes | {"merged": [f"{tmp_path}/a.safetensors"]}
    notes["dataset"] = "others"
    ds.save_weights(tmp_path / "c.safetensors", network, params, notes=notes)
    with pytest.raises(SystemExit, match="dataset differs: mine and others"):
        ensemble.main(
            [f"{tmp_path}/a.safetensors", f"{tmp_path}/c.safetensors", f"--out={out}"]
        )
    assert again.spec == network.spec
    jax.tree.map(np.testing.assert_allclose, same, params)


def test_networks_that_cannot_be_merged(tmp_path, rng):
    first, other = a_network(SPECS[0], rng), a_network(SPECS[1], rng)
    with pytest.raises(ValueError, match="networks differ"):
        ensemble.merged(*zip(first, other, strict=True), mirror=False)
    row = ds.SpikingNetwork.from_spec("15-3")
    kernel = {"params": {"dense1": {"kernel": np.ones((15, 3))}}}
    for shape in ((15,), None):
        with pytest.raises(ValueError, match="no input_shape"):
            ensemble.merged([row], [kernel], mirror=True, shape=shape)
    for spec, padding in (
        ("4C3-3", ((1, 1), (2, 0))),
        ("4C3s2-3", "SAME"),
        ("4C2-3", "SAME"),
        ("4C3-P3-3", "SAME"),
    ):
        network, params = a_network(spec, rng, padding=padding)
        with pytest.raises(ValueError, match=r"sees other places of a mirror image"):
            ensemble.merged([network], [params], mirror=True, shape=(8, 8, 1))
    with pytest.raises(SystemExit, match=r"experiments.ensemble: .*nowhere"):
        ensemble.main(["nowhere.safetensors", f"--out={tmp_path / 'x.safetensors'}"])
