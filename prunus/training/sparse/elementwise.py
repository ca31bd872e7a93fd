"""Compiled kernels of activations, dropout, max-pooling and BatchNorm; see `layers` for operations and places."""

import numpy as np
from numpy.typing import NDArray

from prunus.compiled import compile_kernel
from prunus.training.sparse.layers import (
    FIRST_ROW,
    HEIGHT,
    INPUT,
    KIND,
    LAST_ROW,
    NUMBER,
    OUTPUT,
    OUTPUT_STRIDE,
    RELU,
    ROW_BIAS,
    ROW_FIRST,
    ROW_INPUT,
    ROW_LAST,
    ROW_OUTPUT,
    STEP_DOWN,
    STEP_RIGHT,
    TANH,
    WIDTH,
    WINDOW,
    WINDOW_STRIDE,
    Floats,
    Ints,
)
from prunus.training.sparse.vectors import LANES

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_DROPPED_PER_NUMBER = 4
"""Examples that one random number of 64 bits decides about, with 16 bits each."""


@compile_kernel(error_model="numpy")
def _positions(op: Ints, rows: Ints, r: int, h: int, w: int, base: int) -> tuple[int, int]:
    """The index of the first float of the input and of the output of a row at a position."""
    x = base + op[INPUT] + rows[r, ROW_INPUT] + h * op[STEP_DOWN] + w * op[STEP_RIGHT]
    y = base + op[OUTPUT] + rows[r, ROW_OUTPUT] + h * op[OUTPUT_STRIDE] + w
    return x * LANES, y * LANES


@compile_kernel(error_model="numpy")
def activation_forward(op: Ints, rows: Ints, values: Floats, base: int) -> None:
    """Compute ReLU, tanh or the logistic function; NaN stays NaN."""
    one, zero = np.float32(1), np.float32(0)
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, y = _positions(op, rows, r, h, w, base)
                if op[KIND] == RELU:
                    for j in range(LANES):
                        values[y + j] = zero if values[x + j] < zero else values[x + j]
                elif op[KIND] == TANH:
                    for j in range(LANES):
                        values[y + j] = np.tanh(values[x + j])
                else:
                    for j in range(LANES):
                        values[y + j] = one / (one + np.exp(-values[x + j]))


@compile_kernel(error_model="numpy")
def activation_backward(op: Ints, rows: Ints, values: Floats, slopes: Floats, base: int) -> None:
    """Set the gradient of the input from that of the output, which may be in the same place."""
    one, zero = np.float32(1), np.float32(0)
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, y = _positions(op, rows, r, h, w, base)
                if op[KIND] == RELU:
                    for j in range(LANES):
                        slopes[x + j] = zero if values[y + j] <= zero else slopes[y + j]
                elif op[KIND] == TANH:
                    for j in range(LANES):
                        slopes[x + j] = slopes[y + j] * (one - values[y + j] * values[y + j])
                else:
                    for j in range(LANES):
                        slopes[x + j] = slopes[y + j] * values[y + j] * (one - values[y + j])


@compile_kernel(error_model="numpy")
def _random_bits(key: np.uint64, counter: int) -> np.uint64:
    """64 random bits that are a function of key and counter (the finalizer of SplitMix64, Steele et al. 2014)."""
    z = key + np.uint64(counter) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@compile_kernel(error_model="numpy")
def dropout(
    op: Ints, rows: Ints, source: Floats, target: Floats, key: np.uint64, probability: float, base: int, is_backward: bool
) -> None:
    """Drop values, and multiply the others by 1 / (1 - probability); backward: the same for their gradients.

    Each decision is a function of key, operation, neuron, position and example, so that no mask is stored.
    """
    scale = np.float32(1 / (1 - probability) if probability < 1 else 0)
    threshold = np.uint64(round(probability * 65536))
    key = _random_bits(key, op[NUMBER])
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, y = _positions(op, rows, r, h, w, base)
                read, write = (y, x) if is_backward else (x, y)
                for j in range(0, LANES, _DROPPED_PER_NUMBER):
                    bits = _random_bits(key, y + j)
                    for i in range(_DROPPED_PER_NUMBER):
                        is_kept = (bits >> np.uint64(16 * i)) & np.uint64(65535) >= threshold
                        target[write + j + i] = source[read + j + i] * scale if is_kept else np.float32(0)


