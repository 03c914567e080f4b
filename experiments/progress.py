"""What a person sees while a network trains: a bar on a terminal, lines in a pipe."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from ds4nn_jax.training import EpochResult, Step, StepMetrics

_SMOOTHING = 0.9  # of the running means beside the bar


INTERRUPTED = 128 + signal.SIGINT  # exit status


@contextlib.contextmanager
def interruptible(program: str) -> Iterator[None]:
    """Ctrl-C ends the program with one line and the exit status of shells for it."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None


class Display:
    """Shows steps and epochs; use `on_step` and `on_epoch` inside `showing`."""

    def __init__(self, epochs: int, *, first: int = 1):
        self._epochs = epochs
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = None
        self._epoch = first
        self._means: StepMetrics | None = None

    @contextlib.contextmanager
    def showing(self) -> Iterator["Display"]:
        if not self._console.is_terminal:
            yield self
            return
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as self._bar:
            self._task = self._bar.add_task("", epoch="", metrics="compiling …")
            yield self

    def on_step(self, step: Step) -> None:
        if self._bar is None:
            return
        if self._means is None:
            self._means = step.metrics
        self._means = StepMetrics(
            *(
                _SMOOTHING * mean + (1 - _SMOOTHING) * new
                for mean, new in zip(self._means, step.metrics, strict=True)
            )
        )
        self._bar.update(
            self._task,
            completed=step.number,
            total=step.steps,
            epoch=f"{self._epoch}/{self._epochs}",
            metrics=_cost(
                self._means.accuracy, self._means.decision_step, self._means.spikes
            ),
        )

    def on_epoch(self, result: EpochResult, seconds: float) -> None:
        train, held = result.train, result.validation
        text = f"epoch {result.epoch:3d}/{self._epochs}  train "
        text += _cost(train.accuracy, train.decision_step, train.spikes)
        if held is not None:
            text += "  |  validation "
            text += _cost(held.accuracy, held.decision_step, held.spikes)
            text += f", {held.silent:.1%} silent"
        text += f"  |  {seconds:.1f} s" + ("  best" if result.best else "")
        self._console.print(text)
        self._epoch = result.epoch + 1


def _cost(accuracy: float, step: float, spikes: float) -> str:
    return f"{accuracy:.2%} at step {step:.1f} with {spikes:.0f} spikes"
