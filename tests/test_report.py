"""The page that `python -m experiments.report` writes."""

import json
import re

import pytest

from experiments import report


@pytest.fixture(scope="module")
def page(smoke_run, tmp_path_factory):
    (run, test), out = smoke_run, tmp_path_factory.mktemp("page")
    report.main([f"--run_dir={run}", f"--out_dir={out}"])
    return out, test


def test_prints_what_the_run_reached(page):
    out, test = page
    text = (out / "report.md").read_text(encoding="utf-8")
    assert f"| strict accuracy | {test.accuracy:.2%} |" in text
    assert f"| mean spikes up to the decision | {test.spikes:,.0f} |" in text
    assert (
        f"| 7 | {test.firing_times[7, 7]:.1f} | {test.class_spikes[7]:,.0f} |" in text
    )
    # 8×8 → 8C3 → P2 → 4×4×8 = 128 → 10
    assert f"{64 * 9 * 8 + 128 * 10:,} multiplications" in text
    assert "Table 3" not in text  # which is about MNIST


def test_every_figure_lies_beside_the_page_as_png_and_svg(page):
    out, _ = page
    text, html = (
        (out / f"report.{kind}").read_text("utf-8") for kind in ("md", "html")
    )
    shown = re.findall(r"\]\((\w+)\.png\)", text)
    assert shown == re.findall(r'src="(\w+)\.svg"', html) and len(shown) == 7
    files = {f"{name}.{kind}" for name in shown for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == files | {"report.md", "report.html"}
    assert html.count("<table>") == text.count("\n| --- |")
    assert "http" not in html  # nothing is fetched by whoever reads it


def test_rows_of_several_seeds(tmp_path):
    for seed, accuracy in ((0, 0.99), (2, 0.98)):
        rows = [{"epoch": 1}, {"test_accuracy": accuracy, "test_spikes": 100.0 + seed}]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"mnist-{seed}.jsonl").write_text(text)
    (tmp_path / "fashion-0.jsonl").write_text('{"test_accuracy": 0.9}\n')
    (runs,) = report.reported("mnist", tmp_path)
    assert runs.spread() == "98.50 (98.00–99.00)"
    assert runs.mean("spikes") == 101
    assert runs.config.spec == "64C3-P2-128C3-P2-10"
    assert runs.command("mnist") == (
        "`python -m experiments.mnist --flagfile=experiments/flagfiles/mnist.cfg`, "
        "seed 0, 2"
    )
    (fashion,) = report.reported("fashion_mnist", tmp_path)
    assert fashion.spread() == "90.00"


def test_refuses_what_is_no_run(tmp_path):
    with pytest.raises(SystemExit, match="experiments.report: .*best.safetensors"):
        report.main([f"--run_dir={tmp_path}", f"--out_dir={tmp_path / 'page'}"])
    assert not (tmp_path / "page").exists()
