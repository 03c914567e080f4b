import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ds4nn_jax.training import augmentation


@pytest.fixture
def batch(rng):
    return rng.integers(1, 256, (40, 5, 6, 2), dtype=np.uint8)


def test_shift_moves_each_image_by_one_of_all_offsets(batch):
    """Every result is one of the nine slices of the padded image; all nine occur."""
    moved = np.asarray(augmentation.shift(jax.random.key(0), batch, pixels=1))
    assert moved.dtype == np.uint8 and moved.shape == batch.shape
    padded = np.pad(batch, ((0, 0), (1, 1), (1, 1), (0, 0)))
    slices = {
        (y, x): padded[:, y : y + 5, x : x + 6] for y in range(3) for x in range(3)
    }
    offsets = [
        [where for where, images in slices.items() if (images[i] == image).all()]
        for i, image in enumerate(moved)
    ]
    assert all(len(found) == 1 for found in offsets)
    assert {found[0] for found in offsets} == set(slices)


def test_flip_mirrors_about_half(batch):
    flipped = np.asarray(augmentation.flip(jax.random.key(0), batch))
    mirrored = (flipped == batch[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (flipped == batch).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all() and 10 < mirrored.sum() < 30


def test_rotation_by_a_quarter_is_exact(batch, monkeypatch):
    """With every angle at its largest, 90 degrees are np.rot90."""
    monkeypatch.setattr(
        jax.random, "uniform", lambda k, s, d, low, high: jnp.full(s, -low)
    )
    square = batch[:, :, :5]
    turned = augmentation.rotate(jax.random.key(0), square, degrees=90)
    assert turned.dtype == np.uint8
    as_they_were = (turned == square).all(axis=(1, 2, 3))
    around = (turned == np.rot90(square, -1, axes=(1, 2))).all(axis=(1, 2, 3))
    assert (as_they_were ^ around).all() and 10 < around.sum() < 30


def test_rotation_turns_every_other_image_by_its_own_angle():
    """A bright square to the right of the centre moves on a circle, both ways, and
    keeps its brightness."""
    images = np.zeros((80, 31, 31, 1), np.float32)
    images[:, 14:17, 24:27] = 0.7
    made = np.asarray(augmentation.rotate(jax.random.key(0), images, degrees=30))
    changed = (made != images).any(axis=(1, 2, 3))
    assert 25 < changed.sum() < 55
    assert {*np.unique(made)} == {np.float32(0), np.float32(0.7)}
    turned = made[changed, ..., 0]
    mass = turned.sum(axis=(1, 2))
    y = (turned * np.arange(-15, 16)[:, None]).sum(axis=(1, 2)) / mass
    x = (turned * np.arange(-15, 16)[None]).sum(axis=(1, 2)) / mass
    np.testing.assert_allclose(np.hypot(x, y), 10, atol=0.25)
    angles = np.degrees(np.arctan2(y, x))
    assert angles.min() < -15 and angles.max() > 15 and np.abs(angles).max() < 32
    assert len({*np.round(angles, 2)}) > 20
