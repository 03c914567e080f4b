"""Measures of what a network decides, how soon, and at what cost in spikes.

`predict` and `decide` are JAX functions of one batch; `evaluate` reports on whole data
sets, gathered in NumPy.
"""

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax import _checks
from ds4nn_jax._engines.synapse import flat, pulse_steps
from ds4nn_jax.layers.encoding import spike_times
from ds4nn_jax.networks.inference import batches_of
from ds4nn_jax.networks.network import SpikingNetwork, Trace, check_params
from ds4nn_jax.types import SpikeTimes

_LOGGER = logging.getLogger("ds4nn_jax")


def predict(times: SpikeTimes, potentials: jax.Array | None = None) -> jax.Array:
    """The strict decision: the class of the earliest output spike.

    Ties go to the higher potential, then to the lower index. Where all outputs are
    silent they are all tied at T, and the same rule decides on final potentials.

    Args:
      times: [B, C] output spike times.
      potentials: [B, C] potential of each output at its spike, or its final one where
        it stayed silent, mV (`Trace.potentials`). Without it ties go to the lower
        index.

    Returns:
      [B] int32 classes.

    Example:
      >>> import numpy as np, ds4nn_jax as ds
      >>> times = np.array([[40.0, 20.0, 100.0], [30.0, 30.0, 90.0], [100.0] * 3])
      >>> potentials = np.array([[100.0, 102, 9], [101, 105, 100], [20, 3, 64]])
      >>> ds.predict(times, potentials)  # first spike; tie; all silent
      Array([1, 1, 2], dtype=int32)
    """
    times = jnp.asarray(times)
    _checks.rank("times", times, "[B, C]")
    if potentials is None:
        return jnp.argmin(times, axis=1).astype(jnp.int32)
    _checks.potentials(potentials, times)
    earliest = times == jnp.min(times, axis=1, keepdims=True)
    deciding = jnp.where(earliest, potentials, -jnp.inf)
    return jnp.argmax(deciding, axis=1).astype(jnp.int32)


def predict_by(times: SpikeTimes, potentials: jax.Array) -> jax.Array:
    """What would be decided if one stopped after step t, for every t.

    The strict decision once an output has fired; before that the class of the highest
    potential so far.

    Args:
      times: [B, C] output spike times.
      potentials: [T, B, C] their potentials after each step, without a reset, mV
        (`membrane_potentials`).

    Returns:
      [T, B] int32 classes; the last row is `predict`.
    """
    times, potentials = jnp.asarray(times), jnp.asarray(potentials)
    _checks.rank("times", times, "[B, C]")
    if potentials.ndim != 3 or potentials.shape[1:] != times.shape:
        expected = f"[T, B, C] with times [B, C] = {times.shape}"
        raise ValueError(f"potentials must be {expected}, got {potentials.shape}")
    num_steps, images, _ = potentials.shape
    first = jnp.min(times, axis=1).astype(jnp.int32)
    last = jnp.minimum(first, num_steps - 1)
    decided = predict(times, potentials[last, jnp.arange(images)])
    fired = jnp.arange(num_steps)[:, None] >= first
    so_far = jnp.argmax(potentials, axis=2).astype(jnp.int32)
    return jnp.where(fired, decided, so_far)


class Decisions(NamedTuple):
    """What a network did with each image of a batch.

    Attributes:
      label: [B] strict decision.
      step: [B] decision step: the earliest output spike, T if all are silent.
      tied: [B, C] outputs that fired at the decision step (none if all are silent).
      times: [B, C] output spike times.
      spikes: [B, L+1] spikes up to and including the decision step of the input and of
        each layer (pooling neurons are neurons and count).
      reference_spikes: [B, L] the same of the reference neurons of each layer, which
        are no part of `spikes`.
      fired: for each layer, [neurons] whether any image of the batch made it fire.
    """

    label: jax.Array
    step: jax.Array
    tied: jax.Array
    times: jax.Array
    spikes: jax.Array
    reference_spikes: jax.Array
    fired: tuple[jax.Array, ...]


