"""Networks of integers: the same spikes on every engine, in NumPy and in C."""

import functools
import json
import struct
import subprocess
import sys

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from precision import float64

import ds4nn_jax as ds
from ds4nn_jax._engines import scan
from ds4nn_jax._engines.synapse import Conv, Dense, current_on_matrix_units
from ds4nn_jax.cli import commands, measures
from ds4nn_jax.networks import export, pretrained, quantization

T = 24


def network_of(spec, shape, rng, **attributes):
    """One with normal weights, of which about half of the neurons fire."""
    network = ds.SpikingNetwork.from_spec(spec, num_steps=T, **attributes)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))

    def weights(w):
        scale = network.threshold / np.sqrt(np.prod(w.shape[:-1]))
        return rng.normal(0.3, 1.0, w.shape).astype(np.float32) * scale

    return network, jax.tree.map(weights, shapes)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_rounding_by_hand(bits, rng):
    """q and θ_c of a channel, and pulses whose sums are nearest."""
    kernel = rng.normal(0, 20, (30, 3)).astype(np.float32)
    kernel[:, 1] /= 10
    pulses = rng.normal(0, 5, (7, 3)).astype(np.float32)
    network = ds.SpikingNetwork.from_spec("30-3-2", pulses=(7, 0))
    output = np.ones((3, 2), np.float32)
    layers = {"dense1": {"kernel": kernel, "pulses": pulses}}
    layers["dense2"] = {"kernel": output}
    whole, params = ds.quantize(network, {"params": layers}, bits=bits)
    hidden = params["params"]["dense1"]
    assert [x.dtype for x in hidden.values()] == [np.int8, np.int32, np.int32]
    size, most = np.abs(kernel), max(1, 2 ** (bits - 1) - 1)
    scale = size.max(axis=0) / most
    if bits == 1:
        scale = size.mean(axis=0)
    if bits == 2:
        large = size >= 0.7 * size.mean(axis=0)
        scale = (size * large).sum(axis=0) / large.sum(axis=0)
    theta = np.round(100 / scale + 0.5)
    np.testing.assert_array_equal(hidden["threshold"], theta)
    scale = 100 / (theta - 0.5)
    expected = np.clip(np.round(kernel / scale), -most, most)
    if bits == 1:
        expected = np.sign(kernel)
    np.testing.assert_array_equal(hidden["kernel"], expected)
    sums = np.cumsum(pulses, axis=0) / scale
    assert np.abs(np.cumsum(hidden["pulses"], axis=0) - sums).max() < 0.501
    assert whole.threshold == params["params"]["dense2"]["threshold"][0]


