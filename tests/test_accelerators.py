"""What other platforms would compute, as far as a CPU can show it.

Nothing here runs on an accelerator: programs are lowered for CUDA and TPU, and the
arithmetic of matrix units (bfloat16 products, float32 sums) is computed on the CPU.
"""

import functools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from precision import float64
from test_event import LAYERS, assert_equal, dyadic, layers, spikes

import ds4nn_jax as ds
from ds4nn_jax import _checks
from ds4nn_jax._engines import scan
from ds4nn_jax._engines.synapse import Dense, current_on_matrix_units
from ds4nn_jax.networks import evaluation
from ds4nn_jax.training import step

CONFIG = ds.TrainConfig(
    spec="4C3-P2-10",
    initial_weights="uniform",
    optimizer=ds.optimizers.Muon(norms=ds.optimizers.HeldNorms()),
    augmentation=ds.augmentation.Augmentation(shift=1),
    batch_size=4,
    num_steps=20,
)


def program(name):
    """A training step, a decision that stops, or one of `evaluate`'s, with inputs."""
    network, optimizer = CONFIG.network(), ds.make_optimizer(CONFIG, 10)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    init = jax.jit(functools.partial(step.init, CONFIG, optimizer))
    state = init(jax.random.key(0), images)
    if name == "training step":
        run = functools.partial(ds.train_step, CONFIG, optimizer)
        return jax.jit(run), state, images, np.zeros(4, np.int32)
    if name == "infer":
        run, images = functools.partial(ds.infer, network), network.encode(images)
    else:
        run = functools.partial(evaluation._decide, network)
    return jax.jit(run), state.params, images


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["training step", "infer", "evaluate"])
def test_lowers_for(name, platform):
    function, *arrays = program(name)
    exported = export.export(function, platforms=[platform])(*arrays)
    text = exported.mlir_module()
    assert "stablehlo.while" in text and "custom_call @ds4nn" not in text
    products = re.findall(r"stablehlo\.(?:convolution|dot_general).*", text)
    on_spikes = [line for line in products if "bf16" in line]
    assert on_spikes and all(re.search(r"-> tensor<[\dx]+xf32>", x) for x in on_spikes)
    # What is left in float32 asks for all of its bits: never TF32. Muon's own products,
    # the only ones of stacks of matrices, decide no spike.
    for line in set(products) - set(on_spikes):
        assert "HIGHEST" in line or "batching_dims" in line, line


@pytest.mark.parametrize(
    "name",
    [pytest.param("training step", marks=pytest.mark.slow), "infer", "evaluate"],
)
def test_exports_on_the_cpu_and_computes_the_same(name):
    function, *arrays = program(name)
    specs = arrays = tuple(arrays)
    if name != "training step":  # for a batch of any size
        specs = export.symbolic_args_specs(arrays, (None, "b, ..."))
    exported = export.export(function)(*specs)
    found, expected = exported.call(*arrays), function(*arrays)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_event_engine_by_name_is_refused_elsewhere():
    layer = jax.jit(lambda t, k: ds.dense(t, k, engine="event"))
    arrays = jnp.zeros((2, 3)), jnp.ones((3, 2))
    with pytest.raises(NotImplementedError, match='on CPUs, not on cuda: use "auto"'):
        export.export(layer, platforms=["cuda"])(*arrays)


@layers
def test_currents_on_matrix_units_are_float32_s(layer):
    synapse, t_shape, k_shape = layer
    rng = np.random.default_rng(1)
    arriving = (rng.random(t_shape) < 0.4).astype(np.float32)
    kernel = rng.normal(0.4, 30, k_shape).astype(np.float32)
    found = jax.jit(functools.partial(current_on_matrix_units, synapse))(
        arriving, kernel
    )
    assert found.dtype == jnp.float32
    with float64():
        exact = np.asarray(synapse.current(jnp.float64(arriving), jnp.float64(kernel)))
        size = synapse.current(jnp.float64(arriving), jnp.abs(jnp.float64(kernel)))
    terms = math.prod(k_shape[:-1])
    bound = (terms + 3) * np.finfo(np.float32).eps * np.asarray(size)
    assert (np.abs(np.asarray(found, np.float64) - exact) <= bound).all()
    # One bfloat16 product alone would be far off.
    alone = synapse.current(jnp.bfloat16(arriving), jnp.bfloat16(kernel))
    if terms > 8:
        assert (np.abs(np.asarray(alone, np.float64) - exact) > bound).any()


@pytest.mark.parametrize(
    "name, turns",  # of any number of steps
    [
        ("dense", [5]),
        ("conv 3x3 same", [1, 5, 12, 20]),
        ("conv 5x5 stride (2, 1)", [5]),
        ("conv pads wider than window", [5]),
        ("one pixel", [5]),
    ],
)
def test_spike_times_on_matrix_units_are_equal_on_dyadic_weights(name, turns):
    synapse, t_shape, k_shape = LAYERS[name]
    rng = np.random.default_rng(2)
    arrays = spikes(rng, t_shape, 12), dyadic(rng, k_shape)
    arrays += dyadic(rng, (5, k_shape[-1])), np.full(k_shape[-1], 3, np.float32)
    options = dict(num_steps=12, peaks=True, counts=True)
    expected = jax.jit(functools.partial(scan.forward, synapse, **options))(*arrays)
    for turn in turns:
        units = functools.partial(current_on_matrix_units, synapse)
        run = functools.partial(scan._forward, units, turn, **options)
        assert_equal(jax.tree.leaves(jax.jit(run)(*arrays)), jax.tree.leaves(expected))


@pytest.mark.parametrize("turn, silent_inputs", [(7, True), (1000, False)])
@pytest.mark.parametrize("name", ["dense", "conv 3x3 same", "conv 5x5 stride (2, 1)"])
def test_the_backward_pass_in_turns_of_any_size(name, turn, silent_inputs):
    rng = np.random.default_rng(3)
    synapse, t_shape, k_shape = LAYERS[name]
    times, kernel = spikes(rng, t_shape, 12), dyadic(rng, k_shape)
    shape = jax.eval_shape(synapse.current, times, kernel).shape
    end = rng.integers(0, 12, shape).astype(np.float32)
    arrays = times, kernel, dyadic(rng, (5, k_shape[-1])), end, dyadic(rng, shape)
    options = dict(num_steps=12, silent_inputs=silent_inputs)
    expected, found = (
        jax.jit(functools.partial(run, **options))(*arrays)
        for run in (
            functools.partial(scan.backward, synapse),
            functools.partial(scan._backward, synapse, turn),
        )
    )
    assert_equal(found, expected)


def test_float64_kernels_stay_float64():
    with float64():
        kernel = jnp.asarray([[1.0 + 2.0**-40]], jnp.float64)
        found = current_on_matrix_units(Dense(), jnp.ones((1, 1)), kernel)
    assert found.dtype == np.float64 and float(found[0, 0]) == 1.0 + 2.0**-40


def test_values_on_an_accelerator_are_not_fetched_to_be_checked(monkeypatch):
    late = np.full((1, 2), 101, np.float32)
    array = jnp.asarray(late)
    gpu = [types.SimpleNamespace(platform="gpu")]
    monkeypatch.setattr(type(array), "devices", lambda self: gpu)
    assert _checks.spike_times(array, 100) is array
    for values in (late, late.astype(np.float64)):  # NumPy's are still here
        with pytest.raises(ValueError, match="whole steps"):
            _checks.spike_times(values, 100)
    with pytest.raises(ValueError, match="urgency"):  # a number is worth the wait
        _checks.urgency(jnp.float32(-1))
