# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A learning rule of your own
#
# Layers are plain functions from spike times to spike times, with a gradient. Here are
# they composed in bare JAX: no Flax, no trainer, and an output rule made up on the
# spot.
#
# [Open in Colab](https://colab.research.google.com/github/ds4nn-jax/ds4nn_jax/blob/main/docs/tutorials/custom_rule.ipynb)

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ds4nn_jax") is None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if subprocess.call([*pip, "ds4nn_jax[experiments]"]):
        subprocess.check_call([*pip, "../..[experiments]"])  # the checkout around this

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ds4nn_jax as ds
from ds4nn_jax import data

digits = data.load("digits")
times, labels = ds.encode(digits.train_images), jnp.asarray(digits.train_labels)


# %% [markdown]
# ## What a gradient of a spike time is
#
# A spike time is a step function of the weights, so its true derivative is useless. A
# *surrogate* takes its place: `Constant`, the paper's ∂t/∂V → −1,
# or `Window(β)`, which lets silent neurons near the threshold learn too. The cotangent
# of an output time is ∂E/∂t: positive asks for an earlier spike.

# %%
kernel = jax.random.uniform(jax.random.key(0), (3, 3, 1, 8), minval=-20, maxval=35)
out, vjp = jax.vjp(lambda k: ds.conv(times[:1], k, surrogate=ds.Window(50.0)), kernel)
(gradient,) = vjp(jnp.ones_like(out))
print("asked to fire earlier, weights grow:", bool(jnp.all(gradient <= 0)))


# %% [markdown]
# ## A network
#
# Parameters are a dict; any structure will do.


# %%
def init(key):
    first, second = jax.random.split(key)
    return {
        "conv": jax.random.uniform(first, (3, 3, 1, 16), minval=-20, maxval=35),
        "dense": jax.random.uniform(second, (256, 10), minval=-6, maxval=9),
    }


def forward(params, times):
    hidden = ds.conv(times, params["conv"], surrogate=ds.Window(50.0))
    hidden = ds.earliest_pool(hidden).reshape(len(times), -1)
    return ds.dense(hidden, params["dense"], surrogate=ds.Window(float("inf")))


# %% [markdown]
# ## The rule
#
# An output rule is a target time for every output; the loss is half the squared
# distance, so its gradient is simply `times - target`. Ours: if the label is not first,
# it should swap times with whichever output was.


# %%
def swap_target(times, labels, lead=10):
    is_label = jax.nn.one_hot(labels, times.shape[1], dtype=bool)
    label_time = jnp.sum(jnp.where(is_label, times, 0), axis=1, keepdims=True)
    rivals = jnp.where(is_label, jnp.inf, times)
    first = jnp.min(rivals, axis=1, keepdims=True)
    late = label_time > first - lead
    swapped = jnp.where(is_label, first - lead, jnp.where(rivals == first, 100, times))
    return jnp.where(late, jnp.clip(swapped, 0, 100), times)


def loss(params, times, labels):
    out = forward(params, times)
    out = ds.normalize_gradient(out)  # Eq. 11: every image weighs the same
    return jnp.mean(ds.temporal_loss(out, swap_target(out, labels)))


# %% [markdown]
# ## The loop

# %%
EPOCHS, STEPS, BATCH = 10, 40, 32
optimizer = optax.adam(optax.cosine_decay_schedule(0.3, EPOCHS * STEPS))
params = init(jax.random.key(0))
state = optimizer.init(params)


@jax.jit
def step(params, state, batch):
    gradient = jax.grad(loss)(params, times[batch], labels[batch])
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state


rng = np.random.default_rng(0)
for epoch in range(EPOCHS):
    order = rng.permutation(len(labels))[: STEPS * BATCH].reshape(STEPS, BATCH)
    for batch in order:
        params, state = step(params, state, batch)
    decided = ds.predict(forward(params, times))
    accuracy = np.mean(np.asarray(decided) == digits.train_labels)
    print(f"epoch {epoch + 1}: {accuracy:.1%} of the training images")

decided = ds.predict(forward(params, ds.encode(digits.test_images)))
accuracy = np.mean(np.asarray(decided) == digits.test_labels)
print(f"{accuracy:.1%} of the test images")
