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


def main(
    argv: Sequence[str] | None, dataset: str = "", command: str | None = None
) -> ds.Report | None:
    """Runs what `argv` asks for: of a data set, or of a command (see `flags.parse`).

    Returns:
      The report on the test images; None from all but the first of several processes.

    Raises:
      SystemExit: with a message, for what cannot be used, or cannot be written.
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
        return _train(options) if options.evaluate is None else _evaluate(options)
    except (data.DataError, ValueError, TypeError, OSError) as error:
        program = f"ds4nn {command} {options.dataset}" if command else None
        raise SystemExit(f"{program or f'experiments.{dataset}'}: {error}") from error


def _evaluate(options: flags.Options) -> ds.Report:
    name = str(options.evaluate)
    shipped = options.dataset if name == "pretrained" else None
    weights = pretrained.load(shipped) if shipped else pretrained.find(name)
    network, params, notes = weights
    images = _images(options)
    if notes.get("dataset", images.name) != images.name:
        print(f"note: these weights were trained on {notes['dataset']!r}")
    network = measures.urged(network, params, options.urgency)
    return _tested(network, params, images, name)


def _train(options: flags.Options) -> ds.Report | None:
    try:
        importlib.import_module("matplotlib")  # missing, it is missed before any work
    except ImportError as error:
        what = "figures need matplotlib: pip install 'ds4nn_jax[experiments]'"
        raise ValueError(what) from error
    out = Path(options.out_dir)
    earlier = out / "metrics.jsonl"
    if earlier.exists() and not (options.overwrite or options.resume):
        raise ValueError(
            f"{out} already holds a run: choose another --out_dir, --resume it, or "
            "--overwrite it"
        )
    options, params = _initial_weights(out, options)
    images = _images(options)
    options = _for_classes(options, len(images.class_names))
    config, mesh = options.config, None
    if options.num_devices or options.distributed:
        mesh = parallel.data_mesh(options.num_devices or None)
    data_set: dict[str, Any] = dict(
        images=images.train_images,
        labels=images.train_labels,
        soft_labels=_soft_labels(options),
        params=params,
    )
    like = ds.initial_checkpoint(config, **data_set, shapes=True)  # refuses bad data
    start = run = None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:  # of several processes, the one that writes
            print(f"{config.spec}, from the preset {options.preset}", flush=True)
            run = _Run(out, options, images)
            stack.callback(run.close)
            start = run.latest(like)
            if run.finished:
                print(f"all {config.epochs} epochs are done; results in {out}")
                return None
            # Where kernels are compiled, too, the library tells so, and for how long.
            print("compiling, and scaling the initial weights …", flush=True)
        start = start or ds.initial_checkpoint(config, **data_set)
        if run is not None:
            run.begin(start)
        if jax.process_count() > 1:
            start = parallel.from_first(start)
        display = progress.Display(config.epochs, first=int(start.epoch) + 1)
        stopping = _Stopping(run, options.checkpoint_minutes, display)
        epochs = ds.train(
            config, **data_set, start=start, on_step=stopping.on_step, mesh=mesh
        )
        stack.enter_context(stopping.listening())
        if run is not None:
            stack.enter_context(display.showing())
        clock = time.monotonic()
        for result in epochs:
            seconds, clock = time.monotonic() - clock, time.monotonic()
            if run is not None:
                run.add(result, seconds)
                display.on_epoch(result, seconds)
    return None if run is None else run.finish()


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
    return dataclasses.replace(options, config=dataclasses.replace(config, spec=spec))


def _initial_weights(
    out: Path, options: flags.Options
) -> tuple[flags.Options, dict | None]:
    """The parameters of --init_from. A run that goes on has them in its checkpoint, and
    names in its flags those that it began with."""
    text, name = _flagfile(out), options.init_from
    if options.resume and text:
        match = re.search(r"^--init_from=(.+)$", text, re.MULTILINE)
        first = match and match[1]
        if name not in (None, first):
            raise ValueError(
                f"{out} began with {first or 'weights drawn by itself'}, "
                f"--init_from={name} says another"
            )
        name = first
        options = dataclasses.replace(options, init_from=name)
        if any(path.name.isdigit() for path in (out / "checkpoints").glob("*")):
            return options, None
    if name is None:
        return options, None
    weights, spec = pretrained.find(name), options.config.network().spec
    if weights.network.spec != spec:
        raise ValueError(
            f"--init_from={name} is {weights.network.spec}, the run {spec}"
        )
    return options, weights.params


def _flagfile(out: Path) -> str:
    """Text of the run's flags.cfg; empty without one."""
    path = out / "flags.cfg"
    return path.read_text("utf-8", "surrogateescape") if path.exists() else ""


