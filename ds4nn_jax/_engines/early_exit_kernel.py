"""The early-exit kernel, compiled by numba. Not imported without need.

One image at a time, a few time steps at a time, all layers within them: the image is
done when an output fires, and what would have happened later is never computed.

Within such a chunk of time a layer takes its windows one by one, potentials held in
registers while the window's events stream past; between chunks they rest in memory.
"""

import numpy as np
from numba import njit

from ds4nn_jax._engines.calls import (
    OPTIONS,
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
    select,
    slice_from,
    some,
    splat,
    store,
    trailing_zeros,
)
from ds4nn_jax._engines.plan import EXIT_LANES, LAYER, NETWORK

_WIDE = 64  # lanes at once, while there are so many
_CHUNK = 8  # steps
_NEVER = -1e30  # mV: the potential of a neuron that has fired, out of reach of θ

# A spike is one word: its step, its pixel, its feature. It sorts by step, then in the
# order in which the full forward pass adds.
_STEP, _PIXEL = np.uint64(48), np.uint64(24)
_FIELD, _OFFSET = np.uint64(2**24 - 1), np.uint64(2**48 - 1)


@njit(inline="always", **OPTIONS)
def _spike(step, pixel, feature):
    pixel, feature = np.uint64(pixel) << _PIXEL, np.uint64(feature)
    return (np.uint64(step) << _STEP) | pixel | feature


@njit(inline="always", **OPTIONS)
def _step(spike):
    return spike >> _STEP


@njit(inline="always", **OPTIONS)
def _pixel(spike):
    return np.intp((spike >> _PIXEL) & _FIELD)


@njit(inline="always", **OPTIONS)
def _feature(spike):
    return np.intp(spike & _FIELD)


def _integrating(lanes, kind):
    """Compiles the integration of one window's events by `lanes` neurons."""

    @njit(**OPTIONS)
    def integrate(
        events,
        first,
        last,
        weights,
        row,
        threshold_at,
        potentials,
        at,
        tag,
        fired,
        firing,
    ):
        """Adds events first … last − 1 and lists spikes; returns how many there are.

        An event is a step and the offset of a weight row; events[last] is of no step.
        `threshold_at` is where the thresholds are; `tag` is a spike of the first of
        these neurons at step 0.
        """
        v, threshold = load(potentials, at, lanes), load(weights, threshold_at, lanes)
        never = splat(kind(_NEVER), lanes)
        k = first
        while k < last:
            step = _step(events[k])
            while _step(events[k]) == step:
                v = v + load(weights, row + np.intp(events[k] & _OFFSET), lanes)
                k += 1
            fires = v >= threshold
            if some(fires):
                firing_lanes = bits(fires)
                while firing_lanes:
                    fired[firing] = (step << _STEP) + tag + trailing_zeros(firing_lanes)
                    firing += 1
                    firing_lanes &= firing_lanes - np.uint64(1)
                v = select(fires, never, v)
        store(potentials, at, v)
        return firing

    return integrate


@njit(inline="always", **OPTIONS)
def _most_events(layer):
    """Of a window, with a stop behind them."""
    size = layer[LAYER.rows] * layer[LAYER.columns] * layer[LAYER.inputs]
    return size + layer[LAYER.pulses] + 1


@njit(inline="always", **OPTIONS)
def _thresholds(layer):
    """Where the row of a layer's thresholds begins, behind those of its weights."""
    rows = _most_events(layer) - 1
    return layer[LAYER.weights] + rows * layer[LAYER.stride]


