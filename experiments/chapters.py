"""What the paper and the laboratory add to the report: published works, the paper's
numbers of tables and figures, reported runs, ceilings."""

import collections
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

import ds4nn_jax as ds
from ds4nn_jax.cli import chapters, figures, flags, measures, page
from ds4nn_jax.cli.chapters import Network
from ds4nn_jax.cli.page import Block, Drawing, Heading, Table, Text
from ds4nn_jax.networks.spec import PoolSpec
from experiments import published

_HERE = Path(__file__).parent
_OURS = page.strong("ours") + ", {}"
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

# Table 1, or the sentence that stands for it, and the presets of the paper and of ours.
_PARAMETERS = {
    "mnist": ("Table 1: parameters", "paper", "mnist"),
    "fashion_mnist": ("Parameters", "fashion_paper", "fashion_mnist"),
}


class Runs(NamedTuple):
    """Reported runs of one flagfile.

    Attributes:
      name: of the flagfile.
      config: what it asks for.
      seeds: of the runs.
      tests: last line of each run's metrics: the best epoch on the test images.
      start: name of the run or shipped network whose weights they began with; empty
        where they drew their own.
    """

    name: str
    config: ds.TrainConfig
    seeds: tuple[int, ...]
    tests: tuple[dict[str, Any], ...]
    start: str = ""

    def mean(self, measure: str) -> float:
        return float(np.mean([test[f"test_{measure}"] for test in self.tests]))

    def without_pooling(self) -> float | None:
        """Mean spikes without those of pooling neurons, where they are known."""
        network = self.config.network()
        layers = [test.get("test_layer_spikes") for test in self.tests]
        if all(layers):
            counts = (measures.without_pooling(network, spikes) for spikes in layers)
            return float(np.mean([*counts]))
        pools = any(isinstance(layer, PoolSpec) for layer in network.layers)
        return None if pools else self.mean("spikes")

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

    def row(self) -> tuple[str, ...]:
        unpooled = self.without_pooling()
        return (
            _OURS.format(self.title()),
            self.config.spec,
            page.strong(self.spread()),
            f"{self.mean('spikes'):,.0f}",
            "" if unpooled is None else f"{unpooled:,.0f}",
            f"{self.mean('decision_step'):.1f}",
        )

    def point(self) -> figures.Point:
        measured = map(self.mean, ("accuracy", "spikes", "decision_step"))
        return figures.Point(f"{self.name}.cfg", *measured)


def reported(dataset: str, folder: Path = _HERE / "results") -> tuple[Runs, ...]:
    """The runs whose metrics are kept in `folder` as FLAGFILE-SEED.jsonl."""
    pattern = re.compile(rf"({_MODULES.get(dataset)}(?:_\w+)?)-(\d+)\.jsonl")
    matches = filter(None, (pattern.fullmatch(f.name) for f in folder.glob("*.jsonl")))
    names = sorted((match[1], int(match[2])) for match in matches)
    runs = []
    for name, group in itertools.groupby(names, key=lambda pair: pair[0]):
        seeds = tuple(seed for _, seed in group)
        flagfile = _HERE / "flagfiles" / f"{name}.cfg"
        options = flags.parse(["report", f"--flagfile={flagfile}"], dataset=dataset)
        files = (folder / f"{name}-{seed}.jsonl" for seed in seeds)
        tests = tuple(json.loads(f.read_text("utf-8").splitlines()[-1]) for f in files)
        first = Path(options.init_from or "")
        start = first.parent.name or first.name  # runs/NAME/best.safetensors, or NAME
        runs.append(Runs(name, options.config, seeds, tests, start))
    return tuple(runs)


