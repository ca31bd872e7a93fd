"""Compiled kernels of linear layers and convolutions: forward, and both gradients, of kept weights only."""

import numpy as np

from prunus.compiled import compile_kernel
from prunus.training.sparse.arrays import Arrays, Record
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
def weighted_forward(net: Arrays, op: Record, base: int) -> None:
    """Compute y = Σ w x + b over kept weights for a block of examples.

    Args:
        net: The network.
        op: The operation.
        base: The first place of the block.
    """
    never_inline()
    for top in range(0, op.height, op.tile_height):
        for left in range(0, op.width, op.tile_width):
            for row in net.rows[op.first_row : op.last_row]:
                bias = net.params[row.bias] if row.bias >= 0 else np.float32(0)
                for h in range(top, min(top + op.tile_height, op.height)):
                    for w in range(left, min(left + op.tile_width, op.width)):
                        x = base + op.input + h * op.step_down + w * op.step_right
                        result = splat(bias)
                        for k in range(row.first, row.last):
                            result = multiply_add(net.params[k], load(net.values, x + net.offsets[k]), result)
                        place = base + op.output + row.output + h * op.output_stride + w
                        store(net.values, place, result)


@compile_kernel(error_model="numpy")
def weight_gradients(net: Arrays, op: Record, base: int) -> None:
    """Add the gradients of kept weights and biases from a block of examples.

    Args:
        net: The network.
        op: The operation.
        base: The first place of the block.
    """
    never_inline()
    if op.height * op.width == 1:
        _linear_gradients(net, op, base)
        return
    one, zero = np.float32(1), splat(np.float32(0))
    for top in range(0, op.height, op.tile_height):
        for left in range(0, op.width, op.tile_width):
            bottom, right = min(top + op.tile_height, op.height), min(left + op.tile_width, op.width)
            for row in net.rows[op.first_row : op.last_row]:
                output = base + op.output + row.output
                if row.bias >= 0:
                    result = zero
                    for h in range(top, bottom):
                        for w in range(left, right):
                            gradient = load(net.value_gradients, output + h * op.output_stride + w)
                            result = multiply_add(one, gradient, result)
                    net.gradients[row.bias] += total(result)
                for k in range(row.first, row.last):
                    x, result = base + op.input + net.offsets[k], zero
                    for h in range(top, bottom):
                        for w in range(left, right):
                            gradient = load(net.value_gradients, output + h * op.output_stride + w)
                            value = load(net.values, x + h * op.step_down + w * op.step_right)
                            result = multiply_add_entries(gradient, value, result)
                    net.gradients[k] += total(result)


@compile_kernel(error_model="numpy")
def _linear_gradients(net: Arrays, op: Record, base: int) -> None:
    """The gradients of a layer with one position: the gradient of a neuron is loaded once."""
    never_inline()
    zero = splat(np.float32(0))
    for row in net.rows[op.first_row : op.last_row]:
        gradient = load(net.value_gradients, base + op.output + row.output)
        if row.bias >= 0:
            net.gradients[row.bias] += total(gradient)
        for k in range(row.first, row.last):
            value = load(net.values, base + op.input + net.offsets[k])
            net.gradients[k] += total(multiply_add_entries(gradient, value, zero))


@compile_kernel(error_model="numpy")
def input_gradients(net: Arrays, op: Record, base: int) -> None:
    """Add the gradient of the input for a block of examples.

    Args:
        net: The network.
        op: The operation.
        base: The first place of the block.
    """
    never_inline()
    for top in range(0, op.height, op.tile_height):
        for left in range(0, op.width, op.tile_width):
            for row in net.rows[op.first_row : op.last_row]:
                for h in range(top, min(top + op.tile_height, op.height)):
                    for w in range(left, min(left + op.tile_width, op.width)):
                        x = base + op.input + h * op.step_down + w * op.step_right
                        place = base + op.output + row.output + h * op.output_stride + w
                        gradient = load(net.value_gradients, place)
                        for k in range(row.first, row.last):
                            place = x + net.offsets[k]
                            result = multiply_add(net.params[k], gradient, load(net.value_gradients, place))
                            store(net.value_gradients, place, result)
