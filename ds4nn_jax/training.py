"""From a configuration and a data set to a trained network.

`init`, `train_step` and `fit` are pure and can be jitted and vmapped over seeds;
`train` is the loop around them for data sets on the host, a generator of epochs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ds4nn_jax import (
    _checks,
    analysis,
    augmentation,
    data,
    losses,
    neurons,
    optimizers,
    parallel,
)
from ds4nn_jax._engines.synapse import flat
from ds4nn_jax.encoding import encode
from ds4nn_jax.modules import Activity, SpikingNetwork, parse_spec
from ds4nn_jax.surrogates import Constant, Window
from ds4nn_jax.types import SpikeTimes

Params = dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that a training run is determined by, besides the data.

    The defaults are the paper's choices where it makes one and can be followed; `paper`
    in `experiments/flagfiles` is its Table 1 to the letter.

    Attributes:
      spec: the network, in the paper's notation.
      num_steps: T.
      threshold: θ of every layer, mV.
      padding: of the convolutions (the paper does not say; "SAME").
      engine: "auto", "scan" or "event".
      surrogate: of the hidden layers, "constant" (paper) or "window".
      window_width: β of "window", mV.
      output_rule: "relative" (Eq. 4), "margin", "softmax", "s4nn", "hinge" or
        "fixed"; see `losses`.
      offset: λ of Eq. 4 (γ of "s4nn"), time steps.
      temperature: τ of "softmax", time steps.
      horizon: H of "softmax", time steps: smaller ones make faster networks.
      anchor: κ of "softmax", time steps: how strongly the label is drawn to
        `label_time`.
      label_time: target of the label under "fixed", t* of "softmax".
      other_time: target of the others under "fixed".
      normalization: of the errors between layers (Eq. 11), "l2", "l1", "sum" or "none".
      initial_weights: (low, high) mV for each layer with weights; empty: by fan-in.
      firing_rates: shares of the driven neurons (see `calibrate`) that fire on
        `calibration_images` training images after each layer with weights has been
        scaled for it; empty: unscaled.
      calibration_images: how many images scale the initial weights.
      optimizer: "adam" (paper), or "muon": steps of hidden layers with at least as many
        inputs as neurons are orthogonalised, see `optimizers.orthogonal_steps`.
      learning_rates: η, one for all layers with weights or one for each.
      rate_unit: "mV", η is a step in mV (paper), or "rms", η is a step relative to the
        root mean square of the layer's weights.
      common_step: factor on the part of a step that is common to all weights of a
        neuron, see `optimizers.damp_common`.
      schedule: "step" (×`decay` every `decay_epochs` epochs, paper), "cosine" (to 0 at
        the last step) or "constant".
      decay: factor of "step".
      decay_epochs: period of "step".
      weight_norm: "free", or "held": every neuron keeps the L2 norm of its initial
        weights, so that learning turns weight vectors without growing them; or
        "hidden", so for all layers but the output's; or "learned": norms follow their
        gradient, but do not grow by turning.
      average: decay of a running average of the weights over steps, in [0, 1), which
        is then what is validated and kept instead of the weights; 0: none. See
        `optimizers.average_weights`.
      shift: training images are moved by up to so many pixels in each direction.
      flip: whether training images are mirrored left to right, every other one.
      batch_size: images a step; what is left of an epoch is left out.
      epochs: passes over the training images.
      validation: share of the training images held out, stratified, to choose the best
        epoch; 0 trains on all and keeps the last.
      seed: of the initial weights, the split, the shuffling and the augmentation.
    """

    spec: str = "64C3-P2-128C3-P2-10"
    num_steps: int = 100
    threshold: float = 100.0
    padding: Literal["SAME", "VALID"] = "SAME"
    engine: neurons.Engine = "auto"
    surrogate: Literal["constant", "window"] = "constant"
    window_width: float = 50.0
    output_rule: Literal["relative", "margin", "softmax", "s4nn", "hinge", "fixed"] = (
        "relative"
    )
    offset: float = 10.0
    temperature: float = 5.0
    horizon: float = 50.0
    anchor: float = 0.0
    label_time: float = 0.0
    other_time: float = 100.0
    normalization: losses.Normalization = "l2"
    initial_weights: tuple[tuple[float, float], ...] = ()
    firing_rates: tuple[float, ...] = ()
    calibration_images: int = 200
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rates: tuple[float, ...] = (0.1,)
    rate_unit: Literal["mV", "rms"] = "mV"
    common_step: float = 1.0
    schedule: Literal["step", "cosine", "constant"] = "step"
    decay: float = 0.9
    decay_epochs: int = 5
    weight_norm: Literal["free", "held", "hidden", "learned"] = "free"
    average: float = 0.0
    shift: int = 0
    flip: bool = False
    batch_size: int = 64
    epochs: int = 10
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            choices = getattr(field.type, "__args__", ())
            value = getattr(self, field.name)
            if choices and isinstance(choices[0], str) and value not in choices:
                raise ValueError(
                    f"{field.name} must be one of {', '.join(choices)}, got {value!r}"
                )
        for name in ("num_steps", "batch_size", "epochs", "decay_epochs"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in (
            "threshold",
            "window_width",
            "temperature",
            "horizon",
            "decay",
            "calibration_images",
        ):
            self._require(name, getattr(self, name) > 0, "> 0")
        self._require("common_step", 0 <= self.common_step <= 1, "in [0, 1]")
        self._require("offset", self.offset >= 0, "≥ 0")
        self._require("anchor", self.anchor >= 0, "≥ 0")
        self._require("average", 0 <= self.average < 1, "in [0, 1)")
        self._require("shift", self.shift >= 0, "≥ 0")
        self._require("validation", 0 <= self.validation < 1, "in [0, 1)")
        used = {"fixed": ("label_time", "other_time"), "softmax": ("label_time",)}
        for name in used.get(self.output_rule, ()):
            holds = 0 <= getattr(self, name) <= self.num_steps
            self._require(name, holds, f"in 0 … T = {self.num_steps}")
        self._require("seed", 0 <= self.seed < 2**32, "in 0 … 2³²−1")
        weighted = len(self.network().weighted)
        self._require(
            "firing_rates",
            len(self.firing_rates) in (0, weighted),
            f"empty or one for each of the {weighted} layers with weights",
        )
        self._require(
            "learning_rates",
            len(self.learning_rates) in (1, weighted)
            and all(0 < rate < math.inf for rate in self.learning_rates),
            f"one or {weighted} numbers > 0",
        )
        self._require(
            "firing_rates", all(0 < r < 1 for r in self.firing_rates), "in (0, 1)"
        )

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {rule}, got {getattr(self, name)!r}")

    def network(self) -> SpikingNetwork:
        """The network that this configuration describes."""
        windowed = self.surrogate == "window"
        input_size, layers = parse_spec(self.spec)
        return SpikingNetwork(
            layers=layers,
            input_size=input_size,
            num_steps=self.num_steps,
            threshold=self.threshold,
            padding=self.padding,
            surrogate=Window(self.window_width) if windowed else Constant(),
            normalization=self.normalization,
            engine=self.engine,
            initial_weights=self.initial_weights or None,
        )


class TrainState(NamedTuple):
    """What a step changes. A pytree: it can be saved, sharded and vmapped.

    Attributes:
      step: steps taken.
      params: weights.
      optimizer: optax's state.
      key: of the augmentation; a step draws from it folded with its number.
    """

    step: jax.Array
    params: Params
    optimizer: optax.OptState
    key: jax.Array


class StepMetrics(NamedTuple):
    """Means over one training batch, before the step: scalars."""

    loss: jax.typing.ArrayLike
    accuracy: jax.typing.ArrayLike
    decision_step: jax.typing.ArrayLike
    spikes: jax.typing.ArrayLike


class Snapshot(NamedTuple):
    """Where a training run stands, all that it needs to go on: a pytree of arrays.

    Attributes:
      state: after `state.step` steps.
      epoch: int32, how many epochs are complete, validation and all.
      seen: [steps of an epoch, 4] `StepMetrics` of the epoch under way, a row a step;
        the steps still to come are zero.
      best: float32, highest validation accuracy so far, −1 before the first.
    """

    state: TrainState
    epoch: jax.Array | np.ndarray
    seen: np.ndarray
    best: jax.Array | np.ndarray


class Step(NamedTuple):
    """What `train` tells `on_step`.

    Attributes:
      number: of the step in its epoch, from 1.
      steps: of an epoch.
      metrics: of the step.
      snapshot: copies what the run needs to go on after this step.
    """

    number: int
    steps: int
    metrics: StepMetrics
    snapshot: Callable[[], Snapshot]


class EpochResult(NamedTuple):
    """What `train` yields after every epoch.

    Attributes:
      epoch: from 1.
      params: after the epoch.
      train: means over the epoch's batches, while the weights were changing.
      validation: report on the held-out images, None without any.
      best: whether it is the best epoch so far: highest strict validation accuracy, the
        later of equals, whose steps were smaller; without validation every one is.
      snapshot: where the run stands after the epoch.
    """

    epoch: int
    params: Params
    train: StepMetrics
    validation: analysis.Report | None
    best: bool
    snapshot: Snapshot


def calibrate(
    network: SpikingNetwork,
    params: Params,
    times: SpikeTimes,
    firing_rates: tuple[float, ...],
) -> Params:
    """Scales each layer's weights until a set share of its driven neurons fires.

    A neuron is driven by an image if at least one spike reaches it; on MNIST most of
    the first layer sees black and is not. Without a reset V is linear in the weights,
    so w ← w·θ/q with q the (1 − rate) quantile of max_t V(t) over driven neurons does
    it in one pass per layer, front to back. Too small initial weights are silent for
    good, too large ones fire at once.

    Args:
      network: whose layers are scaled.
      params: its parameters.
      times: [B, …] input spike times.
      firing_rates: in (0, 1), one for each layer with weights.

    Returns:
      Parameters of the same structure. Under jit a layer that cannot be scaled (q ≤ 0)
      is left as it is.

    Raises:
      ValueError: outside jit, a layer with fewer excitable neurons than are to fire.
    """
    rates = dict(zip(network.weighted, firing_rates, strict=True))
    scaled: dict[str, Any] = {}
    for index, name in enumerate(network.names):
        kernel = params["params"].get(name, {}).get("kernel")
        if kernel is not None:
            if kernel.ndim == 2:
                times = flat(times)
            peaks, driven = _excitation(network, times, kernel)
            reached = _quantile(peaks, driven, 1 - rates[name])
            if _checks.at_hand(reached) and not reached > 0:
                excited = float(jnp.mean(driven & (peaks > 0)))
                raise ValueError(
                    f"firing_rates: {rates[name]:.0%} of the driven neurons of {name} "
                    f"cannot be made to fire, only {excited:.0%} of all neurons are "
                    "ever excited: ask for fewer, or let the initial weights be more "
                    "positive"
                )
            scale = jnp.where(reached > 0, network.threshold / reached, 1)
            scaled[name] = {"kernel": kernel * scale}
        times = jax.jit(
            lambda params, times, index=index: network.apply(
                {"params": params}, times, method=lambda net, t: net.stack[index](t)
            )
        )({name: scaled[name]} if name in scaled else {}, times)
    return {"params": scaled}


def _excitation(
    network: SpikingNetwork, times: SpikeTimes, kernel: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Highest potentials of a layer if nothing fired, and which neurons are driven."""

    @jax.jit
    def excitation(times, kernel):
        peaks_of = functools.partial(
            neurons.peak_potentials,
            times,
            num_steps=network.num_steps,
            padding=network.padding,
            engine=network.engine,
        )
        peaks = peaks_of(kernel)
        driven = peaks_of(jnp.ones_like(kernel[..., :1])) > 0
        return peaks, jnp.broadcast_to(driven, peaks.shape)

    return excitation(times, kernel)


def _quantile(values: jax.Array, counted: jax.Array, q: float) -> jax.Array:
    """The q-quantile of the values counted, between neighbours linear; 0 of none.

    As `jnp.nanquantile`, but without a NaN for `jax_debug_nans` to stumble over, and
    outside jit without sorting everything.
    """
    if _checks.at_hand(values):
        kept = np.asarray(values)[np.asarray(counted)]
        if not kept.size:
            return jnp.zeros((), kept.dtype)
        at = np.asarray(q, kept.dtype) * np.asarray(kept.size - 1, kept.dtype)
        pair = [int(np.floor(at)), min(int(np.ceil(at)), kept.size - 1)]
        return _between(*np.partition(kept, pair)[pair], at)
    ordered = jnp.sort(jnp.where(counted, values, jnp.inf), axis=None)
    last = jnp.maximum(jnp.sum(counted, dtype=values.dtype) - 1, 0)
    rank = jnp.asarray(q, values.dtype) * last
    ranks = jnp.floor(rank), jnp.minimum(jnp.ceil(rank), last)
    found = _between(*(ordered[k.astype(jnp.int32)] for k in ranks), rank)
    return jnp.where(jnp.any(counted), found, 0)


@jax.jit
def _between(below: jax.Array, above: jax.Array, rank: jax.Array) -> jax.Array:
    share = rank - jnp.floor(rank)
    return below * (1 - share) + above * share


def make_optimizer(
    config: TrainConfig, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The configured optimizer, decay, per-layer rates and weight norm."""
    names = config.network().weighted
    last = names[-1]
    rates = config.learning_rates
    rates = rates * len(names) if len(rates) == 1 else rates
    by_layer = dict(zip(names, rates, strict=True))

    def per_layer(updates: Params, _) -> Params:
        return {
            "params": {
                name: jax.tree.map(lambda u, rate=by_layer[name]: rate * u, layer)
                for name, layer in updates["params"].items()
            }
        }

    directions = {"adam": optax.scale_by_adam(), "muon": optimizers.orthogonal_steps()}

    def direction_of(params: Params) -> Params:
        def of(name: str, weights: jax.Array) -> str:
            outputs = weights.shape[-1]
            # Fewer inputs than neurons leave these no room to differ: they would share
            # a few steps, unevenly, and some would fade.
            wide = name != last and weights.size >= outputs**2
            return config.optimizer if wide else "adam"

        return {
            "params": {
                name: jax.tree.map(functools.partial(of, name), layer)
                for name, layer in params["params"].items()
            }
        }

    held = {
        name: config.weight_norm == "held"
        or config.weight_norm == "hidden"
        and name != last
        for name in names
    }
    total = config.epochs * steps_per_epoch
    schedules = {
        "step": lambda: optax.exponential_decay(
            1.0, config.decay_epochs * steps_per_epoch, config.decay, staircase=True
        ),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, total),
        "constant": lambda: optax.constant_schedule(1.0),
    }
    return optax.chain(
        optax.multi_transform(directions, direction_of),
        optimizers.damp_common(config.common_step)
        if config.common_step != 1
        else optax.identity(),
        optax.scale_by_param_block_rms()
        if config.rate_unit == "rms"
        else optax.identity(),
        optax.stateless(per_layer),
        optax.scale_by_learning_rate(schedules[config.schedule]()),
        optimizers.learn_norms()
        if config.weight_norm == "learned"
        else optax.masked(optimizers.hold_norms(), {"params": held}),
        optimizers.average_weights(config.average)
        if config.average
        else optax.identity(),
    )


def kept_weights(config: TrainConfig, state: TrainState) -> Params:
    """What is validated and kept: the weights, or their average if it is asked for."""
    return optimizers.averaged(state.optimizer) if config.average else state.params


def init(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    images: jax.Array | np.ndarray,
) -> TrainState:
    """Initial state; `images` [B, …] give the shape, and scale the first weights."""
    network = config.network()
    times = encode(images, num_steps=config.num_steps)
    params: Any = jax.jit(network.init)(key, times[:1])
    if config.firing_rates:
        params = calibrate(network, params, times, config.firing_rates)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=optimizer.init(params),
        key=jax.random.fold_in(key, 1),
    )


