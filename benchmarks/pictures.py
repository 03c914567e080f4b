"""Whether `ds4nn predict` reads a digit in whatever kind of picture it comes.

    python -m benchmarks.pictures --data_dir=DIR [--digits=100] [--write]

The first MNIST test digits, saved as each kind of file, go through the command. Beside
each kind: what the same digits give as plain 28×28 PNGs. Prints
Markdown; `--write` also writes it to `benchmarks/results`.
"""

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageCms

from benchmarks.engines import machine
from ds4nn_jax import data
from ds4nn_jax.cli import predict

RESULTS = Path(__file__).parent / "results"


class Saved(NamedTuple):
    """A picture and how it is saved."""

    image: Image.Image
    suffix: str = "png"
    options: dict[str, Any] = {}


def scaled(ink: np.ndarray, size: int) -> np.ndarray:
    by = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(ink).resize((size, size), by))


def padded(ink: np.ndarray, *margins: tuple[int, int]) -> Saved:
    return Saved(Image.fromarray(np.pad(255 - ink, margins, constant_values=255)))


def drawn(ink: np.ndarray, colour: tuple, ground: tuple) -> Image.Image:
    """Ink of one colour on another."""
    share = ink[..., None] / 255
    pixels = share * np.array(colour) + (1 - share) * np.array(ground)
    return Image.fromarray(np.uint8(np.rint(pixels)))


