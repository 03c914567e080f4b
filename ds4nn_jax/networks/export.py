"""Networks of integers as C99 sources, for microcontrollers.

Additions and comparisons, no floating point, no `malloc`, no library: the same labels,
steps and spikes as `ds4nn_jax.classify`, to the last one.
"""

import math
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from ds4nn_jax._engines.synapse import Conv
from ds4nn_jax.networks import quantization
from ds4nn_jax.networks.inference import Inference, classify, stages
from ds4nn_jax.networks.network import SpikingNetwork
from ds4nn_jax.networks.spec import PoolSpec
from ds4nn_jax.networks.weights import fewest_bits, pack

_BLOCK = 16  # neurons of a place that are integrated together


def to_c(
    network: SpikingNetwork, params: dict, images: np.ndarray, *, stop: bool = True
) -> dict[str, str]:
    """C99 sources of a network, by the names of their files.

    `network.h` and `network.c` are the network: `ds4nn_classify(pixels, &result)` gives
    label, step and spikes of an image. `main.c` classifies a few and compares.

    Args:
      network: one of integers (`quantize`).
      params: its parameters.
      images: [n, H, W, C] or [n, I] uint8, which `main.c` classifies.
      stop: whether to stop at the decision, with a potential of every neuron in
        memory. Else layer after layer, with a spike time of each: less memory where
        there are convolutions, and more work.

    Returns:
      {"network.h": …, "network.c": …, "main.c": …}
    """
    check_whole(params)
    images = np.asarray(images)
    if images.dtype != np.uint8 or not len(images):
        raise ValueError(f"pixels must be uint8, got {len(images)} of {images.dtype}")
    quantization.check_exact(network, params)
    plan = _plan(network, params, images.shape[1:], stop)
    template = "decide.c" if stop else "by_layer.c"
    code = (resources.files("ds4nn_jax.networks") / "c" / template).read_text(
        encoding="utf-8"
    )
    tables = _tables(network, params, plan)
    return {
        "network.h": _header(network, plan),
        "network.c": f"{_about(network, plan)}\n{tables}\n{code}",
        "main.c": _main(images, classify(network, params, images)),
    }


