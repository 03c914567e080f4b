"""The documentation's code runs; its links, names, flags and numbers are right."""

import contextlib
import doctest
import inspect
import io
import json
import re
import statistics
from pathlib import Path

import pytest

import ds4nn_jax as ds
from ds4nn_jax.cli import commands, flags
from experiments import digits

ROOT = Path(__file__).parents[1]
HOME = "https://github.com/ds4nn-jax/ds4nn_jax/blob/main/"
HISTORY = {"CHANGELOG.md", "NOTEBOOK.md"}
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for pattern in ("*.md", "benchmarks/*.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name not in HISTORY
}
PAGES = [page for page in TEXTS if page.startswith("docs/")]
OWN_DATA = "docs/tutorials/own-data.md"
PROGRAM = r"(?ms)^```python\n(?!--8<--)(.*?)^```(?:\n\n```text\n(.*?)^```)?"
EXAMPLE = r"(?ms)^```pycon\n(.*?)^```"
FLAG = r"--(?:\[no\])?([a-z][\w.]*)"


def run(page, *, blocks=None, **changes):
    """Names after the first blocks of a page, with texts changed; what a block prints
    must be what the page shows after it."""
    names = {"__name__": page}
    for code, expected in re.findall(PROGRAM, TEXTS[page])[:blocks]:
        for old, new in changes.items():
            code = code.replace(old, new)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        assert not expected or printed.getvalue() == expected
    return names


@pytest.mark.parametrize("page", ["README.md", *sorted({*PAGES} - {OWN_DATA})])
def test_programs_and_examples_of_pages_run(page):
    run(page)
    assert not doctest.testfile(str(ROOT / page), module_relative=False).failed


@pytest.mark.slow
def test_own_data_are_learnt_and_on_a_grey_background_too():
    assert run(OWN_DATA)["report"].accuracy >= 0.95
    ground = {"seed=0)": "seed=0, ground=60)", "seed=1)": "seed=1, ground=60)"}
    assert run(OWN_DATA, blocks=3, **ground)["report"].accuracy >= 0.95


@pytest.mark.slow
def test_the_demo_does_what_pages_say(tmp_path):
    flagfile = f"--flagfile={ROOT}/experiments/flagfiles/digits_demo.cfg"
    report = digits.main(["digits", flagfile, f"--out_dir={tmp_path}/run"])
    numbers = r"(\d\d\.\d) %[^|%]*? at step ([\d.]+) (?:of 100 )?with (\d+) spikes"
    for page in ("README.md", "docs/getting-started.md"):
        (shown,) = re.findall(numbers, " ".join(TEXTS[page].split()))
        accuracy, step, spikes = map(float, shown)
        assert 100 * report.accuracy == pytest.approx(accuracy, abs=1.5)
        assert report.decision_step == pytest.approx(step, abs=3)
        assert report.spikes == pytest.approx(spikes, rel=0.1)


def test_every_public_name_has_an_entry_and_an_example():
    for name in set(ds.__all__) - {"SpikeTimes"}:  # an alias of jax.Array
        value = getattr(ds, name)
        path = value.__name__ if inspect.ismodule(value) else f"ds4nn_jax.{name}"
        entry = rf"(?m)^::: {re.escape(path)}$"
        (content,) = [TEXTS[page] for page in PAGES if re.search(entry, TEXTS[page])]
        examples = "".join(re.findall(EXAMPLE, content)) + (inspect.getdoc(value) or "")
        assert re.search(rf"\bds\.{name}\b|>>>", examples), name


def test_links_into_the_repository_lead_to_files():
    """All others are the site's; its build checks them. Those of the README, which a
    package index shows, are whole."""
    for page, content in TEXTS.items():
        for path in re.findall(re.escape(HOME) + r"([^)#\s]+)", content):
            assert (ROOT / path).exists(), f"{page}: {path}"
    links = re.findall(r"\]\(([^)]+)\)|(?:src|href)=\"([^\"]+)\"", TEXTS["README.md"])
    assert links and all("".join(link).startswith("https://") for link in links)


