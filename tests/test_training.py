import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax._values import Value
from ds4nn_jax.layers.surrogates import Window
from ds4nn_jax.training import batching, loop, optimizers, step
from ds4nn_jax.training.augmentation import Augmentation
from ds4nn_jax.training.initial_weights import FiringRates
from ds4nn_jax.training.optimizers import Adam, Muon
from ds4nn_jax.training.rules import OutputRule, Softmax
from ds4nn_jax.training.schedules import StepDecay

SMALL = dict(
    spec="64-20-10",
    output_rule="margin",
    initial_weights=FiringRates(dense=0.4),
    optimizer=Adam(learning_rate=0.05),
    schedule=StepDecay(),
    batch_size=10,
    epochs=2,
)


@pytest.fixture(scope="module")
def digits():
    dataset = data.load("digits")
    return dataset.train_images[:300], dataset.train_labels[:300]


def test_learns_and_repeats(digits):
    """Well above chance after five epochs; the same again from the same seed, with
    nothing compiled anew; every step is shown, and the best epoch is by validation."""
    config, steps = ds.TrainConfig(**SMALL | dict(epochs=5)), []
    first = list(ds.train(config, *digits, on_step=steps.append))
    programs = loop._step._cache_size()
    second = list(ds.train(dataclasses.replace(config), *digits))
    assert loop._step._cache_size() == programs
    assert [result.epoch for result in first] == [1, 2, 3, 4, 5]
    assert first[-1].validation.images == 30
    assert first[-1].train.accuracy > 0.4
    for a, b in zip(first, second, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
        assert a.train == b.train
    other = next(ds.train(ds.TrainConfig(**SMALL | {"seed": 1}), *digits))
    assert other.train != first[0].train
    numbers = [(step.number, step.steps) for step in steps]
    assert numbers == 5 * [(i, 27) for i in range(1, 28)]
    mean = np.mean([step.metrics.accuracy for step in steps[:27]])
    assert first[0].train.accuracy == pytest.approx(mean)
    scores = [result.validation.accuracy for result in first]
    best = [result.epoch for result in first if result.best][-1]
    assert scores[best - 1] == max(scores)
    assert max(scores[best:], default=0) < max(scores)


@pytest.mark.parametrize(
    "rule, surrogate",
    [
        ("relative", "constant"),
        ("margin", "window"),
        ("s4nn", "constant"),
        ("fixed", "window"),
    ],
)
def test_every_rule_learns(rule, surrogate, digits):
    """Far above the 10 % of chance after 150 steps on 300 images."""
    config = ds.TrainConfig(
        spec="64-50-10",
        output_rule=rule,
        surrogate=surrogate,
        initial_weights=FiringRates(dense=0.7, output=0.9),
        optimizer=Adam(learning_rate=0.02),
        schedule=StepDecay(),
        batch_size=10,
        epochs=5,
        validation=0,
    )
    results = list(ds.train(config, *digits))
    assert all(r.validation is None and r.best for r in results)
    accuracies = [r.train.accuracy for r in results]
    assert accuracies[0] < accuracies[-1] and accuracies[-1] > 0.4, accuracies


def test_augmentation_is_drawn_anew_every_step_and_repeats(digits):
    """Two steps on one batch see different images; the same run again, the same."""
    images, labels = digits[0][:10], digits[1][:10]
    tiny = dict(optimizer=Adam(learning_rate=1e-9, pulse_rate=0))
    config = ds.TrainConfig(**SMALL | tiny | dict(augmentation=Augmentation(shift=1)))
    plain = dataclasses.replace(config, augmentation=Augmentation())

    def losses(config):
        optimizer = ds.make_optimizer(config, 1)
        state = step.init(config, optimizer, jax.random.key(0), images)
        for _ in range(3):
            state, metrics = ds.train_step(config, optimizer, state, images, labels)
            yield float(metrics.loss)

    moved = list(losses(config))
    assert len(set(moved)) == 3
    assert moved == list(losses(config))
    assert len(set(losses(plain))) == 1


def test_the_average_is_validated_and_kept(digits):
    averaging = ds.TrainConfig(**SMALL | {"optimizer": Adam(0.05, average=0.9)})
    *_, alone = ds.train(ds.TrainConfig(**SMALL), *digits)
    *_, averaged = ds.train(averaging, *digits)
    assert averaged.train == alone.train  # the steps are the same
    state = averaged.checkpoint.state
    jax.tree.map(np.testing.assert_array_equal, state.params, alone.params)
    kept = optimizers.averaged(state.optimizer, state.params)
    jax.tree.map(np.testing.assert_array_equal, averaged.params, kept)
    _, held = data.stratified_split(digits[1], 0.1, seed=0)
    report = ds.evaluate(averaging.network(), kept, digits[0][held], digits[1][held])
    assert report.accuracy == averaged.validation.accuracy
    assert averaged.validation.decision_step != alone.validation.decision_step


@pytest.mark.parametrize("optimizer", [Adam(0.05), Muon(0.05, average=0.9)])
def test_a_checkpoint_goes_on_bit_for_bit(optimizer, digits):
    """After the first step, within an epoch, and on both sides of its end."""
    more = dict(epochs=3, augmentation=Augmentation(1), optimizer=optimizer)
    config = ds.TrainConfig(**SMALL | more)
    checkpoints = []

    def keep(step):
        checkpoints.append(step.checkpoint())

    whole = list(ds.train(config, *digits, on_step=keep))
    for stop, count in ((1, 3), (13, 3), (27, 3), (28, 2), (54, 2)):
        later = list(ds.train(config, *digits, start=checkpoints[stop - 1]))
        assert len(later) == count
        for a, b in zip(whole[-count:], later, strict=True):
            assert (a.epoch, a.train, a.best) == (b.epoch, b.train, b.best)
            assert a.validation.accuracy == b.validation.accuracy
            jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    later = list(ds.train(config, *digits, start=whole[0].checkpoint))
    assert [result.train for result in later] == [result.train for result in whole[1:]]


def test_a_checkpoint_of_another_run_is_refused(digits):
    """Or of other data: arrays may not even change while a run uses them."""
    config, images = ds.TrainConfig(**SMALL), np.array(digits[0])
    labels = digits[1]
    run = ds.train(config, images, labels)
    checkpoint = next(run).checkpoint
    for other, message in (
        (dict(spec="64-21-10"), r"dense1.*\[64, 20\], expected float32\[64, 21\]"),
        (dict(batch_size=9), r"metrics is float32\[27, 4\], expected float32\[30, 4\]"),
    ):
        with pytest.raises(ValueError, match=f"not one of this run, .*{message}"):
            ds.train(ds.TrainConfig(**SMALL | other), *digits, start=checkpoint)
    for other in (
        (images[::-1], labels[::-1]),
        (images, (labels + 1) % 10),
        (255 - images, labels),
    ):
        with pytest.raises(ValueError, match="of a run on other data"):
            ds.train(config, *other, start=checkpoint)
    images[0] = 255 - images[0]
    with pytest.raises(ValueError, match="have changed since the run began"):
        next(run)


def test_vmap_over_seeds_equals_single_runs(digits):
    images, labels = digits[0][:100], jnp.asarray(digits[1][:100])
    config = ds.TrainConfig(**SMALL)
    keys = jax.random.split(jax.random.key(3), 3)
    run = functools.partial(ds.fit, config, images=images, labels=labels)
    params, metrics = jax.jit(jax.vmap(run))(keys)
    assert metrics.accuracy.shape == (3, 2)
    for i, key in enumerate(keys):
        alone, alone_metrics = jax.jit(run)(key)
        np.testing.assert_allclose(metrics.loss[i], alone_metrics.loss, rtol=1e-3)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-2, atol=0.05),
            params,
            alone,
        )
    assert len(set(np.asarray(metrics.loss[:, -1]))) == 3


