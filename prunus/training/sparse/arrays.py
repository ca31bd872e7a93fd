"""The arrays of a network: what compiled kernels read and write.

Activations are vectors of `LANES` examples in one flat array; a place is the number of a vector in it. A batch is cut
into blocks of `LANES` examples, each with its own range of places. `ops` has one record for each operation, and
`rows` one for each neuron or channel that the output depends on; dead neurons and channels have none and are not
computed.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunus.compiled import compile_kernel
from prunus.training.sparse.vectors import LANES

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
RecordArray = NDArray[np.void]
Record = Any
"""One entry of a structured array; its fields are attributes in compiled kernels."""

WEIGHTED, RELU, TANH, SIGMOID, DROPOUT, MAX_POOL, BATCH_NORM = range(7)
"""The kinds of operations. A linear layer is a convolution with one position."""


def _record(**types: str) -> np.dtype[np.void]:
    """A structured dtype whose fields have names, separated by blanks, of each type."""
    return np.dtype([(name, kind) for kind, names in types.items() for name in names.split()], align=True)


OPERATION = _record(
    i8="kind number needs_gradient input output first_row last_row height width output_stride step_down step_right "
    "tile_height tile_width window window_stride uses_batch",
    f8="probability epsilon momentum",
)
"""An operation: its kind and number; whether the gradient of its input is needed; the first places of input and output;
the range in `rows`; the positions of the output; places from one row of the output to the next; places in the input
from one position to the next, down and to the right; the tile of positions whose inputs fit into the cache; the side of
a pooling window and the places between its rows; whether BatchNorm is trained with the statistics of the batch; the
probability of dropout; epsilon and momentum of BatchNorm."""

ROW = _record(i8="input output bias first last scale statistics")
"""A neuron or channel: places relative to input and output, the index of the bias (-1: none) and the range of the kept
weights; of BatchNorm the index of the weight, `scale`, and the index in `statistics`."""

STATISTICS = _record(f8="mean variance center inverse")
"""The running mean and variance of a channel, which are float32 numbers as in the model, then the mean and 1 / σ that
the last forward pass used."""


class Arrays(NamedTuple):
    """The tables of a network, its parameters and the activations of a batch."""

    ops: RecordArray
    """The operations in their order."""
    rows: RecordArray
    """The neurons and channels that are computed."""
    offsets: NDArray[np.int32]
    """The place of the input of each kept weight, relative to that of the position."""
    places: Int64Array
    """The place of each input feature."""
    tiles: Int64Array
    """The first features of the groups of `TILE` features that are read."""
    block_size: int
    """The places of a block."""
    num_inputs: int
    """The places of the inputs, which are the first."""
    logits: int
    """The first place of the logits."""
    num_classes: int
    num_weights: int
    """The number of weights, which are the first parameters."""
    params: Float32Array
    """Kept weights, then all other parameters."""
    gradients: Float32Array
    statistics: RecordArray
    """One record for each channel of BatchNorm."""
    values: Float32Array
    """The activations."""
    value_gradients: Float32Array
    """The gradients of the activations."""


@compile_kernel(error_model="numpy")
def num_blocks(num_examples: int) -> int:
    """The number of blocks of a batch."""
    return -(-num_examples // LANES)
