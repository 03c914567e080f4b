"""`ds4nn predict`: what is in a picture, and when that was clear."""

import argparse
import contextlib
import functools
import importlib
import io
import json
import math
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.cli import measures, progress
from ds4nn_jax.networks import pretrained
from ds4nn_jax.networks.network import check_params
from ds4nn_jax.networks.weights import write_atomically

_AT_A_TIME = 64  # pictures
_AT_ONCE = 2**25  # spike times of all layers together
_PATIENCE = 2.0  # seconds without a word


class Model(NamedTuple):
    """A network with what is noted about its images."""

    network: ds.SpikingNetwork
    params: dict
    shape: tuple[int, int, int]
    names: tuple[str, ...]
    pictures: data.Pictures | None  # None: not noted
    dataset: object  # a name, as far as it is noted


# What older weights files, which name their data set only, do not note.
_PICTURES = {
    "mnist": data.Pictures("ink", "dark", (0.041, 0.255)),
    "fashion_mnist": data.Pictures("whole", "dark", (0.013, 0.699)),
}
_UNLIKE = 1.25  # times as light, or as dark, as what was learned


class Refused(ValueError):
    """Why nothing, or one picture, cannot be answered."""


def add_parser(commands: Any) -> None:
    """Adds `predict` to the subparsers; `main` does what it parsed."""
    parser = commands.add_parser("predict", help="classify pictures")
    add = parser.add_argument
    add("images", nargs="+", help="files that Pillow reads")
    add("--weights", default="mnist", help="a shipped network, or a .safetensors file")
    add(
        "--urgency",
        type=float,
        help="mV a step into the outputs, of θ = 100 mV; the network's own",
    )
    add(
        "--invert",
        action=argparse.BooleanOptionalAction,
        help="dark and light change places; if the ground is not as it was in training",
    )
    add("--top", type=_positive, metavar="N", help="show the N best classes")
    add("--json", action="store_true", help="one JSON object a line")
    add("--figure", type=Path, metavar="FOLDER", help="draw what the network did")


def main(asked: argparse.Namespace) -> None:
    """Answers the pictures that were asked about.

    Raises:
      SystemExit: with a message if there is no network to ask, or no place for figures;
        with status 1 if some pictures could not be answered.
    """
    try:
        progress.check_platform()
        model = _model(asked.weights, asked.urgency)
        _need("PIL", "pillow", "pictures")
        if asked.figure is not None:
            _need("matplotlib", "matplotlib", "figures")
            asked.figure.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:  # also settings that stop matplotlib
        raise SystemExit(f"ds4nn predict: {_printable(error)}") from error
    try:
        failed = _answer(asked, model)
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        failed = True
    if failed:
        raise SystemExit(1)


def _answer(asked: argparse.Namespace, model: Model) -> bool:
    """Prints everything; whether a picture failed."""
    size = min(_AT_A_TIME, _fits_at_once(model), len(asked.images))
    failed = False
    for start in range(0, len(asked.images), size):
        paths = asked.images[start : start + size]
        read = [_read(path, model, asked.invert) for path in paths]
        seen = [each[0] for each in read if not isinstance(each, Refused)]
        answers = iter(_asked_of(model, seen, size))
        for number, (path, each) in enumerate(zip(paths, read, strict=True), start):
            try:
                if isinstance(each, Refused):
                    raise each
                image, remarks = each
                answer = next(answers)
                remarks = [*remarks, *_unlike(model, image)]
                if asked.figure is not None:
                    figure = _figure_path(asked, number)
                    with _told("drawing"), _style():
                        _draw(figure, model, image, answer)
                    remarks = [*remarks, f"drawn in {figure}"]
                _show(asked, model, path, answer, remarks)
            except BrokenPipeError:
                raise
            except (Refused, OSError) as error:
                failed = True
                _fail(path, error, asked.json)
    return failed


def _model(weights: str, urgency: float | None) -> Model:
    """The network that was asked for, checked as far as a picture could tell.

    Raises:
      Refused: no such network, or one that cannot be asked about pictures.
    """
    try:
        if weights not in pretrained.names() and not Path(weights).exists():
            shipped = ", ".join(pretrained.names())
            raise Refused(f"no file {weights}, and no shipped network: {shipped}")
        network, params, notes = pretrained.find(weights)
        network = measures.urged(network, params, urgency)
        notes = notes if isinstance(notes, dict) else {}
        shape = _shape(notes.get("input_shape"), weights)
        blank = np.broadcast_to(np.uint8(0), (1, *shape))
        check_params(network, params, blank)
        jax.eval_shape(functools.partial(_run, network), params, blank)
    except Refused:
        raise
    except Exception as error:  # what is written in a file can go wrong anywhere
        raise Refused(f"{weights} cannot be used: {_why(error)}") from error
    names, classes = notes.get("class_names"), network.num_classes
    if names is not None and not (
        isinstance(names, list | tuple)
        and len(names) == classes
        and all(isinstance(name, str) for name in names)
    ):
        _say(f"{weights}: class_names are not {classes} names: numbers instead")
        names = None
    names = tuple(names or map(str, range(classes)))
    dataset = notes.get("dataset")
    return Model(network, params, shape, names, _pictures(notes, weights), dataset)


