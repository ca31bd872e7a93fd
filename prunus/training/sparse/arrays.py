"""The arrays of a network: what compiled kernels read and write.

Activations are vectors of `LANES` examples in one flat array; a place is the number of a vector in it. A batch is cut
into blocks of `LANES` examples, each with its own range of places. An operation is one row of an integer table with the
fields below, and `rows` has one line for each neuron or channel that the output depends on; dead neurons and channels
have none and are not computed.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunus.compiled import compile_kernel
from prunus.training.sparse.vectors import LANES

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

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

SIZE, INPUT_SIZE, LOGITS, NUM_CLASSES, NUM_WEIGHTS = range(5)
NUM_SIZES = 5
"""Entries of `sizes`: places of a block, and of those the inputs, which are first; the first place and the number of
logits; the number of weights, which are the first parameters."""

LINE_MEAN, LINE_VARIANCE, LINE_CENTER, LINE_INVERSE = range(4)
"""Columns of `statistics`: the running mean and variance, which are float32 numbers as in the model, then the mean and
1 / σ that the last forward pass used."""


class Arrays(NamedTuple):
    """The tables of a network, its parameters and the activations of a batch."""

    ops: Int64Array
    """The operations [N, fields] in their order."""
    numbers: Float64Array
    """Two numbers of each operation: the probability of dropout, or epsilon and momentum of BatchNorm."""
    rows: Int64Array
    """The neurons and channels that are computed [R, columns]."""
    offsets: NDArray[np.int32]
    """The place of the input of each kept weight, relative to that of the position."""
    places: Int64Array
    """The place of each input feature."""
    tiles: Int64Array
    """The first features of the groups of `TILE` features that are read."""
    sizes: Int64Array
    params: Float32Array
    """Kept weights, then all other parameters."""
    gradients: Float32Array
    statistics: Float64Array
    """One line for each channel of BatchNorm."""
    values: Float32Array
    """The activations."""
    slopes: Float32Array
    """The gradients of the activations."""


@compile_kernel(error_model="numpy")
def num_blocks(num_examples: int) -> int:
    """The number of blocks of a batch."""
    return -(-num_examples // LANES)
