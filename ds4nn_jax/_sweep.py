"""The loop of decision-limited inference, compiled by numba. Not imported without need.

One image at a time, one step at a time, all layers within the step: the image is done
when an output fires, and what would have happened later is never computed.
"""

import numpy as np
from numba import njit

from ds4nn_jax._event_lanes import load, some, store

FIELDS = (
    "pools height width inputs rows columns top left out_height out_width outputs "
    "weights potentials stride"
).split()  # a line of the layer table; weights and potentials are offsets
LANES = 16  # weight rows and potentials are padded to `stride`, a multiple of it
_NEVER = -1e30  # mV: where a neuron that has fired is put, out of reach of θ


@njit(nogil=True)
def _conv(layer, spikes, count, weights, potentials, threshold, fired, touched):
    """Adds a step's spikes to the windows they reach; returns how many neurons fire.

    Potentials of neurons that fire are put out of reach. Spikes and `fired` are flat
    indices in rising order: sums depend on their order. `touched`, one flag a position,
    is clear before and after.
    """
    width, inputs, rows, columns = layer[2], layer[3], layer[4], layer[5]
    top, left, out_height, out_width = layer[6], layer[7], layer[8], layer[9]
    outputs, stride = layer[10], layer[13]
    first, last = touched.size, -1
    for k in range(count):
        pixel, i = divmod(spikes[k], inputs)
        y, x = divmod(pixel, width)
        for row in range(max(0, y + top - out_height + 1), min(rows, y + top + 1)):
            for column in range(
                max(0, x + left - out_width + 1), min(columns, x + left + 1)
            ):
                place = (y + top - row) * out_width + x + left - column
                touched[place] = True
                first = min(first, place)
                last = max(last, place)
                source = layer[11] + ((row * columns + column) * inputs + i) * stride
                target = layer[12] + place * stride
                for o in range(0, stride, LANES):
                    v = load(potentials, target + o, LANES)
                    v = v + load(weights, source + o, LANES)
                    store(potentials, target + o, v)
    firing = 0
    words = touched.view(np.uint64)
    for word in range(first >> 3, (last >> 3) + 1):
        if words[word] == 0:  # most positions, eight at a time
            continue
        for place in range(8 * word, 8 * word + 8):
            if touched[place]:
                touched[place] = False
                start = layer[12] + place * stride
                neuron = place * outputs
                for o in range(0, stride, LANES):
                    if some(load(potentials, start + o, LANES) >= threshold):
                        block = potentials[start + o : start + min(o + LANES, outputs)]
                        firing += _fire(block, threshold, neuron + o, fired[firing:])
    return firing


@njit(nogil=True)
def _fire(potentials, threshold, neuron, fired):
    """Lists the neurons of a block that fire; without a branch, a coin's toss here."""
    firing, never = 0, potentials.dtype.type(_NEVER)
    for o in range(potentials.size):
        fires = potentials[o] >= threshold
        potentials[o] = never if fires else potentials[o]
        fired[firing] = neuron + o
        firing += int(fires)
    return firing


@njit(nogil=True)
def _pool(layer, spikes, count, spent, fired):
    """A window fires with its first spike, and is spent."""
    width, inputs, rows, columns = layer[2], layer[3], layer[4], layer[5]
    out_height, out_width = layer[8], layer[9]
    firing = 0
    for k in range(count):
        pixel, i = divmod(spikes[k], inputs)
        y, x = divmod(pixel, width)
        y, x = y // rows, x // columns
        if y < out_height and x < out_width:
            neuron = (y * out_width + x) * inputs + i
            if not spent[layer[12] + neuron]:
                spent[layer[12] + neuron] = True
                at = firing  # rows of windows come in turn, so few steps to its place
                while at > 0 and fired[at - 1] > neuron:
                    fired[at] = fired[at - 1]
                    at -= 1
                fired[at] = neuron
                firing += 1
    return firing


@njit(nogil=True)
def sweep(
    times,
    table,
    weights,
    threshold,
    num_steps,
    potentials,
    spent,
    places,
    largest,
    labels,
    steps,
    spikes,
):
    """Decides each image.

    Args:
      times: [B, inputs] spike times.
      table: [L, len(FIELDS)] the layers; the last is dense.
      weights: all kernels, flat, each row padded.
      threshold: θ, mV.
      num_steps: T.
      potentials: scratch for the padded potentials of all layers with weights.
      spent: bool, scratch for the neurons of all pooling layers.
      places: positions of the largest convolution.
      largest: neurons of the largest layer or image.
      labels, steps: [B], written.
      spikes: [B, L+1] spikes of the input and each layer up to the decision, written.
    """
    layers = table.shape[0]
    classes = table[layers - 1, 10]
    output = table[layers - 1, 12]
    stride = table[layers - 1, 13]
    touched = np.zeros(8 * (places // 8 + 1), np.bool_)
    arriving = np.empty(largest + 1, np.int64)
    leaving = np.empty(largest + 1, np.int64)
    order = np.empty(times.shape[1], np.int64)
    for image in range(times.shape[0]):
        potentials[:] = 0
        spent[:] = False
        spikes[image] = 0
        starts = np.zeros(num_steps + 2, np.int64)
        for i in range(times.shape[1]):
            t = int(times[image, i])
            if t < num_steps:
                starts[t + 2] += 1
        for t in range(2, num_steps + 2):
            starts[t] += starts[t - 1]
        for i in range(times.shape[1]):
            t = int(times[image, i])
            if t < num_steps:
                order[starts[t + 1]] = i
                starts[t + 1] += 1
        steps[image] = num_steps
        for t in range(num_steps):
            count = starts[t + 1] - starts[t]
            if count == 0:
                continue
            arriving[:count] = order[starts[t] : starts[t + 1]]
            spikes[image, 0] += count
            for k in range(layers - 1):
                layer = table[k]
                if layer[0]:
                    count = _pool(layer, arriving, count, spent, leaving)
                else:
                    count = _conv(
                        layer,
                        arriving,
                        count,
                        weights,
                        potentials,
                        threshold,
                        leaving,
                        touched,
                    )
                arriving, leaving = leaving, arriving
                spikes[image, k + 1] += count
                if count == 0:
                    break
            if count == 0:
                continue
            for k in range(count):
                source = table[layers - 1, 11] + arriving[k] * stride
                for o in range(classes):
                    potentials[output + o] += weights[source + o]
            firing = 0
            for o in range(classes):
                firing += potentials[output + o] >= threshold
            if firing:
                spikes[image, layers] = firing
                steps[image] = t
                break
        # Those that fired have the highest potentials, so one rule decides: by the
        # spike, ties and silence alike by the potential, then by the index.
        labels[image] = np.argmax(potentials[output : output + classes])