def _pictures(notes: dict, weights: str) -> data.Pictures | None:
    noted = notes.get("pictures")
    if noted is None:
        dataset = notes.get("dataset")
        return _PICTURES.get(dataset) if isinstance(dataset, str) else None
    try:
        fit, ground, (low, high) = data.Pictures(**noted)
        sensible = fit in ("ink", "whole") and ground in ("dark", "light", "mixed")
        if sensible and 0 <= low <= high <= 1:
            return data.Pictures(fit, ground, (low, high))
    except (TypeError, ValueError):
        pass
    _say(f"{weights}: its note on pictures makes no sense: left out")
    return None


def _unlike(model: Model, image: np.ndarray) -> list[str]:
    """A remark on an image that is nothing like those of the training."""
    if model.pictures is None or not image.any():
        return []
    (low, high), share = model.pictures.light, float(np.mean(image >= 128))
    if low / _UNLIKE <= share <= high * _UNLIKE:
        return []
    others = _of_other_data(model.dataset)
    return [
        f"unlike the images of the training: {share:.0%} of it is light, of these "
        f"{low:.0%} … {high:.0%}; other networks: {', '.join(others) or 'none'}"
    ]


@functools.cache
def _of_other_data(dataset: object) -> list[str]:
    """The shipped networks that learned from something else."""
    notes = {name: pretrained.load(name).notes for name in pretrained.names()}
    return [name for name, n in notes.items() if n.get("dataset") != dataset]


def _shape(noted: object, weights: str) -> tuple[int, int, int]:
    if noted is None:
        raise Refused(f"{weights} does not tell the shape of its images (input_shape)")
    if (
        isinstance(noted, list | tuple)
        and len(noted) == 3
        and all(type(n) is int and 0 < n <= 4096 for n in noted)
        and noted[2] in (1, 3)
    ):
        return noted[0], noted[1], noted[2]
    raise Refused(
        f"{weights}: input_shape must be [H, W, C] of grey or RGB images, C = 1 or 3, "
        f"H and W at most 4096, got {noted!r:.99}"
    )


def _read(
    path: str, model: Model, invert: bool | None
) -> tuple[np.ndarray, list[str]] | Refused:
    from ds4nn_jax import _pictures
    from ds4nn_jax.cli import pictures

    try:
        with _told(f"reading {path}"):
            fit, ground, _ = model.pictures or ("whole", None, None)
            return pictures.read(
                Path(path), model.shape, fit=fit, ground=ground, invert=invert
            )
    except _pictures.PictureError as error:
        return Refused(str(error))


class Answer(NamedTuple):
    """What a network made of one image: its label, its outputs, its spikes."""

    label: int
    step: int  # T if no output fired
    times: np.ndarray  # [C]
    potentials: np.ndarray  # [C] mV
    blank: bool  # the image: nothing in it spikes

    def ranked(self) -> list[int]:
        """Classes, best first, by the rule of the strict decision."""
        return np.lexsort((-self.potentials, self.times)).tolist()

    def best(self) -> list[int]:
        """The class that is ahead of all others, or those between which nothing
        decides."""
        first = self.ranked()[0]
        same = (self.times == self.times[first]) & (
            self.potentials == self.potentials[first]
        )
        return np.flatnonzero(same).tolist()


@functools.partial(jax.jit, static_argnums=0)
def _run(network: ds.SpikingNetwork, params: dict, images: jax.Array) -> tuple:
    trace = network.apply(params, network.encode(images), method="trace")
    decided = ds.decide(trace)
    return decided.label, decided.step, decided.times, trace.potentials


def _asked_of(model: Model, images: list[np.ndarray], size: int) -> list[Answer]:
    if not images:
        return []
    few = np.stack(images + [images[-1]] * (size - len(images)))  # one compilation
    try:
        with _told("compiling, and asking the network"):
            found = jax.device_get(_run(model.network, model.params, few))
    except (RuntimeError, MemoryError) as error:
        raise SystemExit(f"ds4nn predict: {_why(error)}") from error
    rows = list(zip(*found, strict=True))[: len(images)]
    return [
        Answer(int(label), int(step), *outputs, blank=not image.any())
        for image, (label, step, *outputs) in zip(images, rows, strict=True)
    ]


