"""Picture files as networks see them: what a viewer shows, fitted as MNIST was made."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from ds4nn_jax import data

MEGAPIXELS = 64  # of a picture, at most
_WORKING_SIZE = 500  # pixels; larger pictures are reduced before they are looked at
_LEAST_CONTRAST = 3.0  # of 255; less is one tone to a person too
_FAINT = 0.2  # of the ink's tone; fainter pixels do not count for its box
_BOX, _DIGIT, _CENTRE = 20, 28, 14  # pixels: MNIST's box, image and centre of mass


class PictureError(ValueError):
    """A file that shows no picture; the message says why."""


def read(
    path: Path,
    shape: Sequence[int],
    *,
    fit: str = "whole",
    ground: str | None = "mixed",
    invert: bool | None = None,
) -> tuple[np.ndarray, list[str]]:
    """The picture of a file as an image of the given shape.

    Args:
      path: any format that Pillow reads; the first frame of several.
      shape: [H, W, C] with C = 1 or 3.
      fit: "whole": see `scaled`; "ink": as MNIST was made, see `digit`.
      ground: of the images that the network learned from, "dark", "light" or "mixed";
        None: unknown.
      invert: whether dark and light change places. None: if the ground differs from
        that of the training images, or if `digit` finds dark ink.

    Returns:
      uint8 [H, W, C], and a remark for each change.

    Raises:
      PictureError: no file, no picture, a damaged one, more than 64 megapixels, or
        values that are not finite.
    """
    try:
        with _quiet(), Image.open(path) as image:
            picture, remarks = shown(image)
    except PictureError:
        raise
    except IsADirectoryError as error:
        raise PictureError("a folder, not a picture") from error
    except UnidentifiedImageError as error:
        raise PictureError("not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"larger than {MEGAPIXELS} megapixels") from error
    except Exception as error:  # decoders raise many types for damaged bytes
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PictureError(f"cannot be read: {why}") from error
    if fit == "ink":
        grey, remarks = _converted(picture, 1, remarks)
        pixels, more = digit(np.asarray(grey, np.float32), invert)
    else:
        if invert is None:
            invert, more = _on_other_ground(picture, ground)
            remarks = remarks + more
        pixels, more = scaled(picture, shape, invert=invert)
    return pixels, remarks + more


def _on_other_ground(
    picture: Image.Image, ground: str | None
) -> tuple[bool, list[str]]:
    """Whether dark and light are to change places, and why."""
    tone = data.border_tone(np.asarray(_converted(picture, 1, [])[0], np.float32))
    here = "light" if tone >= 128 else "dark"
    if ground is None and here == "light":
        return False, ["a light ground; the network's is not noted: --invert if dark"]
    if ground in (None, "mixed", here):
        return False, []
    return True, [f"a {here} ground, and the network learned {ground} ones: inverted"]


def shown(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The picture as a viewer shows it: turned as EXIF says, and opaque.

    Returns:
      An image of mode L, RGB or, for greys of more than 8 bits, F in [0, 255]; and
      remarks.

    Raises:
      PictureError: values that are NaN or infinite.
      Exception: any of Pillow's, for damaged bytes.
    """
    remarks = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        remarks.append(f"the first of {frames} frames")
        image.seek(0)
    orientation = 1
    with contextlib.suppress(Exception):  # damaged EXIF turns nothing
        orientation = image.getexif().get(274, 1)
    image.load()
    if orientation in range(2, 9):
        remarks.append(f"turned as EXIF orientation {orientation} says")
        image.info.pop("exif", None)  # damaged EXIF cannot be written anew
        image = ImageOps.exif_transpose(image)
    if image.mode[0] == "I" or image.mode == "F":
        image = _in_bytes(image, remarks)
    if factor := max(image.size) // _WORKING_SIZE:
        image = image.convert("RGBA") if image.mode in ("P", "PA") else image
        image = image.reduce(factor)
    if image.has_transparency_data:
        return _opaque(image.convert("RGBA"), remarks), remarks
    mode = {"1": "L", "L": "L", "F": "F"}.get(image.mode, "RGB")
    return image.convert(mode), remarks


