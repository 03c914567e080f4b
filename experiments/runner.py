"""One experiment from options to results: data, training, test, figures.

Under `out_dir`:
  flags.cfg          every flag as it was resolved; a flagfile to run the same again
  metrics.jsonl      a line an epoch, and one for the test set at the end
  snapshots          with which --resume goes on
  best.safetensors   weights of the best epoch on the validation images
  *.png              figures
"""

import contextlib
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import ds4nn_jax as ds
from ds4nn_jax import data, pretrained
from ds4nn_jax.checkpoints import write_atomically
from ds4nn_jax.snapshots import Snapshots

from . import options, progress


def main(argv: Sequence[str] | None, dataset: str) -> ds.Report:
    """Runs the experiment that `argv` asks for; returns the report on the test set.

    Args:
      argv: as `sys.argv`, which is taken if it is None.
      dataset: that of the experiment, unless --dataset names another.

    Raises:
      SystemExit: with a message, for flags or data that cannot be used, or an out_dir
        that already holds a run or cannot be written.
    """
    asked = options.parse(sys.argv if argv is None else argv, dataset=dataset)
    try:
        images = data.load(asked.dataset, asked.data_dir)
        print(f"{asked.dataset}: {images.source}", flush=True)
        if asked.evaluate is not None:
            return _evaluate(asked, images)
        return _train(asked, images)
    except (data.DataError, ValueError, OSError) as error:
        raise SystemExit(f"experiments.{dataset}: {error}") from error


def _train(asked: options.Options, images: data.Dataset) -> ds.Report:
    config, out = asked.config, Path(asked.out_dir)
    metrics, weights = out / "metrics.jsonl", out / "best.safetensors"
    if metrics.exists() and not (asked.overwrite or asked.resume):
        raise ValueError(
            f"{out} already holds a run: choose another --out_dir, --resume it, or "
            "--overwrite it"
        )
    limit = asked.train_limit or None
    training = images.train_images[:limit], images.train_labels[:limit]
    start = ds.first_snapshot(config, *training)
    out.mkdir(parents=True, exist_ok=True)
    if not asked.resume:
        shutil.rmtree(out / "snapshots", ignore_errors=True)
    store = Snapshots(
        out / "snapshots", config, dataset=images.name, images=len(training[0])
    )
    saved = store.latest(start) if asked.resume else None
    if saved is None:
        store.save(start)
        history = []
    else:
        start = saved
        history = _rows(metrics)[: int(start.epoch)]
        print(f"going on after step {int(start.state.step)}, epoch {int(start.epoch)}")
    (out / "flags.cfg").write_text(asked.resolved)
    _write_rows(metrics, history)

    display = progress.Display(config.epochs, first=int(start.epoch) + 1)
    stopping = _Stopping(store, asked.snapshot_minutes)
    epochs = ds.train(
        config,
        *training,
        start=start,
        on_step=lambda step: (display.on_step(step), stopping.on_step(step)),
    )
    network, clock = config.network(), time.monotonic()
    with stopping.listening(), display.showing():
        for result in epochs:
            seconds, clock = time.monotonic() - clock, time.monotonic()
            row = _row(result)
            if result.best:
                notes = {
                    "dataset": images.name,
                    "class_names": list(images.class_names),
                    "input_shape": list(images.train_images.shape[1:]),
                    "seed": config.seed,
                    **row,
                }
                ds.save_weights(weights, network, result.params, notes=notes)
            history.append(row | {"seconds": round(seconds, 2)})
            _write_rows(metrics, history)
            store.save(result.snapshot)
            display.on_epoch(result, seconds)
    _, params, notes = ds.load_weights(weights, network=network)
    test = ds.evaluate(network, params, images.test_images, images.test_labels)
    last = {"best_epoch": notes["epoch"], **_prefixed("test", test.summary())}
    _write_rows(metrics, [*history, last])
    _print_report(test, f"best epoch {notes['epoch']}")
    _figures(out, network, params, images, test, history)
    print(f"results in {out}")
    return test


class _Stopping:
    """Snapshots every few minutes, and one before SIGTERM ends the run."""

    def __init__(self, store: Snapshots, minutes: float):
        self._store, self._seconds = store, 60 * minutes
        self._last, self._asked = time.monotonic(), False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are for the main thread
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _ask(self, *_) -> None:
        self._asked = True

    def on_step(self, step: ds.Step) -> None:
        due = self._seconds and time.monotonic() - self._last > self._seconds
        if not (due or self._asked):
            return
        self._store.save(step.snapshot())
        self._last = time.monotonic()
        if self._asked:
            print("stopped by SIGTERM; --resume goes on from here", flush=True)
            raise SystemExit(128 + signal.SIGTERM)


def _evaluate(asked: options.Options, images: data.Dataset) -> ds.Report:
    if asked.evaluate == "pretrained":
        network, params, _ = pretrained.load(images.name)
    else:
        network, params, _ = ds.load_weights(asked.evaluate)
    test = ds.evaluate(network, params, images.test_images, images.test_labels)
    _print_report(test, asked.evaluate)
    return test


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


def _print_report(test: ds.Report, which: str) -> None:
    print(
        f"test images {test.images} ({which})\n"
        f"  strict accuracy   {test.accuracy:.2%}\n"
        f"  lenient accuracy  {test.lenient_accuracy:.2%}  (a tie counts)\n"
        f"  ties              {test.tied:.2%}    all outputs silent {test.silent:.2%}\n"
        f"  decision step     {test.decision_step:.1f}\n"
        f"  spikes            {test.spikes:.0f} an image up to the decision"
        f" (and {test.layer_spikes[0]:.0f} input spikes)\n"
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
) -> None:
    # Here: matplotlib takes a second to import, and evaluating does without.
    from ds4nn_jax import plots

    from . import figures

    drawn = {
        "learning_curve": plots.learning_curve(history),
        **figures.of_network(network, params, images, test),
    }
    for name, figure in drawn.items():
        plots.save(figure, out / f"{name}.png")