@pytest.mark.parametrize("bits", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_equal_everywhere(bits, rng):
    """Engines, precisions and NumPy, with pulses and an urgency; and what training
    sees, in mV; and what is read back from a file."""
    shape = (7, 6, 2)
    options = dict(pulses=(5,), urgency=3.0)
    network, params = network_of("5C3-P2-6C3s2-4", shape, rng, **options)
    times = rng.integers(0, T + 1, (20, *shape)).astype(np.float32)
    times[0] = T
    whole, weights = ds.quantize(network, params, bits=bits)
    expected = oracle(whole, weights, times)
    assert 0 < (expected[0] < T).mean() < 1 and (expected[-1] < T).any()

    def same(network, params, times):
        trace = jax.jit(functools.partial(network.apply, method="trace"))(params, times)
        for found, layer in zip(trace.times[1:], expected, strict=True):
            np.testing.assert_array_equal(found, layer)
        decided, full = ds.infer(network, params, times), ds.decide(trace)
        for name in ("label", "step", "spikes"):
            found, wanted = getattr(decided, name), getattr(full, name)
            np.testing.assert_array_equal(found, wanted)

    same(whole, weights, times)
    if bits == 3:
        same(whole.clone(engine="scan"), weights, times)
        with float64():
            same(whole, weights, times.astype(np.float64))
        same(*quantization.rounded(network, params, bits), times)


def oracle(network, params, times):
    """Spike times of all layers, by loops over time."""
    layers = zip(
        network.weighted,
        network.reference_weights(params),
        network.thresholds(params),
        strict=True,
    )
    weights = {name: rest for name, *rest in layers}
    found = []
    for name, spec in zip(network.names, network.layers, strict=True):
        if isinstance(spec, ds.PoolSpec):
            window = (spec.size, spec.size)
            times, _ = reference.pool(times, window, window)
        else:
            kernel, others = params["params"][name]["kernel"], {}
            pulses, theta = map(np.asarray, weights[name])
            if isinstance(spec, ds.ConvSpec):
                shapes = times.shape[1:3], kernel.shape[:2], spec.strides
                pads = jax.lax.padtype_to_pads(*shapes, "SAME")
                others = dict(strides=spec.strides, pads=pads)
                respond = reference.conv
            else:
                times, respond = times.reshape(len(times), -1), reference.dense
            times = respond(times, kernel, theta, T, pulses=pulses, **others).times
        found.append(times)
    return found


def test_an_urgency_in_millivolts(rng):
    """Integers have another unit; commands and reports speak of mV."""
    network, params = network_of("12-9-4", (12,), rng, urgency=2.5)
    whole, weights = ds.quantize(network, params, bits=8)
    assert measures.urgency(network, params) == 2.5
    assert measures.urgency(whole, weights) == 2.5
    assert measures.urged(whole, weights, None) is whole
    again, _ = ds.quantize(network.clone(urgency=7.0), params, bits=8)
    urged = measures.urged(whole, weights, 7.0).urgency
    np.testing.assert_allclose(urged, again.urgency, rtol=1e-12)
    assert urged != 7 == measures.urged(network, params, 7.0).urgency
    images = rng.integers(0, 256, (50, 12)).astype(np.uint8)
    labels = rng.integers(0, 4, 50)
    measured = measures.measure(whole, weights, images, labels, urgencies=[7.0])
    expected = ds.evaluate(again, weights, images, labels)
    assert measured.urgencies[7.0].summary() == expected.summary()


def test_training_sees_whole_numbers_and_goes_on_from_them(tmp_path):
    """Gradients pass; what is kept is whole, evaluated as such, saved in few bits,
    read back as it was, and trained on."""
    digits = ds.data.load("digits")
    images = digits.train_images, digits.train_labels
    config = ds.TrainConfig(spec="64-20-10", bits=3, epochs=2, urgency=0.3, pulses=(4,))
    first, last = ds.train(config, *images)
    kernels = [r.params["params"]["dense1"]["kernel"] for r in (first, last)]
    assert kernels[0].dtype == np.int8 and np.abs(kernels[0]).max() == 3
    assert (kernels[0] != kernels[1]).any()
    assert last.validation.accuracy > 0.6
    path = tmp_path / "w.safetensors"
    ds.save_weights(path, last.network, last.params)
    weights = 64 * 20 + 20 * 10
    assert path.stat().st_size < 3 * weights / 8 + 4 * (30 + 4 * 30) + 1500
    again = ds.load_weights(path)
    assert (again.network.urgency, again.network.threshold) == (
        last.network.urgency,
        last.network.threshold,
    )
    same = jax.tree.map(np.array_equal, again.params, last.params)
    assert jax.tree.all(same)
    start = ds.initial_checkpoint(config, *images, params=again.params)
    _, back = ds.quantize(config.network(), start.state.params, bits=3)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, last.params))


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_files_take_the_bits_they_need(bits, tmp_path, rng):
    most = max(1, 2 ** (bits - 1) - 1)
    kernel = rng.integers(-most, most + 1, (101, 7)).astype(np.int8)
    kernel[0] = most
    if bits == 1:
        kernel[kernel == 0] = -1
    arrays = {"kernel": kernel, "threshold": np.arange(1, 8, dtype=np.int32)}
    network, params = ds.SpikingNetwork.from_spec("101-7"), {"dense1": arrays}
    path = tmp_path / "w.safetensors"
    ds.save_weights(path, network, {"params": params})
    assert path.stat().st_size < kernel.size * bits / 8 + 1000
    found = ds.load_weights(path).params["params"]["dense1"]
    assert {k: v.dtype for k, v in found.items()} == {
        k: v.dtype for k, v in arrays.items()
    }
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_sums_that_float32_cannot_hold_are_refused():
    network = ds.SpikingNetwork.from_spec("4-2", pulses=(1,))
    kernel = np.full((4, 2), 127, np.int8)
    for pulse, most in ((-(2**24) + 1, 2**24 - 1), (2**24 - 508, 2**24)):
        pulses = np.array([[0, pulse]], np.int32)
        params = {"params": {"dense1": {"kernel": kernel, "pulses": pulses}}}
        assert quantization.largest_sums(network, params) == {"dense1": most}
    quantization.check_exact(
        network.clone(pulses=(1,)),
        params | {"params": {"dense1": {"kernel": kernel, "pulses": pulses - 1}}},
    )
    with pytest.raises(ValueError, match="dense1: sums .* reach 16777216"):
        quantization.check_exact(network, params)
    with pytest.raises(ValueError, match="reach 16777216"):
        export.to_c(network, params, np.zeros((1, 4), np.uint8))


