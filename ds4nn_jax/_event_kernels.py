"""The loops of the event engine, compiled by numba. Not imported without need.

A dense layer is a 1×1 convolution of a 1×1 image. Axes: B batch, H W image, I inputs,
O outputs, T steps, K = kh·kw·I rows of a window. Kernels run without the GIL on a
range of images each; which thread runs them never changes a result.
"""

import functools

import numpy as np
from numba import njit

from ds4nn_jax._event_lanes import (
    bits,
    least,
    load,
    multiply_add,
    select,
    some,
    splat,
    store,
    trailing_zeros,
)

_SMALL = 32  # up to so many rows of a window, insertion beats counting
_STRIDE = 32  # events between looks whether all neurons of a window have fired


@njit(nogil=True, inline="always")
def _event(step, offset):
    """One word: when to add which weights. Sorts by step."""
    return (np.uint64(step) << np.uint64(32)) | np.uint64(offset)


@njit(nogil=True, inline="always")
def _step(event):
    return event >> np.uint64(32)


@njit(nogil=True, inline="always")
def _offset(event):
    return np.intp(event & np.uint64(0xFFFFFFFF))


@njit(nogil=True)
def _read_pixel(times, num_steps, lanes, events):
    """Events of a pixel in channel order, weight rows counted in it; their number."""
    found = 0
    for i in range(times.shape[0]):
        t = times[i]
        events[found] = _event(np.int64(t), i * lanes)
        found += int((t >= 0) & (t < num_steps))
    return found


@njit(nogil=True)
def _count_before(events, before):
    """before[t] = number of events with step < t."""
    before[:] = 0
    for event in events:
        after = _step(event) + np.uint64(1)
        if after < before.shape[0]:
            before[after] += np.uint32(1)
    total = np.uint32(0)
    for t in range(before.shape[0]):
        total += before[t]
        before[t] = total


@njit(nogil=True)
def _place(events, tap, place, order):
    """Counting sort: place[t] is where the next event of step t belongs."""
    for k in range(events.shape[0]):
        step = _step(events[k])
        order[place[step]] = events[k] + tap
        place[step] += np.uint32(1)


@njit(nogil=True)
def _insert(events, tap, sorted_events, order):
    """Insertion sort into the first `sorted_events` of `order`."""
    for k in range(events.shape[0]):
        event, at = events[k] + tap, sorted_events + k
        while at > 0 and _step(order[at - 1]) > _step(event):
            order[at] = order[at - 1]
            at -= 1
        order[at] = event


@njit(nogil=True)
def _add(sums, terms):
    for k in range(sums.shape[0]):
        sums[k] += terms[k]


