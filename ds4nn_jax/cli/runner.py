"""One experiment from options to results: data, training, test, figures.

Under `out_dir`:
  flags.cfg          every flag as it was resolved; a flagfile to run the same again
  metrics.jsonl      a line an epoch, and one for the test set at the end
  checkpoints          with which --resume goes on
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

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.cli import flags, measures, progress
from ds4nn_jax.networks import pretrained
from ds4nn_jax.networks.weights import write_atomically
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
    asked = flags.parse(argv, dataset=dataset, command=command)
    if asked.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", asked.compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        if asked.distributed:
            jax.distributed.initialize(
                asked.coordinator, asked.num_processes, asked.process_id
            )
        progress.check_platform()
        if asked.evaluate is None:
            _check_figures()
            asked = _begun(asked)
        weights = _weights(asked)
        print(f"loading {asked.dataset} …", flush=True)
        images = _limited(asked, data.load(asked.dataset, asked.data_dir))
        print(f"{asked.dataset}: {images.source}", flush=True)
        if asked.evaluate is not None:
            return _evaluate(asked, images, weights)
        asked = _for_classes(asked, len(images.class_names))
        return _train(asked, images, weights and weights.params)
    except (data.DataError, ValueError, TypeError, OSError) as error:
        program = f"experiments.{dataset}"
        if command:
            program = f"ds4nn {command} {asked.dataset}"
        raise SystemExit(f"{program}: {error}") from error


def _limited(asked: flags.Options, images: data.Dataset) -> data.Dataset:
    train, test = asked.train_limit or None, asked.test_limit or None
    return images._replace(
        train_images=images.train_images[:train],
        train_labels=images.train_labels[:train],
        test_images=images.test_images[:test],
        test_labels=images.test_labels[:test],
    )


def _for_classes(asked: flags.Options, classes: int) -> flags.Options:
    """With as many outputs as the data set has classes, where the preset's network has
    another number."""
    config = asked.config
    outputs = config.network().num_classes
    if outputs == classes:
        return asked
    spec = f"{config.spec.rpartition('-')[0]}-{classes}"
    if config.spec != ds.presets.load(asked.preset).spec or asked.init_from:
        raise ValueError(
            f"{asked.dataset} has {classes} classes, the network {config.spec} has "
            f"{outputs} outputs: --spec={spec}"
        )
    fitting = dataclasses.replace(config, spec=spec)
    return flags.resolved(dataclasses.replace(asked, config=fitting))


def _weights(asked: flags.Options) -> ds.Weights | None:
    """Those to evaluate, or to begin with."""
    if asked.resume and _has_checkpoints(asked):
        return None
    if (given := asked.evaluate or asked.init_from) is None:
        return None
    if given == "pretrained":
        return pretrained.load(asked.dataset)
    weights = pretrained.find(given)
    network = asked.config.network()
    if asked.evaluate is None and weights.network.spec != network.spec:
        raise ValueError(
            f"--init_from={given} is {weights.network.spec}, the run {network.spec}"
        )
    return weights


def _begun(asked: flags.Options) -> flags.Options:
    """The run, with the initial weights that it began with if it goes on.

    Raises:
      ValueError: it cannot write to its out_dir, or began with other weights.
    """
    _check_out(asked)
    path = Path(asked.out_dir) / "flags.cfg"
    if not asked.resume or not path.exists():
        return asked
    text = path.read_text("utf-8", "surrogateescape")
    found = re.search(r"^--init_from=(.+)$", text, re.MULTILINE)
    first = found and found[1]
    if asked.init_from not in (None, first):
        raise ValueError(
            f"{asked.out_dir} began with {first or 'weights drawn by itself'}, "
            f"--init_from={asked.init_from} says another"
        )
    return flags.resolved(dataclasses.replace(asked, init_from=first))


def _has_checkpoints(asked: flags.Options) -> bool:
    folder = Path(asked.out_dir) / "checkpoints"
    return folder.is_dir() and any(f.name.isdigit() for f in folder.iterdir())


def _check_out(asked: flags.Options) -> None:
    """Refuses, before any work, an out_dir that cannot take the run."""
    out = Path(asked.out_dir)
    if (out / "metrics.jsonl").exists() and not (asked.overwrite or asked.resume):
        raise ValueError(
            f"{out} already holds a run: choose another --out_dir, --resume it, or "
            "--overwrite it"
        )
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"out_dir {out} cannot be made: {nearest} is no directory")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"out_dir {out} cannot be written: no permission in {nearest}")


def _check_figures() -> None:
    """Refuses, before any work, to go without matplotlib, or with settings of it that
    stop it."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise ValueError(
            "figures need matplotlib: pip install 'ds4nn_jax[experiments]'"
        ) from error


