"""Optimizers as values, and optax gradient transformations for spiking layers.

A layer's weights are a kernel [..., O]; those of one neuron are all but the last axis.
Weights of reference neurons, "pulses" [P, O], have a learning rate of their own.
To define your own, write a frozen dataclass that extends `Optimizer`; its `chain` may
be any optax gradient transformation.
"""

import dataclasses
import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ds4nn_jax._values import Value

_GROUP = 512  # the most neurons of a layer that are made orthogonal to each other


@dataclasses.dataclass(frozen=True)
class Optimizer(Value):
    """How gradients become steps."""

    def chain(
        self, layers: tuple[str, ...], schedule: optax.Schedule
    ) -> optax.GradientTransformation:
        """What optax applies to {"params": {layer: {"kernel": …, "pulses": …}}}.

        Args:
          layers: names of the layers with weights, the output's last.
          schedule: factor on every step, by its number.
        """
        raise NotImplementedError

    def at_threshold(self, threshold: float) -> "Optimizer":
        """Scales rates given for θ = 100 mV to this θ."""
        return self


@dataclasses.dataclass(frozen=True)
class Norms(Value):
    """What happens to the norms of the neurons' weight vectors."""

    def transformation(self, layers: tuple[str, ...]) -> optax.GradientTransformation:
        """The last gradient transformation of those that change the step."""
        return optax.identity()


@dataclasses.dataclass(frozen=True)
class FreeNorms(Norms, name="free"):
    """Norms are unconstrained."""


@dataclasses.dataclass(frozen=True)
class HeldNorms(Norms, name="held"):
    """Fixed norms of hidden neurons: w + u ← (w + u)·‖w‖/‖w + u‖.

    Learning turns weight vectors without growing them. The output layer's are free.
    """

    def transformation(self, layers: tuple[str, ...]) -> optax.GradientTransformation:
        def held(update: jax.Array, weights: jax.Array) -> jax.Array:
            return _step_to_norms(update, weights, _norms(weights))

        hidden = {name: name != layers[-1] for name in layers}
        return optax.masked(optax.stateless_with_tree_map(held), {"params": hidden})


@dataclasses.dataclass(frozen=True)
class LearnedNorms(Norms, name="learned"):
    """Norms follow their own gradient: ‖w + u‖ becomes ‖w‖ + w·u/‖w‖.

    A step across a weight vector makes it longer by ‖u‖²/2‖w‖, whatever its sign. With
    steps on the scale of the weights norms grow without end, and larger weights fire
    earlier. This removes that growth and keeps the part of the step along the vector.
    """

    def transformation(self, layers: tuple[str, ...]) -> optax.GradientTransformation:
        def learned(update: jax.Array, weights: jax.Array) -> jax.Array:
            before = _norms(weights)
            along = jnp.sum(weights * update, _inputs(weights), keepdims=True)
            after = before + along / jnp.where(before == 0, 1, before)
            step = _step_to_norms(update, weights, jnp.maximum(after, 0))
            return jnp.where(before == 0, update, step)

        return optax.stateless_with_tree_map(learned)


def _inputs(weights: jax.Array) -> tuple[int, ...]:
    """The axes of one neuron's weights."""
    return tuple(range(weights.ndim - 1))


def _norms(weights: jax.Array) -> jax.Array:
    return jnp.linalg.vector_norm(weights, axis=_inputs(weights), keepdims=True)


def _step_to_norms(update: jax.Array, weights: jax.Array, norms: jax.Array):
    """The step in the direction of w + u after which neurons have these norms."""
    moved = weights + update
    length = _norms(moved)
    return moved * (norms / jnp.where(length == 0, 1, length)) - weights


