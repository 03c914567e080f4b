"""The command-line flags of every experiment, made of the values that they stand for.

Each field of `Options` and `TrainConfig` is a flag. A choice is named by its flag,
`--output_rule=softmax`, and has its parameters under it, `--output_rule.offset=10`.
Docstrings are the help. Flags are parsed into a value of their own, not into absl's
global one, so that several experiments, tests and notebooks can live in one process.

Not by tyro (choices are words between the flags), simple-parsing (no choice within a
preset, unknown flags may pass) or ml_collections (one class for each field): none of
them reads a flagfile.
"""

import dataclasses
import functools
import os
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from ds4nn_jax import data
from ds4nn_jax._values import Value, kinds, require
from ds4nn_jax.training import presets
from ds4nn_jax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What an experiment was asked for.

    Attributes:
      config: the training run.
      urgency: what --urgency asked for, in mV of θ = 100 mV; None without it: weights
        have one of their own.
      dataset: digits, mnist, fashion_mnist, any image data set that TFDS knows, or your
        own images: a folder with a folder for each class, see `data.from_folders`.
      preset: the configuration that other flags change, one of those in
        ds4nn_jax.training.presets; empty: the best known for the data set.
      data_dir: where the data set lies; empty: the usual places.
      out_dir: where weights, metrics and figures go; empty: runs/DATASET.
      init_from: fine-tune the weights of this .safetensors file, or of a shipped
        network.
      soft_labels: a .npy file of shares of the classes for all N training images,
        [N, C], or [epochs, N, C].
      train_limit: use the first so many training images; 0: all.
      test_limit: use the first so many test images; 0: all.
      overwrite: replace the results of an earlier run in out_dir.
      resume: go on from the latest checkpoint in out_dir; without one, from the
        beginning. With more --epochs, for longer.
      compilation_cache: keep XLA's compiled programs in this folder; later runs start
        sooner.
      checkpoint_minutes: time between checkpoints within an epoch, beside those at its
        end; 0: none.
      num_devices: devices that share out every batch; 0: the default one, or, with
        --distributed, all.
      distributed: take part in a run of several processes, as the environment (TPU
        pod, SLURM, …) or the next three flags describe it.
      coordinator: host:port of process 0.
      num_processes: of the run.
      process_id: of this one.
      evaluate: evaluate this .safetensors file, or a shipped network by its name
        ("pretrained": that of the data set), instead of training.
    """

    config: TrainConfig
    urgency: float | None = dataclasses.field(compare=False)
    dataset: str = ""
    preset: str = ""
    data_dir: str | None = None
    out_dir: str = ""
    init_from: str | None = None
    soft_labels: str | None = None
    train_limit: int = 0
    test_limit: int = 0
    overwrite: bool = False
    resume: bool = False
    compilation_cache: str | None = None
    checkpoint_minutes: float = 5.0
    num_devices: int = 0
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    evaluate: str | None = None

    def __post_init__(self):
        for name in ("data_dir", "out_dir", "init_from", "soft_labels", "evaluate"):
            if path := getattr(self, name):
                object.__setattr__(self, name, os.path.expanduser(path))
            if path and "\n" in path:
                raise ValueError(f"{name} must be one line, got {path!r}")
        for name in ("train_limit", "test_limit", "checkpoint_minutes", "num_devices"):
            require(self, name, getattr(self, name) >= 0, "≥ 0")
        for pair in ("resume overwrite", "resume evaluate", "distributed evaluate"):
            one, other = pair.split()
            if getattr(self, one) and getattr(self, other):
                raise ValueError(f"--{one} and --{other} contradict each other")
        for name in ("coordinator", "num_processes", "process_id"):
            if getattr(self, name) is not None and not self.distributed:
                raise ValueError(f"--{name} needs --distributed")

    @property
    def resolved(self) -> str:
        """A flagfile for the same run, from its beginning and in a place of its own: a
        line for each flag that stands for something."""
        lines = []
        for flag in (*_RUN, *_TRAINING):
            value: Any = self if flag in _RUN else self.config
            for name in flag.path.split("."):
                value = getattr(value, name, None)
            if flag.path in ("resume", "overwrite") or value is None:
                continue
            if isinstance(value, Value):
                value = value.name
            if isinstance(value, bool):
                lines.append(f"--{'' if value else 'no'}{flag.path}")
                continue
            if isinstance(value, tuple):
                pairs = (x if isinstance(x, tuple) else (x,) for x in value)
                value = ",".join(":".join(map(str, x)) for x in pairs)
            lines.append(f"--{flag.path}={value}")
        return "\n".join(lines) + "\n"


_HELP = {
    "train": (
        "data_dir out_dir preset epochs spec batch_size seed validation train_limit "
        "test_limit init_from resume overwrite compilation_cache"
    ).split(),
    "evaluate": "evaluate data_dir urgency test_limit engine compilation_cache".split(),
}


def parse(argv: Sequence[str], *, dataset: str, command: str | None = None) -> Options:
    """Flags (and flagfiles) of `argv`, program name first.

    Args:
      argv: as `sys.argv`.
      dataset: that of the experiment, unless --dataset names another.
      command: "train" or "evaluate" of `ds4nn`: the data set is then the word of `argv`
        that belongs to no flag.
    """
    program = f"ds4nn {command}" if command else f"experiments.{dataset}"
    values = _flag_values(command)
    try:
        words = values(list(argv))[1:]
        if command:
            dataset = words.pop(0) if words else values["dataset"].value or ""
            program = f"{program} {dataset}".strip()
        if values.help or values.helpfull:
            print(_help(values, program, command, dataset))
            raise SystemExit(0)
        if command and not dataset:
            raise ValueError(f"which data set? As in: {program} mnist")
        if words:
            raise ValueError(f"unexpected argument {words[0]!r}: flags begin with --")
        return _options(values, dataset, command)
    except (flags.Error, ValueError, TypeError, OSError) as error:
        raise SystemExit(f"{program}: {error}") from error


def _options(values: flags.FlagValues, dataset: str, command: str | None) -> Options:
    """What the flags say, completed by the data set and its preset."""
    run = {f.path: values[f.path].value for f in _RUN}
    run = {"dataset": dataset} | {k: v for k, v in run.items() if v is not None}
    if command and run["dataset"] != dataset:
        raise ValueError(f"--dataset={run['dataset']} says another")
    if command == "evaluate":
        run.setdefault("evaluate", "pretrained")
    path = data.local_path(run["dataset"])
    run.setdefault("out_dir", f"runs/{path.stem if path else run['dataset']}")
    run.setdefault("preset", _preset(run["dataset"]))
    config = dataclasses.asdict(presets.load(run["preset"]))
    for flag in _TRAINING:
        if (value := values[flag.path].value) is not None:
            _put(config, flag, value)
    urgency = values["urgency"].value
    return Options(config=TrainConfig(**config), urgency=urgency, **run)


def _preset(dataset: str) -> str:
    return dataset if dataset in presets.names() else "default"


class _Flag(NamedTuple):
    path: str  # "optimizer.learning_rate"
    kind: Any  # its field's annotation; choices: names, or classes by their names
    help: str


def _flags_of(classes: Mapping[str, type], path: str = "") -> Iterator[_Flag]:
    """A flag for each field that one of the classes has; of a choice, also those of its
    parameters."""
    fields = {f.name: f for kind in classes.values() for f in dataclasses.fields(kind)}
    for name, field in fields.items():
        if not field.init or field.default is dataclasses.MISSING:
            continue
        helps = {
            k: _helps(c).get(name, "") for k, c in classes.items() if hasattr(c, name)
        }
        text = f"({', '.join(helps)}) " if len(helps) < len(classes) else ""
        text += " / ".join(dict.fromkeys(helps.values()))
        default = getattr(field.default, "name", field.default)
        text += "" if default in ("", None, ()) else f" (default: {default})"
        if isinstance(field.type, type) and issubclass(field.type, Value):
            choices = kinds(field.type)
            if len(choices) > 1:
                yield _Flag(path + name, choices, text)
            yield from _flags_of(choices, f"{path}{name}.")
        else:
            literal = typing.get_origin(field.type) is typing.Literal
            kind = typing.get_args(field.type) if literal else field.type
            yield _Flag(path + name, kind, text)


def _helps(kind: type) -> dict[str, str]:
    """Help of each field, from the Attributes of its class and of those it extends."""
    docs = (each.__doc__ or "" for each in reversed(kind.__mro__))
    section = "".join(doc.partition("Attributes:")[2] for doc in docs)
    entries = re.findall(r"^ {6}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


_RUN = tuple(_flags_of({"": Options}))
_TRAINING = tuple(_flags_of({"": TrainConfig}))


class _Numbers(flags.ArgumentParser):
    """Numbers, or ranges low:high, between commas."""

    def parse(self, argument: str) -> list:
        entries = [text.split(":") for text in argument.split(",") if argument]
        return [
            [float(x) for x in entry] if entry[1:] else float(*entry)
            for entry in entries
        ]


def _flag_values(command: str | None) -> flags.FlagValues:
    """The flags of a run, without values."""
    values = flags.FlagValues()
    values.set_gnu_getopt(command is not None)  # flags in front of words, and behind
    here: dict[str, Any] = dict(flag_values=values, module_name="run")
    text = "Show the most used flags."
    flags.DEFINE_bool("help", False, text, short_name="h", **here)
    flags.DEFINE_bool("helpfull", False, "Show all flags.", **here)
    define: dict[Any, Any] = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        tuple: functools.partial(flags.DEFINE, _Numbers()),
    }
    for flag in (*_RUN, *_TRAINING):
        path, kind, text = flag
        deep = isinstance(kind, dict) or "." in path
        group = "run" if flag in _RUN else "training"
        here["module_name"] = path.split(".")[0] if deep else group
        if isinstance(kind, dict | tuple):
            flags.DEFINE_enum(path, None, list(kind), text, **here)
        else:
            types = kind, typing.get_origin(kind), *typing.get_args(kind)[:1]
            known = next(t for t in types if t in define)  # int of int | None
            define[known](path, None, text, **here)
    return values


def _help(
    values: flags.FlagValues, program: str, command: str | None, dataset: str
) -> str:
    """The most used flags with the defaults of the data set's preset, or all flags."""
    place = " DATASET" if command and not dataset else ""
    usage = f"usage: {program if command else f'python -m {program}'}{place}"
    if values.helpfull:
        return f"{usage} [--flag=value …]\n{values.get_help()}"
    preset = values["preset"].value or _preset(dataset)
    config, lines = presets.load(preset), [f"{usage} [--flag=value …]", ""]
    for name in _HELP[command or "train"]:
        default = None if command == "evaluate" else getattr(config, name, None)
        shown = "" if default is None else f" [{default}]"
        text = values[name].help.partition(" (default:")[0]
        lines += textwrap.wrap(
            f"  --{name}{shown}: {text}", 88, subsequent_indent="      "
        )
    if command != "evaluate":
        lines += ["", f"In brackets: the defaults of the preset {preset}."]
        lines += textwrap.wrap(f"Presets: {', '.join(presets.names())}.", 88)
    lines.append(
        "Data sets: digits, mnist, fashion_mnist, others that TFDS knows; or a"
    )
    lines.append(
        "folder with a folder of images for each class, a .npz or a .csv file."
    )
    return "\n".join([*lines, "All flags: --helpfull"])


def _put(config: dict, flag: _Flag, value: Any) -> None:
    """Sets what the flag stands for in a configuration as `asdict` gives it."""
    outer, inner, name = config, config, ""
    for name in flag.path.split("."):
        if name not in inner:
            parameters = ", ".join(sorted(inner.keys() - {"name"})) or "no parameters"
            raise ValueError(f"--{flag.path}: {inner['name']} has {parameters}")
        outer, inner = inner, inner[name]
    if isinstance(flag.kind, dict):  # another choice comes with its own defaults
        kept = value == inner["name"]
        value = inner if kept else dataclasses.asdict(flag.kind[value]())
    outer[name] = value
