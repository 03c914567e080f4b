"""The command-line flags of every experiment, made of the values that they stand for.

Each field of `Options` and `TrainConfig` is a flag. A choice is named by its flag,
`--output_rule=softmax`, and has its parameters under it, `--output_rule.offset=10`.
Docstrings are the help. Flags are parsed into a value of their own, not into absl's
global one, so that several experiments, tests and notebooks can live in one process.
"""

import dataclasses
import os
import re
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any

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
      resolved: the text of a flagfile for the same run, from its beginning and in a
        place of its own.
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
      train_limit: use the first so many training images; 0: all. The preset "smoke"
        has 4000.
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
    resolved: str
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
            if given := getattr(self, name):
                object.__setattr__(self, name, os.path.expanduser(given))
            if given and "\n" in given:
                raise ValueError(f"{name} must be one line, got {given!r}")
        for name in ("train_limit", "test_limit", "checkpoint_minutes", "num_devices"):
            require(self, name, getattr(self, name) >= 0, "≥ 0")
        for one, other in (("resume", "overwrite"), ("resume", "evaluate")):
            if getattr(self, one) and getattr(self, other):
                raise ValueError(f"--{one} and --{other} contradict each other")
        if self.distributed and self.evaluate is not None:
            raise ValueError("--distributed and --evaluate contradict each other")
        for name in ("coordinator", "num_processes", "process_id"):
            if getattr(self, name) is not None and not self.distributed:
                raise ValueError(f"--{name} needs --distributed")


_RUN = [f for f in dataclasses.fields(Options) if f.default is not dataclasses.MISSING]
_ONCE = ("resume", "overwrite")  # not for who repeats a run
_SMOKE_IMAGES = 4000  # of the preset "smoke"
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
        that belongs to no flag, and `dataset` is not used.

    Raises:
      SystemExit: after --help, or with a message for a flag that is unknown or wrong.
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
        given = {f.name: values[f.name].value for f in _RUN}
        run = {"dataset": dataset} | {k: v for k, v in given.items() if v is not None}
        if command and run["dataset"] != dataset:
            raise ValueError(f"--dataset={run['dataset']} says another")
        if command == "evaluate":
            run.setdefault("evaluate", "pretrained")
        own = data.local_path(run["dataset"])
        run.setdefault("out_dir", f"runs/{own.stem if own else run['dataset']}")
        run.setdefault("preset", _preset(run["dataset"]))
        if run["preset"] == "smoke":
            run.setdefault("train_limit", _SMOKE_IMAGES)
        base = presets.load(run["preset"])
        config = TrainConfig(**_changed(values, "", TrainConfig, base))
        urgency = values["urgency"].value
        asked = Options(config=config, urgency=urgency, resolved="", **run)
    except (flags.Error, ValueError, TypeError, OSError) as error:
        raise SystemExit(f"{program}: {error}") from error
    return resolved(asked)


def resolved(asked: Options) -> Options:
    """The same, with the flagfile that gives it."""
    kept = [field for field in _RUN if field.name not in _ONCE]
    config = asked.config
    lines = *_lines("", asked, kept), *_lines("", config, _parameters(TrainConfig))
    return dataclasses.replace(asked, resolved="\n".join(lines) + "\n")


def _preset(dataset: str) -> str:
    return dataset if dataset in presets.names() else "default"


def _flag_values(command: str | None) -> flags.FlagValues:
    """The flags of a run, without values."""
    values = flags.FlagValues()
    values.set_gnu_getopt(command is not None)  # flags in front of words, and behind
    here = dict(flag_values=values, module_name="run")
    flags.DEFINE_bool(
        "help", False, "Show the most used flags.", short_name="h", **here
    )
    flags.DEFINE_bool("helpfull", False, "Show all flags.", **here)
    for group, kind, fields in (
        ("run", Options, _RUN),
        ("training", TrainConfig, dataclasses.fields(TrainConfig)),
    ):
        for field in fields:
            text = _helps(kind).get(field.name, "")
            _define(values, group, field.name, field, text)
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
    config = presets.load(preset)
    lines = [f"{usage} [--flag=value …]", ""]
    for name in _HELP[command or "train"]:
        default = getattr(config, name, None)
        text = values[name].help.partition(" (default:")[0]
        shown = "" if default is None or command == "evaluate" else f" [{default}]"
        lines += textwrap.wrap(
            f"--{name}{shown}: {text}",
            width=88,
            initial_indent="  ",
            subsequent_indent="      ",
        )
    if command != "evaluate":
        lines += ["", f"In brackets: the defaults of the preset {preset}."]
        lines += textwrap.wrap(f"Presets: {', '.join(presets.names())}.", 88)
    lines += textwrap.wrap(
        "Data sets: digits, mnist, fashion_mnist, others that TFDS knows; or a folder "
        "with a folder of images for each class, a .npz or a .csv file.",
        88,
    )
    return "\n".join([*lines, "All flags: --helpfull"])


