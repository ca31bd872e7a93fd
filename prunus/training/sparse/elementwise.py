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
from prunus.training.sparse.vectors import (
    LANES,
    load,
    maximum,
    multiply_add,
    never_inline,
    positive_part,
    store,
    where_equal,
    where_positive,
)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_DROPPED_PER_NUMBER = 4
"""Examples that one random number of 64 bits decides about, with 16 bits each."""


@compile_kernel(error_model="numpy")
def _places(op: Ints, rows: Ints, r: int, h: int, w: int, base: int) -> tuple[int, int]:
    """The places of the input and of the output of a row at a position."""
    x = base + op[INPUT] + rows[r, ROW_INPUT] + h * op[STEP_DOWN] + w * op[STEP_RIGHT]
    y = base + op[OUTPUT] + rows[r, ROW_OUTPUT] + h * op[OUTPUT_STRIDE] + w
    return x, y


@compile_kernel(error_model="numpy")
def activation_forward(op: Ints, rows: Ints, values: Floats, base: int) -> None:
    """Compute ReLU, tanh or the logistic function; NaN stays NaN."""
    never_inline()
    one = np.float32(1)
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, y = _places(op, rows, r, h, w, base)
                if op[KIND] == RELU:
                    store(values, y, positive_part(load(values, x)))
                elif op[KIND] == TANH:
                    for j in range(LANES):
                        values[y * LANES + j] = np.tanh(values[x * LANES + j])
                else:
                    for j in range(LANES):
                        values[y * LANES + j] = one / (one + np.exp(-values[x * LANES + j]))


@compile_kernel(error_model="numpy")
def activation_backward(op: Ints, rows: Ints, values: Floats, slopes: Floats, base: int) -> None:
    """Set the gradient of the input from that of the output, which may be in the same place."""
    never_inline()
    one = np.float32(1)
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, y = _places(op, rows, r, h, w, base)
                if op[KIND] == RELU:
                    slope = where_positive(load(values, y), load(slopes, y))
                    store(slopes, x, slope)
                elif op[KIND] == TANH:
                    for j in range(LANES):
                        slopes[x * LANES + j] = slopes[y * LANES + j] * (one - values[y * LANES + j] * values[y * LANES + j])
                else:
                    for j in range(LANES):
                        slopes[x * LANES + j] = slopes[y * LANES + j] * values[y * LANES + j] * (one - values[y * LANES + j])


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
    never_inline()
    scale = np.float32(1 / (1 - probability) if probability < 1 else 0)
    threshold = np.uint64(round(probability * 65536))
    key = _random_bits(key, op[NUMBER])
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, y = _places(op, rows, r, h, w, base)
                read, write = (y * LANES, x * LANES) if is_backward else (x * LANES, y * LANES)
                for j in range(0, LANES, _DROPPED_PER_NUMBER):
                    bits = _random_bits(key, y * LANES + j)
                    for i in range(_DROPPED_PER_NUMBER):
                        is_kept = (bits >> np.uint64(16 * i)) & np.uint64(65535) >= threshold
                        target[write + j + i] = source[read + j + i] * scale if is_kept else np.float32(0)


@compile_kernel(error_model="numpy")
def max_pool_forward(op: Ints, rows: Ints, values: Floats, base: int) -> None:
    """Compute the maximum of each window; NaN if the window has one."""
    never_inline()
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, y = _places(op, rows, r, h, w, base)
                result = load(values, x)
                for i in range(1, op[WINDOW] * op[WINDOW]):
                    place = x + i // op[WINDOW] * op[WINDOW_STRIDE] + i % op[WINDOW]
                    result = maximum(result, load(values, place))
                store(values, y, result)


@compile_kernel(error_model="numpy")
def max_pool_backward(op: Ints, rows: Ints, values: Floats, slopes: Floats, base: int) -> None:
    """Add the gradient of each maximum to its first place in the window."""
    never_inline()
    one = np.float32(1)
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, y = _places(op, rows, r, h, w, base)
                highest, rest = load(values, y), load(slopes, y)
                for i in range(op[WINDOW] * op[WINDOW]):
                    place = x + i // op[WINDOW] * op[WINDOW_STRIDE] + i % op[WINDOW]
                    part = where_equal(load(values, place), highest, rest)
                    store(slopes, place, multiply_add(one, part, load(slopes, place)))
                    rest = multiply_add(-one, part, rest)  # later places receive nothing


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
    never_inline()
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
                    x, y = _places(op, rows, r, h, w, base)
                    for j in range(LANES):
                        values[y * LANES + j] = (values[x * LANES + j] - mean32) * factor + shift


@compile_kernel(error_model="numpy")
def _mean(
    op: Ints, rows: Ints, r: int, values: Floats, num_examples: int, size: int, center: float, is_squared: bool
) -> float:
    """The mean of the values of a channel, or of their squared differences from `center`, over the examples."""
    never_inline()
    sums = np.zeros(LANES)
    for base in range(0, -(-num_examples // LANES) * size, size):
        num_lanes = min(LANES, num_examples - base // size * LANES)
        for h in range(op[HEIGHT]):
            for w in range(op[WIDTH]):
                x, _ = _places(op, rows, r, h, w, base)
                for j in range(num_lanes):
                    difference = values[x * LANES + j] - center
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
    never_inline()
    for r in range(op[FIRST_ROW], op[LAST_ROW]):
        mean, inverse = statistics[rows[r, ROW_LAST], 2], statistics[rows[r, ROW_LAST], 3]
        count = num_examples * op[HEIGHT] * op[WIDTH]
        sums, products = np.zeros(LANES), np.zeros(LANES)
        for base in range(0, -(-num_examples // LANES) * size, size):
            for h in range(op[HEIGHT]):
                for w in range(op[WIDTH]):
                    x, y = _places(op, rows, r, h, w, base)
                    for j in range(LANES):
                        sums[j] += slopes[y * LANES + j]
                        products[j] += slopes[y * LANES + j] * ((values[x * LANES + j] - mean) * inverse)
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
                    x, y = _places(op, rows, r, h, w, base)
                    for j in range(num_lanes):
                        slopes[x * LANES + j] = factor * (slopes[y * LANES + j] - a - (values[x * LANES + j] - mean32) * b)