def decide(trace: Trace) -> Decisions:
    """Strict decisions and their cost, from a network's trace."""
    num_steps = trace.num_steps
    out = trace.times[-1]
    step = jnp.min(out, axis=1)
    last = jnp.minimum(step, num_steps - 1)

    def spikes(times: SpikeTimes) -> jax.Array:
        return jnp.sum(flat(times) <= last[:, None], axis=1, dtype=jnp.int32)

    def pulses(count: int) -> jax.Array:
        steps = jnp.asarray(pulse_steps(count, num_steps), out.dtype)
        return jnp.searchsorted(steps, last, side="right").astype(jnp.int32)

    counts = trace.reference or (0,) * (len(trace.times) - 1)
    return Decisions(
        label=predict(out, trace.potentials),
        step=step,
        tied=(out == step[:, None]) & (out < num_steps),
        times=out,
        spikes=jnp.stack([spikes(times) for times in trace.times], axis=1),
        reference_spikes=jnp.stack([pulses(count) for count in counts], axis=1),
        fired=tuple(
            jnp.any(times < num_steps, axis=0).ravel() for times in trace.times[1:]
        ),
    )


class Report(NamedTuple):
    """Measures over a data set of n images; shares and accuracies in [0, 1].

    Attributes:
      images: n.
      accuracy: strict; always the one to quote.
      lenient_accuracy: a tie that includes the label counts, as in S4NN's code.
      tied: share of images in which several outputs fired at the decision step.
      silent: share of images for which no output fired.
      decision_step: mean decision step (T where all outputs are silent).
      spikes: mean spikes per image up to the decision, all layers, input and reference
        neurons apart.
      layer_spikes: the same for the input and for each layer.
      reference_spikes: mean spikes per image up to the decision of the reference
        neurons of all layers, those of an urgency among them.
      layer_reference_spikes: the same for each layer.
      dead: share of neurons in all layers that no image made fire, decision or not.
      layer_dead: the same for each layer.
      confusion: [C, C] counts, row the label, column the decision.
      firing_times: [C, C] mean spike time (silence as T) of each output (row) over the
        images of each class (column); NaN for a class without images.
      class_steps: [C] mean decision step of the images of each class.
      class_spikes: [C] mean spikes up to the decision, input apart, of each class.
    """

    images: int
    accuracy: float
    lenient_accuracy: float
    tied: float
    silent: float
    decision_step: float
    spikes: float
    layer_spikes: tuple[float, ...]
    reference_spikes: float
    layer_reference_spikes: tuple[float, ...]
    dead: float
    layer_dead: tuple[float, ...]
    confusion: np.ndarray
    firing_times: np.ndarray
    class_steps: np.ndarray
    class_spikes: np.ndarray

    def summary(self) -> dict[str, float]:
        """The single numbers, ready for a line of JSON."""
        numbers = self._asdict().items()
        return {name: n for name, n in numbers if isinstance(n, int | float)}


