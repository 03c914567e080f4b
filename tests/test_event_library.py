"""numba may fail in any way: the answer stays right, and one warning says why."""

import ctypes
import os
import re
import subprocess
import sys
import textwrap

import conftest
import jax
import pytest

from ds4nn_jax._engines import library

# One kernel is enough to decide; layers and their gradients need two more.
DECIDE = """
    import warnings
    import jax, numpy as np, ds4nn_jax as ds
    times = np.array([[3.0, 5.0, 100.0]])
    kernel = np.array([[60.0, 60.0], [50.0, 30.0], [90.0, 90.0]])
    def decide():
        network = ds.SpikingNetwork.from_spec("3-2")
        params = {"params": {"dense1": {"kernel": kernel.astype(np.float32)}}}
        decided = ds.infer(network, params, times)
        assert decided.label.tolist() == [0] and decided.step.tolist() == [5], decided
"""
PROGRAM = f"""{DECIDE}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            decide()
            out, back = jax.vjp(ds.dense, times, kernel)
            d_times, d_kernel = back(np.ones_like(out))
    assert out.tolist() == [[5.0, 100.0]], out
    assert d_kernel.tolist() == [[-1.0, -1.0], [-1.0, -1.0], [0.0, 0.0]], d_kernel
    assert d_times.tolist() == [[120.0, 80.0, 0.0]], d_times
    print("warned:", *[w.message for w in seen if w.category is RuntimeWarning])
    try:
        ds.dense(times, kernel, engine="event")
    except ImportError as error:
        print("refused:", error)
"""
# Another right answer than the kernels have: they fail their trial.
WRONG = """
    from ds4nn_jax._engines import library, trial
    def wrong(*names, right=trial.trial):
        plan, operands, results = right(*names)
        return plan, operands, [x + 1 for x in results]
    library.trial = wrong
"""


