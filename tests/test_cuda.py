"""The CUDA kernels, run on the CPU (`cuda_on_cpu.h`), against the other engines."""

import functools
import subprocess
from pathlib import Path

import conftest
import jax
import jax.export
import numpy as np
import pytest
from test_event import LAYERS, SAME3, dyadic, spikes

from ds4nn_jax._engines import cuda, event
from ds4nn_jax._engines.synapse import NO_POOL, Conv, Dense

_SHARED = (
    "dense",
    "dense many outputs",
    "conv 3x3 same",
    "conv 3x3 one channel",
    "conv 2x2 stride 2",
    "conv pads wider than window",
    "one pixel",
)
LAYERS = {name: LAYERS[name] for name in _SHARED} | {
    "dense, rows fetched together": (Dense(), (3, 700), (700, 10)),
    "dense, of an output layer": (Dense(), (1, 6272), (6272, 10)),
    "dense, many lanes": (Dense(), (5, 784), (784, 400)),
    "dense, some blocks of outputs": (Dense(), (2, 90), (90, 1000)),
    "dense, 33 outputs": (Dense(), (5, 300), (300, 33)),
    "conv 3x3 x 64": (Conv((1, 1), SAME3), (2, 4, 4, 64), (3, 3, 64, 128)),
    "conv 5x5 x 16": (Conv((1, 1), ((2, 2), (2, 2))), (1, 6, 6, 16), (5, 5, 16, 32)),
}
POOLED = {
    "first layer": (Conv((1, 1), SAME3), (2, 8, 8, 1), (3, 3, 1, 33), (2, 2)),
    "inner layer": (Conv((1, 1), SAME3), (2, 4, 6, 64), (3, 3, 64, 128), (2, 2)),
    "blocks": (Conv((1, 1), SAME3), (1, 6, 6, 16), (3, 3, 16, 128), (3, 3)),
    "strides": (Conv((2, 1), ((0, 1), (2, 0))), (5, 9, 5, 12), (3, 3, 12, 10), (1, 5)),
}
PULSES = (0, 1, 10, 100, 230)


