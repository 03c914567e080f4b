"""How XLA calls a kernel: compiled code to compiled code, without Python in between.

A kernel is an XLA FFI handler (`xla/ffi/api/c_api.h`, versions 0.1 to 0.3): XLA passes
the address of a call frame with the buffers and one attribute, the plan, which is all
that is static about a call. Since no Python runs, nothing can leave a kernel half-way:
no signal, no exception, no interpreter that shuts down. A call is shared out to XLA's
own threads in parts that never change a result; the calling thread works too, so a call
never waits for a free thread, and it returns when every part that began has ended.
"""

from typing import Any

import numpy as np
from numba import njit, types

from ds4nn_jax._engines.lanes import (
    address_of,
    array_at,
    call,
    fetch_add,
    peek,
    text,
    write,
)
from ds4nn_jax._engines.pipeline import Linked

OPTIONS: dict[str, Any] = dict(
    error_model="numpy",
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
    _nrt=False,
    no_rewrites=True,
    pipeline_class=Linked,
)
CACHE_LINE = 64  # bytes: vectors across two cache lines cost twice

_malloc = types.ExternalFunction("malloc", types.intp(types.intp))
_free = types.ExternalFunction("free", types.void(types.intp))
_yield = types.ExternalFunction("sched_yield", types.int32())

# Of XLA's FFI: the oldest version whose memory layout these offsets are of. Later minor
# versions only add to it; XLA refuses a handler of a version that it supports no more.
VERSION = 0, 1

# Offsets in XLA's call frame and its parts.
_EXTENSION, _API, _CONTEXT = 8, 16, 24
_ARGUMENTS, _RESULTS, _ATTRIBUTES = 72, 112, 160
_BUFFER_DATA, _ARRAY_DATA = 24, 16
_METADATA = 1  # the type of the extension that asks a handler about itself
# Functions of its table.
_ERROR_CREATE, _ERROR_DESTROY, _SCHEDULE, _NUM_THREADS = 48, 64, 136, 144
_RESOURCE_EXHAUSTED, _UNIMPLEMENTED = np.intp(8), np.intp(12)
# Bytes, by their own first words, that structures must have for all that is read.
_FRAME_BYTES, _API_BYTES, _LIST_BYTES, _ATTRIBUTES_BYTES = 168, 152, 40, 48
_METADATA_EXTENSION_BYTES, _METADATA_BYTES = 32, 36

# Words of a job, what the threads of a call share, and XLA's arguments behind them.
# A job's first word cannot be a frame's, which is its size.
_NEXT, _DONE, _PARTS, _HOLDERS, _FAILED, _FRAME, _SHARED, _PHASE = range(8, 72, 8)
_TASK, _COUNT, _JOB_BYTES, _JOB = 72, 112, 256, -1


@njit(**OPTIONS)
def plan_of(frame):
    """The call's one attribute, int64 words."""
    return array_at(peek(peek(peek(frame + _ATTRIBUTES)) + _ARRAY_DATA), np.int64)


@njit(inline="always", **OPTIONS)
def argument(frame, k):
    """Address of the data of the k-th operand."""
    return peek(peek(peek(frame + _ARGUMENTS) + 8 * k) + _BUFFER_DATA)


@njit(inline="always", **OPTIONS)
def result(frame, k):
    """Address of the data of the k-th result."""
    return peek(peek(peek(frame + _RESULTS) + 8 * k) + _BUFFER_DATA)


