"""Compiled kernels of layers: forward, gradients of inputs and gradients of kept weights.

Activations are vectors of `LANES` examples in one flat array; a place is the number of a vector in it. An operation is
one row of an integer table with the fields below, and `rows` has one line for each neuron or channel that the output
depends on, so that dead ones are not computed.
"""

import numpy as np
from numpy.typing import NDArray

from prunus.compiled import compile_kernel
from prunus.training.sparse.vectors import (
    load,
    multiply_add,
    multiply_add_entries,
    never_inline,
    splat,
    store,
    total,
)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

WEIGHTED, RELU, TANH, SIGMOID, DROPOUT, MAX_POOL, BATCH_NORM = range(7)
"""The kinds of operations. A linear layer is a convolution with one position."""

KIND, INPUT, OUTPUT, FIRST_ROW, LAST_ROW = range(5)
"""Fields: the kind, the first places of input and output, the range in `rows`."""
HEIGHT, WIDTH, OUTPUT_STRIDE, STEP_DOWN, STEP_RIGHT = range(5, 10)
"""Fields: positions of the output; places from one row of the output to the next; places in the input from one position
to the next, down and to the right."""
NEEDS_GRADIENT, TILE_HEIGHT, TILE_WIDTH, WINDOW, WINDOW_STRIDE, USES_BATCH, NUMBER = range(10, 17)
"""Fields: whether the gradient of the input is needed; the tile of positions whose inputs fit into the cache; the side
of a pooling window and the places between its rows; whether BatchNorm is trained with the statistics of the batch; the
number of the operation."""
NUM_FIELDS = 17

ROW_INPUT, ROW_OUTPUT, ROW_BIAS, ROW_FIRST, ROW_LAST = range(5)
"""Columns of `rows`: places relative to input and output, the index of the bias (-1: none), and the range of the kept
weights. BatchNorm has the indices of its weight, its bias and its statistics in the last three."""
NUM_COLUMNS = 5


@compile_kernel(error_model="numpy")
def weighted_forward(
    op: Ints, rows: Ints, offsets: NDArray[np.int32], params: Floats, values: Floats, base: int
) -> None:
    """Compute a linear layer or a convolution: y = Σ w x + b over kept weights."""
    never_inline()
    for top in range(0, op[HEIGHT], op[TILE_HEIGHT]):
        for left in range(0, op[WIDTH], op[TILE_WIDTH]):
            for r in range(op[FIRST_ROW], op[LAST_ROW]):
                bias = params[rows[r, ROW_BIAS]] if rows[r, ROW_BIAS] >= 0 else np.float32(0)
                first, last = rows[r, ROW_FIRST], rows[r, ROW_LAST]
                for h in range(top, min(top + op[TILE_HEIGHT], op[HEIGHT])):
                    for w in range(left, min(left + op[TILE_WIDTH], op[WIDTH])):
                        x = base + op[INPUT] + h * op[STEP_DOWN] + w * op[STEP_RIGHT]
                        y = base + op[OUTPUT] + rows[r, ROW_OUTPUT] + h * op[OUTPUT_STRIDE] + w
                        result = splat(bias)
                        for k in range(first, last):
                            result = multiply_add(params[k], load(values, x + offsets[k]), result)
                        store(values, y, result)


@compile_kernel(error_model="numpy")
def weight_gradients(
    op: Ints, rows: Ints, offsets: NDArray[np.int32], gradients: Floats, values: Floats, slopes: Floats, base: int
) -> None:
    """Add the gradients of the kept weights and of the biases."""
    never_inline()
    zero = splat(np.float32(0))
    if op[HEIGHT] * op[WIDTH] == 1:
        for r in range(op[FIRST_ROW], op[LAST_ROW]):
            slope = load(slopes, base + op[OUTPUT] + rows[r, ROW_OUTPUT])
            if rows[r, ROW_BIAS] >= 0:
                gradients[rows[r, ROW_BIAS]] += total(slope)
            for k in range(rows[r, ROW_FIRST], rows[r, ROW_LAST]):
                x = load(values, base + op[INPUT] + offsets[k])
                gradients[k] += total(multiply_add_entries(slope, x, zero))
        return
    for top in range(0, op[HEIGHT], op[TILE_HEIGHT]):
        for left in range(0, op[WIDTH], op[TILE_WIDTH]):
            bottom, right = min(top + op[TILE_HEIGHT], op[HEIGHT]), min(left + op[TILE_WIDTH], op[WIDTH])
            for r in range(op[FIRST_ROW], op[LAST_ROW]):
                output = base + op[OUTPUT] + rows[r, ROW_OUTPUT]
                if rows[r, ROW_BIAS] >= 0:
                    result = zero
                    for h in range(top, bottom):
                        for w in range(left, right):
                            result = multiply_add(
                                np.float32(1), load(slopes, output + h * op[OUTPUT_STRIDE] + w), result
                            )
                    gradients[rows[r, ROW_BIAS]] += total(result)
                for k in range(rows[r, ROW_FIRST], rows[r, ROW_LAST]):
                    x, result = base + op[INPUT] + offsets[k], zero
                    for h in range(top, bottom):
                        for w in range(left, right):
                            result = multiply_add_entries(
                                load(slopes, output + h * op[OUTPUT_STRIDE] + w),
                                load(values, x + h * op[STEP_DOWN] + w * op[STEP_RIGHT]),
                                result,
                            )
                    gradients[k] += total(result)


@compile_kernel(error_model="numpy")
def input_gradients(
    op: Ints, rows: Ints, offsets: NDArray[np.int32], params: Floats, slopes: Floats, base: int
) -> None:
    """Add the gradient of the input of a linear layer or a convolution."""
    never_inline()
    for top in range(0, op[HEIGHT], op[TILE_HEIGHT]):
        for left in range(0, op[WIDTH], op[TILE_WIDTH]):
            for r in range(op[FIRST_ROW], op[LAST_ROW]):
                for h in range(top, min(top + op[TILE_HEIGHT], op[HEIGHT])):
                    for w in range(left, min(left + op[TILE_WIDTH], op[WIDTH])):
                        x = base + op[INPUT] + h * op[STEP_DOWN] + w * op[STEP_RIGHT]
                        y = base + op[OUTPUT] + rows[r, ROW_OUTPUT] + h * op[OUTPUT_STRIDE] + w
                        slope = load(slopes, y)
                        for k in range(rows[r, ROW_FIRST], rows[r, ROW_LAST]):
                            place = x + offsets[k]
                            store(slopes, place, multiply_add(params[k], slope, load(slopes, place)))
