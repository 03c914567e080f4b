"""spyx: `IF` neurons, a readout that does not leak, integral cross-entropy."""

import functools

import jax
import jax.numpy as jnp
import optax
import spyx
import spyx.optimize
from flax import nnx

PACKAGES = ("spyx", "jax", "jaxlib", "flax")


class Model:
    def __init__(self, weights, steps: int, variant: str):
        rngs = nnx.Rngs(0)
        pool = functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
        convolution = functools.partial(
            nnx.Conv, kernel_size=(3, 3), use_bias=False, rngs=rngs
        )
        self.network = spyx.nn.Sequential(
            convolution(1, 64),
            spyx.nn.IF((28, 28, 64)),
            pool,
            convolution(64, 128),
            spyx.nn.IF((14, 14, 128)),
            pool,
            spyx.nn.Flatten(),
            nnx.Linear(7 * 7 * 128, 10, use_bias=False, rngs=rngs),
            spyx.nn.LI((10,), beta=1.0, rngs=rngs),
        )
        for index, kernel in zip((0, 3, 7), weights, strict=True):
            self.network.layers[index].kernel[...] = jnp.asarray(kernel)
        loss = spyx.fn.integral_crossentropy(time_axis=0)
        self.optimizer = nnx.Optimizer(self.network, optax.adam(1e-3), wrt=nnx.Param)
        self.step = spyx.optimize.make_train_step(
            lambda network, x, labels: loss(spyx.nn.run(network, x)[0], labels)
        )
        self.labels = nnx.jit(
            lambda network, x: spyx.nn.run(network, x)[0].sum(0).argmax(-1)
        )
        self.compiled = None

    def batch(self, spikes, labels):
        return jnp.asarray(spikes), jnp.asarray(labels)

    def train(self, x, labels):
        arguments = (self.network, self.optimizer, x, labels)
        if self.compiled is None:
            self.compiled = self.step.lower(*arguments).compile()
            analysis = self.compiled.compiled.memory_analysis()
            self.temporary = analysis.temp_size_in_bytes
        self.compiled(*arguments)
        jax.block_until_ready(nnx.state(self.network))

    def infer(self, x):
        jax.block_until_ready(self.labels(self.network, x))