def digit(grey: np.ndarray, invert: bool | None = None) -> tuple[np.ndarray, list[str]]:
    """A handwritten digit as MNIST has them: light ink on black.

    The box around the ink is scaled to 20×20 pixels, its aspect kept, and laid into
    28×28 with its centre of mass in the middle; the ground becomes 0, the ink 255. An
    image of 28×28 that is already so stays as it is.

    Args:
      grey: [H, W] in [0, 255].
      invert: whether the ink is dark; None looks.

    Returns:
      uint8 [28, 28, 1], and remarks.
    """
    remarks = []
    light = _light(grey)
    away = grey - light
    if invert is None:
        invert = np.square(away[away < 0]).sum() > np.square(away[away > 0]).sum()
        if invert:
            remarks.append("dark ink on a light ground: inverted")
    if invert:
        grey, light, away = 255 - grey, 255 - light, -away
    low, lower = np.percentile(_border(away), (25, 5))
    floor = low + 3.4 * (low - lower)  # 2.7 σ of noise above the ground
    if np.ptp(grey) < _LEAST_CONTRAST:
        remarks.append("all of one tone: there is no ink")
        return np.zeros((_DIGIT, _DIGIT, 1), np.uint8), remarks
    if away.max() - floor < _LEAST_CONTRAST:
        remarks.append("no ink that is lighter than its ground")
        pixels, more = scaled(Image.fromarray(grey), (_DIGIT, _DIGIT, 1))
        return pixels, remarks + more
    top = np.percentile(away[away > (floor + away.max()) / 2], 95)
    ink = np.clip((away - floor) / (top - floor), 0, 1)
    uneven, ground = np.ptp(light) > 16, np.median(light)
    if uneven:
        remarks.append("uneven light evened out")
    if uneven or floor + ground > 8 or grey.max() < 224:
        tones = f"{floor + ground:.0f} … {top + ground:.0f}"
        remarks.append(f"contrast stretched: {tones} to 0 … 255")
        grey = 255 * ink
    if grey.shape == (_DIGIT, _DIGIT) and _in_place(ink):
        return _bytes(grey)[..., None], remarks
    specks = _specks(ink)
    if ink[specks].max(initial=0) > 0.5:  # fainter ones, as JPEG makes, are invisible
        remarks.append("specks beside the ink left out")
    grey, ink = np.where(specks, 0, grey), np.where(specks, 0, ink)
    return _centred(grey[_box(ink)], grey.shape, remarks), remarks


def _centred(box: np.ndarray, shape: Sequence[int], remarks: list[str]) -> np.ndarray:
    """The ink's box, cut from a picture of this shape, in MNIST's place and size."""
    size = _fitting(box.shape, (_BOX, _BOX))
    small = np.asarray(_resized(Image.fromarray(box), size))
    small = small * max(1, 255 / small.max())  # thin strokes fade as they are scaled
    remarks.append(
        f"scaled from {shape[1]}×{shape[0]} to {_DIGIT}×{_DIGIT}: the ink's "
        f"{box.shape[1]}×{box.shape[0]} to {size[1]}×{size[0]}, centred by its mass"
    )
    pixels = np.zeros((_DIGIT, _DIGIT))
    start = np.rint(_CENTRE - np.array(ndimage.center_of_mass(small)))
    y, x = np.clip(start, 0, _DIGIT - np.array(size)).astype(int)
    pixels[y : y + size[0], x : x + size[1]] = small
    return _bytes(pixels)[..., None]


