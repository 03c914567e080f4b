"""What the report says of a data set and of each network: text, tables and figures."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import data, plots
from ds4nn_jax.cli import figures, flags
from ds4nn_jax.cli.measures import Measured, reference, urgency, without_pooling
from ds4nn_jax.cli.page import (
    Block,
    Code,
    Drawing,
    Heading,
    Listing,
    Strong,
    Table,
    Text,
)
from ds4nn_jax.networks import energy
from ds4nn_jax.networks.spec import PoolSpec
from experiments import fronts, published

_HERE = Path(__file__).parent
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "Digits"}
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


class Network(NamedTuple):
    """A trained network on its data set.

    Attributes:
      name: short, for headings and figures.
      origin: where it comes from, in words.
      network: its structure.
      params: its parameters.
      images: its data set.
      measured: what was measured on the test images.
      history: a row for each epoch; empty where it is not known.
      best_epoch: whose weights these are, if that is known.
      flags: of the run, as a flagfile; empty where they are not known.
    """

    name: str
    origin: str
    network: ds.SpikingNetwork
    params: dict
    images: data.Dataset
    measured: Measured
    history: tuple[dict, ...] = ()
    best_epoch: int | None = None
    flags: str = ""

    def paper(self, what: str) -> str:
        """Number of the paper's figure or table, if this is the paper's network, with
        whatever urgency."""
        own = self.network
        if (own.num_steps, own.threshold) != (100, 100):
            return ""
        return _PAPER.get((self.images.name, own.spec), {}).get(what, "")


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
    tests: tuple[dict, ...]
    start: str = ""

    def mean(self, measure: str) -> float:
        return float(np.mean([test[f"test_{measure}"] for test in self.tests]))

    def own_spikes(self) -> float | None:
        """Mean spikes without those of pooling neurons, where they are known."""
        network = self.config.network()
        layers = [test.get("test_layer_spikes") for test in self.tests]
        if all(layers):
            return float(np.mean([without_pooling(network, each) for each in layers]))
        pools = any(isinstance(layer, PoolSpec) for layer in network.layers)
        return None if pools else self.mean("spikes")

    def spread(self) -> str:
        """Mean strict accuracy and, of several seeds, its range, in percent."""
        shares = [100 * test["test_accuracy"] for test in self.tests]
        if len(shares) == 1:
            return f"{shares[0]:.2f}"
        return f"{np.mean(shares):.2f} ({min(shares):.2f}–{max(shares):.2f})"

    def told(self) -> str:
        """Flagfile and seeds."""
        several = "s" if len(self.seeds) > 1 else ""
        return f"{self.name}.cfg, seed{several} {', '.join(map(str, self.seeds))}"


def of_bits(runs: Sequence[Runs]) -> Iterator[Block]:
    """Accuracy against bits a weight, of networks and what was trained on from them."""
    found: dict[str, list[Runs]] = {}
    for each in sorted(runs, key=lambda each: each.config.bits or 9):
        if each.config.bits is not None:
            found.setdefault(each.start, []).append(each)
    for each in runs:
        if each.config.bits is None and each.name in found:
            found[each.name].append(each)
    if not found:
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
            each.told(),
        )
        for group in found.values()
        for each in group
    ]
    yield Table(titles, rows, names=1)
    lines = {
        f"{group[0].config.spec}, {start}": [
            (each.config.bits, each.mean("accuracy")) for each in group
        ]
        for start, group in found.items()
    }
    yield Drawing(fronts.by_bits(lines), "The same, drawn.")


def _command(dataset: str) -> tuple[str, ...]:
    command = (
        f"python -m experiments.{_MODULES[dataset]} "
        "--flagfile=experiments/flagfiles/NAME.cfg --seed=SEED"
    )
    return "NAME.cfg is what ", Code(command), " gives."


def reported(dataset: str, folder: Path = _HERE / "results") -> tuple[Runs, ...]:
    """The runs whose metrics are kept in `folder` as FLAGFILE-SEED.jsonl."""
    module = _MODULES.get(dataset)
    found = sorted(
        match.groups()
        for path in folder.glob("*.jsonl")
        if (match := re.fullmatch(rf"({module}(?:_\w+)?)-(\d+)\.jsonl", path.name))
    )
    runs = []
    for name, group in itertools.groupby(found, key=lambda pair: pair[0]):
        seeds = tuple(sorted(int(seed) for _, seed in group))
        flagfile = _HERE / "flagfiles" / f"{name}.cfg"
        asked = flags.parse(["report", f"--flagfile={flagfile}"], dataset=dataset)
        tests = tuple(_last_line(folder / f"{name}-{seed}.jsonl") for seed in seeds)
        first = Path(asked.init_from or "")
        start = first.parent.name or first.name  # runs/NAME/best.safetensors, or NAME
        runs.append(Runs(name, asked.config, seeds, tests, start))
    return tuple(runs)


def of_dataset(dataset: str, shown: Sequence[Network]) -> Iterator[Block]:
    """What is known of all networks on a data set, side by side."""
    every = [r for r in reported(dataset) if "_target_" not in r.name]
    runs = [r for r in every if r.config.bits is None]
    label = max((each.paper("comparison") for each in shown), default="")
    yield Heading(3, f"{label}{'a' if label else 'A'}ccuracies and their cost")
    rows = [
        (
            work.name,
            work.structure,
            f"{100 * work.accuracy:.1f}",
            "" if work.spikes is None else f"{work.spikes:,}",
            "",
            "" if work.decision_step is None else f"{work.decision_step}",
        )
        for work in published.ACCURACY.get(dataset, ())
    ]
    for each in shown:
        test = each.measured.test
        rows.append(
            (
                (Strong("ours"), f", {each.name}, here"),
                each.network.spec,
                Strong(f"{100 * test.accuracy:.2f}"),
                f"{test.spikes:,.0f}",
                f"{without_pooling(each.network, test.layer_spikes):,.0f}",
                f"{test.decision_step:.1f}",
            )
        )
    for each in runs:
        own = each.own_spikes()
        rows.append(
            (
                (Strong("ours"), f", {each.told()}"),
                each.config.spec,
                Strong(each.spread()),
                f"{each.mean('spikes'):,.0f}",
                "" if own is None else f"{own:,.0f}",
                f"{each.mean('decision_step'):.1f}",
            )
        )
    yield Table(
        ("", "structure", "accuracy (%)", "spikes", "without pooling", "step"),
        rows,
        names=2,
    )
    if runs:
        told = " Of several seeds: the mean, and the range in brackets."
        yield Text((*_command(dataset), told))
    if dataset in published.ACCURACY:
        yield Text(
            "Others' figures are those of the paper's table, which does not say "
            "whether pooling counts; our spikes count pooling neurons, and are given "
            "without them where they are known."
        )
    points = [
        fronts.Point(w.name, w.accuracy, w.spikes, w.decision_step, False)
        for w in published.ACCURACY.get(dataset, ())
        if w.spikes or w.decision_step
    ]
    points += [
        fronts.Point(
            f"{r.name}.cfg",
            r.mean("accuracy"),
            max(1, r.mean("spikes")),
            r.mean("decision_step"),
            True,
        )
        for r in runs
    ]
    points += [
        fronts.Point(each.name, t.accuracy, max(1, t.spikes), t.decision_step, True)
        for each in shown
        for t in [each.measured.test]
    ]
    title = TITLES.get(dataset, dataset)
    known = _known(dataset, 100)
    told = (
        "Accuracy against spikes and decision step: full ours, hollow published; the "
        "grey line joins those that none beats in both."
    )
    if known:
        told += (
            f" Dotted: what a plain CNN of {known['spec']} knows of all images by a "
            "step; a mean of steps may lie above it, early for some, late for others."
        )
    yield Drawing(
        fronts.fronts(
            points, title=f"{title}: accuracy and its cost", ceiling=_ceiling(known)
        ),
        told,
    )
    yield from of_bits(every)
    if dataset in _PARAMETERS:
        yield from _parameters(dataset)
    if any(each.paper("comparison") for each in shown) and dataset == "mnist":
        yield from _dead_neurons()


def _parameters(dataset: str) -> Iterator[Block]:
    """Table 1: what the paper's network is trained with, and what ours."""
    title, paper, ours = _PARAMETERS[dataset]
    yield Heading(3, title)
    columns = [
        dict(
            flag.removeprefix("--").partition("=")[::2]
            for flag in flags.parse(
                ["report", f"--preset={name}"], dataset=dataset
            ).resolved.splitlines()
            if "=" in flag
        )
        for name in (paper, ours)
    ]
    names = [n for n in {**columns[0], **columns[1]} if n != "preset"]
    rows = [(name, *(column.get(name, "") for column in columns)) for name in names]
    rows = [row for row in rows if row[1] != row[2]]
    yield Table(("flag", f"the paper ({paper})", f"ours ({ours})"), rows, names=3)
    yield Text("What is not in the table is the same. Rates of the paper are in mV.")


