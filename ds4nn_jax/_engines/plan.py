"""What is static about a call of a kernel: int64 words, the call's one attribute.

The side that writes a plan and the loops that read it share these names; a loop takes
word `PLAN.images`, which is its position.
"""

from typing import NamedTuple

LANES = {"float32": (32, 16), "float64": (16, 8)}  # of a block, wide and narrow


class Plan(NamedTuple):
    """Of a layer's forward or backward pass."""

    images: int
    height: int
    width: int
    inputs: int
    out_height: int  # behind the pooling
    out_width: int
    outputs: int
    rows: int
    columns: int
    row_stride: int
    column_stride: int
    top: int
    left: int
    pool_rows: int
    pool_columns: int
    pulses: int  # P reference neurons, whose weights are rows behind the kernel's
    steps: int
    lanes: int
    image_parts: int
    flag: int  # forward: return peaks; backward: silent inputs get an error
    # Of a forward pass alone.
    row_parts: int = 1
    counts: int = 0  # rows of spike counts: 0, 1 or, with those of pooling, 2
    # Several networks of one structure in a call: their results lie one behind the
    # other; of each operand the bytes from one network's to the next's, 0 if shared.
    networks: int = 1
    stride_0: int = 0
    stride_1: int = 0
    stride_2: int = 0
    stride_3: int = 0
    stride_4: int = 0


class NetworkPlan(NamedTuple):
    """Of the early-exit kernel; behind it a `LayerPlan` for each layer, then the orders
    of windows."""

    images: int
    layers: int
    steps: int
    parts: int
    potentials: int  # padded, of all layers with weights
    pooled: int  # neurons of all pooling layers
    places: int  # positions of the largest convolution
    largest: int  # neurons of the largest layer or image
    events: int  # synapses that can act in one layer, and a stop for every position


class LayerPlan(NamedTuple):
    """Of a layer of the early-exit kernel; the last is dense: a 1×1 convolution of one
    pixel.

    `weights` and `potentials` are offsets, `order` is one into the plan: for a
    convolution its windows as they are visited, for pooling the window of each pixel,
    or −1.
    """

    pools: int = 0
    height: int = 1
    width: int = 1
    inputs: int = 1
    rows: int = 1
    columns: int = 1
    top: int = 0
    left: int = 0
    out_height: int = 1
    out_width: int = 1
    outputs: int = 1
    pulses: int = 0  # P, rows of weights behind the kernel's, then a row of thresholds
    weights: int = 0
    potentials: int = 0
    stride: int = 1
    order: int = 0
    visits: int = 0


EXIT_LANES = 16  # the early-exit kernel pads weight rows and potentials to such blocks

PLAN = Plan(*range(len(Plan._fields)))
NETWORK = NetworkPlan(*range(len(NetworkPlan._fields)))
LAYER = LayerPlan(*range(len(LayerPlan._fields)))
