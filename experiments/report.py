"""The report with the paper's tables and figures, and the runs of `results`.

python -m experiments.report [--run_dir=runs/mnist …]
"""

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

import ds4nn_jax as ds
from ds4nn_jax.cli import figures, flags, measures, progress, report
from ds4nn_jax.cli.report import Part, row
from ds4nn_jax.networks.spec import PoolSpec
from experiments import published

_HERE = Path(__file__).parent
_MODULES = {"mnist": "mnist", "fashion_mnist": "fashion", "digits": "digits"}

# The paper's networks, and which of its figures and tables are theirs.
_PAPER = {
    ("mnist", "64C3-P2-128C3-P2-10"): {
        "comparison": "Table 2: ",
        "spikes_per_layer": "Fig. 1. ",
        "firing_times": "Fig. 2. ",
        "output_potentials": "Fig. 3. ",
        "confusion": "Fig. 4. ",
    },
    ("fashion_mnist", "128C3-P2-128C3-P2-128C3-10"): {
        "comparison": "Table 4: ",
        "classes": "Table 5: ",
        "firing_times": "Fig. 5. ",
        "confusion": "Fig. 6. ",
    },
}

# Table 1, or the words that stand for it, and the flagfiles of the paper and of ours.
_PARAMETERS = {
    "mnist": ("Table 1: parameters", "mnist_paper", "mnist"),
    "fashion_mnist": ("Parameters", "fashion_paper", "fashion"),
}
_TARGETS = {
    "relative": "relative, Eq. 4 (DS4NN)",
    "s4nn": "S4NN's",
    "fixed": "fixed (as Mostafa, Comsa et al.)",
}


class Runs(NamedTuple):
    """Reported runs of one flagfile. `tests` are the last lines of their metrics: the
    best epoch on the test images. `start` is the run or shipped network whose weights
    they began with; empty where they drew their own."""

    name: str
    config: ds.TrainConfig
    seeds: tuple[int, ...]
    tests: tuple[dict[str, Any], ...]
    start: str = ""

    def mean(self, measure: str) -> float:
        return float(np.mean([test[f"test_{measure}"] for test in self.tests]))

    def spread(self) -> str:
        """Mean strict accuracy and, of several seeds, its range, in percent."""
        shares = [100 * test["test_accuracy"] for test in self.tests]
        if len(shares) == 1:
            return f"{shares[0]:.2f}"
        return f"{np.mean(shares):.2f} ({min(shares):.2f}–{max(shares):.2f})"

    def title(self) -> str:
        """Flagfile and seeds."""
        several = "s" if len(self.seeds) > 1 else ""
        return f"{self.name}.cfg, seed{several} {', '.join(map(str, self.seeds))}"

    def point(self) -> figures.Point:
        network, name = self.config.network(), f"{self.name}.cfg"
        layers = [test.get("test_layer_spikes") for test in self.tests]
        means = [*map(self.mean, ("accuracy", "spikes", "decision_step"))]
        unpooled = None
        if all(layers):
            counts = (measures.without_pooling(network, spikes) for spikes in layers)
            unpooled = float(np.mean([*counts]))
        elif not any(isinstance(layer, PoolSpec) for layer in network.layers):
            unpooled = self.mean("spikes")
        return figures.Point(name, self.config.spec, *means, unpooled)


def reported(dataset: str, folder: Path = _HERE / "results") -> list[Runs]:
    """The runs whose metrics are kept in `folder` as FLAGFILE-SEED.jsonl."""
    pattern = re.compile(rf"({_MODULES.get(dataset)}(?:_\w+)?)-(\d+)\.jsonl")
    matches = filter(None, (pattern.fullmatch(f.name) for f in folder.glob("*.jsonl")))
    names = sorted((match[1], int(match[2])) for match in matches)
    runs = []
    for name, group in itertools.groupby(names, key=lambda pair: pair[0]):
        seeds = tuple(seed for _, seed in group)
        options = _options(dataset, name)
        files = (folder / f"{name}-{seed}.jsonl" for seed in seeds)
        tests = tuple(json.loads(f.read_text("utf-8").splitlines()[-1]) for f in files)
        first = Path(options.init_from or "")
        start = first.parent.name or first.name  # runs/NAME/best.safetensors, or NAME
        runs.append(Runs(name, options.config, seeds, tests, start))
    return runs


def _options(dataset: str, name: str) -> flags.Options:
    """What a flagfile says."""
    flagfile = _HERE / "flagfiles" / f"{name}.cfg"
    return flags.parse(["report", f"--flagfile={flagfile}"], dataset=dataset)


class PaperChapters(report.Chapters):
    def additions(self, dataset: str, network: ds.SpikingNetwork) -> dict[str, Any]:
        labels, columns = _labels(dataset, network), {}
        if "classes" in labels:
            columns = {
                "firing time, the paper": [f"{t}" for t in published.FIRING_TIMES],
                "spikes, the paper": [f"{count:,}" for count in published.SPIKES],
            }
        ceiling = _ceiling(dataset, network.num_steps)
        return {"labels": labels, "columns": columns, "ceiling": ceiling}

    def compare(
        self,
        dataset: str,
        networks: Sequence[ds.SpikingNetwork],
        points: Sequence[figures.Point],
    ) -> list[Part]:
        every = reported(dataset)
        targets = [runs for runs in every if "_target_" in runs.name]
        every = [runs for runs in every if runs not in targets]
        real = [runs for runs in every if runs.config.bits is None]
        labels = [_labels(dataset, each).get("comparison", "") for each in networks]
        label = max(labels, default="")
        parts = [_comparison(dataset, label, points, real), *of_bits(every)]
        if dataset in _PARAMETERS:
            parts.append(_parameters(dataset))
        if label and targets:
            parts.append(_dead_neurons(targets))
        return parts