@dataclasses.dataclass(frozen=True)
class _Optimizer(Optimizer):
    """What Adam and Muon share: the learning rates, norms, average and pulses."""

    learning_rate: float = 0.01
    output_rate: float | None = None
    norms: Norms = FreeNorms()
    average: float = 0.0
    pulse_rate: float = dataclasses.field(default=0.1, kw_only=True)

    def check(self) -> None:
        for name in ("learning_rate", "output_rate"):
            rate = getattr(self, name)
            self.require(name, rate is None or 0 < rate < math.inf, "a number > 0")
        self.require("pulse_rate", 0 <= self.pulse_rate < math.inf, "≥ 0 mV")
        self.require("average", 0 <= self.average < 1, "in [0, 1)")

    def at_threshold(self, threshold: float) -> Optimizer:
        rate = self.pulse_rate * (threshold / 100)
        return dataclasses.replace(self, pulse_rate=rate)

    def _chain(self, layers, schedule, *directions) -> optax.GradientTransformation:
        """Appends learning rates, norms and the average."""
        rates = dict.fromkeys(layers, self.learning_rate)
        if self.output_rate is not None:
            rates[layers[-1]] = self.output_rate

        def by_layer(updates: optax.Updates, _) -> optax.Updates:
            return jax.tree.map_with_path(
                lambda path, update: rates[path[1].key] * update, updates
            )

        rate = optax.scale_by_learning_rate(schedule)
        kernels = optax.chain(
            *directions,
            optax.stateless(by_layer),
            rate,
            self.norms.transformation(layers),
        )
        pulses = optax.chain(optax.scale_by_adam(), optax.scale(self.pulse_rate), rate)
        kind = functools.partial(jax.tree.map_with_path, lambda path, _: path[-1].key)
        return optax.chain(
            optax.multi_transform({"kernel": kernels, "pulses": pulses}, kind),
            average_weights(self.average) if self.average else optax.identity(),
        )


@dataclasses.dataclass(frozen=True)
class Adam(_Optimizer):
    """Adam, the paper's optimizer (Kingma & Ba 2015).

    Attributes:
      learning_rate: η of every layer with weights.
      output_rate: η of the output layer, where it differs.
      norms: of the neurons' weights: "free", "held" (fixed) or "learned".
      average: decay of a running average of the weights over steps, in [0, 1), which
        is then validated and kept; 0: none. See `average_weights`.
      pulse_rate: step of the weights of reference neurons, by Adam, mV where θ is
        100 mV, and in proportion to θ.
      unit: "rms", η is a step relative to the root mean square of the layer's weights,
        or "mV" (the paper).
    """

    unit: Literal["rms", "mV"] = "rms"

    def chain(self, layers, schedule) -> optax.GradientTransformation:
        relative = [optax.scale_by_param_block_rms()] if self.unit == "rms" else []
        return self._chain(layers, schedule, optax.scale_by_adam(), *relative)


@dataclasses.dataclass(frozen=True)
class Muon(_Optimizer):
    """Orthogonal steps for hidden layers with at least as many inputs as neurons,
    Adam's for the others; η relative to the root mean square of the layer's weights.

    With fewer inputs than neurons, the steps of these cannot be orthogonal, and some
    weights would shrink. See `orthogonal_steps`, `damp_common`.

    Attributes:
      learning_rate: η of every layer with weights.
      output_rate: η of the output layer, where it differs.
      norms: of the neurons' weights: "free", "held" (fixed) or "learned".
      average: decay of a running average of the weights over steps, in [0, 1), which
        is then validated and kept; 0: none. See `average_weights`.
      pulse_rate: step of the weights of reference neurons, by Adam, mV where θ is
        100 mV, and in proportion to θ.
      common_step: factor, in [0, 1], on the part of a step that is common to all
        weights of a neuron.
    """

    common_step: float = 0.1

    def check(self) -> None:
        super().check()
        self.require("common_step", 0 <= self.common_step <= 1, "in [0, 1]")

    def chain(self, layers, schedule) -> optax.GradientTransformation:
        def kind(path: tuple, weights: jax.Array) -> str:
            outputs = min(weights.shape[-1], _GROUP)
            room = weights.size // weights.shape[-1] >= outputs
            return "muon" if room and path[1].key != layers[-1] else "adam"

        kinds = functools.partial(jax.tree.map_with_path, kind)
        directions = {"adam": optax.scale_by_adam(), "muon": orthogonal_steps()}
        return self._chain(
            layers,
            schedule,
            optax.multi_transform(directions, kinds),
            damp_common(self.common_step),
            optax.scale_by_param_block_rms(),
        )