@njit(**OPTIONS)
def _spread(layer, spikes, count, count_of, events):
    """Lists the events of every window, count_of[p] of them at window p's place."""
    width, inputs = layer[LAYER.width], layer[LAYER.inputs]
    rows, columns = layer[LAYER.rows], layer[LAYER.columns]
    top, left = layer[LAYER.top], layer[LAYER.left]
    out_height, out_width = layer[LAYER.out_height], layer[LAYER.out_width]
    stride, most = layer[LAYER.stride], _most_events(layer)
    fill(count_of, out_height * out_width, 0)
    for k in range(count):
        pixel = np.uint32(_pixel(spikes[k]))
        y = np.intp(pixel // np.uint32(width))
        x = np.intp(pixel) - y * width
        step = spikes[k] >> _STEP << _STEP
        source = _feature(spikes[k])
        for row in range(max(0, y + top - out_height + 1), min(rows, y + top + 1)):
            for column in range(
                max(0, x + left - out_width + 1), min(columns, x + left + 1)
            ):
                place = (y + top - row) * out_width + x + left - column
                offset = ((row * columns + column) * inputs + source) * stride
                events[place * most + count_of[place]] = step | np.uint64(offset)
                count_of[place] += 1


@njit(**OPTIONS)
def _merge(layer, steps, begin, end, events, count):
    """Merges reference spikes begin … end − 1 into a window's `count` events, behind
    the inputs of their steps; how many events that makes."""
    size = layer[LAYER.rows] * layer[LAYER.columns] * layer[LAYER.inputs]
    to, total = count + end - begin, count + end - begin
    while end > begin:
        to -= 1
        step = np.uint64((end - 1) * steps // layer[LAYER.pulses])
        if count > 0 and _step(events[count - 1]) > step:
            count -= 1
            events[to] = events[count]
        else:
            end -= 1
            offset = (size + end) * layer[LAYER.stride]
            events[to] = (step << _STEP) | np.uint64(offset)
    return total


@njit(**OPTIONS)
def _sort(spikes, count, start, starts, out):
    """Stable counting sort by step, of a chunk that begins at `start`."""
    fill(starts, _CHUNK + 1, 0)
    for k in range(count):
        starts[np.intp(_step(spikes[k])) - start + 1] += 1
    for t in range(1, _CHUNK + 1):
        starts[t] += starts[t - 1]
    for k in range(count):
        t = np.intp(_step(spikes[k])) - start
        out[starts[t]] = spikes[k]
        starts[t] += 1


@njit(**OPTIONS)
def _pool(layer, window, spikes, count, spent, fired):
    """A window fires with its first spike, and is spent.

    window[p] is where pixel p belongs, or −1. `fired` is in order if `spikes` are in
    order of their steps, then of their windows.
    """
    inputs, firing = layer[LAYER.inputs], 0
    for k in range(count):
        place, i = window[_pixel(spikes[k])], _feature(spikes[k])
        if place >= 0:
            neuron = layer[LAYER.potentials] + place * inputs + i
            if not spent[neuron]:
                spent[neuron] = 1
                spike = _spike(_step(spikes[k]), place, i)
                at = firing  # few steps to its place: they are within a window
                while at > 0 and fired[at - 1] > spike:
                    fired[at] = fired[at - 1]
                    at -= 1
                fired[at] = spike
                firing += 1
    return firing


@njit(**OPTIONS)
def _flatten(spikes, count, features):
    """Makes features of one pixel of all that fired, in the same order."""
    for k in range(count):
        feature = _pixel(spikes[k]) * features + _feature(spikes[k])
        spikes[k] = _spike(_step(spikes[k]), 0, feature)


def entry(kernel, kind, cell):
    """The function that XLA calls for "early_exit", to be compiled.

    It decides each image: operands are times [B, inputs] and all kernels, flat, each
    row padded; results are labels [B], steps [B] and [B, L+1] spikes of the input and
    each layer up to the decision, all int32. See `calls.handler`.
    """
    size_of = np.dtype(kind).itemsize
    wide, narrow = _integrating(_WIDE, kind), _integrating(EXIT_LANES, kind)

    @njit(**OPTIONS)
    def conv(layer, order, chunk, spikes, count, listed, neurons, fired):
        """Adds a chunk's spikes to the windows they reach; how many neurons fire.

        `spikes` are in order; `fired` is in the `order` in which windows are visited.
        """
        (count_of, events), (weights, potentials) = listed, neurons
        stride, most = layer[LAYER.stride], _most_events(layer)
        steps, start, end = chunk
        begin = pulses_before(start, layer[LAYER.pulses], steps)
        end = pulses_before(end, layer[LAYER.pulses], steps)
        if count == 0 and begin == end:
            return 0
        _spread(layer, spikes, count, count_of, events)
        firing = 0
        for visit in range(layer[LAYER.visits]):
            place = order[visit]
            if count_of[place] == 0 and begin == end:
                continue
            first = place * most
            window_events = slice_from(events, first)
            last = first + _merge(
                layer, steps, begin, end, window_events, count_of[place]
            )
            events[last] = ~np.uint64(0)
            block = 0
            while block < stride:
                row, tag = layer[LAYER.weights] + block, _spike(0, place, block)
                at = layer[LAYER.potentials] + place * stride + block
                threshold_at = _thresholds(layer) + block
                window = events, first, last, weights, row, threshold_at, potentials, at
                if block + _WIDE <= stride:
                    firing = wide(*window, tag, fired, firing)
                    block += _WIDE
                else:
                    firing = narrow(*window, tag, fired, firing)
                    block += EXIT_LANES
        return firing

    @njit(**OPTIONS)
    def memory(plan, at):
        """The arrays of one thread, and the address behind them."""
        table, most = slice_from(plan, len(NETWORK)), plan[NETWORK.largest] + 1
        inputs = table[LAYER.height] * table[LAYER.width] * table[LAYER.inputs]
        potentials, at = allocate(at, plan[NETWORK.potentials], kind, size_of)
        spent, at = allocate(at, plan[NETWORK.pooled], np.int8, 1)
        count_of, at = allocate(at, plan[NETWORK.places], np.intp, 8)
        events, at = allocate(at, plan[NETWORK.events], np.uint64, 8)
        arriving, at = allocate(at, most, np.uint64, 8)
        leaving, at = allocate(at, most, np.uint64, 8)
        sorted_input, at = allocate(at, inputs + 1, np.uint64, 8)
        begins, at = allocate(at, plan[NETWORK.steps] + 2, np.intp, 8)
        starts, at = allocate(at, _CHUNK + 1, np.intp, 8)
        counts, at = allocate(at, (plan[NETWORK.layers] + 1) * _CHUNK, np.intp, 8)
        spikes = arriving, leaving, sorted_input
        return potentials, spent, count_of, events, spikes, (begins, starts, counts), at

    @njit(**OPTIONS)
    def part(frame, plan, phase, index, scratch, shared):
        num_steps, layers = plan[NETWORK.steps], plan[NETWORK.layers]
        table = slice_from(plan, len(NETWORK))
        last = slice_from(table, (layers - 1) * len(LAYER))
        classes, stride = last[LAYER.outputs], last[LAYER.stride]
        output, pulses = last[LAYER.potentials], last[LAYER.pulses]
        reference = last[LAYER.weights] + last[LAYER.inputs] * stride
        pixels, features = table[LAYER.height] * table[LAYER.width], table[LAYER.inputs]
        inputs = pixels * features
        weights = array_at(argument(frame, 1), kind)
        labels = array_at(result(frame, 0), np.int32)
        decisions = array_at(result(frame, 1), np.int32)
        potentials, spent, count_of, events, lists, numbers, _ = memory(plan, scratch)
        (arriving, leaving, sorted_input), (begins, starts, counts) = lists, numbers
        neurons, theta = (
            (weights, potentials),
            slice_from(weights, _thresholds(last)),
        )
        first_image, last_image = span(index, plan[NETWORK.parts], plan[NETWORK.images])
        for image in range(first_image, last_image):
            times = slice_from(array_at(argument(frame, 0), kind), image * inputs)
            spikes = array_at(result(frame, 2) + 4 * image * (layers + 1), np.int32)
            fill(potentials, plan[NETWORK.potentials], 0)
            fill(spent, plan[NETWORK.pooled], 0)
            fill(spikes, layers + 1, 0)
            fill(begins, num_steps + 2, 0)
            for i in range(inputs):
                if times[i] >= 0 and times[i] < num_steps:
                    begins[np.intp(times[i]) + 2] += 1
            for t in range(2, num_steps + 2):
                begins[t] += begins[t - 1]
            for pixel in range(pixels):
                for feature in range(features):
                    t = times[pixel * features + feature]
                    if t >= 0 and t < num_steps:
                        to = begins[np.intp(t) + 1]
                        sorted_input[to] = _spike(np.intp(t), pixel, feature)
                        begins[np.intp(t) + 1] = to + 1
            decisions[image] = num_steps
            for start in range(0, num_steps, _CHUNK):
                end = min(start + _CHUNK, num_steps)
                count = begins[end] - begins[start]
                copy(arriving, slice_from(sorted_input, begins[start]), count)
                fill(counts, (layers + 1) * _CHUNK, 0)
                width = features
                for k in range(layers):
                    for n in range(count):
                        counts[k * _CHUNK + np.intp(_step(arriving[n])) - start] += 1
                    if k == layers - 1:
                        break
                    layer = slice_from(table, k * len(LAYER))
                    if layer[LAYER.height] * layer[LAYER.width] == 1:  # one pixel
                        _flatten(arriving, count, width)
                    pools = layer[LAYER.pools] != 0
                    width = layer[LAYER.inputs] if pools else layer[LAYER.outputs]
                    order = slice_from(plan, layer[LAYER.order])
                    if pools:
                        count = _pool(layer, order, arriving, count, spent, leaving)
                        arriving, leaving = leaving, arriving
                    else:
                        chunk = num_steps, start, end
                        reached = layer, order, chunk, arriving, count
                        count = conv(*reached, (count_of, events), neurons, leaving)
                        _sort(leaving, count, start, starts, arriving)
                _flatten(arriving, count, width)
                decided = end
                k = 0
                step = np.intp(start)
                p = pulses_before(step, pulses, num_steps)
                while step < end and decided == end:
                    while k < count and np.intp(_step(arriving[k])) == step:
                        source = last[LAYER.weights] + _feature(arriving[k]) * stride
                        for o in range(classes):
                            potentials[output + o] += weights[source + o]
                        k += 1
                    if p < pulses and p * num_steps // pulses == step:
                        for o in range(classes):
                            potentials[output + o] += weights[
                                reference + p * stride + o
                            ]
                        p += 1
                    for o in range(classes):
                        if potentials[output + o] >= theta[o]:
                            spikes[layers] += 1
                            decided = step
                    step += 1
                for k in range(layers):
                    for t in range(start, min(decided + 1, end)):
                        spikes[k] += counts[k * _CHUNK + t - start]
                if decided < end:
                    decisions[image] = decided
                    break
            # By the spike, ties and silence alike by the potential, then by the index.
            highest, best, label = theta[0], kind(-np.inf), 0
            for o in range(1, classes):
                highest = max(highest, theta[o])
            for o in range(classes):
                v = potentials[output + o]
                if decisions[image] == num_steps or v >= theta[o]:
                    v += highest - theta[o]
                    if v > best:
                        best, label = v, o
            labels[image] = label

    @njit(**OPTIONS)
    def counts_of(plan, phase):
        return plan[NETWORK.parts] if phase == 0 else 0

    return handler(cell, counts_of, part, memory)
