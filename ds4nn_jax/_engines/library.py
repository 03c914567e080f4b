"""The compiled kernels: found or compiled, kept on disk, made known to XLA.

numba compiles a kernel once for a machine; later processes read its machine code. Where
that cannot be kept it is compiled in every process, and where numba cannot work at all
there is no event engine: one warning says why, and what to do about it.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import logging
import marshal
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from ds4nn_jax._engines.trial import trial
from ds4nn_jax._files import atomic_file

SOURCES = ("calls", "early_exit_kernel", "kernels", "lanes", "pipeline", "plan")
_LOCK = threading.RLock()


class Unusable(ImportError):
    """The event engine cannot work in this process; the message says why."""


def require(kernel: str, dtype: str) -> None:
    """Raises Unusable where a kernel cannot be had and no other engine will do."""
    try:
        target(kernel, dtype)
    except Unusable as error:
        raise Unusable(
            f'engine="event" cannot work here: {error}; or use engine="scan"'
        ) from error


def usable(kernel: str, dtype: str) -> bool:
    """Whether a kernel can be had; a warning says why not."""
    try:
        target(kernel, dtype)
    except Unusable as error:
        warn(f"ds4nn_jax computes without its event engine, far slower: {error}")
        return False
    return True


@functools.cache
def fault() -> str | None:
    """What keeps the event engine from working in this process; None where it can."""
    try:
        numba = importlib.import_module("numba")
        importlib.import_module("ds4nn_jax._engines.lanes")
    except Exception as error:  # whatever a broken installation raises
        if isinstance(error, ModuleNotFoundError) and error.name == "numba":
            return "numba is not installed (pip install numba)"
        return _explained("numba cannot be imported", error)
    if numba.config.DISABLE_JIT:
        return "numba's compiler is switched off (unset NUMBA_DISABLE_JIT)"
    try:
        ctypes.CDLL(None).sched_yield  # noqa: B018  the kernels call it
    except Exception as error:
        return _explained("its calls are not known here", error)
    return None


def _explained(what: str, error: Exception) -> str:
    message = " ".join(str(error).split())
    message = message if len(message) < 200 else message[:200] + " …"
    return f"{what} ({type(error).__name__}: {message})"


@functools.cache
def warn(message: str) -> None:
    """Says it once in a process."""
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def target(kernel: str, dtype: str) -> str:
    """The name by which XLA knows a kernel ("forward", …) for a floating dtype.

    Raises:
      Unusable: it cannot be had; the message says why.
    """
    with _LOCK:
        name = _registered(kernel, dtype)
    if isinstance(name, Unusable):
        raise name
    return name


@functools.cache
def _registered(kernel: str, dtype: str) -> str | Unusable:
    if (why := fault()) is not None:
        return Unusable(why)
    try:
        address = _address(kernel, dtype)
    except Exception as error:
        return Unusable(_explained("numba cannot compile its kernels", error))
    name = f"ds4nn_jax.{kernel}.{dtype}"
    function = ctypes.CFUNCTYPE(ctypes.c_void_p)(address)
    try:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")
        right = _passes(name, *trial(kernel, dtype))
    except Exception as error:
        return Unusable(_explained("XLA does not call its kernels", error))
    if not right:
        return Unusable("its kernels compute wrong spikes here")
    return name


def _passes(name: str, plan: np.ndarray, operands: list, expected: list) -> bool:
    """Whether XLA gets from a kernel what was worked out by hand."""
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in expected]
    # Compiled ahead, as this may be within another function's tracing.
    (cpu, *_) = jax.local_devices(backend="cpu")
    with jax.default_device(cpu), jax.transfer_guard("allow"):
        run = jax.jit(lambda *x: jax.ffi.ffi_call(name, results)(*x, plan=plan))
        arrays = run.lower(*operands).compile()(*operands)
        return all(map(np.array_equal, arrays, expected))


# What XLA and its threads hold addresses of stays for as long as the process.
_KEPT: list[Any] = []


def _address(kernel: str, dtype: str) -> int:
    """Of the machine code of a kernel in this process."""
    import llvmlite.binding as llvm
    from numba.core.registry import cpu_target

    machine = cpu_target.target_context.codegen().magic_tuple()
    cell = f"ds4nn_jax_{kernel}_{dtype}"
    entry = ctypes.c_int64(0)
    llvm.add_symbol(cell, ctypes.addressof(entry))
    name = f"{kernel}-{dtype}-{_digest(machine)}.kernel"
    saved = _read(name)
    if saved is None:
        saved = _compile(kernel, dtype, cell)
        _write(name, marshal.dumps(saved))
    function, code = saved
    # An engine of its own: numba numbers functions anew in every process, so that two
    # kernels may use one name for two things.
    target = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    entry.value = engine.get_function_address(function)
    _KEPT.extend((entry, engine))
    return entry.value


def _compile(kernel: str, dtype: str, cell: str) -> tuple[str, bytes]:
    """The name of the function, and the machine code that it is in."""
    _announce()
    from numba import cfunc, types

    source = "early_exit_kernel" if kernel == "early_exit" else "kernels"
    module = importlib.import_module(f"ds4nn_jax._engines.{source}")
    entry = module.entry(kernel, getattr(np, dtype), cell)
    options: Any = dict(error_model="numpy", _nrt=False)
    compiled: Any = cfunc(types.intp(types.intp), **options)(entry)
    _, _, (code, _) = compiled._library.serialize_using_object_code()
    return compiled.native_name, code


@functools.cache
def _announce() -> None:
    """Once: whoever waits in a program of their own sees why."""
    logging.getLogger("ds4nn_jax").warning(
        "compiling the event engine for this processor, about ten seconds; later "
        "programs read it from disk …"
    )


@functools.cache
def _digest(machine: tuple) -> str:
    """Of all that machine code depends on."""
    import llvmlite
    import numba

    versions = numba.__version__, llvmlite.__version__, jaxlib.__version__
    digest = hashlib.sha256(repr((versions, machine)).encode())
    for source in SOURCES:
        digest.update(Path(__file__).with_name(f"{source}.py").read_bytes())
    return digest.hexdigest()[:24]


def _folders() -> Iterator[tuple[Path, str]]:
    """Where kernels are looked for and kept, and how to name the place."""
    if folder := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(folder), "NUMBA_CACHE_DIR"
        return
    yield Path(__file__).with_name("__pycache__"), "the package's own folder"
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with contextlib.suppress(RuntimeError):  # no home
        yield Path(home).expanduser() / "ds4nn_jax", "the user's cache"


def kept(name: str) -> Iterator[Path]:
    """Files of this name that nobody else can have written."""
    for folder, _ in _folders():
        with contextlib.suppress(OSError):
            for path in (folder, folder / name):
                _check_owner(path.stat())
            yield folder / name


def _read(name: str) -> tuple | None:
    """What `_write` kept, if it is complete."""
    for file in kept(name):
        with contextlib.suppress(OSError, ValueError, EOFError, TypeError):
            content = file.read_bytes()
            if hashlib.sha256(content[32:]).digest() == content[:32]:
                return marshal.loads(content[32:])
    return None


def _check_owner(status: os.stat_result) -> None:
    """Machine code must be root's or the user's of this process."""
    if not hasattr(os, "geteuid"):
        return
    others = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid != os.getegid() else 0)
    sticky = status.st_mode & stat.S_ISVTX
    if status.st_uid not in (0, os.geteuid()) or (
        status.st_mode & others and not sticky
    ):
        raise PermissionError("others can write here")


def _write(name: str, content: bytes) -> None:
    digest = hashlib.sha256(content).digest()
    keep(name, lambda file: file.write_bytes(digest + content))


def keep(name: str, write: Callable[[Path], Any]) -> Path | None:
    """Makes a file in the first folder that can be written; if none can, warns."""
    reasons = []
    for folder, what in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _check_owner(folder.stat())
            with atomic_file(folder / name) as unfinished:
                unfinished.touch(0o600)
                write(unfinished)
            return folder / name
        except OSError as error:
            reasons.append(f"{what}, {folder}: {error.strerror or error}")
    warn(
        "ds4nn_jax compiles its event engine again in every process, which takes a "
        f"while: it cannot keep it ({'; '.join(reasons) or 'no home'}). Set "
        "NUMBA_CACHE_DIR to a folder of yours that can be written"
    )
    return None
