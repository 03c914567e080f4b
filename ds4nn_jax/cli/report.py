"""`ds4nn report`: trained networks, measured, on one page of `page.html`."""

import argparse
import base64
import datetime
import functools
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jinja2
from matplotlib.figure import Figure

import ds4nn_jax as ds
from ds4nn_jax import _checks, data, plots
from ds4nn_jax._files import write_atomically
from ds4nn_jax.cli import figures, measures, progress
from ds4nn_jax.networks import energy, pretrained
from ds4nn_jax.networks.network import check_params

_URGENCIES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)  # mV a step
_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "Digits"}
_DESCRIPTION = (
    "Tables and figures of networks, measured on their test images: one page, "
    "report.html, which needs no other file. Without --run_dir of all runs in the "
    "folder runs; without any, of the networks that come with the library."
)


class Network(NamedTuple):
    """A network to report: its origin in words, its history a row for each epoch, its
    flags as a flagfile; the latter two are empty where they are not known."""

    name: str
    origin: str
    weights: ds.Weights
    dataset: str
    images: data.Dataset
    history: Sequence[dict] = ()
    flags: str = ""


class Part(NamedTuple):
    """A table of networks with `text` above, `notes` and a figure from `svg` below it;
    numbers stand in all columns but the first `names`."""

    title: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    text: str = ""
    notes: Sequence[str] = ()
    figure: str = ""
    caption: str = ""


class Chapters:
    """What the page has of each data set; the laboratory, `experiments`, has more."""

    def additions(self, dataset: str, network: ds.SpikingNetwork) -> dict[str, Any]:
        """Not measured here: "labels" that begin captions and titles, by what they are
        of; "columns" of the table of classes, by title; "ceiling", what could be known
        by each step, as in `experiments/results/known-mnist.json`, or nothing."""
        return {"labels": {}, "columns": {}, "ceiling": {}}

    def compare(
        self,
        dataset: str,
        networks: list[ds.SpikingNetwork],
        points: list[figures.Point],
    ) -> list[Part]:
        """All networks on a data set, side by side."""
        caption = (
            "Accuracy against spikes and decision step; the grey line joins those that "
            "none beats in both."
        )
        rows = [row(p.name, f"{100 * p.accuracy:.2f}", p) for p in points]
        return [comparison(dataset, rows, points, caption=caption)]


def comparison(
    dataset: str,
    rows: Sequence[Sequence[str]],
    points: Sequence[figures.Point],
    *,
    label: str = "",
    notes: Sequence[str] = (),
    caption: str,
    ceiling: Mapping[str, Any] | None = None,
) -> Part:
    """A table with a `row` for each network, and a figure of the points."""
    heading = f"{_TITLES.get(dataset, dataset)}: accuracy and its cost"
    return Part(
        f"{label}Accuracies and their cost",
        ("", "structure", "accuracy (%)", "spikes", "without pooling", "step"),
        rows,
        names=2,
        notes=notes,
        figure=svg(figures.fronts(points, title=heading, ceiling=_curve(ceiling))),
        caption=caption,
    )


def row(name: str, percent: str, point: figures.Point) -> tuple[str, ...]:
    costs = (point.spikes, 0), (point.unpooled, 0), (point.decision_step, 1)
    numbers = ("" if cost is None else f"{cost:,.{n}f}" for cost, n in costs)
    return name, point.structure, percent, *numbers


def _curve(ceiling: Mapping[str, Any] | None) -> tuple | None:
    return (ceiling["steps"], ceiling["test_accuracy"]) if ceiling else None


def svg(figure: Figure) -> str:
    written = io.BytesIO()
    figure.savefig(written, format="svg")
    return base64.b64encode(written.getvalue()).decode()


def main(
    argv: Sequence[str] | None = None,
    command: str = "ds4nn report",
    chapters: Chapters | None = None,
) -> None:
    """Writes the page. Exits with a message for what cannot be reported."""
    chapters = chapters or Chapters()
    parser = argparse.ArgumentParser(prog=command, description=_DESCRIPTION)
    parser.add_argument(
        "--run_dir",
        action="append",
        help="out_dir of a run, a .safetensors file, or the name of a network of the "
        "library; may be given several times",
    )
    parser.add_argument(
        "--dataset", help="of weights that do not name theirs; overrides those that do"
    )
    parser.add_argument(
        "--data_dir",
        help="folder with the data set, or with a folder for each; else that of the "
        "run, or the usual places",
    )
    parser.add_argument("--out_dir", default="runs/report", help="where the page goes")
    args = parser.parse_args(argv)
    path = Path(args.out_dir) / "report.html"
    try:
        progress.check_platform()
        load = functools.cache(data.load)  # several networks may be of one data set
        networks = [_read(source, args, load) for source in _sources(args.run_dir)]
        path.parent.mkdir(parents=True, exist_ok=True)
        with figures.style():
            page = _page(networks, chapters)
        write_atomically(path, page.encode(errors="backslashreplace"))
    except (ValueError, OSError) as error:
        raise SystemExit(f"{command}: {error}") from error
    print(f"report in {path}")


