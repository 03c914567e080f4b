"""Values that a configuration is made of: frozen, hashable, compared by their fields.

Fields are converted to what they are annotated with (lists to tuples, 16.0 to 16,
NumPy's numbers to Python's), so that a value survives JSON; what cannot be converted is
refused. A kind of choice (an output rule, say) is a class of which its file defines
subclasses, each with a name for flags and JSON.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ds4nn_jax import _checks


@dataclasses.dataclass(frozen=True)
class Value:
    """A choice with its parameters. Subclasses are frozen dataclasses, too.

    Where one is expected it may be given as itself, by its name, or as what
    `dataclasses.asdict` and JSON make of it: a mapping with "name" and fields.
    """

    name: str = dataclasses.field(default="", init=False, repr=False)

    def __init_subclass__(cls, name: str | None = None):
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__)
        cls.name = name or words.lower()

    def __post_init__(self):
        settle(self)
        self.check()

    def check(self) -> None:
        """Raises for invalid parameters; called when the value is made."""

    def require(self, name: str, holds: bool, rule: str) -> None:
        """Raises ValueError, naming a field and what it must be, unless it holds."""
        require(self, name, holds, rule)


def require(value: Any, name: str, holds: bool, rule: str) -> None:
    _checks.need(holds, f"{name} must be {rule}", repr(getattr(value, name)))


def settle(value: Any) -> None:
    """Makes the fields of a new frozen dataclass what they are annotated with."""
    for field in dataclasses.fields(value):
        if field.init:
            converted = _convert(field.name, field.type, getattr(value, field.name))
            object.__setattr__(value, field.name, converted)


def kinds(choice: type[Value]) -> dict[str, type[Value]]:
    """What there is to choose from: the subclasses in the file of `choice`, by name."""

    def below(kind: type[Value]) -> list[type[Value]]:
        return [k for sub in kind.__subclasses__() for k in (sub, *below(sub))]

    local = [k for k in below(choice) if k.__module__ == choice.__module__]
    return {k.name: k for k in local or [choice] if not k.__name__.startswith("_")}


def chosen(what: str, choice: type[Value], value: Any) -> Any:
    """A value of the kind `choice`, from a value, its name or a mapping."""
    named = kinds(choice)
    if isinstance(value, choice):
        return value
    fields = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = fields.pop("name", None)
    if not isinstance(name, str):
        raise TypeError(
            f"{what} must be an instance of {choice.__name__}, or one of "
            f"{', '.join(named)}, got {value!r}"
        )
    _checks.need(name in named, f"{what} must be one of {', '.join(named)}", repr(name))
    known = [f.name for f in dataclasses.fields(named[name]) if f.init]
    for other in fields.keys() - set(known):
        raise TypeError(f"{what}: {name} has no {other!r}, only {known}")
    return named[name](**fields)


def _convert(name: str, kind: Any, value: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Value):
        return chosen(name, kind, value)
    if origin is typing.Literal:
        rule = f"{name} must be one of {', '.join(map(str, inner))}"
        _checks.need(value in inner, rule, repr(value))
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(name, inner[0], value)
    if origin is tuple:
        several = isinstance(value, Sequence | np.ndarray) and not isinstance(
            value, str
        )
        _checks.need(several, f"{name} must be a sequence", repr(value), TypeError)
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        rule = f"{name} must have {len(kinds)} entries"
        _checks.need(len(kinds) == len(value), rule, repr(value))
        return tuple(_convert(name, k, x) for k, x in zip(kinds, value, strict=True))
    return scalar(name, kind, value)


def plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and JAX as Python's, anything else as it is."""
    arrays = np.ndarray | np.generic | jax.Array
    if isinstance(value, arrays) and not _checks.is_traced(value):
        array = np.asarray(value)
        if array.dtype.kind == "f":  # Python has no long double
            array = array.astype(np.float64)
        return array.tolist()
    return value


def scalar(name: str, kind: type, value: Any) -> Any:
    """A bool, int, float or str, from NumPy and JAX too; 16.0 is an integer. What
    is annotated as something else is left alone."""
    what = {int: "an integer", float: "a number", bool: "a bool", str: "text"}
    if kind not in what:
        return value
    value = value.item() if getattr(value, "shape", None) == () else value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (kind is float or kind is int and float(value).is_integer()):
        return kind(value)
    fits = kind in (bool, str) and isinstance(value, kind)
    _checks.need(fits, f"{name} must be {what[kind]}", repr(value), TypeError)
    return value