@njit(inline="always", **OPTIONS)
def aligned_size(items, size_of):
    """Bytes of so many items, rounded up to cache lines."""
    return (items * size_of + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE


@njit(**OPTIONS)
def allocate(at, items, kind, size_of):
    """An array of so many items at an address, and the address behind it."""
    return array_at(at, kind), at + aligned_size(items, size_of)


@njit(**OPTIONS)
def span(index, count, length):
    """The index-th of `count` even ranges of `length` items: first, last + 1."""
    return length * index // count, length * (index + 1) // count


@njit(**OPTIONS)
def pulses_before(step, pulses, steps):
    """How many of P reference neurons have spiked before a step: t_p = ⌊p·T/P⌋."""
    return (step * pulses + steps - 1) // steps


@njit(**OPTIONS)
def fill(array, size, value):
    for k in range(size):
        array[k] = value


@njit(**OPTIONS)
def copy(array, values, size):
    for k in range(size):
        array[k] = values[k]


@njit(**OPTIONS)
def _nothing_shared(plan):
    """For kernels whose parts need no memory in common."""
    return 0


@njit(**OPTIONS)
def _fits(frame):
    """Whether a call frame has all that is read of it."""
    if peek(frame) < _FRAME_BYTES or peek(peek(frame + _API)) < _API_BYTES:
        return False
    lists = peek(frame + _ARGUMENTS - 32), peek(frame + _RESULTS - 32)
    attributes = frame + _ATTRIBUTES - 40
    if min(lists[0], lists[1]) < _LIST_BYTES or peek(attributes) < _ATTRIBUTES_BYTES:
        return False
    return peek(attributes + 16) == 1  # the plan


@njit(**OPTIONS)
def _error(frame, message, code):
    """What XLA turns into an error of Python's; 0 if there is no way to make one."""
    if peek(frame) < _API + 8 or peek(peek(frame + _API)) < _ERROR_CREATE + 8:
        return 0
    arguments = _malloc(32)
    if arguments == 0:
        return 0
    write(arguments, 28, 0, message, code)
    error = call(peek(peek(frame + _API) + _ERROR_CREATE), arguments)
    _free(arguments)
    return error


@njit(**OPTIONS)
def _ignore(api, error, arguments):
    """Destroys an error, if it is one; whether it was none."""
    if error == 0:
        return True
    write(arguments, 24, 0, error)
    call(peek(api + _ERROR_DESTROY), arguments)
    return False


@njit(**OPTIONS)
def _release(job):
    if fetch_add(job + _HOLDERS, -1) == 1:
        _free(job)


def handler(cell, counts, part, memory, shared_bytes=_nothing_shared):
    """The function that XLA calls, to be compiled. Its helping threads call it too.

    Args:
      cell: by this name LLVM knows the memory that holds the function's own address.
      counts: counts(plan, phase) tells how many parts a phase has; 0 ends the call.
      part: part(frame, plan, phase, index, scratch, shared) computes one part.
      memory: memory(plan, at) gives the arrays that each thread needs for itself, from
        an address on, and last the address behind them.
      shared_bytes: of memory that the parts of a call share, by the plan.
    """
    major, minor = VERSION

    @njit(**OPTIONS)
    def describe(frame):
        """Answers XLA's question which version the handler was made for."""
        extension = peek(frame + _EXTENSION)
        if extension == 0 or array_at(extension + 8, np.int32)[0] != _METADATA:
            return False
        if peek(extension) >= _METADATA_EXTENSION_BYTES:
            metadata = peek(extension + 24)
            if peek(metadata) >= _METADATA_BYTES:  # else XLA refuses the handler
                answer = array_at(metadata + 24, np.int32)
                answer[0], answer[1], answer[2] = major, minor, 0
        return True

    @njit(**OPTIONS)
    def work(job):
        """Computes parts while there are any; only then may it read the frame."""
        total, scratch = peek(job + _PARTS), 0
        while True:
            index = fetch_add(job + _NEXT, 1)
            if index >= total:
                break
            frame = peek(job + _FRAME)
            plan = plan_of(frame)
            if scratch == 0:
                scratch = _malloc(memory(plan, np.intp(0))[-1] + CACHE_LINE)
            if scratch == 0:
                fetch_add(job + _FAILED, 1)
            else:
                aligned = (scratch + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
                phase, shared = peek(job + _PHASE), peek(job + _SHARED)
                part(frame, plan, phase, index, aligned, shared)
            fetch_add(job + _DONE, 1)
        _free(scratch)

    @njit(**OPTIONS)
    def share_out(frame, phase, total, shared):
        """Prepares a job of all parts of a phase and calls for helping threads."""
        job = _malloc(_JOB_BYTES)
        if job == 0:
            return job
        write(job, _JOB, 0, 0, total, 1, 0, frame, shared, phase)
        api, context = peek(frame + _API), peek(frame + _CONTEXT)
        count, task = job + _COUNT, job + _TASK
        write(count, 32, 0, context, count + 32, 1)
        _ignore(api, call(peek(api + _NUM_THREADS), count), count)
        helpers = min(total, peek(count + 32)) - 1  # this thread works, too
        write(task, 40, 0, context, peek(address_of(cell)), job)
        for _ in range(helpers):
            fetch_add(job + _HOLDERS, 1)
            if not _ignore(api, call(peek(api + _SCHEDULE), task), count):
                fetch_add(job + _HOLDERS, -1)
                break
        return job

    def entry(address):
        if peek(address) == _JOB:  # a helping thread; the call may be over by now
            work(address)
            _release(address)
            return 0
        if describe(address):
            return 0
        if not _fits(address):
            message = text("ds4nn_jax: this version of XLA calls in another way")
            return _error(address, message, _UNIMPLEMENTED)
        plan = plan_of(address)
        size = shared_bytes(plan)
        memory = _malloc(size + CACHE_LINE) if size > 0 else 0
        shared = (memory + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
        complete, phase = size == 0 or memory != 0, np.intp(0)
        while complete:
            total = counts(plan, phase)
            if total == 0:
                break
            job = share_out(address, phase, total, shared)
            if job == 0:
                complete = False
                break
            work(job)
            while fetch_add(job + _DONE, 0) < total:
                _yield()
            complete = fetch_add(job + _FAILED, 0) == 0
            _release(job)
            phase += 1
        _free(memory)
        if complete:
            return 0
        message = text("ds4nn_jax: no memory for the event engine")
        return _error(address, message, _RESOURCE_EXHAUSTED)

    return entry
