"""The loops of the event engine, compiled by numba. Not imported without need.

A dense layer is a 1×1 convolution of a 1×1 image. Axes: B batch, H W image, I inputs,
O outputs, T steps, K = kh·kw·I rows of a window. A block is `lanes` of O (forward) or
of K (backward). Which thread computes a part never changes a result.
"""

import numpy as np
from numba import njit

from ds4nn_jax._engines.calls import (
    OPTIONS,
    argument,
    copy,
    fill,
    handler,
    pulses_before,
    result,
    room,
    span,
    taken,
)
from ds4nn_jax._engines.lanes import (
    array_at,
    bits,
    load,
    multiply_add,
    select,
    some,
    splat,
    store,
    tail,
    trailing_zeros,
)
from ds4nn_jax._engines.plan import LANES, PLAN

_SMALL = 32  # up to so many rows of a window, insertion beats counting
_COLLECTED = 8  # parts in which the sums over the batch are taken
_LOOKS = 8  # groups of events between looks whether all neurons of a block have fired


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
    """Events of a row of pixels, of each in the order of its channels, and, where they
    are to be counted, how many by step."""
    for x in range(width):
        own = tail(events, x * inputs)
        n = np.intp(0)
        for i in range(inputs):
            t = times[x * inputs + i]
            own[n] = _event(np.int64(t), i)
            n += np.intp((t >= 0) & (t < steps))
        arrived[x] = n
        if counting:
            count = tail(by_step, x * steps)
            fill(count, steps, 0)
            for k in range(n):
                count[_step(own[k])] += 1


@njit(**OPTIONS)
def _insert(events, size, tap, found, ordered):
    """Inserts events into the first `found` of `ordered`, by their steps."""
    for k in range(size):
        event, to = events[k] + np.uint64(tap), found
        while to > 0 and _step(ordered[to - 1]) > _step(event):
            ordered[to] = ordered[to - 1]
            to -= 1
        ordered[to] = event
        found += 1
    return found


