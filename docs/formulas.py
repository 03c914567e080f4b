"""Converts the formulas of pages (```math fences) to MathML, which browsers show."""

import re

from latex2mathml.converter import convert

_FENCE = re.compile(r"^```math\n(.*?)^```", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **kwargs) -> str:
    """The page, with a block of MathML for each paragraph of a fence."""

    def blocks(fence: re.Match) -> str:
        formulas = fence[1].strip().split("\n\n")
        lines = "".join(convert(formula, display="block") for formula in formulas)
        return f'<div class="formulas">{lines}</div>'

    return _FENCE.sub(blocks, markdown)