def test_one_bfloat16_product_on_accelerators(rng):
    """Instead of three slices; its sums are exact."""
    spikes = (rng.random((3, 40)) < 0.5).astype(np.float32)
    kernel = rng.integers(-127, 128, (40, 9)).astype(np.float32)
    run = functools.partial(current_on_matrix_units, Dense(whole=True))
    np.testing.assert_array_equal(jax.jit(run)(spikes, kernel), spikes @ kernel)
    times, pulses = jnp.zeros((2, 8, 8, 3)), jnp.zeros((0, 5))
    operands = times, jnp.ones((3, 3, 3, 5)), pulses, jnp.ones(5)
    for whole, outputs in ((True, 5), (False, 15)):
        synapse = Conv((1, 1), ((1, 1), (1, 1)), whole)
        forward = functools.partial(scan.forward, synapse, num_steps=10, peaks=False)
        lowered = jax.jit(forward).trace(*operands).lower(lowering_platforms=("cuda",))
        (product,) = (x for x in lowered.as_text().splitlines() if "convolution(" in x)
        assert f"3x3x3x{outputs}xbf16" in product and f"x{outputs}xf32" in product


# ---- C ----

READER = """
#include <stdio.h>
#include "network.h"
int main(void) {
  static uint8_t pixels[PIXELS];
  ds4nn_result found;
  while (fread(pixels, 1, PIXELS, stdin) == PIXELS) {
    ds4nn_classify(pixels, &found);
    printf("%ld %ld %lu\\n", (long)found.label, (long)found.step,
           (unsigned long)found.spikes);
  }
  return 0;
}
"""
STRICT = "-std=c99 -Wall -Wextra -Werror -pedantic".split()


@pytest.fixture(scope="session")
def compiler():
    command = conftest.compiler("c")
    if "ziglang" in command:  # which has no address sanitizer
        return [*command, "-fsanitize=undefined", *STRICT]
    return [*command, "-O1", "-fsanitize=address,undefined", *STRICT]


def compiled(compiler, folder, images):
    """Label, step and spikes of all images: [n, 3]."""
    (folder / "reader.c").write_text(READER)
    run = functools.partial(subprocess.run, cwd=folder, check=True)
    pixels = f"-DPIXELS={images[0].size}"
    run([*compiler, pixels, "reader.c", "network.c", "-o", "reader"])
    told = run(["./reader"], input=images.tobytes(), capture_output=True).stdout
    return np.array([line.split() for line in told.decode().splitlines()], int)


def whole_numbers(name, folder):
    """A shipped network in integers, the arguments that export it, and a file of
    one in real numbers."""
    network, params, notes = pretrained.load(name)
    if quantization.is_whole(params):
        arguments, whole = [], (network, params)
        real, params = quantization.in_millivolts(network, params)
    else:
        real, arguments = network, ["--bits=8"]
        whole = ds.quantize(network, params, bits=8)
    ds.save_weights(folder / "real.safetensors", real, params, notes=notes)
    return *whole, [name, *arguments]


def decisions(network, params, images):
    found = ds.classify(network, params, images)
    return np.stack([found.label, found.step, found.spikes[:, 1:].sum(axis=1)], axis=1)


@pytest.mark.parametrize(
    "bits, spec, shape, attributes",
    [
        (1, "12-9-4", (12,), dict(pulses=(3, 0), urgency=6.0)),
        (5, "5C3-P2-6C3-4", (7, 9, 2), dict(pulses=(5,))),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (8, "5C3s2-P2-6C3s2-4", (12, 9, 2), dict(urgency=9.0)),
                (2, "P2-3C1-P2-P1-4", (9, 8, 2), dict(padding="VALID")),
                (4, "3C3-4C3-18-4", (5, 5, 1), dict(padding=((2, 0), (1, 1)))),
            )
        ),
    ],
)
def test_c_decides_the_same(bits, spec, shape, attributes, tmp_path, compiler, rng):
    """Step by step, and layer after layer."""
    network, params = network_of(spec, shape, rng, **attributes)
    images = rng.integers(0, 256, (60, *shape)).astype(np.uint8)
    images[0] = 0
    whole, weights = ds.quantize(network, params, bits=bits)
    expected = decisions(whole, weights, images)
    assert len(np.unique(expected[:, 1])) > 2
    for stop in (True, False):
        for name, text in export.to_c(whole, weights, images[:3], stop=stop).items():
            (tmp_path / name).write_text(text)
        np.testing.assert_array_equal(compiled(compiler, tmp_path, images), expected)


