"""`ds4nn predict`: what is in a picture, and when that was clear."""

import argparse
import functools
import importlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import _files, data
from ds4nn_jax.cli import measures, progress
from ds4nn_jax.networks import pretrained
from ds4nn_jax.networks.network import check_params

_AT_A_TIME = 16  # pictures
_UNLIKE = 1.25  # times as light, or as dark, as the images of the training

# Of weights that note their data set only, as the shipped ones do.
_PICTURES = {
    "mnist": data.Pictures("ink", "dark", (0.041, 0.255)),
    "fashion_mnist": data.Pictures("whole", "dark", (0.013, 0.699)),
}


class Model(NamedTuple):
    """A network with what is noted about its images."""

    network: ds.SpikingNetwork
    params: dict
    shape: tuple[int, int, int]
    names: list[str]
    pictures: data.Pictures | None  # None: not noted
    dataset: object  # a name, as far as it is noted


class Answer(NamedTuple):
    """What a network made of one image: its label, its outputs, its spikes."""

    image: np.ndarray  # [H, W, C] uint8
    remarks: list[str]  # on how the picture became the image
    label: int
    step: int  # T if no output fired
    times: np.ndarray  # [C]
    potentials: np.ndarray  # [C] mV

    def ranked(self) -> list[int]:
        """Classes, best first, by the rule of the strict decision."""
        return np.lexsort((-self.potentials, self.times)).tolist()

    def best(self) -> list[int]:
        """The class ahead of all others, or those between which nothing decides."""
        first = self.ranked()[0]
        same = (self.times == self.times[first]) & (
            self.potentials == self.potentials[first]
        )
        return np.flatnonzero(same).tolist()

    def is_one(self) -> bool:
        """Whether there is an image to classify, and one class ahead of all others."""
        return bool(self.image.any()) and len(self.best()) == 1


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


def main(args: argparse.Namespace) -> None:
    """Classifies the pictures, a line each.

    Raises:
      SystemExit: with a message if there is no network to ask, or no place for figures;
        with status 1 if some pictures could not be answered.
    """
    try:
        progress.check_platform()
        model = _model(args.weights, args.urgency)
        if args.figure is not None:
            importlib.import_module("matplotlib")  # whose settings may be wrong
            args.figure.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise SystemExit(f"ds4nn predict: {_why(error)}") from error
    failed = False
    for number, answer in enumerate(_answers(model, args.images, args.invert)):
        path = args.images[number]
        if isinstance(answer, Answer) and args.figure is not None:
            figure = _figure_path(args.figure, args.images[: number + 1])
            try:
                _draw(figure, model, answer)
                answer.remarks.append(f"drawn in {figure}")
            except OSError as error:
                answer = error
        if isinstance(answer, Exception):
            failed = True
            print(
                f"ds4nn predict: {_printable(path)}: {_why(answer)}",
                file=sys.stderr,
                flush=True,
            )
            record = {"file": path, "error": _why(answer)}
        else:
            record = _record(model, path, answer, args.top)
        if args.json:
            print(json.dumps(record), flush=True)
        elif isinstance(answer, Answer):
            print(_text(model, record, answer, args.top), flush=True)
    if failed:
        raise SystemExit(1)


def _model(weights: str, urgency: float | None) -> Model:
    """The network of the weights, checked as far as it can be without a picture.

    Raises:
      ValueError: no such network, or one that cannot be asked about pictures.
    """
    if weights not in pretrained.names() and not Path(weights).exists():
        shipped = ", ".join(pretrained.names())
        raise ValueError(f"no file {weights}, and no shipped network: {shipped}")
    try:
        network, params, notes = pretrained.find(weights)
        network = measures.urged(network, params, urgency)
        shape = _shape(notes.get("input_shape"))
        names = _names(notes.get("class_names"), network.num_classes)
        dataset = notes.get("dataset")
        pictures = _pictures(notes.get("pictures"), shape, dataset)
        model = Model(network, params, shape, names, pictures, dataset)
        blank = np.broadcast_to(np.uint8(0), (1, *shape))
        check_params(network, params, blank)
        jax.eval_shape(functools.partial(_run, network), params, blank)
    except Exception as error:  # what is written in a file can go wrong anywhere
        raise ValueError(f"{weights} cannot be used: {_why(error)}") from error
    return model


