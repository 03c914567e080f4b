"""Deep spiking networks in which every neuron fires at most once, in JAX.

Functions from spike times to spike times (`conv`, `dense`, `earliest_pool`), output
rules, Flax modules and training for DS4NN (Mirsadeghi, Shalchian, Kheradpisheh 2023).
Trained networks are in `pretrained`; data sets (`ds4nn_jax.data`), figures
(`ds4nn_jax.plots`) and estimates of energy (`ds4nn_jax.energy`) are imported by name.
"""

from ds4nn_jax import pretrained
from ds4nn_jax.analysis import Decisions, Report, decide, predict, predict_by, report
from ds4nn_jax.checkpoints import (
    CheckpointError,
    Weights,
    load_weights,
    save_weights,
)
from ds4nn_jax.encoding import decode, encode, raster
from ds4nn_jax.inference import Inference, infer
from ds4nn_jax.losses import (
    fixed_target,
    hinge_target,
    margin_target,
    normalize_gradient,
    relative_target,
    s4nn_target,
    softmax_target,
    temporal_loss,
)
from ds4nn_jax.modules import (
    Activity,
    ConvSpec,
    DenseSpec,
    PoolSpec,
    SpikingConv,
    SpikingDense,
    SpikingNetwork,
    SpikingPool,
    Trace,
    parse_spec,
    scaled_weights,
    uniform_weights,
)
from ds4nn_jax.neurons import (
    conv,
    conv_pool,
    decision_potentials,
    dense,
    earliest_pool,
    membrane_potentials,
    peak_potentials,
)
from ds4nn_jax.optimizers import (
    average_weights,
    averaged,
    damp_common,
    hold_norms,
    learn_norms,
    orthogonal_steps,
)
from ds4nn_jax.surrogates import Constant, Window
from ds4nn_jax.training import (
    EpochResult,
    Snapshot,
    Step,
    StepMetrics,
    TrainConfig,
    TrainState,
    calibrate,
    evaluate,
    first_snapshot,
    fit,
    make_optimizer,
    train,
    train_step,
)
from ds4nn_jax.types import SpikeTimes

__version__ = "0.1.0"

__all__ = [
    "Activity",
    "CheckpointError",
    "Constant",
    "ConvSpec",
    "Decisions",
    "DenseSpec",
    "EpochResult",
    "Inference",
    "PoolSpec",
    "Report",
    "Snapshot",
    "SpikeTimes",
    "SpikingConv",
    "SpikingDense",
    "SpikingNetwork",
    "SpikingPool",
    "Step",
    "StepMetrics",
    "Trace",
    "TrainConfig",
    "TrainState",
    "Weights",
    "Window",
    "average_weights",
    "averaged",
    "calibrate",
    "conv",
    "conv_pool",
    "damp_common",
    "decide",
    "decision_potentials",
    "decode",
    "dense",
    "earliest_pool",
    "encode",
    "evaluate",
    "first_snapshot",
    "fit",
    "fixed_target",
    "hinge_target",
    "hold_norms",
    "infer",
    "learn_norms",
    "load_weights",
    "make_optimizer",
    "margin_target",
    "membrane_potentials",
    "normalize_gradient",
    "orthogonal_steps",
    "parse_spec",
    "peak_potentials",
    "predict",
    "predict_by",
    "pretrained",
    "raster",
    "relative_target",
    "report",
    "s4nn_target",
    "save_weights",
    "scaled_weights",
    "softmax_target",
    "temporal_loss",
    "train",
    "train_step",
    "uniform_weights",
]
