"""Output rules by hand, and the normalisation of errors against its equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import ds4nn_jax as ds
from ds4nn_jax.training.rules import S4NN, Fixed, Margin, Softmax

T = 100
TIMES = np.array([[30, 20, 50], [5, 60, 98], [T, T, T], [40, 40, 70]], np.float32)
LABELS = np.array([0, 0, 1, 2])


def test_relative_target_by_hand():
    """Eq. 4, λ = 10: τ_min − λ ≥ 0 for the label, τ_max + λ ≤ T for the others."""
    np.testing.assert_array_equal(
        ds.relative_target(TIMES, LABELS, offset=10),
        [[10, 60, 60], [0, 100, 100], [100, 90, 100], [80, 80, 30]],
    )


def test_margin_target_by_hand():
    """As Eq. 4, but the second image's label leads by 55 and is left alone; a lead of
    10 is just enough."""
    np.testing.assert_array_equal(
        Margin(offset=10).target(TIMES, LABELS),
        [[10, 60, 60], [5, 60, 98], [100, 90, 100], [80, 80, 30]],
    )
    times = np.array([[20, 30, 90], [20, 29, 90]], np.float32)
    target = Margin(offset=10).target(times, np.array([0, 0]))
    np.testing.assert_array_equal(target, [[20, 30, 90], [10, 100, 100]])


def test_s4nn_target_by_hand():
    """γ = 15: the first to fire is the label's target, others not before τ + γ."""
    np.testing.assert_array_equal(
        S4NN(offset=15).target(TIMES, LABELS),
        [[20, 35, 50], [5, 60, 98], [100, 85, 100], [55, 55, 40]],
    )


def test_fixed_target_by_hand():
    target = Fixed(label_time=5, other_time=90).target(TIMES, LABELS)
    np.testing.assert_array_equal(target[3], [90, 90, 5])


def test_softmax_target_by_hand():
    """λ = 5, τ = 10, H = 50: the label 5 steps later, silence extrapolated from V."""
    times = np.array([[20, 35, 100], [100, 100, 90]], np.float32)
    potentials = np.array([[100, 110, 90], [80, 98, 100]], np.float32)
    latency = np.array([[20 + 5, 35, 105], [110, 101 + 5, 90]])
    odds = np.exp(-latency / 10)
    error = [[1, 0, 0], [0, 1, 0]] - odds / odds.sum(axis=1, keepdims=True)
    rule = Softmax(offset=5, temperature=10, horizon=50, anchor=0)
    target = rule.target(times, np.array([0, 1]), potentials)
    np.testing.assert_allclose(times - target, error, atol=1e-5)
    np.testing.assert_allclose(np.sum(times - target, axis=1), 0, atol=1e-4)


def test_softmax_anchor_by_hand():
    """κ = 2, t* = 40, T = 100, H = 50: 20 early, 61 late (silent with V = 98)."""
    times = np.array([[20, 35, 100], [100, 100, 90], [100, 10, 10]], np.float32)
    potentials = np.array([[100, 110, 90], [80, 98, 100], [-100, 0, 0]], np.float32)
    args, labels = dict(offset=5, temperature=10, horizon=50), np.array([0, 1, 0])
    free = Softmax(**args, anchor=0).target(times, labels, potentials)
    anchored = Softmax(**args, anchor=2, anchor_time=40)
    target = anchored.target(times, labels, potentials)
    drawn = [[2 * -0.2, 0, 0], [0, 2 * 0.61, 0], [2 * 1, 0, 0]]  # 200 counts as 140
    np.testing.assert_allclose(free - target, drawn, atol=1e-4)
    target = Softmax(**args, anchor=2).target(times, labels, potentials)  # t* = T/2
    drawn = [[2 * -0.3, 0, 0], [0, 2 * 0.51, 0], [2 * 1, 0, 0]]  # 200 counts as 150
    np.testing.assert_allclose(free - target, drawn, atol=1e-4)


def test_softmax_of_soft_labels_by_hand():
    """Probabilities q for the one-hot label: λ·q later, error q − p, anchored by q."""
    times = np.array([[20, 35, 100]], np.float32)
    potentials = np.array([[100, 110, 90]], np.float32)
    q = np.array([[0.5, 0.25, 0.25]], np.float32)
    late = np.array([[20 + 2, 35 + 1, 105 + 1]])
    odds = np.exp(-late / 10)
    away = np.array([[-0.2, -0.05, 0.65]])
    rule = Softmax(offset=4, temperature=10, horizon=50, anchor=2, anchor_time=40)
    error = q * (1 + 2 * away) - odds / odds.sum()
    np.testing.assert_allclose(
        times - rule.target(times, q, potentials), error, atol=1e-5
    )


