"""The notebooks run from top to bottom, as Jupyter runs them."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "experiments" / "notebooks"
TWINS = ROOT / "docs" / "tutorials"


def result(notebook):
    """What it printed, and how many figures it drew."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    figures = [out for out in outputs if "image/png" in out.get("data", {})]
    return "".join(out.get("text", "") for out in outputs), len(figures)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, figures, reached", [("quickstart", 4, 90), ("custom_rule", 0, 80)]
)
def test_runs_and_learns(name, figures, reached):
    notebook = jupytext.read(SOURCES / f"{name}.py")
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    text, drawn = result(notebook)
    assert drawn == figures
    assert float(re.findall(r"([\d.]+)% of the \w+ images", text)[-1]) > reached


@pytest.mark.parametrize(
    "path", sorted(SOURCES.glob("*.py")), ids=lambda path: path.stem
)
def test_twin_is_its_source_run(path):
    """`make notebooks` writes them."""
    name, source = path.stem, jupytext.read(path)
    twin = nbformat.read(TWINS / f"{name}.ipynb", as_version=4)
    assert [c.source for c in twin.cells] == [c.source for c in source.cells]
    text, _ = result(twin)
    assert "% of the" in text
    link = f"/blob/main/docs/tutorials/{name}.ipynb)"
    assert "[Open in Colab]" in twin.cells[0].source and link in twin.cells[0].source