def of_network(each: Network) -> Iterator[Block]:
    """All about one network."""
    network, images, (test, by_step, decided, _) = (
        each.network,
        each.images,
        each.measured,
    )
    drawn = figures.of_network(network, each.params, images, test)

    def drawing(name: str, caption: str) -> Drawing:
        return Drawing(drawn[name], each.paper(name) + caption)

    yield Heading(3, f"{each.name}: {network.spec}")
    yield Text(f"{each.origin} Data: {images.source}.")
    if network.urgency:
        yield Text(
            f"It decides with an urgency of {urgency(network, each.params):g} mV a "
            "step, which the paper's networks do not have."
        )
    if network.pulses:
        counts = ", ".join(f"{n} of {p}" for p, n in network.pulse_counts.items())
        yield Text(
            f"It has reference neurons, which the paper's do not have: {counts}."
        )
    if each.flags:
        yield Listing("Flags of the run", each.flags)
    yield from _summary(test, network, each.params)
    if each.history:
        drawn["learning_curve"] = plots.learning_curve(
            each.history, best_epoch=each.best_epoch
        )
        yield drawing("learning_curve", "Accuracy and cost while training.")
    else:
        yield Text("No metrics.jsonl beside the weights: no learning curve.")
    yield drawing("spikes_per_layer", "Mean spikes per layer.")
    yield drawing(
        "firing_times",
        "Mean firing time of every output neuron for every class; silence counts as T.",
    )
    yield drawing(
        "output_potentials",
        "Output potentials for the first test image, and the spikes of the whole "
        "network.",
    )
    yield drawing("confusion", "Confusion matrix.")
    yield from _classes(each)
    known = _known(images.name, network.num_steps)
    drawn["accuracy_by_step"] = plots.accuracy_by_step(
        by_step,
        decided,
        decision_step=test.decision_step,
        ceiling=_ceiling(known),
    )
    told = (
        "What is known if one stops at step t: the decision where an output has fired, "
        "elsewhere the highest output potential so far."
    )
    if known:
        told += (
            f" The ceiling is a plain CNN of {known['spec']} "
            f"({known['held_out_accuracy']:.2%} on held-out images)."
        )
    yield drawing("accuracy_by_step", told)
    yield from _urgencies(each, drawing, drawn)
    yield from _energy(each)