def report(batches: Iterable[tuple[Decisions, np.ndarray]], num_classes: int) -> Report:
    """Gathers decisions and true labels, batch by batch, into one report."""
    kept: list[tuple[np.ndarray, ...]] = []
    fired: list[np.ndarray] = []
    for decisions, labels in batches:
        labels = np.asarray(_checks.labels(labels, len(decisions.label), num_classes))
        *values, alive = jax.tree.map(np.asarray, decisions)
        kept.append((labels, *values))
        fired = [a | b for a, b in zip(fired or alive, alive, strict=True)]
    if not sum(len(labels) for labels, *_ in kept):
        raise ValueError("a report needs at least one image")
    labels, decided, step, tied, times, spikes, reference = map(
        np.concatenate, zip(*kept, strict=True)
    )
    correct = decided == labels
    all_spikes = spikes[:, 1:].sum(axis=1)
    of_class = labels == np.arange(num_classes)[:, None]  # [C, n]
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (labels, decided), 1)

    def per_class(values: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # 0 / 0 of a class without images
            return ((of_class.astype(float) @ values).T / of_class.sum(axis=1)).T

    return Report(
        images=len(labels),
        accuracy=float(correct.mean()),
        lenient_accuracy=float((correct | tied[range(len(labels)), labels]).mean()),
        tied=float((tied.sum(axis=1) > 1).mean()),
        silent=float((~tied.any(axis=1)).mean()),
        decision_step=float(step.mean()),
        spikes=float(all_spikes.mean()),
        layer_spikes=tuple(spikes.mean(axis=0).tolist()),
        reference_spikes=float(reference.sum(axis=1).mean()),
        layer_reference_spikes=tuple(reference.mean(axis=0).tolist()),
        dead=float(1 - np.concatenate(fired).mean()),
        layer_dead=tuple(float(1 - f.mean()) for f in fired),
        confusion=confusion,
        firing_times=per_class(times).T,
        class_steps=per_class(step),
        class_spikes=per_class(all_spikes),
    )


def evaluate(
    network: SpikingNetwork,
    params: dict,
    images: Any,
    labels: Any,
    *,
    batch_size: int = 100,
    on_images: Callable[[int], None] | None = None,
) -> Report:
    """Strict accuracy, decision steps, spikes and dead neurons over a data set.

    Args:
      network: its structure.
      params: its parameters.
      images: [n, …] uint8, or floating in [0, 1].
      labels: [n] integers 0 … C−1, or one-hot [n, C].
      batch_size: images at a time; of no influence on the result.
      on_images: called with how many images are done, after every batch.

    Logs a warning, once for a network, if its decisions say little: see `advise`.
    """
    images, labels = _checks.pairs(images, labels, network.num_classes)
    result = reported(network, params, images, labels, batch_size, on_images)
    advise(network, images, result)
    return result


def reported(
    network: SpikingNetwork,
    params: dict,
    images: Any,
    labels: Any,
    batch_size: int,
    on_images: Callable[[int], None] | None = None,
) -> Report:
    """`evaluate` of checked pairs, without advice."""
    check_params(network, params, images)

    def batches():
        for start, batch, count in batches_of(images, batch_size):
            decisions = _decide(network, params, batch)
            rows = jax.tree.map(lambda x, n=count: x[:n], decisions)
            if on_images is not None:
                on_images(start + count)
            yield rows._replace(fired=decisions.fired), labels[start : start + count]

    return report(batches(), network.num_classes)


def advise(network: SpikingNetwork, images: Any, result: Report | None = None) -> None:
    """Logs what is wrong with images or with decisions on them, and the remedy: most
    pixels at step 0, over half of the images decided without an output spike, over half
    tied, all decided at step 0. Each once for a network."""
    sample = np.asarray(images[:: max(1, len(images) // 100)])
    at_once = np.asarray(spike_times(sample, network.num_steps)) == 0
    shares = {"light": float(np.mean(at_once))}
    if result is not None:
        shares |= {"silent": result.silent, "tied": result.tied}
        shares["at once"] = float(result.decision_step == 0)
    for kind, share in shares.items():
        if share > 0.5 and (network, kind) not in _advice:
            _advice.add((network, kind))
            _LOGGER.warning(_REMEDIES[kind].format(share))


_advice: set[tuple[SpikingNetwork, str]] = set()  # logged so far
_REMEDIES = {
    "light": "{:.0%} of the pixels spike at step 0, as on a light ground: most of an "
    "image arrives at once. 255 − images (of floats 1 − images) turns light and dark "
    "round",
    "silent": "{:.0%} of the images are decided by potentials, without an output "
    "spike: train for longer, with larger initial weights or a lower threshold, or "
    "give the outputs an urgency (network.clone(urgency=…))",
    "tied": "in {:.0%} of the images several outputs fire first: use more time steps "
    "(num_steps), or smaller initial weights",
    "at once": "all images are decided at step 0, before most of them has arrived: "
    "use smaller initial weights or a higher threshold, and dark grounds",
}


@functools.partial(jax.jit, static_argnums=0)
def _decide(network: SpikingNetwork, params: dict, images: jax.Array):
    trace: Any = network.apply(params, network.encode(images), method="trace")
    return decide(trace)
