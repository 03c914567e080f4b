"""ds4nn_jax itself: `train_step` and the full forward pass, on images."""

import functools

import jax
import numpy as np

import ds4nn_jax as ds

PACKAGES = ("ds4nn_jax", "jax", "jaxlib", "numba")


def configuration(engine: str, steps: int) -> ds.TrainConfig:
    """What is measured: the window rule, initial weights that make neurons fire."""
    return ds.TrainConfig(
        spec="64C3-P2-128C3-P2-10",
        num_steps=steps,
        urgency=0,
        pulses=(),
        centring=0,
        engine=engine,
        output_rule="margin",
    )


def initial_weights(images: np.ndarray) -> dict[str, np.ndarray]:
    """Kernels that are scaled on these images, in units of θ."""
    config = configuration("auto", 100)
    network, key = config.network(), jax.random.key(0)
    params = config.initial_weights.draw(network, key, images)
    names = zip(("conv1", "conv2", "dense"), config.network().weighted, strict=True)
    return {
        short: np.asarray(params["params"][name]["kernel"]) / config.threshold
        for short, name in names
    }


class Model:
    takes_images = True

    def __init__(self, weights, steps: int, variant: str):
        config = configuration(variant, steps)
        optimizer = ds.make_optimizer(config, 1000)
        names = config.network().weighted
        params = {
            "params": {
                name: {"kernel": jax.numpy.asarray(kernel * config.threshold)}
                for name, kernel in zip(names, weights, strict=True)
            }
        }
        # Every step starts from these weights: the work depends on who fires.
        step = jax.numpy.zeros((), jax.numpy.int32)
        self.state = ds.TrainState(
            step, params, optimizer.init(params), jax.random.key(0)
        )
        self.step = jax.jit(functools.partial(ds.train_step, config, optimizer))
        self.network = config.network()
        self.compiled = None

    def batch(self, images, labels):
        return images, labels

    def train(self, images, labels):
        if self.compiled is None:
            self.compiled = self.step.lower(self.state, images, labels).compile()
            analysis = self.compiled.memory_analysis()
            self.temporary = analysis.temp_size_in_bytes
        jax.block_until_ready(self.compiled(self.state, images, labels))

    def infer(self, images):
        jax.block_until_ready(_labels(self.network, self.state.params, images))


@functools.partial(jax.jit, static_argnums=0)
def _labels(network: ds.SpikingNetwork, params: dict, images: jax.Array) -> jax.Array:
    times = ds.encode(images, num_steps=network.num_steps)
    trace = network.apply(params, times, method="trace")
    return ds.predict(trace.times[-1], trace.potentials)
