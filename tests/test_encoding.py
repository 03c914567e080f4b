import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ds4nn_jax as ds


@pytest.mark.parametrize(
    "intensity, time",
    [(255, 0), (254, 0), (252, 1), (128, 49), (127, 50), (1, 99), (0, 100)],
)
def test_worked_pixels(intensity, time):
    """⌊(255 − I)/255 · 100⌋ by hand; black is silent."""
    assert ds.encode(np.array([intensity], np.uint8))[0] == time


@pytest.mark.parametrize("steps", [1, 2, 50, 100, 255, 256, 1000])
def test_every_intensity_exactly(steps):
    intensities = np.arange(256, dtype=np.uint8)
    exact = [(255 - i) * steps // 255 for i in range(256)]  # Python's whole numbers
    times = ds.encode(intensities, num_steps=steps)
    assert times.dtype == jnp.float32
    np.testing.assert_array_equal(times, exact)
    as_float = (intensities / 255).astype(np.float32)
    np.testing.assert_array_equal(ds.encode(as_float, num_steps=steps), exact)


def test_brighter_is_never_later(rng):
    images = np.sort(rng.random(500).astype(np.float32))
    assert (np.diff(ds.encode(images)) <= 0).all()


def test_jit_and_shape(images):
    batch = images[0][:3]
    eager = ds.encode(batch)
    assert eager.shape == batch.shape
    np.testing.assert_array_equal(jax.jit(ds.encode)(batch), eager)
    assert ((eager == 100) == (batch == 0)).all(), "black and only black is silent"


def test_raster_has_each_spike_once(rng):
    times = rng.integers(0, 11, (2, 3)).astype(np.float32)
    train = ds.raster(times, num_steps=10)
    assert train.shape == (10, 2, 3) and train.dtype == bool
    np.testing.assert_array_equal(train.sum(axis=0), times < 10)
    for t, b, i in np.argwhere(train):
        assert times[b, i] == t


def test_decode_inverts_up_to_rounding():
    intensities = np.arange(256, dtype=np.uint8)
    shown = np.asarray(ds.decode(ds.encode(intensities)), float)
    assert shown[0] == 0 and shown[255] == 1
    error = shown - intensities / 255
    assert (error > -1e-6).all() and (error < 1 / 100).all()


@pytest.mark.parametrize(
    "images, error, message",
    [
        (np.zeros(3, np.int32), TypeError, "uint8 .* or floating .* got int32"),
        (np.zeros(3, bool), TypeError, "got bool"),
        (np.array([0.0, 1.5]), ValueError, r"\[0, 1\].*0.0 to 1.5"),
        (np.array([-0.1, 0.5]), ValueError, r"\[0, 1\]"),
        (np.array([np.nan]), ValueError, r"\[0, 1\].*nan"),
        (np.array([np.inf]), ValueError, r"\[0, 1\]"),
    ],
)
def test_refuses_images(images, error, message):
    with pytest.raises(error, match=message):
        ds.encode(images)


@pytest.mark.parametrize("steps", [0, -1, 2.5, None, True])
@pytest.mark.parametrize("function", [ds.encode, ds.raster, ds.decode])
def test_refuses_num_steps(function, steps):
    with pytest.raises(ValueError, match="num_steps must be a positive whole number"):
        function(np.zeros(3, np.float32), num_steps=steps)
