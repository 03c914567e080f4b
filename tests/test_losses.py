"""Output rules by hand, and the normalisation of errors against its equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import ds4nn_jax as ds

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
    """As Eq. 4, but the second image's label leads by 55 and is left alone."""
    np.testing.assert_array_equal(
        ds.margin_target(TIMES, LABELS, offset=10),
        [[10, 60, 60], [5, 60, 98], [100, 90, 100], [80, 80, 30]],
    )


def test_margin_is_earned_exactly():
    times = np.array([[20, 30, 90], [20, 29, 90]], np.float32)
    labels = np.array([0, 0])
    target = ds.margin_target(times, labels, offset=10)
    np.testing.assert_array_equal(target, [[20, 30, 90], [10, 100, 100]])


def test_s4nn_target_by_hand():
    """γ = 15: the first to fire is the label's target, others not before τ + γ."""
    np.testing.assert_array_equal(
        ds.s4nn_target(TIMES, LABELS, offset=15),
        [[20, 35, 50], [5, 60, 98], [100, 85, 100], [55, 55, 40]],
    )


def test_fixed_target_by_hand():
    target = ds.fixed_target(TIMES, LABELS, label_time=5, other_time=90)
    np.testing.assert_array_equal(target[3], [90, 90, 5])


def test_hinge_target_by_hand():
    """λ = 10, ρ = 30: errors of size 1 only where the lead is less than λ."""
    potentials = np.array(
        [[100, 110, 120], [101, 100, 100], [85, 99, 40], [100, 103, 100]], np.float32
    )
    error = TIMES - ds.hinge_target(TIMES, LABELS, potentials, offset=10)
    np.testing.assert_allclose(
        error,
        [
            [1, -1, 0],  # 20 fires before 30 + 10, 50 does not
            [0, 0, 0],  # leads by 55
            [-0.5, 1, 0],  # silent label; 85 is half way from 70 to 100, 40 below
            [-1, -1, 1],
        ],
        atol=1e-6,
    )


def test_softmax_target_by_hand():
    """λ = 5, τ = 10, H = 50: the label 5 steps later, silence extrapolated from V."""
    times = np.array([[20, 35, 100], [100, 100, 90]], np.float32)
    potentials = np.array([[100, 110, 90], [80, 98, 100]], np.float32)
    latency = np.array([[20 + 5, 35, 105], [110, 101 + 5, 90]])
    odds = np.exp(-latency / 10)
    error = [[1, 0, 0], [0, 1, 0]] - odds / odds.sum(axis=1, keepdims=True)
    target = ds.softmax_target(
        times, np.array([0, 1]), potentials, offset=5, temperature=10, horizon=50
    )
    np.testing.assert_allclose(times - target, error, atol=1e-5)
    np.testing.assert_allclose(np.sum(times - target, axis=1), 0, atol=1e-4)


def test_softmax_anchor_by_hand():
    """κ = 2, t* = 40, T = 100, H = 50: 20 early, 61 late (silent with V = 98)."""
    times = np.array([[20, 35, 100], [100, 100, 90], [100, 10, 10]], np.float32)
    potentials = np.array([[100, 110, 90], [80, 98, 100], [-100, 0, 0]], np.float32)
    asked = dict(offset=5, temperature=10, horizon=50)
    labels = np.array([0, 1, 0])
    free = ds.softmax_target(times, labels, potentials, **asked)
    held = ds.softmax_target(
        times, labels, potentials, **asked, anchor=2, label_time=40
    )
    drawn = [[2 * -0.2, 0, 0], [0, 2 * 0.61, 0], [2 * 1, 0, 0]]  # 200 counts as 140
    np.testing.assert_allclose(free - held, drawn, atol=1e-4)


