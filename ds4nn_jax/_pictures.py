"""Picture files as a viewer shows them: of every format, turned, and opaque."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MEGAPIXELS = 64  # of a picture, at most
_WORKING_SIZE = 500  # pixels; larger pictures may be reduced before they are looked at


class PictureError(ValueError):
    """A file that shows no picture; the message says why."""


def read(
    path: Path, *, least: tuple[int, int] | None = None
) -> tuple[Image.Image, list[str]]:
    """What a viewer shows of a file, see `shown`.

    Args:
      path: any format that Pillow reads; the first frame of several.
      least: [H, W] of what the picture is for: much larger ones are reduced, at most to
        this. None: they stay as they are.

    Raises:
      PictureError: no file, no picture, a damaged one, more than 64 megapixels, or
        values that are not finite.
    """
    if path.is_dir():
        raise PictureError("a folder, not a picture")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise PictureError("not a file")
    try:
        with _quiet(), Image.open(path) as image:
            return shown(image, least=least)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError("not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"larger than {MEGAPIXELS} megapixels") from error
    except Exception as error:  # decoders raise many types for damaged bytes
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PictureError(f"cannot be read: {why}") from error


def shown(
    image: Image.Image, *, least: tuple[int, int] | None = None
) -> tuple[Image.Image, list[str]]:
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
    if image.mode == "La":  # which Pillow converts to this alone
        image = image.convert("LA")
    if image.has_transparency_data:
        picture = _opaque(image, remarks)
    else:
        mode = {"1": "L", "L": "L", "F": "F"}.get(image.mode, "RGB")
        picture = image.convert(mode)
    if least is not None:
        sides = picture.height // least[0], picture.width // least[1]
        factor = min(max(picture.size) // _WORKING_SIZE, *sides)
        picture = picture.reduce(factor) if factor > 1 else picture
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
    mode = "L" if image.mode in ("L", "LA") else "RGB"
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"))
    if alpha.min() == 255:
        return image.convert(mode)
    tones = np.asarray(image.convert("L"))[alpha > 127]
    light = not tones.size or np.median(tones) >= 128  # of nothing: black
    left, top, right, bottom = image.getchannel("A").getbbox() or (0, 0, 0, 0)
    filled = tones.size > 0.75 * (right - left) * (bottom - top)
    sheet = filled and np.ptp(np.percentile(tones, (5, 95))) > 127
    ground = "white" if light == sheet else "black"
    remarks.append(f"transparent: laid on {ground}")
    page = Image.new("RGBA", image.size, ground)
    return Image.alpha_composite(page, image).convert(mode)
