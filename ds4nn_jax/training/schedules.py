"""How steps shrink over a run: frozen values that give optax's schedules."""

import dataclasses

import optax

from ds4nn_jax._values import Value


@dataclasses.dataclass(frozen=True)
class Schedule(Value):
    """To define your own, extend this and write `factor`."""

    def factor(self, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """The factor on the learning rate, by the number of the step."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """From 1 to 0 at the last step, along half a cosine: (1 + cos(π·n/N))/2."""

    def factor(self, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(1.0, epochs * steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class StepDecay(Schedule):
    """×`decay` after every `period` epochs; the paper's is 0.9 after every 5.

    Attributes:
      decay: > 0.
      period: epochs, at least 1.
    """

    decay: float = 0.9
    period: int = 5

    def check(self) -> None:
        self.require("decay", self.decay > 0, "> 0")
        self.require("period", self.period >= 1, "at least 1")

    def factor(self, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        return optax.exponential_decay(
            1.0, self.period * steps_per_epoch, self.decay, staircase=True
        )
