"""Picture files: what a viewer shows of them, and how it is fitted to a network."""

import os
import warnings
from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ds4nn_jax import _pictures

GREY = np.array([[0, 51, 102, 119], [136, 153, 238, 255]], np.uint8)
COLOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], "uint8")


def saved(image, kind="PNG", **options):
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def fitted(folder, pixels, *args, **options):
    Image.fromarray(pixels).save(folder / "x.png")
    return _pictures.fitted(folder / "x.png", *args, **options)


def shown(content):
    picture, remarks = _pictures.shown(Image.open(BytesIO(content)))
    return np.asarray(picture), remarks


def grey(dtype, factor=1, shift=0, kind="TIFF"):
    return saved(
        Image.fromarray((GREY * dtype(factor) + dtype(shift)).astype(dtype)), kind
    )


GREYS = {
    "L": (grey(np.uint8, kind="PNG"), None),
    "4 bits": (saved(Image.fromarray(GREY), bits=4), None),
    "LA": (saved(Image.fromarray(GREY).convert("LA")), None),
    "BMP": (grey(np.uint8, kind="BMP"), None),
    "GIF": (grey(np.uint8, kind="GIF"), None),
    "PGM": (grey(np.uint8, kind="PPM"), None),
    "TIFF": (grey(np.uint8), None),
    "16 bits": (grey(np.uint16, 257, kind="PNG"), "0 … 65535"),
    "16 bits, TIFF": (grey(np.uint16, 257), "0 … 65535"),
    "8 bits' values in 16": (grey(np.uint16, kind="PNG"), None),
    "32 bits of 16": (grey(np.int32, 257), "0 … 65535"),
    "32 bits": (grey(np.int32, 8_000_000), "0 … 2.04e+09"),
    "below zero": (grey(np.int32, 1, -300), "-300 … -45"),
    "float to 1": (grey(np.float32, 1 / 255), "0 … 1"),
    "float to 255": (grey(np.float32), None),
    "float around 0": (grey(np.float32, 0.01, -1), "-1 … 1.55"),
}


@pytest.mark.parametrize("kind", GREYS)
def test_greys_of_all_depths_are_the_same(kind):
    content, values = GREYS[kind]
    pixels, remarks = shown(content)
    pixels = np.atleast_3d(pixels)
    assert (pixels == pixels[..., :1]).all()
    np.testing.assert_allclose(pixels[..., 0], GREY, atol=1e-3)
    assert remarks == ([f"values {values} scaled to 0 … 255"] if values else [])