def _summary(
    test: ds.Report, network: ds.SpikingNetwork, params: dict
) -> Iterator[Block]:
    own = without_pooling(network, test.layer_spikes)
    rows = [
        ("strict accuracy", f"{test.accuracy:.2%}"),
        ("lenient accuracy (a tie counts)", f"{test.lenient_accuracy:.2%}"),
        ("ties", f"{test.tied:.2%}"),
        ("all outputs silent, decided by potentials", f"{test.silent:.2%}"),
        ("mean decision step", f"{test.decision_step:.1f} of {network.num_steps}"),
        ("mean spikes up to the decision", _number(test.spikes)),
        ("… without pooling neurons", _number(own)),
        ("input spikes up to it, apart", _number(test.layer_spikes[0])),
    ]
    if any(network.reference_neurons):
        what = f"{reference(network, params)} up to it, apart"
        rows.append((what, _number(test.reference_spikes)))
    rows.append(("dead neurons", f"{test.dead:.1%}"))
    yield Table((f"on the {test.images:,} test images", ""), rows)
    layers = zip(
        network.names,
        map(str, network.layers),
        map(_number, test.layer_spikes[1:]),
        (f"{dead:.1%}" for dead in test.layer_dead),
        strict=True,
    )
    yield Table(
        ("layer", "", "spikes up to the decision", "dead neurons"),
        [("input", "", _number(test.layer_spikes[0]), ""), *layers],
        names=2,
    )


