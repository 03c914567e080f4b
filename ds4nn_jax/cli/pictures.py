"""Picture files as networks see them: what a viewer shows, fitted as MNIST was made."""

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
    shape: tuple[int, int, int],
    *,
    fit: str = "whole",
    ground: str | None = "mixed",
    invert: bool | None = None,
) -> tuple[np.ndarray, list[str]]:
    """The picture of a file as an image of the given shape.

    Args:
      path: any format that Pillow reads; the first frame of several.
      shape: [H, W, C] with C = 1 or 3; of "ink" [28, 28, 1].
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
    picture, remarks = _pictures.read(path, least=shape[:2])
    if picture.mode == "RGB" and shape[2] == 1:
        pixels = np.asarray(picture)
        if (pixels != pixels[..., :1]).any():
            remarks.append("colours as grey")
        picture = picture.convert("L")
    if fit == "ink":
        image, more = digit(np.asarray(picture, np.float32), invert)
        return image, remarks + more
    picture = Image.fromarray(_bytes(np.asarray(picture)))
    if invert is None:
        tone = data.border_tone(np.asarray(picture.convert("L")))
        here = "light" if tone >= 128 else "dark"
        invert = ground not in (None, "mixed", here)
        if invert:
            remarks.append(
                f"a {here} ground, and the network learned {ground} ones: inverted"
            )
        elif ground is None and here == "light":
            remarks.append(
                "a light ground; the network's is not noted: --invert if dark"
            )
    picture = ImageOps.invert(picture) if invert else picture
    image, more = scaled(picture.convert("L" if shape[2] == 1 else "RGB"), shape)
    return image, remarks + more


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
    if away.max() - floor < _LEAST_CONTRAST:
        remarks.append("no ink that is lighter than its ground")
        return np.zeros((_DIGIT, _DIGIT, 1), np.uint8), remarks
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
    box = Image.fromarray(grey[_box(ink)])
    small = _fitted(box, _BOX, _BOX)
    remarks.append(
        f"scaled from {grey.shape[1]}×{grey.shape[0]} to {_DIGIT}×{_DIGIT}: the ink's "
        f"{box.width}×{box.height} to {small.width}×{small.height}, centred by its mass"
    )
    return _centred(np.asarray(small)), remarks


def _centred(small: np.ndarray) -> np.ndarray:
    """Ink at MNIST's place."""
    small = small * max(1, 255 / small.max())  # thin strokes fade as they are scaled
    start = np.rint(_CENTRE - np.array(ndimage.center_of_mass(small)))
    y, x = np.clip(start, 0, _DIGIT - np.array(small.shape)).astype(int)
    pixels = np.zeros((_DIGIT, _DIGIT))
    pixels[y : y + len(small), x : x + small.shape[1]] = small
    return _bytes(pixels)[..., None]


def scaled(
    picture: Image.Image, shape: tuple[int, int, int]
) -> tuple[np.ndarray, list[str]]:
    """A picture scaled to fit, its aspect kept, in the middle of its ground's colour.

    Args:
      picture: of mode L or RGB, as C says.
      shape: [H, W, C] with C = 1 or 3.

    Returns:
      uint8 [H, W, C], and remarks.
    """
    remarks, size = [], (shape[1], shape[0])
    if picture.size != size:
        small = _fitted(picture, *shape[:2])
        remark = f"scaled from {picture.width}×{picture.height} to "
        remarks.append(f"{remark}{small.width}×{small.height}")
        if small.size != size:
            remarks[0] += f", in the middle of {shape[1]}×{shape[0]}"
        tones = np.rint(np.median(_border(np.asarray(picture)), axis=0))
        color = tuple(tones.astype(int).reshape(-1).tolist())
        picture = ImageOps.pad(small, size, color=color)
    return np.asarray(picture).reshape(shape), remarks


def _border(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _light(grey: np.ndarray) -> np.ndarray:
    """The ground's tone at every pixel, from the border: level, or a quadratic of x, y.

    A border on which one tone is exactly repeated is level, whatever ink crosses it.
    """
    border = _border(grey)
    low, first, median, third, high = np.percentile(border, (5, 25, 50, 75, 95))
    if min(first - low, high - third) < 2:
        return np.full_like(grey, median)
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in grey.shape)
    y, x = np.broadcast_arrays(y[:, None], x)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])
    basis = np.stack([_border(term) for term in terms], axis=1)
    away = border - median
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


def _fitted(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Scaled to fit, its aspect kept: means of pixels, or between them."""
    factor = min(height / picture.height, width / picture.width)
    size = max(1, round(factor * picture.width)), max(1, round(factor * picture.height))
    smaller = size[1] <= picture.height
    by = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    return picture.resize(size, by)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
