"""Picture files as a viewer shows them, and as networks see them."""

import contextlib
import logging
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageStat
from scipy import ndimage, optimize

_WORKING_SIZE = 500  # pixels; pictures of twice the size are reduced to it first
_LEAST_CONTRAST = 3.0  # of 255; less is one tone to a person too
_FAINT = 0.2  # of the ink's tone; fainter pixels do not count for its box
_BOX, _DIGIT, _CENTRE = 20, 28, 14  # pixels: MNIST's box, image and centre of mass

# Pillow logs what it finds wrong in a file; the reader's error says it.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class PictureError(ValueError):
    """A file that shows no picture; the message says why."""


def read(path: Path) -> tuple[Image.Image, list[str]]:
    """What a viewer shows of a file that Pillow reads, and a remark for each change.

    It is turned as EXIF says, and opaque: of mode L, RGB or, for greys of more than 8
    bits, F in [0, 255].

    Raises:
      PictureError: no file, no picture, a damaged one, one too large for Pillow, or
        values that are not finite.
    """
    if not path.is_file():  # a pipe would be waited for
        raise PictureError("no such file")
    try:
        with warnings.catch_warnings(action="ignore"):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return shown(image)
    except Exception as error:  # decoders raise many types for damaged bytes
        message = str(error) or type(error).__name__
        raise PictureError(f"cannot be read: {message}") from error


