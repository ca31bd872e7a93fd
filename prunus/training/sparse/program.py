"""Compiled training steps and evaluation: the operations of a network in their order, on batches of examples."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunus.compiled import compile_kernel
from prunus.training.sparse.arrays import (
    BATCH_NORM,
    DROPOUT,
    MAX_POOL,
    WEIGHTED,
    Arrays,
    Float32Array,
    Float64Array,
    Int64Array,
    num_blocks,
)
from prunus.training.sparse.batch_norm import batch_norm_backward, batch_norm_forward
from prunus.training.sparse.elementwise import (
    activation_backward,
    activation_forward,
    dropout,
    max_pool_backward,
    max_pool_forward,
)
from prunus.training.sparse.layers import input_gradients, weight_gradients, weighted_forward
from prunus.training.sparse.optimizers import OptimizerSettings, optimizer_step
from prunus.training.sparse.vectors import LANES, TILE, never_inline, transpose_tile
from prunus.types import IGNORE_INDEX


class OrderedExamples(NamedTuple):
    """Examples in the order in which batches take them."""

    inputs: Float32Array
    """The features of all examples, one example after the other."""
    labels: Int64Array
    order: Int64Array
    """The indices of the examples of one batch after the other."""


@compile_kernel(error_model="numpy")
def _gather(net: Arrays, examples: OrderedExamples, first: int, last: int) -> None:
    """Write a batch as vectors; lanes after the last example repeat it."""
    never_inline()
    num_features, starts = len(net.places), np.empty(LANES, np.int64)
    for block in range(num_blocks(last - first)):
        offset = block * net.block_size * LANES
        for j in range(LANES):
            starts[j] = examples.order[min(first + block * LANES + j, last - 1)] * num_features
        for feature in net.tiles:
            for lane in range(0, LANES, TILE):
                transpose_tile(examples.inputs, starts, lane, feature, net.values, net.places, offset + lane)
        for feature in range(num_features // TILE * TILE, num_features):
            for j in range(LANES):
                net.values[offset + net.places[feature] * LANES + j] = examples.inputs[starts[j] + feature]


@compile_kernel(error_model="numpy")
def _forward(net: Arrays, num_examples: int, key: int, is_training: bool) -> None:
    """Compute all operations for a batch."""
    never_inline()
    for i in range(len(net.ops)):
        op = net.ops[i]
        if op.kind == BATCH_NORM:
            batch_norm_forward(net, op, num_examples, is_training and op.uses_batch == 1)
            continue
        for block in range(num_blocks(num_examples)):
            base = block * net.block_size
            if op.kind == WEIGHTED:
                weighted_forward(net, op, base)
            elif op.kind == MAX_POOL:
                max_pool_forward(net, op, base)
            elif op.kind == DROPOUT:
                dropout(net, op, op.probability if is_training else 0.0, key, base, False)
            else:
                activation_forward(net, op, base)


@compile_kernel(error_model="numpy")
def _backward(net: Arrays, num_examples: int, key: int) -> None:
    """Compute the gradients of the parameters from those of the logits."""
    never_inline()
    for i in range(len(net.ops) - 1, -1, -1):
        op = net.ops[i]
        if op.kind == BATCH_NORM:
            batch_norm_backward(net, op, num_examples, op.uses_batch == 1)
            continue
        for block in range(num_blocks(num_examples)):
            base = block * net.block_size
            if op.kind == WEIGHTED:
                weight_gradients(net, op, base)
                if op.needs_gradient:
                    input_gradients(net, op, base)
            elif not op.needs_gradient:
                continue
            elif op.kind == MAX_POOL:
                max_pool_backward(net, op, base)
            elif op.kind == DROPOUT:
                dropout(net, op, op.probability, key, base, True)
            else:
                activation_backward(net, op, base)


@compile_kernel(error_model="numpy")
def _cross_entropy(
    net: Arrays, examples: OrderedExamples, first: int, last: int, num_labeled: int
) -> tuple[float, int]:
    """The sum of losses and the number of correct predictions; with `num_labeled`, also the gradients of the mean."""
    never_inline()
    num_classes = net.num_classes
    loss, correct, powers = 0.0, 0, np.empty(num_classes, np.float32)
    for j in range(last - first):
        label = examples.labels[examples.order[first + j]]
        place = (j // LANES * net.block_size + net.logits) * LANES + j % LANES
        highest, best = net.values[place], 0
        for c in range(1, num_classes):
            logit = net.values[place + c * LANES]
            if logit > highest or (logit != logit and highest == highest):
                highest, best = logit, c
        total = np.float32(0)
        for c in range(num_classes):
            powers[c] = np.exp(net.values[place + c * LANES] - highest)
            total += powers[c]
        if label != IGNORE_INDEX:
            loss += np.log(total) - (net.values[place + label * LANES] - highest)
            correct += best == label
        if num_labeled and label != IGNORE_INDEX:
            for c in range(num_classes):
                gradient = powers[c] / total - np.float32(c == label)
                net.value_gradients[place + c * LANES] = gradient / np.float32(num_labeled)
    return loss, correct


@compile_kernel(error_model="numpy")
def _batch_gradients(
    net: Arrays, examples: OrderedExamples, first: int, last: int, key: int
) -> tuple[float, int]:
    """Compute the gradients of a batch; the sum of its losses and the number of its labels."""
    never_inline()
    num_labeled = 0
    for j in range(first, last):
        num_labeled += examples.labels[examples.order[j]] != IGNORE_INDEX
    if num_labeled == 0:
        return 0.0, 0
    _gather(net, examples, first, last)
    _forward(net, last - first, key, True)
    used = num_blocks(last - first) * net.block_size * LANES
    net.value_gradients[net.num_inputs * LANES : used] = 0
    net.gradients[:] = 0
    loss, _ = _cross_entropy(net, examples, first, last, num_labeled)
    _backward(net, last - first, key)
    return loss, num_labeled


@compile_kernel(error_model="numpy")
def train_batches(
    net: Arrays, examples: OrderedExamples, batch_size: int, settings: OptimizerSettings, moments: Float32Array,
    learning_rates: Float64Array, keys: NDArray[np.uint64], step: int,
) -> tuple[float, int, int]:  # fmt: skip
    """Take one step per learning rate, each on the next batch; a batch without labels is left out.

    Args:
        net: The network.
        examples: The examples, of whose order all are used.
        batch_size: Examples per batch; the last batch may be smaller.
        settings: The optimizer and the penalty.
        moments: The state of the optimizer [2, P].
        learning_rates: The learning rate of each step.
        keys: 64 random bits of each step, for dropout.
        step: The number of steps that the optimizer has taken.

    Returns:
        The sum of the losses in nats, each before its step, the number of labeled examples, and the number of steps
        that the optimizer has taken.
    """
    loss, num_labeled = 0.0, 0
    for i in range(len(learning_rates)):
        first, last = i * batch_size, min((i + 1) * batch_size, len(examples.order))
        result = _batch_gradients(net, examples, first, last, keys[i])
        if result[1]:
            loss, num_labeled, step = loss + result[0], num_labeled + result[1], step + 1
            optimizer_step(net, moments, settings, learning_rates[i], step)
    return loss, num_labeled, step


@compile_kernel(error_model="numpy")
def evaluate_batches(net: Arrays, examples: OrderedExamples, batch_size: int) -> tuple[float, int]:
    """Evaluate examples in evaluation mode.

    Args:
        net: The network.
        examples: The examples, of whose order all are used.
        batch_size: Examples per forward pass.

    Returns:
        The sum of the losses in nats and the number of correct predictions of the labeled examples.
    """
    loss, correct = 0.0, 0
    for first in range(0, len(examples.order), batch_size):
        last = min(first + batch_size, len(examples.order))
        _gather(net, examples, first, last)
        _forward(net, last - first, np.uint64(0), False)
        result = _cross_entropy(net, examples, first, last, 0)
        loss, correct = loss + result[0], correct + result[1]
    return loss, correct