def test_softmax_error_is_the_gradient_of_a_cross_entropy():
    times = np.array([[20.0, 35, 25], [5, 60, 98]], np.float32)
    labels = np.array([1, 0])

    def cross_entropy(times):
        late = times + 5 * jax.nn.one_hot(labels, 3)
        return -jnp.sum(jax.nn.log_softmax(-late / 10)[jnp.arange(2), labels])

    target = ds.softmax_target(times, labels, times, offset=5, temperature=10)
    np.testing.assert_allclose(
        times - target, 10 * jax.grad(cross_entropy)(times), atol=1e-5
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
    zero = np.zeros((2, 3))
    np.testing.assert_array_equal(backward(zero, method), zero)
    tiny = np.array([[3e-30, 4e-30], [1, 1]])  # squares underflow in float32
    expected = {"l2": [0.6, 0.8], "l1": [3 / 7, 4 / 7], "sum": [3 / 7, 4 / 7]}
    np.testing.assert_allclose(backward(tiny, method)[0], expected[method], rtol=1e-5)


def test_sum_that_vanishes_leaves_the_error():
    delta = np.array([[3.0, -3.0]])
    np.testing.assert_array_equal(backward(delta, "sum"), delta)
    np.testing.assert_array_equal(
        backward(-np.ones((1, 4)), "sum"), np.full((1, 4), 0.25)
    )


RULES = {
    "relative": lambda t, y, **k: ds.relative_target(t, y, offset=1, **k),
    "margin": lambda t, y, **k: ds.margin_target(t, y, offset=1, **k),
    "s4nn": lambda t, y, **k: ds.s4nn_target(t, y, offset=1, **k),
    "fixed": lambda t, y, **k: ds.fixed_target(t, y, label_time=0, other_time=1, **k),
    "hinge": lambda t, y, **k: ds.hinge_target(t, y, jnp.zeros_like(t), offset=1, **k),
    "softmax": lambda t, y, **k: ds.softmax_target(
        t, y, jnp.zeros_like(t), offset=1, temperature=1, **k
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "labels, error, message",
    [
        (np.array([0, 1, 2, 3]), ValueError, "labels must lie in 0 … 2, got 0 … 3"),
        (np.array([0, -1, 2, 1]), ValueError, "labels must lie in 0 … 2, got -1"),
        (np.array([0, 1]), ValueError, r"labels must have shape \[B\] = \(4,\)"),
        (np.zeros((4, 3), int), ValueError, "labels must have shape"),
        (np.zeros(4, np.float32), TypeError, "labels must be integers"),
    ],
)
def test_rules_refuse_labels(rule, labels, error, message):
    with pytest.raises(error, match=message):
        RULES[rule](jnp.asarray(TIMES), labels)


@pytest.mark.parametrize("rule", RULES)
def test_rules_refuse_times(rule):
    with pytest.raises(ValueError, match=r"2 axes \[B, C\]"):
        RULES[rule](jnp.zeros(3), np.zeros(3, int))
    with pytest.raises(TypeError, match="floating"):
        RULES[rule](jnp.zeros((4, 3), int), LABELS)
    with pytest.raises(ValueError, match="num_steps"):
        RULES[rule](jnp.asarray(TIMES), LABELS, num_steps=0)


def test_other_refusals():
    for rule in (ds.relative_target, ds.margin_target, ds.s4nn_target):
        with pytest.raises(ValueError, match="offset must be ≥ 0"):
            rule(TIMES, LABELS, offset=-1)
    with pytest.raises(ValueError, match="other_time must lie in 0 … 100, got 101"):
        ds.fixed_target(TIMES, LABELS, label_time=0, other_time=101)
    with pytest.raises(ValueError, match="reach must be > 0"):
        ds.hinge_target(TIMES, LABELS, TIMES, offset=1, reach=0)
    with pytest.raises(ValueError, match="potentials must have the shape"):
        ds.hinge_target(TIMES, LABELS, TIMES[:, :2], offset=1)
    with pytest.raises(ValueError, match="potentials must have the shape"):
        ds.softmax_target(TIMES, LABELS, TIMES[:, :2], offset=1, temperature=1)
    for name in ("temperature", "horizon"):
        settings = dict(offset=1, temperature=1) | {name: 0}
        with pytest.raises(ValueError, match=f"{name} must be > 0"):
            ds.softmax_target(TIMES, LABELS, TIMES, **settings)
    for name, value, message in (
        ("anchor", -1, "anchor must be ≥ 0"),
        ("label_time", 101, "label_time must lie in 0 … 100, got 101"),
    ):
        settings = dict(offset=1, temperature=1) | {name: value}
        with pytest.raises(ValueError, match=message):
            ds.softmax_target(TIMES, LABELS, TIMES, **settings)
    with pytest.raises(ValueError, match="method must be"):
        ds.normalize_gradient(TIMES, method="max")
    with pytest.raises(ValueError, match="differ in shape"):
        ds.temporal_loss(TIMES, TIMES[:2])
