"""A page of text, tables and figures, as one HTML file that needs no other.

Whatever is put on it is text, which jinja2 escapes, but for `code` and `strong`.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from ds4nn_jax._files import write_atomically


def code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)


def strong(text: str) -> Markup:
    return Markup("<strong>{}</strong>").format(text)


class Heading(NamedTuple):
    level: int
    text: str


class Text(NamedTuple):
    text: str
    missing: bool = False


class Table(NamedTuple):
    """Numbers stand in all columns but the first `names`."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


class Listing(NamedTuple):
    """Lines to be unfolded under a title."""

    title: str
    lines: str


class Drawing(NamedTuple):
    figure: Figure
    caption: str


Block = Heading | Text | Table | Listing | Drawing


def write_html(title: str, blocks: Iterable[Block], path: Path) -> None:
    """Figures are inside, contents in front of the first heading of level 2."""
    blocks = list(blocks)
    contents = [
        (number, block)
        for number, block in enumerate(blocks)
        if isinstance(block, Heading) and block.level < 4
    ]
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"kind": lambda block: type(block).__name__, "svg": _svg}
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text())
    text = template.render(title=title, blocks=blocks, contents=contents)
    write_atomically(path, text.encode(errors="backslashreplace"))


def _svg(figure: Figure) -> str:
    written = io.BytesIO()
    figure.savefig(written, format="svg")
    return base64.b64encode(written.getvalue()).decode()
