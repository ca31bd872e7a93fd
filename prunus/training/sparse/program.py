"""Compiled training steps and evaluation: operations of a network in their order, on batches of examples."""

import numpy as np
from numpy.typing import NDArray

from prunus.compiled import compile_kernel
from prunus.training.sparse.elementwise import (
    activation_backward,
    activation_forward,
    batch_norm_backward,
    batch_norm_forward,
    dropout,
    max_pool_backward,
    max_pool_forward,
)
from prunus.training.sparse.layers import (
    BATCH_NORM,
    DROPOUT,
    KIND,
    MAX_POOL,
    NEEDS_GRADIENT,
    USES_BATCH,
    WEIGHTED,
    Floats,
    Ints,
    input_gradients,
    weight_gradients,
    weighted_forward,
)
from prunus.training.sparse.optimizers import ADAM, ADAMW, NESTEROV, adam_step, add_penalty, sgd_step
from prunus.training.sparse.vectors import LANES, TILE, never_inline, transpose_tile

Offsets = NDArray[np.int32]
Settings = NDArray[np.float64]

IGNORE_INDEX = -100
SIZE, INPUT_SIZE, LOGITS, NUM_CLASSES, NUM_WEIGHTS, OPTIMIZER = range(6)
NUM_SHAPE = 6
"""Entries of `shape`: vectors per block of examples, and of those the inputs, which are first; the first place and the
number of the logits; the number of weights, which are the first parameters; the optimizer."""
MOMENTUM, WEIGHT_DECAY, L1, L2 = range(4)
"""Entries of `recipe`."""


