"""`ds4nn report`: trained networks, measured, on one page."""

import argparse
import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.cli import figures, measures, page, progress
from ds4nn_jax.cli.chapters import Chapters, Network, Trained
from ds4nn_jax.networks import pretrained

_URGENCIES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)  # mV a step
_BAD = (ValueError, OSError, KeyError, TypeError)  # what reading a file can raise
_SOURCES = (
    " Without --run_dir of all runs in the folder runs; without any, of the networks "
    "that come with the library."
)
_INTRODUCTION = (
    "Every neuron fires at most once. A decision is the first output spike, ties going "
    "to the higher potential; accuracies of ours are strict: a tie counts only if its "
    "highest potential is the label's. Spikes are those of all layers up to the "
    "decision, pooling neurons included unless it says otherwise; input spikes and "
    "reference spikes are counted apart. Epochs were chosen on held-out training "
    "images where a run had any, and the test images used to report only."
)


def main(
    argv: Sequence[str] | None = None,
    command: str = "ds4nn report",
    chapters: Chapters | None = None,
) -> None:
    """Writes the page.

    Args:
      argv: without the name of the program.
      command: what was typed, for usage and messages.
      chapters: what the page has of each network and data set.

    Raises:
      SystemExit: after --help; with a message if nothing can be reported, or if the
        page had to leave something out, which it then says in its place.
    """
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
    try:
        progress.check_platform()
        path, faults = _report(args, chapters)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{command}: {error}") from error
    if faults:
        raise SystemExit(f"report in {path}, without: {'; '.join(faults)}")
    print(f"report in {path}")


def _report(args: argparse.Namespace, chapters: Chapters) -> tuple[Path, list[str]]:
    """Where the page is, and what had to be left out."""
    sections: dict[str, list[page.Block]] = {}  # by data set
    networks: dict[str, list[Network]] = {}
    missing: dict[str, list[str]] = {}  # what each fault leaves out

    def leave_out(dataset: str, name: str, error: Exception) -> None:
        reason = _line(error)
        missing.setdefault(reason, []).append(name)
        notice = page.Text(f"{name}: {reason}", missing=True)
        sections.setdefault(dataset, []).append(notice)

    def faults() -> list[str]:
        return [f"{', '.join(names)}: {reason}" for reason, names in missing.items()]

    readable = []
    load = functools.cache(data.load)  # several networks may be of one data set
    for name, read in _sources(args.run_dir):  # all, before the first is measured
        dataset = "not read"
        try:
            trained = read()
            dataset = _dataset(args, trained)
            images = _images(args, trained, dataset, load)
            readable.append((name, dataset, trained, images))
        except _BAD as error:
            leave_out(dataset, name, error)
    for fault in faults() if readable else ():
        print(f"without {fault}", flush=True)
    for name, dataset, trained, images in readable:
        try:
            print(f"{trained.name}: {images.source}", flush=True)
            network = Network(trained, images, _measured(trained, images))
            print(f"{trained.name}: drawing …", flush=True)
            with figures.style():
                blocks = [*chapters.of_network(network)]
        except _BAD as error:
            leave_out(dataset, name, error)
            continue
        sections.setdefault(dataset, []).extend(blocks)
        networks.setdefault(dataset, []).append(network)
    if not networks:
        raise ValueError("nothing to report: " + "; ".join(faults()))
    path = Path(args.out_dir) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    print("writing the page …", flush=True)
    for dataset, shown in networks.items():
        try:
            with figures.style():
                sections[dataset][:0] = chapters.of_dataset(dataset, shown)
        except _BAD as error:
            leave_out(dataset, "comparison of networks", error)
    names = sorted(sections, key=lambda dataset: dataset not in networks)
    _write(path, chapters, {dataset: sections[dataset] for dataset in names})
    return path, faults()


