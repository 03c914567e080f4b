"""One step of training, pure: to be jitted, vmapped over seeds, or put into a scan."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ds4nn_jax.layers import losses
from ds4nn_jax.layers.encoding import spike_times
from ds4nn_jax.networks import evaluation
from ds4nn_jax.networks.quantization import rounded
from ds4nn_jax.training.config import TrainConfig
from ds4nn_jax.types import SpikeTimes

Params = dict


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


def make_optimizer(
    config: TrainConfig, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The configured optimizer under the configured schedule."""
    schedule = config.schedule.factor(config.epochs, steps_per_epoch)
    optimizer = config.optimizer.at_threshold(config.threshold)
    return optimizer.chain(config.network().weighted, schedule)


def init(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    images: jax.Array | np.ndarray,
    params: Params | None = None,
) -> TrainState:
    """Initial state, of `params` if there are any; else initial weights are drawn for,
    and may be scaled on, `images` [B, …]."""
    if params is None:
        params = config.initial_weights.draw(config.network(), key, images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=optimizer.init(params),
        key=jax.random.fold_in(key, 1),
    )


def train_step(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    soft_labels: jax.Array | None = None,
) -> tuple[TrainState, StepMetrics]:
    """One step on a batch of images [B, …] with labels [B]. Pure.

    If there are soft labels [B, C], the output rule gets them instead of the labels. A
    batch that is sharded over devices (`parallel.shared_out`) is computed by all.
    """
    key = jax.random.fold_in(state.key, state.step)
    images = config.augmentation.apply(key, images)
    times = spike_times(images, config.num_steps)
    gradient, metrics = _gradients(config, state, times, labels, soft_labels)
    updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(
        step=state.step + 1, params=params, optimizer=opt_state
    ), metrics


def _centred(config: TrainConfig, hook: Callable | None, times: SpikeTimes):
    """Centres the errors of a layer, then lets its regularizer push."""
    times = times if hook is None else hook(times)
    return losses.centre_errors(times, config.num_steps, config.centring)


def _gradients(
    config: TrainConfig,
    state: TrainState,
    times: SpikeTimes,
    labels: jax.Array,
    soft_labels: jax.Array | None,
) -> tuple[Params, StepMetrics]:
    """Gradient of the mean loss over a batch, and the batch's metrics."""
    network = config.network()
    hidden = len(network.weighted) - 1
    hooks: Any = config.regularizer.layers(hidden, state.step, config.num_steps)
    if config.centring:
        hooks = hooks or [None] * hidden
        hooks = [functools.partial(_centred, config, hook) for hook in hooks]

    def loss(params: Params):
        model = network, params
        if config.bits is not None:
            model = rounded(network, params, config.bits)
        activity: Any = model[0].apply(model[1], times, hooks, method="activity")
        target = config.output_rule.target(
            activity.times,
            labels if soft_labels is None else soft_labels,
            activity.potentials,
            num_steps=config.num_steps,
            threshold=config.threshold,
        )
        return jnp.mean(losses.temporal_loss(activity.times, target)), activity

    (value, activity), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    predicted = evaluation.predict(activity.times, activity.potentials)
    decision = jnp.min(activity.times, axis=1)
    steps = jnp.arange(config.num_steps, dtype=decision.dtype)
    until = steps[None, None] <= decision[:, None, None]
    spikes = jnp.sum(jnp.where(until, activity.counts[:, 1:], 0), axis=(1, 2))
    return gradient, StepMetrics(
        loss=value,
        accuracy=jnp.mean(predicted == labels),
        decision_step=jnp.mean(decision),
        spikes=jnp.mean(spikes),
    )
