"""`ds4nn report`: trained networks, measured, on one page of `page.html`."""

import argparse
import base64
import collections
import contextlib
import datetime
import functools
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

import ds4nn_jax as ds
from ds4nn_jax import data, plots
from ds4nn_jax._files import write_atomically
from ds4nn_jax.cli import figures, measures, progress
from ds4nn_jax.networks import energy, pretrained

_URGENCIES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)  # mV a step
_BAD = (ValueError, OSError, KeyError, TypeError, AttributeError)  # files' contents
_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "Digits"}
_SOURCES = (
    " Without --run_dir of all runs in the folder runs; without any, of the networks "
    "that come with the library."
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

    description = (
        "Networks and runs, measured: a table and a figure of all, and a chapter for "
        "each, in report.html, which needs no other file."
    )
    lacking = ""  # what is said of networks that have reference neurons

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
        rows = [row(p.name, strong(f"{100 * p.accuracy:.2f}"), p) for p in points]
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
        f"{label}{'a' if label else 'A'}ccuracies and their cost",
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


def strong(text: str) -> Markup:
    return Markup("<strong>{}</strong>").format(text)


def main(
    argv: Sequence[str] | None = None,
    command: str = "ds4nn report",
    chapters: Chapters | None = None,
) -> None:
    """Writes the page. Exits with a message if nothing can be reported, or if the page
    had to leave something out, which it then says in its place."""
    chapters = chapters or Chapters()
    parser = argparse.ArgumentParser(
        prog=command, description=chapters.description + _SOURCES
    )
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
        with figures.style():
            faults = _report(args, chapters, path)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{command}: {error}") from error
    if faults:
        raise SystemExit(f"report in {path}, without: {faults}")
    print(f"report in {path}")


def _report(args: argparse.Namespace, chapters: Chapters, path: Path) -> str:
    """Writes the page; what had to be left out."""
    # By data set: chapters and faults. By reason: names.
    sections: dict[str, list] = collections.defaultdict(list)
    missing: dict[str, list[str]] = collections.defaultdict(list)

    def faults() -> str:
        return "; ".join(f"{', '.join(names)}: {why}" for why, names in missing.items())

    @contextlib.contextmanager
    def leaving_out(dataset: str, name: str) -> Iterator[None]:
        try:
            yield
        except _BAD as error:
            missing[_line(error)].append(name)
            sections[dataset].append(f"{name}: {_line(error)}")

    networks = []
    load = functools.cache(data.load)  # several networks may be of one data set
    for name in _sources(args.run_dir):  # all, before the first is measured
        with leaving_out("not read", name):
            networks.append(_read(name, args, load))
    if networks and missing:
        print(f"without {faults()}", flush=True)
    points: dict[str, list[figures.Point]] = collections.defaultdict(list)
    for network in networks:
        with leaving_out(network.dataset, network.name):
            print(f"{network.name}: {network.images.source}", flush=True)
            measured = _measured(network)
            print(f"{network.name}: drawing …", flush=True)
            chapter = _chapter(network, measured, chapters)
            sections[network.dataset].append(chapter)
            points[network.dataset].append(_point(network, measured))
    if not points:
        raise ValueError(f"nothing to report: {faults()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    print("writing the page …", flush=True)
    parts = {}
    for dataset, compared in points.items():
        of_it = [each.weights.network for each in networks if each.dataset == dataset]
        with leaving_out(dataset, "comparison of networks"):
            parts[dataset] = chapters.compare(dataset, of_it, compared)
    datasets = [
        (_TITLES.get(dataset, dataset), parts.get(dataset, ()), sections[dataset])
        for dataset in sorted(sections, key=lambda dataset: dataset not in points)
    ]
    _write(path, datasets, chapters.lacking)
    return faults()


def _write(path: Path, datasets: list[tuple], lacking: str) -> None:
    options: dict[str, Any] = dict(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment = jinja2.Environment(**options)
    template = Path(__file__).with_name("page.html").read_text("utf-8")
    text = environment.from_string(template).render(
        datasets=datasets,
        lacking=lacking,
        day=datetime.date.today(),
        version=ds.__version__,
        jax_version=jax.__version__,
        energy=energy,
        measures=measures,
    )
    write_atomically(path, text.encode(errors="backslashreplace"))


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
        raise ValueError("the weights do not name their data set: --dataset=NAME does")
    flags, metrics = _text(path / "flags.cfg"), path / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in _text(metrics).splitlines()]
        history = [row for row in rows if row.get("epoch") is not None]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{metrics} has a line that is no row of metrics") from error
    print(f"{name}: reading {dataset} …", flush=True)
    folder = re.search(r"^--data_dir=(.+)$", flags, re.MULTILINE)
    images = _images(args, dataset, folder and folder[1], load)
    origin = ", ".join([origin, *made]) + "."
    return Network(name, origin, weights, dataset, images, history, flags)


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _images(
    args: argparse.Namespace,
    name: str,
    folder: str | None,
    load: Callable[..., data.Dataset],
) -> data.Dataset:
    """The data set, from the run's folder if the arguments name none."""
    bare = name == "digits" or not folder and data.local_path(name)
    if args.data_dir:
        home = Path(args.data_dir).expanduser()
        one = home.name == name or args.run_dir and len(args.run_dir) == 1
        # Of several data sets each needs its own folder.
        folder = str(home if one and not (home / name).is_dir() else home / name)
    try:
        return load(name, None if bare else folder)
    except data.DataNotFoundError as error:
        where = f" in {folder}" if folder else ""
        raise FileNotFoundError(
            f"no data set {name!r} found{where}: say --data_dir=DIR, with a folder "
            f"{name} in it"
        ) from error


def _measured(network: Network) -> measures.Measured:
    structure, params, _ = network.weights
    images = network.images.test_images, network.images.test_labels
    urgencies = sorted({*_URGENCIES, measures.urgency(structure, params)})
    with progress.counting(network.name, len(images[1])) as on_images:
        return measures.measure(
            structure, params, *images, urgencies=urgencies, on_batch=on_images
        )


def _chapter(
    network: Network, measured: measures.Measured, chapters: Chapters
) -> dict[str, Any]:
    """All about one network, for the template."""
    structure, params, notes = network.weights
    additions = chapters.additions(network.images.name, structure)
    drawn = figures.of_network(structure, params, network.images, measured.test)
    drawn["by_urgency"] = figures.by_urgency(measured.urgencies)
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


def _line(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__
