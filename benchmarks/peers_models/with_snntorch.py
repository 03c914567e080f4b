"""snnTorch: `Leaky` with β = 1, which does not leak, and its temporal cross-entropy.

Variants: "loop", the time loop around the network of its tutorials; "layers", each
layer through all time steps before the next, convolutions as one batch of T·B images.
"""

import snntorch as snn
import torch
from _torch import Base, load
from snntorch import functional, utils
from torch import nn

PACKAGES = ("snntorch", "torch")


class Model(Base):
    def __init__(self, weights, steps: int, variant: str):
        def neuron():
            return snn.Leaky(beta=1.0, init_hidden=True)

        self.network = nn.Sequential(
            nn.Conv2d(1, 64, 3, padding=1, bias=False),
            neuron(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1, bias=False),
            neuron(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(7 * 7 * 128, 10, bias=False),
            neuron(),
        )
        load([self.network[i] for i in (0, 3, 7)], weights)
        self.spikes = {"loop": self.loop, "layers": self.layers}[variant]
        self.loss = functional.ce_temporal_loss()
        self.optimize()

    def loop(self, x):
        utils.reset(self.network)
        return torch.stack([self.network(step) for step in x])

    def layers(self, x):
        utils.reset(self.network)
        for layer in self.network:
            if isinstance(layer, snn.Leaky):
                x = torch.stack([layer(step) for step in x])
            else:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x
