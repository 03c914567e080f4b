import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ds4nn_jax.training import optimizers


def test_orthogonal_steps_follow_the_singular_vectors(rng):
    """G = U·Σ·Vᵀ with σ from 1 to 100 becomes U·Vᵀ, of root mean square 1, to within
    what five Newton-Schulz iterations leave (0.7 to 1.2 of each singular value)."""
    u, _ = np.linalg.qr(rng.normal(size=(18, 5)))
    v, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    gradient = (u * [100, 50, 20, 5, 1]) @ v.T
    kernel = jnp.asarray(gradient.reshape(3, 3, 2, 5), jnp.float32)
    tx = optimizers.orthogonal_steps()
    step, _ = tx.update(kernel, tx.init(kernel), kernel)
    sizes = u.T @ np.asarray(step).reshape(18, 5) @ v
    expected = np.sqrt(18)  # of each singular value: 18·5 entries, rank 5
    assert np.all(np.abs(np.diag(sizes) / expected - 0.95) < 0.3)
    assert np.abs(sizes - np.diag(np.diag(sizes))).max() < 0.01 * expected
    assert step.shape == kernel.shape


def test_neurons_of_wide_layers_are_orthogonalised_in_groups(rng):
    """Of six neurons in groups of up to four, each three step as if they were alone."""
    gradient = jnp.asarray(rng.normal(size=(2, 2, 3, 6)), jnp.float32)
    tx = optimizers.orthogonal_steps(group=4)
    step, _ = tx.update(gradient, tx.init(gradient))
    alone = optimizers.orthogonal_steps()
    for own in (slice(0, 3), slice(3, 6)):
        expected, _ = alone.update(gradient[..., own], alone.init(gradient[..., own]))
        np.testing.assert_allclose(step[..., own], expected, atol=1e-5)


def stepped(norms, update, weights):
    """Weights of a hidden layer after one step."""
    tx = norms.transformation(("hidden", "output"))
    tree = lambda x: {"params": {"hidden": x, "output": x}}  # noqa: E731
    step, _ = tx.update(tree(update), tx.init(tree(weights)), tree(weights))
    return np.asarray(weights + step["params"]["hidden"])


def test_held_norms(rng):
    weights, update = jnp.asarray(rng.normal(size=(2, 3, 3, 2, 5)), jnp.float32)
    moved = stepped(optimizers.HeldNorms(), update, weights).reshape(-1, 5)
    flat = [np.asarray(w).reshape(-1, 5) for w in (weights, weights + update)]
    norms = [np.linalg.norm(w, axis=0) for w in flat]
    np.testing.assert_allclose(moved, flat[1] * norms[0] / norms[1], rtol=1e-4)


def test_damp_common_by_hand():
    """Each of two neurons: the mean of its three weights' steps is kept to a tenth."""
    update = jnp.array([[1.0, 2.0], [4.0, 2.0], [7.0, 2.0]])
    tx = optimizers.damp_common(0.1)
    damped, _ = tx.update(update, tx.init(update))
    expected = [[0.4 - 3, 0.2], [0.4, 0.2], [0.4 + 3, 0.2]]
    np.testing.assert_allclose(damped, expected, atol=1e-6)
    undamped, _ = optimizers.damp_common(1.0).update(update, tx.init(update))
    np.testing.assert_array_equal(undamped, update)


def test_learned_norms(rng):
    """w = (3, 4): a step across leaves its norm at 5, one along it of 1 makes it 6;
    steps of random signs, which would double a norm, do not make it grow."""
    norms = optimizers.LearnedNorms()
    weights = jnp.array([[3.0], [4.0]])
    for update, expected in (
        ([[-4.0], [3.0]], np.array([[-1.0], [7.0]]) * 5 / 50**0.5),
        ([[0.6], [0.8]], [[3.6], [4.8]]),
        ([[-6.0], [-8.0]], [[0.0], [0.0]]),  # never through zero
    ):
        moved = stepped(norms, jnp.array(update), weights)
        np.testing.assert_allclose(moved, expected, atol=1e-5)
    start, steps = rng.normal(size=(72, 4)), 0.2 * rng.normal(size=(100, 72, 4))
    weights = jnp.float32(start)
    for step in jnp.float32(steps):
        weights = stepped(norms, step, weights)
    size = np.linalg.norm(start)
    assert np.linalg.norm(weights) == pytest.approx(size, rel=0.25)
    assert np.linalg.norm(start + steps.sum(0)) > 1.8 * size


def test_average_by_hand():
    """Steps pass unchanged; w̄ forgets the initial weights at 1/10, 2/11, 3/12, then
    at most at the decay asked for."""
    tx = optax.chain(optax.sgd(1.0), optimizers.average_weights(0.2))
    weights, expected = jnp.array([4.0]), 4.0
    state = tx.init(weights)
    for kept in (1 / 10, 2 / 11, 0.2, 0.2):
        step, state = tx.update(jnp.array([1.0]), state, weights)
        assert step == -1.0
        weights = weights + step
        expected = kept * expected + (1 - kept) * float(weights[0])
        np.testing.assert_allclose(
            optimizers.averaged(state, weights), [expected], rtol=1e-6
        )
    bare = optax.adam(1.0).init(weights)
    assert optimizers.averaged(bare, weights) is weights  # none: the weights themselves


def freezing(chain, labels):
    return optax.multi_transform({"train": chain, "keep": optax.set_to_zero()}, labels)


@pytest.mark.parametrize(
    "kind, norms", [(optimizers.Adam, "learned"), (optimizers.Muon, "held")]
)
def test_frozen_layers_keep_their_weights(kind, norms, rng):
    """optax freezes a layer, by its name or by its arrays: it stays, and the weights
    and averages of the others are those of the optimizer alone."""
    shapes = {"conv1": (3, 3, 1, 4), "dense2": (20, 10)}
    drawn = {name: rng.normal(4, 9, shape) for name, shape in shapes.items()}
    layers = {
        name: {"kernel": jnp.float32(w), "pulses": jnp.ones((2, w.shape[-1]))}
        for name, w in drawn.items()
    }
    start = {"params": layers}
    gradients = jax.tree.map(jnp.cos, start)
    chain = kind(0.05, norms=norms, average=0.9).chain(
        tuple(shapes), optax.constant_schedule(1.0)
    )
    by_layer = {"params": {"conv1": "keep", "dense2": "train"}}
    by_array = jax.tree.map_with_path(
        lambda path, _: by_layer["params"][path[1].key], start
    )
    ends = []
    for tx in (chain, freezing(chain, by_layer), freezing(chain, by_array)):
        params, state, update = start, tx.init(start), jax.jit(tx.update)
        for _ in range(2):
            steps, state = update(gradients, state, params)
            params = optax.apply_updates(params, steps)
        ends.append((params["params"], optimizers.averaged(state, params)["params"]))
    for params, average in ends[1:]:
        for end, alone in zip((params, average), ends[0], strict=True):
            jax.tree.map(np.testing.assert_array_equal, end["conv1"], layers["conv1"])
            jax.tree.map(
                lambda got, expected: np.testing.assert_allclose(
                    got, expected, rtol=1e-5
                ),
                end["dense2"],
                alone["dense2"],
            )
