"""The default of `num_steps`: the T with which the spike times were encoded.

An array of times does not show how many steps it was coded in: what is silent in 64
steps is a late spike in 100. So times that come from `encode` or from a layer are known
by identity, eager or traced, until something is computed with them. Of other times T
is 100, if nothing is said.
"""

import warnings
import weakref

import jax
import numpy as np

from ds4nn_jax import _checks


class _LeftOut(int):
    """A number that tells a default from the same number as an argument."""


DEFAULT_STEPS = _LeftOut(100)  # the paper's T
_known: dict[int, tuple[weakref.ref, int]] = {}  # by id: arrays cannot be keys
_latest: int = DEFAULT_STEPS  # T of the latest call of `encode`


def remember(times: jax.Array, num_steps: int) -> jax.Array:
    """The times, whose T is known from now on."""
    key = id(times)
    _known[key] = weakref.ref(times, lambda _: _known.pop(key, None)), num_steps
    return times


def remember_encoded(times: jax.Array, num_steps: int) -> jax.Array:
    """As `remember`, of times that begin a program: what `encode` returns."""
    global _latest
    _latest = num_steps
    return remember(times, num_steps)


def steps_of(times: object) -> int | None:
    """T of these times, None if it is not known."""
    reference, num_steps = _known.get(id(times), (None, None))
    return num_steps if reference is not None and reference() is times else None


def resolve_steps(num_steps: int, times: object) -> int:
    """T of a function that is called with times.

    Raises:
      ValueError: no positive integer, or the times were coded in another T.
    """
    _checks.num_steps(num_steps)
    left_out = num_steps is DEFAULT_STEPS
    of_times = steps_of(times)
    steps = of_times if left_out and of_times else int(num_steps)
    if of_times not in (None, steps):
        raise ValueError(
            f"spike times are coded in T = {of_times} steps, num_steps is {steps}: "
            f"leave it out, or say num_steps={of_times}"
        )
    unsure = of_times is None and isinstance(times, jax.Array)  # tracers included
    if left_out and unsure and _latest != steps:
        warnings.warn(
            f"num_steps is left out, which means T = {steps}, and images were encoded "
            f"in T = {_latest} before: say num_steps={_latest}, or num_steps={steps}",
            stacklevel=3,
        )
    return steps


def compare(times: object, num_steps: int) -> None:
    """Refuses times for a network that are known to be coded in another T, and warns of
    those that look so: `encode`'s own T shows where it is less than the network's.
    Nothing is later, and much is at that very step."""
    of_times = steps_of(times)
    if of_times not in (None, num_steps):
        raise ValueError(
            f"spike times are coded in T = {of_times} steps, the network has "
            f"T = {num_steps}: encode images with network.encode"
        )
    if of_times is None and num_steps > DEFAULT_STEPS and _checks.readable(times):
        values = np.asarray(times)
        silent = values == DEFAULT_STEPS
        if values.size and values.max() == DEFAULT_STEPS and silent.mean() >= 0.05:
            warnings.warn(
                f"spike times look coded in T = {DEFAULT_STEPS} steps, the network has "
                f"T = {num_steps}: encode images with network.encode",
                stacklevel=4,
            )