@compile_kernel(error_model="numpy")
def max_pool_forward(op: Ints, rows: Ints, values: Floats, base: int) -> None:
    """Compute the maximum of each window; NaN if the window has one."""
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, y = _positions(op, rows, r, h, w, base)
                for j in range(LANES):
                    values[y + j] = values[x + j]
                for i in range(1, op[WINDOW] * op[WINDOW]):
                    place = x + (i // op[WINDOW] * op[WINDOW_STRIDE] + i % op[WINDOW]) * LANES
                    for j in range(LANES):
                        is_lower = values[place + j] <= values[y + j] or values[y + j] != values[y + j]
                        values[y + j] = values[y + j] if is_lower else values[place + j]


@compile_kernel(error_model="numpy")
def max_pool_backward(op: Ints, rows: Ints, values: Floats, slopes: Floats, base: int) -> None:
    """Add the gradient of each maximum to its first place in the window."""
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, y = _positions(op, rows, r, h, w, base)
                for i in range(op[WINDOW] * op[WINDOW]):
                    place = x + (i // op[WINDOW] * op[WINDOW_STRIDE] + i % op[WINDOW]) * LANES
                    for j in range(LANES):
                        is_maximum = values[place + j] == values[y + j]
                        slopes[place + j] += slopes[y + j] if is_maximum else np.float32(0)
                        slopes[y + j] = np.float32(0) if is_maximum else slopes[y + j]  # the first place only


@compile_kernel(error_model="numpy")
def batch_norm_forward(
    op: Ints,
    rows: Ints,
    params: Floats,
    statistics: NDArray[np.float64],
    values: Floats,
    num_examples: int,
    size: int,
    epsilon: float,
    momentum: float,
    is_training: bool,
) -> None:
    """Normalize each channel by the statistics of the batch (and update the running ones), or by the running ones.

    `statistics` has a line for each channel: the running mean and variance, then mean and 1 / σ as used.
    """
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        line = statistics[rows[r, ROW_LAST]]
        count = num_examples * op[HEIGHT] * op[WIDTH]
        mean, variance = line[0], line[1]
        if is_training:
            mean = _mean(op, rows, r, values, num_examples, size, 0.0, False)
            variance = _mean(op, rows, r, values, num_examples, size, mean, True)
            line[0] += momentum * (mean - line[0])
            line[1] += momentum * (variance * count / (count - 1) - line[1])
        line[2], line[3] = mean, 1 / np.sqrt(variance + epsilon)
        factor = np.float32(line[3] * params[rows[r, ROW_BIAS]])
        shift, mean32 = params[rows[r, ROW_FIRST]], np.float32(mean)
        for base in range(0, -(-num_examples // LANES) * size, size):
            for h in range(op[HEIGHT]):
                for w in range(op[WIDTH]):
                    x, y = _positions(op, rows, r, h, w, base)
                    for j in range(LANES):
                        values[y + j] = (values[x + j] - mean32) * factor + shift


@compile_kernel(error_model="numpy")
def _mean(
    op: Ints, rows: Ints, r: int, values: Floats, num_examples: int, size: int, center: float, is_squared: bool
) -> float:
    """The mean of the values of a channel, or of their squared differences from `center`, over the examples."""
    sums = np.zeros(LANES)
    for base in range(0, -(-num_examples // LANES) * size, size):
        num_lanes = min(LANES, num_examples - base // size * LANES)
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, _ = _positions(op, rows, r, h, w, base)
                for j in range(num_lanes):
                    difference = values[x + j] - center
                    sums[j] += difference * difference if is_squared else difference
    return float(sums.sum() / (num_examples * op[HEIGHT] * op[WIDTH]))


@compile_kernel(error_model="numpy")
def batch_norm_backward(
    op: Ints,
    rows: Ints,
    params: Floats,
    gradients: Floats,
    statistics: NDArray[np.float64],
    values: Floats,
    slopes: Floats,
    num_examples: int,
    size: int,
    is_training: bool,
) -> None:
    """Set the gradients of the input, the weight and the bias (Ioffe & Szegedy 2015, section 3)."""
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        mean, inverse = statistics[rows[r, ROW_LAST], 2], statistics[rows[r, ROW_LAST], 3]
        count = num_examples * op[HEIGHT] * op[WIDTH]
        sums, products = np.zeros(LANES), np.zeros(LANES)
        for base in range(0, -(-num_examples // LANES) * size, size):
            for h in range(op[HEIGHT]):
                for w in range(op[WIDTH]):
                    x, y = _positions(op, rows, r, h, w, base)
                    for j in range(LANES):
                        sums[j] += slopes[y + j]
                        products[j] += slopes[y + j] * ((values[x + j] - mean) * inverse)
        bias, weight = sums.sum(), products.sum()
        gradients[rows[r, ROW_BIAS]], gradients[rows[r, ROW_FIRST]] = weight, bias
        factor = np.float32(inverse * params[rows[r, ROW_BIAS]])
        a = np.float32(bias / count if is_training else 0.0)
        b = np.float32(weight / count * inverse if is_training else 0.0)
        mean32 = np.float32(mean)
        for base in range(0, -(-num_examples // LANES) * size, size):
            num_lanes = min(LANES, num_examples - base // size * LANES)
            for h in range(op[HEIGHT]):
                for w in range(op[WIDTH]):
                    x, y = _positions(op, rows, r, h, w, base)
                    for j in range(num_lanes):
                        slopes[x + j] = factor * (slopes[y + j] - a - (values[x + j] - mean32) * b)
