"""jaxpike: `LIF` of long τ (it has no neuron without leak), peak-membrane readout.

Variants: "unroll", its default; "checkpointed", its own exchange of time for memory.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxpike as jp
import optax

PACKAGES = ("jaxpike", "jax", "jaxlib", "equinox")
TAU = 1000.0  # time steps: 10 % lost in T = 100


class Model:
    def __init__(self, weights, steps: int, variant: str):
        key = jax.random.key(0)
        network = jp.Sequential(
            jp.Conv2d(1, 64, key=key, use_bias=False),
            jp.LIF(tau=TAU),
            jp.Pool2d(mode="max"),
            jp.Conv2d(64, 128, key=key, use_bias=False),
            jp.LIF(tau=TAU),
            jp.Pool2d(mode="max"),
            jp.Flatten(),
            jp.Dense(7 * 7 * 128, 10, key=key, use_bias=False),
            jp.LeakyIntegrator(tau=TAU),
        )
        conv1, conv2, dense = (
            jnp.asarray(kernel / -jnp.expm1(-1 / TAU)) for kernel in weights
        )

        def kernels(network):
            return [network.layers[i].weight for i in (0, 3, 7)]

        network = eqx.tree_at(kernels, network, [conv1, conv2, dense.T])
        # τ is learnt by default; here only the weights are, as in the other libraries.
        learnt = jax.tree.map(lambda _: False, network)
        learnt = eqx.tree_at(kernels, learnt, [True] * 3)
        self.weights, fixed = eqx.partition(network, learnt)
        unroll = {"unroll": jp.unroll, "checkpointed": jp.unroll_checkpointed}[variant]

        def logits(weights, x):
            return jp.max_membrane_logits(unroll(eqx.combine(weights, fixed), x)[0])

        def loss(weights, x, labels):
            return jp.cross_entropy(logits(weights, x), labels), None

        optimizer = optax.adam(1e-3)
        self.optimizer = optimizer.init(eqx.filter(self.weights, eqx.is_array))
        self.step = jp.make_step(loss, optimizer)
        self.labels = eqx.filter_jit(lambda *a: logits(*a).argmax(-1))
        self.compiled = None

    def batch(self, spikes, labels):
        return jnp.asarray(spikes), jnp.asarray(labels)

    def train(self, x, labels):
        arguments = (self.weights, self.optimizer, x, labels)
        if self.compiled is None:
            self.compiled = self.step.lower(*arguments).compile()
            analysis = self.compiled.compiled.memory_analysis()
            self.temporary = analysis.temp_size_in_bytes
        self.weights, self.optimizer, *_ = self.compiled(*arguments)
        jax.block_until_ready(self.weights)

    def infer(self, x):
        jax.block_until_ready(self.labels(self.weights, x))