def _strong(text: str) -> Markup:
    return Markup("<strong>{}</strong>").format(text)


def _labels(dataset: str, network: ds.SpikingNetwork) -> Mapping[str, str]:
    """What begins captions, if this is the paper's network, with whatever urgency."""
    alike = (network.num_steps, network.threshold) == (100, 100)
    return _PAPER.get((dataset, network.spec), {}) if alike else {}


def _ceiling(dataset: str, num_steps: int) -> dict[str, Any]:
    """What `experiments.ceiling` of commit 1468131 found for as many steps."""
    slug = re.sub(r"\W+", "_", dataset).strip("_")
    path = _HERE / "results" / f"known-{slug}.json"
    ceiling = json.loads(path.read_text("utf-8")) if path.exists() else {"steps": [0]}
    return ceiling if max(ceiling["steps"]) == num_steps - 1 else {}


def _comparison(
    dataset: str, label: str, points: Sequence[figures.Point], runs: Sequence[Runs]
) -> Part:
    works, ceiling = published.ACCURACY.get(dataset, ()), _ceiling(dataset, 100)
    ours, drawn = _strong("ours") + ", {}", [each.point() for each in runs]
    rows = [row(work.name, f"{100 * work.accuracy:.1f}", work) for work in works]
    for point in points:
        name = ours.format(f"{point.name}, here")
        rows.append(row(name, _strong(f"{100 * point.accuracy:.2f}"), point))
    for each, point in zip(runs, drawn, strict=True):
        rows.append(row(ours.format(each.title()), _strong(each.spread()), point))
    notes = []
    if runs:
        text = (
            "NAME.cfg is what <code>python -m experiments.{} --flagfile=experiments/"
            "flagfiles/NAME.cfg --seed=SEED</code> gives. Of several seeds: the mean, "
            "and the range in brackets."
        )
        notes.append(Markup(text).format(_MODULES[dataset]))
    if works:
        notes.append(
            "Others' figures are those of the paper's table, which does not say "
            "whether pooling counts; our spikes count pooling neurons, and are given "
            "without them where they are known."
        )
    caption = (
        "Accuracy against spikes and decision step: full ours, hollow published; the "
        "grey line joins those that none beats in both."
    )
    if ceiling:
        caption += (
            f" Dotted: what a plain CNN of {ceiling['spec']} knows of all images by a "
            "step; a mean of steps may lie above it, early for some, late for others."
        )
    every = [*works, *drawn, *points]
    return report.comparison(
        dataset, rows, every, label=label, notes=notes, caption=caption, ceiling=ceiling
    )


def of_bits(runs: Sequence[Runs]) -> list[Part]:
    """Accuracy against bits a weight, of networks and what was trained on from them."""
    starts = {each.start for each in runs if each.config.bits}
    groups: dict[str, list[Runs]] = {start: [] for start in sorted(starts)}
    for each in sorted(runs, key=lambda each: each.config.bits or np.inf):
        start = each.start if each.config.bits else each.name
        if start in groups:
            groups[start].append(each)
    if not groups:
        return []
    rows = [
        (
            each.config.spec,
            f"{each.config.bits or 'real'}",
            each.spread(),
            f"{each.mean('spikes'):,.0f}",
            f"{each.mean('silent'):.1%}",
            each.title(),
        )
        for group in groups.values()
        for each in group
    ]
    text = (
        "Whole weights of so many bits, trained on from the real ones of the last row, "
        "or, where there is none, from a run that the flagfile names."
    )
    titles = "structure", "bits", "accuracy (%)", "spikes", "no output spike", "run"
    return [Part("Accuracy against bits a weight", titles, rows, text=text)]


def _parameters(dataset: str) -> Part:
    """Table 1: what the paper's network is trained with, and what ours."""
    title, *names = _PARAMETERS[dataset]
    columns = []
    for name in names:
        pairs = re.findall(r"^--([\w.]+)=(.*)$", _options(dataset, name).resolved, re.M)
        columns.append({k: v for k, v in pairs if k not in ("preset", "out_dir")})
    paper, ours = columns
    rows = [
        (name, paper.get(name, ""), ours.get(name, ""))
        for name in {**paper, **ours}
        if paper.get(name) != ours.get(name)
    ]
    return Part(
        title,
        ("flag", f"the paper ({names[0]}.cfg)", f"ours ({names[1]}.cfg)"),
        rows,
        names=3,
        notes=["What is not in the table is the same. Rates of the paper are in mV."],
    )


def _dead_neurons(targets: Sequence[Runs]) -> Part:
    rows = [
        (
            _TARGETS[runs.config.output_rule.name],
            runs.title(),
            f"{published.DEAD[runs.config.output_rule.name]:.1%}",
            f"{runs.mean('dead'):.1%}",
            runs.spread(),
            f"{runs.mean('spikes'):,.0f}",
        )
        for runs in targets
    ]
    return Part(
        "Table 3: dead neurons under three kinds of target",
        ("target", "run", "dead, the paper", "dead, ours", "accuracy (%)", "spikes"),
        rows,
        names=2,
        text="Neurons that no test image makes fire. All three were trained by us with "
        "the paper's surrogate (∂t/∂V → −1) and everything else alike.",
    )


_NAME = "experiments.report"
main = functools.partial(report.main, command=_NAME, chapters=PaperChapters())

if __name__ == "__main__":
    progress.program(_NAME, main)
