"""The loops of the event engine, compiled by numba. Not imported without need.

A dense layer is a 1×1 convolution of a 1×1 image. Axes: B batch, H W image, I inputs,
O outputs, T steps, K = kh·kw·I rows of a window. A block is `lanes` of O (forward) or
of K (backward). Which thread computes a part never changes a result.
"""

import numpy as np
from numba import njit

from ds4nn_jax._engines.calls import (
    OPTIONS,
    aligned_size,
    allocate,
    argument,
    copy,
    fill,
    handler,
    pulses_before,
    result,
    span,
)
from ds4nn_jax._engines.lanes import (
    array_at,
    bits,
    load,
    multiply_add,
    select,
    slice_from,
    some,
    splat,
    store,
    trailing_zeros,
)
from ds4nn_jax._engines.plan import LANES, PLAN

_SMALL = 32  # up to so many rows of a window, insertion beats counting
_COLLECTED = 8  # parts in which the sums over the batch are collected
_CHECK_EVERY = 8  # groups of events, whether all neurons of a block have fired


@njit(inline="always", **OPTIONS)
def _event(step, offset):
    """One word: when to add which weights. Sorts by step."""
    return (np.uint64(step) << np.uint64(32)) | np.uint64(offset)


@njit(inline="always", **OPTIONS)
def _step(event):
    return np.intp(event >> np.uint64(32))


@njit(inline="always", **OPTIONS)
def _offset(event):
    return np.intp(event & np.uint64(0xFFFFFFFF))


@njit(**OPTIONS)
def _add(sums, terms, size):
    for k in range(size):
        sums[k] += terms[k]


@njit(**OPTIONS)
def _read_row(times, width, inputs, steps, events, arrived, by_step, counting):
    """Events of each pixel of a row, in the order of its channels; where they are to be
    counted, also how many each step has."""
    for x in range(width):
        of_pixel = slice_from(events, x * inputs)
        n = np.intp(0)
        for i in range(inputs):
            t = times[x * inputs + i]
            of_pixel[n] = _event(np.int64(t), i)
            n += np.intp((t >= 0) & (t < steps))
        arrived[x] = n
        if counting:
            count = slice_from(by_step, x * steps)
            fill(count, steps, 0)
            for k in range(n):
                count[_step(of_pixel[k])] += 1


@njit(**OPTIONS)
def _insert(events, size, tap, count, ordered):
    """Inserts events into the first `count` of `ordered`, by their steps."""
    for k in range(size):
        event, to = events[k] + np.uint64(tap), count
        while to > 0 and _step(ordered[to - 1]) > _step(event):
            ordered[to] = ordered[to - 1]
            to -= 1
        ordered[to] = event
        count += 1
    return count


