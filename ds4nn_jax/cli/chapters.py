"""What the report shows of a data set and of each network: text, tables, figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

import ds4nn_jax as ds
from ds4nn_jax import data, plots
from ds4nn_jax.cli import figures, measures, page
from ds4nn_jax.cli.page import Block, Drawing, Heading, Listing, Table, Text
from ds4nn_jax.networks import energy

COMPARED = "", "structure", "accuracy (%)", "spikes", "without pooling", "step"
_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "Digits"}
_ENERGY = (
    "Energies of operations in 45 nm (Horowitz, ISSCC 2014). In 32-bit floating "
    f"point an addition takes {1e12 * energy.ADDITION:.1f} pJ, a multiplication "
    f"{1e12 * energy.MULTIPLICATION:.1f} pJ; of whole numbers, of 8 bits with sums "
    f"of 32, {1e12 * energy.WHOLE_ADDITION:.1f} and "
    f"{1e12 * energy.WHOLE_MULTIPLICATION:.1f} pJ. Routing is left out."
)
_MEMORY = (
    "Memory takes more. With weights of 8 bits and nothing cached, every addition "
    "reads a weight and reads and writes a potential of 16 bits, and a spike is an "
    "address of 32 bits, written and read; every multiplication reads a weight and "
    "an activation of 8 bits, and its sum stays in a register. A byte of 1 MiB on "
    f"the chip takes {1e12 * energy.BYTE:.1f} pJ."
)


class Trained(NamedTuple):
    """A network to report, and what is known of where it comes from.

    Attributes:
      name: short, for headings and figures.
      origin: where it comes from, in words.
      weights: the network, its parameters, the notes.
      data_dir: where its run found its data set, if that is known.
      history: a row for each epoch; empty where it is not known.
      flags: of the run, as a flagfile; empty where they are not known.
    """

    name: str
    origin: str
    weights: ds.Weights
    data_dir: str | None = None
    history: tuple[dict, ...] = ()
    flags: str = ""


class Network(NamedTuple):
    """A trained network, its data set, and what was measured on the test images."""

    trained: Trained
    images: data.Dataset
    measured: measures.Measured

    def row(self, name: str) -> tuple[str, ...]:
        """Of a table of the columns `COMPARED`."""
        network, test = self.trained.weights.network, self.measured.test
        return (
            name,
            network.spec,
            page.strong(f"{100 * test.accuracy:.2f}"),
            f"{test.spikes:,.0f}",
            f"{measures.without_pooling(network, test.layer_spikes):,.0f}",
            f"{test.decision_step:.1f}",
        )

    def point(self) -> figures.Point:
        """Among others in a figure of their costs."""
        test = self.measured.test
        costs = test.spikes, test.decision_step
        return figures.Point(self.trained.name, test.accuracy, *costs)


class Chapters:
    """The chapters of a report; the laboratory's, in `experiments`, know more."""

    description = (
        "Networks and runs, measured: a table and a figure of all, and a chapter for "
        "each, in report.html, which needs no other file."
    )
    lacking = ""  # what is said of networks that have reference neurons

    def label(self, network: Network, what: str) -> str:
        """What begins the caption of a figure or the title of a table."""
        return ""

    def ceiling(self, dataset: str, num_steps: int) -> tuple[Any, str]:
        """(steps, accuracies) of what could be known by each step, or None, and the
        sentence that tells of it."""
        return None, ""

    def by_class(self, network: Network) -> Mapping[str, Sequence[str]]:
        """More columns of the table of classes, by title."""
        return {}

    def title(self, dataset: str) -> str:
        return _TITLES.get(dataset, dataset)

    def of_dataset(self, dataset: str, networks: Sequence[Network]) -> Iterator[Block]:
        """All networks on a data set, side by side."""
        yield Heading(3, "Accuracies and their cost")
        yield Table(COMPARED, [n.row(n.trained.name) for n in networks], names=2)
        yield Drawing(
            figures.fronts(
                [network.point() for network in networks],
                title=f"{self.title(dataset)}: accuracy and its cost",
            ),
            "Accuracy against spikes and decision step; the grey line joins those "
            "that none beats in both.",
        )

    def of_network(self, entry: Network) -> Iterator[Block]:
        """All about one network."""
        trained, images, (test, by_step, decided, _) = entry
        network, params, notes = trained.weights
        drawn = figures.of_network(network, params, images, test)

        def drawing(name: str, caption: str) -> Drawing:
            return Drawing(drawn[name], self.label(entry, name) + caption)

        yield Heading(3, f"{trained.name}: {network.spec}")
        yield Text(f"{trained.origin} Data: {images.source}.")
        if network.urgency:
            urgency = measures.urgency(network, params)
            yield Text(
                f"It decides with an urgency of {urgency:g} mV a step{self.lacking}."
            )
        if network.pulses:
            counts = ", ".join(f"{n} of {p}" for p, n in network.pulse_counts.items())
            yield Text(f"It has reference neurons{self.lacking}: {counts}.")
        if trained.flags:
            yield Listing("Flags of the run", trained.flags)
        yield from _summary(test, network, params)
        if trained.history:
            epoch = notes.get("epoch")
            drawn["learning_curve"] = plots.learning_curve(
                trained.history, best_epoch=epoch if isinstance(epoch, int) else None
            )
            yield drawing("learning_curve", "Accuracy and cost while training.")
        else:
            yield Text("No metrics.jsonl beside the weights: no learning curve.")
        yield drawing("spikes_per_layer", "Mean spikes per layer.")
        yield drawing(
            "firing_times",
            "Mean firing time of every output neuron for every class; silence counts "
            "as T.",
        )
        yield drawing(
            "output_potentials",
            "Output potentials for the first test image, and the spikes of the whole "
            "network.",
        )
        yield drawing("confusion", "Confusion matrix.")
        yield from self._classes(entry)
        ceiling, sentence = self.ceiling(images.name, network.num_steps)
        yield Drawing(
            plots.accuracy_by_step(
                by_step, decided, decision_step=test.decision_step, ceiling=ceiling
            ),
            "What is known if one stops at step t: the decision where an output has "
            f"fired, elsewhere the highest output potential so far.{sentence}",
        )
        yield from _urgencies(entry)
        yield from _energy(entry)
        yield from _bytes(entry)

    def _classes(self, entry: Network) -> Iterator[Block]:
        test, label = entry.measured.test, self.label(entry, "classes")
        title = "firing time and spikes by class"
        yield Heading(4, label + title if label else title.capitalize())
        yield Text(
            "Firing time: mean of the correct output neuron, silence counting as T."
        )
        columns = {
            "class": entry.images.class_names,
            "firing time": [f"{time:.1f}" for time in np.diag(test.firing_times)],
            "spikes": [*map(_number, test.class_spikes)],
            "decision step": [f"{step:.1f}" for step in test.class_steps],
            **self.by_class(entry),
        }
        yield Table([*columns], [*zip(*columns.values(), strict=True)])


