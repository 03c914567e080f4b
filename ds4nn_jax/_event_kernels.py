"""The loops of the event engine, compiled by numba. Not imported without need.

A dense layer is a 1×1 convolution of a 1×1 image. Axes: B batch, H W image, I inputs,
O outputs, T steps, K = kh·kw·I rows of a window. A block is `lanes` of O (forward) or
of K (backward). Which thread computes a part never changes a result.
"""

import numpy as np
from numba import njit

from ds4nn_jax._event_calls import (
    OPTIONS,
    argument,
    handler,
    result,
    room,
    span,
)
from ds4nn_jax._event_lanes import (
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
    trailing_zeros,
)

FIELDS = (
    "images height width inputs out_height out_width outputs rows columns "
    "row_stride column_stride top left pool_rows pool_columns steps threshold "
    "lanes image_parts row_parts flag counts"
).split()  # words of a plan; out_height, out_width are those behind the pooling
(
    _IMAGES,
    _HEIGHT,
    _WIDTH,
    _INPUTS,
    _OUT_HEIGHT,
    _OUT_WIDTH,
    _OUTPUTS,
    _ROWS,
    _COLUMNS,
    _ROW_STRIDE,
    _COLUMN_STRIDE,
    _TOP,
    _LEFT,
    _POOL_ROWS,
    _POOL_COLUMNS,
    _STEPS,
    _THRESHOLD,
    _LANES,
    _IMAGE_PARTS,
    _ROW_PARTS,
    _FLAG,  # forward: peaks are asked for; backward: silent inputs take part
    _COUNTS,  # rows of spike counts asked for: 0, 1 or, with those of pooling, 2
) = range(len(FIELDS))

LANES = {"float32": (32, 16), "float64": (16, 8)}  # wide, narrow
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
def _read_pixel(times, first, inputs, steps, events, at):
    """Writes the events of a pixel in channel order to events[at:]; their number."""
    found = at
    for i in range(inputs):
        t = times[first + i]
        events[found] = _event(np.int64(t), i)
        found += np.intp((t >= 0) & (t < steps))
    return found - at


@njit(**OPTIONS)
def _fill(array, at, size, value):
    for k in range(size):
        array[at + k] = value


@njit(**OPTIONS)
def _add(sums, at, terms, of, size):
    for k in range(size):
        sums[at + k] += terms[of + k]


@njit(**OPTIONS)
def _groups(count, steps, shift):
    """How many groups of 2**shift events, none of two steps."""
    total, rest = np.int32(0), np.int32((1 << shift) - 1)
    for t in range(steps):
        total += (count[t] + rest) >> np.int32(shift)
    return np.intp(total)


@njit(**OPTIONS)
def _open_groups(count, steps, shift, when, place):
    """Lays out the groups of every step, in order.

    place[t] is where the events of step t go, when[g] the step that ends with group g,
    or T (silence) where its step goes on. when[0] is spare: groups count from 1.
    """
    found, rest = np.intp(0), (1 << shift) - 1
    for t in range(steps):
        place[t] = found << shift
        n = (np.intp(count[t]) + rest) >> shift
        found += n
        when[found if n > 0 else 0] = t