def orthogonal_steps(
    momentum: float = 0.9, group: int = _GROUP
) -> optax.GradientTransformation:
    """Steps whose singular values are all the same (Muon; Jordan et al. 2024).

    M ← μ·M + (1 − μ)·G, and of the singular value decomposition M = U·Σ·Vᵀ the step
    keeps U·Vᵀ, scaled to a root mean square of 1, with M [K, O] all weights K of the
    neurons O of a layer. Spikes only add, so gradients of spiking layers have few large
    singular values: of the squared gradient of the second convolution of the preset
    "fashion_mnist" 96 % lay in the first of 128 directions at its initial weights, 51 %
    at the end. Adam sees single weights and no directions; here each direction in which
    the neurons can differ gets the same share of the step.

    Wide layers are split into groups of neurons, each orthogonal in itself, and use
    their Gram matrices: the iterations of Newton and Schulz,
    M ← (a + b·MᵀM + c·(MᵀM)²)·M, change MᵀM alone, so the weights are passed twice
    instead of twice an iteration.

    Args:
      momentum: μ in [0, 1), Nesterov's.
      group: the most neurons of a group; their number divides the layer's.
    """

    def width(kernel: jax.Array) -> int:
        """Neurons of a group."""
        outputs = kernel.shape[-1]
        return max(n for n in range(1, group + 1) if outputs % n == 0)

    def kind(kernel: jax.Array) -> str:
        return "narrow" if kernel.shape[-1] <= group else "wide"

    def rows_and_columns(kernel: jax.Array) -> optax.contrib.MuonDimensionNumbers:
        last = kernel.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(last)), last)

    def in_groups(kernel: jax.Array, _) -> jax.Array:
        outputs = kernel.shape[-1]
        matrix = kernel.reshape(-1, outputs)
        parts = jnp.split(matrix, outputs // width(kernel), axis=1)
        factors = _inverse_root(jnp.stack([part.T @ part for part in parts]))
        steps = [part @ factor for part, factor in zip(parts, factors, strict=True)]
        return jnp.concatenate(steps, axis=1).reshape(kernel.shape)

    def scaled(step: jax.Array, _) -> jax.Array:
        return step * math.sqrt(max(step.size // step.shape[-1], width(step)))

    narrow = optax.contrib.scale_by_muon(
        beta=momentum,
        weight_dimension_numbers=functools.partial(jax.tree.map, rows_and_columns),
    )
    wide = optax.chain(
        optax.trace(momentum, nesterov=True), optax.stateless_with_tree_map(in_groups)
    )
    return optax.chain(
        optax.multi_transform(
            {"narrow": narrow, "wide": wide}, functools.partial(jax.tree.map, kind)
        ),
        optax.stateless_with_tree_map(scaled),
    )


def _inverse_root(gram: jax.Array) -> jax.Array:
    """R with M·R near U·Vᵀ, from MᵀM [G, O, O], by five iterations of Muon's."""
    a, b, c = 3.4445, -4.7750, 2.0315
    one = jnp.eye(gram.shape[-1])
    square = jnp.trace(gram, axis1=1, axis2=2)[:, None, None] + 1e-16
    gram, root = gram / square, one / jnp.sqrt(square)
    for _ in range(5):
        turn = a * one + b * gram + c * gram @ gram
        gram, root = turn @ gram @ turn, root @ turn
    return root


def damp_common(factor: float) -> optax.GradientTransformation:
    """Shortens the part of a step that all weights of a neuron have in common.

    Spikes only add: inputs of a neuron all have the same sign, so its potential
    follows the mean of its weights far more steeply than any difference between them,
    and steps that suit the differences throw the potential about. u ← u − (1 − f)·ū
    with ū the mean over a neuron's weights; f = 0 is gradient centralisation (Yong et
    al. 2020).
    """

    def damped(update: jax.Array, _) -> jax.Array:
        mean = jnp.mean(update, _inputs(update), keepdims=True)
        return update - (1 - factor) * mean

    return optax.stateless_with_tree_map(damped)


class AverageState(NamedTuple):
    """Of `average_weights`: steps taken, and the average of the weights after each."""

    steps: jax.Array
    average: optax.Params


def average_weights(decay: float) -> optax.GradientTransformation:
    """Keeps a running average of the weights; steps pass unchanged.

    w̄ ← d·w̄ + (1 − d)·w with d = min(decay, (1 + n)/(10 + n)) after n steps, so that
    initial weights are soon forgotten. Steps are noisy, because spikes appear and
    vanish. The average often has the effect of a lower learning rate.
    Place it last in a chain; `averaged` reads the average.
    """

    def init(params: optax.Params) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state: AverageState, params=None):
        weights = optax.apply_updates(params, updates)
        # Not `optax.ema`, which averages updates and at one decay.
        share = 1 - jnp.minimum(decay, (1 + state.steps) / (10 + state.steps))
        average = optax.incremental_update(weights, state.average, share)
        return updates, AverageState(state.steps + 1, average)

    return optax.GradientTransformation(init, update)


def averaged(state: optax.OptState, params: optax.Params) -> optax.Params:
    """The average that `average_weights` keeps in the state of a chain; weights that it
    does not average, because it is masked or missing, are those of `params`."""
    is_average = lambda node: isinstance(node, AverageState)  # noqa: E731
    is_masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    for node in filter(is_average, jax.tree.leaves(state, is_leaf=is_average)):
        params = jax.tree.map(
            lambda average, weights: weights if is_masked(average) else average,
            node.average,
            params,
            is_leaf=is_masked,
        )
    return params