def _shape(noted: Any) -> tuple[int, int, int]:
    if noted is None:
        raise ValueError("it does not tell the shape of its images (input_shape)")
    whole = isinstance(noted, list) and [type(n) for n in noted] == [int] * 3
    if not whole or not all(0 < n <= 4096 for n in noted) or noted[2] not in (1, 3):
        raise ValueError(
            "input_shape must be [H, W, C] of grey or RGB images, C = 1 or 3, H and W "
            f"at most 4096, got {noted!r:.99}"
        )
    return noted[0], noted[1], noted[2]


def _names(noted: object, classes: int) -> list[str]:
    if noted is None:
        return list(map(str, range(classes)))
    if isinstance(noted, list) and [type(name) for name in noted] == classes * [str]:
        return noted
    raise ValueError(f"class_names must be {classes} names, got {noted!r:.99}")


def _pictures(
    noted: Any, shape: tuple[int, int, int], dataset: object
) -> data.Pictures | None:
    if noted is None:
        known = shape == (28, 28, 1) and isinstance(dataset, str)
        return _PICTURES.get(str(dataset)) if known else None
    fit, ground, (low, high) = data.Pictures(**noted)
    fits = fit == "whole" or (fit == "ink" and shape == (28, 28, 1))
    if fits and ground in ("dark", "light", "mixed") and 0 <= low <= high <= 1:
        return data.Pictures(fit, ground, (low, high))
    raise ValueError(
        'pictures must be what ds4nn_jax.data.pictures notes, fit "ink" for images of '
        f"28×28 pixels alone, got {noted!r:.199}"
    )


def _answers(
    model: Model, paths: list[str], invert: bool | None
) -> Iterator[Answer | Exception]:
    """What the network makes of each picture, or why it cannot be read."""
    # Here: `ds4nn --help` does without Pillow and SciPy.
    from ds4nn_jax import _pictures
    from ds4nn_jax.cli import pictures

    fit, ground, _ = model.pictures or ("whole", None, None)
    size = min(_AT_A_TIME, len(paths))
    for start in range(0, len(paths), size):
        images = np.zeros((size, *model.shape), np.uint8)  # one size is one compilation
        remarks: list[list[str] | Exception] = []
        with progress.working("reading pictures, asking the network"):
            for image, path in zip(images, paths[start:], strict=False):
                try:
                    image[:], more = pictures.read(
                        Path(path), model.shape, fit=fit, ground=ground, invert=invert
                    )
                    remarks.append([*more, *_unlike(model, image)])
                except _pictures.PictureError as error:
                    remarks.append(error)
            outputs = jax.device_get(_run(model.network, model.params, images))
        for image, remark, label, step, times, potentials in zip(
            images, remarks, *outputs, strict=False
        ):
            if isinstance(remark, Exception):
                yield remark
            else:
                yield Answer(image, remark, int(label), int(step), times, potentials)


@functools.partial(jax.jit, static_argnums=0)
def _run(network: ds.SpikingNetwork, params: dict, images: jax.Array) -> tuple:
    times = network.encode(images)
    trace = cast(ds.Trace, network.apply(params, times, method="trace"))
    decisions = ds.decide(trace)
    return decisions.label, decisions.step, decisions.times, trace.potentials


