"""Compiled kernels of linear layers and convolutions: forward, and both gradients, of kept weights only."""

import numpy as np

from prunus.compiled import compile_kernel
from prunus.training.sparse.arrays import (
    FIRST_ROW,
    HEIGHT,
    INPUT,
    LAST_ROW,
    OUTPUT,
    OUTPUT_STRIDE,
    ROW_BIAS,
    ROW_FIRST,
    ROW_LAST,
    ROW_OUTPUT,
    STEP_DOWN,
    STEP_RIGHT,
    TILE_HEIGHT,
    TILE_WIDTH,
    WIDTH,
    Arrays,
    Int64Array,
)
from prunus.training.sparse.vectors import (
    load,
    multiply_add,
    multiply_add_entries,
    never_inline,
    splat,
    store,
    total,
)


@compile_kernel(error_model="numpy")
def weighted_forward(net: Arrays, op: Int64Array, base: int) -> None:
    """Compute y = Σ w x + b over kept weights for a block of examples.

    Args:
        net: The network.
        op: The operation.
        base: The first place of the block.
    """
    never_inline()
    for top in range(0, op[HEIGHT], op[TILE_HEIGHT]):
        for left in range(0, op[WIDTH], op[TILE_WIDTH]):
            for row in net.rows[op[FIRST_ROW] : op[LAST_ROW]]:
                bias = net.params[row[ROW_BIAS]] if row[ROW_BIAS] >= 0 else np.float32(0)
                for h in range(top, min(top + op[TILE_HEIGHT], op[HEIGHT])):
                    for w in range(left, min(left + op[TILE_WIDTH], op[WIDTH])):
                        x = base + op[INPUT] + h * op[STEP_DOWN] + w * op[STEP_RIGHT]
                        result = splat(bias)
                        for k in range(row[ROW_FIRST], row[ROW_LAST]):
                            result = multiply_add(net.params[k], load(net.values, x + net.offsets[k]), result)
                        place = base + op[OUTPUT] + row[ROW_OUTPUT] + h * op[OUTPUT_STRIDE] + w
                        store(net.values, place, result)


@compile_kernel(error_model="numpy")
def weight_gradients(net: Arrays, op: Int64Array, base: int) -> None:
    """Add the gradients of kept weights and biases from a block of examples.

    Args:
        net: The network.
        op: The operation.
        base: The first place of the block.
    """
    never_inline()
    if op[HEIGHT] * op[WIDTH] == 1:
        _linear_gradients(net, op, base)
        return
    one, zero = np.float32(1), splat(np.float32(0))
    for top in range(0, op[HEIGHT], op[TILE_HEIGHT]):
        for left in range(0, op[WIDTH], op[TILE_WIDTH]):
            bottom, right = min(top + op[TILE_HEIGHT], op[HEIGHT]), min(left + op[TILE_WIDTH], op[WIDTH])
            for row in net.rows[op[FIRST_ROW] : op[LAST_ROW]]:
                output = base + op[OUTPUT] + row[ROW_OUTPUT]
                if row[ROW_BIAS] >= 0:
                    result = zero
                    for h in range(top, bottom):
                        for w in range(left, right):
                            slope = load(net.slopes, output + h * op[OUTPUT_STRIDE] + w)
                            result = multiply_add(one, slope, result)
                    net.gradients[row[ROW_BIAS]] += total(result)
                for k in range(row[ROW_FIRST], row[ROW_LAST]):
                    x, result = base + op[INPUT] + net.offsets[k], zero
                    for h in range(top, bottom):
                        for w in range(left, right):
                            slope = load(net.slopes, output + h * op[OUTPUT_STRIDE] + w)
                            value = load(net.values, x + h * op[STEP_DOWN] + w * op[STEP_RIGHT])
                            result = multiply_add_entries(slope, value, result)
                    net.gradients[k] += total(result)


@compile_kernel(error_model="numpy")
def _linear_gradients(net: Arrays, op: Int64Array, base: int) -> None:
    """The gradients of a layer with one position: the slope of a neuron is read once."""
    never_inline()
    zero = splat(np.float32(0))
    for row in net.rows[op[FIRST_ROW] : op[LAST_ROW]]:
        slope = load(net.slopes, base + op[OUTPUT] + row[ROW_OUTPUT])
        if row[ROW_BIAS] >= 0:
            net.gradients[row[ROW_BIAS]] += total(slope)
        for k in range(row[ROW_FIRST], row[ROW_LAST]):
            value = load(net.values, base + op[INPUT] + net.offsets[k])
            net.gradients[k] += total(multiply_add_entries(slope, value, zero))


@compile_kernel(error_model="numpy")
def input_gradients(net: Arrays, op: Int64Array, base: int) -> None:
    """Add the gradient of the input for a block of examples.

    Args:
        net: The network.
        op: The operation.
        base: The first place of the block.
    """
    never_inline()
    for top in range(0, op[HEIGHT], op[TILE_HEIGHT]):
        for left in range(0, op[WIDTH], op[TILE_WIDTH]):
            for row in net.rows[op[FIRST_ROW] : op[LAST_ROW]]:
                for h in range(top, min(top + op[TILE_HEIGHT], op[HEIGHT])):
                    for w in range(left, min(left + op[TILE_WIDTH], op[WIDTH])):
                        x = base + op[INPUT] + h * op[STEP_DOWN] + w * op[STEP_RIGHT]
                        place = base + op[OUTPUT] + row[ROW_OUTPUT] + h * op[OUTPUT_STRIDE] + w
                        slope = load(net.slopes, place)
                        for k in range(row[ROW_FIRST], row[ROW_LAST]):
                            place = x + net.offsets[k]
                            result = multiply_add(net.params[k], slope, load(net.slopes, place))
                            store(net.slopes, place, result)