def scaled(
    picture: Image.Image, shape: Sequence[int], *, invert: bool = False
) -> tuple[np.ndarray, list[str]]:
    """A picture scaled to fit, its aspect kept, in the middle of its ground's colour.

    Args:
      picture: of mode L, RGB or F, as `shown` gives it.
      shape: [H, W, C] with C = 1 or 3.
      invert: whether dark and light change places.

    Returns:
      uint8 [H, W, C], and remarks.
    """
    height, width, channels = shape
    picture, remarks = _converted(picture, channels, [])
    pixels = _bytes(np.asarray(picture))
    if invert:
        pixels = 255 - pixels
    if pixels.shape[:2] != (height, width):
        size = _fitting(pixels.shape[:2], (height, width))
        remarks.append(
            f"scaled from {pixels.shape[1]}×{pixels.shape[0]} to {size[1]}×{size[0]}"
        )
        if size != (height, width):
            remarks[-1] += f", in the middle of {width}×{height}"
        tones = np.rint(np.median(_border(pixels), axis=0)).reshape(-1)
        small = _resized(Image.fromarray(pixels), size)
        color = tuple(map(int, tones))
        pixels = np.asarray(ImageOps.pad(small, (width, height), color=color))
    return pixels.reshape(shape), remarks


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Pillow without a word, and with our limit: it refuses twice what it warns of."""
    logger, limit = logging.getLogger("PIL"), Image.MAX_IMAGE_PIXELS
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL + 1)
        Image.MAX_IMAGE_PIXELS = MEGAPIXELS * 10**6 // 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        Image.MAX_IMAGE_PIXELS = limit


def _in_bytes(image: Image.Image, remarks: list[str]) -> Image.Image:
    """Greys of 16 or 32 bits, as F in [0, 255]."""
    values = np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise PictureError("holds values that are NaN or infinite")
    low, high = float(values.min()), float(values.max())
    tops = (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0)
    if low < 0 or high > tops[-1]:
        remarks.append(f"values {low:g} … {high:g} stretched to 0 … 255")
    else:
        low, high = 0.0, min(top for top in tops if high <= top)
        if high != 255:
            remarks.append(f"values 0 … {high:g} scaled to 0 … 255")
    return Image.fromarray((values - low) * (255 / max(high - low, 1e-30)))


def _opaque(image: Image.Image, remarks: list[str]) -> Image.Image:
    """Ink on the opposite ground; a sheet that fills its box on its commoner tone."""
    alpha = np.asarray(image.getchannel("A"))
    if alpha.min() == 255:
        return image.convert("RGB")
    tones = np.asarray(image.convert("L"))[alpha > 127]
    light = tones.size > 0 and np.median(tones) >= 128
    left, top, right, bottom = image.getchannel("A").getbbox() or (0, 0, 0, 0)
    filled = tones.size > 0.75 * (right - left) * (bottom - top)
    sheet = filled and np.ptp(np.percentile(tones, (5, 95))) > 127
    ground = "white" if light == sheet else "black"
    remarks.append(f"transparent: laid on {ground}")
    page = Image.new("RGBA", image.size, ground)
    return Image.alpha_composite(page, image).convert("RGB")


def _converted(
    picture: Image.Image, channels: int, remarks: list[str]
) -> tuple[Image.Image, list[str]]:
    if channels == 3:
        if picture.mode == "F":
            picture = Image.fromarray(_bytes(np.asarray(picture)))
        return picture.convert("RGB"), remarks
    if picture.mode != "RGB":
        return picture, remarks
    pixels = np.asarray(picture)
    if (pixels != pixels[..., :1]).any():
        remarks = [*remarks, "colours as grey"]
    return picture.convert("L"), remarks


def _border(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _light(grey: np.ndarray) -> np.ndarray:
    """The ground's tone at every pixel, from the border: level, or a quadratic of x, y.

    A border on which one tone is exactly repeated is level, whatever ink crosses it.
    """
    border = _border(grey)
    percentiles = np.percentile(border, (5, 25, 50, 75, 95))
    if min(percentiles[1] - percentiles[0], percentiles[4] - percentiles[3]) < 2:
        return np.full_like(grey, percentiles[2])
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in grey.shape)
    y, x = np.broadcast_arrays(y[:, None], x)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])
    basis = np.stack([_border(term) for term in terms], axis=1)
    away = border - percentiles[2]
    for _ in range(4):  # without the ink that crosses the border
        near = np.abs(away) <= 4 * np.median(np.abs(away))
        factors = np.linalg.lstsq(basis[near], border[near])[0]
        away = border - basis @ factors
    return np.tensordot(factors, terms, 1)


def _specks(ink: np.ndarray) -> np.ndarray:
    """Where pieces lie that have less than a fiftieth of the largest one's ink."""
    pieces, count = ndimage.label(ink > _FAINT, np.ones((3, 3)))
    masses = ndimage.sum_labels(ink, pieces, np.arange(count + 1))
    small = masses < 0.02 * masses[1:].max()
    small[0] = False
    return ndimage.binary_dilation(small[pieces], np.ones((3, 3)))


def _box(ink: np.ndarray, faint: float = _FAINT) -> tuple[slice, slice]:
    return ndimage.find_objects((ink > faint).astype(int))[0]


def _in_place(ink: np.ndarray) -> bool:
    """Whether ink of 28×28 fills MNIST's box and is in the middle, or nearly so.

    With fainter pixels or without: MNIST has faint tails, JPEG faint surroundings.
    """
    away = np.abs(np.subtract(ndimage.center_of_mass(ink), _CENTRE))
    sizes = (max(ink[_box(ink, faint)].shape) for faint in (_FAINT / 10, _FAINT))
    return away.max() < 1.5 and any(abs(size - _BOX) <= 3 for size in sizes)


def _fitting(shape: Sequence[int], into: Sequence[int]) -> tuple[int, int]:
    factor = min(b / a for a, b in zip(shape, into, strict=True))
    height, width = (max(1, round(factor * a)) for a in shape)
    return height, width


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """To (height, width): the mean of the pixels, or between them."""
    smaller = size[0] <= picture.height
    by = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    return picture.resize(size[::-1], by)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
