"""Docstrings prepared for mkdocstrings.

An equation keeps its lines and signs, and an example becomes code. "Raises: As
`dense`." becomes a sentence, because it is no list of exceptions.
"""

import re

import griffe

_EQUATION = re.compile(r"^\S.*( = | ← )(?!.*[.:;,]$)")
_ELSEWHERE = re.compile(r"^Raises:\n  As ((?:.+\n?)(?:  .+\n?)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Prepares every docstring before it is parsed."""

    def on_class(self, *, cls: griffe.Class, **kwargs) -> None:
        """Hides base classes that are not public."""
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
    """The docstring with fenced equations and with "Raises: As …" as a sentence."""
    text = _ELSEWHERE.sub(r"Errors as \1", text)
    text = text.replace("t*", "t∗")  # no emphasis
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    paragraphs = text.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        if all(map(_EQUATION.match, paragraph.split("\n"))):
            paragraphs[i] = f"```text\n{paragraph}\n```"
    return "\n\n".join(paragraphs)