def _unlike(model: Model, image: np.ndarray) -> list[str]:
    """A remark on an image that is nothing like those of the training."""
    if model.pictures is None or not image.any():
        return []
    (low, high), share = model.pictures.light, float(np.mean(image >= 128))
    if low / _UNLIKE <= share <= high * _UNLIKE:
        return []
    others = [
        name
        for name in pretrained.names()
        if pretrained.load(name).notes.get("dataset") != model.dataset
    ]
    return [
        f"unlike the images of the training: {share:.0%} of it is light, of these "
        f"{low:.0%} … {high:.0%}; other networks: {', '.join(others) or 'none'}"
    ]


def _record(model: Model, path: str, answer: Answer, top: int | None) -> dict:
    """What --json prints of a picture."""
    steps, one = model.network.num_steps, answer.is_one()
    fired = answer.step < steps
    return {
        "file": path,
        "label": model.names[answer.label] if one else None,
        "class": answer.label if one else None,
        "step": answer.step if one and fired else None,
        "decided_by": ("spike" if fired else "potential") if one else None,
        "classes": [
            {
                "name": model.names[k],
                "spike_time": int(answer.times[k]) if answer.times[k] < steps else None,
                "potential": round(float(answer.potentials[k]), 4),
            }
            for k in answer.ranked()[:top]
        ],
        "remarks": answer.remarks,
    }


def _text(model: Model, record: dict, answer: Answer, top: int | None) -> str:
    """The same for people, the best classes on request."""
    if not answer.image.any():
        when = "the network sees nothing in it"
    elif not answer.is_one():
        when = f"{' and '.join(model.names[k] for k in answer.best())} are tied"
    elif record["step"] is None:
        when = "no output fired: the highest potential"
    else:
        when = f"decided at step {answer.step} of {model.network.num_steps}"
    label = "no answer" if record["label"] is None else record["label"]
    lines = [f"{record['file']}: {label} ({when})"]
    for place, output in enumerate(record["classes"] if top else [], 1):
        step = output["spike_time"]
        spike = "silent" if step is None else f"spike at step {step}"
        lines.append(
            f"  {place}. {output['name']}, {spike}, {output['potential']:.1f} mV"
        )
    lines += [f"  {remark}" for remark in answer.remarks]
    return "\n".join(map(_printable, lines))


def _figure_path(folder: Path, paths: list[str]) -> Path:
    """A name of its own for the last of the pictures, whatever folders they lie in."""
    *others, stem = (Path(path).stem for path in paths)
    again = others.count(stem)
    return folder / f"{stem}.predict{f'-{again + 1}' if again else ''}.png"


def _draw(path: Path, model: Model, answer: Answer) -> None:
    """What the network saw, its spikes, and its outputs' potentials, one below another.

    Raises:
      OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    from ds4nn_jax import plots
    from ds4nn_jax.cli import figures

    network = model.network
    # Names may have letters that the font lacks.
    with figures.style(), warnings.catch_warnings(action="ignore"):
        trace = figures.trace(network, model.params, answer.image)
        seen = Figure(figsize=(8, 3), layout="constrained")
        axes = seen.subplots()
        axes.imshow(answer.image.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title("What the network saw")
        raster = figures.raster(network, trace)
        potentials = plots.output_potentials(
            np.asarray(measures.output_potentials(network, model.params, trace))[:, 0],
            answer.times,
            threshold=network.threshold,
            label=None,
            class_names=figures.literal(tuple(map(_printable, model.names))),
            decision_step=answer.step,
        )
        canvases = [FigureCanvasAgg(figure) for figure in (seen, raster, potentials)]
        for canvas in canvases:
            canvas.draw()
    pixels = np.concatenate([np.asarray(canvas.buffer_rgba()) for canvas in canvases])
    with _files.atomic_file(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, "PNG")


def _printable(text: str) -> str:
    """Without what a terminal would obey; \\x1b for an escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def _why(error: Exception) -> str:
    """An error in one line."""
    return _printable(" ".join(str(error).split()) or type(error).__name__)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number ≥ 1, not {text!r}")
    return int(text)