class PaperChapters(chapters.Chapters):
    description = (
        "The paper's tables and figures, of trained networks, on one page: "
        "report.html, which needs no other file."
    )
    lacking = ", which the paper's networks do not have"

    def label(self, network: Network, what: str) -> str:
        """Number of the paper's figure or table, if this is the paper's network, with
        whatever urgency."""
        shape = network.trained.weights.network
        if (shape.num_steps, shape.threshold) != (100, 100):
            return ""
        return _PAPER.get((network.images.name, shape.spec), {}).get(what, "")

    def by_class(self, network: Network) -> Mapping[str, Sequence[str]]:
        if not self.label(network, "classes"):
            return {}
        return {
            "firing time, the paper": [f"{time}" for time in published.FIRING_TIMES],
            "spikes, the paper": [f"{spikes:,}" for spikes in published.SPIKES],
        }

    def ceiling(self, dataset: str, num_steps: int) -> tuple[Any, str]:
        """What `experiments.ceiling` found for as many steps, if it was asked."""
        ceiling = _ceiling(dataset, num_steps)
        if ceiling is None:
            return None, ""
        return (
            (ceiling["steps"], ceiling["test_accuracy"]),
            f" The ceiling is a plain CNN of {ceiling['spec']} "
            f"({ceiling['held_out_accuracy']:.2%} on held-out images).",
        )

    def of_dataset(self, dataset: str, networks: Sequence[Network]) -> Iterator[Block]:
        every = [r for r in reported(dataset) if "_target_" not in r.name]
        runs = [r for r in every if r.config.bits is None]
        works = published.ACCURACY.get(dataset, ())
        label = max((self.label(n, "comparison") for n in networks), default="")
        yield Heading(3, f"{label}{'a' if label else 'A'}ccuracies and their cost")
        ours = [n.row(_OURS.format(f"{n.trained.name}, here")) for n in networks]
        rows = [*map(_published_row, works), *ours, *(r.row() for r in runs)]
        yield Table(chapters.COMPARED, rows, names=2)
        if runs:
            command = page.code(
                f"python -m experiments.{_MODULES[dataset]} "
                "--flagfile=experiments/flagfiles/NAME.cfg --seed=SEED"
            )
            yield Text(
                Markup(
                    "NAME.cfg is what {} gives. Of several seeds: the mean, and the "
                    "range in brackets."
                ).format(command)
            )
        if works:
            yield Text(
                "Others' figures are those of the paper's table, which does not say "
                "whether pooling counts; our spikes count pooling neurons, and are "
                "given without them where they are known."
            )
        yield self._front(dataset, networks, runs)
        yield from of_bits(every)
        if dataset in _PARAMETERS:
            yield from _parameters(dataset)
        if label and dataset == "mnist":
            yield from _dead_neurons()

    def _front(
        self, dataset: str, networks: Sequence[Network], runs: Sequence[Runs]
    ) -> Drawing:
        points = [
            figures.Point(w.name, w.accuracy, w.spikes, w.decision_step, ours=False)
            for w in published.ACCURACY.get(dataset, ())
        ]
        points += [each.point() for each in (*runs, *networks)]
        caption = (
            "Accuracy against spikes and decision step: full ours, hollow published; "
            "the grey line joins those that none beats in both."
        )
        ceiling, _ = self.ceiling(dataset, 100)
        if ceiling:
            spec = (_ceiling(dataset, 100) or {})["spec"]
            caption += (
                f" Dotted: what a plain CNN of {spec} knows of all images by a step; a "
                "mean of steps may lie above it, early for some, late for others."
            )
        title = f"{self.title(dataset)}: accuracy and its cost"
        return Drawing(figures.fronts(points, title=title, ceiling=ceiling), caption)


def _published_row(work: published.Work) -> tuple[str, ...]:
    return (
        work.name,
        work.structure,
        f"{100 * work.accuracy:.1f}",
        "" if work.spikes is None else f"{work.spikes:,}",
        "",
        "" if work.decision_step is None else f"{work.decision_step}",
    )


def _ceiling(dataset: str, num_steps: int) -> dict[str, Any] | None:
    slug = re.sub(r"\W+", "_", dataset).strip("_")
    path = _HERE / "results" / f"known-{slug}.json"
    if not path.exists():
        return None
    ceiling = json.loads(path.read_text("utf-8"))
    return ceiling if max(ceiling["steps"]) == num_steps - 1 else None


