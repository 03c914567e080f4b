import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ds4nn_jax as ds


@pytest.mark.parametrize("steps", [1, 50, 100, 255, 256, 1000, 8_421_505, 2**24])
def test_every_intensity_exactly(steps):
    intensities = np.arange(256, dtype=np.uint8)
    exact = [(255 - i) * steps // 255 for i in range(256)]  # Python's integers
    times = ds.encode(intensities, num_steps=steps)
    assert times.dtype == jnp.float32
    np.testing.assert_array_equal(times, exact)
    for dtype in ("float32", "float16", "bfloat16", ">f4", ">f2"):
        as_float = (intensities / 255).astype(jnp.dtype(dtype))
        np.testing.assert_array_equal(ds.encode(as_float, num_steps=steps), exact)


def test_jit_and_shape(images):
    batch = images[0][:3]
    eager = ds.encode(batch)
    assert eager.shape == batch.shape
    np.testing.assert_array_equal(jax.jit(ds.encode)(batch), eager)
    assert ((eager == 100) == (batch == 0)).all(), "black and only black is silent"


def test_more_steps_than_floats_tell_apart():
    with pytest.raises(ValueError, match="num_steps must be at most 2²⁴ = 16,777,216"):
        ds.encode(np.zeros(3, np.uint8), num_steps=2**24 + 1)


IMAGES, KERNEL = np.array([[0, 255]], np.uint8), np.full((2, 2), 60, np.float32)


@pytest.mark.parametrize(
    "layers",
    [
        lambda t, k, **steps: ds.dense(t, k, **steps),
        lambda t, k, **steps: ds.dense(ds.normalize_gradient(ds.dense(t, k)), k),
        lambda t, k, **steps: ds.relative_target(t, np.array([0]), offset=1, **steps),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_times_know_their_number_of_steps(layers, compiled):
    def run(images, **steps):
        return layers(ds.encode(images, num_steps=64), KERNEL, **steps)

    result = (jax.jit(run) if compiled else run)(IMAGES)
    np.testing.assert_array_equal(result, run(IMAGES, num_steps=64))


@pytest.mark.parametrize(
    "layers",
    [
        lambda t, k: ds.dense(t, k, num_steps=100),
        lambda t, k: jax.jit(ds.dense)(t, k),
        lambda t, k: ds.dense(t.reshape(1, -1) + 0, k),
        lambda t, k: jax.vmap(lambda one: ds.dense(one[None], k))(t),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_times_of_another_number_of_steps(layers, compiled):
    """What is silent in 64 steps is no spike at step 64 of 100: an error where it is
    known, else a word."""

    def run(images):
        return layers(ds.encode(images, num_steps=64), KERNEL)

    with pytest.raises((ValueError, UserWarning), match="num_steps=64"):
        (jax.jit(run) if compiled else run)(IMAGES)


def test_times_of_the_same_number_of_steps():
    times = ds.encode(IMAGES, num_steps=64)
    assert ds.dense(times, KERNEL, num_steps=64)[0, 0] == 64
    ds.encode(IMAGES)
    assert ds.dense(np.asarray(times), KERNEL)[0, 0] == 64  # 60 mV, then 120
