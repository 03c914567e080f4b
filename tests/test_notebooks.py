"""The notebooks run from top to bottom, as Jupyter runs them."""

import re
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "experiments" / "notebooks"


def printed(name):
    notebook = jupytext.read(FOLDER / f"{name}.py")
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    figures = [out for out in outputs if "image/png" in out.get("data", {})]
    return "".join(out.get("text", "") for out in outputs), len(figures)


def test_every_notebook_is_tried_here():
    assert {path.stem for path in FOLDER.glob("*")} == {"quickstart", "custom_rule"}


@pytest.mark.parametrize(
    "name, figures, reached", [("quickstart", 4, 90), ("custom_rule", 0, 80)]
)
def test_runs_and_learns(name, figures, reached):
    text, drawn = printed(name)
    assert drawn == figures
    assert float(re.findall(r"([\d.]+)% of the \w+ images", text)[-1]) > reached
