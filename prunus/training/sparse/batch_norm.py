"""Compiled kernels of BatchNorm (Ioffe & Szegedy 2015, section 3), over all examples of a batch."""

import numpy as np

from prunus.compiled import compile_kernel
from prunus.training.sparse.arrays import Arrays, Record, num_blocks
from prunus.training.sparse.elementwise import position_places
from prunus.training.sparse.vectors import LANES, never_inline


@compile_kernel(error_model="numpy")
def batch_norm_forward(net: Arrays, op: Record, num_examples: int, uses_batch: bool) -> None:
    """Normalize each channel.

    Args:
        net: The network.
        op: The operation.
        num_examples: The number of examples of the batch.
        uses_batch: Whether the statistics are those of the batch, which update the running ones; False: the running
            ones.
    """
    never_inline()
    values, count = net.values, num_examples * op.height * op.width
    for row in net.rows[op.first_row : op.last_row]:
        record = net.statistics[row.statistics]
        mean, variance = record.mean, record.variance
        if uses_batch:
            mean = _mean(net, op, row, num_examples, 0.0, False)
            variance = _mean(net, op, row, num_examples, mean, True)
            unbiased = variance * count / (count - 1)
            record.mean = np.float32(record.mean + op.momentum * (mean - record.mean))
            record.variance = np.float32(record.variance + op.momentum * (unbiased - record.variance))
        record.center, record.inverse = mean, 1 / np.sqrt(variance + op.epsilon)
        factor = np.float32(record.inverse * net.params[row.scale])
        shift, center = net.params[row.bias], np.float32(mean)
        for block in range(num_blocks(num_examples)):
            for h in range(op.height):
                for w in range(op.width):
                    x, y = position_places(op, row, h, w, block * net.block_size)
                    for j in range(LANES):
                        values[y * LANES + j] = (values[x * LANES + j] - center) * factor + shift


@compile_kernel(error_model="numpy")
def _mean(net: Arrays, op: Record, row: Record, num_examples: int, center: float, is_squared: bool) -> float:
    """The mean of the values of a channel, or of their squared differences from `center`, over the examples."""
    never_inline()
    sums = np.zeros(LANES)
    for block in range(num_blocks(num_examples)):
        num_lanes = min(LANES, num_examples - block * LANES)
        for h in range(op.height):
            for w in range(op.width):
                x, _ = position_places(op, row, h, w, block * net.block_size)
                for j in range(num_lanes):
                    difference = net.values[x * LANES + j] - center
                    sums[j] += difference * difference if is_squared else difference
    return float(sums.sum() / (num_examples * op.height * op.width))


@compile_kernel(error_model="numpy")
def batch_norm_backward(net: Arrays, op: Record, num_examples: int, uses_batch: bool) -> None:
    """Set the gradients of the input, the weight and the bias.

    Args:
        net: The network.
        op: The operation.
        num_examples: The number of examples of the batch.
        uses_batch: Whether the statistics were those of the batch.
    """
    never_inline()
    values, value_gradients, count = net.values, net.value_gradients, num_examples * op.height * op.width
    for row in net.rows[op.first_row : op.last_row]:
        record = net.statistics[row.statistics]
        mean, inverse = record.center, record.inverse
        sums, products = np.zeros(LANES), np.zeros(LANES)
        for block in range(num_blocks(num_examples)):
            for h in range(op.height):
                for w in range(op.width):
                    x, y = position_places(op, row, h, w, block * net.block_size)
                    for j in range(LANES):
                        gradient = value_gradients[y * LANES + j]
                        sums[j] += gradient
                        products[j] += gradient * ((values[x * LANES + j] - mean) * inverse)
        bias, weight = sums.sum(), products.sum()
        net.gradients[row.scale], net.gradients[row.bias] = weight, bias
        factor, center = np.float32(inverse * net.params[row.scale]), np.float32(mean)
        a = np.float32(bias / count if uses_batch else 0.0)
        b = np.float32(weight / count * inverse if uses_batch else 0.0)
        for block in range(num_blocks(num_examples)):
            num_lanes = min(LANES, num_examples - block * LANES)
            for h in range(op.height):
                for w in range(op.width):
                    x, y = position_places(op, row, h, w, block * net.block_size)
                    for j in range(num_lanes):
                        difference = (values[x * LANES + j] - center) * b
                        value_gradients[x * LANES + j] = factor * (
                            value_gradients[y * LANES + j] - a - difference
                        )
