"""Figures of others, as published; ours stand beside them in the report.

From the DS4NN paper (Mirsadeghi, Shalchian, Kheradpisheh 2023), Tables 2 to 5 and
Section 3, which quotes the others.
"""

from functools import partial

from ds4nn_jax.cli.figures import Point

_S4NN = "Kheradpisheh & Masquelier 2020 (S4NN)"
_ZHANG = "Zhang et al. 2022"
_DEEP_STIDI = "Mirsadeghi et al. (STiDi-BP, convolutional)"
_STIDI = "Mirsadeghi et al. 2021 (STiDi-BP)"

_work = partial(Point, ours=False)

# Tables 2 and 4; spikes and decision step where they are published.
ACCURACY = {
    "mnist": (
        _work("Mostafa 2018", "784-800-10", 0.972),
        _work("Comsa et al. 2020", "784-340-10", 0.979),
        _work(_S4NN, "784-400-10", 0.974),
        _work(_STIDI, "784-350-10", 0.974),
        _work(_ZHANG, "784-800-10", 0.985),
        _work(_DEEP_STIDI, "40C5-P2-1000-10", 0.992),
        _work(_ZHANG, "16C5-P2-32C5-P2-800-128-10", 0.994),
        _work("DS4NN, the paper", "64C3-P2-128C3-P2-10", 0.993, 1126, 15.6),
    ),
    "fashion_mnist": (
        _work("Kheradpisheh et al. 2022 (BS4NN)", "784-1000-10", 0.873),
        _work(_S4NN, "784-1000-10", 0.880),
        _work(_ZHANG, "784-1000-10", 0.881),
        _work(_ZHANG, "16C5-P2-32C5-P2-800-128-10", 0.901),
        _work(_DEEP_STIDI, "20C5-P2-40C5-P2-1000-10", 0.928),
        _work("DS4NN, the paper", "128C3-P2-128C3-P2-128C3-10", 0.916, 1863),
    ),
}

# Table 3: share of neurons that never fire, by how target times are set.
DEAD = {"relative": 0.61, "s4nn": 0.95, "fixed": 0.954}

# Table 5, Fashion-MNIST: T-shirt, Trouser, …, Ankle boot.
FIRING_TIMES = (37, 22, 40, 30, 32, 31, 45, 20, 21, 17)
SPIKES = (2709, 1925, 2663, 1251, 1885, 1312, 2596, 1038, 3439, 1695)
