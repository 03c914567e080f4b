"""Slow oracle in plain loops over neurons and synapses; shares no library code.

The membrane is simulated step by step as Eq. 2 and 3 say, and the gradients are summed
synapse by synapse as Eq. 8–12 say, with silence as DESIGN states it: a silent output
counts as T, a silent input has no error. `t_star` and `slope` generalise both to the
membrane window. Sums run in float64; with weights on a dyadic grid they are exact.
"""

from typing import NamedTuple

import numpy as np


class Neurons(NamedTuple):
    """Spike times, and potential and step of the spike or else of the highest V."""

    times: np.ndarray
    potential: np.ndarray
    t_star: np.ndarray


def integrate(times, weights, threshold, num_steps):
    """One neuron: (spike time, V at t*, t*) from lists of input times and weights."""
    times, weights = np.asarray(times, int), np.asarray(weights, float)
    arriving = times < num_steps
    v = np.cumsum(np.bincount(times[arriving], weights[arriving], num_steps))
    above = np.flatnonzero(v >= threshold)
    t_star = above[0] if len(above) else np.argmax(v)  # the first of equal peaks
    return (t_star if len(above) else num_steps), v[t_star], t_star


def synapses(times, kernel, strides=(1, 1), pads=((0, 0), (0, 0))):
    """Yields for every neuron of a convolution its index, inputs and weights.

    (b, y, x, o), [(input index, kernel index), …] over the window's pixels that lie
    inside the image.
    """
    batch, height, width, features = times.shape
    rows, columns, _, outputs = kernel.shape
    out_height = (height + sum(pads[0]) - rows) // strides[0] + 1
    out_width = (width + sum(pads[1]) - columns) // strides[1] + 1
    for b in range(batch):
        for y in range(out_height):
            for x in range(out_width):
                window = []
                for i in range(rows):
                    for j in range(columns):
                        p = y * strides[0] + i - pads[0][0]
                        q = x * strides[1] + j - pads[1][0]
                        if 0 <= p < height and 0 <= q < width:
                            for c in range(features):
                                window.append(((b, p, q, c), (i, j, c)))
                for o in range(outputs):
                    yield (b, y, x, o), [(a, (*k, o)) for a, k in window]


def conv_shape(times, kernel, strides, pads):
    return (
        times.shape[0],
        (times.shape[1] + sum(pads[0]) - kernel.shape[0]) // strides[0] + 1,
        (times.shape[2] + sum(pads[1]) - kernel.shape[1]) // strides[1] + 1,
        kernel.shape[3],
    )


def clock(pulses, num_steps):
    """When each of P reference neurons spikes."""
    return [p * num_steps // len(pulses) for p in range(len(pulses))]


def conv(
    times,
    kernel,
    threshold,
    num_steps,
    strides=(1, 1),
    pads=((0, 0), (0, 0)),
    pulses=(),
):
    """`pulses` [P, O]: P inputs more for every neuron, whatever the image. `threshold`:
    of all neurons, or [O] of each."""
    times, kernel = np.asarray(times, float), np.asarray(kernel, float)
    shape = conv_shape(times, kernel, strides, pads)
    result = Neurons(*(np.zeros(shape) for _ in range(3)))
    theta = np.full(shape[-1], threshold)
    for neuron, inputs in synapses(times, kernel, strides, pads):
        values = integrate(
            [times[a] for a, _ in inputs] + clock(pulses, num_steps),
            [kernel[k] for _, k in inputs] + [float(row[neuron[-1]]) for row in pulses],
            theta[neuron[-1]],
            num_steps,
        )
        for array, value in zip(result, values, strict=True):
            array[neuron] = value
    return result


def conv_gradients(
    times,
    kernel,
    end,
    delta,
    num_steps,
    strides=(1, 1),
    pads=((0, 0), (0, 0)),
    silent_inputs=False,
):
    """∂E/∂t and ∂E/∂w for δ (times the surrogate's slope) of neurons that integrate
    up to `end`: spike time, T if silent, or t*."""
    times, kernel = np.asarray(times, float), np.asarray(kernel, float)
    d_times, d_kernel = np.zeros_like(times), np.zeros_like(kernel)
    for neuron, inputs in synapses(times, kernel, strides, pads):
        for a, k in inputs:
            if times[a] < num_steps and times[a] <= end[neuron]:
                d_kernel[k] -= delta[neuron]
                d_times[a] += delta[neuron] * kernel[k]
            elif times[a] == num_steps and silent_inputs:
                d_times[a] += delta[neuron] * kernel[k]
    return d_times, d_kernel


def pulse_gradients(pulses, end, delta, num_steps):
    """∂E/∂r [P, O]: each reference neuron is an input that fires at its step."""
    d_pulses = np.zeros(np.shape(pulses))
    for p, time in enumerate(clock(pulses, num_steps)):
        for neuron in np.ndindex(np.shape(delta)):
            if time <= end[neuron]:
                d_pulses[p, neuron[-1]] -= delta[neuron]
    return d_pulses


def _as_conv(times, kernel):
    return np.asarray(times)[:, None, None, :], np.asarray(kernel)[None, None]


def dense(times, kernel, threshold, num_steps, pulses=()):
    result = conv(*_as_conv(times, kernel), threshold, num_steps, pulses=pulses)
    return Neurons(*(array[:, 0, 0, :] for array in result))


def dense_gradients(times, kernel, end, delta, num_steps, silent_inputs=False):
    d_times, d_kernel = conv_gradients(
        *_as_conv(times, kernel),
        np.asarray(end)[:, None, None, :],
        np.asarray(delta)[:, None, None, :],
        num_steps,
        silent_inputs=silent_inputs,
    )
    return d_times[:, 0, 0, :], d_kernel[0, 0]


def pool(times, window, strides):
    """Earliest spike of each window, and where it came from (first in row order)."""
    batch, height, width, features = times.shape
    out_height = (height - window[0]) // strides[0] + 1
    out_width = (width - window[1]) // strides[1] + 1
    earliest = np.zeros((batch, out_height, out_width, features))
    winner = {}
    for b, y, x, c in np.ndindex(earliest.shape):
        best = None
        for i in range(window[0]):
            for j in range(window[1]):
                at = (b, y * strides[0] + i, x * strides[1] + j, c)
                if best is None or times[at] < times[best]:
                    best = at
        earliest[b, y, x, c] = times[best]
        winner[b, y, x, c] = best
    return earliest, winner


def pool_gradient(times, window, strides, delta):
    d_times = np.zeros(times.shape)
    for neuron, at in pool(times, window, strides)[1].items():
        d_times[at] += delta[neuron]
    return d_times
