"""Compiled kernels of activations, dropout and max-pooling, for a block of examples."""

import numpy as np

from prunus.compiled import compile_kernel
from prunus.training.sparse.arrays import RELU, TANH, Arrays, Float32Array, Record
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
_DECISIONS = 4
"""The number of examples whose dropout one random number of 64 bits decides, with 16 bits each."""


@compile_kernel(error_model="numpy")
def position_places(op: Record, row: Record, h: int, w: int, base: int) -> tuple[int, int]:
    """The places of the input and of the output of a channel at a position.

    Args:
        op: The operation.
        row: The record of the channel in `rows`.
        h: The row of the output.
        w: The column of the output.
        base: The first place of the block of examples.

    Returns:
        Both places.
    """
    x = base + op.input + row.input + h * op.step_down + w * op.step_right
    return x, base + op.output + row.output + h * op.output_stride + w


@compile_kernel(error_model="numpy")
def activation_forward(net: Arrays, op: Record, base: int) -> None:
    """Compute ReLU, tanh or the logistic function; NaN stays NaN.

    Args:
        net: The network.
        op: The operation.
        base: The first place of the block.
    """
    never_inline()
    one, values = np.float32(1), net.values
    for row in net.rows[op.first_row : op.last_row]:
        for h in range(op.height):
            for w in range(op.width):
                x, y = position_places(op, row, h, w, base)
                if op.kind == RELU:
                    store(values, y, positive_part(load(values, x)))
                elif op.kind == TANH:
                    for j in range(LANES):
                        values[y * LANES + j] = np.tanh(values[x * LANES + j])
                else:
                    for j in range(LANES):
                        values[y * LANES + j] = one / (one + np.exp(-values[x * LANES + j]))


@compile_kernel(error_model="numpy")
def activation_backward(net: Arrays, op: Record, base: int) -> None:
    """Set the gradient of the input from that of the output, which may be in the same place.

    Args:
        net: The network.
        op: The operation.
        base: The first place of the block.
    """
    never_inline()
    one = np.float32(1)
    for row in net.rows[op.first_row : op.last_row]:
        for h in range(op.height):
            for w in range(op.width):
                x, y = position_places(op, row, h, w, base)
                if op.kind == RELU:
                    vector = where_positive(load(net.values, y), load(net.value_gradients, y))
                    store(net.value_gradients, x, vector)
                    continue
                for j in range(LANES):
                    value, gradient = net.values[y * LANES + j], net.value_gradients[y * LANES + j]
                    factor = one - value * value if op.kind == TANH else value * (one - value)
                    net.value_gradients[x * LANES + j] = gradient * factor


@compile_kernel(error_model="numpy")
def _random_bits(key: int, counter: int) -> np.uint64:
    """64 random bits that are a function of key and counter (the finalizer of SplitMix64, Steele et al. 2014)."""
    z = np.uint64(key) + np.uint64(counter) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@compile_kernel(error_model="numpy")
def dropout(net: Arrays, op: Record, probability: float, key: int, base: int, is_backward: bool) -> None:
    """Set values to zero, and multiply the others by 1 / (1 - probability); backward: the same for their gradients.

    Each decision is a function of key, operation, neuron, position and example, so that no mask is stored. It has 16
    random bits.

    Args:
        net: The network.
        op: The operation.
        probability: The probability of zero.
        key: 64 random bits of the step.
        base: The first place of the block.
        is_backward: Whether the gradients are computed.
    """
    never_inline()
    scale = np.float32(1 / (1 - probability) if probability < 1 else 0)
    threshold = np.uint64(round(probability * 65536))
    key = _random_bits(key, op.number)
    for row in net.rows[op.first_row : op.last_row]:
        for h in range(op.height):
            for w in range(op.width):
                x, y = position_places(op, row, h, w, base)
                if is_backward:
                    _drop(net.value_gradients, y, x, y, key, threshold, scale)
                else:
                    _drop(net.values, x, y, y, key, threshold, scale)


@compile_kernel(error_model="numpy")
def _drop(
    array: Float32Array, source: int, target: int, counter: int, key: int, threshold: int, scale: float
) -> None:
    """Write the vector at place `source`, with zeros, to place `target`."""
    for j in range(0, LANES, _DECISIONS):
        bits = _random_bits(key, counter * LANES + j) if threshold else np.uint64(0)
        for i in range(_DECISIONS):
            is_kept = (bits >> np.uint64(16 * i)) & np.uint64(65535) >= threshold
            array[target * LANES + j + i] = array[source * LANES + j + i] * scale * np.float32(is_kept)


@compile_kernel(error_model="numpy")
def max_pool_forward(net: Arrays, op: Record, base: int) -> None:
    """Compute the maximum of each window; NaN if the window has one.

    Args:
        net: The network.
        op: The operation.
        base: The first place of the block.
    """
    never_inline()
    for row in net.rows[op.first_row : op.last_row]:
        for h in range(op.height):
            for w in range(op.width):
                x, y = position_places(op, row, h, w, base)
                result = load(net.values, x)
                for i in range(1, op.window * op.window):
                    place = x + i // op.window * op.window_stride + i % op.window
                    result = maximum(result, load(net.values, place))
                store(net.values, y, result)


@compile_kernel(error_model="numpy")
def max_pool_backward(net: Arrays, op: Record, base: int) -> None:
    """Add the gradient of each maximum to its first place in the window.

    Args:
        net: The network.
        op: The operation.
        base: The first place of the block.
    """
    never_inline()
    one = np.float32(1)
    for row in net.rows[op.first_row : op.last_row]:
        for h in range(op.height):
            for w in range(op.width):
                x, y = position_places(op, row, h, w, base)
                highest, rest = load(net.values, y), load(net.value_gradients, y)
                for i in range(op.window * op.window):
                    place = x + i // op.window * op.window_stride + i % op.window
                    part = where_equal(load(net.values, place), highest, rest)
                    result = multiply_add(one, part, load(net.value_gradients, place))
                    store(net.value_gradients, place, result)
                    rest = multiply_add(-one, part, rest)  # later places receive nothing
