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
    nothing_shared,
    nothing_to_prepare,
    result,
    room,
    span,
)
from ds4nn_jax._engines.lanes import (
    add_int,
    array_at,
    as_float,
    bits,
    least,
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
def _read_pixel(times, inputs, steps, events):
    """Writes the events of a pixel in channel order; their number."""
    found = np.intp(0)
    for i in range(inputs):
        t = times[i]
        events[found] = _event(np.int64(t), i)
        found += np.intp((t >= 0) & (t < steps))
    return found


@njit(**OPTIONS)
def _add(sums, terms, size):
    for k in range(size):
        sums[k] += terms[k]


@njit(**OPTIONS)
def _read_row(times, width, inputs, steps, events, arrived, by_step, counting):
    """Events of a row of pixels and, where they are to be counted, how many by step."""
    for x in range(width):
        own = tail(events, x * inputs)
        n = _read_pixel(tail(times, x * inputs), inputs, steps, own)
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
    pairs, fours = _groups(count, steps, 1), _groups(count, steps, 2)
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


@njit(**OPTIONS)
def _results_of(plan):
    """Which results of a forward pass hold members and counts, if there are any."""
    members = 1 + 2 * (plan[PLAN.flag] != 0)
    pooled = plan[PLAN.pool_rows] * plan[PLAN.pool_columns] > 1
    return members, members + np.intp(pooled)


def _first_spikes(lanes, slots, kind):
    """Compiles the integration of a window's events by `lanes` neurons."""

    @njit(**OPTIONS)
    def integrate(
        order, when, groups, weights, block, threshold, steps, filled, spike, at
    ):
        """spike[at:] = the first step with V ≥ θ, or T.

        order: offsets of weight rows, `slots` for each group, filled up with zero rows.
        when: the step that ends with a group, T where its step goes on.
        """
        silent = kind(steps)
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
            first = least(first, fires)
            if group % _LOOKS == 0 and not some(first == silent):
                break
        store(spike, at, first)

    return integrate


def _highest_potentials(lanes, slots, kind):
    """As `_first_spikes`, with the highest potential up to the spike and its step."""

    @njit(**OPTIONS)
    def integrate(
        order,
        when,
        groups,
        weights,
        block,
        threshold,
        steps,
        filled,
        spike,
        potential,
        until,
        at,
    ):
        silent = kind(steps)
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


def _by_slots(compiled, lanes, kind):
    """Compiles an integration for groups of one, two and four events."""
    one, two, four = (compiled(lanes, slots, kind) for slots in (1, 2, 4))

    @njit(**OPTIONS)
    def integrate(slots, *arguments):
        if slots == 1:
            one(*arguments)
        elif slots == 2:
            two(*arguments)
        else:
            four(*arguments)

    return integrate


def _counting(lanes, kind):
    """Compiles the counting of the spikes of `lanes` neurons."""

    @njit(**OPTIONS)
    def count(spike, filled, steps, counts):
        """counts[t] += spikes of step t of the first `filled` lanes."""
        one = np.uint64(1)
        fired = load(spike, 0, lanes) < kind(steps)
        left = bits(fired, 0)
        if filled < lanes:  # idle lanes look as if they had fired
            left &= (one << np.uint64(filled)) - one
        while left:
            counts[np.intp(spike[np.intp(trailing_zeros(left))])] += 1
            left &= left - one

    return count


def _forward(kind):
    """What `calls.handler` asks for, of spike times of a scalar type."""
    (wide, narrow), size_of = LANES[np.dtype(kind).name], np.dtype(kind).itemsize
    first_wide, first_narrow = (
        _by_slots(_first_spikes, w, kind) for w in (wide, narrow)
    )
    highest_wide, highest_narrow = (
        _by_slots(_highest_potentials, width, kind) for width in (wide, narrow)
    )
    count_wide, count_narrow = _counting(wide, kind), _counting(narrow, kind)

    @njit(**OPTIONS)
    def integrate(
        plan, windows, listed, order, when, weights, threshold, spike, potential, until
    ):
        """All neurons of a row of windows, block by block: the weights of a block stay
        near while the events of all windows stream past."""
        lanes, outputs, steps = plan[PLAN.lanes], plan[PLAN.outputs], plan[PLAN.steps]
        size = plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs]
        padded = (outputs + lanes - 1) // lanes * lanes
        start = 0
        for block in range(0, outputs, lanes):
            filled = min(lanes, outputs - block)
            for x in range(windows):
                groups, slots = listed[x] >> 3, listed[x] & 7
                if groups == 0:
                    continue
                events = tail(order, x * 4 * size), tail(when, x * (size + 1)), groups
                neurons = weights, start, threshold, steps, filled, spike
                at = x * padded + block
                if plan[PLAN.flag]:
                    if lanes == wide:
                        highest_wide(slots, *events, *neurons, potential, until, at)
                    else:
                        highest_narrow(slots, *events, *neurons, potential, until, at)
                elif lanes == wide:
                    first_wide(slots, *events, *neurons, at)
                else:
                    first_narrow(slots, *events, *neurons, at)
            start += (size + 1) * lanes

    @njit(**OPTIONS)
    def count(plan, spike, counts):
        lanes = plan[PLAN.lanes]
        for block in range(0, plan[PLAN.outputs], lanes):
            filled = min(lanes, plan[PLAN.outputs] - block)
            if lanes == wide:
                count_wide(tail(spike, block), filled, plan[PLAN.steps], counts)
            else:
                count_narrow(tail(spike, block), filled, plan[PLAN.steps], counts)

    @njit(**OPTIONS)
    def part(frame, plan, phase, index, scratch, shared):
        """Windows of some rows of some images."""
        height, width, inputs = plan[PLAN.height], plan[PLAN.width], plan[PLAN.inputs]
        out_height, out_width = plan[PLAN.out_height], plan[PLAN.out_width]
        outputs, kh, kw = plan[PLAN.outputs], plan[PLAN.rows], plan[PLAN.columns]
        pool_rows, pool_columns = plan[PLAN.pool_rows], plan[PLAN.pool_columns]
        steps, lanes, peaks = plan[PLAN.steps], plan[PLAN.lanes], plan[PLAN.flag] != 0
        kinds, threshold = plan[PLAN.counts], kind(as_float(plan[PLAN.threshold]))
        members, windows = pool_rows * pool_columns, out_width * pool_columns
        size = kh * kw * inputs
        padded = (outputs + lanes - 1) // lanes * lanes
        small = size <= _SMALL

        times = array_at(argument(frame, 0), kind)
        weights = array_at(argument(frame, 1), kind)
        spike_times = array_at(result(frame, 0), kind)
        out_potential, out_until, out_member = spike_times, spike_times, spike_times
        if peaks:
            out_potential = array_at(result(frame, 1), kind)
            out_until = array_at(result(frame, 2), kind)
        if members > 1:
            out_member = array_at(result(frame, _results_of(plan)[0]), kind)
        all_counts = result(frame, _results_of(plan)[1]) if kinds else 0

        at = scratch
        events = array_at(at, np.uint64)
        at += room(kh * width * inputs + 1, 8)
        arrived = array_at(at, np.intp)
        at += room(kh * width, 8)
        by_step = array_at(at, np.int32)  # events of a pixel
        at += room(kh * width * steps, 4)
        columns = array_at(at, np.int32)  # their sums over the rows of a window
        at += room(width * steps, 4)
        window_count = array_at(at, np.int32)
        at += room(steps, 4)
        place = array_at(at, np.intp)
        at += room(steps, 8)
        ordered = array_at(at, np.uint64)
        at += room(size + 1, 8)
        counts = array_at(at, np.intp)
        at += room(2 * steps, 8)
        listed = array_at(at, np.intp)  # groups of a window · 8 + events of a group
        at += room(windows, 8)
        order = array_at(at, np.uint32)
        at += room(windows * 4 * size, 4)
        when = array_at(at, kind)
        at += room(windows * (size + 1), size_of)
        spike = array_at(at, kind)
        at += room(windows * padded, size_of)
        potential = array_at(at, kind)
        at += room(windows * padded, size_of)
        until = array_at(at, kind)

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
                    _read_row(
                        tail(times, pixel),
                        width,
                        inputs,
                        steps,
                        tail(events, slot * inputs),
                        tail(arrived, slot),
                        tail(by_step, slot * steps),
                        not small,
                    )
                read = max(read, bottom)
                if not small:
                    fill(columns, width * steps, 0)
                    for row in range(first, bottom):
                        of_row = tail(by_step, row % kh * width * steps)
                        _add(columns, of_row, width * steps)
                for x in range(windows):
                    left = x * plan[PLAN.column_stride] - plan[PLAN.left]
                    start, right = max(left, 0), min(left + kw, width)
                    own_order = tail(order, x * 4 * size)
                    own_when = tail(when, x * (size + 1))
                    if small:
                        n = 0
                        for row in range(first, bottom):
                            for column in range(start, right):
                                pixel = row % kh * width + column
                                tap = ((row - top) * kw + column - left) * inputs
                                own = tail(events, pixel * inputs)
                                n = _insert(own, arrived[pixel], tap, n, ordered)
                        _list_one_by_one(ordered, n, steps, lanes, own_order, own_when)
                        listed[x] = n * 8 + 1
                        from_0 = n > 0 and _step(ordered[0]) == 0
                    else:
                        fill(window_count, steps, 0)
                        n = 0
                        for column in range(start, right):
                            _add(window_count, tail(columns, column * steps), steps)
                            for row in range(first, bottom):
                                n += arrived[row % kh * width + column]
                        groups, shift = _lay_out(
                            window_count, n, steps, peaks, own_when, place
                        )
                        if shift:  # a row of zeros fills up what is not full
                            fill(own_order, groups << shift, size * lanes)
                        for row in range(first, bottom):
                            for column in range(start, right):
                                pixel = row % kh * width + column
                                tap = ((row - top) * kw + column - left) * inputs
                                own = tail(events, pixel * inputs)
                                _place(
                                    own, arrived[pixel], tap, lanes, place, own_order
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
                neurons = weights, threshold, spike, potential, until
                integrate(plan, windows, listed, order, when, *neurons)
                for x in range(windows):
                    own = x * padded
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
            for row in range(kinds):
                for t in range(steps):
                    n = counts[row * steps + t]
                    if n:
                        add_int(all_counts + 4 * ((b * kinds + row) * steps + t), n)

    @njit(**OPTIONS)
    def scratch_bytes(plan):
        kh, width, inputs, steps = (
            plan[PLAN.rows],
            plan[PLAN.width],
            plan[PLAN.inputs],
            plan[PLAN.steps],
        )
        windows = plan[PLAN.out_width] * plan[PLAN.pool_columns]
        size = kh * plan[PLAN.columns] * inputs
        padded = plan[PLAN.outputs] + plan[PLAN.lanes]
        words = kh * width * (inputs + 1) + 1 + steps + size + 1 + 2 * steps + windows
        ints = (kh + 1) * width * steps + steps + windows * 4 * size
        return (
            20 * 64 + 8 * words + 4 * ints + size_of * windows * (size + 1 + 3 * padded)
        )

    @njit(**OPTIONS)
    def prepare(frame, plan):
        """Counts start from zero: parts of an image add to them."""
        if plan[PLAN.counts]:
            total = plan[PLAN.images] * plan[PLAN.counts] * plan[PLAN.steps]
            counts = array_at(result(frame, _results_of(plan)[1]), np.int32)
            fill(counts, total, 0)

    @njit(**OPTIONS)
    def counts_of(plan, phase):
        return plan[PLAN.image_parts] * plan[PLAN.row_parts] if phase == 0 else 0

    return prepare, counts_of, part, scratch_bytes, nothing_shared


def _teaching(lanes, kind):
    """Compiles what some neurons with an error teach `lanes` rows of their window."""

    @njit(**OPTIONS)
    def teach(
        neurons,
        deltas,
        limits,
        first,
        last,
        times,
        t_at,
        weights,
        d_weights,
        block,
        steps,
        silent_inputs,
        d_times,
        d_at,
    ):
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


def _summing(lanes):
    """Compiles the sum of what the parts of a batch teach one block's neuron."""

    @njit(**OPTIONS)
    def total(partial, at, parts, stride, out):
        sums = load(partial, at, lanes)
        for part in range(1, parts):
            sums = sums + load(partial, at + part * stride, lanes)
        store(out, 0, sums)

    return total


def _backward(kind):
    """What `calls.handler` asks for, of spike times of a scalar type."""
    (wide, narrow), size_of = LANES[np.dtype(kind).name], np.dtype(kind).itemsize
    teach_wide, teach_narrow = _teaching(wide, kind), _teaching(narrow, kind)
    total_wide, total_narrow = _summing(wide), _summing(narrow)

    @njit(**OPTIONS)
    def teach(lanes, *arguments):
        if lanes == wide:
            teach_wide(*arguments)
        else:
            teach_narrow(*arguments)

    @njit(**OPTIONS)
    def lessons(plan, until, delta, member, b, begins, neurons, deltas, limits):
        """Who has an error, window by window: window w is begins[w] … begins[w+1].

        Windows are those of places in row order, members of a place in turn.
        """
        places, outputs = (
            plan[PLAN.out_height] * plan[PLAN.out_width],
            plan[PLAN.outputs],
        )
        members = plan[PLAN.pool_rows] * plan[PLAN.pool_columns]
        last = kind(plan[PLAN.steps] - 1)
        found = np.intp(0)
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
    def gradients(frame, plan, index, scratch, partial):
        """∂E/∂t, and ∂E/∂w summed, of some images."""
        height, width, inputs = plan[PLAN.height], plan[PLAN.width], plan[PLAN.inputs]
        out_height, out_width = plan[PLAN.out_height], plan[PLAN.out_width]
        outputs, kh, kw = plan[PLAN.outputs], plan[PLAN.rows], plan[PLAN.columns]
        pool_rows, pool_columns = plan[PLAN.pool_rows], plan[PLAN.pool_columns]
        steps, lanes, silent_inputs = (
            plan[PLAN.steps],
            plan[PLAN.lanes],
            plan[PLAN.flag] != 0,
        )
        members = pool_rows * pool_columns
        windows = out_height * out_width * members
        size = kh * kw * inputs
        padded = (size + lanes - 1) // lanes * lanes
        image = height * width * inputs
        times = array_at(argument(frame, 0), kind)
        weights = array_at(argument(frame, 1), kind)
        until = array_at(argument(frame, 2), kind)
        delta = array_at(argument(frame, 3), kind)
        member = array_at(argument(frame, 4), kind)
        d_times = array_at(result(frame, 0), kind)
        mine = partial + index * room(padded * outputs, size_of)
        d_weights = array_at(mine, kind)
        at = scratch
        begins = array_at(at, np.intp)
        at += room(windows + 1, 8)
        taught = windows // members * outputs + 1
        neurons = array_at(at, np.intp)
        at += room(taught, 8)
        deltas = array_at(at, kind)
        at += room(taught, size_of)
        limits = array_at(at, kind)
        at += room(taught, size_of)
        t_window = array_at(at, kind)
        at += room(padded, size_of)
        d_window = array_at(at, kind)

        by_tap = inputs % lanes == 0  # a block is of one pixel: taken where it lies
        chunks = inputs // lanes if by_tap else 1
        fill(d_weights, padded * outputs, 0)
        first_image, last_image = span(index, plan[PLAN.image_parts], plan[PLAN.images])
        for b in range(first_image, last_image):
            fill(tail(d_times, b * image), image, 0)
            lessons(plan, until, delta, member, b, begins, neurons, deltas, limits)
            for chunk in range(chunks):
                for window in range(windows):
                    begin, end = begins[window], begins[window + 1]
                    if begin == end:
                        continue
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
                                teach(
                                    lanes,
                                    neurons,
                                    deltas,
                                    limits,
                                    begin,
                                    end,
                                    times,
                                    at,
                                    weights,
                                    d_weights,
                                    block,
                                    steps,
                                    silent_inputs,
                                    d_times,
                                    at,
                                )
                        continue
                    fill(t_window, padded, steps)
                    fill(d_window, padded, 0)
                    for row in range(max(top, 0), min(top + kh, height)):
                        tap = (row - top) * kw + first - left
                        at = ((b * height + row) * width + first) * inputs
                        heard = tail(t_window, tap * inputs)
                        copy(heard, tail(times, at), (last - first) * inputs)
                    for block in range(0, padded, lanes):
                        teach(
                            lanes,
                            neurons,
                            deltas,
                            limits,
                            begin,
                            end,
                            t_window,
                            block,
                            weights,
                            d_weights,
                            block * outputs,
                            steps,
                            silent_inputs,
                            d_window,
                            block,
                        )
                    for row in range(max(top, 0), min(top + kh, height)):
                        tap = (row - top) * kw + first - left
                        at = ((b * height + row) * width + first) * inputs
                        learnt = tail(d_window, tap * inputs)
                        _add(tail(d_times, at), learnt, (last - first) * inputs)

    @njit(**OPTIONS)
    def collect(frame, plan, index, scratch, partial):
        """Sums the parts in their order, for some blocks of the weights."""
        outputs, lanes, parts = (
            plan[PLAN.outputs],
            plan[PLAN.lanes],
            plan[PLAN.image_parts],
        )
        size = plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs]
        blocks = (size + lanes - 1) // lanes
        stride = room(blocks * lanes * outputs, size_of) // size_of
        d_weights = array_at(partial, kind)
        d_kernel = array_at(result(frame, 1), kind)
        sums = array_at(scratch, kind)
        first, last = span(index, min(blocks, _COLLECTED), blocks)
        for block in range(first, last):
            for j in range(outputs):
                at = (block * outputs + j) * lanes
                if lanes == wide:
                    total_wide(d_weights, at, parts, stride, sums)
                else:
                    total_narrow(d_weights, at, parts, stride, sums)
                for k in range(min(lanes, size - block * lanes)):
                    d_kernel[(block * lanes + k) * outputs + j] = sums[k]

    @njit(**OPTIONS)
    def counts_of(plan, phase):
        size = plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs]
        if phase == 0:
            return plan[PLAN.image_parts]
        blocks = (size + plan[PLAN.lanes] - 1) // plan[PLAN.lanes]
        return min(blocks, _COLLECTED) if phase == 1 else 0

    @njit(**OPTIONS)
    def part(frame, plan, phase, index, scratch, shared):
        if phase == 0:
            gradients(frame, plan, index, scratch, shared)
        else:
            collect(frame, plan, index, scratch, shared)

    @njit(**OPTIONS)
    def scratch_bytes(plan):
        places = plan[PLAN.out_height] * plan[PLAN.out_width]
        windows = places * plan[PLAN.pool_rows] * plan[PLAN.pool_columns]
        taught = places * plan[PLAN.outputs] + 1
        padded = (
            plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs] + plan[PLAN.lanes]
        )
        words = windows + 1 + taught
        return 8 * 64 + 8 * words + size_of * (2 * taught + 2 * padded)

    @njit(**OPTIONS)
    def shared_bytes(plan):
        size = plan[PLAN.rows] * plan[PLAN.columns] * plan[PLAN.inputs]
        padded = (size + plan[PLAN.lanes] - 1) // plan[PLAN.lanes] * plan[PLAN.lanes]
        return plan[PLAN.image_parts] * room(padded * plan[PLAN.outputs], size_of)

    return nothing_to_prepare, counts_of, part, scratch_bytes, shared_bytes


def entry(kernel, kind, cell, version):
    """The function that XLA calls for "forward" or "backward", to be compiled.

    See `calls.handler` for `cell` and `version`.
    """
    made = _forward(kind) if kernel == "forward" else _backward(kind)
    return handler(cell, version, *made)