def test_names_and_flags_exist(capsys):
    """`module.name` in pages, docstrings and comments; --flag in pages; of the README
    also programs and flagfiles."""
    sources = {path: path.read_text("utf-8") for path in ROOT.glob("ds4nn_jax/**/*.py")}
    named = r"`(?:ds\.)?(?!nir|report)(\w+)\.(?!json|html)([a-z_]{4,}|[A-Z]\w+)`"
    for where, content in (TEXTS | sources).items():
        for module, name in re.findall(named, content):
            code = "".join(sources[path] for path in sources if path.stem == module)
            exists = re.search(rf"(?m)^(?:def |class |){name}\b", code)
            assert exists or not code, f"{where}: {module}.{name}"
    with pytest.raises(SystemExit):
        flags.parse(["train", "--helpfull"], dataset="mnist")
    existing = {"teach"}  # of a commit that results.md names
    existing |= {*re.findall(FLAG, capsys.readouterr().out)}
    for folder in ("ds4nn_jax/cli", "experiments", "benchmarks"):
        for path in (ROOT / folder).glob("*.py"):
            existing |= {*re.findall(f'"{FLAG}"', path.read_text("utf-8"))}
    for page in (*PAGES, "README.md"):
        assert {*re.findall(r"--([a-z][\w.]*)", TEXTS[page])} <= existing, page
    readme = TEXTS["README.md"]
    targets = re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text())
    assert {*re.findall(r"`?make (\w+)", readme)} <= {*targets}
    modules = re.findall(r"python\s+-m\s+([\w.]+)", readme)
    files = [f"{module.replace('.', '/')}.py" for module in modules]
    names = re.findall(r"(?m)^\| `(\w+)` \|", readme)
    files += [f"experiments/flagfiles/{name}.cfg" for name in names]
    assert files and all((ROOT / file).exists() for file in files), files


def test_accuracies_of_choices_are_those_measured():
    page = TEXTS["docs/runs.md"].partition("## Where the paper")[2]
    page = page.partition("\n## ")[0]
    results = ROOT.glob("experiments/results/ablations-*.md")
    measured = re.findall(r"\d+\.\d\d", "".join(path.read_text() for path in results))
    shown = {*re.findall(r"\d+\.\d\d", page)}
    assert len(shown) > 12 and shown <= {*measured}


def test_the_seven_is_decided_as_pages_say(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands.main(["predict", "docs/images/seven.png"])
    out = capsys.readouterr().out
    assert f"```text\n{out}```" in TEXTS["docs/getting-started.md"]
    answers = re.findall(r"7 \(decided at step \d+ of 100\)", "".join(TEXTS.values()))
    assert {*answers} == {out.splitlines()[0].rpartition(": ")[2]}


def recorded(row):
    """The metrics that are kept of the runs of a table's row."""
    name = row.get("NAME", "").strip("`")
    if "urgency" in row:
        return [ds.pretrained.load(name).notes] if name in ds.pretrained.names() else []
    seeds = row.get("seeds", row.get("seed", "0")).split(", ")
    paths = [ROOT / f"experiments/results/{name}-{seed}.jsonl" for seed in seeds]
    last = [path.read_text().splitlines()[-1] for path in paths if path.exists()]
    return [json.loads(line.replace('"test_', '"')) for line in last]


@pytest.mark.parametrize(
    ("page", "count"), [("README.md", 18), ("docs/results.md", 102)]
)
def test_results_are_those_that_are_recorded(page, count):
    keys = {"no output spike": "silent", "never fire": "dead"}
    for table in re.findall(r"(?m)(?:^\|.*\n)+", TEXTS[page]):
        head, _, *body = [re.split(r" *\| *", line) for line in table.splitlines()]
        for row in (dict(zip(head, cells, strict=True)) for cells in body):
            runs = recorded(row)
            for column, cell in row.items() if runs else ():
                key = keys.get(column, column.replace(" ", "_"))
                if key not in runs[0]:
                    continue
                count -= 1
                values = [run[key] * (100 if "%" in cell else 1) for run in runs]
                expected = [statistics.mean(values)]
                if "–" in cell:
                    expected += [min(values), max(values)]
                numbers = re.findall(
                    r"\d[\d.]*", cell.split(" (paper")[0].replace(",", "")
                )
                for shown, value in zip(numbers, expected, strict=True):
                    decimals = len(shown.partition(".")[2])
                    assert abs(float(shown) - value) <= 0.501 * 10**-decimals, row
    assert count == 0