def _classes(each: Network) -> Iterator[Block]:
    test, label = each.measured.test, each.paper("classes")
    yield Heading(4, f"{label}{'f' if label else 'F'}iring time and spikes by class")
    yield Text("Firing time: mean of the correct output neuron, silence counting as T.")
    header = ["class", "firing time", "spikes", "decision step"]
    rows = [
        [name, f"{at:.1f}", _number(spikes), f"{step:.1f}"]
        for name, at, spikes, step in zip(
            each.images.class_names,
            np.diag(test.firing_times),
            test.class_spikes,
            test.class_steps,
            strict=True,
        )
    ]
    if label:
        header += ["firing time, the paper", "spikes, the paper"]
        for row, at, spikes in zip(
            rows, published.FIRING_TIMES, published.SPIKES, strict=True
        ):
            row += [f"{at}", f"{spikes:,}"]
    yield Table(header, rows)


def _urgencies(each: Network, drawing, drawn: dict) -> Iterator[Block]:
    rows, own = each.measured.urgencies, urgency(each.network, each.params)
    yield Heading(4, "Urgency: deciding sooner with the same weights")
    yield Text(
        (
            "u mV a step into every output, of θ = 100 mV, ",
            Code("--urgency=u"),
            ". These are the test images: a u to be used is chosen on held-out "
            f"training images. The network's own is {own:g}.",
        )
    )
    yield Table(
        ("u (mV)", "accuracy", "decision step", "decided by potentials", "spikes"),
        [
            (
                f"{row.urgency:g}",
                f"{row.accuracy:.2%}",
                f"{row.decision_step:.1f}",
                f"{row.silent:.2%}",
                _number(row.spikes),
            )
            for row in rows
        ],
        names=0,
    )
    drawn["urgency"] = fronts.by_urgency(
        [row.urgency for row in rows],
        [row.accuracy for row in rows],
        [row.decision_step for row in rows],
        [row.silent for row in rows],
    )
    yield drawing("urgency", "The same, drawn.")


def _energy(each: Network) -> Iterator[Block]:
    network, test = each.network, each.measured.test
    shape = each.images.test_images.shape[1:]
    pulsed = energy.reference_operations(network, shape, test.layer_reference_spikes)
    additions = energy.synaptic_operations(network, shape, test.layer_spikes) + pulsed
    products = energy.multiply_accumulates(network, shape)
    yield Heading(4, "Estimated energy of a decision")
    yield Text(
        "Energies of operations in 45 nm (Horowitz, ISSCC 2014). In 32-bit floating "
        f"point an addition takes {1e12 * energy.ADDITION:.1f} pJ, a multiplication "
        f"{1e12 * energy.MULTIPLICATION:.1f} pJ; of whole numbers, of 8 bits with sums "
        f"of 32, {1e12 * energy.WHOLE_ADDITION:.1f} and "
        f"{1e12 * energy.WHOLE_MULTIPLICATION:.1f} pJ. Routing is left out."
    )
    per_product = energy.ADDITION + energy.MULTIPLICATION
    whole = energy.WHOLE_ADDITION + energy.WHOLE_MULTIPLICATION
    rows = [
        (
            "this network, up to the decision: additions",
            f"{additions:,.0f}",
            _joules(additions * energy.ADDITION),
            _joules(additions * energy.WHOLE_ADDITION),
        ),
        (
            "ReLU network of the same shape: multiplications with addition",
            f"{products:,}",
            _joules(products * per_product),
            _joules(products * whole),
        ),
    ]
    if pulsed:
        own = (
            f"{pulsed:,.0f}",
            *(
                _joules(pulsed * each)
                for each in (energy.ADDITION, energy.WHOLE_ADDITION)
            ),
        )
        rows.insert(1, ("… of these for reference spikes", *own))
    if additions:
        ratio = products / additions
        ratios = (1, per_product / energy.ADDITION, whole / energy.WHOLE_ADDITION)
        rows.append(("ratio", *(f"{ratio * each:,.0f}" for each in ratios)))
    titles = "", "operations an image", "energy, floating point", "energy, 8 bits"
    yield Table(titles, rows)
    yield from _bytes(each)


