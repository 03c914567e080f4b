"""The event engine for NVIDIA GPUs: the kernels of `cuda.cu`, compiled at first use.

`nvcc` compiles them once for a GPU; later processes load what it made. Where it is
missing or fails there is no such engine: one warning says what to do, and the scan
takes over. Both mean the same; float32 alone.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from ds4nn_jax._engines import library, scan
from ds4nn_jax._engines.shapes import Shape, geometry, needed, response
from ds4nn_jax._engines.synapse import NO_POOL, Dense, Response, Synapse

SOURCE = Path(__file__).with_name("cuda.cu")
PASSES = "forward", "weights", "times"  # as `ds4nn_scratch` counts them
_LOCK = threading.RLock()


def forward(
    synapse: Synapse,
    times: jax.Array,
    kernel: jax.Array,
    pulses: jax.Array,
    threshold: jax.Array,
    *,
    num_steps: int,
    peaks: bool,
    pool: tuple[int, int] = NO_POOL,
    counts: bool = False,
) -> Response:
    """As `scan.forward`, which takes over where a layer is too large for a kernel."""
    settings: Any = dict(num_steps=num_steps, peaks=peaks, pool=pool, counts=counts)
    shapes = response(synapse, times, kernel, **settings)
    plan = _plan(
        synapse,
        (times, kernel, pulses, shapes.times),
        pool,
        steps=num_steps,
        flag=peaks,
        counts=0 if shapes.counts is None else shapes.counts.shape[1],
    )
    if _scratch("forward", plan) is None:
        return scan.forward(synapse, times, kernel, pulses, threshold, **settings)
    rows = kernel.reshape(-1, kernel.shape[-1])
    rows = jnp.concatenate([rows, pulses, threshold[None]])
    # The kernel always has five results; those that nobody needs are one number.
    unneeded = [Shape((1,), times.dtype)] * 4 + [Shape((1,), jnp.int32)]
    pairs = zip(shapes, unneeded, strict=True)
    results = [small if shape is None else shape for shape, small in pairs]
    arrays = _call("forward", results, plan, _padded(synapse, times, num_steps), rows)
    return needed(shapes, arrays)


def backward(
    synapse: Synapse,
    times: jax.Array,
    kernel: jax.Array,
    pulses: jax.Array,
    end: jax.Array,
    delta: jax.Array,
    argmin: jax.Array | None = None,
    *,
    num_steps: int,
    silent_inputs: bool,
    pool: tuple[int, int] = NO_POOL,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `scan.backward`, which takes over where a layer is too large for a kernel.

    Two calls, so that XLA drops that of a first layer, whose times are data.
    """
    shaping = times, kernel, pulses, delta
    plan = _plan(synapse, shaping, pool, steps=num_steps, flag=silent_inputs)
    words_weights, words_times = _scratch("weights", plan), _scratch("times", plan)
    if words_weights is None or words_times is None:
        arrays = times, kernel, pulses, end, delta, argmin
        settings: Any = dict(
            num_steps=num_steps, silent_inputs=silent_inputs, pool=pool
        )
        return scan.backward(synapse, *arrays, **settings)
    errors = end, delta, end if argmin is None else argmin
    rows = kernel.reshape(-1, kernel.shape[-1])
    pulsed = (max(1, len(pulses)), rows.shape[1])  # there is no empty result
    d_kernel, d_pulses, _ = _call(
        "weights",
        [
            Shape(kernel.shape, times.dtype),
            Shape(pulsed, times.dtype),
            Shape((max(1, words_weights),), jnp.int32),
        ],
        plan,
        _padded(synapse, times, num_steps),
        *errors,
    )
    results = [Shape(times.shape, times.dtype), Shape((words_times,), jnp.int32)]
    d_times, _ = _call("times", results, plan, times, rows.T, *errors)
    return d_times, d_kernel, d_pulses[: len(pulses)]


def _plan(
    synapse: Synapse, arrays: tuple, pool, *, steps, flag, counts=0
) -> np.ndarray:
    """The words of a `Plan` of `cuda.cu`, in its order; `arrays` are times, kernel,
    pulses, and one of the shape that leaves the layer."""
    times, kernel, pulses, out = arrays
    layout = geometry(synapse, times, kernel, out.shape, pool)
    height, width = layout["height"], layout["width"]
    if not isinstance(synapse, Dense):
        height, width = height + sum(synapse.pads[0]), width + sum(synapse.pads[1])
    others = height, width, len(pulses), steps, flag, counts
    return np.array([*layout.values(), *others], np.int64)