def _define(values: flags.FlagValues, group: str, path: str, field, text: str) -> None:
    """The flag of a field; of a choice, also those of its parameters."""
    kind, several = field.type, typing.get_origin(field.type)
    default = getattr(field.default, "name", field.default)
    text += "" if default in ("", None, ()) else f" (default: {default})"
    if isinstance(kind, type) and issubclass(kind, Value):
        named, group = kinds(kind), path.split(".")[0]
        here = dict(flag_values=values, module_name=group)
        if len(named) > 1:
            flags.DEFINE_enum(path, None, list(named), text, **here)
        inner = {f.name: f for each in named.values() for f in _parameters(each)}
        for name, each in inner.items():
            told = {
                n: _helps(k).get(name, "") for n, k in named.items() if hasattr(k, name)
            }
            which = f"({', '.join(told)}) " if len(told) < len(named) else ""
            help = which + " / ".join(dict.fromkeys(told.values()))
            _define(values, group, f"{path}.{name}", each, help)
        return
    here = dict(flag_values=values, module_name=group)
    if several is typing.Literal:
        flags.DEFINE_enum(path, None, typing.get_args(kind), text, **here)
        return
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        tuple: flags.DEFINE_list,
    }
    kind = kind if kind in define else several
    kind = kind if kind in define else typing.get_args(field.type)[0]  # of X | None
    define[kind](path, None, text, **here)


def _parameters(kind: type) -> list:
    return [f for f in dataclasses.fields(kind) if f.init]


def _helps(kind: type) -> dict[str, str]:
    """Help of each field, from the Attributes of its class and of those it extends."""
    docs = (each.__doc__ or "" for each in reversed(kind.__mro__))
    section = "".join(doc.partition("Attributes:")[2] for doc in docs)
    entries = re.findall(r"^ {6}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _changed(values: flags.FlagValues, path: str, kind: type, base: Any) -> dict:
    """The fields of a `kind`: those of `base`, if it is one, changed by flags."""
    fields = {}
    for field in _parameters(kind):
        name = f"{path}{field.name}"
        now = getattr(base, field.name) if type(base) is kind else field.default
        if isinstance(field.type, type) and issubclass(field.type, Value):
            fields[field.name] = _choice(values, name, field.type, now)
        elif (given := values[name].value) is None:
            fields[field.name] = now
        else:
            inner = typing.get_args(field.type)[:1]
            several = typing.get_origin(field.type) is tuple
            fields[field.name] = _several(name, inner[0], given) if several else given
    return fields


def _choice(values: flags.FlagValues, path: str, choice: type, base: Value) -> Value:
    named = kinds(choice)
    asked = values[path].value if len(named) > 1 else None
    kind = named[asked] if asked else type(base)
    has = {f.name for f in _parameters(kind)}
    for other in {f.name for k in named.values() for f in _parameters(k)} - has:
        if values[f"{path}.{other}"].value is not None:
            has_what = ", ".join(sorted(has)) or "no parameters"
            raise ValueError(f"--{path}.{other}: {kind.name} has {has_what}")
    return kind(**_changed(values, f"{path}.", kind, base))


def _several(name: str, kind: Any, given: list[str]) -> tuple:
    """Numbers, or ranges low:high, as `kind` says."""
    try:
        if kind in (int, float):
            return tuple(map(kind, given))
        pairs = (text.split(":") for text in given)
        return tuple((float(low), float(high)) for low, high in pairs)
    except ValueError:
        kinds = {int: "whole numbers", float: "numbers"}
        told = kinds.get(kind, "ranges low:high, as in -15:30")
        raise ValueError(f"--{name}={','.join(given)}: not {told}") from None


def _lines(path: str, value: Any, fields: list) -> Iterator[str]:
    """A line of a flagfile for each of the fields of a value."""
    for field in fields:
        flag, given = f"{path}{field.name}", getattr(value, field.name)
        if isinstance(given, Value):
            if len(kinds(field.type)) > 1:
                yield f"--{flag}={given.name}"
            yield from _lines(f"{flag}.", given, _parameters(type(given)))
        elif isinstance(given, bool):
            yield f"--{'' if given else 'no'}{flag}"
        elif isinstance(given, tuple):
            parts = (x if isinstance(x, tuple) else (x,) for x in given)
            yield f"--{flag}={','.join(':'.join(map(str, part)) for part in parts)}"
        elif given is not None:
            yield f"--{flag}={given}"
