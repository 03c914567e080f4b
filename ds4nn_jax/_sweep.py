"""The loop of decision-limited inference, compiled by numba. Not imported without need.

One image at a time, a few time steps at a time, all layers within them: the image is
done when an output fires, and what would have happened later is never computed.

Within such a chunk of time a layer takes its windows one by one, potentials held in
registers while the window's events stream past; between chunks they rest in memory.
"""

import functools

import numpy as np
from numba import njit

from ds4nn_jax._event_lanes import (
    bits,
    load,
    select,
    some,
    splat,
    store,
    trailing_zeros,
)

FIELDS = (
    "pools height width inputs rows columns top left out_height out_width outputs "
    "weights potentials stride order visits"
).split()  # a line of the layer table; weights, potentials and order are offsets
LANES = 16  # weight rows and potentials are padded to `stride`, a multiple of it
_WIDE = 64  # lanes taken at once while there are so many
_CHUNK = 8  # steps
_NEVER = -1e30  # mV: where a neuron that has fired is put, out of reach of θ

# A spike is one word: its step, its pixel, its feature. It sorts by step, then in the
# order in which the full forward pass adds.
_STEP, _PIXEL = np.uint64(48), np.uint64(24)
_FIELD, _OFFSET = np.uint64(2**24 - 1), np.uint64(2**48 - 1)
MOST_STEPS, MOST_NEURONS = 2**16 - 2, 2**24  # what fits into a word


@njit(nogil=True, inline="always")
def _spike(step, pixel, feature):
    pixel, feature = np.uint64(pixel) << _PIXEL, np.uint64(feature)
    return (np.uint64(step) << _STEP) | pixel | feature


@njit(nogil=True, inline="always")
def _step(spike):
    return spike >> _STEP


@njit(nogil=True, inline="always")
def _pixel(spike):
    return np.intp((spike >> _PIXEL) & _FIELD)


@njit(nogil=True, inline="always")
def _feature(spike):
    return np.intp(spike & _FIELD)


@functools.cache
def _integrate(lanes):
    """Compiles the integration of one window's events by `lanes` neurons."""

    @njit(nogil=True)
    def integrate(
        events, first, last, weights, row, potentials, at, threshold, tag, fired, firing
    ):
        """Adds events first … last − 1 and lists who fires; returns how many have.

        An event is a step and the offset of a weight row; events[last] is of no step.
        `tag` is the spike of the first of these neurons at step 0.
        """
        v = load(potentials, at, lanes)
        never = splat(potentials.dtype.type(_NEVER), lanes)
        k = first
        while k < last:
            step = _step(events[k])
            while _step(events[k]) == step:
                v = v + load(weights, row + np.intp(events[k] & _OFFSET), lanes)
                k += 1
            fires = v >= threshold
            if some(fires):
                who = bits(fires, 0)
                while who:
                    fired[firing] = (step << _STEP) + tag + trailing_zeros(who)
                    firing += 1
                    who &= who - np.uint64(1)
                v = select(fires, never, v)
        store(potentials, at, v)
        return firing

    return integrate


_wide, _narrow = _integrate(_WIDE), _integrate(LANES)


@njit(nogil=True, error_model="numpy")
def _spread(layer, spikes, count, found, events):
    """Lists the events of every window, those of p at p·(K + 1), found[p] of them."""
    width, inputs, rows, columns = layer[2], layer[3], layer[4], layer[5]
    top, left, out_height, out_width = layer[6], layer[7], layer[8], layer[9]
    stride, most = layer[13], layer[4] * layer[5] * layer[3] + 1
    found[: out_height * out_width] = 0
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
                events[place * most + found[place]] = step | np.uint64(offset)
                found[place] += 1


@njit(nogil=True)
def _conv(
    layer, order, spikes, count, found, events, weights, potentials, threshold, fired
):
    """Takes a chunk's spikes to the windows they reach; returns how many neurons fire.

    `spikes` are in order; `fired` is in the `order` in which windows are visited.
    """
    stride, most = layer[13], layer[4] * layer[5] * layer[3] + 1
    _spread(layer, spikes, count, found, events)
    firing = 0
    for place in order:
        if found[place] == 0:
            continue
        first = place * most
        last = first + found[place]
        events[last] = ~np.uint64(0)
        block = 0
        while block < stride:
            arguments = (
                events,
                first,
                last,
                weights,
                layer[11] + block,
                potentials,
                layer[12] + place * stride + block,
                threshold,
                _spike(0, place, block),
                fired,
                firing,
            )
            if block + _WIDE <= stride:
                firing = _wide(*arguments)
                block += _WIDE
            else:
                firing = _narrow(*arguments)
                block += LANES
    return firing


@njit(nogil=True)
def _sort(spikes, count, start, starts, out):
    """Stable counting sort by step, of a chunk that begins at `start`."""
    starts[:] = 0
    for k in range(count):
        starts[np.intp(_step(spikes[k])) - start + 1] += 1
    for t in range(1, starts.size):
        starts[t] += starts[t - 1]
    for k in range(count):
        t = np.intp(_step(spikes[k])) - start
        out[starts[t]] = spikes[k]
        starts[t] += 1