@pytest.mark.slow
def test_a_shipped_network_from_the_command(images, tmp_path, compiler, capsys):
    """`ds4nn export`, to C, arrays and NIR: real images, and what the sources say of
    the memory that they take."""
    pixels = images[0]
    if pixels.shape[1:] != (28, 28, 1):  # the digits, three times as large
        larger = pixels.repeat(3, axis=1).repeat(3, axis=2)
        pixels = np.pad(larger, ((0, 0), (2, 2), (2, 2), (0, 0)))
    np.save(tmp_path / "images.npy", pixels[:10])
    whole, weights, named = whole_numbers("mnist", tmp_path)
    made = ["export", *named, f"--images={tmp_path / 'images.npy'}"]
    folder = tmp_path / "c"
    commands.main([*made, "--stop=never", f"--out_dir={folder}"])
    assert "network.c" in capsys.readouterr().out
    command = [*compiler, "main.c", "network.c", "-o", "own"]
    subprocess.run(command, cwd=folder, check=True)
    own = subprocess.run(["./own"], cwd=folder, capture_output=True, text=True)
    assert own.returncode == 0 and "0 of 10 differ" in own.stdout
    found = compiled(compiler, folder, pixels)
    np.testing.assert_array_equal(found, decisions(whole, weights, pixels))
    about = (folder / "network.c").read_text()[:400]
    flash, ram = (int(about.split(f"{x}: ")[1].split()[0]) for x in ("Flash", "RAM"))
    assert 137_024 * 5 / 8 < flash < 90_000 and ram < 21_000  # 5 bits a weight

    commands.main([*made, "--format=npz", f"--out_dir={tmp_path / 'npz'}"])
    structure = json.loads((tmp_path / "npz/network.json").read_text())
    assert structure["layers"] == ["conv1", "conv2", "dense3"]
    with np.load(tmp_path / "npz/weights.npz") as arrays:
        kernel = arrays["conv2/kernel"]
    np.testing.assert_array_equal(kernel, weights["params"]["conv2"]["kernel"])
    with pytest.raises(SystemExit, match="npz is there already"):
        commands.main([*made, f"--out_dir={tmp_path / 'npz'}"])
    with pytest.raises(SystemExit, match="real numbers: ds.quantize"):
        real = str(tmp_path / "real.safetensors")
        commands.main(["export", real, f"--out_dir={tmp_path / 'new'}"])
    assert not (tmp_path / "new").exists()


PROCESSORS = {
    "Cortex-M4": ("thumb-freestanding-eabi", "-mcpu=cortex_m4"),
    "RISC-V": ("riscv32-freestanding", "-mcpu=generic_rv32+m+c"),
}


def sizes(path):
    """Bytes of flash and of static RAM, from an ELF file's 32-bit section headers."""
    elf = path.read_bytes()
    assert elf[:5] == b"\x7fELF\x01"
    (start,), (size, count) = (
        struct.unpack_from("<I", elf, 32),
        struct.unpack_from("<2H", elf, 46),
    )
    flash = ram = 0
    for k in range(count):
        _, kind, flags, _, _, length = struct.unpack_from("<6I", elf, start + k * size)
        if flags & 2:  # is in memory
            ram += length if flags & 1 else 0  # may be written
            flash += length if kind != 8 else 0  # is not all zeros
    return flash, ram


@pytest.mark.parametrize("processor", PROCESSORS)
def test_fits_a_microcontroller(processor, tmp_path, rng):
    """Without an operating system or a library; bytes of flash and RAM."""
    pytest.importorskip("ziglang", reason="needs pip install ziglang")
    dense = ds.quantize(*network_of("784-400-10", (784,), rng), bits=8)
    conv = whole_numbers("mnist", tmp_path)[:2]
    shape, most = (28, 28, 1), (140_000, 24_000)
    rows = (*dense, (784,), True, 330_000, 4_000), (*conv, shape, False, *most)
    target, cpu = PROCESSORS[processor]
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, cpu]
    command += ["-Os", "-ffreestanding", *STRICT, "-c", "network.c"]
    for *whole, shape, stop, most_flash, most_ram in rows:
        images = np.zeros((1, *shape), np.uint8)
        for name, text in export.to_c(*whole, images, stop=stop).items():
            (tmp_path / name).write_text(text)
        subprocess.run(command, cwd=tmp_path, check=True)
        flash, ram = sizes(tmp_path / "network.o")
        print(f"{whole[0].spec}, {processor}: {flash} bytes of flash, {ram} of RAM")
        told = (tmp_path / "network.c").read_text()[:400]
        assert int(told.split("Flash: ")[1].split()[0]) < flash <= most_flash
        assert int(told.split("RAM: ")[1].split()[0]) <= ram <= most_ram