def _write(
    path: Path, chapters: Chapters, sections: dict[str, list[page.Block]]
) -> None:
    made = (
        f"Made on {datetime.date.today()} with ds4nn_jax {ds.__version__} and jax "
        f"{jax.__version__}."
    )
    blocks: list[page.Block] = [page.Text(made), page.Text(_INTRODUCTION)]
    with figures.style():
        for dataset, section in sections.items():
            blocks += page.Heading(2, chapters.title(dataset)), *section
        page.write_html("ds4nn_jax: report", blocks, path)


def _sources(
    names: Sequence[str] | None,
) -> Iterator[tuple[str, Callable[[], Trained]]]:
    """What to call each network if it cannot be read, and how to read it."""
    runs = sorted(str(file.parent) for file in Path("runs").glob("*/best.safetensors"))
    # Networks on MNIST first, as in the paper.
    shipped = sorted(pretrained.names(), key=lambda name: (name[:5] != "mnist", name))
    for name in names or runs or shipped:
        if name in shipped and not Path(name).exists():
            yield f"the library's network {name}", functools.partial(_shipped, name)
        else:
            yield name, functools.partial(_run, Path(name))


def _shipped(name: str) -> Trained:
    weights = pretrained.load(name)
    card = weights.notes
    origin = f"Weights of the library, seed {card['seed']}, epoch {card['epoch']}."
    return Trained(f"{name}, shipped", origin, weights)


def _run(path: Path) -> Trained:
    """A run's folder, or a file of weights alone."""
    folder = path if path.is_dir() else None
    weights = ds.load_weights(folder / "best.safetensors" if folder else path)
    notes = weights.notes if isinstance(weights.notes, dict) else {}
    made = [f"{key} {notes[key]}" for key in ("seed", "epoch") if key in notes]
    origin = f"{', '.join([f'From {path}', *made])}."
    weights = weights._replace(notes=notes)
    if folder is None:
        return Trained(path.stem, origin, weights)
    flags = _text(folder / "flags.cfg")
    data_dir = re.search(r"^--data_dir=(.+)$", flags, re.MULTILINE)
    return Trained(
        folder.resolve().name,
        origin,
        weights,
        data_dir=data_dir and data_dir[1],
        history=_history(folder / "metrics.jsonl"),
        flags=flags,
    )


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _history(path: Path) -> tuple[dict, ...]:
    """The epochs' rows."""
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        try:
            row = json.loads(line).items()
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: no row of metrics") from error
        rows.append({k: v for k, v in row if isinstance(v, int | float)})
    return tuple(row for row in rows if "epoch" in row)


def _dataset(args: argparse.Namespace, trained: Trained) -> str:
    name = args.dataset or trained.weights.notes.get("dataset")
    if not isinstance(name, str):
        raise ValueError("the weights do not name their data set: --dataset=NAME does")
    return name


def _images(
    args: argparse.Namespace,
    trained: Trained,
    name: str,
    load: Callable[..., data.Dataset],
) -> data.Dataset:
    print(f"{trained.name}: reading {name} …", flush=True)
    folder: str | Path | None = trained.data_dir
    if args.data_dir:
        home = Path(args.data_dir).expanduser()
        one = home.name == name or args.run_dir and len(args.run_dir) == 1
        # Of several data sets each needs its own folder.
        folder = home if one and not (home / name).is_dir() else home / name
    try:
        bare = name == "digits" or not trained.data_dir and data.local_path(name)
        return load(name, None if bare else folder)
    except data.DataNotFoundError as error:
        where = f" in {folder}" if folder else ""
        raise FileNotFoundError(
            f"no data set {name!r} found{where}: say --data_dir=DIR, with a folder "
            f"{name} in it"
        ) from error


def _measured(trained: Trained, images: data.Dataset) -> measures.Measured:
    network, params, _ = trained.weights
    with progress.counting(trained.name, len(images.test_labels)) as on_images:
        return measures.measure(
            network,
            params,
            images.test_images,
            images.test_labels,
            urgencies=sorted({*_URGENCIES, measures.urgency(network, params)}),
            on_batch=on_images,
        )


def _line(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__