def _first_spikes(lanes, kind):
    """Compiles the integration of a window's events by `lanes` neurons."""

    @njit(**OPTIONS)
    def integrate(
        order, when, groups, slots, weights, block, threshold, steps, filled, spike, at
    ):
        """spike[at:] = the first step with V ≥ θ, or T.

        order: offsets of weight rows, `slots` for each group, filled up with zero rows.
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


def _highest_potentials(lanes, kind):
    """As `_first_spikes`, with the highest potential up to the spike and its step."""

    @njit(**OPTIONS)
    def integrate(
        order,
        when,
        groups,
        slots,
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


def _counting(lanes, kind):
    """Compiles the counting of the spikes of `lanes` neurons."""

    @njit(**OPTIONS)
    def count(spike, at, filled, steps, counts, row):
        """counts[row + t] += spikes of step t of the first `filled` lanes."""
        one = np.uint64(1)
        fired = load(spike, at, lanes) < kind(steps)
        left = bits(fired, 0)
        if filled < lanes:  # idle lanes look as if they had fired
            left &= (one << np.uint64(filled)) - one
        while left:
            counts[row + np.intp(spike[at + np.intp(trailing_zeros(left))])] += 1
            left &= left - one

    return count


def _moving(lanes):
    """Compiles what writes a block to an array without idle lanes."""

    @njit(**OPTIONS)
    def move(values, at, filled, array, to):
        if filled == lanes:
            store(array, to, load(values, at, lanes))
        else:
            for k in range(filled):
                array[to + k] = values[at + k]

    return move


def _forward(kind):
    """What `_event_calls.handler` asks for, of spike times of the scalar type `kind`."""
    (wide, narrow), size_of = LANES[np.dtype(kind).name], np.dtype(kind).itemsize
    first_wide, first_narrow = _first_spikes(wide, kind), _first_spikes(narrow, kind)
    highest_wide, highest_narrow = (
        _highest_potentials(width, kind) for width in (wide, narrow)
    )
    count_wide, count_narrow = _counting(wide, kind), _counting(narrow, kind)
    move_wide, move_narrow = _moving(wide), _moving(narrow)

    @njit(**OPTIONS)
    def integrate(
        order, when, groups, slots, weights, plan, threshold, spike, potential, until
    ):
        """All neurons of a window."""
        lanes, outputs, steps = plan[_LANES], plan[_OUTPUTS], plan[_STEPS]
        block_size = (plan[_ROWS] * plan[_COLUMNS] * plan[_INPUTS] + 1) * lanes
        start = 0
        for at in range(0, outputs, lanes):
            filled = min(lanes, outputs - at)
            if plan[_FLAG]:
                arguments = order, when, groups, slots, weights, start, threshold, steps
                behind = filled, spike, potential, until, at
                if lanes == wide:
                    highest_wide(*arguments, *behind)
                else:
                    highest_narrow(*arguments, *behind)
            else:
                arguments = order, when, groups, slots, weights, start, threshold, steps
                if lanes == wide:
                    first_wide(*arguments, filled, spike, at)
                else:
                    first_narrow(*arguments, filled, spike, at)
            start += block_size

    @njit(**OPTIONS)
    def count(plan, spike, at, counts, row):
        lanes = plan[_LANES]
        for block in range(0, plan[_OUTPUTS], lanes):
            filled = min(lanes, plan[_OUTPUTS] - block)
            if lanes == wide:
                count_wide(spike, at + block, filled, plan[_STEPS], counts, row)
            else:
                count_narrow(spike, at + block, filled, plan[_STEPS], counts, row)

    @njit(**OPTIONS)
    def move(plan, values, array, to):
        lanes = plan[_LANES]
        for block in range(0, plan[_OUTPUTS], lanes):
            filled = min(lanes, plan[_OUTPUTS] - block)
            if lanes == wide:
                move_wide(values, block, filled, array, to + block)
            else:
                move_narrow(values, block, filled, array, to + block)

    @njit(**OPTIONS)
    def part(frame, plan, phase, index, scratch, shared):
        """Windows of some rows of some images."""
        height, width, inputs = plan[_HEIGHT], plan[_WIDTH], plan[_INPUTS]
        out_height, out_width = plan[_OUT_HEIGHT], plan[_OUT_WIDTH]
        outputs, kh, kw = plan[_OUTPUTS], plan[_ROWS], plan[_COLUMNS]
        pool_rows, pool_columns = plan[_POOL_ROWS], plan[_POOL_COLUMNS]
        steps, lanes, peaks = plan[_STEPS], plan[_LANES], plan[_FLAG] != 0
        kinds, threshold = plan[_COUNTS], kind(as_float(plan[_THRESHOLD]))
        members = pool_rows * pool_columns
        size = kh * kw * inputs
        zero_row = np.uint32(size * lanes)
        padded = (outputs + lanes - 1) // lanes * lanes
        small = size <= _SMALL

        times = array_at(argument(frame, 0), kind)
        weights = array_at(argument(frame, 1), kind)
        neurons = plan[_IMAGES] * out_height * out_width * outputs
        out = 0
        spike_times = array_at(result(frame, out), kind)
        out_potential, out_until, out_member = spike_times, spike_times, spike_times
        if peaks:
            out_potential = array_at(result(frame, 1), kind)
            out_until = array_at(result(frame, 2), kind)
            out = 2
        if members > 1:
            out += 1
            out_member = array_at(result(frame, out), kind)
        all_counts = result(frame, out + 1) if kinds else 0

        at = scratch
        slot = width * inputs
        events = array_at(at, np.uint64)
        at += room(kh * slot + 1, 8)
        arrived = array_at(at, np.intp)
        at += room(kh * width, 8)
        found_at = array_at(at, np.int32)  # events by step
        at += room(kh * width * steps, 4)
        columns = array_at(at, np.int32)  # their sums over the rows
        at += room(width * steps, 4)
        count_at = array_at(at, np.int32)
        at += room(steps, 4)
        place = array_at(at, np.intp)
        at += room(steps, 8)
        order = array_at(at, np.uint32)
        at += room(4 * size, 4)
        sorted_events = array_at(at, np.uint64)
        at += room(size + 1, 8)
        when = array_at(at, kind)
        at += room(size + 1, size_of)
        spike = array_at(at, kind)
        at += room(padded, size_of)
        potential = array_at(at, kind)
        at += room(padded, size_of)
        until = array_at(at, kind)
        at += room(padded, size_of)
        counts = array_at(at, np.intp)

        image_part, row_part = divmod(index, plan[_ROW_PARTS])
        first_image, last_image = span(image_part, plan[_IMAGE_PARTS], plan[_IMAGES])
        first_row, last_row = span(row_part, plan[_ROW_PARTS], out_height)
        for b in range(first_image, last_image):
            _fill(counts, 0, 2 * steps, 0)
            read = 0
            for y in range(first_row * pool_rows, last_row * pool_rows):
                top = y * plan[_ROW_STRIDE] - plan[_TOP]
                first, bottom = max(top, 0), min(top + kh, height)
                for row in range(max(read, first), bottom):
                    slot = row % kh * width
                    for x in range(width):
                        pixel = ((b * height + row) * width + x) * inputs
                        own = (slot + x) * inputs
                        n = _read_pixel(times, pixel, inputs, steps, events, own)
                        arrived[slot + x] = n
                        if not small:
                            by_step = (slot + x) * steps
                            _fill(found_at, by_step, steps, 0)
                            for k in range(own, own + n):
                                found_at[by_step + _step(events[k])] += 1
                read = max(read, bottom)
                if not small:
                    _fill(columns, 0, width * steps, 0)
                    for row in range(first, bottom):
                        by_row = row % kh * width * steps
                        _add(columns, 0, found_at, by_row, width * steps)
                for x in range(out_width * pool_columns):
                    left = x * plan[_COLUMN_STRIDE] - plan[_LEFT]
                    start, right = max(left, 0), min(left + kw, width)
                    member = y % pool_rows * pool_columns + x % pool_columns
                    # The window's events in groups, in the order of their steps.
                    groups, slots = 0, 1
                    begins_at_0 = False
                    if small:
                        n = 0
                        for row in range(first, bottom):
                            for column in range(start, right):
                                pixel = row % kh * width + column
                                tap = ((row - top) * kw + column - left) * inputs
                                own = pixel * inputs
                                for k in range(own, own + arrived[pixel]):
                                    event, to = events[k] + np.uint64(tap), n
                                    while to > 0 and _step(
                                        sorted_events[to - 1]
                                    ) > _step(event):
                                        sorted_events[to] = sorted_events[to - 1]
                                        to -= 1
                                    sorted_events[to] = event
                                    n += 1
                        sorted_events[n] = _event(steps, 0)
                        groups = n
                        for k in range(n):
                            step = _step(sorted_events[k])
                            order[k] = np.uint32(_offset(sorted_events[k]) * lanes)
                            last = step != _step(sorted_events[k + 1])
                            when[k + 1] = step if last else steps
                        begins_at_0 = n > 0 and _step(sorted_events[0]) == 0
                    else:
                        _fill(count_at, 0, steps, 0)
                        n = 0
                        for column in range(start, right):
                            _add(count_at, 0, columns, column * steps, steps)
                            for row in range(first, bottom):
                                n += arrived[row % kh * width + column]
                        # Adding takes one turn a vector, comparing three or five.
                        compared = 65 if peaks else 45
                        pairs = _groups(count_at, steps, 1)
                        fours = _groups(count_at, steps, 2)
                        shift, cost = 0, compared * n
                        if (compared + 12) * pairs < cost:
                            shift, cost = 1, (compared + 12) * pairs
                        if (compared + 36) * fours < cost:
                            shift = 2
                        begins_at_0 = count_at[0] > 0
                        slots = 1 << shift
                        groups = (n, pairs, fours)[shift]
                        _fill(when, 0, groups + 1, steps)
                        _open_groups(count_at, steps, shift, when, place)
                        if shift:
                            _fill(order, 0, groups << shift, zero_row)
                        for row in range(first, bottom):
                            for column in range(start, right):
                                pixel = row % kh * width + column
                                tap = ((row - top) * kw + column - left) * inputs
                                own = pixel * inputs
                                for k in range(own, own + arrived[pixel]):
                                    step = _step(events[k])
                                    to = place[step]
                                    order[to] = np.uint32(
                                        (_offset(events[k]) + tap) * lanes
                                    )
                                    place[step] = to + 1
                    if peaks:
                        # V(0) = 0 counts as a peak where nothing arrives at t = 0.
                        _fill(potential, 0, padded, -np.inf if begins_at_0 else 0)
                        _fill(until, 0, padded, 0)
                    _fill(spike, 0, padded, steps)
                    if groups:
                        integrate(
                            order,
                            when,
                            groups,
                            slots,
                            weights,
                            plan,
                            threshold,
                            spike,
                            potential,
                            until,
                        )
                        if kinds:
                            count(plan, spike, 0, counts, 0)
                    to = ((b * out_height + y // pool_rows) * out_width) + (
                        x // pool_columns
                    )
                    to *= outputs
                    if member == 0:
                        move(plan, spike, spike_times, to)
                        if peaks:
                            move(plan, potential, out_potential, to)
                            move(plan, until, out_until, to)
                        if members > 1:
                            _fill(out_member, to, outputs, 0)
                    elif groups:
                        for o in range(outputs):
                            if spike[o] < spike_times[to + o]:
                                spike_times[to + o] = spike[o]
                                out_member[to + o] = member
                                if peaks:
                                    out_potential[to + o] = potential[o]
                                    out_until[to + o] = until[o]
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
        kh, width, inputs, steps = plan[_ROWS], plan[_WIDTH], plan[_INPUTS], plan[_STEPS]
        size = kh * plan[_COLUMNS] * inputs
        padded = plan[_OUTPUTS] + plan[_LANES]
        words = kh * width * (inputs + 1) + 1 + steps + size + 1 + 2 * steps
        ints = (kh + 1) * width * steps + steps + 4 * size
        return 16 * 64 + 8 * words + 4 * ints + size_of * (size + 1 + 3 * (padded + 64))

    @njit(**OPTIONS)
    def prepare(frame, plan):
        """Counts start from zero: parts of an image add to them."""
        if plan[_COUNTS]:
            out = 1 + 2 * (plan[_FLAG] != 0)
            out += plan[_POOL_ROWS] * plan[_POOL_COLUMNS] > 1
            total = plan[_IMAGES] * plan[_COUNTS] * plan[_STEPS]
            _fill(array_at(result(frame, out), np.int32), 0, total, 0)

    @njit(**OPTIONS)
    def counts_of(plan, phase):
        return plan[_IMAGE_PARTS] * plan[_ROW_PARTS] if phase == 0 else 0

    @njit(**OPTIONS)
    def shared_bytes(plan):
        return 0

    return prepare, counts_of, part, scratch_bytes, shared_bytes


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
    """What `_event_calls.handler` asks for, of spike times of the scalar type `kind`."""
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
        places, outputs = plan[_OUT_HEIGHT] * plan[_OUT_WIDTH], plan[_OUTPUTS]
        members = plan[_POOL_ROWS] * plan[_POOL_COLUMNS]
        last = kind(plan[_STEPS] - 1)
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
        height, width, inputs = plan[_HEIGHT], plan[_WIDTH], plan[_INPUTS]
        out_height, out_width = plan[_OUT_HEIGHT], plan[_OUT_WIDTH]
        outputs, kh, kw = plan[_OUTPUTS], plan[_ROWS], plan[_COLUMNS]
        pool_rows, pool_columns = plan[_POOL_ROWS], plan[_POOL_COLUMNS]
        steps, lanes, silent_inputs = plan[_STEPS], plan[_LANES], plan[_FLAG] != 0
        members = pool_rows * pool_columns
        windows = out_height * out_width * members
        size = kh * kw * inputs
        padded = (size + lanes - 1) // lanes * lanes
        image = height * width * inputs
        total = plan[_IMAGES] * out_height * out_width * outputs
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
        _fill(d_weights, 0, padded * outputs, 0)
        first_image, last_image = span(index, plan[_IMAGE_PARTS], plan[_IMAGES])
        for b in range(first_image, last_image):
            _fill(d_times, b * image, image, 0)
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
                    top = y * plan[_ROW_STRIDE] - plan[_TOP]
                    left = x * plan[_COLUMN_STRIDE] - plan[_LEFT]
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
                    _fill(t_window, 0, padded, steps)
                    _fill(d_window, 0, padded, 0)
                    for row in range(max(top, 0), min(top + kh, height)):
                        tap = (row - top) * kw + first - left
                        at = ((b * height + row) * width + first) * inputs
                        for k in range((last - first) * inputs):
                            t_window[tap * inputs + k] = times[at + k]
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
                        for k in range((last - first) * inputs):
                            d_times[at + k] += d_window[tap * inputs + k]

    @njit(**OPTIONS)
    def collect(frame, plan, index, scratch, partial):
        """Sums the parts in their order, for some blocks of the weights."""
        outputs, lanes, parts = plan[_OUTPUTS], plan[_LANES], plan[_IMAGE_PARTS]
        size = plan[_ROWS] * plan[_COLUMNS] * plan[_INPUTS]
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
    def prepare(frame, plan):
        pass

    @njit(**OPTIONS)
    def counts_of(plan, phase):
        size = plan[_ROWS] * plan[_COLUMNS] * plan[_INPUTS]
        if phase == 0:
            return plan[_IMAGE_PARTS]
        blocks = (size + plan[_LANES] - 1) // plan[_LANES]
        return min(blocks, _COLLECTED) if phase == 1 else 0

    @njit(**OPTIONS)
    def part(frame, plan, phase, index, scratch, shared):
        if phase == 0:
            gradients(frame, plan, index, scratch, shared)
        else:
            collect(frame, plan, index, scratch, shared)

    @njit(**OPTIONS)
    def scratch_bytes(plan):
        places = plan[_OUT_HEIGHT] * plan[_OUT_WIDTH]
        windows = places * plan[_POOL_ROWS] * plan[_POOL_COLUMNS]
        taught = places * plan[_OUTPUTS] + 1
        padded = plan[_ROWS] * plan[_COLUMNS] * plan[_INPUTS] + plan[_LANES]
        words = windows + 1 + taught
        return 8 * 64 + 8 * words + size_of * (2 * taught + 2 * padded)

    @njit(**OPTIONS)
    def shared_bytes(plan):
        size = plan[_ROWS] * plan[_COLUMNS] * plan[_INPUTS]
        padded = (size + plan[_LANES] - 1) // plan[_LANES] * plan[_LANES]
        return plan[_IMAGE_PARTS] * room(padded * plan[_OUTPUTS], size_of)

    return prepare, counts_of, part, scratch_bytes, shared_bytes


def entry(kernel, kind, cell, version):
    """The function that XLA calls for "forward" or "backward", to be compiled.

    See `_event_calls.handler` for `cell` and `version`.
    """
    made = _forward(kind) if kernel == "forward" else _backward(kind)
    return handler(cell, version, *made)
