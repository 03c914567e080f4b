"""JAX's own settings change nothing: each public function under each of them."""

import contextlib
import functools

import jax
import numpy as np
import pytest
from precision import float64

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.training import augmentation

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def raising(*, strict: bool = True):
    """Under all settings at once that make JAX raise where it would go on."""
    with jax.debug_nans(True), jax.numpy_rank_promotion("raise"):
        with jax.numpy_dtype_promotion("strict" if strict else "standard"):
            yield


SETTINGS = {
    "64 bits": float64,
    "raising": raising,
    "disable_jit": lambda: jax.disable_jit(True),
}
T, THETA = 12, 3.0
NETWORK = ds.SpikingNetwork.from_spec(
    "4C3-P2-6", num_steps=T, threshold=THETA, pulses=(3, 2), urgency=0.125
)
LABELS = np.array([3, 1, 5, 0])
CONFIG = ds.TrainConfig(
    spec="2C3-P4-10",
    num_steps=T,
    initial_weights=ds.initial_weights.FiringRates(conv=0.4),
    optimizer=ds.optimizers.Adam(0.02, norms=ds.optimizers.HeldNorms(), average=0.9),
    augmentation=augmentation.Augmentation(shift=1, flip=True),
    pulses=(3,),
    centring=0.5,
    batch_size=50,
    epochs=1,
)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)

    def dyadic(*shape):
        return (np.round(rng.normal(0.3, 1, shape) * 8) / 8).astype(np.float32)

    images = rng.integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    times = np.asarray(ds.encode(images, num_steps=T))
    params = NETWORK.init(jax.random.key(0), times)
    params = jax.tree.map(lambda x: dyadic(*x.shape), params)
    digits = data.load("digits")
    return dict(
        images=images,
        times=times,
        params=params,
        kernel=dyadic(64, 6),
        window=dyadic(3, 3, 1, 4),
        pulses=dyadic(5, 6),
        of_window=dyadic(5, 4),
        train=(digits.train_images[:120], digits.train_labels[:120]),
    )


def flat(times):
    return times.reshape(len(times), -1)


def layers(a):
    shared = dict(threshold=THETA, num_steps=T)
    times, flats, images = a["times"], flat(a["times"]), a["images"]
    pulses, key = {"pulses": a["pulses"]}, jax.random.key(0)
    return (
        augmentation.shift(key, images, pixels=1),
        augmentation.flip(key, images),
        ds.encode(images, num_steps=T),
        ds.encode(images / np.float32(255), num_steps=T),
        ds.dense(flats, a["kernel"], **pulses, **shared),
        ds.conv(times, a["window"], surrogate="window", engine="scan", **shared),
        ds.conv(times, a["window"], pulses=a["of_window"], **shared),
        ds.earliest_pool(times),
        ds.membrane_potentials(flats, a["kernel"], **pulses, num_steps=T),
        ds.decision_potentials(flats, a["kernel"], **pulses, **shared),
    )


def gradients(a):
    def error(params, surrogate):
        network = NETWORK.clone(surrogate=surrogate)
        out = network.apply(params, a["times"])
        out = ds.centre_errors(out, T)
        target = ds.relative_target(out, LABELS, offset=2.0, num_steps=T)
        return ds.temporal_loss(out, target).sum()

    return tuple(jax.grad(error)(a["params"], rule) for rule in ("constant", "window"))


def targets(a):
    out = NETWORK.apply(a["params"], a["times"])
    trace = NETWORK.apply(a["params"], a["times"], method="trace")
    by = {"num_steps": T, "offset": 2.0}
    return (
        out,
        ds.relative_target(out, LABELS, **by),
        *(
            rule.target(out, LABELS, trace.potentials, num_steps=T, threshold=THETA)
            for rule in (
                ds.rules.Margin(2),
                ds.rules.S4NN(2),
                ds.rules.Fixed(0, T),
                ds.rules.Softmax(2, temperature=2, horizon=100),
            )
        ),
        ds.predict(out, trace.potentials),
        ds.decide(trace),
        trace,
        NETWORK.apply(a["params"], a["times"], method="activity"),
    )


def decisions(a):
    report = ds.evaluate(NETWORK, a["params"], a["images"], LABELS, batch_size=3)
    return (
        ds.infer(NETWORK, a["params"], a["times"]),
        ds.infer(NETWORK.clone(engine="scan"), a["params"], a["times"]),
        tuple(report.summary().values()),
    )


@pytest.fixture(scope="module")
def plain(arrays):
    """What a function gives without a setting, computed once."""
    return functools.cache(lambda work: work(arrays))


def close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.shape(a) == np.shape(e)
        assert np.asarray(a).dtype.kind == np.asarray(e).dtype.kind
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("work", [layers, gradients, targets, decisions])
def test_settings_change_no_result(setting, work, arrays, plain):
    expected = plain(work)
    with setting():
        actual = work(arrays)
    close(actual, expected)


# (optax's own Adam raises under strict promotion; 64 bits draw other random numbers.)
def test_settings_change_no_training(arrays):
    expected = list(ds.train(CONFIG, *arrays["train"]))[-1]
    with raising(strict=False):
        actual = list(ds.train(CONFIG, *arrays["train"]))[-1]
    assert actual.validation.summary() == expected.validation.summary()
    jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)


def error(params, times):
    return (NETWORK.apply(params, times) ** 2).sum()


def test_transformations_change_no_result(arrays):
    params, times = arrays["params"], jax.numpy.asarray(arrays["times"])
    expected = jax.jit(jax.grad(error))(params, times)

    donated = jax.tree.map(jax.numpy.array, params)
    one_by_one = jax.vmap(jax.grad(error), (None, 0))(params, times[:, None])
    for actual in (
        jax.jit(jax.grad(jax.checkpoint(error)))(params, times),
        jax.jit(jax.grad(error), donate_argnums=0)(donated, times),
        jax.tree.map(lambda x: x.sum(axis=0), one_by_one),
    ):
        close(actual, expected)  # up to the order of sums
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    spec, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    specs = dict(in_specs=(everywhere, spec), out_specs=spec)
    shared = jax.shard_map(lambda p, t: NETWORK.apply(p, t), mesh=mesh, **specs)
    np.testing.assert_array_equal(
        jax.jit(shared)(params, times), NETWORK.apply(params, times)
    )


def test_an_empty_batch_goes_through_everything(arrays):
    params, times = arrays["params"], arrays["times"][:0]
    for engine in ("auto", "scan"):
        network = NETWORK.clone(engine=engine)
        trace = network.apply(params, times, method="trace")
        activity = network.apply(params, times, method="activity")
        decided, inferred = ds.decide(trace), ds.infer(network, params, times)
        assert network.apply(params, times).shape == trace.times[-1].shape == (0, 6)
        assert activity.counts.shape == (0, 4, T)
        assert decided.label.shape == inferred.label.shape == (0,)
        assert decided.spikes.shape == inferred.spikes.shape == (0, 4)
        gradient = jax.grad(lambda p, n=network: (n.apply(p, times) ** 2).sum())(params)
        assert all(not x.any() for x in jax.tree.leaves(gradient))