def test_calibration_makes_the_asked_share_fire(digits, engine):
    network = ds.SpikingNetwork.from_spec("8C3-P2-6C3-10", engine=engine)
    # A black frame around the digits: more than half of the first layer is not driven.
    times = ds.encode(np.pad(digits[0][:64], ((0, 0), (4, 4), (4, 4), (0, 0))))
    params = network.init(jax.random.key(0), times)
    rates = (0.3, 0.2, 0.6)
    scaled = ds.calibrate(network, params, times, rates)
    trace = network.apply(scaled, times, method="trace")
    fired = dict(zip(network.names, trace.times[1:], strict=True))
    inputs = {"conv1": times, "conv2": trace.times[2], "dense3": trace.times[3]}
    for name, rate in zip(network.weighted, rates, strict=True):
        spikes = np.asarray(inputs[name] < 100).any(axis=-1, keepdims=True)
        if name == "dense3":
            driven = spikes.any(axis=(1, 2, 3))[:, None]
        else:  # a spike in any of the nine pixels of the window
            padded = np.pad(spikes, ((0, 0), (1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
            driven = windows.any((-1, -2))
        driven = np.broadcast_to(driven, fired[name].shape)
        if name == "conv1":
            assert driven.mean() < 0.5
        share = np.mean(np.asarray(fired[name] < 100)[driven])
        assert share == pytest.approx(rate, abs=0.03)
        ratio = scaled["params"][name]["kernel"] / params["params"][name]["kernel"]
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)


@pytest.mark.parametrize("first", [0, 255])
def test_initial_weights_do_not_depend_on_the_order_of_the_classes(first, digits):
    """The first class, more images than are looked at, is blank or white."""
    images = np.concatenate([np.full((250, 8, 8, 1), first, np.uint8), digits[0]])
    labels = np.concatenate([np.zeros(250, int), digits[1] + 1])
    config = ds.TrainConfig(spec="64-60-11", validation=0.0, batch_size=4)
    params = ds.initial_checkpoint(config, images, labels).state.params
    times = ds.encode(images)
    hidden = config.network().apply(params, times, method="trace").times[1]
    driven = times.reshape(len(images), -1).min(axis=1) < 100
    assert 0.6 < float((hidden < 100)[driven].mean()) < 0.8


def test_edges_leave_flat_images_silent(digits):
    """Kernels whose sums are zero: a grey image fires nothing but along its border, the
    digits do. Later layers are drawn as without."""
    config = ds.TrainConfig(
        spec="8C3-P2-6C3-10", initial_weights=FiringRates(output=0.9, edges=0.2)
    )
    network = config.network()
    images = np.pad(digits[0][:64], ((0, 0), (4, 4), (4, 4), (0, 0)))
    key = jax.random.key(0)
    params = config.initial_weights.draw(network, key, images)["params"]
    kernel = np.asarray(params["conv1"]["kernel"])
    np.testing.assert_allclose(kernel.sum((0, 1, 2)), 0, atol=1e-3)
    grey = np.full((1, 16, 16, 1), 100, np.uint8)
    trace = network.apply({"params": params}, network.encode(grey), method="trace")
    assert (np.asarray(trace.times[1])[:, 1:-1, 1:-1] == 100).all()
    trace = network.apply({"params": params}, network.encode(images), method="trace")
    assert 0.05 < np.mean(trace.times[1] < 100) < 0.2
    plain = FiringRates(output=0.9).draw(network, key, images)["params"]
    ratio = params["conv2"]["kernel"] / plain["conv2"]["kernel"]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)


def test_calibration_refuses_what_cannot_fire(digits):
    network = ds.SpikingNetwork.from_spec("64-20-10")
    times = ds.encode(digits[0][:64])
    params = network.init(jax.random.key(0), times)
    inhibited = jax.tree.map(lambda w: -jnp.abs(w), params)
    with pytest.raises(ValueError, match="40% of the driven neurons of dense1 cannot"):
        ds.calibrate(network, inhibited, times, (0.4, 0.7))


def test_schedules_and_learning_rates():
    """Steps fall by 10 % every two epochs, or along a cosine; they are absolute in mV,
    or relative to weights of 5 and 10."""

    def layers(value):
        kernels = jnp.full((64, 20), value), jnp.full((20, 10), 2 * value)
        names = ("dense1", "dense2")
        return {
            "params": {k: {"kernel": w} for k, w in zip(names, kernels, strict=True)}
        }

    def steps(config, weight):
        """Of 10 steps an epoch with the same gradient: Adam's have size η."""
        params, gradient = layers(weight), layers(1.0)
        optimizer = ds.make_optimizer(config, 10)
        state = optimizer.init(params)
        for _ in range(config.epochs * 10):
            update, state = optimizer.update(gradient, state, params)
            yield [float(-x["kernel"][0, 0]) for x in update["params"].values()]

    config = ds.TrainConfig(
        spec="64-20-10",
        optimizer=Adam(learning_rate=0.1, output_rate=0.3, unit="mV"),
        schedule=StepDecay(decay=0.9, period=2),
        epochs=5,
    )
    sizes = list(steps(config, 7.0))
    for epoch, size in ((0, 0.1), (1, 0.1), (2, 0.09), (3, 0.09), (4, 0.081)):
        assert sizes[10 * epoch] == pytest.approx([size, 3 * size], rel=1e-4)
    config = ds.TrainConfig(
        spec="64-20-10", optimizer=Adam(learning_rate=0.1), epochs=2
    )
    sizes = list(steps(config, 5.0))
    assert sizes[0] == pytest.approx([0.5, 1.0], rel=1e-4)
    assert sizes[10] == pytest.approx([0.25, 0.5], rel=1e-4)


def test_muon_for_hidden_layers_with_more_inputs_than_neurons():
    """The first step, under a gradient of two sizes, of weights of RMS 1: of RMS η by
    Muon, of size η for each weight by Adam. Layer 1 has 9 inputs for 12 neurons, layer
    2 12·9 for 6."""
    config = ds.TrainConfig(
        spec="12C3-6C3-10", optimizer=Muon(learning_rate=0.1, common_step=1)
    )
    shapes = dict(conv1=(3, 3, 1, 12), conv2=(3, 3, 12, 6), dense3=(24, 10))
    rng = np.random.default_rng(0)
    gradient = {
        "params": {
            name: {"kernel": jnp.asarray(rng.choice([1.0, 3.0], shape), jnp.float32)}
            for name, shape in shapes.items()
        }
    }
    tx = ds.make_optimizer(config, steps_per_epoch=10)
    weights = jax.tree.map(jnp.ones_like, gradient)
    update, _ = tx.update(gradient, tx.init(weights), weights)
    steps = {name: np.asarray(u["kernel"]) for name, u in update["params"].items()}
    for name in ("conv1", "dense3"):
        np.testing.assert_allclose(steps[name], -0.1, rtol=1e-2)
    turned = steps["conv2"].reshape(-1, 6)
    assert np.sqrt(np.mean(turned**2)) == pytest.approx(0.1, rel=0.15)
    values = np.linalg.svd(turned, compute_uv=False)
    assert values.min() > 0.5 * values.max()  # of the gradient: 0.1
    assert np.sum(steps["conv2"] * gradient["params"]["conv2"]["kernel"]) < 0


def values(kind):
    return [kind, *(k for sub in kind.__subclasses__() for k in values(sub))]


@pytest.mark.parametrize(
    "kind",
    [ds.TrainConfig, *(k for k in values(Value) if k.__module__.startswith("ds4nn"))],
)
def test_values_describe_every_field(kind):
    for field in dataclasses.fields(kind):
        if field.init and not kind.__name__.startswith("_"):
            text = "".join(base.__doc__ or "" for base in kind.__mro__)
            assert f"      {field.name}: " in text


def test_configurations_survive_json():
    """Lists for tuples: still equal, and hashable."""
    ranges = ds.TrainConfig(initial_weights=((-5, 10),) * 3)
    assert ranges.initial_weights == ds.initial_weights.Uniform(((-5, 10),) * 3)
    for config in (ranges, *map(ds.presets.load, ds.presets.names())):
        again = ds.TrainConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
        assert again == config and hash(again) == hash(config)
        assert repr(again) == repr(config)


def test_fields_are_what_they_are_annotated_with():
    config, plain = (
        ds.TrainConfig(spec="64-10", output_rule=rule, augmentation=moved, **numbers)
        for rule, moved, numbers in (
            (
                {"name": "margin", "offset": 7},
                {"name": "augmentation", "flip": np.bool_(True)},
                dict(batch_size=16.0, epochs=np.int64(3), validation=jnp.float32(0.5)),
            ),
            (
                ds.rules.Margin(offset=7.0),
                Augmentation(flip=True),
                dict(batch_size=16, epochs=3, validation=0.5),
            ),
        )
    )
    assert config == plain and repr(config) == repr(plain)


@dataclasses.dataclass(frozen=True)
class Listed(OutputRule):
    """Of a user: a field that nothing can make hashable, and one in a string."""

    times: list = dataclasses.field(default_factory=list)
    offset: "float" = 3.0


def test_what_cannot_be_hashed_is_refused_at_once():
    with pytest.raises(TypeError, match="must be hashable: unhashable type: 'list'"):
        ds.TrainConfig(output_rule=Listed())
    assert ds.TrainConfig(output_rule=Listed(times=())).output_rule.offset == 3.0


def test_the_recipe_without_choices_learns(digits):
    """Most of the digits after a few epochs, and most neurons alive."""
    dataset = data.load("digits")
    config = ds.TrainConfig(spec="16C3-P2-10", epochs=8)
    *_, last = ds.train(config, dataset.train_images, dataset.train_labels)
    assert last.validation.accuracy > 0.9
    assert last.validation.dead < 0.5  # a third see black alone


def _bars(count, seed, low, high):
    """Coloured bars and squares on a ground of random pixels, or dark ones on white."""
    rng = np.random.default_rng(seed)
    sizes, channels = ((2, 6), (6, 2), (2, 6), (6, 2), (4, 4)), (0, 0, 1, 1, 2)
    labels = rng.integers(0, 5, count)
    images = rng.integers(low, high + 1, (count, 12, 12, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        height, width = sizes[label]
        top, left = rng.integers(0, 13 - height), rng.integers(0, 13 - width)
        shape = image[top : top + height, left : left + width]
        if low == 255:
            shape[:] = 0
        shape[..., channels[label]] = rng.integers(140, 256)
    return images, labels


@pytest.mark.slow
@pytest.mark.parametrize("low, high", [(0, 60), (255, 255)], ids=["noise", "white"])
def test_the_recipe_without_choices_learns_on_any_ground(low, high):
    """Where the paper's neurons stay silent, or fire at once."""
    config = ds.TrainConfig(spec="16C3-P2-32C3-5", num_steps=64)
    results = [*ds.train(config, *_bars(1000, 0, low, high))]
    best = [result for result in results if result.best][-1]
    report = ds.evaluate(best.network, best.params, *_bars(500, 1, low, high))
    assert report.accuracy > 0.95
    assert report.silent < 0.1
    assert report.decision_step > 16


def test_the_recipe_does_not_depend_on_the_unit(digits):
    """A quarter of θ and of the window: a quarter of every weight."""
    trained = []
    for theta in (100.0, 25.0):
        surrogate = Window(theta)
        config = ds.TrainConfig(
            spec="64-20-10", threshold=theta, surrogate=surrogate, epochs=1
        )
        trained.append(next(ds.train(config, *digits)).params)
    quarter = jax.tree.map(lambda weights: weights / 4, trained[0])
    for actual, expected in zip(
        *map(jax.tree.leaves, (trained[1], quarter)), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert np.any(quarter["params"]["dense1"]["pulses"] != 0)


def test_soft_labels_of_the_classes_are_the_classes(digits):
    """Shares of 0 and 1 train as the labels do; a teacher that turns the classes round
    is believed, and accuracies stay the labels'."""
    config = ds.TrainConfig(spec="64-50-10", epochs=6)
    onehot = np.eye(10, dtype=np.float32)
    hard, same, turned = (
        list(ds.train(config, *digits, soft_labels=soft))[-1]
        for soft in (None, onehot[digits[1]], onehot[9 - digits[1]])
    )
    # Two programs: XLA may order their sums differently.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    jax.tree.map(close, hard.params, same.params)
    assert hard.train.accuracy == pytest.approx(same.train.accuracy, abs=2e-3)
    network = config.network()
    for result, labels in ((hard, digits[1]), (turned, 9 - digits[1])):
        believed = ds.evaluate(network, result.params, digits[0], labels)
        assert believed.accuracy > 0.5
    assert turned.validation.accuracy < 0.2 < hard.validation.accuracy


@dataclasses.dataclass(frozen=True)
class Spy(Softmax):
    """Softmax that notes the images' shares of class 0, batch by batch."""

    notes: list = dataclasses.field(default_factory=list, compare=False, hash=False)

    def target(self, times, labels, potentials=None, **more):
        jax.debug.callback(
            lambda x: self.notes.append(np.array(x)), labels, ordered=True
        )
        return super().target(times, labels, potentials, **more)


def test_soft_labels_of_every_epoch(digits, tmp_path):
    """Each epoch has its own, at the places of its images; a file serves as well as an
    array; from a checkpoint in the second epoch a run ends in the same bits."""
    images, labels = digits[0][:60], digits[1][:60]
    shares = np.random.default_rng(0).dirichlet(np.ones(10), (3, 60)).astype(np.float16)
    np.save(tmp_path / "shares.npy", shares)
    file = np.load(tmp_path / "shares.npy", mmap_mode="r")
    spy = Spy()
    config = ds.TrainConfig(
        spec="64-10", epochs=3, batch_size=10, validation=0, output_rule=spy
    )
    taken = []
    keep = lambda step: taken.append(step.checkpoint())  # noqa: E731
    data_set = dict(images=images, labels=labels, soft_labels=file)
    first = list(ds.train(config, **data_set, on_step=keep))
    expected = [
        shares[epoch - 1][batch].astype(np.float32)
        for epoch in (1, 2, 3)
        for batch in data.epoch_permutation(60, seed=0, epoch=epoch).reshape(6, 10)
    ]
    np.testing.assert_array_equal(spy.notes, expected)
    start = taken[6 + 2]
    *_, last = ds.train(config, images, labels, soft_labels=shares, start=start)
    jax.tree.map(np.testing.assert_array_equal, last.params, first[-1].params)
    np.testing.assert_array_equal(spy.notes[18:], expected[9:])


class Series:
    """As a pandas Series whose index was shuffled: by name, but for `np.asarray`."""

    def __init__(self, values, index):
        self._values, self._index = np.asarray(values), list(index)

    def __len__(self):
        return len(self._values)

    def __getitem__(self, names):
        at = [self._index.index(name) for name in np.ravel(names)]
        return Series(self._values[at], np.ravel(names))

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._values, dtype)


CONTAINERS = {
    "a Series": lambda x, y: (
        list(x),
        Series(y, np.random.default_rng(0).permutation(300)),
    ),
    "big-endian": lambda x, y: (x, y.astype(">i4")),
    "floating one-hot": lambda x, y: (x, np.eye(10, dtype=np.float32)[y]),
    "jax": lambda x, y: (jnp.asarray(x), jnp.asarray(y)),
    "16-bit floats": lambda x, y: ((x / 255).astype(np.float16), y),
}


def test_any_container_is_read_by_position(digits):
    config = ds.TrainConfig(spec="64-10", epochs=1, batch_size=30)
    (expected,) = ds.train(config, *digits)
    report = ds.evaluate(config.network(), expected.params, *digits)
    for name, make in CONTAINERS.items():
        (result,) = ds.train(config, *make(*digits))
        close = functools.partial(
            np.testing.assert_allclose, rtol=1e-5, err_msg=f"{name}"
        )
        jax.tree.map(close, result.params, expected.params)
        assert result.validation.accuracy == expected.validation.accuracy
        again = ds.evaluate(config.network(), expected.params, *make(*digits))
        assert again.accuracy == report.accuracy, name


class Loader:
    """As a torch DataLoader: a length, epochs, arrays by `__array__`."""

    def __init__(self, images, labels, size):
        starts = range(0, len(labels) - size + 1, size)
        pairs = ((images[k : k + size], labels[k : k + size]) for k in starts)
        self._batches = [(x, Series(y, range(size))) for x, y in pairs]
        self.epochs = 0

    def __len__(self):
        return len(self._batches)

    def __iter__(self):
        self.epochs += 1
        return iter(self._batches)


def batches_of(config, images, labels, epochs):
    """What `train` draws from arrays, as one iterator of mappings."""
    for epoch in range(1, epochs + 1):
        order = data.epoch_permutation(len(labels), seed=config.seed, epoch=epoch)
        for rows in order.reshape(-1, config.batch_size):
            yield {"image": images[rows], "label": labels[rows]}


def test_batches_as_they_come(digits):
    """The same batches give the same weights as the arrays do; the initial weights look
    at the first batches."""
    config = ds.TrainConfig(
        spec="64-20-10",
        epochs=2,
        batch_size=20,
        validation=0.0,
        initial_weights=ds.initial_weights.Uniform(((-5, 15), (-20, 40))),
    )
    expected = list(ds.train(config, *digits))
    once = batches_of(config, *digits, epochs=2)
    start = ds.initial_checkpoint(config, once)
    with pytest.raises(ValueError, match="shapes but no weights"):
        ds.train(config, digits[0], digits[1], start=start)
    results = list(ds.train(config, once, steps_per_epoch=15, validation=digits))
    for a, b in zip(results, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
        assert a.train == b.train and a.validation.images == 300
    assert next(once, None) is None
    images, labels = np.zeros((20, 64), np.uint8), np.zeros(20, np.int32)
    loader = batching.Loader(config, iter([(images, labels)]), 1, None)
    images[:], labels[:] = 1, 1  # while it is ahead
    batch = next(loader.epoch(1, 0))
    assert not batch[0].any() and not batch[1].any()


def test_only_so_many_steps_wait_for_the_device(digits, monkeypatch):
    """The host waits for the step that is so many back, and for none before."""
    waited, order = [], []
    monkeypatch.setattr(loop, "_AHEAD", 5)
    monkeypatch.setattr(
        jax, "block_until_ready", lambda metrics: waited.append((len(order), metrics))
    )
    config = ds.TrainConfig(**SMALL)
    list(ds.train(config, *digits, on_step=lambda step: order.append(step.metrics)))
    assert [at for at, _ in waited] == list(range(5, 54))
    assert all(metrics is order[at - 5] for at, metrics in waited)
    assert all(isinstance(part, jax.Array) for part in order[0])


def test_a_loader_is_gone_through_once_an_epoch(digits):
    loader = Loader(*digits, 16)
    config = ds.TrainConfig(spec="64-100-10", epochs=8)
    results = list(ds.train(config, loader, validation=digits))
    assert loader.epochs == 1 + 8  # the initial weights looked first
    assert results[-1].validation.accuracy > 0.8
    again = list(ds.train(config, Loader(*digits, 16), start=results[1].checkpoint))
    assert [r.epoch for r in again] == [*range(3, 9)]


@pytest.mark.parametrize(
    "batches, more, message",
    [
        (iter([]), {}, "steps_per_epoch"),
        (np.zeros((4, 64)), {}, "labels are missing"),
        ([{"x": 1, "label": 2}], {}, r"with \"image\" and .* got \['label', 'x'\]"),
        ([], {"soft_labels": np.zeros((4, 10))}, "as arrays"),
        (iter([]), {"steps_per_epoch": 3}, "no batches to train on"),
        ([(np.zeros((4, 64)), np.zeros(4, int))] * 2, {"steps_per_epoch": 3}, "has 2"),
        ([(np.zeros((4, 64)), np.full(4, 10))], {}, "labels must lie in 0 … 9"),
    ],
)
def test_batches_that_are_refused(batches, more, message):
    ranges = ds.initial_weights.Uniform(((0, 1),))
    config = ds.TrainConfig(spec="64-10", epochs=1, initial_weights=ranges)
    with pytest.raises((ValueError, TypeError), match=message):
        list(ds.train(config, batches, **more))


def test_fine_tuning_and_held_out_images_of_ones_own(digits):
    config = ds.TrainConfig(spec="64-50-10", epochs=2)
    held = digits[0][:50], digits[1][:50]
    first = list(ds.train(config, *digits, validation=held))[-1]
    assert first.validation.images == 50
    optimizer = Adam(learning_rate=1e-12, pulse_rate=0)
    still = dataclasses.replace(config, epochs=1, optimizer=optimizer)
    (kept,) = ds.train(still, *digits, params=first.params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5),
        kept.params,
        first.params,
    )
    with pytest.raises(ValueError, match="parameters do not fit the network 64-40-10"):
        ds.train(
            dataclasses.replace(config, spec="64-40-10"), *digits, params=kept.params
        )


@pytest.mark.slow
def test_classify_and_evaluate_do_not_depend_on_batch_size(digits):
    network = ds.SpikingNetwork.from_spec("4C3-P2-10", num_steps=37)
    images, labels = digits[0][:25].reshape(25, 8, 8, 1), digits[1][:25]
    params = network.init(jax.random.key(0), network.encode(images))
    params = ds.calibrate(network, params, network.encode(images), (0.3, 0.7))
    expected = ds.infer(network, params, ds.encode(images, num_steps=37))
    report = ds.evaluate(network, params, images, labels)
    inference = ds.classify(network, params, images, batch_size=10)
    jax.tree.map(np.testing.assert_array_equal, inference, expected)
    again = ds.evaluate(network, params, images, labels, batch_size=10)
    for a, b in zip(report, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    trace = network.apply(params, network.encode(images), method="trace")
    np.testing.assert_array_equal(ds.decide(trace).label, expected.label)