def output_target(
    config: TrainConfig, activity: Activity, labels: jax.Array
) -> SpikeTimes:
    """Target spike times [B, C] by the configured output rule."""
    out = activity.times
    common: dict[str, Any] = dict(num_steps=config.num_steps)
    if config.output_rule == "fixed":
        return losses.fixed_target(
            out,
            labels,
            label_time=config.label_time,
            other_time=config.other_time,
            **common,
        )
    common["offset"] = config.offset
    if config.output_rule in ("hinge", "softmax"):
        common["threshold"] = config.threshold
        if config.output_rule == "hinge":
            return losses.hinge_target(out, labels, activity.potentials, **common)
        return losses.softmax_target(
            out,
            labels,
            activity.potentials,
            temperature=config.temperature,
            horizon=config.horizon,
            anchor=config.anchor,
            label_time=config.label_time,
            **common,
        )
    rules = {
        "relative": losses.relative_target,
        "margin": losses.margin_target,
        "s4nn": losses.s4nn_target,
    }
    return rules[config.output_rule](out, labels, **common)


def train_step(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[TrainState, StepMetrics]:
    """One step on a batch of images [B, …] with labels [B]. Pure.

    With a mesh (`parallel.data_mesh`) the batch is shared out to its devices, and the
    state, which is the same on all, follows the mean of their gradients.
    """
    images = _augmented(config, jax.random.fold_in(state.key, state.step), images)
    times = encode(images, num_steps=config.num_steps)
    gradients: Callable = functools.partial(_gradients, config)
    if mesh is not None:
        gradients = parallel.mean_over(mesh, gradients)
    gradient, metrics = gradients(state.params, times, labels)
    updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(
        step=state.step + 1, params=params, optimizer=opt_state
    ), metrics


def _gradients(
    config: TrainConfig, params: Params, times: SpikeTimes, labels: jax.Array
) -> tuple[Params, StepMetrics]:
    """Gradient of the mean loss over a batch, and its metrics."""
    network = config.network()

    def loss(params: Params):
        activity: Any = network.apply(params, times, method="activity")
        target = output_target(config, activity, labels)
        return jnp.mean(losses.temporal_loss(activity.times, target)), activity

    (value, activity), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    decided = analysis.predict(activity.times, activity.potentials)
    step = jnp.min(activity.times, axis=1)
    steps = jnp.arange(config.num_steps, dtype=step.dtype)
    until = steps[None, None] <= step[:, None, None]
    return gradient, StepMetrics(
        loss=value,
        accuracy=jnp.mean(decided == labels),
        decision_step=jnp.mean(step),
        spikes=jnp.mean(
            jnp.sum(jnp.where(until, activity.counts[:, 1:], 0), axis=(1, 2))
        ),
    )


def _augmented(config: TrainConfig, key: jax.Array, images: jax.Array) -> jax.Array:
    shift_key, flip_key = jax.random.split(key)
    if config.shift:
        images = augmentation.shift(shift_key, images, pixels=config.shift)
    if config.flip:
        images = augmentation.flip(flip_key, images)
    return images


def fit(
    config: TrainConfig, key: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[Params, StepMetrics]:
    """A whole training run as one pure function: `jax.vmap` it over keys for seeds.

    For data that fits on the device: every epoch is one `lax.scan` over its batches.

    Args:
      config: validation and seed are not used: all images train, `key` is the seed.
      key: random key of the initial weights and the shuffling.
      images: [n, …].
      labels: [n].

    Returns:
      The last parameters, or their average if the configuration asks for it, and the
      metrics of every epoch, each [epochs].

    Raises:
      ValueError, TypeError: as `train`.
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    _check_pairs(images, labels, config.network().num_classes)
    steps = _steps_per_epoch(len(images), config.batch_size)
    optimizer = make_optimizer(config, steps)
    init_key, *epoch_keys = jax.random.split(key, config.epochs + 1)
    state = init(config, optimizer, init_key, images[: config.calibration_images])

    def step(state: TrainState, batch: jax.Array):
        return train_step(config, optimizer, state, images[batch], labels[batch])

    def epoch(state: TrainState, key: jax.Array):
        order = jax.random.permutation(key, len(images))
        batches = order[: steps * config.batch_size].reshape(steps, -1)
        state, metrics = jax.lax.scan(step, state, batches)
        return state, jax.tree.map(jnp.mean, metrics)

    state, metrics = jax.lax.scan(epoch, state, jnp.stack(epoch_keys))
    return kept_weights(config, state), metrics


def train(
    config: TrainConfig,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    start: Snapshot | None = None,
    on_step: Callable[[Step], None] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[EpochResult]:
    """Trains on images in host memory, yielding after every epoch.

    Everything is checked, and the weights are initialised, before this returns; the
    first epoch starts with the first `next`. The shuffling of an epoch depends on
    (seed, epoch) alone and the augmentation of a step on (seed, step), so a run that
    starts from a snapshot of another gives the same bits. Best parameters are those of
    the last result whose `best` is true.

    Args:
      config: the run.
      images: [n, …] uint8, or floating in [0, 1].
      labels: [n] integers 0 … C−1.
      start: a snapshot of this same run to go on from; None: from the beginning.
      on_step: called after each step.
      mesh: of the devices that share out every batch (`parallel.data_mesh`); None: the
        default device. Sums are taken in another order, nothing else differs.

    Raises:
      ValueError, TypeError: images or labels do not fit each other, the network or the
        batch size, the initial weights cannot be scaled, the snapshot is of another
        network, optimizer or number of images, or the batch size is no multiple of the
        devices.
    """
    run = _prepared(config, images, labels)
    if mesh is not None and config.batch_size % mesh.size:
        raise ValueError(
            f"batch_size must be a multiple of the {mesh.size} devices, "
            f"got {config.batch_size}"
        )
    if start is None:
        start = run.beginning()
    else:
        _check_snapshot(start, jax.eval_shape(run.beginning))
    return _epochs(config, run, start, images, labels, on_step, mesh)


def first_snapshot(
    config: TrainConfig, images: np.ndarray, labels: np.ndarray
) -> Snapshot:
    """What `train` starts from: initial weights, no step taken.

    Arguments and errors as `train`.
    """
    return _prepared(config, images, labels).beginning()


class _Prepared(NamedTuple):
    """A run of which everything has been checked, and nothing computed."""

    kept: np.ndarray
    held: np.ndarray
    optimizer: optax.GradientTransformation
    beginning: Callable[[], Snapshot]


def _prepared(config: TrainConfig, images: np.ndarray, labels: np.ndarray) -> _Prepared:
    _check_pairs(images, labels, config.network().num_classes)
    kept, held = np.arange(len(labels)), np.arange(0)
    if config.validation:
        kept, held = data.stratified_split(labels, config.validation, seed=config.seed)
    steps = _steps_per_epoch(len(kept), config.batch_size)
    optimizer = make_optimizer(config, steps)

    def beginning() -> Snapshot:
        some = images[kept[: config.calibration_images]]
        state = init(config, optimizer, jax.random.key(config.seed), some)
        seen = np.zeros((steps, len(StepMetrics._fields)), np.float32)
        return Snapshot(state, np.array(0, np.int32), seen, np.array(-1, np.float32))

    return _Prepared(kept, held, optimizer, beginning)


def _check_snapshot(start: Snapshot, expected: Snapshot) -> None:
    def kinds(snapshot: Snapshot) -> dict:
        leaves = jax.tree_util.tree_leaves_with_path(snapshot)
        return {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in leaves
        }

    given, wanted = kinds(start), kinds(expected)
    for name in sorted(given.keys() | wanted.keys()):
        if given.get(name) != wanted.get(name):
            raise ValueError(
                f"the snapshot is not one of this run: its {name} is "
                f"{given.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
            )


def _epochs(config, run, start, images, labels, on_step, mesh) -> Iterator[EpochResult]:
    kept, held = run.kept, run.held
    step = jax.jit(
        functools.partial(train_step, config, run.optimizer, mesh=mesh),
        donate_argnums=0,
    )
    # Copies, here and in snapshots: each step writes to the memory of its own state.
    state = _copied(start.state)
    placed: Callable = np.asarray
    if mesh is not None:
        state = parallel.replicated(mesh, state)
        placed = functools.partial(parallel.shared_out, mesh)
    seen, best = np.array(start.seen), np.array(start.best)
    steps = len(seen)
    done = int(state.step) - int(start.epoch) * steps

    def snapshot(complete: int) -> Snapshot:
        return Snapshot(
            _copied(state), np.array(complete, np.int32), seen.copy(), np.array(best)
        )

    for epoch in range(int(start.epoch) + 1, config.epochs + 1):
        order = data.epoch_permutation(len(kept), seed=config.seed, epoch=epoch)
        for i in range(done, steps):
            batch = kept[order[i * config.batch_size : (i + 1) * config.batch_size]]
            state, metrics = step(state, placed(images[batch]), placed(labels[batch]))
            metrics = jax.device_get(metrics)
            seen[i] = metrics
            if on_step is not None:
                here = functools.partial(snapshot, epoch - 1)
                on_step(Step(i + 1, steps, metrics, here))
        means = StepMetrics(*(float(np.mean(column)) for column in seen.T.copy()))
        params = jax.tree.map(np.array, kept_weights(config, state))
        report = None
        if len(held):
            report = evaluate(
                config.network(),
                params,
                images[held],
                labels[held],
                batch_size=config.batch_size,
            )
        score = math.inf if report is None else report.accuracy
        better = bool(np.float32(score) >= best)
        best = np.maximum(best, np.float32(score))
        seen, done = np.zeros_like(seen), 0
        yield EpochResult(epoch, params, means, report, better, snapshot(epoch))


def _copied(state: TrainState) -> TrainState:
    """On a mesh, what this process has of it: all is everywhere."""
    return jax.tree.map(lambda x: x.addressable_data(0).copy(), state)


def evaluate(
    network: SpikingNetwork,
    params: Params,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 100,
) -> analysis.Report:
    """Strict accuracy, decision steps, spikes and dead neurons over a data set.

    Args:
      network: its structure.
      params: its parameters.
      images: [n, …] uint8, or floating in [0, 1].
      labels: [n] integers 0 … C−1.
      batch_size: images at a time; of no influence on the result.

    Raises:
      ValueError, TypeError: images, labels or parameters do not fit each other or the
        network; NaN or infinite weights.
    """
    classes = network.num_classes
    _check_pairs(images, labels, classes)
    check_params(network, params, images)

    def batches():
        for start in range(0, len(images), batch_size):
            some = images[start : start + batch_size]
            count = len(some)
            if count < batch_size:  # one shape, one compilation: repeat the last image
                some = np.concatenate([some, some[-1:].repeat(batch_size - count, 0)])
            decisions = _decide(network, params, some)
            rows = jax.tree.map(lambda x, n=count: x[:n], decisions)
            yield rows._replace(fired=decisions.fired), labels[start : start + count]

    return analysis.report(batches(), classes)


@functools.partial(jax.jit, static_argnums=0)
def _decide(network: SpikingNetwork, params: Params, images: jax.Array):
    times = encode(images, num_steps=network.num_steps)
    trace: Any = network.apply(params, times, method="trace")
    return analysis.decide(trace, num_steps=network.num_steps)


def check_params(network: SpikingNetwork, params: Params, images: np.ndarray) -> None:
    """Refuses parameters that are not this network's, or not finite.

    Raises:
      ValueError: a layer is missing, left over, or of another shape; NaN or infinite
        weights.
    """
    expected = jax.eval_shape(
        network.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, *np.shape(images)[1:]), jnp.float32),
    )
    given = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    wanted = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    shapes = {name: leaf.shape for name, leaf in given.items()}
    if shapes != wanted:
        raise ValueError(
            f"parameters do not fit the network {network.spec}: "
            f"expected {wanted}, got {shapes}"
        )
    for name, leaf in given.items():
        if not np.isfinite(leaf).all():
            raise ValueError(f"parameters {name} hold NaN or infinite weights")


def _check_pairs(
    images: np.ndarray | jax.Array, labels: np.ndarray | jax.Array, classes: int
) -> None:
    if not len(images):
        raise ValueError("no images")
    _checks.labels(labels, len(images), classes)
    if images.dtype != np.uint8:
        encode(images[:0])  # refuses types that have no code
        _checks.intensities(images)


def _steps_per_epoch(images: int, batch_size: int) -> int:
    if images < batch_size:
        raise ValueError(
            f"batch_size {batch_size} is larger than the {images} training images"
        )
    return images // batch_size