# Once a process, in which XLA keeps what is registered; workers may leave a module and
# come back to it.
@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The same source, compiled as C++."""
    made = tmp_path_factory.mktemp("cuda") / "cuda.so"
    here = Path(__file__).parent
    options = "-O2 -std=c++17 -x c++ -DDS4NN_ON_CPU -shared -fPIC -U_FORTIFY_SOURCE "
    options += f"-Wall -Werror -Wno-unknown-pragmas -isystem{jax.ffi.include_dir()}"
    command = [*conftest.compiler("c++"), *options.split(), f"-I{here}"]
    subprocess.run([*command, str(cuda.SOURCE), "-o", str(made)], check=True)
    loaded = cuda.load(made, "cpu")
    assert loaded.ds4nn_fault() is None
    return loaded


@pytest.fixture(autouse=True)
def kernels(compiled, monkeypatch):
    monkeypatch.setattr(cuda, "_loaded", lambda: compiled)


def given(rng, layer, pulses, weights=dyadic, active=0.5, num_steps=100):
    synapse, shape, kernel, *pool = layer
    arrays = spikes(rng, shape, num_steps, active), weights(rng, kernel)
    added = weights(rng, (pulses, kernel[-1])) / 2
    return synapse, (*arrays, added), *(pool or [NO_POOL])


def answers(engine, synapse, arrays, pool, peaks, counts, threshold, num_steps=100):
    """Of neurons that each have a threshold of their own, around this one."""
    settings = dict(peaks=peaks, pool=pool, counts=counts, num_steps=num_steps)
    run = functools.partial(engine, synapse, **settings)
    theta = threshold * (1 + np.arange(arrays[1].shape[-1]) % 5 / 8)
    return jax.jit(run)(*arrays, theta.astype(np.float32))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_same_answers(*settings):
    both = (answers(e.forward, *settings) for e in (cuda, event))
    assert_same(*both)


def gradients(synapse, arrays, end, delta, argmin, pool, silent_inputs):
    """By the CUDA kernels and by the event engine."""
    others = () if argmin is None else (argmin,)
    settings = dict(num_steps=100, silent_inputs=silent_inputs, pool=pool)
    for engine in (cuda, event):
        run = functools.partial(engine.backward, synapse, **settings)
        yield jax.jit(run)(*arrays, end, delta, *others)


every = LAYERS | {f"pooled, {name}": layer for name, layer in POOLED.items()}
layers = pytest.mark.parametrize("layer", every.values(), ids=every.keys())


@layers
def test_dyadic_weights_are_exact(rng, layer):
    """With some of the pulses, peaks, counts and silent inputs, which other layers have
    in other turns: bit for bit what the event engine finds, which compiles fastest."""
    index = list(every.values()).index(layer)
    pulses = PULSES[index * 2 % 5]
    active = (0.5, 1, 0.1)[index % 3]
    synapse, arrays, pool = given(rng, layer, pulses, active=active)
    size = arrays[1].size // arrays[1].shape[-1]
    threshold = float(1 + np.sqrt(size)) * (1, 4, 0.5)[index % 3]
    settings = index % 2 == 0, index % 3 == 0, threshold
    found = answers(cuda.forward, synapse, arrays, pool, *settings)
    assert_same(found, answers(event.forward, synapse, arrays, pool, *settings))
    end = found.times if index % 2 else found.end
    shape = found.times.shape
    delta = dyadic(rng, shape) * (rng.random(shape) < (0.3, 1)[index % 2])
    errors = delta.astype(np.float32), found.argmin
    assert_same(*gradients(synapse, arrays, end, *errors, pool, index % 4 < 2))


@pytest.mark.parametrize(
    "layer",
    [every[name] for name in ("dense, 33 outputs", "conv 3x3 x 64")]
    + [*POOLED.values()][:2],
)
def test_adds_in_the_order_of_the_event_engine(rng, layer):
    weights = lambda rng, shape: rng.normal(0.3, 1, shape).astype(np.float32)  # noqa: E731
    synapse, arrays, pool = given(rng, layer, 10, weights)
    size = arrays[1].size // arrays[1].shape[-1]
    settings = True, True, float(1 + np.sqrt(size))
    found = answers(cuda.forward, synapse, arrays, pool, *settings)
    assert_same(found, answers(event.forward, synapse, arrays, pool, *settings))
    delta = rng.normal(0, 1, found.times.shape).astype(np.float32)
    both = gradients(synapse, arrays, found.end, delta, found.argmin, pool, True)
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("num_steps", [1, 33, 1024])
def test_any_number_of_steps(rng, num_steps):
    for name, pulses in ("conv 3x3 same", 0), ("conv 3x3 one channel", 9):
        synapse, arrays, pool = given(rng, LAYERS[name], pulses, num_steps=num_steps)
        assert_same_answers(synapse, arrays, pool, True, True, 9.0, num_steps)


def test_silence(rng):
    """No window hears anything; V(0) = 0 is the peak, or what the pulses make it."""
    for layer in (every["dense many outputs"], every["pooled, first layer"]):
        for pulses in (0, 10):
            synapse, arrays, pool = given(rng, layer, pulses, active=0)
            assert_same_answers(synapse, arrays, pool, True, True, 2.0)


@pytest.mark.parametrize(
    "layer",
    [
        (Dense(), (32, 6272), (6272, 10)),
        (Conv((1, 1), SAME3), (8, 20, 20, 128), (3, 3, 128, 2), (2, 2)),
    ],
    ids=["two", "four"],
)
def test_several_inputs_a_thread(rng, layer):
    """Where there are many: the errors of their times."""
    synapse, arrays, pool = given(rng, layer, 1)
    images, *image = layer[1]
    image = [n // m for n, m in zip(image[:-1], pool, strict=False)]
    shape = images, *image, layer[2][-1]
    delta = dyadic(rng, shape) * (rng.random(shape) < 0.5)
    end = rng.integers(0, 101, shape).astype(np.float32)
    argmin = None if pool == NO_POOL else rng.integers(0, 4, shape).astype(np.float32)
    errors = delta.astype(np.float32), argmin
    assert_same(*gradients(synapse, arrays, end, *errors, pool, True))


def test_too_large_for_a_kernel(rng):
    """The scan takes over."""
    layer = Dense(), (1, 50_000), (50_000, 2)
    synapse, arrays, pool = given(rng, layer, 3)
    assert_same_answers(synapse, arrays, pool, True, True, 500.0)


def test_lowers_for_a_gpu(rng):
    """A gradient calls the kernels on CUDA, those of mapped images in one call; a
    program to be exported calls none."""
    synapse, arrays, pool = given(rng, POOLED["first layer"], 10)
    settings = dict(num_steps=100, peaks=False, pool=pool, only=False)
    arrays = *arrays, np.full(arrays[1].shape[-1], 4, np.float32)
    run = functools.partial(event.forward, synapse, **settings)
    mapped = jax.vmap(lambda t: run(t[None], *arrays[1:]).times)
    for function, on in ((run, arrays), (mapped, arrays[:1])):
        traced = jax.jit(function).trace(*on)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("ds4nn_jax.cuda.forward") == 1 and "while" not in text
    exported = jax.export.export(jax.jit(run), platforms=["cuda"])(*arrays)
    assert "ds4nn_jax.cuda." not in exported.mlir_module()