def _bytes(each: Network) -> Iterator[Block]:
    network, test = each.network, each.measured.test
    shape = each.images.test_images.shape[1:]
    moved = {
        "this network, up to the decision": energy.bytes_moved(
            network, shape, test.layer_spikes, test.layer_reference_spikes
        ),
        "the same shape with ReLU neurons": energy.relu_bytes_moved(network, shape),
    }
    yield Text(
        "Memory takes more. With weights of 8 bits and nothing cached, every addition "
        "reads a weight and reads and writes a potential of 16 bits, and a spike is an "
        "address of 32 bits, written and read; every multiplication reads a weight and "
        "an activation of 8 bits, and its sum stays in a register. A byte of 1 MiB on "
        f"the chip takes {1e12 * energy.BYTE:.1f} pJ."
    )
    rows = [
        (name, *(f"{n:,.0f}" for n in (*m, sum(m))), _joules(sum(m) * energy.BYTE))
        for name, m in moved.items()
    ]
    ours, others = (sum(m) for m in moved.values())
    if ours:
        ratio = f"{others / ours:,.1f}"
        rows.append(("ratio", "", "", "", ratio, ratio))
    titles = "bytes an image", "weights", "potentials", "spikes, activations", "all"
    yield Table((*titles, "energy"), rows)


def _joules(value: float) -> str:
    return f"{1e6 * value:.3g} µJ"


def _dead_neurons() -> Iterator[Block]:
    rules = {
        "relative": "relative, Eq. 4 (DS4NN)",
        "s4nn": "S4NN's",
        "fixed": "fixed (as Mostafa, Comsa et al.)",
    }
    rows = [
        (
            rules[runs.config.output_rule.name],
            runs.told(),
            f"{published.DEAD[runs.config.output_rule.name]:.1%}",
            f"{runs.mean('dead'):.1%}",
            runs.spread(),
            f"{runs.mean('spikes'):,.0f}",
        )
        for runs in reported("mnist")
        if "_target_" in runs.name
    ]
    if not rows:
        return
    yield Heading(3, "Table 3: dead neurons under three kinds of target")
    yield Text(
        "Neurons that no test image makes fire. All three were trained by us with the "
        "paper's surrogate (∂t/∂V → −1) and everything else alike."
    )
    yield Table(
        (
            "target",
            "run",
            "dead, the paper",
            "dead, ours",
            "accuracy (%)",
            "spikes",
        ),
        rows,
        names=2,
    )


def _known(dataset: str, num_steps: int) -> dict | None:
    """What `experiments.ceiling` found for as many steps, if it was asked."""
    path = _HERE / "results" / f"known-{_slug(dataset)}.json"
    if not path.exists():
        return None
    try:
        known = json.loads(path.read_text("utf-8"))
        fits = max(known["steps"]) == num_steps - 1
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what experiments.ceiling writes") from error
    return known if fits else None


def _ceiling(known: dict | None) -> tuple[list[int], list[float]] | None:
    """Its steps and accuracies, for a figure."""
    return known and (known["steps"], known["test_accuracy"])


def _slug(name: str) -> str:
    """For the name of a file."""
    return re.sub(r"\W+", "_", name).strip("_")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _last_line(path: Path) -> dict:
    return json.loads(path.read_text("utf-8").splitlines()[-1])
