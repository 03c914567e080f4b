"""`ds4nn predict`: what is in a picture, and when that was clear."""

import argparse
import functools
import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from rich.console import Console

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.cli import measures, progress
from ds4nn_jax.networks import pretrained
from ds4nn_jax.networks.network import check_params

_UNLIKE = 1.25  # times as light, or as dark, as the images of the training

# Of weights that note their data set only, as the shipped ones do.
_PICTURES = {
    "mnist": {"fit": "ink", "ground": "dark", "light": (0.041, 0.255)},
    "fashion_mnist": {"fit": "whole", "ground": "dark", "light": (0.013, 0.699)},
}


class Model(NamedTuple):
    """A network with what is noted about its images."""

    network: ds.SpikingNetwork
    params: dict
    shape: tuple[int, int, int]
    names: list[str]
    pictures: data.Pictures | None  # None: not noted


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
    add("--top", type=int, metavar="N", help="show the N best classes")
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
        if args.top is not None and args.top < 1:
            raise ValueError(f"--top must be at least 1, got {args.top}")
        model = _model(args.weights, args.urgency)
        if args.figure is not None:
            importlib.import_module("matplotlib")  # whose settings may be wrong
            args.figure.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise SystemExit(f"ds4nn predict: {_why(error)}") from error
    # Here: `ds4nn --help` does without Pillow and SciPy.
    from ds4nn_jax._pictures import PictureError

    failed = False
    for number, path in enumerate(args.images, 1):
        try:
            with Console(stderr=True).status("working …", spinner="line"):
                image, record = _answer(model, path, args.invert, args.top)
                if args.figure is not None:
                    figure = args.figure / f"{Path(path).stem}.predict-{number}.png"
                    _draw(figure, model, image)
                    record["remarks"].append(f"drawn in {figure}")
        except (PictureError, OSError) as error:
            failed = True
            record = {"file": path, "error": _why(error)}
            message = f"ds4nn predict: {_printable(path)}: {record['error']}"
            print(message, file=sys.stderr, flush=True)
        if args.json:
            print(json.dumps(record), flush=True)
        elif "error" not in record:
            print(_text(model, record, args.top), flush=True)
    if failed:
        raise SystemExit(1)


def _model(weights: str, urgency: float | None) -> Model:
    """The network of the weights, checked as far as it can be without a picture."""
    if weights not in pretrained.names() and not Path(weights).exists():
        shipped = ", ".join(pretrained.names())
        raise ValueError(f"no file {weights}, and no shipped network: {shipped}")
    try:
        network, params, notes = pretrained.find(weights)
        network = measures.urged(network, params, urgency)
        model = Model(network, params, *_noted(notes, network.num_classes))
        blank = np.broadcast_to(np.uint8(0), (1, *model.shape))
        check_params(network, params, blank)
        jax.eval_shape(functools.partial(_run, network), params, blank)
    except Exception as error:  # what is written in a file can go wrong anywhere
        raise ValueError(f"{weights} cannot be used: {_why(error)}") from error
    return model


def _noted(notes: dict, classes: int) -> tuple:
    """The notes on images: their shape, their classes' names, how they were made."""
    shape: Any = notes.get("input_shape")
    names = notes.get("class_names")
    names = list(map(str, range(classes))) if names is None else names
    pictures = notes.get("pictures")
    if pictures is None and shape == [28, 28, 1]:
        pictures = _PICTURES.get(str(notes.get("dataset")))
    sizes = isinstance(shape, list) and [type(n) for n in shape] == [int] * 3
    sizes = sizes and shape[2] in (1, 3) and 0 < min(shape) <= max(shape) <= 4096
    texts = isinstance(names, list) and [type(x) for x in names] == [str] * classes
    made = True
    if pictures is not None:
        fit, ground, (low, high) = pictures = data.Pictures(**pictures)
        made = fit == "whole" or fit == "ink" and shape == [28, 28, 1]
        made = made and ground in ("dark", "light", "mixed") and 0 <= low <= high <= 1
    for name, fits, form in (
        ("input_shape", sizes, "[H, W, C], C = 1 or 3, H and W at most 4096"),
        ("class_names", texts, f"{classes} names"),
        ("pictures", made, 'as data.pictures has it, "ink" for 28×28 pixels alone'),
    ):
        if not fits:
            got = f"{notes.get(name)!r:.199}"
            raise ValueError(f"its note {name} must be {form}, got {got}")
    return tuple(shape), names, pictures