def _summary(
    test: ds.Report, network: ds.SpikingNetwork, params: dict
) -> Iterator[Block]:
    unpooled = measures.without_pooling(network, test.layer_spikes)
    rows = [
        ("strict accuracy", f"{test.accuracy:.2%}"),
        ("lenient accuracy (a tie counts)", f"{test.lenient_accuracy:.2%}"),
        ("ties", f"{test.tied:.2%}"),
        ("all outputs silent, decided by potentials", f"{test.silent:.2%}"),
        ("mean decision step", f"{test.decision_step:.1f} of {network.num_steps}"),
        ("mean spikes up to the decision", _number(test.spikes)),
        ("… without pooling neurons", _number(unpooled)),
        ("input spikes up to it, apart", _number(test.layer_spikes[0])),
    ]
    if any(network.reference_neurons):
        what = f"{measures.reference(network, params)} up to it, apart"
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


def _urgencies(entry: Network) -> Iterator[Block]:
    network, params, _ = entry.trained.weights
    yield Heading(4, "Urgency: deciding sooner with the same weights")
    yield Text(
        Markup(
            "u mV a step into every output, of θ = 100 mV, {}. These are the test "
            "images: a u to be used is chosen on held-out training images. The "
            "network's own is {:g}."
        ).format(page.code("--urgency=u"), measures.urgency(network, params))
    )
    rows = [
        (
            f"{urgency:g}",
            f"{report.accuracy:.2%}",
            f"{report.decision_step:.1f}",
            f"{report.silent:.2%}",
            _number(report.spikes),
        )
        for urgency, report in entry.measured.urgencies.items()
    ]
    titles = "u (mV)", "accuracy", "decision step", "decided by potentials", "spikes"
    yield Table(titles, rows, names=0)
    yield Drawing(figures.by_urgency(entry.measured.urgencies), "The same, drawn.")


def _energy(entry: Network) -> Iterator[Block]:
    network, test = entry.trained.weights.network, entry.measured.test
    shape = entry.images.test_images.shape[1:]
    pulses = energy.reference_operations(network, shape, test.layer_reference_spikes)
    additions = energy.synaptic_operations(network, shape, test.layer_spikes) + pulses
    products = energy.multiply_accumulates(network, shape)
    added = energy.ADDITION, energy.WHOLE_ADDITION
    multiplied = (
        energy.ADDITION + energy.MULTIPLICATION,
        energy.WHOLE_ADDITION + energy.WHOLE_MULTIPLICATION,
    )

    def row(name: str, count: float, costs: tuple[float, float]) -> tuple[str, ...]:
        return name, f"{count:,.0f}", *(_joules(count * cost) for cost in costs)

    rows = [row("this network, up to the decision: additions", additions, added)]
    if pulses:
        rows.append(row("… of these for reference spikes", pulses, added))
    name = "ReLU network of the same shape: multiplications with addition"
    rows.append(row(name, products, multiplied))
    if additions:
        factors = 1, multiplied[0] / added[0], multiplied[1] / added[1]
        ratios = (f"{products / additions * factor:,.0f}" for factor in factors)
        rows.append(("ratio", *ratios))
    yield Heading(4, "Estimated energy of a decision")
    yield Text(_ENERGY)
    titles = "", "operations an image", "energy, floating point", "energy, 8 bits"
    yield Table(titles, rows)


def _bytes(entry: Network) -> Iterator[Block]:
    network, test = entry.trained.weights.network, entry.measured.test
    shape = entry.images.test_images.shape[1:]
    moved = {
        "this network, up to the decision": energy.bytes_moved(
            network, shape, test.layer_spikes, test.layer_reference_spikes
        ),
        "the same shape with ReLU neurons": energy.relu_bytes_moved(network, shape),
    }
    rows = [
        (name, *(f"{n:,.0f}" for n in (*m, sum(m))), _joules(sum(m) * energy.BYTE))
        for name, m in moved.items()
    ]
    spiking, relu = map(sum, moved.values())
    if spiking:
        ratio = f"{relu / spiking:,.1f}"
        rows.append(("ratio", "", "", "", ratio, ratio))
    yield Text(_MEMORY)
    titles = "bytes an image", "weights", "potentials", "spikes, activations", "all"
    yield Table((*titles, "energy"), rows)


def _joules(value: float) -> str:
    return f"{1e6 * value:.3g} µJ"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
