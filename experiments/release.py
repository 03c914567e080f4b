"""Makes shipped weights, and their model card, of a finished run.

    python -m experiments.release mnist_sparse --run_dir=runs/mnist_sparse

Large kernels are rounded to float16, which halves the file; whole numbers stay as they
are. The card's figures are those of these weights on the test images, as
`--evaluate=NAME` prints them.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax._files import write_atomically
from ds4nn_jax.cli import flags, measures, runner
from ds4nn_jax.networks import quantization

_CARD = """# {name}: {spec}

Trained by `{command}` ({made_by};
presets of {presets}).{teacher}
{chosen} The test images were used to report only.
{stored}

| on the {images:,} test images | |
|---|---:|
| strict accuracy | {accuracy:.2%} |
| lenient accuracy (a tie counts) | {lenient_accuracy:.2%} |
| ties | {tied:.2%} |
| all outputs silent, decided by potentials | {silent:.2%} |
| mean decision step, of T = {num_steps} | {decision_step:.1f} |
| mean spikes up to the decision, pooling included | {spikes:,.0f} |
| without pooling neurons | {without_pooling:,.0f} |
| of {layers} | {by_layer} |
| reference spikes, of {urgency:g} mV (urgency){pulses} | {reference:.0f} |
| dead neurons | {dead:.1%} |

`{evaluate}` gives them again.
"""

_TEACHER = (
    " Its soft labels are made by\nwhat `experiments/flagfiles/{name}.cfg` begins with."
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="what `pretrained.load` will know it by")
    parser.add_argument("--run_dir", required=True, help="out_dir of the run")
    parser.add_argument("--data_dir", help="where the data set lies")
    parser.add_argument(
        "--urgency",
        type=float,
        help="mV a step, of θ = 100 mV, chosen on held-out images",
    )
    parser.add_argument(
        "--out_dir",
        default="ds4nn_jax/networks/shipped",
        help="where weights and card go",
    )
    asked = parser.parse_args(argv)
    run = Path(asked.run_dir)
    network, params, notes = ds.load_weights(run / "best.safetensors")
    trained = measures.urgency(network, params)
    network = measures.urged(network, params, asked.urgency)
    kept = rounded = params
    if not quantization.is_whole(params):
        kept = jax.tree.map_with_path(_rounded, params)
        rounded = jax.tree.map(lambda w: w.astype(np.float32), kept)
    images = data.load(notes["dataset"], asked.data_dir)
    test = ds.evaluate(network, rounded, images.test_images, images.test_labels)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    module = f"experiments.{notes['dataset'].removesuffix('_mnist')}"
    threads = notes["made_by"]["threads"]
    flags = _flags(run, notes)
    card = {
        **notes,
        **test.summary(),
        "name": asked.name,
        "spec": network.spec,
        "num_steps": network.num_steps,
        "urgency": measures.urgency(network, params),
        "epochs": sum("epoch" in row for row in rows),
        "layer_spikes": test.layer_spikes,
        "command": f"NPROC={threads} python -m {module} {flags}",
        "evaluate": f"python -m {module} --evaluate={asked.name}",
    }
    by_layer = dict(zip(network.names, test.layer_spikes[1:], strict=True))
    text = _CARD.format(
        **card
        | {"made_by": ", ".join(f"{k} {v}" for k, v in notes["made_by"].items())},
        presets=runner.commit().get("commit", "this version"),
        stored=_stored(run, kept),
        teacher=_TEACHER.format(name=asked.name) if "--soft_labels" in flags else "",
        chosen=_chosen(card, trained),
        layers=", ".join(by_layer),
        by_layer=", ".join(f"{n:,.0f}" for n in by_layer.values()),
        without_pooling=measures.without_pooling(network, test.layer_spikes),
        reference=test.reference_spikes,
        pulses=_pulses(network),
    )
    out = Path(asked.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    ds.save_weights(out / f"{asked.name}.safetensors", network, kept, notes=card)
    write_atomically(out / f"{asked.name}.md", text.encode())
    print(text)


def _flags(run: Path, notes: Mapping[str, Any]) -> str:
    """The preset of a run, its seed, and whatever else it was told to do otherwise."""

    def asked(*flags: str) -> flags.Options:
        return flags.parse(("ship", *flags), dataset=notes["dataset"])

    made = asked(f"--flagfile={run / 'flags.cfg'}")
    named = (f"--preset={made.preset}", f"--seed={notes['seed']}")
    usual = asked(*named).resolved.splitlines()
    here = ("--data_dir", "--out_dir", "--checkpoint_minutes", "--compilation_cache")
    given = [f for f in made.resolved.splitlines() if not f.startswith(here)]
    others = [flag for flag in given if flag not in usual]
    if asked(*named, *others).config != made.config:  # another kind of a choice
        others = [flag for flag in given if flag not in named]
    return " ".join((*named, *others))


def _stored(run: Path, params: Mapping) -> str:
    if not quantization.is_whole(params):
        return "Large kernels are stored as float16; all are used as float32."
    flags = (run / "flags.cfg").read_text(encoding="utf-8")
    bits = re.findall(r"^--bits=(\d)$", flags, re.MULTILINE)[-1]
    return (
        f"Weights are whole numbers of {bits} bits, thresholds whole, too: the same "
        "spikes on every\nmachine. An urgency is given in mV, of a threshold of 100."
    )


def _pulses(network: ds.SpikingNetwork) -> str:
    """Where a network has reference neurons besides those of its urgency."""
    counts = [f"{n} of {name}" for name, n in network.pulse_counts.items() if n]
    return f" and of pulses ({', '.join(counts)})" if counts else ""


def _chosen(card: Mapping[str, Any], urgency: float) -> str:
    """How these weights were picked among those of the run's epochs, and whether the
    urgency is another than the run's."""
    other = urgency != card["urgency"]
    if "val_accuracy" not in card:
        picked = f"On all training images, the last of {card['epochs']} epochs."
        if other:
            picked += f" Trained with an urgency of {urgency:g} mV a step."
        return picked
    picked = (
        f"Best of {card['epochs']} epochs on held-out training images: epoch "
        f"{card['epoch']}, {card['val_accuracy']:.2%} there."
    )
    if other:
        picked += (
            f" That is with the urgency of the run, {urgency:g} mV a step; "
            f"{card['urgency']:g} was chosen on held-out images afterwards."
        )
    return picked


def _rounded(path: tuple, weights: np.ndarray) -> np.ndarray:
    """The first convolution's few weights stay as they are: where an image is flat, all
    spikes of a window come at once, and learning can leave a sum right at θ. So do
    pulses, which reach all places of an image at once."""
    large = path[-1].key == "kernel" and weights.size > 10_000
    return weights.astype(np.float16) if large else weights


if __name__ == "__main__":
    main()