@functools.cache
def forward(lanes: int, peaks: bool):
    """Spike times, and with `peaks` the highest potentials, of a range of images."""

    @njit(nogil=True)
    def _get(array, at, filled, lane):
        """The first `filled` lanes from a flat array."""
        if filled == lanes:
            return load(array, at, lanes)
        for k in range(filled):
            lane[k] = array[at + k]
        return load(lane, 0, lanes)

    @njit(nogil=True)
    def _put(array, at, filled, lane, value):
        """The first `filled` lanes to a flat array."""
        if filled == lanes:
            store(array, at, value)
        else:
            store(lane, 0, value)
            for k in range(filled):
                array[at + k] = lane[k]

    @njit(nogil=True)
    def _count(spike, silent, filled, lane, counts, b, kind):
        """Counts the spikes of the first `filled` lanes by their steps."""
        fired = spike < silent
        store(lane, 0, spike)
        one = np.uint64(1)
        left = bits(fired, 0)
        if filled < 64:  # idle lanes look as if they had fired
            left &= (one << np.uint64(filled)) - one
        while left:
            counts[b, kind, np.intp(lane[trailing_zeros(left)])] += np.int32(1)
            left &= left - one
        if filled > 64:
            left = bits(fired, 1)
            if filled < 128:
                left &= (one << np.uint64(filled - 64)) - one
            while left:
                counts[b, kind, np.intp(lane[64 + trailing_zeros(left)])] += np.int32(1)
                left &= left - one

    @njit(nogil=True, cache=True)
    def run(
        times,  # [B, H, W, I]
        weights,  # flat [blocks, K, lanes]
        window,  # kh, kw
        strides,
        corner,  # rows above and columns left of the image
        pool,  # rows and columns of a pooling window
        threshold,
        num_steps,
        images,  # first, last + 1
        rows,  # first, last + 1, of the output
        out_shape,  # H', W', O, behind the pooling
        spike_times,  # flat [B, H', W', O]
        potential,
        until,
        member,
        counts,  # [B, 2, T] spikes of each step before and behind the pooling, added to
    ):
        kh, kw = window
        _, height, width, features = times.shape
        out_height, out_width, out_features = out_shape
        pooled, last_member = pool != (1, 1), pool[0] * pool[1] - 1
        size = kh * kw * features
        small = size <= _SMALL
        counted = counts.shape[0] > 0
        scalar = times.dtype.type
        read_events = np.empty((kh, width, features), np.uint64)
        arrived = np.empty((kh, width), np.int64)
        before = np.empty((kh, width, num_steps), np.uint32)
        columns = np.empty((width, num_steps), np.uint32)  # sums of `before`
        place = np.empty(num_steps, np.uint32)
        order = np.empty(size + 1, np.uint64)
        lane = np.empty(lanes, times.dtype)
        never = scalar(np.inf)
        for b in range(images[0], images[1]):
            read = 0
            for y in range(rows[0] * pool[0], rows[1] * pool[0]):
                top = y * strides[0] - corner[0]
                bottom = min(top + kh, height)
                for row in range(max(read, top), bottom):
                    slot = row % kh
                    for x in range(width):
                        found = read_events[slot, x]
                        n = _read_pixel(times[b, row, x], num_steps, lanes, found)
                        arrived[slot, x] = n
                        if not small:
                            _count_before(found[:n], before[slot, x])
                read = max(read, bottom)
                if not small:
                    for column in range(width):
                        columns[column] = 0
                        for row in range(max(top, 0), bottom):
                            _add(columns[column], before[row % kh, column])
                for x in range(out_width * pool[1]):
                    left = x * strides[1] - corner[1]
                    right = min(left + kw, width)
                    index = y % pool[0] * pool[1] + x % pool[1]
                    # The window's events in the order of their steps.
                    if not small:
                        place[:] = 0
                        for column in range(max(left, 0), right):
                            _add(place, columns[column])
                    events = 0
                    for row in range(max(top, 0), bottom):
                        slot = row % kh
                        for column in range(max(left, 0), right):
                            n = arrived[slot, column]
                            found = read_events[slot, column, :n]
                            tap = (row - top) * kw + column - left
                            tap_offset = np.uint64(tap * features * lanes)
                            if small:
                                _insert(found, tap_offset, events, order)
                            else:
                                _place(found, tap_offset, place, order)
                            events += n
                    order[events] = _event(num_steps, 0)
                    for block in range(0, out_features, lanes):
                        start = block * size
                        filled = min(lanes, out_features - block)
                        v = splat(scalar(0), lanes)
                        if peaks:
                            # V(0) = 0 counts as a peak where nothing arrives at t = 0.
                            lane[:filled] = 0 if _step(order[0]) > 0 else -never
                            lane[filled:] = never  # idle lanes are done from the start
                            peak = load(lane, 0, lanes)
                            peak_step = splat(scalar(0), lanes)
                            k = 0
                            while k < events:
                                waiting = peak < threshold
                                if not some(waiting):
                                    break
                                step = _step(order[k])
                                while _step(order[k]) == step:
                                    v = v + load(
                                        weights, start + _offset(order[k]), lanes
                                    )
                                    k += 1
                                higher = waiting & (v > peak)
                                peak = select(higher, v, peak)
                                peak_step = select(higher, scalar(step), peak_step)
                            fired = peak >= threshold
                            spike = splat(scalar(num_steps), lanes)
                            spike = select(fired, peak_step, spike)
                        else:
                            lane[:filled] = num_steps
                            lane[filled:] = -1  # idle lanes are done from the start
                            spike = load(lane, 0, lanes)
                            for first in range(0, events, _STRIDE):
                                for k in range(first, min(first + _STRIDE, events)):
                                    event = order[k]
                                    v = v + load(weights, start + _offset(event), lanes)
                                    t = _step(event)
                                    last = t != _step(order[k + 1])
                                    fires = v >= (threshold if last else never)
                                    earliest = least(spike, scalar(t))
                                    spike = select(fires, earliest, spike)
                                if not some(spike == scalar(num_steps)):
                                    break
                        silent = scalar(num_steps)
                        if counted:
                            _count(spike, silent, filled, lane, counts, b, 0)
                        at = ((b * out_height + y // pool[0]) * out_width) + x // pool[
                            1
                        ]
                        at = at * out_features + block
                        if index == 0:
                            earlier = spike <= silent
                        else:
                            best = _get(spike_times, at, filled, lane)
                            earlier = spike < best
                            spike = select(earlier, spike, best)
                        _put(spike_times, at, filled, lane, spike)
                        if counted and pooled and index == last_member:
                            _count(spike, silent, filled, lane, counts, b, 1)
                        if pooled:
                            which = splat(scalar(0), lanes)
                            if index > 0:
                                which = _get(member, at, filled, lane)
                                which = select(earlier, scalar(index), which)
                            _put(member, at, filled, lane, which)
                        if peaks:
                            if index > 0:
                                best = _get(potential, at, filled, lane)
                                peak = select(earlier, peak, best)
                                best = _get(until, at, filled, lane)
                                peak_step = select(earlier, peak_step, best)
                            _put(potential, at, filled, lane, peak)
                            _put(until, at, filled, lane, peak_step)

    return run


@functools.cache
def backward(lanes: int):
    """Gradients of a range of images: Eq. 8, 10 and 12 over dense lanes of a window."""

    @njit(nogil=True, cache=True)
    def run(
        times,  # [B, H, W, I]
        weights,  # flat [blocks, O, lanes], the lanes being rows of a window
        window,
        strides,
        corner,
        pool,
        num_steps,
        silent_inputs,
        images,  # first, last + 1
        until,  # [B, H', W', O], behind the pooling
        delta,
        member,
        d_times,  # [B, H, W, I], written
        d_weights,  # as weights, added to
    ):
        kh, kw = window
        _, height, width, features = times.shape
        _, out_height, out_width, out_features = delta.shape
        pooled = pool != (1, 1)
        size = kh * kw * features
        scalar = times.dtype.type
        padded = -(-size // lanes) * lanes
        t_window = np.empty(padded, times.dtype)
        d_window = np.empty(padded, times.dtype)
        erring = np.empty(out_features, np.int64)
        neurons = np.empty(out_features, np.int64)
        deltas = np.empty(out_features, times.dtype)
        limits = np.empty(out_features, times.dtype)
        zero = splat(scalar(0), lanes)
        for b in range(images[0], images[1]):
            d_times[b] = 0
            for place in range(out_height * out_width):
                row_out, column_out = divmod(place, out_width)
                errors = delta[b, row_out, column_out]
                limit = until[b, row_out, column_out]
                own = member[b, row_out, column_out]
                found = 0
                for j in range(out_features):
                    erring[found] = j
                    found += int(errors[j] != 0)
                if found == 0:
                    continue
                for index in range(pool[0] * pool[1]):
                    teaching = 0
                    for k in range(found):
                        j = erring[k]
                        neurons[teaching] = j * lanes
                        deltas[teaching] = errors[j]
                        limits[teaching] = min(limit[j], scalar(num_steps - 1))
                        teaching += int(not pooled or own[j] == scalar(index))
                    if teaching == 0:
                        continue
                    y = row_out * pool[0] + index // pool[1]
                    x = column_out * pool[1] + index % pool[1]
                    top = y * strides[0] - corner[0]
                    left = x * strides[1] - corner[1]
                    t_window[:] = num_steps
                    first, last = max(left, 0), min(left + kw, width)
                    for row in range(max(top, 0), min(top + kh, height)):
                        base = ((row - top) * kw - left) * features
                        for column in range(first, last):
                            at = base + column * features
                            for i in range(features):
                                t_window[at + i] = times[b, row, column, i]
                    for block in range(0, padded, lanes):
                        t = load(t_window, block, lanes)
                        silent = t >= scalar(num_steps)
                        total = zero
                        start = block * out_features
                        if silent_inputs:
                            for k in range(teaching):
                                at = start + neurons[k]
                                heard = t <= limits[k]
                                worth = select(heard, deltas[k], zero)
                                store(d_weights, at, load(d_weights, at, lanes) - worth)
                                worth = select(heard | silent, deltas[k], zero)
                                total = multiply_add(
                                    worth, load(weights, at, lanes), total
                                )
                        elif some(t <= scalar(num_steps - 1)):
                            for k in range(teaching):
                                at = start + neurons[k]
                                worth = select(t <= limits[k], deltas[k], zero)
                                store(d_weights, at, load(d_weights, at, lanes) - worth)
                                total = multiply_add(
                                    worth, load(weights, at, lanes), total
                                )
                        store(d_window, block, total)
                    for row in range(max(top, 0), min(top + kh, height)):
                        base = ((row - top) * kw - left) * features
                        for column in range(first, last):
                            at = base + column * features
                            for i in range(features):
                                d_times[b, row, column, i] += d_window[at + i]

    return run
