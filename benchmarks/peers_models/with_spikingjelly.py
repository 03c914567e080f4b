"""SpikingJelly: `IFNode` in multi-step mode, torch backend, cross-entropy of rates."""

from _torch import Base, load
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

PACKAGES = ("spikingjelly", "torch")


class Model(Base):
    def __init__(self, weights, steps: int, variant: str):
        def fire():
            return neuron.IFNode(surrogate_function=surrogate.ATan())

        self.network = nn.Sequential(
            layer.Conv2d(1, 64, 3, padding=1, bias=False),
            fire(),
            layer.MaxPool2d(2),
            layer.Conv2d(64, 128, 3, padding=1, bias=False),
            fire(),
            layer.MaxPool2d(2),
            layer.Flatten(),
            layer.Linear(7 * 7 * 128, 10, bias=False),
            fire(),
        )
        functional.set_step_mode(self.network, "m")
        load([self.network[i] for i in (0, 3, 7)], weights)
        self.optimize()

    def spikes(self, x):
        functional.reset_net(self.network)
        return self.network(x)

    def loss(self, spikes, labels):
        return nn.functional.cross_entropy(spikes.mean(0), labels)