def _train(
    asked: flags.Options, images: data.Dataset, params: dict | None
) -> ds.Report | None:
    config, out = asked.config, Path(asked.out_dir)
    lead = jax.process_index() == 0  # of several processes, the one that writes
    mesh = None
    if asked.num_devices or asked.distributed:
        mesh = parallel.data_mesh(asked.num_devices or None)
    training = images.train_images, images.train_labels
    given = dict(soft_labels=_soft_labels(asked), params=params)
    first = functools.partial(ds.initial_checkpoint, config, *training, **given)
    start = record = None
    if lead:
        print(f"{config.spec}, from the preset {asked.preset}", flush=True)
        if asked.resume and _has_checkpoints(asked):
            record = _Record(out, asked, images)
            start = record.latest(first(shapes=True))
            if record.finished(start):
                record.close()
                print(f"all {config.epochs} epochs are done; results in {out}")
                return None
        # Where kernels are compiled, too, the library tells so, and for how long.
        print("compiling, and scaling the initial weights …", flush=True)
    start = first() if start is None else start
    if lead:
        record = record or _Record(out, asked, images)
        record.begin(start)
    if jax.process_count() > 1:
        start = parallel.from_first(start)

    display = progress.Display(config.epochs, first=int(start.epoch) + 1)
    stopping = _Stopping(record, asked.checkpoint_minutes)

    def on_step(step: ds.Step) -> None:
        if lead:
            display.on_step(step)
        stopping.on_step(step)

    epochs = ds.train(
        config, *training, **given, start=start, on_step=on_step, mesh=mesh
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping.listening())
        if record is not None:
            stack.callback(record.close)
            stack.enter_context(display.showing())
        clock = time.monotonic()
        for result in epochs:
            seconds, clock = time.monotonic() - clock, time.monotonic()
            if record is not None:
                record.add(result, seconds)
                display.on_epoch(result, seconds)
    return None if record is None else record.finish()


def _soft_labels(asked: flags.Options) -> np.ndarray | None:
    if asked.soft_labels is None:
        return None
    # Those of every epoch may be large: each is read when its images are.
    shares = np.load(asked.soft_labels, mmap_mode="r", allow_pickle=False)
    return shares[..., : asked.train_limit or None, :]


class _Record:
    """The files of a run under its out_dir."""

    def __init__(self, out: Path, asked: flags.Options, images: data.Dataset):
        self._out, self._asked, self._images = out, asked, images
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
        if not asked.resume:
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
        self._store = Checkpoints(
            out / "checkpoints",
            asked.config,
            dataset=images.name,
            images=len(images.train_images),
        )

    def latest(self, like: ds.Checkpoint) -> ds.Checkpoint | None:
        """Where the run goes on."""
        start = self._store.latest(like)
        if start is None:
            return None
        step, epoch, config = (
            int(start.state.step),
            int(start.epoch),
            self._asked.config,
        )
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

    def finished(self, start: ds.Checkpoint | None) -> bool:
        """Whether nothing is left to do."""
        if start is None or int(start.epoch) < self._asked.config.epochs:
            return False
        rows = _rows(self._metrics)
        drawn = (self._out / f"{_LAST_FIGURE}.png").exists()
        return drawn and "test_accuracy" in rows[-1]

    def begin(self, start: ds.Checkpoint) -> None:
        """Notes what the run is; keeps its beginning."""
        if not int(start.state.step):
            self._store.save(start)
        about = "".join(f"# {name}: {told}\n" for name, told in _made_by().items())
        flags = about + self._other_epochs(start) + self._asked.resolved
        write_atomically(
            self._out / "flags.cfg", flags.encode("utf-8", "surrogateescape")
        )
        _write_rows(self._metrics, self._history)

    def _other_epochs(self, start: ds.Checkpoint) -> str:
        """Comments that say until when --epochs, and so the schedule, was another."""
        path = self._out / "flags.cfg"
        if not int(start.state.step) or not path.exists():
            return ""
        text = path.read_text("utf-8", "surrogateescape")
        told = re.findall(r"^# .*, then --resume.*\n", text, re.MULTILINE)
        found = re.search(r"^--epochs=(\d+)$", text, re.MULTILINE)
        if found and int(found[1]) != self._asked.config.epochs:
            until, now = int(start.epoch), self._asked.config.epochs
            told.append(
                f"# to repeat it: --epochs={found[1]} until epoch {until}, then "
                f"--resume with --epochs={now}\n"
            )
        return "".join(told)

    def save(self, checkpoint: ds.Checkpoint) -> None:
        self._store.save(checkpoint)

    def add(self, result: ds.EpochResult, seconds: float) -> None:
        """Weights and metrics of an epoch first: a run that goes on from its checkpoint
        has them."""
        row, network = _row(result), result.network
        if result.best:
            notes = {
                "dataset": self._images.name,
                "class_names": list(self._images.class_names),
                "input_shape": list(self._images.train_images.shape[1:]),
                "pictures": self._pictures,
                "seed": self._asked.config.seed,
                "made_by": _made_by(),
                **row,
            }
            ds.save_weights(self._weights, network, result.params, notes=notes)
        row |= {"seconds": round(seconds, 2)}
        self._history.append(row)
        _write_rows(self._metrics, self._history)
        self._store.save(result.checkpoint)

    def close(self) -> None:
        self._lock.release()

    def finish(self) -> ds.Report:
        """The best epoch on the test images, and figures."""
        images = self._images
        network, params, notes = ds.load_weights(self._weights)
        network = network.clone(engine=self._asked.config.engine)
        test = _tested(network, params, images)
        last = {"best_epoch": notes["epoch"], **_prefixed("test", test.summary())}
        last["test_layer_spikes"] = list(test.layer_spikes)
        _write_rows(self._metrics, [*self._history, last])
        _print_report(test, f"best epoch {notes['epoch']}", network, params)
        _figures(
            self._out, network, params, images, test, self._history, notes["epoch"]
        )
        print(f"results in {self._out}")
        return test


