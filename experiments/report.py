"""The paper's tables and figures, of trained networks, on one page.

    python -m experiments.report                       # the networks of the library
    python -m experiments.report --run_dir=runs/mnist  # a run of one's own

Writes report.html, its twin report.md and every figure as .png and .svg to --out_dir.
Rows of other reported runs come from `experiments/results`, a metrics.jsonl for each
flagfile and seed.
"""

import argparse
import functools
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import markdown
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import data, energy, plots, pretrained
from ds4nn_jax.checkpoints import CheckpointError, write_atomically

from . import figures, options, progress, published

_HERE = Path(__file__).parent
_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "Digits"}
_MODULES = {"mnist": "mnist", "fashion_mnist": "fashion", "digits": "digits"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.93rem; }
th, td { border-bottom: 1px solid #ccc; padding: 0.25rem 0.7rem; text-align: left; }
td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
code { background: #f2f2f2; padding: 0.1rem 0.3rem; border-radius: 3px;
       overflow-wrap: anywhere; }
"""


class Runs(NamedTuple):
    """Reported runs of one flagfile.

    Attributes:
      name: of the flagfile.
      config: what it asks for.
      seeds: of the runs.
      tests: last line of each run's metrics: the best epoch on the test images.
    """

    name: str
    config: ds.TrainConfig
    seeds: tuple[int, ...]
    tests: tuple[dict, ...]

    def mean(self, measure: str) -> float:
        return float(np.mean([test[f"test_{measure}"] for test in self.tests]))

    def spread(self) -> str:
        """Mean strict accuracy and, of several seeds, its range, in percent."""
        shares = [100 * test["test_accuracy"] for test in self.tests]
        if len(shares) == 1:
            return f"{shares[0]:.2f}"
        return f"{np.mean(shares):.2f} ({min(shares):.2f}–{max(shares):.2f})"

    def command(self, dataset: str) -> str:
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"`python -m experiments.{_MODULES[dataset]} "
            f"--flagfile=experiments/flagfiles/{self.name}.cfg`, seed {seeds}"
        )


def reported(dataset: str, folder: Path = _HERE / "results") -> tuple[Runs, ...]:
    """The runs whose metrics are kept in `folder` as FLAGFILE-SEED.jsonl."""
    module = _MODULES[dataset]
    found = sorted(
        match.groups()
        for path in folder.glob("*.jsonl")
        if (match := re.fullmatch(rf"({module}(?:_\w+)?)-(\d+)\.jsonl", path.name))
    )
    runs = []
    for name, group in itertools.groupby(found, key=lambda pair: pair[0]):
        seeds = tuple(sorted(int(seed) for _, seed in group))
        flagfile = _HERE / "flagfiles" / f"{name}.cfg"
        asked = options.parse(["report", f"--flagfile={flagfile}"], dataset=dataset)
        tests = tuple(_last_line(folder / f"{name}-{seed}.jsonl") for seed in seeds)
        runs.append(Runs(name, asked.config, seeds, tests))
    return tuple(runs)


class Page:
    """Markdown as it grows, and the figures beside it."""

    def __init__(self, out: Path):
        self._out, self._parts = out, []

    def add(self, text: str) -> None:
        self._parts.append(text.strip())

    def table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        lines = [header, ["---"] * len(header), *rows]
        self.add("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))

    def figure(self, name: str, figure, caption: str) -> None:
        for kind in ("png", "svg"):
            plots.save(figure, self._out / f"{name}.{kind}")
        self.add(f"![{caption}]({name}.png)\n\n*{caption}*")

    def save(self) -> None:
        text = "\n\n".join(self._parts) + "\n"
        body = markdown.markdown(text, extensions=["tables"])
        body = re.sub(r'src="(\w+)\.png"', r'src="\1.svg"', body)
        page = (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>ds4nn_jax: report</title><style>{_STYLE}</style></head>\n"
            f"<body>\n{body}\n</body></html>\n"
        )
        write_atomically(self._out / "report.md", text.encode())
        write_atomically(self._out / "report.html", page.encode())


class Trained(NamedTuple):
    """A network to report, and where it comes from."""

    dataset: str
    network: ds.SpikingNetwork
    params: dict
    source: str
    history: tuple[dict, ...]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run_dir", help="out_dir of a finished run")
    parser.add_argument(
        "--data_root",
        help="folder with a folder for each data set; empty: usual places",
    )
    parser.add_argument("--out_dir", default="runs/report", help="where the page goes")
    asked = parser.parse_args(argv)
    try:
        print(f"report in {_report(asked)}")
    except (data.DataError, CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"experiments.report: {error}") from error


def _report(asked: argparse.Namespace) -> Path:
    networks = _shipped() if asked.run_dir is None else [_run(Path(asked.run_dir))]
    sets = []
    for trained in networks:
        root = asked.data_root and Path(asked.data_root) / trained.dataset
        sets.append(data.load(trained.dataset, root))
    out = Path(asked.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    page = Page(out)
    page.add(
        """
# ds4nn_jax: report

Every neuron fires at most once; T = 100 time steps. A decision is the first output
spike, ties going to the higher potential; accuracies of ours are strict: a tie counts
only if its highest potential is the label's. Spikes are those of all layers, pooling
included, up to the decision; input spikes are counted apart. Epochs were chosen on
held-out training images, and the test images used to report only.
"""
    )
    for trained, images in zip(networks, sets, strict=True):
        print(f"{_TITLES[trained.dataset]}: {trained.source}", flush=True)
        _chapter(page, trained, images)
    if any(trained.dataset == "mnist" for trained in networks):
        _dead_neurons(page)
    page.save()
    return out / "report.html"


def _shipped() -> list[Trained]:
    networks = []
    for name in sorted(pretrained.names(), key=list(_TITLES).index):
        network, params, card = pretrained.load(name)
        source = f"weights of the library, seed {card['seed']}, epoch {card['epoch']}"
        networks.append(Trained(name, network, params, source, ()))
    return networks


def _run(folder: Path) -> Trained:
    network, params, notes = ds.load_weights(folder / "best.safetensors")
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    history = tuple(row for row in map(json.loads, rows) if "epoch" in row)
    source = f"a run with seed {notes['seed']}, epoch {notes['epoch']}"
    return Trained(notes["dataset"], network, params, source, history)


def _chapter(page: Page, trained: Trained, images: data.Dataset) -> None:
    dataset, network, params = trained.dataset, trained.network, trained.params
    title, shots = _TITLES[dataset], (images.test_images, images.test_labels)
    test = ds.evaluate(network, params, *shots)
    stopping = figures.stopping(network, params, *shots)
    drawn = figures.of_network(network, params, images, test)
    save = functools.partial(_figure, page, dataset, drawn)

    page.add(f"## {title}: {network.spec}\n\nFrom {trained.source}.")
    _summary(page, test, network)
    _comparison(page, dataset, test)
    if trained.history:
        drawn["learning_curve"] = plots.learning_curve(trained.history)
        save("learning_curve", "Accuracy and cost while training.")
    fashion = dataset == "fashion_mnist"
    save("spikes_per_layer", f"{'' if fashion else 'Fig. 1. '}Mean spikes per layer.")
    save(
        "firing_times",
        f"Fig. {5 if fashion else 2}. Mean firing time of every output neuron for "
        "every class; silence counts as T.",
    )
    save(
        "output_potentials",
        f"{'' if fashion else 'Fig. 3. '}Output potentials for the first test image, "
        "and the spikes of the whole network.",
    )
    save("confusion", f"Fig. {6 if fashion else 4}. Confusion matrix.")
    _classes(page, dataset, test, images.class_names)
    drawn["accuracy_by_step"] = plots.accuracy_by_step(
        *stopping, decision_step=test.decision_step
    )
    save(
        "accuracy_by_step",
        "What is known if one stops at step t: the decision where an output has fired, "
        "elsewhere the highest output potential so far.",
    )
    drawn["accuracy_against_spikes"] = plots.accuracy_against_spikes(
        _points(dataset, test, trained), title=f"{title}: accuracy and its cost"
    )
    save(
        "accuracy_against_spikes",
        "Accuracy against spikes; the grey line joins those that none beats in both.",
    )
    _energy(page, network, images, test)


def _figure(page: Page, dataset: str, drawn: dict, name: str, caption: str) -> None:
    page.figure(f"{dataset}_{name}", drawn[name], caption)


def _summary(page: Page, test: ds.Report, network: ds.SpikingNetwork) -> None:
    page.table(
        (f"on the {test.images:,} test images", ""),
        (
            ("strict accuracy", f"{test.accuracy:.2%}"),
            ("lenient accuracy (a tie counts)", f"{test.lenient_accuracy:.2%}"),
            ("ties", f"{test.tied:.2%}"),
            ("all outputs silent, decided by potentials", f"{test.silent:.2%}"),
            (
                "mean decision step",
                f"{test.decision_step:.1f} of {network.num_steps}",
            ),
            ("mean spikes up to the decision", f"{test.spikes:,.0f}"),
            ("… and of the input", f"{test.layer_spikes[0]:,.0f}"),
            ("dead neurons", f"{test.dead:.1%}"),
        ),
    )


def _comparison(page: Page, dataset: str, test: ds.Report) -> None:
    others = published.ACCURACY.get(dataset, ())
    if others:
        page.add(f"### Table {4 if dataset == 'fashion_mnist' else 2}: accuracies")
    rows = [
        (
            work.name,
            work.structure,
            f"{100 * work.accuracy:.1f}",
            "" if work.spikes is None else f"{work.spikes:,}",
            "" if work.decision_step is None else work.decision_step,
        )
        for work in others
    ]
    rows.append(
        (
            "**ours**, the network of this page",
            "",
            f"**{100 * test.accuracy:.2f}**",
            f"{test.spikes:,.0f}",
            f"{test.decision_step:.1f}",
        )
    )
    for runs in _results_of(dataset):
        rows.append(
            (
                f"**ours**, {runs.command(dataset)}",
                runs.config.spec,
                f"**{runs.spread()}**",
                f"{runs.mean('spikes'):,.0f}",
                f"{runs.mean('decision_step'):.1f}",
            )
        )
    page.table(("", "structure", "accuracy (%)", "spikes", "step"), rows)
    page.add(
        "Of several seeds: the mean, and the range in brackets. Others' figures are "
        "those of the paper's table, which does not say whether pooling counts."
    )


def _classes(
    page: Page, dataset: str, test: ds.Report, class_names: Sequence[str]
) -> None:
    known = dataset == "fashion_mnist"
    page.add(
        "### Table 5: firing time and spikes of each class\n\n"
        "Firing time: mean of the correct output neuron, silence counting as T."
    )
    header = ["class", "firing time", "spikes", "decision step"]
    rows = [
        [name, f"{at:.1f}", f"{spikes:,.0f}", f"{step:.1f}"]
        for name, at, spikes, step in zip(
            class_names,
            np.diag(test.firing_times),
            test.class_spikes,
            test.class_steps,
            strict=True,
        )
    ]
    if known:
        header += ["firing time, the paper", "spikes, the paper"]
        for row, at, spikes in zip(
            rows, published.FIRING_TIMES, published.SPIKES, strict=True
        ):
            row += [at, f"{spikes:,}"]
    page.table(header, rows)


def _points(dataset: str, test: ds.Report, trained: Trained):
    points = [
        (work.name, work.spikes, work.accuracy, False)
        for work in published.ACCURACY.get(dataset, ())
        if work.spikes
    ]
    points += [
        (f"{runs.name}.cfg", max(1, runs.mean("spikes")), runs.mean("accuracy"), True)
        for runs in _results_of(dataset)
    ]
    return [*points, ("this page's network", max(1, test.spikes), test.accuracy, True)]


def _results_of(dataset: str) -> list[Runs]:
    """All but those of Table 3, which were trained for less."""
    return [runs for runs in reported(dataset) if "_target_" not in runs.name]


def _energy(
    page: Page, network: ds.SpikingNetwork, images: data.Dataset, test: ds.Report
) -> None:
    shape = images.test_images.shape[1:]
    additions = energy.synaptic_operations(network, shape, test.layer_spikes)
    products = energy.multiply_accumulates(network, shape)
    spiking = additions * energy.ADDITION
    ordinary = products * (energy.ADDITION + energy.MULTIPLICATION)
    page.add(
        f"### Estimated energy of a decision\n\nArithmetic alone: an addition takes "
        f"{1e12 * energy.ADDITION:.1f} pJ, a multiplication "
        f"{1e12 * energy.MULTIPLICATION:.1f} pJ (32-bit floating point, 45 nm: "
        "Horowitz, ISSCC 2014). Memory and routing are left out on both sides."
    )
    page.table(
        ("", "operations an image", "energy an image"),
        (
            (
                "this network, up to the decision",
                f"{additions:,.0f} additions",
                f"{1e6 * spiking:.3g} µJ",
            ),
            (
                "ReLU network of the same shape",
                f"{products:,} multiplications with addition",
                f"{1e6 * ordinary:.3g} µJ",
            ),
            ("ratio", f"{products / additions:.0f}", f"{ordinary / spiking:.0f}"),
        ),
    )


def _dead_neurons(page: Page) -> None:
    rules = {
        "relative": "relative, Eq. 4 (DS4NN)",
        "s4nn": "S4NN's",
        "fixed": "fixed (as Mostafa, Comsa et al.)",
    }
    rows = [
        (
            rules[runs.config.output_rule.name],
            f"{published.DEAD[runs.config.output_rule.name]:.1%}",
            f"{runs.mean('dead'):.1%}",
            runs.spread(),
            f"{runs.mean('spikes'):,.0f}",
            runs.command("mnist"),
        )
        for runs in reported("mnist")
        if "_target_" in runs.name
    ]
    if not rows:
        return
    page.add(
        "## Table 3: dead neurons under three kinds of target\n\nNeurons that no test "
        "image makes fire. All three were trained by us with the paper's surrogate "
        "(∂t/∂V → −1) and everything else alike."
    )
    page.table(
        (
            "target",
            "dead, the paper",
            "dead, ours",
            "accuracy (%)",
            "spikes",
            "command",
        ),
        rows,
    )


def _last_line(path: Path) -> dict:
    return json.loads(path.read_text().splitlines()[-1])


if __name__ == "__main__":
    progress.program("experiments.report", main)