@compile_kernel(error_model="numpy")
def gather(
    inputs: Floats, order: Ints, first: int, last: int, places: Ints, tiles: Ints, values: Floats, shape: Ints
) -> None:
    """Write examples `order[first:last]` of the flat `inputs` as vectors, feature i to the place `places[i]`.

    `tiles` has the first features of the groups of `TILE` features that are written; lanes after the last example
    repeat it.
    """
    never_inline()
    num_features, starts = len(places), np.empty(LANES, np.int64)
    for block in range(-(-(last - first) // LANES)):
        offset = block * shape[SIZE] * LANES
        for j in range(LANES):
            starts[j] = order[min(first + block * LANES + j, last - 1)] * num_features
        for feature in tiles:
            for lane in range(0, LANES, TILE):
                transpose_tile(inputs, starts, lane, feature, values, places, offset + lane)
        for feature in range(num_features // TILE * TILE, num_features):
            for j in range(LANES):
                values[offset + places[feature] * LANES + j] = inputs[starts[j] + feature]


@compile_kernel(error_model="numpy")
def forward(
    ops: Ints, rows: Ints, offsets: Offsets, numbers: Settings, params: Floats, statistics: Settings,
    values: Floats, shape: Ints, num_examples: int, key: np.uint64, is_training: bool,
) -> None:  # fmt: skip
    """Compute all operations for a batch; `numbers` has two numbers for each operation."""
    never_inline()
    size = shape[SIZE]
    for i in range(len(ops)):
        op = ops[i]
        first, second = numbers[i, 0], numbers[i, 1]
        if op[KIND] == BATCH_NORM:
            uses_batch = is_training and op[USES_BATCH] == 1
            batch_norm_forward(
                op, rows, params, statistics, values, num_examples, size, first, second, uses_batch
            )
            continue
        for base in range(0, -(-num_examples // LANES) * size, size):
            if op[KIND] == WEIGHTED:
                weighted_forward(op, rows, offsets, params, values, base)
            elif op[KIND] == MAX_POOL:
                max_pool_forward(op, rows, values, base)
            elif op[KIND] == DROPOUT:
                dropout(op, rows, values, values, key, first if is_training else 0.0, base, False)
            else:
                activation_forward(op, rows, values, base)


@compile_kernel(error_model="numpy")
def backward(
    ops: Ints, rows: Ints, offsets: Offsets, numbers: Settings, params: Floats, gradients: Floats,
    statistics: Settings, values: Floats, slopes: Floats, shape: Ints, num_examples: int, key: np.uint64,
) -> None:  # fmt: skip
    """Compute the gradients of kept weights and other parameters from those of the logits, which are in `slopes`."""
    never_inline()
    size = shape[SIZE]
    for i in range(len(ops) - 1, -1, -1):
        op = ops[i]
        if op[KIND] == BATCH_NORM:
            batch_norm_backward(
                op, rows, params, gradients, statistics, values, slopes, num_examples, size, op[USES_BATCH] == 1
            )
            continue
        for base in range(0, -(-num_examples // LANES) * size, size):
            if op[KIND] == WEIGHTED:
                weight_gradients(op, rows, offsets, gradients, values, slopes, base)
                if op[NEEDS_GRADIENT]:
                    input_gradients(op, rows, offsets, params, slopes, base)
            elif not op[NEEDS_GRADIENT]:
                continue
            elif op[KIND] == MAX_POOL:
                max_pool_backward(op, rows, values, slopes, base)
            elif op[KIND] == DROPOUT:
                dropout(op, rows, slopes, slopes, key, numbers[i, 0], base, True)
            else:
                activation_backward(op, rows, values, slopes, base)


@compile_kernel(error_model="numpy")
def cross_entropy(
    labels: Ints, order: Ints, first: int, last: int, values: Floats, slopes: Floats, shape: Ints, num_labeled: int
) -> tuple[float, int]:
    """The sum of the losses in nats and the number of right answers; with `num_labeled`, the gradients of the mean."""
    never_inline()
    size, logits, num_classes = shape[SIZE], shape[LOGITS], shape[NUM_CLASSES]
    loss, correct, powers = 0.0, 0, np.empty(num_classes, np.float32)
    for j in range(last - first):
        label = labels[order[first + j]]
        place = (j // LANES * size + logits) * LANES + j % LANES
        highest, best = values[place], 0
        for c in range(1, num_classes):
            logit = values[place + c * LANES]
            if logit > highest or (logit != logit and highest == highest):
                highest, best = logit, c
        total = np.float32(0)
        for c in range(num_classes):
            powers[c] = np.exp(values[place + c * LANES] - highest)
            total += powers[c]
        if label != IGNORE_INDEX:
            loss += np.log(total) - (values[place + label * LANES] - highest)
            correct += best == label
        if num_labeled:
            for c in range(num_classes):
                slope = powers[c] / total - np.float32(c == label)
                slopes[place + c * LANES] = slope / np.float32(num_labeled) if label != IGNORE_INDEX else 0
    return loss, correct


@compile_kernel(error_model="numpy")
def batch_gradients(
    ops: Ints, rows: Ints, offsets: Offsets, numbers: Settings, places: Ints, tiles: Ints, params: Floats, gradients: Floats,
    statistics: Settings, values: Floats, slopes: Floats, shape: Ints, inputs: Floats, labels: Ints, order: Ints,
    first: int, last: int, key: np.uint64,
) -> tuple[float, int]:  # fmt: skip
    """Compute the gradients of the mean loss of a batch; return the sum of its losses and the number of labels."""
    never_inline()
    num_labeled = 0
    for j in range(first, last):
        num_labeled += labels[order[j]] != IGNORE_INDEX
    if num_labeled == 0:
        return 0.0, 0
    gather(inputs, order, first, last, places, tiles, values, shape)
    forward(ops, rows, offsets, numbers, params, statistics, values, shape, last - first, key, True)
    slopes[shape[INPUT_SIZE] * LANES : -(-(last - first) // LANES) * shape[SIZE] * LANES] = 0
    gradients[:] = 0
    loss, _ = cross_entropy(labels, order, first, last, values, slopes, shape, num_labeled)
    backward(ops, rows, offsets, numbers, params, gradients, statistics, values, slopes, shape, last - first, key)
    return loss, num_labeled


@compile_kernel(error_model="numpy")
def train_batches(
    ops: Ints, rows: Ints, offsets: Offsets, numbers: Settings, places: Ints, tiles: Ints, params: Floats, gradients: Floats,
    moments: Floats, statistics: Settings, values: Floats, slopes: Floats, shape: Ints, recipe: Settings,
    inputs: Floats, labels: Ints, order: Ints, batch_size: int, learning_rates: Settings, step: int,
    keys: NDArray[np.uint64],
) -> tuple[float, int, int]:  # fmt: skip
    """Take one step per learning rate, on batches of `order`; `moments` [2, P] is the state of the optimizer.

    Returns:
        The sum of the losses in nats before each step, the number of labeled examples, and the last optimizer step.
    """
    loss, num_labeled, optimizer = 0.0, 0, shape[OPTIMIZER]
    for i in range(len(learning_rates)):
        first, last = i * batch_size, min((i + 1) * batch_size, len(order))
        result = batch_gradients(
            ops, rows, offsets, numbers, places, tiles, params, gradients, statistics, values, slopes, shape, inputs, labels,
            order, first, last, keys[i],
        )  # fmt: skip
        if result[1] == 0:
            continue
        loss, num_labeled, step = loss + result[0], num_labeled + result[1], step + 1
        add_penalty(params, gradients, shape[NUM_WEIGHTS], recipe[L1], recipe[L2])
        rate, decay = learning_rates[i], recipe[WEIGHT_DECAY]
        if optimizer == ADAM or optimizer == ADAMW:
            adam_step(params, gradients, moments[0], moments[1], rate, decay, step, optimizer == ADAMW)
        else:
            sgd_step(params, gradients, moments[0], rate, recipe[MOMENTUM], decay, optimizer == NESTEROV)
    return loss, num_labeled, step


@compile_kernel(error_model="numpy")
def evaluate_batches(
    ops: Ints, rows: Ints, offsets: Offsets, numbers: Settings, places: Ints, tiles: Ints, params: Floats, statistics: Settings,
    values: Floats, slopes: Floats, shape: Ints, inputs: Floats, labels: Ints, order: Ints, batch_size: int,
) -> tuple[float, int]:  # fmt: skip
    """The sum of the losses in nats and the number of right answers of all examples in `order`."""
    loss, correct = 0.0, 0
    for first in range(0, len(order), batch_size):
        last = min(first + batch_size, len(order))
        gather(inputs, order, first, last, places, tiles, values, shape)
        forward(
            ops, rows, offsets, numbers, params, statistics, values, shape, last - first, np.uint64(0), False
        )
        result = cross_entropy(labels, order, first, last, values, slopes, shape, 0)
        loss, correct = loss + result[0], correct + result[1]
    return loss, correct