def run(program=PROGRAM, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# As if numba could not be imported, is absent, or was switched off.
BROKEN = """
    import sys
    class Broken:
        def find_spec(name, *_):
            if name == "numba":
                raise SystemError("initialization of _internal failed")
    sys.meta_path.insert(0, Broken)
"""
ABSENT = '    import sys; sys.modules["numba"] = None\n'


@pytest.mark.parametrize(
    ("begin", "environment", "why"),
    [
        pytest.param(
            BROKEN,
            {},
            r"numba cannot be imported \(SystemError: initialization of",
            marks=pytest.mark.slow,
        ),
        (ABSENT, {}, r"numba is not installed \(pip install numba\)"),
        pytest.param(
            "",
            {"NUMBA_DISABLE_JIT": "1"},
            "unset NUMBA_DISABLE_JIT",
            marks=pytest.mark.slow,
        ),
        (WRONG, {}, "its kernels compute wrong spikes here"),
    ],
)
def test_without_numba_the_scan_computes_and_one_warning_says_why(
    begin, environment, why
):
    warned, refused = run(begin + PROGRAM, **environment).splitlines()
    assert len(re.findall("ds4nn_jax computes without its event engine", warned)) == 1
    assert re.search(why, warned)
    assert re.search(why, refused) and 'engine="scan"' in refused


@pytest.mark.slow
def test_kernels_are_found_again_beside_new_ones(tmp_path):
    """A later process adds a kernel to those that it finds; neither disturbs another.

    numba numbers functions anew in every process, so two kernels may share names.
    """
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    aloud = "    import logging, sys; logging.basicConfig(stream=sys.stdout)"
    said = run(f"{aloud}{DECIDE}    decide()\n", **cache)
    assert said.count("compiling the event engine") == 1
    (first,) = tmp_path.iterdir()
    made = first.stat().st_mtime_ns
    run(PROGRAM, **cache)
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == ["backward", "early_exit", "forward"]
    assert first.stat().st_mtime_ns == made


def test_offsets_are_those_of_this_jaxlib_s_header(tmp_path):
    """Where the kernels read in XLA's structures, against XLA's own header."""
    calls = pytest.importorskip("ds4nn_jax._engines.calls")  # needs numba
    frame, api = "XLA_FFI_CallFrame", "XLA_FFI_Api"
    fields = {
        "_EXTENSION": (frame, "extension_start"),
        "_API": (frame, "api"),
        "_CONTEXT": (frame, "ctx"),
        "_ARGUMENTS": (frame, "args.args"),
        "_RESULTS": (frame, "rets.rets"),
        "_ATTRIBUTES": (frame, "attrs.attrs"),
        "_BUFFER_DATA": ("XLA_FFI_Buffer", "data"),
        "_ARRAY_DATA": ("XLA_FFI_Array", "data"),
        "_ERROR_CREATE": (api, "XLA_FFI_Error_Create"),
        "_ERROR_DESTROY": (api, "XLA_FFI_Error_Destroy"),
        "_SCHEDULE": (api, "XLA_FFI_ThreadPool_Schedule"),
        "_NUM_THREADS": (api, "XLA_FFI_ThreadPool_NumThreads"),
    }
    checks = [
        f"static_assert(offsetof({struct}, {field}) == {getattr(calls, name)});"
        for name, (struct, field) in fields.items()
    ]
    checks.append(f"static_assert(XLA_FFI_API_MAJOR == {calls.VERSION[0]});")
    source = tmp_path / "offsets.cc"
    lines = ["#include <cstddef>", '#include "xla/ffi/api/c_api.h"', *checks]
    source.write_text("\n".join(lines))
    command = [
        *conftest.compiler("c++"),
        "-std=c++17",
        "-c",
        "-Wno-invalid-offsetof",
    ]
    command += [f"-I{jax.ffi.include_dir()}", str(source), "-o", str(tmp_path / "o")]
    subprocess.run(command, check=True)


# What a call's structures say of their size, in bytes, in their own first words.
SIZES = {"frame": 168, "api": 152, "arguments": 40, "results": 40, "attributes": 48}


@pytest.mark.parametrize("short", [None, *SIZES, "plan"])
def test_calls_of_another_layout_are_refused(short):
    """A call of no images, which writes nothing."""
    pytest.importorskip("numba")
    function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    create = function(lambda _: 77)  # an error
    sizes = {name: size - 8 * (name == short) for name, size in SIZES.items()}
    words = lambda count: (ctypes.c_int64 * count)()  # noqa: E731
    frame, api, plan, array, attributes = map(words, (21, 25, 40, 3, 1))
    array[2], attributes[0] = ctypes.addressof(plan), ctypes.addressof(array)
    api[0], api[6] = sizes["api"], ctypes.cast(create, ctypes.c_void_p).value
    frame[0], frame[2] = sizes["frame"], ctypes.addressof(api)
    frame[5], frame[10] = sizes["arguments"], sizes["results"]
    frame[15], frame[17] = sizes["attributes"], short != "plan"
    frame[20] = ctypes.addressof(attributes)
    handler = function(library._address("forward", "float32"))
    assert handler(ctypes.addressof(frame)) == (short and 77)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(
        library,
        "_folders",
        lambda: iter(((first, "the first"), (second, "the second"))),
    )
    library.warn.cache_clear()
    yield first, second
    library.warn.cache_clear()


def test_what_is_kept_is_read(folders):
    """In the first folder that can be written."""
    code = library.marshal.dumps(("name", b"code"))
    library._write("a.kernel", code)
    assert library._read("a.kernel") == ("name", b"code")
    assert [path.name for path in folders[0].iterdir()] == ["a.kernel"]
    assert not folders[1].exists() and library._read("b.kernel") is None
    (folders[0] / "a.kernel").unlink()
    folders[0].rmdir()
    folders[0].write_text("a file where a folder should be")
    library._write("a.kernel", code)
    assert library._read("a.kernel") == ("name", b"code")


def test_no_folder_at_all_is_said_once(folders):
    for folder in folders:
        folder.write_text("a file where a folder should be")
    with pytest.warns(RuntimeWarning, match="the second, .*NUMBA_CACHE_DIR") as seen:
        for _ in range(3):
            library._write("a.kernel", b"code")
    assert len(seen) == 1


def test_a_full_disk_leaves_nothing_half_written(folders, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library.os, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        library._write("a.kernel", b"code")
    assert not list(folders[0].iterdir()) and not list(folders[1].iterdir())


def test_damaged_code_is_not_taken(folders):
    """Cut short, with another bit, empty, or other content."""
    library._write("a.kernel", library.marshal.dumps(("name", b"code" * 100)))
    file = folders[0] / "a.kernel"
    whole = file.read_bytes()
    flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    for content in (whole[:-1], flipped, b"", b"\x00" * 200):
        file.write_bytes(content)
        assert library._read("a.kernel") is None
    library._write("a.kernel", library.marshal.dumps(("name", b"new")))
    assert library._read("a.kernel") == ("name", b"new")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here")
@pytest.mark.parametrize("fault", ["another user's", "open to all"])
def test_code_that_others_can_write_is_not_taken(folders, fault, monkeypatch):
    library._write("a.kernel", library.marshal.dumps(("name", b"code")))
    if fault == "open to all":
        (folders[0] / "a.kernel").chmod(0o666)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        if os.getuid() == 0:  # root's files are taken by everybody
            os.chown(folders[0] / "a.kernel", 54321, 54321)
    assert library._read("a.kernel") is None
