"""A feed-forward network of single-spike layers, as a Flax Linen module."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ds4nn_jax import _checks
from ds4nn_jax._engines.synapse import (
    NO_POOL,
    explicit_pads,
    flat,
    spikes_per_step,
)
from ds4nn_jax._values import chosen, plain
from ds4nn_jax.layers import _coding, _response, functions
from ds4nn_jax.layers.encoding import spike_times
from ds4nn_jax.layers.losses import Normalization, normalize_gradient
from ds4nn_jax.layers.modules import (
    SpikingConv,
    SpikingDense,
    SpikingPool,
    uniform_weights,
)
from ds4nn_jax.layers.surrogates import Surrogate, Window
from ds4nn_jax.networks.spec import ConvSpec, DenseSpec, LayerSpec, PoolSpec, parse_spec
from ds4nn_jax.types import SpikeTimes


def _static(value: Any) -> Any:
    """Lists and arrays as tuples, numbers as Python's, all the way down."""
    value = plain(value)
    return tuple(map(_static, value)) if type(value) in (list, tuple) else value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """Everything a network did with a batch. A pytree.

    Attributes:
      times: spike times of the input and then of every layer, each [B, …].
      potentials: [B, C] potential of each output at its spike, or its final one, mV.
        Where outputs have thresholds of their own, θ_max − θ_j is added, so that equal
        distances from the threshold are equal.
      num_steps: T, the time that means silence.
      reference: how many reference neurons every layer has; (): none.
    """

    times: tuple[SpikeTimes, ...]
    potentials: jax.Array
    num_steps: int = dataclasses.field(metadata={"static": True})
    reference: tuple[int, ...] = dataclasses.field(
        default=(), metadata={"static": True}
    )


class Activity(NamedTuple):
    """What a network did with a batch, without the time of every hidden spike.

    Attributes:
      times: [B, C] output spike times.
      potentials: [B, C] potential of each output at its spike, or its final one, mV.
      counts: [B, L+1, T] int32 spikes at each step of the input and of every layer.
    """

    times: SpikeTimes
    potentials: jax.Array
    counts: jax.Array


