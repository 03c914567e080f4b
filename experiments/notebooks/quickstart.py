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
# # Quickstart: one spike per neuron
#
# A network in which every neuron fires **at most once**, and the *time* of its spike is
# the signal. We encode an image, watch its spikes, and see the decision happen.
#
# [Open in Colab](https://colab.research.google.com/github/ds4nn-jax/ds4nn_jax/blob/main/docs/tutorials/quickstart.ipynb)

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ds4nn_jax") is None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if subprocess.call([*pip, "ds4nn_jax[experiments]"]):
        subprocess.check_call([*pip, "../..[experiments]"])  # the checkout around this

# %%
import matplotlib.pyplot as plt
import numpy as np

import ds4nn_jax as ds
from ds4nn_jax import data, plots

# %% [markdown]
# ## Images become spike times
#
# A bright pixel fires early, a black one never: t = ⌊(1 − x)·T⌋, and T
# means silence. The digits are 8×8 images that come with scikit-learn: nothing is
# downloaded.

# %%
digits = data.load("digits")
times = ds.encode(digits.test_images[:1])
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
left.imshow(digits.test_images[0, ..., 0], cmap="gray")
left.set_title(f"the first test image: a {digits.test_labels[0]}")
shown = right.imshow(np.where(times < 100, times, np.nan)[0, ..., 0], cmap="cividis")
right.set_title("spike times; blank is silent")
_ = figure.colorbar(shown, ax=right, label="step")

# %% [markdown]
# ## A network learns
#
# `64C3-P2` is the paper's notation: 64 maps of 3×3 windows, then pooling over 2×2. Half
# a minute on a CPU.

# %%
config = ds.TrainConfig(
    spec="16C3-P2-32C3-10",
    output_rule=ds.rules.Margin(offset=15),
    optimizer=ds.optimizers.Adam(learning_rate=0.05),
    batch_size=16,
    epochs=6,
)
for result in ds.train(config, digits.train_images, digits.train_labels):
    seen = result.validation
    print(
        f"epoch {result.epoch}: {seen.accuracy:.1%} of the validation images, "
        f"at step {seen.decision_step:.0f} with {seen.spikes:.0f} spikes"
    )
network, params = config.network(), result.params

# %% [markdown]
# ## Every spike of one image
#
# Each dot is a spike. The dashed line stands behind the first output spike: the
# decision. What lies to the right of it need not be sent.

# %%
trace = network.apply(params, times, method="trace")
layers = ("input", *network.names)
spikes = [(n, np.ravel(t)) for n, t in zip(layers, trace.times, strict=True)]
decision = float(np.min(trace.times[-1]))
plots.raster(spikes, network.num_steps, decision_step=decision)

# %% [markdown]
# ## The decision, as it happens
#
# Output neurons add up weights, no leak, until one of them reaches the threshold.

# %%
entering = trace.times[-2].reshape(1, -1)
kernel = params["params"][network.names[-1]]["kernel"]
potentials = ds.membrane_potentials(entering, kernel)
plots.output_potentials(
    np.asarray(potentials)[:, 0],
    np.asarray(trace.times[-1])[0],
    threshold=network.threshold,
    label=int(digits.test_labels[0]),
    class_names=digits.class_names,
    decision_step=decision,
)

# %% [markdown]
# ## What if one stops early?
#
# Before the first output spike, the highest potential is the best guess.

# %%
trace = network.apply(params, ds.encode(digits.test_images), method="trace")
potentials = ds.membrane_potentials(
    trace.times[-2].reshape(len(digits.test_labels), -1), kernel
)
guesses = np.asarray(ds.predict_by(trace.times[-1], potentials))
first = np.min(trace.times[-1], axis=1)
plots.accuracy_by_step(
    (guesses == digits.test_labels).mean(axis=1),
    (first <= np.arange(100)[:, None]).mean(axis=1),
    decision_step=first.mean(),
)

# %% [markdown]
# ## A trained network of the library
#
# `infer` stops at the first output spike. Here it sees a hand-drawn seven.

# %%
network, params, card = ds.pretrained.load("mnist")
print(f"{network.spec}: {card['accuracy']:.2%} of the MNIST test images")
drawing = np.zeros((1, 28, 28, 1), np.uint8)
drawing[0, 6:9, 7:20, 0] = 200
for row in range(9, 23):  # the pen gets lighter
    column = 18 - (row - 9) // 2
    drawing[0, row, column - 1 : column + 2, 0] = 200 - 8 * (row - 9)
decided = ds.infer(network, params, ds.encode(drawing))
print(f"a {int(decided.label[0])}, decided at step {int(decided.step[0])} of 100")