def test_loss_and_its_gradient():
    """E = ½Σe² (Eq. 6), ∂E/∂t = e (Eq. 9), none through the target."""
    target = ds.relative_target(TIMES, LABELS, offset=10)
    np.testing.assert_allclose(
        ds.temporal_loss(TIMES, target), 0.5 * ((TIMES - target) ** 2).sum(axis=1)
    )

    def total(times):
        moving = ds.relative_target(times, LABELS, offset=10)
        return ds.temporal_loss(times, moving).sum()

    np.testing.assert_array_equal(jax.grad(total)(TIMES), TIMES - target)
    check_grads(lambda t: ds.temporal_loss(t, target), (TIMES,), 1, ["rev"], rtol=0.05)


def backward(delta, method):
    x = jnp.ones(delta.shape, jnp.float32)
    out, vjp = jax.vjp(lambda x: ds.normalize_gradient(x, method=method), x)
    np.testing.assert_array_equal(out, x)
    return np.asarray(vjp(jnp.asarray(delta, jnp.float32))[0])


@pytest.mark.parametrize(
    "method, size",
    [
        ("l2", lambda d: np.sqrt((d**2).sum(axis=(1, 2), keepdims=True))),
        ("l1", lambda d: np.abs(d).sum(axis=(1, 2), keepdims=True)),
        ("sum", lambda d: d.sum(axis=(1, 2), keepdims=True)),
        ("none", lambda d: 1.0),
    ],
)
def test_normalize_gradient(method, size, rng):
    delta = rng.normal(size=(4, 3, 5))
    np.testing.assert_allclose(backward(delta, method), delta / size(delta), rtol=1e-4)


@pytest.mark.parametrize("method", ["l2", "l1", "sum"])
def test_normalize_gradient_edge_cases(method):
    """No error stays none; squares that underflow in float32; a sum that vanishes
    leaves the error, and one below zero does not turn it round."""
    zero = np.zeros((2, 3))
    np.testing.assert_array_equal(backward(zero, method), zero)
    tiny = np.array([[3e-30, 4e-30], [1, 1]])
    expected = {"l2": [0.6, 0.8], "l1": [3 / 7, 4 / 7], "sum": [3 / 7, 4 / 7]}
    np.testing.assert_allclose(backward(tiny, method)[0], expected[method], rtol=1e-5)
    if method == "sum":
        delta = np.array([[3.0, -3.0]])
        np.testing.assert_array_equal(backward(delta, "sum"), delta)
        quarters = backward(-np.ones((1, 4)), "sum")
        np.testing.assert_array_equal(quarters, np.full((1, 4), 0.25))


def centred(times, delta, share=1.0):
    _, vjp = jax.vjp(lambda t: ds.centre_errors(t, T, share), times)
    return vjp(jnp.asarray(delta, jnp.float32))[0]


def test_centred_errors_by_hand():
    """Means over the fired: 3 in the first image, 5 in the second; none fired in the
    third, which keeps its errors."""
    times = np.array([[3, 5, T], [7, T, T], [T, T, T]], np.float32)
    delta = [[1, 5, 2], [5, 8, 9], [1, -2, 4]]
    expected = [[-2, 2, 2], [0, 8, 9], [1, -2, 4]]
    np.testing.assert_array_equal(ds.centre_errors(times, T), times)
    np.testing.assert_array_equal(centred(times, delta), expected)
    half = (np.array(delta) + expected) / 2
    np.testing.assert_array_equal(centred(times, delta, 0.5), half)
    np.testing.assert_array_equal(centred(times, delta, 0.0), delta)


def test_centred_errors_of_images(rng):
    """Over all neurons of a layer, image by image, also under vmap and jit."""
    times = rng.integers(0, 2 * T, (6, 4, 5, 3)).clip(max=T).astype(np.float32)
    delta = rng.normal(3, 1, times.shape).astype(np.float32)
    fired, out = times < T, np.asarray(centred(times, delta))
    np.testing.assert_array_equal(out[~fired], delta[~fired])
    sums = np.where(fired, out, 0).sum((1, 2, 3))
    np.testing.assert_allclose(sums, 0, atol=1e-4)
    np.testing.assert_allclose(
        np.std(delta - out, axis=(1, 2, 3), where=fired), 0, atol=1e-6
    )
    pairs = jax.jit(jax.vmap(centred))(
        times.reshape(3, 2, 4, 5, 3), delta.reshape(3, 2, 4, 5, 3)
    )
    np.testing.assert_allclose(pairs.reshape(out.shape), out, atol=1e-6)
