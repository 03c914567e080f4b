"""Deep spiking networks in which every neuron fires at most once, in JAX.

Functions from spike times to spike times (`conv`, `dense`, `earliest_pool`), output
rules, Flax modules and training for DS4NN (Mirsadeghi, Shalchian, Kheradpisheh 2023).
A configuration consists of values; each kind has its module: `rules`, `surrogates`,
`optimizers`, `schedules`, `regularizers`, `initial_weights`, `augmentation`. Named
configurations are in `presets`, trained networks in
`pretrained`, data sets in `data`. Figures (`ds4nn_jax.plots`) and estimates of energy
(`ds4nn_jax.networks.energy`) are imported by name.
"""

# ruff: noqa: I001  (in order of dependency)

# Spike times and layers: pure functions.
from ds4nn_jax.types import SpikeTimes
from ds4nn_jax.layers.encoding import encode
from ds4nn_jax.layers.losses import centre_errors, normalize_gradient, temporal_loss
from ds4nn_jax.layers.functions import (
    conv,
    decision_potentials,
    dense,
    earliest_pool,
    membrane_potentials,
)

# Networks: Flax modules that own the weights.
from ds4nn_jax.layers.modules import SpikingConv, SpikingDense, SpikingPool
from ds4nn_jax.networks.network import Activity, SpikingNetwork, Trace
from ds4nn_jax.networks.spec import ConvSpec, DenseSpec, PoolSpec, parse_spec

# Decisions and measures.
from ds4nn_jax.networks.evaluation import (
    Decisions,
    Report,
    decide,
    evaluate,
    predict,
    predict_by,
    report,
)
from ds4nn_jax.networks.inference import Inference, classify, infer

# What a run is made of, a module for each kind of value.
from ds4nn_jax.layers import surrogates
from ds4nn_jax.training import augmentation, optimizers, regularizers, rules, schedules
from ds4nn_jax.training import initial_weights
from ds4nn_jax.training.initial_weights import calibrate
from ds4nn_jax.training.rules import relative_target
from ds4nn_jax.layers.surrogates import Constant, Window
from ds4nn_jax.training.config import TrainConfig
from ds4nn_jax.training import presets

# Networks of integers.
from ds4nn_jax.networks.quantization import quantize

# Training.
from ds4nn_jax.training.step import StepMetrics, TrainState, make_optimizer, train_step
from ds4nn_jax.training.loop import (
    EpochResult,
    Checkpoint,
    Step,
    initial_checkpoint,
    fit,
    train,
)

# Weights on disk, and those that come with the library.
from ds4nn_jax.networks.weights import (
    WeightsError,
    Weights,
    load_weights,
    save_weights,
)
from ds4nn_jax.networks import pretrained

# Data sets; figures and energy are imported by name.
from ds4nn_jax import data

__version__ = "0.1.0"

__all__ = [
    # layers
    "SpikeTimes",
    "centre_errors",
    "conv",
    "decision_potentials",
    "dense",
    "earliest_pool",
    "encode",
    "membrane_potentials",
    "normalize_gradient",
    "temporal_loss",
    # networks
    "Activity",
    "ConvSpec",
    "DenseSpec",
    "PoolSpec",
    "SpikingConv",
    "SpikingDense",
    "SpikingNetwork",
    "SpikingPool",
    "Trace",
    "parse_spec",
    "quantize",
    # decisions
    "Decisions",
    "Inference",
    "Report",
    "classify",
    "decide",
    "evaluate",
    "infer",
    "predict",
    "predict_by",
    "report",
    # values
    "Constant",
    "TrainConfig",
    "Window",
    "augmentation",
    "calibrate",
    "initial_weights",
    "regularizers",
    "optimizers",
    "presets",
    "relative_target",
    "rules",
    "schedules",
    "surrogates",
    # training
    "EpochResult",
    "Checkpoint",
    "Step",
    "StepMetrics",
    "TrainState",
    "initial_checkpoint",
    "fit",
    "make_optimizer",
    "train",
    "train_step",
    # weights
    "WeightsError",
    "Weights",
    "load_weights",
    "pretrained",
    "save_weights",
    # data sets
    "data",
]
