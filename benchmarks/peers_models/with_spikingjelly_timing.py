"""SpikingJelly's `timing_based`: single spikes in continuous time, exact gradients.

`CubicConv2d` and `CubicSRM` as in its `cubic_conv_mnist` example, with cubic synaptic
currents instead of instantaneous ones; it has no pooling, so the earliest event of a
2×2 window is taken here.
"""

import numpy as np
import torch
from _torch import Base, load
from spikingjelly.timing_based import neuron
from torch import nn

PACKAGES = ("spikingjelly", "torch")
DURATION = 4.0  # of a run; its example's, with synapses that act for 2


def pooled(events, batch: int, shape: tuple[int, int, int]):
    """The earliest event of each 2×2 window, in the same form."""
    times, indices, offsets = events
    channels, height, width = shape
    images = torch.repeat_interleave(torch.arange(batch), offsets.diff())
    channel, place = indices // (height * width), indices % (height * width)
    y, x = place // width // 2, place % width // 2
    out = channels * (height // 2) * (width // 2)
    target = images * out + (channel * (height // 2) + y) * (width // 2) + x
    first = torch.full((batch * out,), torch.inf).scatter_reduce(
        0, target, times, "amin"
    )
    kept = torch.nonzero(torch.isfinite(first)).flatten()
    counts = torch.bincount(kept // out, minlength=batch)
    return first[kept], kept % out, nn.functional.pad(counts.cumsum(0), (1, 0))


class Model(Base):
    def __init__(self, weights, steps: int, variant: str):
        self.steps = steps
        self.network = nn.ModuleList(
            [
                neuron.CubicConv2d(1, 64, 3, DURATION, padding=1),
                neuron.CubicConv2d(64, 128, 3, DURATION, padding=1),
                neuron.CubicSRM(7 * 7 * 128, 10, DURATION),
            ]
        )
        load(self.network, [weight / 100 for weight in weights])  # θ is 1 here
        self.optimize()

    def batch(self, spikes, labels):
        fired = spikes.any(0).reshape(spikes.shape[1], -1)
        times = spikes.argmax(0).reshape(fired.shape) * (DURATION / self.steps)
        offsets = np.concatenate([[0], fired.sum(1).cumsum()])
        events = times[fired].astype(np.float32), np.nonzero(fired)[1], offsets
        return tuple(map(torch.from_numpy, events)), torch.from_numpy(
            labels.astype(np.int64)
        )

    def times(self, events):
        """[B, 10] output times; silence is the end of the run."""
        batch = len(events[2]) - 1
        conv1, conv2, dense = self.network
        events = pooled(conv1(*events, (28, 28)), batch, (64, 28, 28))
        events = pooled(conv2(*events, (14, 14)), batch, (128, 14, 14))
        times, indices, offsets = dense(*events)
        images = torch.repeat_interleave(torch.arange(batch), offsets.diff())
        late = times - DURATION
        early = late.new_zeros(batch * 10).index_add(0, images * 10 + indices, late)
        return early.reshape(batch, 10) + DURATION

    def train(self, x, labels):
        self.optimizer.zero_grad()
        logits = 50 * (DURATION - self.times(x))  # its example's
        nn.functional.cross_entropy(logits, labels).backward()
        self.optimizer.step()

    def infer(self, x):
        with torch.no_grad():
            return self.times(x).argmin(-1)
