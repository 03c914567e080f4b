"""Makes shipped weights, and their model card, of a finished run.

    python -m experiments.release mnist_sparse --run_dir=runs/mnist_sparse

Weights are integers, from training or rounded here by --bits. The card's figures
are those of these weights on the test images, as `ds4nn evaluate` prints them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ds4nn_jax as ds
import experiments
from ds4nn_jax import data
from ds4nn_jax._files import write_atomically
from ds4nn_jax.cli import flags, measures, progress, runner
from ds4nn_jax.networks import export

_CARD = """# {name}: {spec}

Trained by `{command}` ({versions};
presets of {presets}).{teacher}
{picked} The test images were used to report only.
Weights are integers of {bits} bits, thresholds whole, too: the same spikes on
every machine.{rounded} An urgency is given in mV, of a threshold of 100.

| on the {images:,} test images | |
|---|---:|
| strict accuracy | {accuracy:.2%} |
| lenient accuracy (a tie counts) | {lenient_accuracy:.2%} |
| ties | {tied:.2%} |
| decided without an output spike | {silent:.2%} |
| mean decision step, of T = {num_steps} | {decision_step:.1f} |
| mean spikes up to the decision, pooling included | {spikes:,.0f} |
| without pooling neurons | {without_pooling:,.0f} |
| of {layers} | {by_layer} |
| reference spikes, of {urgency:g} mV (urgency){pulses} | {reference:.0f} |
| dead neurons | {dead:.1%} |

`ds4nn evaluate {name}` gives them again.
"""

_TEACHER = (
    " Its soft labels are made by\nwhat `experiments/flagfiles/{name}.cfg` begins with."
)
_ROUNDED = " They were rounded after training."


@experiments.one_line("release")
def main(argv: Sequence[str] | None = None) -> None:
    parser = experiments.parser("release", __doc__)
    parser.add_argument("name", help="what `pretrained.load` will know it by")
    parser.add_argument("--run_dir", required=True, help="out_dir of the run")
    parser.add_argument("--data_dir", help="where the data set lies")
    parser.add_argument("--bits", type=int, help="round real weights to so many bits")
    units = "mV a step, of θ = 100 mV, chosen on held-out images"
    parser.add_argument("--urgency", type=float, help=units)
    shipped = "ds4nn_jax/networks/shipped"
    parser.add_argument("--out_dir", default=shipped, help="for weights and card")
    args = parser.parse_args(argv)
    run = Path(args.run_dir)
    network, params, notes = ds.load_weights(run / "best.safetensors")
    urgency = measures.urgency(network, params)
    released = measures.urged(network, params, args.urgency)
    if args.bits is not None:
        released, params = ds.quantize(released, params, bits=args.bits)
    export.check_whole(params)
    images = data.load(notes["dataset"], args.data_dir)
    test = ds.evaluate(released, params, images.test_images, images.test_labels)
    options = flags.parse(
        ["release", f"--flagfile={run / 'flags.cfg'}"], dataset=notes["dataset"]
    )
    rows = (run / "metrics.jsonl").read_text().splitlines()
    threads, dataset = notes["made_by"]["threads"], notes["dataset"]
    card = {
        **notes,
        **test.summary(),
        "name": args.name,
        "spec": network.spec,
        "num_steps": network.num_steps,
        "urgency": measures.urgency(released, params),
        "epochs": sum("epoch" in json.loads(row) for row in rows),
        "layer_spikes": test.layer_spikes,
        "command": f"NPROC={threads} ds4nn train {dataset} {_flags(options)}",
    }
    picked = _picked(card, urgency)
    bits = args.bits or options.config.bits
    card |= {"bits": bits, "rounded": _ROUNDED if args.bits else ""}
    text = _text(card, released, test, options, picked)
    out = Path(args.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    ds.save_weights(out / f"{args.name}.safetensors", released, params, notes=card)
    write_atomically(out / f"{args.name}.md", text.encode())
    print(text)


def _text(
    card: dict[str, Any],
    network: ds.SpikingNetwork,
    test: ds.Report,
    options: flags.Options,
    picked: str,
) -> str:
    name = card["name"]
    spikes = dict(zip(network.names, test.layer_spikes[1:], strict=True))
    pulses = [f"{n} of {layer}" for layer, n in network.pulse_counts.items() if n]
    return _CARD.format(
        **card,
        versions=", ".join(f"{k} {v}" for k, v in card["made_by"].items()),
        presets=runner.commit().get("commit", "this version"),
        teacher=_TEACHER.format(name=name) if options.soft_labels else "",
        picked=picked,
        layers=", ".join(spikes),
        by_layer=", ".join(f"{n:,.0f}" for n in spikes.values()),
        without_pooling=measures.without_pooling(network, test.layer_spikes),
        reference=test.reference_spikes,
        pulses=f" and of pulses ({', '.join(pulses)})" if pulses else "",
    )


def _flags(options: flags.Options) -> str:
    """The preset of a run, its seed, and whatever else differs from the preset."""
    named = [f"--preset={options.preset}", f"--seed={options.config.seed}"]

    def parsed(*others: str) -> flags.Options:
        return flags.parse(["release", *named, *others], dataset=options.dataset)

    usual = parsed().resolved.splitlines()
    here = ("--data_dir", "--out_dir", "--checkpoint_minutes", "--compilation_cache")
    lines = [f for f in options.resolved.splitlines() if not f.startswith(here)]
    others = [line for line in lines if line not in usual]
    if parsed(*others).config != options.config:  # another kind of a choice
        others = [line for line in lines if line not in named]
    return " ".join((*named, *others))


def _picked(card: Mapping[str, Any], urgency: float) -> str:
    """How these weights were picked among those of the run's epochs, and whether the
    run had another urgency."""
    text = f"On all training images, the last of {card['epochs']} epochs."
    if "val_accuracy" in card:
        text = (
            f"Best of {card['epochs']} epochs on held-out training images: epoch "
            f"{card['epoch']}, {card['val_accuracy']:.2%} there."
        )
    if urgency != card["urgency"]:
        text += f" Trained with an urgency of {urgency:g} mV a step; "
        text += f"{card['urgency']:g} was chosen on held-out images."
    return text


if __name__ == "__main__":
    progress.program("experiments.release", main)
