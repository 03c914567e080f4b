"""Picture files as a viewer shows them: of every format, turned, and opaque."""

import contextlib
import logging
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MEGAPIXELS = 64  # of a picture, at most
_WORKING_SIZE = 500  # pixels; larger pictures may be reduced before they are looked at

# Pillow logs what it finds wrong in a file; the reader's error says it.
logging.getLogger("PIL").addHandler(logging.NullHandler())


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
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise PictureError("a folder, not a picture" if path.is_dir() else "not a file")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if image.width * image.height > MEGAPIXELS * 10**6:
                raise Image.DecompressionBombError
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
    """
    remarks: list[str] = []
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
        image = _opaque(image, remarks)
    if image.mode not in ("L", "F"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    if least is not None:
        sides = image.height // least[0], image.width // least[1]
        factor = min(max(image.size) // _WORKING_SIZE, *sides)
        image = image.reduce(factor) if factor > 1 else image
    return image, remarks


def _in_bytes(image: Image.Image, remarks: list[str]) -> Image.Image:
    """Greys of 16 or 32 bits, as F in [0, 255]."""
    values = np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise PictureError("holds values that are NaN or infinite")
    low, high = float(values.min()), float(values.max())
    tops = (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0)
    if low >= 0 and high <= tops[1]:
        low, high = 0.0, min(top for top in tops if high <= top)
    if (low, high) != (0, 255):
        remarks.append(f"values {low:g} … {high:g} scaled to 0 … 255")
    return Image.fromarray((values - low) * (255 / max(high - low, 1e-30)))


def _opaque(image: Image.Image, remarks: list[str]) -> Image.Image:
    """Ink on the opposite ground; a sheet that fills its box on its commoner tone."""
    mode = "L" if image.mode in ("L", "LA") else "RGB"
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if np.asarray(alpha).min() < 255:
        tones = np.asarray(image.convert("L"))[np.asarray(alpha) > 127]
        light = not tones.size or np.median(tones) >= 128  # of nothing: black
        left, top, right, bottom = alpha.getbbox() or (0, 0, 0, 0)
        filled = tones.size > 0.75 * (right - left) * (bottom - top)
        sheet = filled and np.ptp(np.percentile(tones, (5, 95))) > 127
        ground = "white" if light == sheet else "black"
        remarks.append(f"transparent: laid on {ground}")
        page = Image.new("RGBA", image.size, ground)
        image = Image.alpha_composite(page, image)
    return image.convert(mode)