def _fits_at_once(model: Model) -> int:
    """How many images' traces may be in memory together."""

    def trace(images):
        times = model.network.encode(images)
        return model.network.apply(model.params, times, method="trace").times

    one = jax.eval_shape(trace, np.broadcast_to(np.uint8(0), (1, *model.shape)))
    return max(1, _AT_ONCE // sum(math.prod(layer.shape) for layer in one))


def _show(
    asked: argparse.Namespace,
    model: Model,
    path: str,
    answer: Answer,
    remarks: list[str],
) -> None:
    steps = model.network.num_steps
    ranked, fired, best = answer.ranked(), answer.step < steps, answer.best()
    answered = not answer.blank and len(best) == 1
    if asked.json:
        classes = [
            {
                "name": model.names[k],
                "spike_time": int(answer.times[k]) if answer.times[k] < steps else None,
                "potential": round(float(answer.potentials[k]), 4),
            }
            for k in ranked[: asked.top]
        ]
        record = {
            "file": path,
            "label": model.names[answer.label] if answered else None,
            "class": answer.label if answered else None,
            "step": answer.step if answered and fired else None,
            "decided_by": ("spike" if fired else "potential") if answered else None,
            "classes": classes,
            "remarks": remarks,
        }
        print(json.dumps(record), flush=True)
        return
    label = model.names[answer.label] if answered else "no answer"
    when = f"decided at step {answer.step} of {steps}"
    if answer.blank:
        when = "the network sees nothing in it"
    elif not answered:
        when = f"{' and '.join(model.names[k] for k in best)} are tied"
    elif not fired:
        when = "no output fired: the highest potential"
    _say(f"{path}: {label} ({when})", sys.stdout)
    for place, k in enumerate(ranked[: asked.top or 0], 1):
        time = answer.times[k]
        spike = f"spike at step {time:g}" if time < steps else "silent"
        _say(
            f"  {place}. {model.names[k]}, {spike}, {answer.potentials[k]:.1f} mV",
            sys.stdout,
        )
    for remark in remarks:
        _say(f"  {remark}", sys.stdout)


def _fail(path: str, error: Exception, as_json: bool) -> None:
    _say(f"{path}: {_why(error)}")
    if as_json:
        print(json.dumps({"file": path, "error": _why(error)}), flush=True)


def _figure_path(asked: argparse.Namespace, number: int) -> Path:
    """A name of its own for each picture, whatever folders they lie in."""
    stems = [Path(path).stem for path in asked.images[: number + 1]]
    again = stems[:-1].count(stems[-1])
    return asked.figure / f"{stems[-1]}.predict{f'-{again + 1}' if again else ''}.png"


def _draw(path: Path, model: Model, image: np.ndarray, answer: Answer) -> None:
    """What the network saw, its spikes, and its outputs' potentials, one below another.

    Raises:
      OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    from ds4nn_jax import plots
    from ds4nn_jax.cli import figures

    network = model.network
    trace = figures.trace(network, model.params, image)
    potentials = measures.output_potentials(network, model.params, trace)
    seen = Figure(figsize=(8, 3), layout="constrained")
    axes = seen.subplots()
    axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set_title("What the network saw")
    raster = figures.raster(network, trace)
    outputs = plots.output_potentials(
        np.asarray(potentials)[:, 0],
        answer.times,
        threshold=network.threshold,
        label=None,
        class_names=figures.literal(tuple(map(_printable, model.names))),
        decision_step=answer.step,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names in letters that the font lacks
        pages = [_page(figure) for figure in (seen, raster, outputs)]
    height, at = sum(page.height for page in pages), 0
    whole = Image.new("RGB", (max(page.width for page in pages), height), "white")
    for page in pages:
        whole.paste(page, (0, at))
        at += page.height
    content = io.BytesIO()
    whole.save(content, "PNG")
    write_atomically(path, content.getvalue())


def _style() -> contextlib.AbstractContextManager:
    from ds4nn_jax.cli import figures

    return figures.style()


def _page(figure: Any) -> Any:
    from PIL import Image

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return Image.open(content).convert("RGB")


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Says what is being done once that has taken a while."""
    timer = threading.Timer(_PATIENCE, _say, (f"{what} …",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(text: str, file: TextIO | None = None) -> None:
    """One line: on stderr by the command's name, or on the file as it is."""
    text = text if file else f"ds4nn predict: {text}"
    file = file or sys.stderr
    encoding = file.encoding or "utf-8"
    text = _printable(text).encode(encoding, "ds4nn").decode(encoding)
    print(text, file=file, flush=True)


def _printable(text: object) -> str:
    """Without what a terminal would obey; \\x1b for an escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)
    )


def _why(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).split() or [type(error).__name__]
    return _printable(" ".join(lines))


def _need(module: str, package: str, what: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise Refused(
            f"{what} need {package}: pip install ds4nn_jax[experiments]"
        ) from error


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number ≥ 1, not {text!r}")
    return int(text)
