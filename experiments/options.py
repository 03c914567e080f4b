"""The command-line flags of every experiment, defined once.

Each field of `TrainConfig` is a flag; its docstring is the flag's help. Flags are
parsed into a value of their own, not into absl's global one, so that several
experiments, tests and notebooks can live in one process.
"""

import dataclasses
import re
import typing
from collections.abc import Sequence

from absl import flags

from ds4nn_jax.training import TrainConfig


class Options(typing.NamedTuple):
    """What an experiment was asked for.

    Attributes:
      config: the training run.
      dataset: its name.
      data_dir: where the data set lies, None for the usual places.
      out_dir: where results go.
      train_limit: how many of the training images are used, from the first; 0 is all.
      overwrite: whether results already in `out_dir` may be replaced.
      resume: whether the run in `out_dir` is to go on from its latest snapshot.
      compilation_cache: where XLA's compiled programs are kept for later processes,
        None for nowhere.
      snapshot_minutes: time between snapshots within an epoch; 0 is none.
      tensorboard: whether metrics and rasters go to TensorBoard as well.
      num_devices: that share out every batch; 0 is the default device, or all of a
        distributed run.
      distributed: whether to take part in a run of several processes.
      coordinator: "host:port" of process 0, None to find it in the environment.
      num_processes: of the run, None as the coordinator.
      process_id: of this one, None as the coordinator.
      evaluate: weights to evaluate instead of training, "pretrained" for those of the
        library; None to train.
      resolved: all flags as the text of a flagfile.
    """

    config: TrainConfig
    dataset: str
    data_dir: str | None
    out_dir: str
    train_limit: int
    overwrite: bool
    resume: bool
    compilation_cache: str | None
    snapshot_minutes: float
    tensorboard: bool
    num_devices: int
    distributed: bool
    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    evaluate: str | None
    resolved: str


def parse(argv: Sequence[str], *, dataset: str) -> Options:
    """Flags (and flagfiles) of `argv`, program name first.

    Args:
      argv: as `sys.argv`.
      dataset: that of the experiment, unless --dataset names another.

    Raises:
      SystemExit: after --help, or with a message for a flag that is unknown or wrong.
    """
    values = flags.FlagValues()
    here = dict(flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", **here)
    flags.DEFINE_string(
        "dataset", dataset, "digits, or any image data set that TFDS knows.", **here
    )
    flags.DEFINE_string(
        "data_dir", None, "Where the data set lies; empty: the usual places.", **here
    )
    flags.DEFINE_string(
        "out_dir",
        None,
        "Where weights, metrics and figures go; empty: runs/DATASET.",
        **here,
    )
    flags.DEFINE_integer(
        "train_limit",
        0,
        "Use the first so many training images; 0: all.",
        lower_bound=0,
        **here,
    )
    flags.DEFINE_bool(
        "overwrite", False, "Replace the results of an earlier run in out_dir.", **here
    )
    flags.DEFINE_bool(
        "resume",
        False,
        "Go on from the latest snapshot in out_dir; without one, from the beginning.",
        **here,
    )
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Keep XLA's compiled programs in this folder; later runs start sooner.",
        **here,
    )
    flags.DEFINE_float(
        "snapshot_minutes",
        5.0,
        "Time between snapshots within an epoch, beside those at its end; 0: none.",
        lower_bound=0.0,
        **here,
    )
    flags.DEFINE_bool(
        "tensorboard",
        False,
        "Also write metrics and rasters for TensorBoard into out_dir/tensorboard.",
        **here,
    )
    flags.DEFINE_integer(
        "num_devices",
        0,
        "Devices that share out every batch; 0: the default one, or, with "
        "--distributed, all.",
        lower_bound=0,
        **here,
    )
    flags.DEFINE_bool(
        "distributed",
        False,
        "Take part in a run of several processes, as the environment (TPU pod, SLURM, "
        "…) or the next three flags describe it.",
        **here,
    )
    flags.DEFINE_string("coordinator", None, "host:port of process 0.", **here)
    flags.DEFINE_integer("num_processes", None, "Of the run.", lower_bound=1, **here)
    flags.DEFINE_integer("process_id", None, "Of this one.", lower_bound=0, **here)
    flags.DEFINE_string(
        "evaluate",
        None,
        'Evaluate this .safetensors file, or "pretrained", instead of training.',
        **here,
    )
    _define_config(values)
    try:
        rest = values(list(argv))
        if values.help:
            raise SystemExit(values.get_help())
        if len(rest) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}: flags begin with --")
        if values.resume and values.overwrite:
            raise ValueError("--resume and --overwrite contradict each other")
        if values.resume and values.evaluate is not None:
            raise ValueError("--resume and --evaluate contradict each other")
        if values.distributed and values.evaluate is not None:
            raise ValueError("--distributed and --evaluate contradict each other")
        for name in ("coordinator", "num_processes", "process_id"):
            if values[name].value is not None and not values.distributed:
                raise ValueError(f"--{name} needs --distributed")
        config = _config(values)
    except (flags.Error, ValueError) as error:
        raise SystemExit(f"experiments.{dataset}: {error}") from error
    return Options(
        config,
        values.dataset,
        values.data_dir,
        values.out_dir or f"runs/{values.dataset}",
        values.train_limit,
        values.overwrite,
        values.resume,
        values.compilation_cache,
        values.snapshot_minutes,
        values.tensorboard,
        values.num_devices,
        values.distributed,
        values.coordinator,
        values.num_processes,
        values.process_id,
        values.evaluate,
        _repeating(values),
    )


def _repeating(values: flags.FlagValues) -> str:
    """A flagfile for the same run, from its beginning and in a place of its own."""
    lines = values.flags_into_string().splitlines(keepends=True)
    once = {f"--{no}{name}\n" for no in ("", "no") for name in ("resume", "overwrite")}
    return "".join(line for line in lines if line not in once)


def _define_config(values: flags.FlagValues) -> None:
    helps = _field_helps()
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(TrainConfig):
        name, default, text = field.name, field.default, helps[field.name]
        here = dict(flag_values=values)
        if field.type in define:
            define[field.type](name, default, text, **here)
        elif typing.get_origin(field.type) is typing.Literal:
            choices = typing.get_args(field.type)
            flags.DEFINE_enum(name, default, choices, text, **here)
        else:  # a tuple: comma-separated numbers, or low:high pairs
            flags.DEFINE_list(name, list(map(str, default)), text, **here)


def _field_helps() -> dict[str, str]:
    """Help of each field, from the Attributes section of `TrainConfig`'s docstring."""
    section = TrainConfig.__doc__.split("Attributes:")[1]
    entries = re.findall(r"^ {6}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _config(values: flags.FlagValues) -> TrainConfig:
    given = {f.name: values[f.name].value for f in dataclasses.fields(TrainConfig)}
    for name in ("learning_rates", "firing_rates"):
        given[name] = tuple(_number(name, text) for text in given[name])
    given["initial_weights"] = tuple(
        _range("initial_weights", text) for text in given["initial_weights"]
    )
    return TrainConfig(**given)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a number") from None


def _range(name: str, text: str) -> tuple[float, float]:
    low, colon, high = text.partition(":")
    if not colon:
        raise ValueError(f"{name}: {text!r} is not low:high, as in -15:30")
    return _number(name, low), _number(name, high)
