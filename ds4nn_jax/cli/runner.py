"""One experiment from options to results: data, training, test, figures.

Under `out_dir`:
  flags.cfg          every flag as it was resolved; a flagfile to run the same again
  metrics.jsonl      a line an epoch, and one for the test set at the end
  checkpoints        with which --resume goes on
  best.safetensors   weights of the best epoch on the validation images
  *.png              figures
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax._files import write_atomically
from ds4nn_jax.cli import flags, measures, progress
from ds4nn_jax.networks import pretrained
from ds4nn_jax.training import parallel
from ds4nn_jax.training.checkpoints import Checkpoints

_LAST_FIGURE = "spikes_per_layer"


def main(
    argv: Sequence[str] | None, dataset: str = "", command: str | None = None
) -> ds.Report | None:
    """Runs the experiment that `argv` asks for.

    Args:
      argv: as `sys.argv`, which is taken if it is None.
      dataset: that of the experiment, unless --dataset names another.
      command: of `ds4nn`, see `flags.parse`.

    Returns:
      The report on the test images; None from all but the first of several processes.

    Raises:
      SystemExit: with a message, for flags or data that cannot be used, or an out_dir
        that already holds a run or cannot be written.
    """
    argv = sys.argv if argv is None else argv
    options = flags.parse(argv, dataset=dataset, command=command)
    if options.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", options.compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        if options.distributed:
            jax.distributed.initialize(
                options.coordinator, options.num_processes, options.process_id
            )
        progress.check_platform()
        if options.evaluate is not None:
            return _evaluate(options)
        return _train(options)
    except (data.DataError, ValueError, TypeError, OSError) as error:
        program = f"experiments.{dataset}"
        if command:
            program = f"ds4nn {command} {options.dataset}"
        raise SystemExit(f"{program}: {error}") from error


def _evaluate(options: flags.Options) -> ds.Report:
    name = options.evaluate or ""
    network, params, notes = (
        pretrained.load(options.dataset)
        if name == "pretrained"
        else pretrained.find(name)
    )
    images = _images(options)
    if notes.get("dataset", images.name) != images.name:
        print(f"note: these weights were trained on {notes['dataset']!r}")
    network = measures.urged(network, params, options.urgency)
    test = _tested(network, params, images)
    _print_report(test, name, network, params)
    return test


def _train(options: flags.Options) -> ds.Report | None:
    try:
        importlib.import_module("matplotlib")  # missing, it is missed before any work
    except ImportError as error:
        what = "figures need matplotlib: pip install 'ds4nn_jax[experiments]'"
        raise ValueError(what) from error
    out = Path(options.out_dir)
    _check_out(out, options)
    options = _with_initial_weights(out, options)
    checkpoints = (out / "checkpoints").glob("*")
    resume = options.resume and any(path.name.isdigit() for path in checkpoints)
    params = None if resume else _initial_weights(options)
    images = _images(options)
    options = _for_classes(options, len(images.class_names))
    config = options.config
    mesh = None
    if options.num_devices or options.distributed:
        mesh = parallel.data_mesh(options.num_devices or None)
    lead = jax.process_index() == 0  # of several processes, the one that writes
    first = functools.partial(
        ds.initial_checkpoint,
        config,
        images.train_images,
        images.train_labels,
        soft_labels=_soft_labels(options),
        params=params,
    )
    start = run = None
    if lead:
        print(f"{config.spec}, from the preset {options.preset}", flush=True)
        if resume:
            run = _Run(out, options, images)
            start = run.latest(first(shapes=True))
            if run.is_finished(start):
                run.close()
                print(f"all {config.epochs} epochs are done; results in {out}")
                return None
        # Where kernels are compiled, too, the library tells so, and for how long.
        print("compiling, and scaling the initial weights …", flush=True)
    start = first() if start is None else start
    if lead:
        run = run or _Run(out, options, images)
        run.begin(start)
    if jax.process_count() > 1:
        start = parallel.from_first(start)
    _train_epochs(options, images, params, start, mesh, run)
    return None if run is None else run.finish()


def _train_epochs(
    options: flags.Options,
    images: data.Dataset,
    params: dict | None,
    start: ds.Checkpoint,
    mesh: jax.sharding.Mesh | None,
    run: "_Run | None",
) -> None:
    """All epochs that are left, recorded and shown; signals stop them."""
    config = options.config
    display = progress.Display(config.epochs, first=int(start.epoch) + 1)
    stopping = _Stopping(run, options.checkpoint_minutes)

    def on_step(step: ds.Step) -> None:
        if run is not None:
            display.on_step(step)
        stopping.on_step(step)

    epochs = ds.train(
        config,
        images.train_images,
        images.train_labels,
        soft_labels=_soft_labels(options),
        params=params,
        start=start,
        on_step=on_step,
        mesh=mesh,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping.listening())
        if run is not None:
            stack.callback(run.close)
            stack.enter_context(display.showing())
        clock = time.monotonic()
        for result in epochs:
            seconds, clock = time.monotonic() - clock, time.monotonic()
            if run is not None:
                run.add(result, seconds)
                display.on_epoch(result, seconds)


def _images(options: flags.Options) -> data.Dataset:
    print(f"loading {options.dataset} …", flush=True)
    images = data.load(options.dataset, options.data_dir)
    print(f"{options.dataset}: {images.source}", flush=True)
    train, test = options.train_limit or None, options.test_limit or None
    return images._replace(
        train_images=images.train_images[:train],
        train_labels=images.train_labels[:train],
        test_images=images.test_images[:test],
        test_labels=images.test_labels[:test],
    )


def _soft_labels(options: flags.Options) -> np.ndarray | None:
    if options.soft_labels is None:
        return None
    # Those of every epoch may be large: each is read when its images are.
    labels = np.load(options.soft_labels, mmap_mode="r", allow_pickle=False)
    return labels[..., : options.train_limit or None, :]


def _for_classes(options: flags.Options, classes: int) -> flags.Options:
    """With as many outputs as the data set has classes, where the preset's network has
    another number."""
    config = options.config
    outputs = config.network().num_classes
    if outputs == classes:
        return options
    spec = f"{config.spec.rpartition('-')[0]}-{classes}"
    if config.spec != ds.presets.load(options.preset).spec or options.init_from:
        raise ValueError(
            f"{options.dataset} has {classes} classes, the network {config.spec} has "
            f"{outputs} outputs: --spec={spec}"
        )
    fitting = dataclasses.replace(config, spec=spec)
    return flags.resolved(dataclasses.replace(options, config=fitting))


def _initial_weights(options: flags.Options) -> dict | None:
    """The parameters of --init_from."""
    if options.init_from is None:
        return None
    weights, spec = pretrained.find(options.init_from), options.config.network().spec
    if weights.network.spec != spec:
        raise ValueError(
            f"--init_from={options.init_from} is {weights.network.spec}, the run {spec}"
        )
    return weights.params


def _with_initial_weights(out: Path, options: flags.Options) -> flags.Options:
    """The run, with the initial weights that it began with if it goes on.

    Raises:
      ValueError: it began with others.
    """
    text = _flagfile(out)
    if not options.resume or not text:
        return options
    match = re.search(r"^--init_from=(.+)$", text, re.MULTILINE)
    first = match and match[1]
    if options.init_from not in (None, first):
        raise ValueError(
            f"{out} began with {first or 'weights drawn by itself'}, "
            f"--init_from={options.init_from} says another"
        )
    return flags.resolved(dataclasses.replace(options, init_from=first))


def _flagfile(out: Path) -> str:
    """Text of the run's flags.cfg; empty without one."""
    path = out / "flags.cfg"
    return path.read_text("utf-8", "surrogateescape") if path.exists() else ""


