"""What a person sees while a command works: a bar on a terminal, lines in a pipe."""

import codecs
import contextlib
import io
import math
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
_SECONDS_IN_EPOCH = 30.0  # the same, within an epoch
_SECONDS_BETWEEN_REDRAWS = 0.2  # of the bar
_SMOOTHING = 0.9  # of the running means beside the bar
_PLAIN = dict(zip("…≥≤–−×θ", "... >= <= - - x theta".split(), strict=True))


def program(name: str, main: Callable[[], object]) -> None:
    """Runs `main` as what a shell started: Ctrl-C ends it with one line and status 130.

    At once, and not by KeyboardInterrupt: interrupted while it traces or compiles, JAX
    may lose the interrupt or crash when the interpreter ends.
    """

    def leave(*_) -> None:
        leave_at_once(signal.SIGINT, f"{name}: interrupted")

    signal.signal(signal.SIGINT, leave)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ds4nn")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read this has seen enough
        os._exit(128 + signal.SIGPIPE)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """What a terminal gets for characters that its encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    spelled = (
        _PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text
    )
    return "".join(spelled), error.end


codecs.register_error("ds4nn", _spelled)


def check_platform() -> None:
    """Refuses a JAX_PLATFORMS that this machine does not have.

    Raises:
      ValueError: names it.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"JAX_PLATFORMS={platforms} is not on this machine: unset it, or say cpu"
            + (f" ({reason})" if reason else "")
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
    """When a pipe gets the next line about work under way: after a while, then after
    twice as long each time, so that long work is told of in few lines."""

    def __init__(self, seconds: float = _SECONDS_BETWEEN):
        self._wait, self._last = seconds, time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._wait:
            return False
        self._wait, self._last = 2 * self._wait, now
        return True


class Display:
    """Shows steps and epochs; use `on_step` and `on_epoch` inside `showing`."""

    def __init__(self, epochs: int, *, first: int = 1):
        self._epochs, self._epoch = epochs, first
        self._console = Console(highlight=False, soft_wrap=True)
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task(
            "", total=None, epoch=f"{first}/{epochs}", metrics="compiling …"
        )
        self._means: list[float] = []
        self._last: StepMetrics | None = None
        self._drawn = -math.inf
        self._lines = Lines(_SECONDS_IN_EPOCH)

    def showing(self) -> contextlib.AbstractContextManager:
        return self._bar if self._console.is_terminal else contextlib.nullcontext()

    def on_step(self, step: Step) -> None:
        within = step.number < step.steps
        if not self._console.is_terminal:
            if within and self._lines.due():
                self._console.print(
                    f"epoch {self._epoch:3d}/{self._epochs}  step {step.number} of "
                    f"{step.steps}"
                )
            return
        if within and time.monotonic() - self._drawn < _SECONDS_BETWEEN_REDRAWS:
            return
        epoch = f"{self._epoch}/{self._epochs}"
        self._bar.update(
            self._task, completed=step.number, total=step.steps, epoch=epoch
        )
        # Of the latest but one: the device may still be at the latest, and should not
        # wait for who waits for it.
        if self._last is not None:
            values = _three(self._last)
            self._means = [
                _SMOOTHING * mean + (1 - _SMOOTHING) * value
                for mean, value in zip(self._means or values, values, strict=True)
            ]
            self._bar.update(self._task, metrics=_cost(*self._means))
        self._drawn, self._last = time.monotonic(), step.metrics

    def on_epoch(self, result: EpochResult, seconds: float) -> None:
        train, held = result.train, result.validation
        text = f"epoch {result.epoch:3d}/{self._epochs}  train "
        text += _cost(*_three(train))
        if held is not None:
            text += "  |  validation "
            text += _cost(*_three(held))
            text += f", {held.silent:.1%} silent"
        text += f"  |  {seconds:.1f} s" + ("  best" if result.best else "")
        self._console.print(text)
        self._lines = Lines(_SECONDS_IN_EPOCH)
        self._epoch = result.epoch + 1


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to be told how many of a total are done; shows it as a bar on a
    terminal, as a few lines in a pipe."""
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        columns = TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn()
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    console.print(f"{what}: compiling …")
    lines = Lines()

    def show(done: int) -> None:
        if lines.due():
            console.print(f"{what}: {done} of {total}")

    yield show


def working(what: str) -> contextlib.AbstractContextManager:
    """Says on a terminal what goes on, beside output that is for programs."""
    return Console(stderr=True).status(f"{what} …", spinner="line")


def _three(metrics: StepMetrics | Report) -> list[float]:
    numbers = metrics.accuracy, metrics.decision_step, metrics.spikes
    return [float(np.asarray(number)) for number in numbers]


def _cost(accuracy: float, step: float, spikes: float) -> str:
    return f"{accuracy:.2%} at step {step:.1f} with {spikes:.0f} spikes"