def to_arrays(
    network: SpikingNetwork, params: dict
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A network of integers as values for JSON and arrays by name.

    Returns:
      ({"spec", "num_steps", "padding", "layers": [names]}, {"LAYER/kernel" int8,
      "LAYER/threshold" int32 [O], "LAYER/pulses" int32 [P, O]}); an urgency is among
      the pulses, of which pulse p comes at step ⌊p·T/P⌋.
    """
    check_whole(params)
    fields = "spec", "num_steps", "padding"
    structure = {name: getattr(network, name) for name in fields}
    structure["layers"] = list(network.weighted)
    arrays = {}
    references = network.reference_weights(params)
    by_layer = network.weighted, references, network.thresholds(params)
    for name, reference, threshold in zip(*by_layer, strict=True):
        arrays[f"{name}/kernel"] = np.asarray(params["params"][name]["kernel"])
        arrays[f"{name}/threshold"] = np.asarray(threshold, np.int32)
        arrays[f"{name}/pulses"] = np.asarray(reference, np.int32)
    return structure, arrays


def check_whole(params: dict) -> None:
    """Refuses weights that are not integers, and says how they become so."""
    if not quantization.is_whole(params):
        raise ValueError(
            "these weights are real numbers: ds.quantize(network, params, bits=8) "
            "rounds them, as --bits=8 does; training on (--init_from, --bits) wins "
            "back what that costs"
        )


class _Layer(NamedTuple):
    """A `struct layer` of the sources."""

    height: int
    width: int
    inputs: int
    size: int
    stride: int
    top: int
    left: int
    out_height: int
    out_width: int
    outputs: int
    pools: int = 0  # by layer: whether pooling is behind it, in windows of `pool`
    pool: int = 1
    first: int = 0  # to the decision: its first neuron
    into: int = 0  # by layer: offsets in the arena
    out: int = 0
    events: int = 0
    pulses: int = 0
    name: str = ""  # of its weights; pooling alone has none


class _Plan(NamedTuple):
    layers: list[_Layer]
    constants: dict[str, int]
    types: dict[str, str]
    flash: int  # bytes of weights
    ram: int  # bytes of static memory
    stop: bool


def _plan(network: SpikingNetwork, params: dict, shape, stop: bool) -> _Plan:
    kernels = [params["params"][name]["kernel"] for name in network.weighted]
    references = network.reference_weights(params)
    most = max(quantization.largest_sums(network, params).values())
    rows = dict(zip(network.weighted, map(len, references), strict=True))
    layers = []
    by_layer = network.names, network.layers, stages(network, shape, kernels)
    for name, spec, stage in zip(*by_layer, strict=True):
        image, after = (1, 1, *stage.shape)[-3:], (1, 1, *stage.out)[-3:]
        corner = 0, 0
        if isinstance(stage.synapse, Conv):
            (top, _), (left, _) = stage.synapse.pads
            corner = top, left
        window = stage.size, getattr(spec, "stride", 1)
        sizes: list[Any] = [*image, *window, *corner, *after]
        layer = _Layer(*sizes)
        if not isinstance(spec, PoolSpec):
            layer = layer._replace(pulses=rows[name], name=name)
        layers.append(layer)
    inputs, steps = math.prod(shape), network.num_steps
    thresholds = network.thresholds(params)
    events = max(x.size**2 * x.inputs + x.pulses for x in layers)
    bits = max(map(fewest_bits, kernels))
    constants = dict(STEPS=steps, CLASSES=network.num_classes, INPUTS=inputs, BITS=bits)
    index = "uint16_t" if max(events, inputs) < 2**16 else "uint32_t"
    types = dict(
        potential_t="int16_t" if most < 2**15 else "int32_t",
        pulse_t=_type(references),
        threshold_t=_type(thresholds),
        index_t=index,
        step_t="uint8_t" if steps < 2**8 else index,
    )
    layers, more, ram = (_stepwise if stop else _layerwise)(layers, types, constants)
    flash = sum(len(_packed(kernel, bits)) for kernel in kernels)
    for name, arrays in (("pulse_t", references), ("threshold_t", thresholds)):
        flash += sum(_bytes(types[name]) * np.asarray(x).size for x in arrays)
    constants = constants | more | {"LAYERS": len(layers)}
    return _Plan(layers, constants, types, flash, ram, stop)


def _type(arrays: Sequence[Any]) -> str:
    """The smallest that holds their integers."""
    most = max((int(np.abs(x).max(initial=0)) for x in arrays), default=0)
    return next(f"int{n}_t" for n in (8, 16, 32) if most < 2 ** (n - 1))


def _bytes(kind: str) -> int:
    return np.dtype(kind.removesuffix("_t")).itemsize


def _neurons(layer: _Layer) -> int:
    return layer.out_height * layer.out_width * layer.outputs


def _stepwise(layers: list[_Layer], types: dict, constants: dict):
    """Potentials of all neurons with weights, and a bit of every neuron."""
    weighted = sum(_neurons(x) for x in layers if x.name)
    at, behind, placed = 0, weighted, []
    for layer in layers:
        placed.append(layer._replace(first=at if layer.name else behind))
        at += _neurons(layer) if layer.name else 0
        behind += 0 if layer.name else _neurons(layer)
    largest = max(constants["INPUTS"], *map(_neurons, layers))
    ram = _bytes(types["potential_t"]) * weighted
    ram += -(-behind // 8) + 2 * -(-largest // 8)
    return placed, dict(WEIGHTED=weighted, NEURONS=behind, LARGEST=largest), ram


def _layerwise(layers: list[_Layer], types: dict, constants: dict):
    """Pooling is done behind the convolution in front of it. What enters a layer lies
    at one end of an arena, what leaves it at the other, its events in between."""
    merged: list[_Layer] = []
    for layer in layers:
        if layer.name:
            merged.append(layer)
        elif merged and merged[-1].name and not merged[-1].pools:
            merged[-1] = merged[-1]._replace(pools=1, pool=layer.size)
        else:
            pooling = layer._replace(pools=1, pool=layer.size, size=1)
            merged.append(
                pooling._replace(out_height=layer.height, out_width=layer.width)
            )
    step, index = _bytes(types["step_t"]), _bytes(types["index_t"])
    sizes = []  # times that enter, in words too; events; times that leave
    for layer in merged:
        into = layer.height * layer.width * layer.inputs
        events = (layer.size**2 * layer.inputs + layer.pulses) if layer.name else 0
        places = (layer.out_height // layer.pool) * (layer.out_width // layer.pool)
        sizes.append((into, -(-into * step // index), events, places * layer.outputs))
    words = max(low + e + -(-(o * step) // index) for _, low, e, o in sizes)
    arena, placed = words * index // step, []
    by_layer = enumerate(zip(merged, sizes, strict=True))
    for k, (layer, (into, low, events, out)) in by_layer:
        high = words - low - events
        if k % 2:
            placed.append(layer._replace(into=arena - into, out=0, events=high))
        else:
            placed.append(layer._replace(into=0, out=arena - out, events=low))
    steps = constants["STEPS"]
    ram = words * index + 4 * steps + index * (steps + 1) + 4 * constants["CLASSES"]
    return placed, dict(ARENA=words, BLOCK=_BLOCK), ram


def _header(network: SpikingNetwork, plan: _Plan) -> str:
    pixels = plan.constants["INPUTS"]
    return f"""\
/* {network.spec}, T = {network.num_steps}: one spike a neuron, in integers. */
#ifndef DS4NN_NETWORK_H
#define DS4NN_NETWORK_H

#include <stdint.h>

typedef struct {{
  int32_t label;
  int32_t step;    /* of the first output spike; {network.num_steps}: there was none */
  uint32_t spikes; /* of all neurons up to that step; pixels are not neurons */
}} ds4nn_result;

/* Decides an image of {pixels} pixels: rows, columns, channels; 255 is bright. */
void ds4nn_classify(const uint8_t *pixels, ds4nn_result *result);

#endif
"""


def _about(network: SpikingNetwork, plan: _Plan) -> str:
    how = "to the decision, step by step" if plan.stop else "layer after layer"
    return f"""\
/* {network.spec}, T = {network.num_steps}, {how}.
 * Flash: {plan.flash} bytes of weights, and the code.
 * RAM: {plan.ram} bytes, and the stack.
 * Written by ds4nn_jax. */
#include "network.h"
"""


def _tables(network: SpikingNetwork, params: dict, plan: _Plan) -> str:
    lines = [f"#define {name} {value}" for name, value in plan.constants.items()]
    lines += ["#define BYTES(bits) (((bits) + 7) / 8)"] if plan.stop else []
    used = {"pulse_t", "threshold_t"}
    used |= {"potential_t"} if plan.stop else {"index_t", "step_t"}
    kinds = {name: kind for name, kind in plan.types.items() if name in used}
    lines += [f"typedef {kind} {name};" for name, kind in kinds.items()]
    lines += ["", _STRUCT]
    references = network.reference_weights(params)
    by_layer = network.weighted, references, network.thresholds(params)
    for name, reference, threshold in zip(*by_layer, strict=True):
        kernel = params["params"][name]["kernel"]
        packed = _packed(kernel, plan.constants["BITS"])
        lines.append(_array("uint8_t", f"{name}_kernel", packed))
        lines.append(_array("threshold_t", f"{name}_threshold", threshold))
        if len(reference):
            lines.append(_array("pulse_t", f"{name}_pulses", reference))
    lines.append("static const struct layer layers[LAYERS] = {")
    for layer in plan.layers:
        *numbers, name = layer
        arrays = "0, 0, 0"
        if name:
            arrays = f"{name}_kernel, {name}_threshold, "
            arrays += f"{name}_pulses" if layer.pulses else "0"
        lines.append(f"    {{{', '.join(map(str, numbers))}, {arrays}}},")
    return "\n".join([*lines, "};", "", _COMMON])


def _packed(kernel: np.ndarray, bits: int) -> np.ndarray:
    """With a byte behind the last weight: two are read for each."""
    kernel = np.ascontiguousarray(kernel).ravel()
    return np.append(pack(kernel, bits).view(np.uint8), np.uint8(0))


_STRUCT = """\
struct layer {
  int32_t height, width, inputs; /* of the image that enters */
  int32_t size, stride, top, left; /* of its windows */
  int32_t out_height, out_width, outputs;
  int32_t pools, pool; /* the pooling behind it */
  int32_t first, in, out, events; /* where its neurons and times are */
  int32_t pulses;
  const uint8_t *kernel; /* [rows][outputs], BITS of a byte each; 0: pooling */
  const threshold_t *threshold;
  const pulse_t *pulse; /* [pulses][outputs] */
};
"""
_COMMON = """\
/* Two's complement, the high bit first; of one bit 1 means -1. */
static int32_t weight(const struct layer *l, int32_t k) {
  uint32_t at = (uint32_t)k * BITS, sign = (uint32_t)1 << (BITS - 1);
  uint32_t two = (uint32_t)l->kernel[at / 8] << 8 | l->kernel[at / 8 + 1];
  uint32_t bits = two >> (16 - BITS - at % 8) & (2 * sign - 1);
  return BITS == 1 ? 1 - 2 * (int32_t)bits : (int32_t)(bits ^ sign) - (int32_t)sign;
}

/* The brighter the earlier; STEPS, for black, is never. */
static int32_t step_of(uint8_t pixel) {
  return (255 - (int32_t)pixel) * STEPS / 255;
}
"""


def _array(kind: str, name: str, values: Any, per_line: int = 20) -> str:
    numbers = [str(int(x)) for x in np.asarray(values).ravel()]
    starts = range(0, len(numbers), per_line)
    lines = (", ".join(numbers[k : k + per_line]) for k in starts)
    return f"static const {kind} {name}[] = {{\n" + ",\n".join(lines) + "};\n"


def _main(images: np.ndarray, decided: Inference) -> str:
    spikes = np.asarray(decided.spikes)[:, 1:].sum(axis=1)
    rows = zip(np.asarray(decided.label), np.asarray(decided.step), spikes, strict=True)
    expected = ",\n".join(f"    {{{', '.join(map(str, row))}}}" for row in rows)
    pixels = _array("uint8_t", "images", images)
    size = math.prod(images.shape[1:])
    return f"""\
/* Classifies images, and compares with what ds4nn_jax found. */
#include <stdio.h>

#include "network.h"

{pixels}
static const ds4nn_result expected[] = {{
{expected}}};

int main(void) {{
  int wrong = 0;
  for (int k = 0; k < {len(images)}; ++k) {{
    ds4nn_result found;
    ds4nn_classify(images + k * {size}, &found);
    printf("image %d: label %ld at step %ld, %lu spikes\\n", k, (long)found.label,
           (long)found.step, (unsigned long)found.spikes);
    wrong += found.label != expected[k].label || found.step != expected[k].step ||
             found.spikes != expected[k].spikes;
  }}
  printf("%d of {len(images)} differ\\n", wrong);
  return wrong != 0;
}}
"""
