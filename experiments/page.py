"""A page of text, tables and figures, as one HTML file and as Markdown.

Whatever is put on it is text: neither HTML nor Markdown in it comes to life.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from matplotlib.figure import Figure

from ds4nn_jax import plots
from ds4nn_jax.checkpoints import write_atomically

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.93rem; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.7rem;
         text-align: left; vertical-align: top; }
th { vertical-align: bottom; }
td { white-space: nowrap; }
td:first-child { white-space: normal; min-width: 8rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td:first-child.number { min-width: 0; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
figcaption { font-style: italic; }
code, pre { background: var(--soft); padding: 0.1rem 0.3rem; border-radius: 3px; }
pre { overflow-x: auto; padding: 0.7rem; }
.missing { border-left: 4px solid #d55e00; padding-left: 0.7rem; }
.deep { margin-left: 1.5rem; }
"""


class Code(str):
    """Text to be shown as code."""


class Strong(str):
    """Text to be shown as important."""


Parts = str | Sequence[str]


class Heading(NamedTuple):
    level: int
    text: str


class Text(NamedTuple):
    parts: Parts
    missing: bool = False


class Table(NamedTuple):
    """Numbers stand in all columns but the first `names`."""

    header: Sequence[str]
    rows: Sequence[Sequence[Parts]]
    names: int = 1


class Listing(NamedTuple):
    """Lines to be unfolded under a title."""

    title: str
    lines: str


class Drawing(NamedTuple):
    """A figure under a name for its file."""

    name: str
    figure: Figure
    caption: str


Block = Heading | Text | Table | Listing | Drawing


def write_html(title: str, blocks: Iterable[Block], path: Path) -> None:
    """One file that needs no other: figures are inside, contents at the beginning."""
    root = ElementTree.Element("html", lang="en")
    head = ElementTree.SubElement(root, "head")
    ElementTree.SubElement(head, "meta", charset="utf-8")
    narrow = "width=device-width, initial-scale=1"
    ElementTree.SubElement(head, "meta", name="viewport", content=narrow)
    ElementTree.SubElement(head, "title").text = title
    ElementTree.SubElement(head, "style").text = _STYLE
    body = ElementTree.SubElement(root, "body")
    ElementTree.SubElement(body, "h1").text = title
    contents = ElementTree.Element("ul")
    for number, block in enumerate(blocks):
        if isinstance(block, Heading):
            if block.level == 2 and not len(contents):
                body.append(_labelled("nav", "Contents", contents))
            if block.level < 4:
                item = ElementTree.SubElement(contents, "li")
                item.set("class", "deep" if block.level > 2 else "")
                link = ElementTree.SubElement(item, "a", href=f"#s{number}")
                link.text = block.text
            tag = f"h{block.level}"
            ElementTree.SubElement(body, tag, id=f"s{number}").text = block.text
        else:
            body.append(_element(block))
    text = ElementTree.tostring(root, "unicode", method="html")
    _write(path, f"<!DOCTYPE html>\n{text}\n")


def write_markdown(title: str, blocks: Iterable[Block], path: Path) -> None:
    """The same as Markdown, with every figure beside it as .png and .svg."""
    parts = [f"# {_literal(title)}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {_literal(block.text)}")
        elif isinstance(block, Text):
            parts.append(_inline(block.parts))
        elif isinstance(block, Listing):
            lines = block.lines.rstrip().splitlines()
            parts.append(
                "\n".join([f"{_literal(block.title)}:", "", *_indented(lines)])
            )
        elif isinstance(block, Table):
            numbers = len(block.header) - block.names
            rule = ["---"] * block.names + ["---:"] * numbers
            rows = [[_inline(cell) for cell in row] for row in block.rows]
            lines = [[_literal(cell) for cell in block.header], rule, *rows]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        else:
            for kind in ("png", "svg"):
                plots.save(block.figure, path.with_name(f"{block.name}.{kind}"))
            caption = _literal(block.caption)
            parts.append(f"![{caption}]({block.name}.png)\n\n*{caption}*")
    _write(path, "\n\n".join(parts) + "\n")


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode(errors="backslashreplace"))


def _element(block: Block) -> ElementTree.Element:
    if isinstance(block, Text):
        element = ElementTree.Element(
            "p", {"class": "missing"} if block.missing else {}
        )
        _put(element, block.parts)
        return element
    if isinstance(block, Listing):
        lines = ElementTree.Element("pre")
        lines.text = block.lines
        return _labelled("details", block.title, lines, "summary")
    if isinstance(block, Drawing):
        written = io.BytesIO()
        block.figure.savefig(written, format="svg")
        data = base64.b64encode(written.getvalue()).decode()
        image = ElementTree.Element(
            "img", src=f"data:image/svg+xml;base64,{data}", alt=block.caption
        )
        element = ElementTree.Element("figure")
        element.append(image)
        ElementTree.SubElement(element, "figcaption").text = block.caption
        return element
    assert isinstance(block, Table)
    frame = ElementTree.Element("div", {"class": "table"})
    table = ElementTree.SubElement(frame, "table")
    for tag, row in (("th", block.header), *(("td", row) for row in block.rows)):
        line = ElementTree.SubElement(table, "tr")
        for column, cell in enumerate(row):
            number = {"class": "number"} if column >= block.names else {}
            _put(ElementTree.SubElement(line, tag, number), cell)
    return frame


def _labelled(
    tag: str, label: str, content: ElementTree.Element, label_tag: str = "strong"
) -> ElementTree.Element:
    element = ElementTree.Element(tag)
    ElementTree.SubElement(element, label_tag).text = label
    element.append(content)
    return element


def _put(element: ElementTree.Element, parts: Parts) -> None:
    for part in (parts,) if isinstance(parts, str) else parts:
        if tag := {Code: "code", Strong: "strong"}.get(type(part)):
            ElementTree.SubElement(element, tag).text = part
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + part
        else:
            element.text = (element.text or "") + part


def _inline(parts: Parts) -> str:
    if not isinstance(parts, str):
        return "".join(map(_inline, parts))
    if isinstance(parts, Code) and not set("`|<&\n") & set(parts):
        return f"`{parts}`"
    return f"**{_literal(parts)}**" if isinstance(parts, Strong) else _literal(parts)


def _literal(text: str) -> str:
    """Markdown that shows the text and does nothing."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|])", r"\\\1", re.sub(r"\s+", " ", text))
    return html.escape(escaped, quote=False)


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]