def of_bits(runs: Sequence[Runs]) -> Iterator[Block]:
    """Accuracy against bits a weight, of networks and what was trained on from them."""
    groups = collections.defaultdict(list)
    for each in sorted(runs, key=lambda each: each.config.bits or 9):
        if each.config.bits is not None:
            groups[each.start].append(each)
    for each in runs:
        if each.config.bits is None and each.name in groups:
            groups[each.name].append(each)
    if not groups:
        return
    yield Heading(3, "Accuracy against bits a weight")
    yield Text(
        "Whole weights of so many bits, trained on from the network that the last row "
        "of each has in real numbers."
    )
    titles = "structure", "bits", "accuracy (%)", "spikes", "by potentials", "run"
    rows = [
        (
            each.config.spec,
            "real" if each.config.bits is None else f"{each.config.bits}",
            each.spread(),
            f"{each.mean('spikes'):,.0f}",
            f"{each.mean('silent'):.1%}",
            each.title(),
        )
        for group in groups.values()
        for each in group
    ]
    yield Table(titles, rows, names=1)
    lines = {
        f"{group[0].config.spec}, {start}": [
            (each.config.bits, each.mean("accuracy")) for each in group
        ]
        for start, group in groups.items()
    }
    yield Drawing(by_bits(lines), "The same, drawn.")


def by_bits(lines: Mapping[str, Sequence[tuple[int | None, float]]]) -> Figure:
    """Accuracy against bits a weight.

    Args:
      lines: by name, (bits, accuracy in 0 … 1), in this order; bits None: real numbers.
    """
    ticks = sorted({bits or np.inf for line in lines.values() for bits, _ in line})
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        at = [ticks.index(bits or np.inf) for bits, _ in points]
        percent = [100 * accuracy for _, accuracy in points]
        axes.plot(at, percent, "o-", markersize=4, label=name)
    names = ["real" if tick == np.inf else f"{tick}" for tick in ticks]
    axes.set_xticks(range(len(ticks)), names)
    axes.set(xlabel="bits a weight", ylabel="accuracy on the test images (%)")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def _parameters(dataset: str) -> Iterator[Block]:
    """Table 1: what the paper's network is trained with, and what ours."""
    title, *presets = _PARAMETERS[dataset]
    columns = []
    for preset in presets:
        options = flags.parse(["report", f"--preset={preset}"], dataset=dataset)
        pairs = re.findall(r"^--([\w.]+)=(.*)$", options.resolved, re.MULTILINE)
        columns.append({name: value for name, value in pairs if name != "preset"})
    names = {**columns[0], **columns[1]}
    rows = [(name, *(column.get(name, "") for column in columns)) for name in names]
    paper, ours = presets
    yield Heading(3, title)
    yield Table(
        ("flag", f"the paper ({paper})", f"ours ({ours})"),
        [row for row in rows if row[1] != row[2]],
        names=3,
    )
    yield Text("What is not in the table is the same. Rates of the paper are in mV.")


def _dead_neurons() -> Iterator[Block]:
    rules = {
        "relative": "relative, Eq. 4 (DS4NN)",
        "s4nn": "S4NN's",
        "fixed": "fixed (as Mostafa, Comsa et al.)",
    }
    rows = [
        (
            rules[runs.config.output_rule.name],
            runs.title(),
            f"{published.DEAD[runs.config.output_rule.name]:.1%}",
            f"{runs.mean('dead'):.1%}",
            runs.spread(),
            f"{runs.mean('spikes'):,.0f}",
        )
        for runs in reported("mnist")
        if "_target_" in runs.name
    ]
    yield Heading(3, "Table 3: dead neurons under three kinds of target")
    yield Text(
        "Neurons that no test image makes fire. All three were trained by us with the "
        "paper's surrogate (∂t/∂V → −1) and everything else alike."
    )
    titles = "target", "run", "dead, the paper", "dead, ours", "accuracy (%)", "spikes"
    yield Table(titles, rows, names=2)