@njit(nogil=True)
def _pool(layer, window, spikes, count, spent, fired):
    """A window fires with its first spike, and is spent.

    window[p] is where pixel p belongs, or −1. `fired` is in order if `spikes` are in
    order of their steps, then of their windows.
    """
    inputs, firing = layer[3], 0
    for k in range(count):
        place, i = window[_pixel(spikes[k])], _feature(spikes[k])
        if place >= 0:
            neuron = layer[12] + place * inputs + i
            if not spent[neuron]:
                spent[neuron] = True
                spike = _spike(_step(spikes[k]), place, i)
                at = firing  # few steps to its place: they are within a window
                while at > 0 and fired[at - 1] > spike:
                    fired[at] = fired[at - 1]
                    at -= 1
                fired[at] = spike
                firing += 1
    return firing


@njit(nogil=True)
def _flatten(spikes, count, features):
    """Makes features of one pixel of all that fired, in the same order."""
    for k in range(count):
        feature = _pixel(spikes[k]) * features + _feature(spikes[k])
        spikes[k] = _spike(_step(spikes[k]), 0, feature)


@njit(nogil=True, cache=True)
def sweep(
    times,
    table,
    order,
    weights,
    threshold,
    num_steps,
    potentials,
    spent,
    places,
    largest,
    most_events,
    labels,
    steps,
    spikes,
):
    """Decides each image.

    Args:
      times: [B, inputs] spike times.
      table: [L, len(FIELDS)] the layers; the last is dense.
      order: for every convolution the order in which its windows are visited; for every
        pooling layer the window of each pixel, or −1.
      weights: all kernels, flat, each row padded.
      threshold: θ, mV.
      num_steps: T.
      potentials: scratch for the padded potentials of all layers with weights.
      spent: bool, scratch for the neurons of all pooling layers.
      places: positions of the largest convolution.
      largest: neurons of the largest layer or image.
      most_events: synapses that can act in one layer, and a stop for every position.
      labels, steps: [B], written.
      spikes: [B, L+1] spikes of the input and each layer up to the decision, written.
    """
    layers = table.shape[0]
    last = table[layers - 1]
    classes, output, stride = last[10], last[12], last[13]
    pixels, features = table[0, 1] * table[0, 2], table[0, 3]
    found = np.empty(places, np.int64)
    events = np.empty(most_events, np.uint64)
    arriving = np.empty(largest + 1, np.uint64)
    leaving = np.empty(largest + 1, np.uint64)
    sorted_input = np.empty(times.shape[1] + 1, np.uint64)
    begins = np.empty(num_steps + 2, np.int64)
    starts = np.empty(_CHUNK + 1, np.int64)
    counts = np.empty((layers + 1, _CHUNK), np.int64)
    for image in range(times.shape[0]):
        potentials[:] = 0
        spent[:] = False
        spikes[image] = 0
        begins[:] = 0
        for i in range(times.shape[1]):
            t = np.intp(times[image, i])
            if t < num_steps:
                begins[t + 2] += 1
        for t in range(2, num_steps + 2):
            begins[t] += begins[t - 1]
        for pixel in range(pixels):
            for feature in range(features):
                t = np.intp(times[image, pixel * features + feature])
                if t < num_steps:
                    sorted_input[begins[t + 1]] = _spike(t, pixel, feature)
                    begins[t + 1] += 1
        steps[image] = num_steps
        for start in range(0, num_steps, _CHUNK):
            end = min(start + _CHUNK, num_steps)
            count = begins[end] - begins[start]
            arriving[:count] = sorted_input[begins[start] : begins[end]]
            counts[:] = 0
            width = features
            for k in range(layers):
                for n in range(count):
                    counts[k, np.intp(_step(arriving[n])) - start] += 1
                if count == 0 or k == layers - 1:
                    break
                layer = table[k]
                if layer[1] * layer[2] == 1:  # dense: all that arrives is one pixel
                    _flatten(arriving, count, width)
                width = layer[3] if layer[0] else layer[10]
                visits = order[layer[14] : layer[14] + layer[15]]
                if layer[0]:
                    count = _pool(layer, visits, arriving, count, spent, leaving)
                    arriving, leaving = leaving, arriving
                else:
                    count = _conv(
                        layer,
                        visits,
                        arriving,
                        count,
                        found,
                        events,
                        weights,
                        potentials,
                        threshold,
                        leaving,
                    )
                    _sort(leaving, count, start, starts, arriving)
            _flatten(arriving, count, width)
            decided = end
            k = 0
            while k < count and decided == end:
                step = _step(arriving[k])
                while k < count and _step(arriving[k]) == step:
                    source = last[11] + _feature(arriving[k]) * stride
                    for o in range(classes):
                        potentials[output + o] += weights[source + o]
                    k += 1
                for o in range(classes):
                    if potentials[output + o] >= threshold:
                        spikes[image, layers] += 1
                        decided = np.intp(step)
            for k in range(layers):
                for t in range(start, min(decided + 1, end)):
                    spikes[image, k] += counts[k, t - start]
            if decided < end:
                steps[image] = decided
                break
        # Those that fired have the highest potentials, so one rule decides: by the
        # spike, ties and silence alike by the potential, then by the index.
        labels[image] = np.argmax(potentials[output : output + classes])