class _Run:
    """The files of a run under its out_dir."""

    def __init__(self, out: Path, options: flags.Options, images: data.Dataset):
        self._out, self._options, self._images = out, options, images
        self._metrics, self._weights = out / "metrics.jsonl", out / "best.safetensors"
        self._history: list[dict] = []
        self.finished = False
        fit = "ink" if images.known == "mnist" else "whole"
        self._pictures = data.pictures(images.train_images, fit=fit)._asdict()
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(f"another run is writing to {out}") from None
        self.close = lock.release

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(
            self._out / "checkpoints",
            self._options.config,
            dataset=self._images.name,
            images=len(self._images.train_images),
        )

    def latest(self, like: ds.Checkpoint) -> ds.Checkpoint | None:
        """Where the run goes on; None: from its beginning."""
        start = self._checkpoints().latest(like) if self._options.resume else None
        if start is None:
            return None
        config = self._options.config
        step, epoch = int(start.state.step), int(start.epoch)
        if epoch > config.epochs:
            raise ValueError(
                f"{self._out} has trained for {epoch} epochs already, "
                f"--epochs={config.epochs} are fewer"
            )
        rows = _rows(self._metrics)
        self._history = rows[:epoch]
        if epoch == config.epochs:
            self.finished = "test_accuracy" in rows[-1]
            return start
        factor = config.schedule.factor(config.epochs, len(start.metrics))(step)
        print(
            f"going on after step {step}, epoch {epoch} of {config.epochs}, with "
            f"{float(factor):.0%} of the learning rate ({config.schedule.name})"
        )
        return start

    def begin(self, start: ds.Checkpoint) -> None:
        """Notes what the run is; keeps its beginning."""
        config = self._options.config
        if not self._options.resume:
            shutil.rmtree(self._out / "checkpoints", ignore_errors=True)
        self.save = self._checkpoints().save
        text = "".join(f"# {name}: {value}\n" for name, value in _made_by().items())
        if int(start.state.step):
            earlier, now = _flagfile(self._out), f"--epochs={config.epochs}"
            text += "".join(re.findall(r"# to repeat it: .*\n", earlier))
            epochs = re.search(r"^--epochs=\d+$", earlier, re.MULTILINE)
            if epochs and epochs[0] != now:  # and so was the schedule
                text += f"# to repeat it: {epochs[0]} until epoch {int(start.epoch)}, "
                text += f"then --resume with {now}\n"
        else:
            self.save(start)
        content = (text + self._options.resolved).encode("utf-8", "surrogateescape")
        write_atomically(self._out / "flags.cfg", content)
        _write_rows(self._metrics, self._history)

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
        """The best epoch on the test images, and figures; its row, the last, says that
        the run is complete."""
        network, params, notes = ds.load_weights(self._weights)
        network = network.clone(engine=self._options.config.engine)
        epoch = notes["epoch"]
        test = _tested(network, params, self._images, f"best epoch {epoch}")
        self._draw(epoch, network, params, test)
        last = {"best_epoch": epoch, **_prefixed("test", test.summary())}
        last["test_layer_spikes"] = list(test.layer_spikes)
        _write_rows(self._metrics, [*self._history, last])
        print(f"results in {self._out}")
        return test

    def _draw(
        self, epoch: int, network: ds.SpikingNetwork, params: dict, test: ds.Report
    ) -> None:
        # Here: matplotlib takes a second to import, and evaluating does without.
        from ds4nn_jax import plots
        from ds4nn_jax.cli import figures

        with figures.style():
            curve = plots.learning_curve(self._history, best_epoch=epoch)
            drawn = figures.of_network(network, params, self._images, test)
            for name, figure in {"learning_curve": curve, **drawn}.items():
                plots.save(figure, self._out / f"{name}.png")


class _Stopping:
    """Checkpoints every few minutes, and one before SIGTERM or Ctrl-C ends the run.

    A second signal ends it at once, with what is on disk.
    """

    def __init__(self, run: _Run | None, minutes: float, display: progress.Display):
        self._run, self._seconds, self._display = run, 60 * minutes, display
        self._last = time.monotonic()
        self._signal: signal.Signals | None = None
        self._alone = jax.process_count() == 1
        self._steps = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        main = threading.current_thread() is threading.main_thread()
        # Signals are for the main thread; of several processes JAX listens.
        numbers = (signal.SIGTERM, signal.SIGINT) if main and self._alone else ()
        before = {number: signal.signal(number, self._ask) for number in numbers}
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
        if self._run is not None:
            self._display.on_step(step)
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
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    if not (root / ".git").exists() or not shutil.which("git"):
        return {}
    result = subprocess.run(command, capture_output=True, text=True)
    return {} if result.returncode else {"commit": result.stdout.strip()}


def _prefixed(prefix: str, numbers: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in numbers.items()}


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write_rows(path: Path, rows: list[dict]) -> None:
    """All of them: a line is never half written, doubled or missing."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, text.encode())


def _tested(
    network: ds.SpikingNetwork, params: dict, images: data.Dataset, which: str
) -> ds.Report:
    """The report on the test images, printed."""
    arrays = images.test_images, images.test_labels
    with progress.counting("evaluating test images", len(arrays[0])) as on_images:
        test = ds.evaluate(network, params, *arrays, on_images=on_images)
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
        f"  ties              {test.tied:.2%}    no output spike {test.silent:.2%}\n"
        f"  decision step     {test.decision_step:.1f}\n"
        f"  spikes            {test.spikes:.0f} an image up to the decision"
        f" (and {', '.join(apart)})\n"
        f"  without pooling   {unpooled:.0f}    of all layers: {by_layer}\n"
        f"  dead neurons      {test.dead:.1%}",
        flush=True,
    )
    return test