def _answer(
    model: Model, path: str, invert: bool | None, top: int | None
) -> tuple[np.ndarray, dict]:
    """The image that the network sees of a picture, and what --json prints of it.

    Best classes first, by the rule of the strict decision. Without a label if there is
    nothing to see, or several classes are as good.

    Raises:
      PictureError: the file shows no picture.
    """
    from ds4nn_jax import _pictures

    fit, ground, light = model.pictures or ("whole", None, None)
    image, remarks = _pictures.fitted(
        Path(path), model.shape, fit=fit, ground=ground, invert=invert
    )
    outputs = jax.device_get(_run(model.network, model.params, image[None]))
    label, step, times, potentials = (output[0] for output in outputs)
    steps = model.network.num_steps
    same = (times == times[label]) & (potentials == potentials[label])
    tied = [name for name, best in zip(model.names, same, strict=True) if best]
    one, fired = image.any() and len(tied) == 1, step < steps
    if not image.any():
        remarks.append("the network sees nothing in it")
    elif not one:
        remarks.append(f"{' and '.join(tied)} are tied")
    elif light is not None:
        (low, high), share = light, float(np.mean(image >= 128))
        if not low / _UNLIKE <= share <= high * _UNLIKE:
            remarks.append(
                f"unlike the images of the training: {share:.0%} of it is light, of "
                f"these {low:.0%} … {high:.0%}; networks of the library: "
                f"{', '.join(pretrained.names())}"
            )
    return image, {
        "file": path,
        "label": model.names[label] if one else None,
        "class": int(label) if one else None,
        "step": int(step) if one and fired else None,
        "decided_by": ("spike" if fired else "potential") if one else None,
        "classes": [
            {
                "name": model.names[k],
                "spike_time": int(times[k]) if times[k] < steps else None,
                "potential": round(float(potentials[k]), 4),
            }
            for k in np.lexsort((-potentials, times)).tolist()[:top]
        ],
        "remarks": remarks,
    }


@functools.partial(jax.jit, static_argnums=0)
def _run(network: ds.SpikingNetwork, params: dict, images: jax.Array) -> tuple:
    trace = cast(
        ds.Trace, network.apply(params, network.encode(images), method="trace")
    )
    decisions = ds.decide(trace)
    return decisions.label, decisions.step, decisions.times, trace.potentials


def _text(model: Model, record: dict, top: int | None) -> str:
    """The same for people, the best classes on request."""
    text = f"{record['file']}: {record['label']} "
    if record["label"] is None:
        text = f"{record['file']}: no answer"
    elif record["step"] is None:
        text += "(no output fired: the highest potential)"
    else:
        text += f"(decided at step {record['step']} of {model.network.num_steps})"
    lines = [text]
    for place, output in enumerate(record["classes"] if top else [], 1):
        step = output["spike_time"]
        spike = "silent" if step is None else f"spike at step {step}"
        lines.append(
            f"  {place}. {output['name']}, {spike}, {output['potential']:.1f} mV"
        )
    lines += [f"  {remark}" for remark in record["remarks"]]
    return "\n".join(map(_printable, lines))


def _draw(path: Path, model: Model, image: np.ndarray) -> None:
    """What the network saw, its spikes, and its outputs' potentials, one below another.

    Raises:
      OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    from ds4nn_jax import plots
    from ds4nn_jax.cli import figures

    network, params = model.network, model.params
    # Names may have letters that the font lacks.
    with figures.style(), warnings.catch_warnings(action="ignore"):
        trace = figures.trace(network, params, image)
        heights = 3, 1.8 * len(trace.times), 4.2
        figure = Figure(figsize=(8, sum(heights)), layout="constrained")
        parts: Any = figure.subfigures(3, height_ratios=heights)
        seen, spikes, outputs = parts
        axes = seen.subplots()
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title("What the network saw")
        figures.raster(network, trace, on=spikes)
        times = np.asarray(trace.times[-1][0])
        values, threshold = measures.first_potentials(network, params, trace)
        plots.output_potentials(
            values,
            times,
            threshold=threshold,
            label=None,
            class_names=figures.literal(tuple(map(_printable, model.names))),
            decision_step=int(times.min()),
            on=outputs,
        )
        plots.save(figure, path)


def _printable(text: str) -> str:
    """Without what a terminal would obey; \\x1b for an escape."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _why(error: Exception) -> str:
    """An error in one line."""
    return _printable(" ".join(str(error).split()) or type(error).__name__)
