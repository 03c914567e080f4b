"""What a person sees while a command works: a bar on a terminal, lines in a pipe."""

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from ds4nn_jax.networks.evaluation import Report
from ds4nn_jax.training.loop import EpochResult, Step, StepMetrics

_SECONDS_BETWEEN = 5.0  # before the first line in a pipe; then twice as long each time
_SECONDS_BETWEEN_REDRAWS = 0.2  # of the metrics beside the bar


def program(name: str, main: Callable[[], object]) -> None:
    """Runs `main` as what a shell started: Ctrl-C ends it with one line and status 130.

    At once, and not by KeyboardInterrupt: interrupted while it traces or compiles, JAX
    may lose the interrupt or crash when the interpreter ends.
    """
    signal.signal(
        signal.SIGINT, lambda *_: leave_at_once(signal.SIGINT, f"{name}: interrupted")
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whose encoding may lack letters
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read this has seen enough
        os._exit(128 + signal.SIGPIPE)


def check_platform() -> None:
    """Raises ValueError for a JAX_PLATFORMS that this machine does not have."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        raise ValueError(
            f"JAX_PLATFORMS={platforms} is not on this machine: unset it, or say cpu "
            f"({error!r:.200})"
        ) from error


@contextlib.contextmanager
def naming_missing(command: str) -> Iterator[None]:
    """A package that is missing ends the command with the extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"{command} needs {str(error.name).partition('.')[0]}: "
            "pip install 'ds4nn_jax[experiments]'"
        ) from error


def leave_at_once(number: int, message: str) -> NoReturn:
    """Ends the process with one line and the exit status of shells for a signal."""
    with contextlib.suppress(RuntimeError, OSError):  # in the middle of a write
        sys.stdout.flush()
    terminal = sys.stdout.isatty() or sys.stderr.isatty()
    cursor = "\x1b[?25h\n" if terminal else ""  # that a bar has hidden
    os.write(2, f"{cursor}{message}\n".encode())
    os._exit(128 + number)


class Lines:
    """When the next line about work under way is due: after some seconds, then after
    `growth` times as long each time, so that long work is told of in few lines."""

    def __init__(self, seconds: float, growth: float = 2):
        self._wait, self._growth, self._last = seconds, growth, time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._wait:
            return False
        self._wait, self._last = self._growth * self._wait, now
        return True


class _Count:
    """How many of a total are done: a bar on a terminal, a few lines in a pipe."""

    def __init__(self, total: int | None, what: str):
        self.console = Console(highlight=False, soft_wrap=True)
        self.on_terminal = self.console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(
            *columns, console=self.console, disable=not self.on_terminal
        )
        self.task = self.bar.add_task(what, total=total, metrics="compiling …")
        self._lines = Lines(_SECONDS_BETWEEN)

    def show(self, done: int, total: int, what: str, metrics: str = "") -> None:
        if self.on_terminal:
            self.bar.update(self.task, completed=done, total=total, metrics=metrics)
            self.bar.update(self.task, description=what)
        elif self._lines.due():
            self.console.print(f"{what} {done} of {total}")


class Display:
    """Shows steps and epochs; use `on_step` and `on_epoch` inside `showing`."""

    def __init__(self, epochs: int, *, first: int = 1):
        self._epochs, self._epoch = epochs, first
        self._count = _Count(None, f"epoch {first}/{epochs}")
        self._means: np.ndarray | None = None  # of accuracy, decision step and spikes
        self._last: StepMetrics | None = None
        self._redraw = Lines(_SECONDS_BETWEEN_REDRAWS, growth=1)

    def showing(self) -> contextlib.AbstractContextManager:
        return self._count.bar

    def on_step(self, step: Step) -> None:
        metrics = ""
        if self._count.on_terminal:
            if step.number == 1:  # the time left is that of an epoch
                self._count.bar.reset(self._count.task)
            if step.number < step.steps and not self._redraw.due():
                return
            # Of the latest but one: the device may still be at the latest, and should
            # not wait for who waits for it.
            if self._last is not None:
                values = _costs(self._last)
                means = values if self._means is None else self._means
                self._means = 0.9 * means + 0.1 * values
                metrics = _in_words(self._means)
            self._last = step.metrics
        what = f"epoch {self._epoch:3d}/{self._epochs}  step"
        self._count.show(step.number, step.steps, what, metrics)

    def on_epoch(self, result: EpochResult, seconds: float) -> None:
        text = f"epoch {result.epoch:3d}/{self._epochs}  train "
        text += _in_words(_costs(result.train))
        if (held := result.validation) is not None:
            text += (
                f"  |  validation {_in_words(_costs(held))}, {held.silent:.1%} silent"
            )
        text += f"  |  {seconds:.1f} s" + ("  best" if result.best else "")
        self._count.console.print(text)
        self._epoch = result.epoch + 1


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to be told how many of a total are done."""
    count = _Count(total, what)
    if not count.on_terminal:
        count.console.print(f"{what}: compiling …")
    with count.bar:
        yield lambda done: count.show(done, total, what)


def _costs(metrics: StepMetrics | Report) -> np.ndarray:
    return np.array([metrics.accuracy, metrics.decision_step, metrics.spikes], float)


def _in_words(costs: np.ndarray) -> str:
    accuracy, step, spikes = costs
    return f"{accuracy:.2%} at step {step:.1f} with {spikes:.0f} spikes"