def _sources(names: Sequence[str] | None) -> Sequence[str]:
    runs = sorted(str(file.parent) for file in Path("runs").glob("*/best.safetensors"))
    # Networks on MNIST first, as in the paper.
    shipped = sorted(pretrained.names(), key=lambda name: (name[:5] != "mnist", name))
    return names or runs or shipped


def _read(
    source: str, args: argparse.Namespace, load: Callable[..., data.Dataset]
) -> Network:
    """A network of the library, a run's folder, or a file of weights alone."""
    path = Path(source)
    if source in pretrained.names() and not path.exists():
        name, origin = f"{source}, shipped", "Weights of the library"
        weights = pretrained.load(source)
    elif path.is_dir():
        name, origin = path.resolve().name, f"From {path}"
        weights = ds.load_weights(path / "best.safetensors")
    else:
        name, origin = path.stem, f"From {path}"
        weights = ds.load_weights(path)
    notes = weights.notes
    made = [f"{key} {notes[key]}" for key in ("seed", "epoch") if key in notes]
    dataset = args.dataset or notes.get("dataset")
    if not isinstance(dataset, str):
        raise ValueError(f"{source} does not name its data set: --dataset=NAME does")
    flags, metrics = _text(path / "flags.cfg"), path / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in _text(metrics).splitlines()]
        history = [row for row in rows if row.get("epoch") is not None]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{metrics} has a line that is no row of metrics") from error
    print(f"{name}: reading {dataset} …", flush=True)
    match = re.search(r"^--data_dir=(.+)$", flags, re.MULTILINE)
    folder = match and match[1]
    alone = dataset == "digits" or not folder and data.local_path(dataset)
    images = load(dataset, None if alone else args.data_dir or folder)
    print(f"{name}: {images.source}", flush=True)
    structure, params, _ = weights
    test = images.test_images, images.test_labels
    check_params(structure, params, _checks.pairs(*test, structure.num_classes)[0])
    origin = ", ".join([origin, *made]) + "."
    return Network(name, origin, weights, dataset, images, history, flags)


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _page(networks: Sequence[Network], chapters: Chapters) -> str:
    """The page: of each data set what compares its networks, then each of them."""
    sections: dict[str, list[dict]] = {}
    points: dict[str, list[figures.Point]] = {}
    for network in networks:
        structure, params, _ = network.weights
        arrays = network.images.test_images, network.images.test_labels
        urgencies = sorted({*_URGENCIES, measures.urgency(structure, params)})
        with progress.counting(network.name, len(arrays[1])) as on_images:
            measured = measures.measure(
                structure, params, *arrays, urgencies=urgencies, on_batch=on_images
            )
        print(f"{network.name}: drawing …", flush=True)
        chapter = _chapter(network, measured, chapters)
        sections.setdefault(network.dataset, []).append(chapter)
        points.setdefault(network.dataset, []).append(_point(network, measured))
    datasets = []
    for dataset, section in sections.items():
        structures = [chapter["of"].weights.network for chapter in section]
        parts = chapters.compare(dataset, structures, points[dataset])
        datasets.append((_TITLES.get(dataset, dataset), parts, section))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = Path(__file__).with_name("page.html").read_text("utf-8")
    return environment.from_string(template).render(
        datasets=datasets,
        day=datetime.date.today(),
        version=ds.__version__,
        jax_version=jax.__version__,
        energy=energy,
        measures=measures,
    )


def _chapter(
    network: Network, measured: measures.Measured, chapters: Chapters
) -> dict[str, Any]:
    """All about one network, for the template."""
    structure, params, notes = network.weights
    additions = chapters.additions(network.images.name, structure)
    drawn = figures.of_network(structure, params, network.images, measured.test)
    drawn["accuracy_by_step"] = plots.accuracy_by_step(
        measured.accuracy_by_step,
        measured.decided_by_step,
        decision_step=measured.test.decision_step,
        ceiling=_curve(additions["ceiling"]),
    )
    if network.history:
        epoch = notes.get("epoch")
        drawn["learning_curve"] = plots.learning_curve(
            network.history, best_epoch=epoch if isinstance(epoch, int) else None
        )
    images = {name: svg(figure) for name, figure in drawn.items()}
    return {"of": network, "measured": measured, "figures": images, **additions}


def _point(network: Network, measured: measures.Measured) -> figures.Point:
    """Among others in a comparison."""
    structure, test = network.weights.network, measured.test
    return figures.Point(
        network.name,
        structure.spec,
        test.accuracy,
        test.spikes,
        test.decision_step,
        measures.without_pooling(structure, test.layer_spikes),
    )