def test_colours():
    rgb = Image.fromarray(COLOUR)
    for content in (
        saved(rgb),
        saved(rgb.quantize(4)),
        saved(rgb.convert("CMYK"), "TIFF"),
        saved(rgb.convert("RGBA")),
    ):
        pixels, remarks = shown(content)
        np.testing.assert_array_equal(pixels, COLOUR)
        assert remarks == []
    np.testing.assert_array_equal(_pictures.shown(rgb.convert("HSV"))[0], COLOUR)
    ycbcr = np.asarray(_pictures.shown(rgb.convert("YCbCr"))[0], int)
    np.testing.assert_allclose(ycbcr, COLOUR, atol=2)
    bits, _ = shown(saved(Image.fromarray(np.array([[True, False, True]]))))
    np.testing.assert_array_equal(bits, [[255, 0, 255]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    stored = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    # By EXIF: where row 0 and column 0 of what is stored are in what is shown.
    expected = {
        1: stored,  # top, left
        2: stored[:, ::-1],  # top, right
        3: stored[::-1, ::-1],  # bottom, right
        4: stored[::-1],  # bottom, left
        5: stored.T,  # left, top
        6: stored.T[:, ::-1],  # right, top
        7: stored.T[::-1, ::-1],  # right, bottom
        8: stored.T[::-1],  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels, remarks = shown(saved(Image.fromarray(stored), kind, exif=exif, **options))
    np.testing.assert_array_equal(np.atleast_3d(pixels)[..., 0], expected)
    turned = [f"turned as EXIF orientation {orientation} says"]
    assert remarks == (turned if orientation > 1 else [])


def test_damaged_exif_turns_nothing():
    content = saved(Image.fromarray(GREY), exif=b"Exif\0\0II*\0\xff\xff\xff\xffrubbish")
    np.testing.assert_array_equal(shown(content)[0], GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "TGA"])
@pytest.mark.parametrize("ink, expected", [(0, [255, 127, 0]), (255, [0, 128, 255])])
def test_ink_on_nothing_is_set_off(kind, ink, expected):
    image = Image.new("RGBA", (3, 1), (ink,) * 3)
    image.putalpha(Image.fromarray(np.array([[0, 128, 255]], np.uint8)))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels, remarks = shown(saved(image, kind, **options))
    np.testing.assert_array_equal(pixels[0, :, 0], expected)
    assert remarks == [f"transparent: laid on {'black' if ink else 'white'}"]


def test_a_tone_is_transparent():
    """A palette's and a grey's: the ground becomes white behind dark ink."""
    for mode in ("L", "P"):
        image = Image.fromarray(np.array([[9, 0, 9]], np.uint8)).convert(mode)
        pixels, remarks = shown(saved(image, transparency=9))
        assert np.atleast_3d(pixels)[0, :, 0].tolist() == [255, 0, 255]
        assert remarks == ["transparent: laid on white"]


def test_a_sheet_with_a_transparent_margin_is_continued():
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[4:16, 4:16] = 255
    pixels[8:12, 6:14, :3] = 0
    expected = np.full((20, 20), 255)
    expected[8:12, 6:14] = 0
    for _ in range(2):  # black on white, white on black
        image, _ = shown(saved(Image.fromarray(pixels)))
        np.testing.assert_array_equal(image[..., 0], expected)
        pixels[..., :3], expected = 255 - pixels[..., :3], 255 - expected


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames(kind):
    first, second = (Image.fromarray(np.full((4, 4), n, np.uint8)) for n in (255, 0))
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(first, kind, save_all=True, append_images=[second], **options)
    pixels, remarks = shown(content)
    assert (pixels == 255).all()
    assert remarks == ["the first of 2 frames"]


# Digits


def big(image, factor=10):
    return np.kron(image, np.ones((factor, factor), np.float32))


def apart(seen, image):
    """Mean difference of tones, give or take one pixel of place."""
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return min(np.abs(np.roll(seen[..., 0], s, (0, 1)) - image).mean() for s in steps)


@pytest.fixture(scope="module")
def digits(images):
    if images[0].shape[1:] != (28, 28, 1):
        pytest.skip("no real MNIST at hand")
    return images[0][..., 0].astype(np.float32)


def test_mnist_is_left_as_it_is_and_dark_ink_inverted(digits, tmp_path):
    inverted = ["dark ink on a light ground: inverted"]
    for image in digits[:100]:
        for grey, invert, expected in (
            (image, None, []),
            (255 - image, None, inverted),
            (255 - image, True, []),
        ):
            seen, remarks = _pictures.digit(grey, invert=invert)
            np.testing.assert_array_equal(seen[..., 0], image)
            assert remarks == expected
    for grey, invert in ((255 - image, False), (image, True)):
        seen, remarks = _pictures.digit(grey, invert=invert)
        assert remarks == ["no ink that is lighter than its ground"]
        assert not seen.any() and seen.shape == (28, 28, 1)
    seen, remarks = fitted(tmp_path, image.astype(np.uint8), (28, 28, 1), fit="ink")
    np.testing.assert_array_equal(seen[..., 0], image)
    assert seen.dtype == np.uint8 and remarks == []


def test_digits_of_other_sizes_and_tones_are_nearly_the_same(digits, rng):
    light = np.linspace(110, 240, 280, dtype=np.float32)[:, None]
    for image in digits[:10]:
        seen, remarks = _pictures.digit(big(image))
        assert apart(seen, image) < 6
        assert remarks[0].startswith("scaled from 280×280 to 28×28: the ink's ")
        seen, remarks = _pictures.digit(100 + np.floor(image / 4))
        np.testing.assert_allclose(seen[..., 0], image, atol=12)
        assert remarks[0].startswith("contrast stretched: 100 … 1")
        assert seen.max() == 255 and np.median(seen) == 0
        noise = rng.normal(0, 3, (280, 280))
        seen, remarks = _pictures.digit(light * (1 - 0.75 * big(image) / 255) + noise)
        assert "uneven light evened out" in remarks
        assert apart(seen, image) < 10


def test_the_box_and_the_centre_of_mass_are_mnists():
    """A bar of 80×20 pixels in a corner: 20×5, its middle at pixel 14; specks beside
    it do not count."""
    grey = np.zeros((300, 400), np.float32)
    grey[10:90, 370:390] = 255
    expected = np.zeros((28, 28), np.uint8)
    expected[4:24, 12:17] = 255
    # The mean of rows 4 … 23 is 13.5, of columns 12 … 16 it is 14.
    scaled = (
        "scaled from 400×300 to 28×28: the ink's 20×80 to 5×20, centred by its mass"
    )
    for speck, more in ((0, []), (255, ["specks beside the ink left out"])):
        grey[200:202, 50:52] = speck
        seen, remarks = _pictures.digit(grey)
        np.testing.assert_array_equal(seen[..., 0], expected)
        assert remarks == [*more, scaled]


# Other networks


def test_other_pictures_are_scaled_and_laid_on_their_ground(tmp_path):
    """By means of their pixels."""
    wide = np.full((2, 4, 3), (10, 20, 30), np.uint8)
    wide[0, 1] = 200
    seen, remarks = fitted(tmp_path, wide, (4, 4, 3))
    np.testing.assert_array_equal(seen[1:3], wide)
    assert (seen[[0, 3]] == (10, 20, 30)).all()
    assert remarks == ["scaled from 4×2 to fit 4×4"]
    four = np.array([[0, 100], [200, 20]], np.uint8)
    seen, remarks = fitted(tmp_path, four, (1, 1, 1))
    assert seen.tolist() == [[[80]]] and remarks == ["scaled from 2×2 to fit 1×1"]


def test_a_picture_is_not_reduced_below_the_network_that_sees_it(tmp_path):
    stripes = np.zeros((1000, 40), np.uint8)
    stripes[:, ::2] = 200
    seen, remarks = fitted(tmp_path, stripes, (1000, 40, 1))
    np.testing.assert_array_equal(seen[..., 0], stripes)
    assert remarks == []


def test_colours_for_a_grey_network(tmp_path):
    seen, remarks = fitted(tmp_path, COLOUR, (2, 2, 1))
    # ITU-R 601: 0.299, 0.587, 0.114
    np.testing.assert_array_equal(seen[..., 0], [[76, 150], [29, 255]])
    assert remarks == ["colours as grey"]
    assert fitted(tmp_path, np.dstack([GREY] * 3), (2, 4, 1))[1] == []


# Files that cannot be read


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "cannot identify"),
        (b"hello", "cannot identify"),
        (saved(Image.fromarray(GREY))[:-30], ""),
        (grey(np.float32, np.nan), "values that are NaN or infinite"),
        (b"GIF89a`\xea`\xea\0\0\0,\0\0\0\0`\xea`\xea\0\2\0;", "exceeds limit of"),
        (b"P5 9999 9999 255 ", "exceeds limit of"),
    ],
    ids="empty text cut nan gif pgm".split(),
)
def test_refuses(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(_pictures.PictureError, match=f"cannot be read: .*{message}"):
        _pictures.fitted(tmp_path / "x", (28, 28, 1))


def test_only_files_are_read(tmp_path):
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "absent", tmp_path):
        with pytest.raises(_pictures.PictureError, match="no such file"):
            _pictures.read(path)


LARGE = Image.fromarray(np.arange(16 * 16, dtype=np.uint8).reshape(16, 16))
WHOLE = [
    *(content for content, _ in GREYS.values()),
    *(saved(LARGE, kind) for kind in "JPEG JPEG2000 WEBP ICO TGA PCX".split()),
    *(saved(LARGE, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg")),
    saved(LARGE, "GIF", save_all=True, append_images=[LARGE.rotate(90)]),
    saved(LARGE.convert("RGBA"), "DDS"),
]


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 10**4), st.binary(max_size=8)), max_size=5),
    st.integers(0, 10**4),
)
def test_damaged_bytes_are_a_picture_or_one_line(tmp_path, content, changes, end):
    for at, new in changes:
        at %= len(content)
        content = content[:at] + new + content[at + len(new) :]
    (tmp_path / "x").write_bytes(content[: max(end, 1)])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            seen, _ = _pictures.fitted(tmp_path / "x", (28, 28, 1), fit="ink")
            assert seen.shape == (28, 28, 1) and seen.dtype == np.uint8
        except _pictures.PictureError as error:
            assert str(error)
    assert not warned