@njit(**OPTIONS)
def _pulse_events(plan, size, events):
    """The reference spikes, as events whose rows follow the `size` rows of a window."""
    for p in range(plan[PLAN.pulses]):
        events[p] = _event(p * plan[PLAN.steps] // plan[PLAN.pulses], size + p)


@njit(**OPTIONS)
def _merge(events, size, found, ordered):
    """Merges events in order into the first `found` of `ordered`, behind equals."""
    to = found + size
    while size > 0:
        to -= 1
        if found > 0 and _step(ordered[found - 1]) > _step(events[size - 1]):
            found -= 1
            ordered[to] = ordered[found]
        else:
            size -= 1
            ordered[to] = events[size]


@njit(**OPTIONS)
def _list_one_by_one(ordered, size, steps, lanes, order, when):
    """Events in the order of their steps as groups of one, see `_lay_out`."""
    ordered[size] = _event(steps, 0)
    for k in range(size):
        step = _step(ordered[k])
        order[k] = _offset(ordered[k]) * lanes
        when[k + 1] = step if step != _step(ordered[k + 1]) else steps


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
    need no branch for each step's own number of events, and fewer comparisons.
    """
    compared = 65 if peaks else 45  # the cost of a comparison, where adding has 12
    pairs, fours = _groups(count, steps, np.intp(1)), _groups(count, steps, np.intp(2))
    groups, shift, cost = events, 0, compared * events
    if (compared + 12) * pairs < cost:
        groups, shift, cost = pairs, 1, (compared + 12) * pairs
    if (compared + 36) * fours < cost:
        groups, shift = fours, 2
    fill(when, groups + 1, steps)
    found, rest = np.intp(0), (1 << shift) - 1
    for t in range(steps):
        place[t] = found << shift
        n = (np.intp(count[t]) + rest) >> shift
        found += n
        when[found if n > 0 else 0] = t
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
            spike[at + k] = -1  # idle lanes are done from the start
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
            if group % _LOOKS == 0 and not some(first == silent):
                break
        store(spike, at, first)

    return integrate


def _highest_potentials(kind, lanes):
    """As `_first_spikes`, with the highest potential up to the spike and its step."""

    @njit(forceinline=True, **OPTIONS)
    def integrate(slots, events, neurons, potential, until, at):
        order, when, groups = events
        weights, block, thresholds, steps, filled, spike = neurons
        silent, threshold = kind(steps), load(weights, thresholds, lanes)
        for k in range(filled, lanes):
            potential[at + k] = np.inf  # idle lanes are done from the start
        peak = load(potential, at, lanes)
        peak_step = load(until, at, lanes)
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
                if group % _LOOKS == 0 and not some(waiting):
                    break
        store(potential, at, peak)
        store(until, at, peak_step)
        never = splat(silent, lanes)
        store(spike, at, select(peak >= threshold, peak_step, never))

    return integrate


def _by_lanes(kind, compiled):
    """Compiles something for blocks of both sizes; the first argument chooses."""
    wide, narrow = LANES[np.dtype(kind).name]
    of_wide, of_narrow = compiled(kind, wide), compiled(kind, narrow)

    @njit(**OPTIONS)
    def chosen(lanes, *arguments):
        if lanes == wide:
            of_wide(*arguments)
        else:
            of_narrow(*arguments)

    return chosen


def _by_lanes_and_slots(kind, compiled):
    """As `_by_lanes`, for groups of 1, 2 and 4 events: numba compiles their loop once,
    LLVM makes three of it."""
    wide, narrow = LANES[np.dtype(kind).name]
    of_wide, of_narrow = compiled(kind, wide), compiled(kind, narrow)
    one, two, four = np.intp(1), np.intp(2), np.intp(4)

    @njit(**OPTIONS)
    def chosen(lanes, slots, *arguments):
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

    return chosen


def _counting(kind, lanes):
    """Compiles the counting of the spikes of `lanes` neurons."""

    @njit(**OPTIONS)
    def count(spike, filled, steps, counts):
        """counts[t] += spikes of step t of the first `filled` lanes."""
        one = np.uint64(1)
        fired = load(spike, 0, lanes) < kind(steps)
        left = bits(fired)
        if filled < lanes:  # idle lanes look as if they had fired
            left &= (one << np.uint64(filled)) - one
        while left:
            counts[np.intp(spike[np.intp(trailing_zeros(left))])] += 1
            left &= left - one

    return count


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

    @njit(**OPTIONS)
    def integrate(plan, windows, of_row, weights, spike, potential, until):
        """All neurons of a row of windows, block by block: the weights of a block stay
        near while the events of all windows stream past."""
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
                events = tail(order, x * 4 * size), tail(when, x * (size + 1)), groups
                neurons = weights, start, thresholds, steps, filled, spike
                at = x * padded + block
                if plan[PLAN.flag]:
                    highest(lanes, slots, events, neurons, potential, until, at)
                else:
                    first_spikes(lanes, slots, events, neurons, at)
            start += (size + 2) * lanes

    @njit(**OPTIONS)
    def count(plan, spike, counts):
        lanes, outputs, steps = plan[PLAN.lanes], plan[PLAN.outputs], plan[PLAN.steps]
        for block in range(0, outputs, lanes):
            filled = min(lanes, outputs - block)
            count_block(lanes, tail(spike, block), filled, steps, counts)

    @njit(**OPTIONS)
    def memory(plan, at):
        """What a thread needs for itself, and the address behind it."""
        kh, width, inputs = plan[PLAN.rows], plan[PLAN.width], plan[PLAN.inputs]
        steps, lanes = plan[PLAN.steps], plan[PLAN.lanes]
        windows = plan[PLAN.out_width] * plan[PLAN.pool_columns]
        size = kh * plan[PLAN.columns] * inputs + plan[PLAN.pulses]
        neurons = windows * ((plan[PLAN.outputs] + lanes - 1) // lanes * lanes)
        events, at = taken(at, kh * width * inputs + 1, np.uint64, 8)
        arrived, at = taken(at, kh * width, np.intp, 8)
        by_step, at = taken(at, kh * width * steps, np.int32, 4)  # events of a pixel
        columns, at = taken(at, width * steps, np.int32, 4)  # sums over a window's rows
        window_count, at = taken(at, steps, np.int32, 4)
        pulses, at = taken(at, plan[PLAN.pulses], np.uint64, 8)
        pulse_count, at = taken(at, steps, np.int32, 4)
        place, at = taken(at, steps, np.intp, 8)
        ordered, at = taken(at, size + 1, np.uint64, 8)
        counts, at = taken(at, 2 * steps, np.intp, 8)
        # Groups of a window · 8 + events of a group.
        listed, at = taken(at, windows, np.intp, 8)
        # The window of a row whose neurons do the same: itself, or the first without
        # an input spike.
        twin, at = taken(at, windows, np.intp, 8)
        order, at = taken(at, windows * 4 * size, np.uint32, 4)
        when, at = taken(at, windows * (size + 1), kind, size_of)
        spike, at = taken(at, neurons, kind, size_of)
        potential, at = taken(at, neurons, kind, size_of)
        until, at = taken(at, neurons, kind, size_of)
        of_pixels = events, arrived, by_step, columns
        of_window = window_count, (pulses, pulse_count), place, ordered, counts
        of_row, of_neurons = (listed, twin, order, when), (spike, potential, until)
        return of_pixels, of_window, of_row, of_neurons, at

    @njit(**OPTIONS)
    def part(frame, plan, phase, index, scratch, shared):
        """Windows of some rows of some images."""
        height, width, inputs = plan[PLAN.height], plan[PLAN.width], plan[PLAN.inputs]
        out_height, out_width = plan[PLAN.out_height], plan[PLAN.out_width]
        outputs, kh, kw = plan[PLAN.outputs], plan[PLAN.rows], plan[PLAN.columns]
        pool_rows, pool_columns = plan[PLAN.pool_rows], plan[PLAN.pool_columns]
        steps, lanes, peaks = plan[PLAN.steps], plan[PLAN.lanes], plan[PLAN.flag] != 0
        kinds, members = plan[PLAN.counts], pool_rows * pool_columns
        windows = out_width * pool_columns
        size = kh * kw * inputs
        total = size + plan[PLAN.pulses]
        padded = (outputs + lanes - 1) // lanes * lanes
        small = total <= _SMALL

        in_turn = plan[PLAN.image_parts] * plan[PLAN.row_parts]
        network, index = divmod(index, in_turn)
        of_result = plan[PLAN.images] * out_height * out_width * outputs * size_of
        counters = plan[PLAN.images] * plan[PLAN.row_parts] * kinds * steps * 4
        times = array_at(operand(frame, plan, 0, network), kind)
        weights = array_at(operand(frame, plan, 1, network), kind)
        spike_times = array_at(result(frame, 0) + network * of_result, kind)
        out_potential = array_at(result(frame, 1) + network * of_result, kind)
        out_until = array_at(result(frame, 2) + network * of_result, kind)
        out_member = array_at(result(frame, 3) + network * of_result, kind)
        all_counts = array_at(result(frame, 4) + network * counters, np.int32)

        of_pixels, of_window, of_row, of_neurons, _ = memory(plan, scratch)
        events, arrived, by_step, columns = of_pixels
        window_count, (pulses, pulse_count), place, ordered, counts = of_window
        (listed, twin, order, when), (spike, potential, until) = of_row, of_neurons
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
                    own = tail(events, slot * inputs), tail(arrived, slot)
                    count_to = tail(by_step, slot * steps)
                    row_times = tail(times, pixel), width, inputs, steps
                    _read_row(*row_times, *own, count_to, not small)
                read = max(read, bottom)
                if not small:
                    fill(columns, width * steps, 0)
                    for row in range(first, bottom):
                        of_pixels = tail(by_step, row % kh * width * steps)
                        _add(columns, of_pixels, width * steps)
                quiet = -1
                for x in range(windows):
                    left = x * plan[PLAN.column_stride] - plan[PLAN.left]
                    start, right = max(left, 0), min(left + kw, width)
                    own_order = tail(order, x * 4 * total)
                    own_when = tail(when, x * (total + 1))
                    n, twin[x] = np.intp(0), x
                    for row in range(first, bottom):
                        for column in range(start, right):
                            n += arrived[row % kh * width + column]
                    if n == 0:
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
                                own = tail(events, pixel * inputs)
                                n = _insert(own, arrived[pixel], tap, n, ordered)
                        _merge(pulses, plan[PLAN.pulses], n, ordered)
                        n += plan[PLAN.pulses]
                        _list_one_by_one(ordered, n, steps, lanes, own_order, own_when)
                        listed[x] = n * 8 + 1
                        from_0 = n > 0 and _step(ordered[0]) == 0
                    else:
                        copy(window_count, pulse_count, steps)
                        for column in range(start, right):
                            _add(window_count, tail(columns, column * steps), steps)
                        n += plan[PLAN.pulses]
                        groups, shift = _lay_out(
                            window_count, n, steps, peaks, own_when, place
                        )
                        if shift:  # a row of zeros fills up what is not full
                            fill(own_order, groups << shift, total * lanes)
                        for row in range(first, bottom):
                            for column in range(start, right):
                                pixel = row % kh * width + column
                                tap = ((row - top) * kw + column - left) * inputs
                                own = tail(events, pixel * inputs)
                                _place(
                                    own, arrived[pixel], tap, lanes, place, own_order
                                )
                        _place(
                            pulses,
                            plan[PLAN.pulses],
                            np.intp(0),
                            lanes,
                            place,
                            own_order,
                        )
                        listed[x] = groups * 8 + (1 << shift)
                        from_0 = window_count[0] > 0
                    fill(tail(spike, x * padded), padded, steps)
                    if peaks:
                        # V(0) = 0 counts as a peak where nothing arrives at t = 0.
                        fill(
                            tail(potential, x * padded),
                            padded,
                            -np.inf if from_0 else 0,
                        )
                        fill(tail(until, x * padded), padded, 0)
                neurons = spike, potential, until
                integrate(plan, windows, of_row, weights, *neurons)
                for x in range(windows):
                    own, same = x * padded, twin[x] * padded
                    if own != same:
                        copy(tail(spike, own), tail(spike, same), padded)
                        if peaks:
                            copy(tail(potential, own), tail(potential, same), padded)
                            copy(tail(until, own), tail(until, same), padded)
                    member = y % pool_rows * pool_columns + x % pool_columns
                    to = (b * out_height + y // pool_rows) * out_width
                    to = (to + x // pool_columns) * outputs
                    if kinds and listed[x] >> 3:
                        count(plan, tail(spike, own), counts)
                    if member == 0:
                        copy(tail(spike_times, to), tail(spike, own), outputs)
                        if peaks:
                            of_peak = tail(potential, own)
                            copy(tail(out_potential, to), of_peak, outputs)
                            copy(tail(out_until, to), tail(until, own), outputs)
                        if members > 1:
                            fill(tail(out_member, to), outputs, 0)
                    elif listed[x] >> 3:
                        for o in range(outputs):
                            if spike[own + o] < spike_times[to + o]:
                                spike_times[to + o] = spike[own + o]
                                out_member[to + o] = member
                                if peaks:
                                    out_potential[to + o] = potential[own + o]
                                    out_until[to + o] = until[own + o]
                    if kinds > 1 and member == members - 1:
                        for o in range(to, to + outputs):
                            if spike_times[o] < steps:
                                counts[steps + np.intp(spike_times[o])] += 1
            own = (b * plan[PLAN.row_parts] + row_part) * kinds * steps
            copy(tail(all_counts, own), counts, kinds * steps)

    @njit(**OPTIONS)
    def counts_of(plan, phase):
        in_turn = plan[PLAN.image_parts] * plan[PLAN.row_parts]
        return plan[PLAN.networks] * in_turn if phase == 0 else 0

    return counts_of, part, memory


def _teaching(kind, lanes):
    """Compiles what some neurons with an error teach `lanes` rows of their window."""

    @njit(**OPTIONS)
    def teach(lesson, kernel, block, rule, times, t_at, d_times, d_at):
        neurons, deltas, limits, first, last = lesson
        (weights, d_weights), (steps, silent_inputs) = kernel, rule
        t = load(times, t_at, lanes)
        zero = splat(kind(0), lanes)
        total = zero
        if silent_inputs:
            silent = t >= kind(steps)
            for k in range(first, last):
                at = block + neurons[k] * lanes
                heard = t <= limits[k]
                worth = select(heard, deltas[k], zero)
                store(d_weights, at, load(d_weights, at, lanes) - worth)
                worth = select(heard | silent, deltas[k], zero)
                total = multiply_add(worth, load(weights, at, lanes), total)
        elif some(t <= kind(steps - 1)):
            for k in range(first, last):
                at = block + neurons[k] * lanes
                worth = select(t <= limits[k], deltas[k], zero)
                store(d_weights, at, load(d_weights, at, lanes) - worth)
                total = multiply_add(worth, load(weights, at, lanes), total)
        else:
            return
        store(d_times, d_at, load(d_times, d_at, lanes) + total)

    return teach


def _backward(kind):
    """What `calls.handler` asks for, of spike times of a scalar type."""
    size_of = np.dtype(kind).itemsize
    teach = _by_lanes(kind, _teaching)

    @njit(**OPTIONS)
    def lessons(plan, until, delta, member, b, found, begins, neurons, deltas, limits):
        """Who has an error, from entry `found` on, window by window: window w is
        begins[w] … begins[w+1].

        Windows are those of places in row order, members of a place in turn.
        """
        places = plan[PLAN.out_height] * plan[PLAN.out_width]
        outputs = plan[PLAN.outputs]
        members = plan[PLAN.pool_rows] * plan[PLAN.pool_columns]
        last = kind(plan[PLAN.steps] - 1)
        for place in range(places):
            start = (b * places + place) * outputs
            for index in range(members):
                begins[place * members + index] = found
                for j in range(outputs):
                    at = start + j
                    neurons[found] = j
                    deltas[found] = delta[at]
                    limits[found] = min(until[at], last)
                    own = members == 1 or member[at] == kind(index)
                    found += np.intp(own and delta[at] != 0)
        begins[places * members] = found

    @njit(**OPTIONS)
    def pulse_lessons(plan, first, last, neurons, deltas, limits, bins):
        """bins[c, j] −= δ of neurons j that heard c reference spikes."""
        for k in range(first, last):
            count = pulses_before(
                np.intp(limits[k]) + 1, plan[PLAN.pulses], plan[PLAN.steps]
            )
            bins[count * plan[PLAN.outputs] + neurons[k]] -= deltas[k]

    @njit(**OPTIONS)
    def part_bytes(plan):
        """Of a part's sums: those of the weights, behind them the bins of pulses."""
        lanes = plan[PLAN.lanes]
        size = plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs]
        padded = (size + lanes - 1) // lanes * lanes
        bins = plan[PLAN.pulses] + 1 if plan[PLAN.pulses] else 0
        return room((padded + bins) * plan[PLAN.outputs], size_of)

    @njit(**OPTIONS)
    def together(plan):
        """Images that learn block by block: a dense layer's weights, which no cache
        holds, pass once for all of a part."""
        dense = plan[PLAN.out_height] * plan[PLAN.out_width] == 1
        parts, images = plan[PLAN.image_parts], plan[PLAN.images]
        return (images + parts - 1) // parts if dense else np.intp(1)

    @njit(**OPTIONS)
    def memory(plan, at):
        """What a thread needs for itself, and the address behind it."""
        places, lanes = plan[PLAN.out_height] * plan[PLAN.out_width], plan[PLAN.lanes]
        windows = places * plan[PLAN.pool_rows] * plan[PLAN.pool_columns]
        taught = places * plan[PLAN.outputs] + 1
        size = plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs]
        padded = (size + lanes - 1) // lanes * lanes
        images = together(plan)
        begins, at = taken(at, images * (windows + 1), np.intp, 8)
        neurons, at = taken(at, images * taught, np.intp, 8)
        deltas, at = taken(at, images * taught, kind, size_of)
        limits, at = taken(at, images * taught, kind, size_of)
        t_window, at = taken(at, padded, kind, size_of)
        d_window, at = taken(at, padded, kind, size_of)
        return begins, (neurons, deltas, limits), t_window, d_window, at

    @njit(**OPTIONS)
    def gradients(frame, plan, index, scratch, partial):
        """∂E/∂t, and ∂E/∂w summed, of some images."""
        height, width, inputs = plan[PLAN.height], plan[PLAN.width], plan[PLAN.inputs]
        out_height, out_width = plan[PLAN.out_height], plan[PLAN.out_width]
        outputs, kh, kw = plan[PLAN.outputs], plan[PLAN.rows], plan[PLAN.columns]
        pool_rows, pool_columns = plan[PLAN.pool_rows], plan[PLAN.pool_columns]
        steps, lanes = plan[PLAN.steps], plan[PLAN.lanes]
        members = pool_rows * pool_columns
        windows = out_height * out_width * members
        size = kh * kw * inputs
        padded = (size + lanes - 1) // lanes * lanes
        image = height * width * inputs
        d_weights = array_at(partial + index * part_bytes(plan), kind)
        network, index = divmod(index, plan[PLAN.image_parts])
        times = array_at(operand(frame, plan, 0, network), kind)
        weights = array_at(operand(frame, plan, 1, network), kind)
        until = array_at(operand(frame, plan, 2, network), kind)
        delta = array_at(operand(frame, plan, 3, network), kind)
        member = array_at(operand(frame, plan, 4, network), kind)
        all_inputs = plan[PLAN.images] * image * size_of
        d_times = array_at(result(frame, 0) + network * all_inputs, kind)
        bins, pulses = tail(d_weights, padded * outputs), plan[PLAN.pulses]
        begins, learners, t_window, d_window, _ = memory(plan, scratch)
        pair, rule = (weights, d_weights), (steps, plan[PLAN.flag] != 0)

        by_tap = inputs % lanes == 0  # a block is of one pixel: taken where it lies
        chunks = inputs // lanes if by_tap else 1
        fill(d_weights, padded * outputs, 0)
        if pulses:
            fill(bins, (pulses + 1) * outputs, 0)
        first_image, last_image = span(index, plan[PLAN.image_parts], plan[PLAN.images])
        at_once, taught = together(plan), out_height * out_width * outputs + 1
        for group in range(first_image, last_image, at_once):
            images = min(at_once, last_image - group)
            for i in range(images):
                fill(tail(d_times, (group + i) * image), image, 0)
                own = i * taught, tail(begins, i * (windows + 1))
                lessons(plan, until, delta, member, group + i, *own, *learners)
                if pulses:
                    begin, end = own[1][0], own[1][windows]
                    pulse_lessons(plan, begin, end, *learners, bins)
            for task in range(chunks * windows * images):
                turn, i = divmod(task, images)
                chunk, window = divmod(turn, windows)
                b, own = group + i, tail(begins, i * (windows + 1) + window)
                if own[0] == own[1]:
                    continue
                lesson = *learners, own[0], own[1]
                place, index = divmod(window, members)
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
                            heard = times, at, d_times, at
                            teach(lanes, lesson, pair, block, rule, *heard)
                    continue
                fill(t_window, padded, steps)
                fill(d_window, padded, 0)
                for row in range(max(top, 0), min(top + kh, height)):
                    tap = (row - top) * kw + first - left
                    at = ((b * height + row) * width + first) * inputs
                    to = tail(t_window, tap * inputs)
                    copy(to, tail(times, at), (last - first) * inputs)
                for block in range(0, padded, lanes):
                    heard = t_window, block, d_window, block
                    teach(lanes, lesson, pair, block * outputs, rule, *heard)
                for row in range(max(top, 0), min(top + kh, height)):
                    tap = (row - top) * kw + first - left
                    at = ((b * height + row) * width + first) * inputs
                    learnt = tail(d_window, tap * inputs)
                    _add(tail(d_times, at), learnt, (last - first) * inputs)

    @njit(**OPTIONS)
    def collect(frame, plan, index, scratch, partial):
        """Sums the parts in their order, for some blocks of the weights; the first
        part of this phase sums what pulses learn."""
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
            bins = tail(d_weights, blocks * lanes * outputs)
            for k in range(1, plan[PLAN.image_parts]):
                _add(bins, tail(bins, k * stride), (pulses + 1) * outputs)
            # A neuron that heard c of them heard pulses 0 … c − 1.
            for p in range(pulses - 1, -1, -1):
                of_pulse = tail(d_pulses, p * outputs)
                copy(of_pulse, tail(bins, (p + 1) * outputs), outputs)
                if p + 1 < pulses:
                    _add(of_pulse, tail(of_pulse, outputs), outputs)
        of_kernel = network * size * outputs * size_of
        d_kernel = array_at(result(frame, 1) + of_kernel, kind)
        sums = array_at(scratch, kind)
        first, last = span(index, min(blocks, _COLLECTED), blocks)
        for block in range(first, last):
            for j in range(outputs):
                at = (block * outputs + j) * lanes
                copy(sums, tail(d_weights, at), lanes)
                for k in range(1, plan[PLAN.image_parts]):
                    _add(sums, tail(d_weights, at + k * stride), lanes)
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
    made = _forward(kind) if kernel == "forward" else _backward(kind)
    return handler(cell, *made)