@njit(**OPTIONS)
def _pulse_events(plan, size, events):
    """The reference spikes, as events whose rows follow the `size` rows of a window."""
    for p in range(plan[PLAN.pulses]):
        events[p] = _event(p * plan[PLAN.steps] // plan[PLAN.pulses], size + p)


@njit(**OPTIONS)
def _list_one_by_one(ordered, size, pulses, number, steps, lanes, order, when):
    """Events and pulses, behind equals, as groups of one, see `_lay_out`."""
    ordered[size], pulses[number] = _event(steps, 0), _event(steps, 0)
    k, p, before = np.intp(0), np.intp(0), np.intp(-1)
    for group in range(size + number):
        of_pulse = _step(pulses[p]) < _step(ordered[k])
        event = pulses[p] if of_pulse else ordered[k]
        p, k = p + np.intp(of_pulse), k + np.intp(not of_pulse)
        step = _step(event)
        order[group] = _offset(event) * lanes
        when[group] = before if before != step else steps
        before = step
    when[size + number] = before


@njit(**OPTIONS)
def _groups(count, steps, shift):
    """How many groups of 2**shift events, none of two steps."""
    total, rest = np.int32(0), np.int32((1 << shift) - 1)
    for t in range(steps):
        total += (count[t] + rest) >> np.int32(shift)
    return np.intp(total)


@njit(**OPTIONS)
def _lay_out(count, events, steps, peaks, when, place):
    """Groups the events of a window by their steps; how many groups, of 2**shift each.

    place[t] is where the events of step t go, when[g] the step that ends with group g,
    or T where its step goes on. when[0] is spare: groups count from 1. Larger groups
    need fewer comparisons and no branch on how many events a step has.
    """
    compared = 65 if peaks else 45  # the cost of a comparison, where adding has 12
    pairs, fours = _groups(count, steps, np.intp(1)), _groups(count, steps, np.intp(2))
    groups, shift, cost = events, 0, compared * events
    if (compared + 12) * pairs < cost:
        groups, shift, cost = pairs, 1, (compared + 12) * pairs
    if (compared + 36) * fours < cost:
        groups, shift = fours, 2
    fill(when, groups + 1, steps)
    ended, rest = np.intp(0), (1 << shift) - 1
    for t in range(steps):
        place[t] = ended << shift
        n = (np.intp(count[t]) + rest) >> shift
        ended += n
        when[ended if n > 0 else 0] = t
    return groups, shift


@njit(**OPTIONS)
def _place(events, size, tap, lanes, place, order):
    """Puts events where those of their step belong."""
    for k in range(size):
        step = _step(events[k])
        to = place[step]
        order[to] = (_offset(events[k]) + tap) * lanes
        place[step] = to + 1


def _first_spikes(kind, lanes):
    """Compiles the integration of a window's events by `lanes` neurons."""

    @njit(forceinline=True, **OPTIONS)
    def integrate(slots, events, neurons, at):
        """spike[at:] = the first step with V ≥ θ, or T.

        order: offsets of weight rows, `slots` for each group, filled up with zero rows.
        when: the step that ends with a group, T where its step goes on.
        """
        order, when, groups = events
        weights, block, thresholds, steps, filled, spike = neurons
        silent, threshold = kind(steps), load(weights, thresholds, lanes)
        for k in range(filled, lanes):
            spike[at + k] = -1  # idle lanes have fired from the start
        first = load(spike, at, lanes)
        v = splat(kind(0), lanes)
        never = splat(silent, lanes)
        k = 0
        for group in range(1, groups + 1):
            for _ in range(slots):
                v = v + load(weights, block + np.intp(order[k]), lanes)
                k += 1
            fires = select(v >= threshold, when[group], never)
            first = select(first < fires, first, fires)
            if group % _CHECK_EVERY == 0 and not some(first == silent):
                break
        store(spike, at, first)

    return integrate


def _highest_potentials(kind, lanes):
    """As `_first_spikes`, with the highest potential up to the spike and its step."""

    @njit(forceinline=True, **OPTIONS)
    def integrate(slots, events, neurons, potential, end, at):
        order, when, groups = events
        weights, block, thresholds, steps, filled, spike = neurons
        silent, threshold = kind(steps), load(weights, thresholds, lanes)
        for k in range(filled, lanes):
            potential[at + k] = np.inf  # idle lanes have fired from the start
        peak = load(potential, at, lanes)
        peak_step = load(end, at, lanes)
        v = splat(kind(0), lanes)
        k = 0
        for group in range(1, groups + 1):
            for _ in range(slots):
                v = v + load(weights, block + np.intp(order[k]), lanes)
                k += 1
            t = when[group]
            if t < silent:  # the step is complete
                waiting = peak < threshold
                higher = waiting & (v > peak)
                peak = select(higher, v, peak)
                peak_step = select(higher, t, peak_step)
                if group % _CHECK_EVERY == 0 and not some(waiting):
                    break
        store(potential, at, peak)
        store(end, at, peak_step)
        never = splat(silent, lanes)
        store(spike, at, select(peak >= threshold, peak_step, never))

    return integrate


def _by_lanes(kind, compiled):
    """Compiles a function for blocks of both sizes; the first argument chooses."""
    wide, narrow = LANES[np.dtype(kind).name]
    of_wide, of_narrow = compiled(kind, wide), compiled(kind, narrow)

    @njit(**OPTIONS)
    def dispatch(lanes, *arguments):
        if lanes == wide:
            of_wide(*arguments)
        else:
            of_narrow(*arguments)

    return dispatch


def _by_lanes_and_slots(kind, compiled):
    """As `_by_lanes`, for groups of 1, 2 and 4 events: numba compiles their loop once,
    LLVM makes three of it."""
    wide, narrow = LANES[np.dtype(kind).name]
    of_wide, of_narrow = compiled(kind, wide), compiled(kind, narrow)
    one, two, four = np.intp(1), np.intp(2), np.intp(4)

    @njit(**OPTIONS)
    def dispatch(lanes, slots, *arguments):
        if lanes == wide and slots == 1:
            of_wide(one, *arguments)
        elif lanes == wide and slots == 2:
            of_wide(two, *arguments)
        elif lanes == wide:
            of_wide(four, *arguments)
        elif slots == 1:
            of_narrow(one, *arguments)
        elif slots == 2:
            of_narrow(two, *arguments)
        else:
            of_narrow(four, *arguments)

    return dispatch


def _counting(kind, lanes):
    """Compiles the counting of the spikes of `lanes` neurons."""

    @njit(**OPTIONS)
    def count(spike, filled, alike, steps, counts):
        """counts[t] += spikes of step t of `filled` lanes, of `alike` windows."""
        one = np.uint64(1)
        fired = load(spike, 0, lanes) < kind(steps)
        left = bits(fired)
        if filled < lanes:  # idle lanes look as if they had fired
            left &= (one << np.uint64(filled)) - one
        while left:
            counts[np.intp(spike[np.intp(trailing_zeros(left))])] += alike
            left &= left - one

    return count


def _merging(kind, lanes):
    """Compiles earliest-spike pooling: what `lanes` neurons of one more window change
    in a place behind the pooling. Masked stores would be slow on some processors."""

    @njit(**OPTIONS)
    def merge(of_window, at, of_place, to, filled, argmin, peaks):
        (spike, potential, end), (times, peak, peak_step, first) = of_window, of_place
        if filled < lanes:
            for k in range(filled):
                if spike[at + k] < times[to + k]:
                    times[to + k], first[to + k] = spike[at + k], argmin
                    if peaks:
                        peak[to + k] = potential[at + k]
                        peak_step[to + k] = end[at + k]
            return
        new, old = load(spike, at, lanes), load(times, to, lanes)
        sooner = new < old
        if some(sooner):
            store(times, to, select(sooner, new, old))
            of_first = load(first, to, lanes)
            store(first, to, select(sooner, kind(argmin), of_first))
            if peaks:
                new, old = load(potential, at, lanes), load(peak, to, lanes)
                store(peak, to, select(sooner, new, old))
                new, old = load(end, at, lanes), load(peak_step, to, lanes)
                store(peak_step, to, select(sooner, new, old))

    return merge


@njit(**OPTIONS)
def operand(frame, plan, k, network):
    """Address of the k-th operand of a network."""
    return argument(frame, k) + network * plan[PLAN.stride_0 + k]


def _forward(kind):
    """What `calls.handler` asks for, of spike times of a scalar type."""
    size_of = np.dtype(kind).itemsize
    first_spikes = _by_lanes_and_slots(kind, _first_spikes)
    highest = _by_lanes_and_slots(kind, _highest_potentials)
    count_block = _by_lanes(kind, _counting)
    merge_block = _by_lanes(kind, _merging)

    @njit(**OPTIONS)
    def integrate(plan, windows, of_row, weights, spike, potential, end):
        """All neurons of a row of windows, block by block: the weights of a block stay
        in cache while the events of all windows stream past."""
        listed, twin, order, when = of_row
        lanes, outputs, steps = plan[PLAN.lanes], plan[PLAN.outputs], plan[PLAN.steps]
        size = plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs]
        size += plan[PLAN.pulses]
        padded = (outputs + lanes - 1) // lanes * lanes
        start = np.intp(0)  # a literal would be a type, and a compilation, of its own
        for block in range(0, outputs, lanes):
            filled = min(lanes, outputs - block)
            thresholds = start + (size + 1) * lanes  # behind the row of zeros
            for x in range(windows):
                groups, slots = listed[x] >> 3, listed[x] & 7
                if groups == 0 or twin[x] != x:
                    continue
                events = (
                    slice_from(order, x * 4 * size),
                    slice_from(when, x * (size + 1)),
                    groups,
                )
                neurons = weights, start, thresholds, steps, filled, spike
                at = x * padded + block
                if plan[PLAN.flag]:
                    highest(lanes, slots, events, neurons, potential, end, at)
                else:
                    first_spikes(lanes, slots, events, neurons, at)
            start += (size + 2) * lanes

    @njit(**OPTIONS)
    def count(plan, spike, alike, counts):
        lanes, outputs, steps = plan[PLAN.lanes], plan[PLAN.outputs], plan[PLAN.steps]
        for block in range(0, outputs, lanes):
            filled = min(lanes, outputs - block)
            of_block = slice_from(spike, block), filled, alike
            count_block(lanes, *of_block, steps, counts)

    @njit(**OPTIONS)
    def merge(plan, of_window, at, of_place, to, argmin):
        lanes, outputs, peaks = plan[PLAN.lanes], plan[PLAN.outputs], plan[PLAN.flag]
        for block in range(0, outputs, lanes):
            size = at + block, of_place, to + block, min(lanes, outputs - block)
            merge_block(lanes, of_window, *size, argmin, peaks)

    @njit(**OPTIONS)
    def memory(plan, at):
        """The arrays of one thread, and the address behind them."""
        kh, width, inputs = plan[PLAN.rows], plan[PLAN.width], plan[PLAN.inputs]
        steps, lanes = plan[PLAN.steps], plan[PLAN.lanes]
        windows = plan[PLAN.out_width] * plan[PLAN.pool_columns]
        size = kh * plan[PLAN.columns] * inputs + plan[PLAN.pulses]
        neurons = windows * ((plan[PLAN.outputs] + lanes - 1) // lanes * lanes)
        events, at = allocate(at, kh * width * inputs + 1, np.uint64, 8)
        arrived, at = allocate(at, kh * width, np.intp, 8)
        by_step, at = allocate(at, kh * width * steps, np.int32, 4)  # events of a pixel
        columns, at = allocate(
            at, width * steps, np.int32, 4
        )  # sums over a window's rows
        window_count, at = allocate(at, steps, np.int32, 4)
        pulses, at = allocate(at, plan[PLAN.pulses] + 1, np.uint64, 8)
        pulse_count, at = allocate(at, steps, np.int32, 4)
        place, at = allocate(at, steps, np.intp, 8)
        ordered, at = allocate(at, size + 1, np.uint64, 8)
        counts, at = allocate(at, 2 * steps, np.intp, 8)
        # Groups of a window · 8 + events of a group.
        listed, at = allocate(at, windows, np.intp, 8)
        # The window of a row whose neurons do the same: itself, or the first without
        # an input spike.
        twin, at = allocate(at, windows, np.intp, 8)
        order, at = allocate(at, windows * 4 * size, np.uint32, 4)
        when, at = allocate(at, windows * (size + 1), kind, size_of)
        spike, at = allocate(at, neurons, kind, size_of)
        potential, at = allocate(at, neurons, kind, size_of)
        end, at = allocate(at, neurons, kind, size_of)
        of_pixels = events, arrived, by_step, columns
        of_window = window_count, (pulses, pulse_count), place, ordered, counts
        of_row, of_neurons = (listed, twin, order, when), (spike, potential, end)
        return of_pixels, of_window, of_row, of_neurons, at

    @njit(**OPTIONS)
    def part(frame, plan, phase, index, scratch, shared):
        """Windows of some rows of some images."""
        height, width, inputs = plan[PLAN.height], plan[PLAN.width], plan[PLAN.inputs]
        out_height, out_width = plan[PLAN.out_height], plan[PLAN.out_width]
        outputs, kh, kw = plan[PLAN.outputs], plan[PLAN.rows], plan[PLAN.columns]
        pool_rows, pool_columns = plan[PLAN.pool_rows], plan[PLAN.pool_columns]
        steps, lanes, peaks = plan[PLAN.steps], plan[PLAN.lanes], plan[PLAN.flag] != 0
        kinds, pool_size = plan[PLAN.counts], pool_rows * pool_columns
        windows = out_width * pool_columns
        size = kh * kw * inputs
        total = size + plan[PLAN.pulses]
        padded = (outputs + lanes - 1) // lanes * lanes
        small = total <= _SMALL

        parts = plan[PLAN.image_parts] * plan[PLAN.row_parts]
        network, index = divmod(index, parts)
        of_result = plan[PLAN.images] * out_height * out_width * outputs * size_of
        counters = plan[PLAN.images] * plan[PLAN.row_parts] * kinds * steps * 4
        times = array_at(operand(frame, plan, 0, network), kind)
        weights = array_at(operand(frame, plan, 1, network), kind)
        spike_times = array_at(result(frame, 0) + network * of_result, kind)
        out_potential = array_at(result(frame, 1) + network * of_result, kind)
        out_end = array_at(result(frame, 2) + network * of_result, kind)
        out_argmin = array_at(result(frame, 3) + network * of_result, kind)
        of_places = spike_times, out_potential, out_end, out_argmin
        all_counts = array_at(result(frame, 4) + network * counters, np.int32)

        of_pixels, of_window, of_row, of_neurons, _ = memory(plan, scratch)
        events, arrived, by_step, columns = of_pixels
        window_count, (pulses, pulse_count), place, ordered, counts = of_window
        (listed, twin, order, when), (spike, potential, end) = of_row, of_neurons
        _pulse_events(plan, size, pulses)
        fill(pulse_count, steps, 0)
        for p in range(plan[PLAN.pulses]):
            pulse_count[_step(pulses[p])] += 1

        image_part, row_part = divmod(index, plan[PLAN.row_parts])
        first_image, last_image = span(
            image_part, plan[PLAN.image_parts], plan[PLAN.images]
        )
        first_row, last_row = span(row_part, plan[PLAN.row_parts], out_height)
        for b in range(first_image, last_image):
            fill(counts, 2 * steps, 0)
            read = 0
            for y in range(first_row * pool_rows, last_row * pool_rows):
                top = y * plan[PLAN.row_stride] - plan[PLAN.top]
                first, bottom = max(top, 0), min(top + kh, height)
                for row in range(max(read, first), bottom):
                    pixel, slot = (b * height + row) * width * inputs, row % kh * width
                    to_row = (
                        slice_from(events, slot * inputs),
                        slice_from(arrived, slot),
                    )
                    count_to = slice_from(by_step, slot * steps)
                    row_times = slice_from(times, pixel), width, inputs, steps
                    _read_row(*row_times, *to_row, count_to, not small)
                read = max(read, bottom)
                if not small:
                    fill(columns, width * steps, 0)
                    for row in range(first, bottom):
                        of_pixels = slice_from(by_step, row % kh * width * steps)
                        _add(columns, of_pixels, width * steps)
                quiet, alike = -1, np.intp(0)
                for x in range(windows):
                    left = x * plan[PLAN.column_stride] - plan[PLAN.left]
                    start, right = max(left, 0), min(left + kw, width)
                    offsets = slice_from(order, x * 4 * total)
                    group_ends = slice_from(when, x * (total + 1))
                    n, twin[x] = np.intp(0), x
                    for row in range(first, bottom):
                        for column in range(start, right):
                            n += arrived[row % kh * width + column]
                    if n == 0:
                        alike += 1
                        if quiet >= 0:
                            twin[x], listed[x] = quiet, listed[quiet]
                            continue
                        quiet = x
                    if small:
                        n = np.intp(0)
                        for row in range(first, bottom):
                            for column in range(start, right):
                                pixel = row % kh * width + column
                                tap = ((row - top) * kw + column - left) * inputs
                                of_pixel = slice_from(events, pixel * inputs)
                                n = _insert(of_pixel, arrived[pixel], tap, n, ordered)
                        listing = ordered, n, pulses, plan[PLAN.pulses], steps, lanes
                        _list_one_by_one(*listing, offsets, group_ends)
                        n += plan[PLAN.pulses]
                        listed[x] = n * 8 + 1
                        from_0 = min(_step(ordered[0]), _step(pulses[0])) == 0
                    else:
                        copy(window_count, pulse_count, steps)
                        for column in range(start, right):
                            _add(
                                window_count, slice_from(columns, column * steps), steps
                            )
                        n += plan[PLAN.pulses]
                        groups, shift = _lay_out(
                            window_count, n, steps, peaks, group_ends, place
                        )
                        if shift:  # a row of zeros fills up what is not full
                            fill(offsets, groups << shift, total * lanes)
                        for row in range(first, bottom):
                            for column in range(start, right):
                                pixel = row % kh * width + column
                                tap = ((row - top) * kw + column - left) * inputs
                                of_pixel = (
                                    slice_from(events, pixel * inputs),
                                    arrived[pixel],
                                )
                                _place(*of_pixel, tap, lanes, place, offsets)
                        of_pulses = pulses, plan[PLAN.pulses], np.intp(0)
                        _place(*of_pulses, lanes, place, offsets)
                        listed[x] = groups * 8 + (1 << shift)
                        from_0 = window_count[0] > 0
                    fill(slice_from(spike, x * padded), padded, steps)
                    if peaks:
                        # V(0) = 0 counts as a peak where nothing arrives at t = 0.
                        lowest = -np.inf if from_0 else 0
                        fill(slice_from(potential, x * padded), padded, lowest)
                        fill(slice_from(end, x * padded), padded, 0)
                neurons = spike, potential, end
                integrate(plan, windows, of_row, weights, *neurons)
                for x in range(windows):
                    at = twin[x] * padded
                    argmin = y % pool_rows * pool_columns + x % pool_columns
                    to = (b * out_height + y // pool_rows) * out_width
                    to = (to + x // pool_columns) * outputs
                    fires = listed[x] >> 3 > 0
                    if kinds and fires and twin[x] == x:
                        size = alike if x == quiet else np.intp(1)
                        count(plan, slice_from(spike, at), size, counts)
                    if argmin == 0:
                        copy(
                            slice_from(spike_times, to), slice_from(spike, at), outputs
                        )
                        if peaks:
                            highest_of = slice_from(potential, at)
                            copy(slice_from(out_potential, to), highest_of, outputs)
                            copy(slice_from(out_end, to), slice_from(end, at), outputs)
                        if pool_size > 1:
                            fill(slice_from(out_argmin, to), outputs, 0)
                    elif fires:
                        merge(plan, of_neurons, at, of_places, to, argmin)
                    if kinds > 1 and argmin == pool_size - 1:
                        for o in range(to, to + outputs):
                            if spike_times[o] < steps:
                                counts[steps + np.intp(spike_times[o])] += 1
            at = (b * plan[PLAN.row_parts] + row_part) * kinds * steps
            copy(slice_from(all_counts, at), counts, kinds * steps)

    @njit(**OPTIONS)
    def counts_of(plan, phase):
        parts = plan[PLAN.image_parts] * plan[PLAN.row_parts]
        return plan[PLAN.networks] * parts if phase == 0 else 0

    return counts_of, part, memory


def _scattering(kind, lanes):
    """Compiles the scatter of the errors of some neurons of a window to `lanes` of its
    rows: to the gradient of the weights and of the input times."""

    @njit(**OPTIONS)
    def scatter(errors, kernel, block, rule, times, t_at, d_times, d_at):
        neurons, deltas, ends, first, last = errors
        (weights, d_weights), (steps, silent_inputs) = kernel, rule
        t = load(times, t_at, lanes)
        zero = splat(kind(0), lanes)
        total = zero
        if silent_inputs:
            silent = t >= kind(steps)
            for k in range(first, last):
                at = block + neurons[k] * lanes
                causal = t <= ends[k]
                error = select(causal, deltas[k], zero)
                store(d_weights, at, load(d_weights, at, lanes) - error)
                error = select(causal | silent, deltas[k], zero)
                total = multiply_add(error, load(weights, at, lanes), total)
        elif some(t <= kind(steps - 1)):
            for k in range(first, last):
                at = block + neurons[k] * lanes
                error = select(t <= ends[k], deltas[k], zero)
                store(d_weights, at, load(d_weights, at, lanes) - error)
                total = multiply_add(error, load(weights, at, lanes), total)
        else:
            return
        store(d_times, d_at, load(d_times, d_at, lanes) + total)

    return scatter


def _backward(kind):
    """What `calls.handler` asks for, of spike times of a scalar type."""
    size_of = np.dtype(kind).itemsize
    scatter = _by_lanes(kind, _scattering)

    @njit(**OPTIONS)
    def list_errors(plan, end, delta, argmin, b, entry, begins, neurons, deltas, ends):
        """Lists the neurons with an error, from `entry` on, window by window: those of
        window w are begins[w] … begins[w+1].

        Windows are in row order of the places behind the pooling, and within a place in
        row order of the pooling window.
        """
        places = plan[PLAN.out_height] * plan[PLAN.out_width]
        outputs = plan[PLAN.outputs]
        pool_size = plan[PLAN.pool_rows] * plan[PLAN.pool_columns]
        last = kind(plan[PLAN.steps] - 1)
        for place in range(places):
            start = (b * places + place) * outputs
            for index in range(pool_size):
                begins[place * pool_size + index] = entry
                for j in range(outputs):
                    at = start + j
                    neurons[entry] = j
                    deltas[entry] = delta[at]
                    ends[entry] = min(end[at], last)
                    first = pool_size == 1 or argmin[at] == kind(index)
                    entry += np.intp(first and delta[at] != 0)
        begins[places * pool_size] = entry

    @njit(**OPTIONS)
    def scatter_to_pulses(first, last, neurons, deltas, ends, bin_of, bins):
        """bins[c, j] −= δ of neurons j with c reference spikes up to their end."""
        for k in range(first, last):
            bins[bin_of[np.intp(ends[k])] + neurons[k]] -= deltas[k]

    @njit(**OPTIONS)
    def part_bytes(plan):
        """Of a part's sums: those of the weights, behind them the bins of pulses."""
        lanes = plan[PLAN.lanes]
        size = plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs]
        padded = (size + lanes - 1) // lanes * lanes
        bins = plan[PLAN.pulses] + 1 if plan[PLAN.pulses] else 0
        return aligned_size((padded + bins) * plan[PLAN.outputs], size_of)

    @njit(**OPTIONS)
    def images_at_once(plan):
        """How many images use a block of weights before the next: all of a part in a
        dense layer, whose weights no cache holds."""
        dense = plan[PLAN.out_height] * plan[PLAN.out_width] == 1
        parts, images = plan[PLAN.image_parts], plan[PLAN.images]
        return (images + parts - 1) // parts if dense else np.intp(1)

    @njit(**OPTIONS)
    def memory(plan, at):
        """The arrays of one thread, and the address behind them."""
        places, lanes = plan[PLAN.out_height] * plan[PLAN.out_width], plan[PLAN.lanes]
        windows = places * plan[PLAN.pool_rows] * plan[PLAN.pool_columns]
        most_errors = places * plan[PLAN.outputs] + 1
        size = plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs]
        padded = (size + lanes - 1) // lanes * lanes
        images = images_at_once(plan)
        begins, at = allocate(at, images * (windows + 1), np.intp, 8)
        neurons, at = allocate(at, images * most_errors, np.intp, 8)
        deltas, at = allocate(at, images * most_errors, kind, size_of)
        ends, at = allocate(at, images * most_errors, kind, size_of)
        t_window, at = allocate(at, padded, kind, size_of)
        d_window, at = allocate(at, padded, kind, size_of)
        # Where the bins of neurons start that end with a step: no division for each.
        bin_of, at = allocate(at, plan[PLAN.steps], np.intp, 8)
        return begins, (neurons, deltas, ends), t_window, d_window, bin_of, at

    @njit(**OPTIONS)
    def gradients(frame, plan, index, scratch, partial):
        """∂E/∂t, and ∂E/∂w summed, of some images."""
        height, width, inputs = plan[PLAN.height], plan[PLAN.width], plan[PLAN.inputs]
        out_height, out_width = plan[PLAN.out_height], plan[PLAN.out_width]
        outputs, kh, kw = plan[PLAN.outputs], plan[PLAN.rows], plan[PLAN.columns]
        pool_rows, pool_columns = plan[PLAN.pool_rows], plan[PLAN.pool_columns]
        steps, lanes = plan[PLAN.steps], plan[PLAN.lanes]
        pool_size = pool_rows * pool_columns
        windows = out_height * out_width * pool_size
        size = kh * kw * inputs
        padded = (size + lanes - 1) // lanes * lanes
        image = height * width * inputs
        d_weights = array_at(partial + index * part_bytes(plan), kind)
        network, index = divmod(index, plan[PLAN.image_parts])
        times = array_at(operand(frame, plan, 0, network), kind)
        weights = array_at(operand(frame, plan, 1, network), kind)
        end = array_at(operand(frame, plan, 2, network), kind)
        delta = array_at(operand(frame, plan, 3, network), kind)
        argmin = array_at(operand(frame, plan, 4, network), kind)
        all_inputs = plan[PLAN.images] * image * size_of
        d_times = array_at(result(frame, 0) + network * all_inputs, kind)
        bins, pulses = slice_from(d_weights, padded * outputs), plan[PLAN.pulses]
        begins, errors, t_window, d_window, bin_of, _ = memory(plan, scratch)
        pair, rule = (weights, d_weights), (steps, plan[PLAN.flag] != 0)

        by_tap = inputs % lanes == 0  # a block is of one pixel: no copy
        chunks = inputs // lanes if by_tap else 1
        fill(d_weights, padded * outputs, 0)
        if pulses:
            fill(bins, (pulses + 1) * outputs, 0)
            for step in range(steps):
                bin_of[step] = pulses_before(step + 1, pulses, steps) * outputs
        first_image, last_image = span(index, plan[PLAN.image_parts], plan[PLAN.images])
        at_once, most_errors = (
            images_at_once(plan),
            out_height * out_width * outputs + 1,
        )
        for group in range(first_image, last_image, at_once):
            images = min(at_once, last_image - group)
            for i in range(images):
                fill(slice_from(d_times, (group + i) * image), image, 0)
                begin = slice_from(begins, i * (windows + 1))
                entry = group + i, i * most_errors
                list_errors(plan, end, delta, argmin, *entry, begin, *errors)
                if pulses:
                    all_errors = begin[0], begin[windows], *errors
                    scatter_to_pulses(*all_errors, bin_of, bins)
            for task in range(chunks * windows * images):
                of_image, i = divmod(task, images)
                chunk, window = divmod(of_image, windows)
                b, begin = group + i, slice_from(begins, i * (windows + 1) + window)
                if begin[0] == begin[1]:
                    continue
                of_window = *errors, begin[0], begin[1]
                place, index = divmod(window, pool_size)
                row_out, column_out = divmod(place, out_width)
                y = row_out * pool_rows + index // pool_columns
                x = column_out * pool_columns + index % pool_columns
                top = y * plan[PLAN.row_stride] - plan[PLAN.top]
                left = x * plan[PLAN.column_stride] - plan[PLAN.left]
                first, last = max(left, 0), min(left + kw, width)
                if by_tap:
                    for row in range(max(top, 0), min(top + kh, height)):
                        for column in range(first, last):
                            tap = (row - top) * kw + column - left
                            at = ((b * height + row) * width + column) * chunks
                            at = (at + chunk) * lanes
                            block = (tap * chunks + chunk) * outputs * lanes
                            inputs_at = times, at, d_times, at
                            scatter(lanes, of_window, pair, block, rule, *inputs_at)
                    continue
                fill(t_window, padded, steps)
                fill(d_window, padded, 0)
                for row in range(max(top, 0), min(top + kh, height)):
                    tap = (row - top) * kw + first - left
                    at = ((b * height + row) * width + first) * inputs
                    to = slice_from(t_window, tap * inputs)
                    copy(to, slice_from(times, at), (last - first) * inputs)
                for block in range(0, padded, lanes):
                    copied = t_window, block, d_window, block
                    scatter(lanes, of_window, pair, block * outputs, rule, *copied)
                for row in range(max(top, 0), min(top + kh, height)):
                    tap = (row - top) * kw + first - left
                    at = ((b * height + row) * width + first) * inputs
                    sums = slice_from(d_window, tap * inputs)
                    _add(slice_from(d_times, at), sums, (last - first) * inputs)

    @njit(**OPTIONS)
    def collect(frame, plan, index, scratch, partial):
        """Sums the parts in their order, for some blocks of the weights; the first
        part of this phase sums the gradient of the pulses."""
        outputs, lanes = plan[PLAN.outputs], plan[PLAN.lanes]
        size = plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs]
        blocks = (size + lanes - 1) // lanes
        stride, pulses = part_bytes(plan) // size_of, plan[PLAN.pulses]
        network, index = divmod(index, min(blocks, _COLLECTED))
        first_part = network * plan[PLAN.image_parts] * part_bytes(plan)
        d_weights = array_at(partial + first_part, kind)
        of_pulses = network * pulses * outputs * size_of
        d_pulses = array_at(result(frame, 2) + of_pulses, kind)
        if pulses and index == 0:
            bins = slice_from(d_weights, blocks * lanes * outputs)
            for k in range(1, plan[PLAN.image_parts]):
                _add(bins, slice_from(bins, k * stride), (pulses + 1) * outputs)
            # A neuron with c reference spikes up to its end had pulses 0 … c − 1.
            for p in range(pulses - 1, -1, -1):
                of_pulse = slice_from(d_pulses, p * outputs)
                copy(of_pulse, slice_from(bins, (p + 1) * outputs), outputs)
                if p + 1 < pulses:
                    _add(of_pulse, slice_from(of_pulse, outputs), outputs)
        of_kernel = network * size * outputs * size_of
        d_kernel = array_at(result(frame, 1) + of_kernel, kind)
        sums = array_at(scratch, kind)
        first, last = span(index, min(blocks, _COLLECTED), blocks)
        for block in range(first, last):
            for j in range(outputs):
                at = (block * outputs + j) * lanes
                copy(sums, slice_from(d_weights, at), lanes)
                for k in range(1, plan[PLAN.image_parts]):
                    _add(sums, slice_from(d_weights, at + k * stride), lanes)
                for k in range(min(lanes, size - block * lanes)):
                    d_kernel[(block * lanes + k) * outputs + j] = sums[k]

    @njit(**OPTIONS)
    def counts_of(plan, phase):
        size = plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs]
        if phase == 0:
            return plan[PLAN.networks] * plan[PLAN.image_parts]
        blocks = (size + plan[PLAN.lanes] - 1) // plan[PLAN.lanes]
        return plan[PLAN.networks] * min(blocks, _COLLECTED) if phase == 1 else 0

    @njit(**OPTIONS)
    def part(frame, plan, phase, index, scratch, shared):
        if phase == 0:
            gradients(frame, plan, index, scratch, shared)
        else:
            collect(frame, plan, index, scratch, shared)

    @njit(**OPTIONS)
    def shared_bytes(plan):
        return plan[PLAN.networks] * plan[PLAN.image_parts] * part_bytes(plan)

    return counts_of, part, memory, shared_bytes


def entry(kernel, kind, cell):
    """The function that XLA calls for "forward" or "backward", to be compiled.

    See `calls.handler` for `cell`.
    """
    return handler(cell, *(_forward if kernel == "forward" else _backward)(kind))
