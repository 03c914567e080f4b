"""What the two torch libraries share: weights, batches, and the training step."""

import os

import numpy as np
import torch

torch.set_num_threads(os.cpu_count())


def load(layers, weights) -> None:
    """Puts kernels [h, w, in, out] and [in, out] into torch layers, in their order."""
    conv1, conv2, dense = weights
    height = int((dense.shape[0] // conv2.shape[-1]) ** 0.5)
    dense = dense.reshape(height, height, -1, dense.shape[-1]).transpose(3, 2, 0, 1)
    arrays = (
        conv1.transpose(3, 2, 0, 1),
        conv2.transpose(3, 2, 0, 1),
        dense.reshape(len(dense), -1),
    )
    with torch.no_grad():
        for layer, array in zip(layers, arrays, strict=True):
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(array)))


class Base:
    """Subclasses make `network` and give `loss` and `spikes` [T, B, 10]."""

    def optimize(self) -> None:
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)

    def batch(self, spikes, labels):
        spikes = np.ascontiguousarray(spikes.transpose(0, 1, 4, 2, 3))
        return torch.from_numpy(spikes), torch.from_numpy(labels.astype(np.int64))

    def train(self, x, labels):
        self.optimizer.zero_grad()
        self.loss(self.spikes(x), labels).backward()
        self.optimizer.step()

    def infer(self, x):
        with torch.inference_mode():
            spikes = self.spikes(x)
            first = torch.where(spikes.any(0), spikes.argmax(0), len(spikes))
            return first.argmin(-1)
