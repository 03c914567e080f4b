"""What a training run is: the network, the rule, the steps, as values."""

import dataclasses
from typing import Literal

from ds4nn_jax import _checks
from ds4nn_jax._values import require, settle
from ds4nn_jax.layers import functions
from ds4nn_jax.layers.surrogates import Surrogate, Window
from ds4nn_jax.networks.network import SpikingNetwork
from ds4nn_jax.training.augmentation import Augmentation
from ds4nn_jax.training.initial_weights import FiringRates, InitialWeights, Uniform
from ds4nn_jax.training.optimizers import LearnedNorms, Muon, Optimizer
from ds4nn_jax.training.regularizers import RateRegularizer
from ds4nn_jax.training.rules import OutputRule, Softmax
from ds4nn_jax.training.schedules import Cosine, Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that determines a training run, besides the data.

    The defaults are a recipe for small networks and short runs, on whatever ground the
    images have: reference pulses, centred errors, a label drawn to the middle of time.
    `presets` has those behind our results, and the paper's as "paper". A choice may be
    a value, its name ("margin"), or the mapping that JSON makes of it:
    `TrainConfig(**json.loads(json.dumps(dataclasses.asdict(config))))` is the same.

    Attributes:
      spec: the network, in the paper's notation.
      num_steps: T.
      threshold: θ of every layer, mV.
      padding: of the convolutions (the paper does not say; "SAME").
      urgency: u ≥ 0 into every output neuron (the paper: 0), mV a step where θ is
        100 mV, and in proportion to θ, see `functions.dense`.
      pulses: P, number of reference neurons of each layer with weights, the last one
        for all further layers; (): none (the paper), see `functions.dense`.
      bits: of integer weights, 1 … 8, see `quantize`: the forward pass rounds,
        gradients go straight through, and the integer network is validated and kept
        (`EpochResult.network`); None: weights are real.
      engine: "auto", "scan" or "event".
      surrogate: of the hidden layers, see `surrogates`.
      output_rule: what the outputs should do, and the norm of the errors, see `rules`.
      initial_weights: what learning begins with, see `initial_weights`; pairs
        (low, high) stand for `Uniform`.
      optimizer: how gradients become steps, see `optimizers`.
      regularizer: target rates, see `regularizers`.
      centring: share of their mean that is subtracted from the errors of hidden layers,
        in [0, 1], see `losses.centre_errors`.
      schedule: how steps shrink, see `schedules`.
      augmentation: random changes of the training images, see `augmentation`.
      batch_size: images a step; an epoch leaves out an incomplete last batch.
      epochs: passes over the training images.
      validation: share of the training images held out, stratified, to choose the best
        epoch; 0 trains on all and keeps the last.
      seed: of the initial weights, the split, the shuffling and the augmentation.

    Example:
      >>> import ds4nn_jax as ds
      >>> rule = ds.rules.Margin(offset=15)
      >>> config = ds.TrainConfig(spec="64-20-10", output_rule=rule)
      >>> config.output_rule.offset, config.epochs
      (15.0, 20)
    """

    spec: str = "64C3-P2-128C3-P2-10"
    num_steps: int = 100
    threshold: float = 100.0
    padding: Literal["SAME", "VALID"] = "SAME"
    urgency: float = 0.2
    pulses: tuple[int, ...] = (10,)
    bits: int | None = None
    engine: functions.Engine = "auto"
    surrogate: Surrogate = Window()
    output_rule: OutputRule = Softmax()
    initial_weights: InitialWeights = FiringRates()
    optimizer: Optimizer = Muon(0.02, 0.013, norms=LearnedNorms())
    regularizer: RateRegularizer = RateRegularizer()
    centring: float = 1.0
    schedule: Schedule = Cosine()
    augmentation: Augmentation = Augmentation()
    batch_size: int = 16
    epochs: int = 20
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self):
        ranges = self.initial_weights
        if not isinstance(ranges, InitialWeights | str | dict):
            object.__setattr__(self, "initial_weights", Uniform(ranges))
        settle(self)
        try:
            hash(self)
        except TypeError as error:
            raise TypeError(
                f"configuration values must be hashable: {error}; make it a frozen "
                "dataclass, with tuples for lists"
            ) from error
        for name in ("num_steps", "batch_size", "epochs"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "threshold", 0 < self.threshold < float("inf"), "> 0 mV")
        require(self, "urgency", 0 <= self.urgency < float("inf"), "≥ 0 mV a step")
        if self.bits is not None:
            _checks.bits(self.bits)
        require(self, "centring", 0 <= self.centring <= 1, "in [0, 1]")
        require(self, "validation", 0 <= self.validation < 1, "in [0, 1)")
        require(self, "seed", 0 <= self.seed < 2**32, "in 0 … 2³²−1")
        self.output_rule.check_steps(self.num_steps)
        network = self.network()
        for part in (self.initial_weights, self.regularizer):
            part.check_network(network)

    def network(self) -> SpikingNetwork:
        """The network that this configuration describes."""
        return SpikingNetwork.from_spec(
            self.spec,
            num_steps=self.num_steps,
            threshold=self.threshold,
            padding=self.padding,
            urgency=self.urgency * (self.threshold / 100),
            pulses=self.pulses,
            surrogate=self.surrogate,
            normalization=self.output_rule.normalization,
            engine=self.engine,
        )