def _padded(synapse: Synapse, times: jax.Array, num_steps: int) -> jax.Array:
    """With silent inputs around the images, so that no window reaches beyond them."""
    if isinstance(synapse, Dense) or not any(map(sum, synapse.pads)):
        return times
    return jnp.pad(times, ((0, 0), *synapse.pads, (0, 0)), constant_values=num_steps)


def _call(name: str, results, plan, *arrays: jax.Array) -> list[jax.Array]:
    call = jax.ffi.ffi_call(f"ds4nn_jax.cuda.{name}", results, vmap_method="sequential")
    return call(*arrays, plan=plan)


def _scratch(name: str, plan: np.ndarray) -> int | None:
    """The int32 words of memory that a pass needs; None if it is too large."""
    words = (ctypes.c_int64 * len(plan))(*plan)
    needed_words = _loaded().ds4nn_scratch(PASSES.index(name), words)
    return None if needed_words < 0 else needed_words


def usable(dtype: str) -> bool:
    """Whether the kernels can be had for a floating dtype; a warning says why not."""
    if dtype != "float32":
        return False
    with _LOCK:
        loaded = _loaded()
    if isinstance(loaded, library.Unusable):
        library.warn(f"ds4nn_jax computes without its CUDA kernels, slower: {loaded}")
        return False
    return loaded is not None


@functools.cache
def _loaded() -> Any:
    """The library, registered; None without a GPU, or what keeps it from working."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:
        return None  # lowered for another machine
    capabilities = {str(getattr(x, "compute_capability", "")) for x in devices}
    numbers = sorted(c.replace(".", "") for c in capabilities if c)
    options = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in numbers]
    try:
        path = built(options or ["-arch=native"])
        loaded = load(path, "CUDA")
    except library.Unusable as error:
        return error
    except OSError as error:
        return library.Unusable(f"they cannot be loaded ({error})")
    if fault := loaded.ds4nn_fault():
        return library.Unusable(
            f"they do not run on this GPU ({fault.decode()}): is its driver older than "
            "the CUDA of nvcc?"
        )
    return loaded


def load(path: Path, platform: str) -> ctypes.CDLL:
    """Loads compiled kernels and makes them known to XLA, for good."""
    loaded = ctypes.CDLL(str(path))
    loaded.ds4nn_scratch.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int64)]
    loaded.ds4nn_scratch.restype = ctypes.c_int64
    loaded.ds4nn_fault.restype = ctypes.c_char_p
    for name in PASSES:
        handler = jax.ffi.pycapsule(getattr(loaded, f"ds4nn_{name}"))
        jax.ffi.register_ffi_target(f"ds4nn_jax.cuda.{name}", handler, platform)
    return loaded


def built(options: list[str]) -> Path:
    """The compiled kernels, from disk or new; `options` are nvcc's for a GPU.

    Raises:
      Unusable: they cannot be compiled; the message says why.
    """
    compiler = _compiler()
    quiet = "-diag-suppress=940,2473"  # what XLA's headers are warned of
    command = [compiler, *options, "-O3", "-std=c++17", "-shared", "-Xcompiler=-fPIC"]
    command += [quiet, f"-I{jax.ffi.include_dir()}", str(SOURCE)]
    version = _run([compiler, "--version"])
    key = repr((command[1:-2], version, jaxlib.__version__)).encode()
    digest = hashlib.sha256(key + SOURCE.read_bytes()).hexdigest()[:24]
    name = f"cuda-{digest}.so"

    def compile_to(path: Path) -> None:
        _run([*command, "-o", str(path)])

    path = next(library.kept(name), None) or library.keep(name, compile_to)
    if path is None:
        path = Path(tempfile.mkdtemp(prefix="ds4nn_jax-")) / name
        compile_to(path)
    return path


def _compiler() -> str:
    places = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", "")]
    folders = [os.path.join(place, "bin") for place in (*places, "/usr/local/cuda")]
    for folder in (None, *folders):
        if compiler := shutil.which("nvcc", path=folder):
            return compiler
    raise library.Unusable(
        "nvcc is not found (install the CUDA toolkit of JAX's CUDA version, or set "
        "CUDA_HOME to its folder)"
    )


def _run(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise library.Unusable(
            library._explained("nvcc does not run", error)
        ) from error
    if result.returncode:
        message = " ".join((result.stderr or result.stdout).split())
        raise library.Unusable(
            f"nvcc cannot compile them (it needs a C++ compiler that it knows): "
            f"{message[-300:]}"
        )
    return result.stdout