def _check_out(out: Path, options: flags.Options) -> None:
    """Refuses, before any work, an out_dir that cannot take the run."""
    if (out / "metrics.jsonl").exists() and not (options.overwrite or options.resume):
        raise ValueError(
            f"{out} already holds a run: choose another --out_dir, --resume it, or "
            "--overwrite it"
        )
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"out_dir {out} cannot be made or written in {nearest}")


class _Run:
    """The files of a run under its out_dir."""

    def __init__(self, out: Path, options: flags.Options, images: data.Dataset):
        self._out, self._options, self._images = out, options, images
        self._metrics, self._weights = out / "metrics.jsonl", out / "best.safetensors"
        self._history: list[dict] = []
        fit = "ink" if images.known == "mnist" else "whole"
        self._pictures = data.pictures(images.train_images, fit=fit)._asdict()
        out.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(out / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(f"another run is writing to {out}") from None
        if not options.resume:
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
        self._checkpoints = Checkpoints(
            out / "checkpoints",
            options.config,
            dataset=images.name,
            images=len(images.train_images),
        )
        self.save = self._checkpoints.save
        self.close = self._lock.release

    def latest(self, like: ds.Checkpoint) -> ds.Checkpoint | None:
        """Where the run goes on."""
        start = self._checkpoints.latest(like)
        if start is None:
            return None
        config = self._options.config
        step, epoch = int(start.state.step), int(start.epoch)
        if epoch > config.epochs:
            raise ValueError(
                f"{self._out} has trained for {epoch} epochs already, "
                f"--epochs={config.epochs} are fewer"
            )
        self._history = _rows(self._metrics)[:epoch]
        if epoch < config.epochs:
            factor = config.schedule.factor(config.epochs, len(start.metrics))(step)
            print(
                f"going on after step {step}, epoch {epoch} of {config.epochs}, with "
                f"{float(factor):.0%} of the learning rate ({config.schedule.name})"
            )
        return start

    def is_finished(self, start: ds.Checkpoint | None) -> bool:
        if start is None or int(start.epoch) < self._options.config.epochs:
            return False
        drawn = (self._out / f"{_LAST_FIGURE}.png").exists()
        return drawn and "test_accuracy" in _rows(self._metrics)[-1]

    def begin(self, start: ds.Checkpoint) -> None:
        """Notes what the run is; keeps its beginning."""
        if not int(start.state.step):
            self.save(start)
        text = "".join(f"# {name}: {value}\n" for name, value in _made_by().items())
        if int(start.state.step):
            text += self._other_epochs(int(start.epoch))
        content = (text + self._options.resolved).encode("utf-8", "surrogateescape")
        write_atomically(self._out / "flags.cfg", content)
        _write_rows(self._metrics, self._history)

    def _other_epochs(self, epoch: int) -> str:
        """Comments that say until when --epochs, and so the schedule, was another."""
        text, now = _flagfile(self._out), self._options.config.epochs
        comments = "".join(re.findall(r"^# .*, then --resume.*\n", text, re.MULTILINE))
        match = re.search(r"^--epochs=(\d+)$", text, re.MULTILINE)
        if match and int(match[1]) != now:
            comments += (
                f"# to repeat it: --epochs={match[1]} until epoch {epoch}, then "
                f"--resume with --epochs={now}\n"
            )
        return comments

    def add(self, result: ds.EpochResult, seconds: float) -> None:
        """Weights and metrics of an epoch first: a run that goes on from its checkpoint
        has them."""
        row = {"epoch": result.epoch, **_prefixed("train", result.train._asdict())}
        if result.validation is not None:
            row |= _prefixed("val", result.validation.summary())
        if result.best:
            notes = {
                "dataset": self._images.name,
                "class_names": list(self._images.class_names),
                "input_shape": list(self._images.train_images.shape[1:]),
                "pictures": self._pictures,
                "seed": self._options.config.seed,
                "made_by": _made_by(),
                **row,
            }
            ds.save_weights(self._weights, result.network, result.params, notes=notes)
        self._history.append(row | {"seconds": round(seconds, 2)})
        _write_rows(self._metrics, self._history)
        self.save(result.checkpoint)

    def finish(self) -> ds.Report:
        """The best epoch on the test images, and figures."""
        network, params, notes = ds.load_weights(self._weights)
        network = network.clone(engine=self._options.config.engine)
        epoch = notes["epoch"]
        test = _tested(network, params, self._images)
        last = {"best_epoch": epoch, **_prefixed("test", test.summary())}
        last["test_layer_spikes"] = list(test.layer_spikes)
        _write_rows(self._metrics, [*self._history, last])
        _print_report(test, f"best epoch {epoch}", network, params)
        _figures(self._out, self._history, epoch, network, params, self._images, test)
        print(f"results in {self._out}")
        return test


class _Stopping:
    """Checkpoints every few minutes, and one before SIGTERM or Ctrl-C ends the run.

    A second signal ends it at once, with what is on disk.
    """

    def __init__(self, run: _Run | None, minutes: float):
        self._run, self._seconds = run, 60 * minutes
        self._last = time.monotonic()
        self._signal: signal.Signals | None = None
        self._alone = jax.process_count() == 1
        self._steps = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        main = threading.current_thread() is threading.main_thread()
        if not (main and self._alone):
            yield  # signals are for the main thread; of several processes JAX listens
            return
        before = {
            number: signal.signal(number, self._ask)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, _) -> None:
        if self._signal is not None:
            progress.leave_at_once(number, "stopped at once")
        self._signal = signal.Signals(number)

    def on_step(self, step: ds.Step) -> None:
        if not self._alone:  # all processes stop after the same step
            self._steps += 1
            if multihost_utils.reached_preemption_sync_point(self._steps):
                self._signal = signal.SIGTERM
        due = self._seconds and time.monotonic() - self._last > self._seconds
        if (due or self._signal is not None) and self._run is not None:
            self._run.save(step.checkpoint())
            self._last = time.monotonic()
        if self._signal is not None:
            name = self._signal.name
            print(f"stopped by {name}; --resume goes on from here", flush=True)
            raise SystemExit(128 + self._signal)


def _made_by() -> dict[str, str]:
    """What a result depends on besides its flags and data."""
    return {
        "ds4nn_jax": ds.__version__,
        **commit(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "platform": f"{jax.default_backend()}, {platform.machine()}",
        "threads": os.environ.get("NPROC", str(os.cpu_count())),
        "date": time.strftime("%Y-%m-%d"),
    }


@functools.cache
def commit() -> dict[str, str]:
    """Where the code stood at first, if it is a checkout of its own."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": result.stdout.strip()}


def _prefixed(prefix: str, numbers: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in numbers.items()}


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write_rows(path: Path, rows: list[dict]) -> None:
    """All of them: a line is never half written, doubled or missing."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, text.encode())


def _tested(
    network: ds.SpikingNetwork, params: dict, images: data.Dataset
) -> ds.Report:
    arrays = images.test_images, images.test_labels
    with progress.counting("evaluating test images", len(arrays[0])) as on_images:
        return ds.evaluate(network, params, *arrays, on_images=on_images)


def _print_report(
    test: ds.Report, which: str, network: ds.SpikingNetwork, params: dict
) -> None:
    apart = [f"{test.layer_spikes[0]:.0f} input spikes"]
    if any(network.reference_neurons):
        name = measures.reference(network, params)
        apart.append(f"{test.reference_spikes:.0f} {name}")
    unpooled = measures.without_pooling(network, test.layer_spikes)
    layers = zip(network.names, test.layer_spikes[1:], strict=True)
    by_layer = ", ".join(f"{name} {spikes:.0f}" for name, spikes in layers)
    print(
        f"test images {test.images} ({which})\n"
        f"  strict accuracy   {test.accuracy:.2%}\n"
        f"  lenient accuracy  {test.lenient_accuracy:.2%}  (a tie counts)\n"
        f"  ties              {test.tied:.2%}    all outputs silent {test.silent:.2%}\n"
        f"  decision step     {test.decision_step:.1f}\n"
        f"  spikes            {test.spikes:.0f} an image up to the decision"
        f" (and {', '.join(apart)})\n"
        f"  without pooling   {unpooled:.0f}    of all layers: {by_layer}\n"
        f"  dead neurons      {test.dead:.1%}",
        flush=True,
    )


def _figures(
    out: Path,
    history: list[dict],
    best_epoch: int,
    network: ds.SpikingNetwork,
    params: dict,
    images: data.Dataset,
    test: ds.Report,
) -> None:
    # Here: matplotlib takes a second to import, and evaluating does without.
    from ds4nn_jax import plots
    from ds4nn_jax.cli import figures

    with figures.style():
        drawn = {
            "learning_curve": plots.learning_curve(history, best_epoch=best_epoch),
            **figures.of_network(network, params, images, test),
        }
        for name in sorted(drawn, key=_LAST_FIGURE.__eq__):
            plots.save(drawn[name], out / f"{name}.png")