class SpikingNetwork(nn.Module):
    """A feed-forward network of single-spike layers: spike times in, [B, C] out.

    Between layers the error is normalised per sample (Eq. 11). The surrogate is that of
    the hidden layers; the output layer, whose error is given by the loss, always takes
    slope 1, and lets silent hidden neurons take part exactly if their surrogate does.

    Attributes:
      layers: what `parse_spec` gives.
      input_size: expected number of inputs of a fully connected network, or None.
      num_steps: T.
      threshold: θ of every layer, mV. Parameters {layer: {"threshold": [O]}} take its
        place in that layer: a θ of each neuron of a dense layer, each channel of a
        convolution.
      padding: of the convolutions.
      urgency: u ≥ 0 mV a step into every output neuron, see `ds4nn_jax.dense`. It may
        be chosen after training: `network.clone(urgency=0.2)` decides sooner, at a
        price in accuracy.
      pulses: P, how many reference neurons each layer with weights has, see
        `ds4nn_jax.dense`; the last number stands for the layers that are left; ():
        none.
      surrogate: of the hidden layers.
      normalization: of the errors, see `normalize_gradient`.
      engine: "auto", "scan" or "event".
      initial_weights: (low, high) in mV for each layer that has weights, or None for
        `scaled_weights`.
    """

    layers: tuple[LayerSpec, ...]
    input_size: int | None = None
    num_steps: int = 100
    threshold: float = 100.0
    padding: functions.Padding = "SAME"
    urgency: float = 0.0
    pulses: tuple[int, ...] = ()
    surrogate: str | Surrogate = "constant"
    normalization: Normalization = "l2"
    engine: functions.Engine = "auto"
    initial_weights: tuple[tuple[float, float], ...] | None = None

    @classmethod
    def from_spec(cls, spec: str, **attributes: Any) -> "SpikingNetwork":
        """A network in the paper's notation, such as "64C3-P2-128C3-P2-10"."""
        input_size, layers = parse_spec(spec)
        return cls(layers=layers, input_size=input_size, **attributes)

    @property
    def spec(self) -> str:
        """The network in the paper's notation; `from_spec` inverts it."""
        front = () if self.input_size is None else (self.input_size,)
        return "-".join(map(str, (*front, *self.layers)))

    @property
    def weighted(self) -> tuple[str, ...]:
        """Names of the layers with weights, in order: keys of the parameters."""
        return tuple(name for name in self.names if not name.startswith("pool"))

    @property
    def pulse_counts(self) -> dict[str, int]:
        """P of each layer with weights."""
        names = self.weighted
        counts = (*self.pulses, *self.pulses[-1:] * len(names), *(0 for _ in names))
        return dict(zip(names, counts, strict=False))

    @property
    def reference_neurons(self) -> tuple[int, ...]:
        """How many reference neurons each layer has, in order; pooling has none.

        An urgency makes T of the output layer's: its pulses are among these.
        """
        counts = dict.fromkeys(self.names, 0) | self.pulse_counts
        if self.urgency:
            counts[self.names[-1]] = self.num_steps
        return tuple(counts.values())

    @nn.nowrap
    def reference_weights(self, params: dict) -> tuple[jax.Array, ...]:
        """Weights [P, O] of the reference neurons of each layer with weights, those of
        an urgency among them."""
        weights = []
        for name in self.weighted:
            layer, steps = params["params"][name], self.num_steps
            pulses, kernel = layer.get("pulses"), layer["kernel"]
            urgency = self.urgency if name == self.names[-1] else 0.0
            weights.append(
                _response.reference(
                    pulses, kernel, steps, urgency, _response.is_whole(kernel)
                )
            )
        return tuple(weights)

    @nn.nowrap
    def thresholds(self, params: dict) -> tuple[jax.Array, ...]:
        """θ of each neuron or channel [O] of every layer with weights."""
        layers = [params["params"][name] for name in self.weighted]
        theta = [layer.get("threshold", self.threshold) for layer in layers]
        kernels = [layer["kernel"] for layer in layers]
        return tuple(map(_response.thresholds, theta, kernels))

    @property
    def num_classes(self) -> int:
        """C, the number of output neurons."""
        output = self.layers[-1]
        assert isinstance(output, DenseSpec)  # parse_spec sees to it
        return output.features

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all layers, in order: conv1, pool1, conv2, …, dense3.

        Pooling bears the number of the layer in front; a second one there is pool1_2.
        """
        names: list[str] = []
        count = pools = 0
        for layer in self.layers:
            pools = pools + 1 if isinstance(layer, PoolSpec) else 0
            count += not pools
            kind = {ConvSpec: "conv", PoolSpec: "pool", DenseSpec: "dense"}[type(layer)]
            names.append(f"{kind}{count}_{pools}" if pools > 1 else f"{kind}{count}")
        return tuple(names)

    @nn.nowrap
    def encode(self, images: jax.Array | np.ndarray) -> SpikeTimes:
        """Spike times of images in this network's T, see `ds4nn_jax.encode`."""
        return _coding.remember(spike_times(images, self.num_steps), self.num_steps)

    def __post_init__(self):
        # Plain, whatever JSON or NumPy makes of them: a network is a static argument.
        for field in dataclasses.fields(self):
            if field.name not in ("parent", "name"):
                static = _static(getattr(self, field.name))
                object.__setattr__(self, field.name, static)
        super().__post_init__()
        _checks.num_steps(self.num_steps)
        _checks.urgency(self.urgency)
        _checks.pulse_counts(self.pulses, len(self.weighted), self.num_steps)
        if self.initial_weights is not None:
            if len(self.initial_weights) != len(self.weighted):
                raise ValueError(
                    f"initial_weights must give (low, high) for each of the "
                    f"{len(self.weighted)} layers with weights, got "
                    f"{len(self.initial_weights)}"
                )
            for low, high in self.initial_weights:
                uniform_weights(low, high)  # refuses bounds before any work

    def setup(self):
        hidden = chosen("surrogate", Surrogate, self.surrogate)
        output = Window(float("inf")) if hidden.silent_learn else hidden
        settings = "threshold", "num_steps", "engine"
        shared: dict[str, Any] = {name: getattr(self, name) for name in settings}
        ranges = iter(self.initial_weights or ())
        stack = []
        for name, spec in zip(self.names, self.layers, strict=True):
            if isinstance(spec, PoolSpec):
                stack.append(SpikingPool(spec.size, name=name))
                continue
            init = uniform_weights(*next(ranges)) if self.initial_weights else None
            fields = dict(shared, surrogate=hidden, kernel_init=init, name=name)
            fields["pulses"] = self.pulse_counts[name]
            if isinstance(spec, ConvSpec):
                fields |= dict(strides=spec.strides, padding=self.padding)
                window = (spec.size, spec.size)
                stack.append(SpikingConv(spec.features, window, **fields))
                continue
            if name == self.names[-1]:
                fields |= dict(surrogate=output, urgency=self.urgency)
            stack.append(SpikingDense(spec.features, **fields))
        self.stack = stack

    def __call__(self, times: SpikeTimes) -> SpikeTimes:
        """Output spike times [B, C] for input spike times [B, H, W, I] or [B, I]."""
        return self._propagate(times)[1]

    def trace(self, times: SpikeTimes) -> Trace:
        """Spike times of every layer, and the output potentials that break ties."""
        entering, _, everything = self._propagate(times, keep="times")
        potentials = self._potentials(entering)
        reference = self.reference_neurons
        return Trace(tuple(everything), potentials, self.num_steps, reference)

    def activity(
        self,
        times: SpikeTimes,
        hooks: Sequence[Callable[[SpikeTimes], SpikeTimes]] = (),
    ) -> Activity:
        """Output times and potentials, and how many neurons fired when.

        Needs less memory and time than `trace`: of a convolution with pooling behind it
        only what pooling passes on is kept. `hooks` are identities on the spike times
        that leave each hidden layer with weights (`RateRegularizer.layers`).
        """
        entering, out, counts = self._propagate(times, keep="counts", hooks=hooks)
        return Activity(out, self._potentials(entering), jnp.stack(counts, axis=1))

    def _potentials(self, entering: SpikeTimes) -> jax.Array:
        output = self.stack[-1].variables["params"]
        theta = output.get("threshold", self.threshold)
        potentials = functions.decision_potentials(
            entering,
            output["kernel"],
            pulses=output.get("pulses"),
            threshold=theta,
            num_steps=self.num_steps,
            engine=self.engine,
            urgency=self.urgency,
        )
        theta = _response.thresholds(theta, output["kernel"])
        return _response.comparable(potentials, theta)

    def _propagate(
        self,
        times: SpikeTimes,
        *,
        keep: Literal["times", "counts"] | None = None,
        hooks: Sequence[Callable[[SpikeTimes], SpikeTimes]] = (),
    ) -> tuple[SpikeTimes, SpikeTimes, list[jax.Array]]:
        """What enters the output layer, what leaves it, and for the input and every
        layer its spike times or its spikes of each step."""
        times = entering = self._checked_input(times)
        counts = keep == "counts"
        kept = [spikes_per_step(times, self.num_steps) if counts else times]
        remaining, hook, merged = iter(hooks), None, False
        behind = (*self.layers[1:], None)
        for spec, layer, following in zip(self.layers, self.stack, behind, strict=True):
            if merged:  # with the convolution in front
                merged = False
            elif isinstance(spec, PoolSpec):
                times = layer(times)
                if counts:
                    kept.append(spikes_per_step(times, self.num_steps))
            else:
                entering, settings = times, {}
                if isinstance(spec, DenseSpec):
                    entering = flat(times)
                elif keep != "times":
                    pool = self._merged(spec, following, times.shape)
                    merged, settings = pool != NO_POOL, dict(pool=pool)
                response = layer.respond(entering, counts=counts, **settings)
                times = response.times
                hook = next(remaining) if hooks and following is not None else None
                if counts:
                    kept += jnp.unstack(response.counts, axis=1)
            # Pooling hands every error to one input, so all norms are the same on
            # either side of it, and smaller sums give them behind it.
            if not isinstance(following, PoolSpec):
                times = normalize_gradient(times, method=self.normalization)
                if hook is not None:
                    times = hook(times)
            if keep == "times":
                kept.append(times)
        return entering, times, kept

    def _merged(
        self, conv: ConvSpec, following: LayerSpec | None, shape: tuple[int, ...]
    ) -> tuple[int, int]:
        """The window of the pooling behind a convolution, if both can be one layer."""
        if not isinstance(following, PoolSpec):
            return NO_POOL
        geometry = shape[1:3], (conv.size, conv.size), conv.strides
        for size, pad in zip(
            shape[1:3], explicit_pads(self.padding, *geometry), strict=True
        ):
            if ((size + sum(pad) - conv.size) // conv.stride + 1) % following.size:
                return NO_POOL
        return following.size, following.size

    def _checked_input(self, times: SpikeTimes) -> SpikeTimes:
        _coding.compare(times, self.num_steps)
        times = _checks.spike_times(times, self.num_steps)
        if not isinstance(self.layers[0], DenseSpec):
            _checks.rank("times", times, "[B, H, W, I]")
        elif times.ndim < 2 or self.input_size not in (None, flat(times).shape[1]):
            raise ValueError(
                f"the network {self.spec} takes {self.input_size} inputs an image, "
                f"got times of shape {times.shape}"
            )
        return times


def check_params(network: SpikingNetwork, params: dict, images: np.ndarray) -> None:
    """Refuses parameters that are not this network's on such images, or not finite."""
    one = jax.ShapeDtypeStruct((1, *np.shape(images)[1:]), jnp.float32)
    layers = jax.eval_shape(network.init, jax.random.key(0), one)["params"]
    trees = flax.core.unfreeze(params["params"]), layers
    actual, expected = jax.tree.map(np.shape, trees)
    for name, arrays in expected.items():
        if "threshold" in actual.get(name, ()):  # a layer may have its own
            arrays["threshold"] = arrays["kernel"][-1:]
    if actual != expected:
        raise ValueError(
            f"parameters do not fit the network {network.spec} and images of shape "
            f"{one.shape[1:]}: expected {expected}, got {actual}"
        )
    _checks.finite_weights(jax.device_get(params))
