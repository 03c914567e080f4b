"""A trial of each kernel: two images with spikes worked out by hand.

Two neurons have three inputs with weights [[60, 60], [50, 30], [90, 90]], θ = 100,
T = 100. Of inputs at (3, 5, T) the first reaches 110 at step 5, the second has its peak
of 90 there; inputs at (0, T, 0) lift both to 150 at step 0.
"""

import numpy as np

from ds4nn_jax._engines.plan import (
    EXIT_LANES,
    LANES,
    LAYER,
    NETWORK,
    LayerPlan,
    NetworkPlan,
    Plan,
)

_TIMES = [[3, 5, 100], [0, 100, 0]]
_KERNEL = np.array([[60, 60], [50, 30], [90, 90]])
_THRESHOLD = [[100, 100]]
_END = [[5, 5], [0, 0]]
_RESULTS: dict[str, tuple] = {
    "forward": ([[5, 100], [0, 0]], [[110, 90], [150, 150]], _END, [], [[], []]),
    # Errors are 1, silent inputs take part: all inputs get the sums of their rows.
    "backward": (
        [[120, 80, 180], [120, 80, 180]],
        [[-2, -2], [-1, -1], [-1, -1]],
        np.zeros((0, 2)),
    ),
    "early_exit": ([0, 0], [5, 0], [[2, 1], [2, 2]]),
}


def trial(kernel: str, dtype: str) -> tuple[np.ndarray, list, list]:
    """(plan, operands, right results) of a call of a kernel."""
    lanes = EXIT_LANES if kernel == "early_exit" else LANES[dtype][1]
    rows = {
        "forward": np.vstack([_KERNEL, [[0, 0]], _THRESHOLD]),
        "backward": _KERNEL.T,
        "early_exit": np.vstack([_KERNEL, _THRESHOLD]),
    }[kernel]
    padded = np.pad(rows.astype(dtype), ((0, 0), (0, lanes - rows.shape[1])))
    if kernel == "early_exit":
        padded[-1, 2:] = np.inf  # there is no neuron
    operands = {
        "forward": [_TIMES, padded],
        "backward": [_TIMES, padded, _END, np.ones((2, 2)), _END],
        "early_exit": [_TIMES, padded.ravel()],
    }[kernel]
    results = [np.asarray(x, dtype) for x in _RESULTS[kernel]]
    if kernel == "forward":
        results[-1] = np.zeros((2, 1, 0, 100), np.int32)  # no counts
    if kernel == "early_exit":
        results = [x.astype(np.int32) for x in results]
    plan = _decision() if kernel == "early_exit" else _layer(lanes)
    return plan, [np.asarray(x, dtype) for x in operands], results


def _layer(lanes: int) -> np.ndarray:
    one = dict.fromkeys(Plan._fields, 1)  # places, windows, strides, pools, flag
    none = dict(top=0, left=0, pulses=0, counts=0)
    sizes = dict(images=2, inputs=3, outputs=2, steps=100)
    return np.array(Plan(**one | none | sizes | dict(lanes=lanes, image_parts=2)))


def _decision() -> np.ndarray:
    sizes = NetworkPlan(
        images=2,
        layers=1,
        steps=100,
        parts=2,
        potentials=EXIT_LANES,
        pooled=0,
        places=1,
        largest=3,
        events=4,
    )
    line = LayerPlan(inputs=3, outputs=2, stride=EXIT_LANES, visits=1)
    line = line._replace(order=len(NETWORK) + len(LAYER))
    return np.array([*sizes, *line, 0])
