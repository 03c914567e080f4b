"""The tutorials' notebooks run from top to bottom, as Jupyter runs them."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


def result(notebook):
    """What it printed, and how many figures it drew."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    figures = [out for out in outputs if "image/png" in out.get("data", {})]
    return "".join(out.get("text", "") for out in outputs), len(figures)


@pytest.mark.parametrize(
    "run", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kept", "run anew"]
)
@pytest.mark.parametrize(
    "name, figures, reached", [("quickstart", 4, 90), ("custom_rule", 0, 80)]
)
def test_runs_and_learns(name, figures, reached, run):
    """`make notebooks` keeps their outputs."""
    notebook = nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)
    if run:
        NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    text, drawn = result(notebook)
    assert drawn == figures
    assert float(re.findall(r"([\d.]+)% of the \w+ images", text)[-1]) > reached
