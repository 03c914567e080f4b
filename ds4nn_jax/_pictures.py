"""Picture files as a viewer shows them: of every format, turned, and opaque."""

import contextlib
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MEGAPIXELS = 64  # of a picture, at most
_WORKING_SIZE = 500  # pixels; larger pictures may be reduced before they are looked at
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # tags of EXIF and TIFF


class PictureError(ValueError):
    """A file that shows no picture; the message says why."""


def read(
    path: Path, *, least: tuple[int, int] | None = None
) -> tuple[Image.Image, list[str]]:
    """What a viewer shows of a file, see `shown`.

    Args:
      path: of anything that Pillow reads; the first frame of several.
      least: [H, W] of what the picture is for: pictures much larger are reduced, at
        most to this. None: left as they are.

    Raises:
      PictureError: no file, no picture, a damaged one, more than 64 megapixels, or
        values that are not finite.
    """
    try:
        with _quiet(), _opened(path) as image:
            return shown(image, least=least)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError("not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"larger than {MEGAPIXELS} megapixels") from error
    except MemoryError as error:
        raise PictureError("needs more memory than there is") from error
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PictureError(f"cannot be read: {why}") from error


def shown(
    image: Image.Image, *, least: tuple[int, int] | None = None
) -> tuple[Image.Image, list[str]]:
    """What a viewer shows of an opened image.

    Turned as EXIF says, and opaque: a transparent ground is white behind dark ink and
    black behind light ink.

    Returns:
      An image of mode L, RGB or, for greys of more than 8 bits, F in [0, 255]; and
      remarks.

    Raises:
      PictureError: values that are NaN or infinite.
      Exception: whatever Pillow raises for damaged bytes.
    """
    remarks = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        remarks.append(f"the first of {frames} frames")
        image.seek(0)
    transparency, orientation = _transparency(image), 1
    with contextlib.suppress(Exception):  # damaged EXIF turns nothing
        orientation = image.getexif().get(_ORIENTATION, 1)
    with _unheard() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()
    if orientation in range(2, 9):
        remarks.append(f"turned as EXIF orientation {orientation} says")
        if image.getexif().get(_ORIENTATION):  # TIFF has been turned by loading it
            image.info.pop("exif", None)  # not to be written anew, wrong as it may be
            image = ImageOps.exif_transpose(image)
    if image.mode[0] == "I" or image.mode == "F":
        picture, alpha = _deep(image, transparency, remarks)
    else:
        picture, alpha = _shallow(image, transparency)
    factor = 1
    if least is not None:
        sides = picture.height // least[0], picture.width // least[1]
        factor = min(max(picture.size) // _WORKING_SIZE, *sides)
    if factor > 1:
        picture, alpha = picture.reduce(factor), alpha and alpha.reduce(factor)
    if alpha is not None and alpha.getextrema() != (255, 255):
        picture = _laid_on_ground(picture, alpha, remarks)
    return picture, remarks


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


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """While libtiff works, which writes past Python to the standard error stream."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _opened(path: Path) -> Image.Image:
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise PictureError("a folder, not a picture")
    if not stat.S_ISREG(kind):
        raise PictureError("not a file")
    if not path.stat().st_size:
        raise PictureError("the file is empty")
    return Image.open(path)


def _transparency(image: Image.Image) -> int | None:
    """The transparent tone of a grey PNG, as a value of the loaded image.

    Pillow scales greys of 2 and 4 bits to 8, but leaves the transparent one as it is.
    """
    tone = image.info.get("transparency")
    if not isinstance(tone, int) or image.mode not in ("L", "I;16"):
        return None
    tiles = getattr(image, "tile", None)
    raw = tiles[0][3] if tiles else None
    return tone * {"L;2": 85, "L;4": 17}.get(raw if isinstance(raw, str) else "", 1)


def _shallow(
    image: Image.Image, transparency: int | None
) -> tuple[Image.Image, Image.Image | None]:
    """Colours as L or RGB and, where there is one, the alpha channel."""
    if transparency is not None:
        image.info["transparency"] = transparency
    kind = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode == "La":
        image = image.convert("LA")
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    if "transparency" in image.info or (image.mode + palette)[-1] in "Aa":
        image = image.convert("RGBA")
        return image.convert(kind), image.getchannel("A")
    return image.convert(kind), None


def _deep(
    image: Image.Image, transparency: int | None, remarks: list[str]
) -> tuple[Image.Image, Image.Image | None]:
    """Greys of 16 or 32 bits as F in [0, 255] and, where there is one, the alpha."""
    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise PictureError("holds values that are NaN or infinite")
    alpha = None
    if transparency is not None:
        alpha = Image.fromarray(np.uint8(255) * (values != transparency))
    low, high = float(values.min()), float(values.max())
    tags = getattr(image, "tag_v2", {})
    tops = [1, 255]
    if image.mode != "F":
        tops = [255, 4095] if tags.get(_BITS) in (12, (12,)) else [255, 65535]
    if low < 0 or high > tops[-1]:
        remarks.append(f"values {low:g} … {high:g} stretched to 0 … 255")
    else:
        low, high = 0.0, float(min(top for top in tops if high <= top))
        if high != 255:
            remarks.append(f"values 0 … {high:g} scaled to 0 … 255")
    values = (values - low) * (255 / max(high - low, 1e-30))
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds in 8 bits only
        values = 255 - values
    return Image.fromarray(values), alpha


def _laid_on_ground(
    picture: Image.Image, alpha: Image.Image, remarks: list[str]
) -> Image.Image:
    """What is visible in front of white or black, whichever sets it off.

    Ink is of one tone and gets the opposite ground. A sheet, which fills its bounding
    box and has dark and light of its own, is continued in its commoner tone.
    """
    tone = np.asarray(picture.convert("L"), np.float32)
    weight = np.asarray(alpha, np.float32) / 255
    if not weight.any():
        remarks.append("wholly transparent")
        return Image.new(picture.mode, picture.size, 0)
    total = weight.sum()
    light = (tone * weight).sum() / total >= 128
    left, top, right, bottom = alpha.getbbox() or (0, 0, 0, 0)
    sheet = total > 0.75 * (right - left) * (bottom - top) and all(
        weight[side].sum() > 0.01 * total for side in (tone < 85, tone > 170)
    )
    name = "white" if light == sheet else "black"
    remarks.append(f"transparent: laid on {name}")
    ground = Image.new("L", picture.size, name).convert(picture.mode)
    return Image.composite(picture, ground, alpha)
