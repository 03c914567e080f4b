"""Picture files as networks see them: what a viewer shows, fitted as MNIST was made."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from ds4nn_jax import _pictures, data

_LEAST_CONTRAST = 3.0  # of 255; less is one tone to a person too
_FAINT = 0.2  # of the ink's tone; fainter pixels do not count for its box
_BOX, _DIGIT, _CENTRE = 20, 28, 14  # pixels: MNIST's box, image and centre of mass


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
    least = (_DIGIT, _DIGIT) if fit == "ink" else (shape[0], shape[1])
    picture, remarks = _pictures.read(path, least=least)
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
      picture: of mode L, RGB or F, as `_pictures.shown` gives it.
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
