"""The paper's tables and figures, of trained networks, on one page.

Rows of other reported runs come from `results`, a metrics.jsonl for each flagfile and
seed.
"""

import argparse
import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.cli import progress
from ds4nn_jax.networks import pretrained

_URGENCIES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)  # mV a step
_RUNS = "*/best.safetensors"
_BAD = (ValueError, OSError, KeyError, TypeError)  # what reading a file can raise


_DESCRIPTION = """\
The paper's tables and figures, of trained networks, on one page: report.html, which
needs no other file. Without --run_dir of all runs in the folder runs; without any, of
the networks that come with the library.
"""


class Trained(NamedTuple):
    """A network to report, and what is known of where it comes from.

    Attributes:
      name: short.
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


def main(
    argv: Sequence[str] | None = None, command: str = "experiments.report"
) -> None:
    """Writes the page.

    Args:
      argv: without the name of the program.
      command: what was typed, for usage and messages.

    Raises:
      SystemExit: after --help; with a message if nothing can be reported, or if the
        page had to leave something out, which it then says in its place.
    """
    parser = argparse.ArgumentParser(
        prog=command,
        description=_DESCRIPTION,
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
    asked = parser.parse_args(argv)
    try:
        progress.check_platform()
        with progress.naming_missing(command):
            page, missing = _report(asked)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{command}: {error}") from error
    if missing:
        raise SystemExit(f"report in {page}, without: {'; '.join(missing)}")
    print(f"report in {page}")


def _report(asked: argparse.Namespace) -> tuple[Path, list[str]]:
    """Where the page is, and what had to be left out."""
    from ds4nn_jax.cli import figures, page
    from experiments import chapters

    missing: dict[str, list[str]] = {}  # what each fault leaves out
    blocks: dict[str, list] = {}  # by data set
    shown: dict[str, list] = {}
    found: list[tuple[str, Trained, str, data.Dataset]] = []
    load = functools.cache(data.load)  # several networks may be of one data set

    def leave_out(dataset: str, what: str, error: Exception) -> None:
        missing.setdefault(_line(error), []).append(what)
        told = f"{what}: {_line(error)}"
        blocks.setdefault(dataset, []).append(page.Text(told, missing=True))

    for read, what in _sources(asked):  # all of them before the first is measured
        dataset = "not read"
        try:
            trained = read()
            dataset = _dataset(asked, trained)
            images = _images(asked, trained, dataset, load)
            found.append((what, trained, dataset, images))
        except _BAD as error:
            leave_out(dataset, what, error)
    for fault in _faults(missing) if found else ():
        print(f"without {fault}", flush=True)
    for what, trained, dataset, images in found:
        try:
            network, drawn = _drawn(trained, images)
        except _BAD as error:
            leave_out(dataset, what, error)
            continue
        blocks.setdefault(dataset, []).extend(drawn)
        shown.setdefault(dataset, []).append(network)
    if not shown:
        raise ValueError("nothing to report: " + "; ".join(_faults(missing)))
    out = Path(asked.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    every: list = [page.Text(_MADE.format(datetime.date.today(), ds, jax))]
    every.append(page.Text(_INTRODUCTION))
    for dataset, own in sorted(blocks.items(), key=lambda pair: pair[0] not in shown):
        every.append(page.Heading(2, chapters.TITLES.get(dataset, dataset)))
        if dataset in shown:
            try:
                with figures.style():
                    every += chapters.of_dataset(dataset, shown[dataset])
            except _BAD as error:
                told = f"reported runs: {_line(error)}"
                missing.setdefault(_line(error), []).append("reported runs")
                every.append(page.Text(told, missing=True))
        every += own
    print("writing the page …", flush=True)
    with figures.style():
        page.write_html("ds4nn_jax: report", every, out / "report.html")
    return out / "report.html", _faults(missing)


def _drawn(trained: Trained, images: data.Dataset) -> tuple:
    """A network, measured, and what the page shows of it."""
    from ds4nn_jax.cli import figures
    from experiments import chapters

    print(f"{trained.name}: {images.source}", flush=True)
    network = chapters.Network(
        name=trained.name,
        origin=trained.origin,
        network=trained.weights.network,
        params=trained.weights.params,
        images=images,
        measured=_measure(trained, images),
        history=trained.history,
        best_epoch=_epoch(trained.weights.notes),
        flags=trained.flags,
    )
    print(f"{trained.name}: drawing …", flush=True)
    with figures.style():
        return network, list(chapters.of_network(network))


def _faults(missing: dict[str, list[str]]) -> list[str]:
    """Each fault once, with all that it leaves out."""
    return [f"{', '.join(dict.fromkeys(what))}: {why}" for why, what in missing.items()]


_MADE = "Made on {0} with ds4nn_jax {1.__version__} and jax {2.__version__}."
_INTRODUCTION = (
    "Every neuron fires at most once. A decision is the first output spike, ties going "
    "to the higher potential; accuracies of ours are strict: a tie counts only if its "
    "highest potential is the label's. Spikes are those of all layers up to the "
    "decision, pooling neurons included unless it says otherwise; input spikes and "
    "reference spikes are counted apart. Epochs were chosen on held-out training "
    "images where a run had any, and the test images used to report only."
)


def _sources(
    asked: argparse.Namespace,
) -> Iterator[tuple[Callable[[], Trained], str]]:
    """How to read each network, and what to call it if it cannot be read."""
    runs = asked.run_dir or sorted(str(f.parent) for f in Path("runs").glob(_RUNS))
    for name in runs:
        if name in pretrained.names() and not Path(name).exists():
            yield functools.partial(_shipped, name), f"the library's network {name}"
        else:
            yield functools.partial(_run, Path(name)), name
    if not runs:
        # Those of MNIST first, as in the paper.
        for name in sorted(pretrained.names(), key=lambda n: (n[:5] != "mnist", n)):
            yield functools.partial(_shipped, name), f"the library's network {name}"


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
    told = [f"{key} {notes[key]}" for key in ("seed", "epoch") if key in notes]
    origin = f"{', '.join([f'From {path}', *told])}."
    weights = weights._replace(notes=notes)
    if folder is None:
        return Trained(path.stem, origin, weights)
    flags = _text(folder / "flags.cfg")
    found = re.search(r"^--data_dir=(.+)$", flags, re.MULTILINE)
    return Trained(
        folder.resolve().name,
        origin,
        weights,
        data_dir=found and found[1],
        history=_history(folder / "metrics.jsonl"),
        flags=flags,
    )


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _history(path: Path) -> tuple[dict, ...]:
    """The epochs' rows.

    Raises:
      ValueError: a line is not an object of JSON.
    """
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        try:
            row = json.loads(line).items()
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: no row of metrics") from error
        rows.append({k: v for k, v in row if isinstance(v, int | float)})
    return tuple(row for row in rows if "epoch" in row)


def _dataset(asked: argparse.Namespace, trained: Trained) -> str:
    name = asked.dataset or trained.weights.notes.get("dataset")
    if not isinstance(name, str):
        raise ValueError("the weights do not name their data set: --dataset=NAME does")
    return name


def _images(
    asked: argparse.Namespace,
    trained: Trained,
    name: str,
    load: Callable[..., data.Dataset],
) -> data.Dataset:
    print(f"{trained.name}: reading {name} …", flush=True)
    folder = trained.data_dir
    if asked.data_dir:
        home = Path(asked.data_dir).expanduser()
        one = home.name == name or asked.run_dir and len(asked.run_dir) == 1
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


def _measure(trained: Trained, images: data.Dataset):
    from ds4nn_jax.cli import measures

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


def _epoch(notes: dict) -> int | None:
    epoch = notes.get("epoch")
    return epoch if isinstance(epoch, int) else None


def _line(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    progress.program("experiments.report", main)
