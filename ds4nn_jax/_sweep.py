"""The loop of decision-limited inference, compiled by numba. Not imported without need.

One image at a time, one step at a time, all layers within the step: the image is done
when an output fires, and what would have happened later is never computed.
"""

import numpy as np
from numba import njit

FIELDS = (
    "pools height width inputs rows columns top left out_height out_width outputs "
    "weights potentials"
).split()  # a line of the layer table; the last two are offsets into flat arrays
_NEVER = -1e30  # mV: where a neuron that has fired is put, out of reach of θ


@njit(nogil=True)
def _conv(layer, spikes, count, weights, potentials, threshold, fired, touched):
    """Adds a step's spikes to the windows they reach; returns how many neurons fire.

    Potentials of neurons that fire are put out of reach. Spikes and `fired` are flat
    indices; `touched` is scratch, a stamp and a list of positions.
    """
    width, inputs, rows, columns = layer[2], layer[3], layer[4], layer[5]
    top, left, out_height, out_width = layer[6], layer[7], layer[8], layer[9]
    outputs = layer[10]
    stamp, places = touched
    reached = 0
    for k in range(count):
        pixel, i = divmod(spikes[k], inputs)
        y, x = divmod(pixel, width)
        for row in range(max(0, y + top - out_height + 1), min(rows, y + top + 1)):
            for column in range(
                max(0, x + left - out_width + 1), min(columns, x + left + 1)
            ):
                place = (y + top - row) * out_width + x + left - column
                if not stamp[place]:
                    stamp[place] = True
                    places[reached] = place
                    reached += 1
                source = layer[11] + ((row * columns + column) * inputs + i) * outputs
                added = weights[source : source + outputs]
                target = layer[12] + place * outputs
                summed = potentials[target : target + outputs]
                for o in range(outputs):
                    summed[o] += added[o]
    firing = 0
    for k in range(reached):
        place = places[k]
        stamp[place] = False
        target = layer[12] + place * outputs
        potential = potentials[target : target + outputs]
        crossing = 0
        for o in range(outputs):
            crossing += potential[o] >= threshold
        if crossing:
            for o in range(outputs):
                if potential[o] >= threshold:
                    potential[o] = _NEVER
                    fired[firing] = place * outputs + o
                    firing += 1
    # Sums depend on their order: a later layer adds in the order of its inputs.
    fired[:firing].sort()
    return firing


@njit(nogil=True)
def _pool(layer, spikes, count, potentials, fired):
    """A window fires with its first spike; its potential tells that it has."""
    width, inputs, rows, columns = layer[2], layer[3], layer[4], layer[5]
    out_height, out_width = layer[8], layer[9]
    firing = 0
    for k in range(count):
        pixel, i = divmod(spikes[k], inputs)
        y, x = divmod(pixel, width)
        y, x = y // rows, x // columns
        if y < out_height and x < out_width:
            neuron = (y * out_width + x) * inputs + i
            if potentials[layer[12] + neuron] == 0:
                potentials[layer[12] + neuron] = 1
                fired[firing] = neuron
                firing += 1
    fired[:firing].sort()
    return firing


@njit(nogil=True)
def sweep(times, table, weights, threshold, num_steps, most, labels, steps, spikes):
    """Decides each image.

    Args:
      times: [B, inputs] spike times.
      table: [L, len(FIELDS)] the layers; the last is dense.
      weights: all kernels, flat.
      threshold: θ, mV.
      num_steps: T.
      most: potentials of all layers, positions of the largest convolution, and spikes
        of the largest layer: the scratch an image needs.
      labels, steps: [B], written.
      spikes: [B, L+1] spikes of the input and each layer up to the decision, written.
    """
    layers = table.shape[0]
    classes = table[layers - 1, 10]
    output = table[layers - 1, 12]
    potentials = np.empty(most[0], weights.dtype)
    touched = (np.zeros(most[1], np.bool_), np.empty(most[1], np.int64))
    arriving = np.empty(most[2], np.int64)
    leaving = np.empty(most[2], np.int64)
    order = np.empty(times.shape[1], np.int64)
    for image in range(times.shape[0]):
        potentials[:] = 0
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
                    count = _pool(layer, arriving, count, potentials, leaving)
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
                source = table[layers - 1, 11] + arriving[k] * classes
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
