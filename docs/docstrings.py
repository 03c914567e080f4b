"""Docstrings as mkdocstrings reads them: what plain text says by its lines.

An equation keeps its lines and its signs, an example is code, and "Raises: As `dense`."
keeps its words, which is no list of exceptions.
"""

import re

import griffe

_EQUATION = re.compile(r"^\S.*( = | ← )(?!.*[.:;,]$)")
_ELSEWHERE = re.compile(r"^Raises:\n  As ((?:.+\n?)(?:  .+\n?)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Prepares every docstring before it is parsed."""

    def on_class(self, *, cls: griffe.Class, **kwargs) -> None:
        """Bases that are nobody's to use are not shown."""
        names = [str(base).rpartition(".")[2] for base in cls.bases]
        cls.bases = [
            base
            for base, name in zip(cls.bases, names, strict=True)
            if name != "Value" and not name.startswith("_")
        ]

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = prepared(obj.docstring.value)


def prepared(text: str) -> str:
    """The docstring with fenced equations, and errors told elsewhere as a sentence."""
    text = _ELSEWHERE.sub(r"Errors as \1", text)
    text = text.replace("t*", "t∗")  # no emphasis
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    paragraphs = text.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        if all(map(_EQUATION.match, paragraph.split("\n"))):
            paragraphs[i] = f"```text\n{paragraph}\n```"
    return "\n\n".join(paragraphs)