def shown(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """What `read` makes of an image that Pillow has opened."""
    remarks: list[str] = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        remarks.append(f"the first of {frames} frames")
    orientation = None
    with contextlib.suppress(Exception):  # damaged EXIF turns nothing
        orientation = image.getexif().get(274)
    image.load()
    if orientation in range(2, 9):
        remarks.append(f"turned as EXIF orientation {orientation} says")
        image.info.pop("exif", None)  # damaged EXIF cannot be written anew
        image = ImageOps.exif_transpose(image)
    if image.mode[0] == "I" or image.mode == "F":
        image = _in_bytes(image, remarks)
    if image.has_transparency_data:
        image = _opaque(image, remarks)
    if image.mode not in ("L", "F"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return image, remarks


def _in_bytes(image: Image.Image, remarks: list[str]) -> Image.Image:
    """Greys of 16 or 32 bits, as F in [0, 255]."""
    values = np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise PictureError("values that are NaN or infinite")
    low, high = float(values.min()), float(values.max())
    tops = (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0)
    if low >= 0 and high <= tops[1]:
        low, high = 0.0, min(top for top in tops if high <= top)
    if (low, high) != (0, 255):
        remarks.append(f"values {low:g} … {high:g} scaled to 0 … 255")
    return Image.fromarray((values - low) * (255 / ((high - low) or 1)))


def _opaque(image: Image.Image, remarks: list[str]) -> Image.Image:
    """Ink on the opposite ground; a sheet that fills its box on its commoner tone."""
    mode = "L" if image.mode in ("L", "LA") else "RGB"
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if np.asarray(alpha).min() < 255:
        opaque = alpha.point(lambda value: 255 * (value > 127))
        tones = ImageStat.Stat(image.convert("L"), opaque)
        left, top, right, bottom = opaque.getbbox() or (0, 0, 0, 0)
        filled = tones.count[0] > 0.75 * (right - left) * (bottom - top)
        sheet = filled and tones.stddev[0] > 50
        light = tones.median[0] >= 128
        ground = "white" if light == sheet else "black"
        remarks.append(f"transparent: laid on {ground}")
        page = Image.new("RGBA", image.size, ground)
        image = Image.alpha_composite(page, image)
    return image.convert(mode)


def fitted(
    path: Path,
    shape: tuple[int, int, int],
    *,
    fit: str = "whole",
    ground: str | None = "mixed",
    invert: bool | None = None,
) -> tuple[np.ndarray, list[str]]:
    """The picture of a file, see `read`, as a uint8 image of the given shape; remarks.

    Args:
      path: any format that Pillow reads; the first frame of several.
      shape: [H, W, C] with C = 1 or 3; of "ink" [28, 28, 1].
      fit: "whole": scaled to fit, its aspect kept, in the middle of its ground's
        colour; "ink": as MNIST was made, see `digit`.
      ground: of the images that the network learned from, "dark", "light" or "mixed";
        None: unknown.
      invert: whether dark and light change places. None: if the ground differs from
        that of the training images, or if `digit` finds dark ink.
    """
    picture, remarks = read(path)
    factor = min(picture.size) // max(_WORKING_SIZE, *shape)
    picture = picture.reduce(max(1, factor))
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
        tone = np.median(border(np.asarray(picture.convert("L"))))
        here = "light" if tone >= 128 else "dark"
        invert = ground in ("dark", "light") and ground != here
        if invert:
            remarks.append(f"a {here} ground, the network's is {ground}: inverted")
        elif ground is None and here == "light":
            remarks.append(
                "a light ground, the network's is not noted: if it is dark, --invert"
            )
    picture = ImageOps.invert(picture) if invert else picture
    picture = picture.convert("L" if shape[2] == 1 else "RGB")
    size = shape[1], shape[0]
    if picture.size != size:
        remarks.append(f"scaled from {_by(picture)} to fit {shape[1]}×{shape[0]}")
        tones = np.rint(np.median(border(np.asarray(picture)), axis=0))
        color = tuple(np.atleast_1d(tones).astype(int).tolist())
        picture = ImageOps.pad(_resized(picture, *shape[:2]), size, color=color)
    return np.asarray(picture).reshape(shape), remarks


def digit(grey: np.ndarray, invert: bool | None = None) -> tuple[np.ndarray, list[str]]:
    """A digit [H, W] in [0, 255] as MNIST has them, uint8 [28, 28, 1]; and remarks.

    The box around the ink is scaled to 20×20 pixels, its aspect kept, and laid into
    28×28 with its centre of mass in the middle; the ground becomes 0, the ink 255. An
    image of 28×28 that is already so stays as it is. `invert`: whether the ink is dark;
    None looks.
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
    low, lower = np.percentile(border(away), (25, 5))
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
    small = _resized(box, _BOX, _BOX)
    remarks.append(
        f"scaled from {grey.shape[1]}×{grey.shape[0]} to {_DIGIT}×{_DIGIT}: the ink's "
        f"{_by(box)} to {_by(small)}, centred by its mass"
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


def border(image: np.ndarray) -> np.ndarray:
    """The outermost pixels [n, …] of an image [H, W, …]."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def _light(grey: np.ndarray) -> np.ndarray:
    """The ground's tone at every pixel, from the border: level, or a quadratic of x, y.

    A border on which one tone is exactly repeated is level, whatever ink crosses it.
    """
    tones = border(grey)
    low, first, median, third, high = np.percentile(tones, (5, 25, 50, 75, 95))
    if min(first - low, high - third) < 2:
        return np.full_like(grey, median)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grey.shape), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    basis, start = border(terms), [median, 0, 0, 0, 0, 0]
    fit = optimize.least_squares(  # robust to ink that crosses the border
        lambda factors: basis @ factors - tones, start, loss="soft_l1", f_scale=5
    )
    return terms @ fit.x


def _specks(ink: np.ndarray) -> np.ndarray:
    """Where pieces lie that have less than a fiftieth of the largest one's ink."""
    pieces, count = ndimage.label(ink > _FAINT, np.ones((3, 3)))
    masses = ndimage.sum_labels(ink, pieces, np.arange(count + 1))
    small = masses < 0.02 * masses[1:].max()
    small[0] = False
    return ndimage.binary_dilation(small[pieces], np.ones((3, 3)))


def _box(ink: np.ndarray) -> tuple[slice, slice]:
    return ndimage.find_objects((ink > _FAINT).astype(int))[0]


def _in_place(ink: np.ndarray) -> bool:
    """Whether ink of 28×28 fills MNIST's box and is in the middle, or nearly so."""
    away = np.abs(np.subtract(ndimage.center_of_mass(ink), _CENTRE))
    return away.max() < 1.5 and abs(max(ink[_box(ink)].shape) - _BOX) <= 3


def _resized(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Scaled to fit, its aspect kept: means of pixels, or between them."""
    factor = min(height / picture.height, width / picture.width)
    size = max(1, round(factor * picture.width)), max(1, round(factor * picture.height))
    by = Image.Resampling.BOX if factor <= 1 else Image.Resampling.BICUBIC
    return picture.resize(size, by)


def _by(picture: Image.Image) -> str:
    return f"{picture.width}×{picture.height}"


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