def transparent(ink: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", ink.shape[::-1], colour)
    image.putalpha(Image.fromarray(ink))
    return image


def tight(ink: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def elsewhere(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    ink = tight(ink)
    before = [rng.integers(0, 29 - n) for n in ink.shape]
    return Image.fromarray(
        np.pad(ink, [(a, 28 - n - a) for a, n in zip(before, ink.shape, strict=True)])
    )


def paper(ink: np.ndarray, light: np.ndarray, rng: np.random.Generator) -> Saved:
    """A photograph of dark ink on paper in the given light, with noise."""
    pixels = light * (1 - 0.75 * ink / 255) + rng.normal(0, 4, ink.shape)
    return jpeg(Image.fromarray(np.uint8(np.clip(pixels, 0, 255))), 80)


def jpeg(image: Image.Image, quality: int = 90, **options: Any) -> Saved:
    return Saved(image, "jpg", {"quality": quality, **options})


def tiff(image: Image.Image, **options: Any) -> Saved:
    return Saved(image, "tif", options)


def lab(image: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")


def palette(ink: np.ndarray) -> Image.Image:
    """Sixteen tones, the palette's order reversed, ground transparent."""
    image = Image.fromarray(15 - ink // 16, "P")
    image.putpalette([tone for k in range(15, -1, -1) for tone in (17 * k,) * 3])
    return image


def turned(ink: np.ndarray, orientation: int) -> Saved:
    """Stored so that EXIF has to say how it is to be shown."""
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }[orientation](scaled(ink, 280))
    exif = Image.Exif()
    exif[274] = orientation
    return jpeg(Image.fromarray(np.ascontiguousarray(255 - stored)), exif=exif)


def sheet(ink: np.ndarray) -> Image.Image:
    """Black on white paper with a transparent margin around it."""
    image = Image.fromarray(255 - scaled(ink, 200)).convert("RGBA")
    whole = Image.new("RGBA", (300, 300))
    whole.paste(image, (50, 50))
    return whole


def specks(ink: np.ndarray, rng: np.random.Generator) -> Saved:
    dust = rng.random((280, 280)) < 0.0005
    return Saved(Image.fromarray(np.where(dust, 0, 255 - scaled(ink, 280))))


BLACK, WHITE, RED, BLUE = (0, 0, 0), (255, 255, 255), (200, 20, 30), (20, 40, 160)
VERTICAL = np.linspace(130, 235, 280)[:, None] * np.ones((1, 280))
CORNERS = 235 - 55 * np.add.outer(*2 * [np.linspace(-1, 1, 280) ** 2])

Kind = Callable[[np.ndarray, np.random.Generator], Saved]
KINDS: dict[str, Kind] = {
    "28×28 PNG": lambda g, _: Saved(Image.fromarray(g)),
    # Modes and depths
    "1 bit": lambda g, _: Saved(Image.fromarray(g > 127)),
    "grey of 2 bits": lambda g, _: Saved(
        Image.fromarray(g // 64 * 85), "png", {"bits": 2}
    ),
    "grey of 4 bits": lambda g, _: Saved(
        Image.fromarray(g // 16 * 17), "png", {"bits": 4}
    ),
    "grey of 16 bits, PNG": lambda g, _: Saved(
        Image.fromarray(g.astype(np.uint16) * 257)
    ),
    "grey of 16 bits, TIFF": lambda g, _: tiff(
        Image.fromarray(g.astype(np.uint16) * 257)
    ),
    "8 bits' values in 16": lambda g, _: Saved(Image.fromarray(g.astype(np.uint16))),
    "grey of 32 bits": lambda g, _: tiff(
        Image.fromarray(g.astype(np.int32) * 8_000_000)
    ),
    "float in [0, 1]": lambda g, _: tiff(Image.fromarray(g / np.float32(255))),
    "float in [0, 255]": lambda g, _: tiff(Image.fromarray(g.astype(np.float32))),
    "float in [−1, 1]": lambda g, _: tiff(Image.fromarray(g / np.float32(127.5) - 1)),
    "RGB": lambda g, _: Saved(Image.fromarray(g).convert("RGB")),
    "RGBA, opaque": lambda g, _: Saved(Image.fromarray(g).convert("RGBA")),
    "LA, opaque": lambda g, _: Saved(Image.fromarray(g).convert("LA")),
    "palette": lambda g, _: Saved(palette(g)),
    "palette of colours": lambda g, _: Saved(drawn(g, RED, WHITE).quantize(16)),
    "CMYK JPEG": lambda g, _: jpeg(drawn(scaled(g, 280), BLUE, WHITE).convert("CMYK")),
    "CMYK TIFF": lambda g, _: tiff(drawn(g, BLACK, WHITE).convert("CMYK")),
    "YCbCr TIFF": lambda g, _: tiff(drawn(g, BLACK, WHITE).convert("YCbCr")),
    "LAB TIFF": lambda g, _: tiff(lab(drawn(g, BLUE, WHITE))),
    # Formats
    "JPEG, 28×28": lambda g, _: jpeg(Image.fromarray(g)),
    "JPEG of quality 30": lambda g, _: jpeg(Image.fromarray(255 - scaled(g, 280)), 30),
    "JPEG 2000": lambda g, _: Saved(Image.fromarray(scaled(g, 112)), "jp2"),
    "GIF": lambda g, _: Saved(Image.fromarray(g), "gif"),
    "GIF, animated": lambda g, _: Saved(
        Image.fromarray(g),
        "gif",
        {"save_all": True, "append_images": [Image.fromarray(np.flipud(g))]},
    ),
    "TIFF, LZW, two pages": lambda g, _: tiff(
        Image.fromarray(255 - g),
        compression="tiff_lzw",
        save_all=True,
        append_images=[Image.fromarray(np.flipud(g))],
    ),
    "WebP": lambda g, _: Saved(Image.fromarray(scaled(g, 112)), "webp"),
    "WebP, lossless": lambda g, _: Saved(
        Image.fromarray(g), "webp", {"lossless": True}
    ),
    "AVIF": lambda g, _: Saved(Image.fromarray(scaled(g, 112)), "avif"),
    "BMP": lambda g, _: Saved(Image.fromarray(255 - g), "bmp"),
    "PGM": lambda g, _: Saved(Image.fromarray(g), "pgm"),
    "TGA with alpha": lambda g, _: Saved(transparent(g, BLACK), "tga"),
    # Transparency
    "black ink on nothing": lambda g, _: Saved(transparent(g, BLACK)),
    "white ink on nothing": lambda g, _: Saved(transparent(g, WHITE)),
    "red ink on nothing": lambda g, _: Saved(transparent(scaled(g, 280), RED)),
    "grey with alpha": lambda g, _: Saved(transparent(g, BLACK).convert("LA")),
    "RGB, white is transparent": lambda g, _: Saved(
        drawn(g, BLACK, WHITE), "png", {"transparency": WHITE}
    ),
    "palette, ground transparent": lambda g, _: Saved(
        palette(g), "png", {"transparency": 15}
    ),
    "sheet with transparent margin": lambda g, _: Saved(sheet(g)),
    # Ink and ground
    "black on white, 28×28": lambda g, _: Saved(Image.fromarray(255 - g)),
    "black on white, 280×280": lambda g, _: Saved(
        Image.fromarray(255 - scaled(g, 280))
    ),
    "blue on yellow": lambda g, _: Saved(drawn(scaled(g, 280), BLUE, (250, 240, 120))),
    "chalk on green": lambda g, _: Saved(drawn(scaled(g, 280), WHITE, (30, 80, 60))),
    "yellow on white": lambda g, _: Saved(drawn(scaled(g, 280), (230, 220, 40), WHITE)),
    "low contrast, light ink": lambda g, _: Saved(Image.fromarray(100 + g // 8)),
    "low contrast, dark ink": lambda g, _: Saved(
        Image.fromarray(200 - scaled(g, 280) // 4)
    ),
    "light from above, noise": lambda g, r: paper(scaled(g, 280), VERTICAL, r),
    "dark corners, noise": lambda g, r: paper(scaled(g, 280), CORNERS, r),
    "specks": specks,
    # Sizes and places
    "20×20 without a margin": lambda g, _: Saved(Image.fromarray(tight(g))),
    "56×56": lambda g, _: Saved(Image.fromarray(scaled(g, 56))),
    "280×280, by pixels": lambda g, _: Saved(Image.fromarray(g).resize((280, 280), 0)),
    "1000×1000": lambda g, _: Saved(Image.fromarray(255 - scaled(g, 1000))),
    "2500×2500 JPEG": lambda g, _: jpeg(Image.fromarray(255 - scaled(g, 2500))),
    "wide, 680×280": lambda g, _: padded(scaled(g, 280), (0, 0), (50, 350)),
    "tall, 280×680": lambda g, _: padded(scaled(g, 280), (350, 50), (0, 0)),
    "wide margins": lambda g, _: padded(scaled(g, 120), (200, 80), (40, 240)),
    "off centre, 28×28": lambda g, r: Saved(elsewhere(g, r)),
    "ink of 14×14 in 28×28": lambda g, _: Saved(
        Image.fromarray(np.pad(scaled(g, 20), ((8, 0), (0, 8))))
    ),
    **{
        f"JPEG, EXIF orientation {k}": lambda g, _, k=k: turned(g, k)
        for k in range(1, 9)
    },
}


def answers(files: list[Path]) -> list[str]:
    """What the command says of each file."""
    parser = argparse.ArgumentParser()
    predict.add_parser(parser.add_subparsers())
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        predict.main(parser.parse_args(["predict", "--json", *map(str, files)]))
    return [json.loads(line)["label"] for line in out.getvalue().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="MNIST's IDX files")
    parser.add_argument("--digits", type=int, default=100, help="of each kind")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results")
    asked = parser.parse_args()
    mnist = data.load("mnist", asked.data_dir)
    digits = mnist.test_images[: asked.digits, ..., 0]
    labels = mnist.test_labels[: asked.digits].astype(str)
    lines, shares = [], []
    for name, make in KINDS.items():
        rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for number, ink in enumerate(digits):
                image, suffix, options = make(ink, rng)
                files.append(Path(folder, f"{number}.{suffix}"))
                image.save(files[-1], **options)
            shares.append(np.mean(labels == answers(files)))
        lines.append(f"| {name} | {shares[-1]:.1%} | {shares[0]:.1%} |")
        print(lines[-1], flush=True)
    table = [
        "# Digits in every kind of picture",
        "",
        f"`python -m benchmarks.pictures --digits={asked.digits}` on {machine()}; "
        f"Pillow {PIL.__version__}. {len(KINDS)} kinds of {asked.digits} MNIST test "
        f"digits: `ds4nn predict` reads {np.mean(shares):.2%} of them all as the digit "
        "that they show.",
        "",
        "| kind | right | as plain 28×28 PNG |",
        "|---|---:|---:|",
        *lines,
    ]
    print(f"{len(KINDS)} kinds: {np.mean(shares):.2%}")
    if asked.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "pictures.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
