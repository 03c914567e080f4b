"""The paper's notation of a network: 64C3-P2-128C3-P2-10."""

import re
from typing import NamedTuple, NoReturn


class ConvSpec(NamedTuple):
    """`64C3`: 64 features of 3×3 windows; `64C3s2`: of every second place."""

    features: int
    size: int
    stride: int = 1

    @property
    def strides(self) -> tuple[int, int]:
        return (self.stride, self.stride)

    def __str__(self) -> str:
        step = f"s{self.stride}" if self.stride != 1 else ""
        return f"{self.features}C{self.size}{step}"


class PoolSpec(NamedTuple):
    """`P2`: earliest spike of 2×2 windows side by side."""

    size: int

    def __str__(self) -> str:
        return f"P{self.size}"


class DenseSpec(NamedTuple):
    """`10`: 10 fully connected neurons."""

    features: int

    def __str__(self) -> str:
        return str(self.features)


LayerSpec = ConvSpec | PoolSpec | DenseSpec


_TOKEN = re.compile(r"(?:([0-9]{1,9})C|(P))?([0-9]{1,9})(?:s([0-9]{1,9}))?", re.ASCII)


def parse_spec(spec: str) -> tuple[int | None, tuple[LayerSpec, ...]]:
    """The paper's notation for a network, as (input size, layers).

    Layers are joined by "-": `64C3` is a convolution of 64 features with 3×3 windows,
    `64C3s2` one with a stride of 2, `P2` a 2×2 pooling, a bare number a fully connected
    layer. A spec that begins with a bare number, "784-400-10", is fully connected and
    that number is the input size.

    Raises:
      ValueError: a malformed or misplaced token; the message points at it.

    Example:
      >>> parse_spec("784-400-10")
      (784, (DenseSpec(features=400), DenseSpec(features=10)))
      >>> parse_spec("8C3-P2-1O")
      Traceback (most recent call last):
      ValueError: network spec: '1O' is none of 64C3, 64C3s2, P2 (pool), 10 (dense)
        8C3-P2-1O
               ^^
    """
    if not isinstance(spec, str):
        raise ValueError(f"a network spec is text like '64C3-P2-10', got {spec!r}")
    tokens = spec.split("-")

    def refuse(index: int, why: str) -> NoReturn:
        start = sum(len(token) + 1 for token in tokens[:index])
        mark = " " * start + "^" * max(1, len(tokens[index]))
        raise ValueError(f"network spec: {why}\n  {spec}\n  {mark}")

    layers: list[LayerSpec] = []
    for index, token in enumerate(tokens):
        match = _TOKEN.fullmatch(token)
        if match is None:
            kinds = "64C3, 64C3s2, P2 (pool), 10 (dense)"
            refuse(index, f"{token!r} is none of {kinds}")
        features, pool, number, stride = match.groups()
        if 0 in (int(n) for n in (features, number, stride) if n is not None):
            refuse(index, f"{token!r} has a size of zero")
        if stride is not None and features is None:
            refuse(index, f"{token!r}: only a convolution has a stride, as in 64C3s2")
        if features is None and not pool:
            layers.append(DenseSpec(int(number)))
            continue
        if layers and isinstance(layers[-1], DenseSpec):
            refuse(index, f"{token!r} cannot follow a fully connected layer")
        conv = ConvSpec(int(features or 0), int(number), int(stride or 1))
        layers.append(PoolSpec(int(number)) if pool else conv)
    if not isinstance(layers[-1], DenseSpec):
        refuse(len(tokens) - 1, "the last layer must be fully connected, one per class")
    if not isinstance(layers[0], DenseSpec):
        return None, tuple(layers)
    if len(layers) == 1:
        refuse(0, "an input size needs at least one layer behind it, as in '784-10'")
    return layers[0].features, tuple(layers[1:])