class _Stopping:
    """Checkpoints every few minutes, and one before SIGTERM or Ctrl-C ends the run.

    A second signal ends it at once, with what is on disk.
    """

    def __init__(self, record: _Record | None, minutes: float):
        self._record, self._seconds = record, 60 * minutes
        self._last = time.monotonic()
        self._asked: signal.Signals | None = None
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
        if self._asked is not None:
            progress.leave_at_once(number, "stopped at once")
        self._asked = signal.Signals(number)

    def on_step(self, step: ds.Step) -> None:
        if not self._alone:  # all processes stop after the same step
            self._steps += 1
            if multihost_utils.reached_preemption_sync_point(self._steps):
                self._asked = signal.SIGTERM
        due = self._seconds and time.monotonic() - self._last > self._seconds
        if (due or self._asked is not None) and self._record is not None:
            self._record.save(step.checkpoint())
            self._last = time.monotonic()
        if self._asked is not None:
            name = self._asked.name
            print(f"stopped by {name}; --resume goes on from here", flush=True)
            raise SystemExit(128 + self._asked)


def _evaluate(
    asked: flags.Options, images: data.Dataset, weights: ds.Weights
) -> ds.Report:
    network, params, notes = weights
    if notes.get("dataset", images.name) != images.name:
        print(f"note: these weights were trained on {notes['dataset']!r}")
    network = measures.urged(network, params, asked.urgency)
    test = _tested(network, params, images)
    _print_report(test, asked.evaluate, network, params)
    return test


def _tested(network, params, images: data.Dataset) -> ds.Report:
    arrays = images.test_images, images.test_labels
    with progress.counting("evaluating test images", len(arrays[0])) as on_images:
        return ds.evaluate(network, params, *arrays, on_images=on_images)


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
        told = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": told.stdout.strip()}


def _row(result: ds.EpochResult) -> dict:
    row = {"epoch": result.epoch, **_prefixed("train", result.train._asdict())}
    if result.validation is not None:
        row |= _prefixed("val", result.validation.summary())
    return row


def _prefixed(prefix: str, numbers: dict) -> dict:
    return {f"{prefix}_{name}": value for name, value in numbers.items()}


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write_rows(path: Path, rows: list[dict]) -> None:
    """All of them: a line is never half written, doubled or missing."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, text.encode())


def _print_report(
    test: ds.Report, which: str, network: ds.SpikingNetwork, params: dict
) -> None:
    apart = [f"{test.layer_spikes[0]:.0f} input spikes"]
    if any(network.reference_neurons):
        name = measures.reference(network, params)
        apart.append(f"{test.reference_spikes:.0f} {name}")
    own = measures.without_pooling(network, test.layer_spikes)
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
        f"  without pooling   {own:.0f}    of all layers: {by_layer}\n"
        f"  dead neurons      {test.dead:.1%}",
        flush=True,
    )


def _figures(
    out: Path,
    network: ds.SpikingNetwork,
    params: dict,
    images: data.Dataset,
    test: ds.Report,
    history: list[dict],
    best_epoch: int,
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
