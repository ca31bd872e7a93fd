"""The tables of the compiled kernels: what is computed in which order, where, and with which parameters."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunus.training.sparse import arrays as fields
from prunus.training.sparse.places import Connection, Slot, convolution_settings, live_features
from prunus.training.sparse.vectors import LANES, TILE, zeros

CACHE_BYTES = 384 * 1024
"""The largest size of the inputs of a tile of positions, below the second-level cache of most CPUs."""
_KINDS = ("weighted", "relu", "tanh", "sigmoid", "dropout", "max_pool", "batch_norm")
"""In the order of their numbers in `arrays`."""


class Parameter:
    """A parameter of the model in the flat vector of the kept weights and of all other parameters."""

    def __init__(self, tensor: Tensor, mask: Tensor | None, first: int) -> None:
        self.tensor = tensor
        self.indices = (
            torch.arange(tensor.numel()) if mask is None else mask.cpu().reshape(-1).nonzero().reshape(-1)
        )
        """The flat indices of the kept entries."""
        self.first, self.last = first, first + len(self.indices)

    def read(self, tensor: Tensor) -> NDArray[np.float32]:
        """The kept entries of a tensor of the shape of the parameter."""
        entries: NDArray[np.float32] = tensor.detach().reshape(-1).index_select(0, self.indices).numpy()
        return entries

    def write(self, tensor: Tensor, values: NDArray[np.float32]) -> None:
        """Set the kept entries of a tensor of the shape of the parameter; the others stay.

        Args:
            tensor: The parameter, or a state of its optimizer; changed in place.
            values: The flat vector of all parameters.
        """
        flat = tensor.detach().reshape(-1)  # a copy, where the memory order is another (channels-last)
        flat.index_copy_(0, self.indices, torch.from_numpy(values[self.first : self.last]))
        if flat.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(flat.reshape(tensor.shape))


def list_parameters(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Parameter]:
    """The parameters of a model by name: first the weights, which have two or more dimensions, then the others.

    Args:
        model: The model.
        masks: Boolean tensors by parameter name; a parameter without one is kept.

    Returns:
        The parameters, each with its range in the flat vector.
    """
    parameters, first = {}, 0
    for name, tensor in sorted(model.named_parameters(), key=lambda item: item[1].dim() < 2):
        parameters[name] = Parameter(tensor, masks.get(name), first)
        first = parameters[name].last
    return parameters


def make_arrays(connections: Sequence[Connection], parameters: Mapping[str, Parameter]) -> fields.Arrays:
    """The arrays of a network, with zeros for parameters and statistics, and without room for activations.

    Args:
        connections: The layers with their places.
        parameters: The parameters by name.

    Returns:
        The arrays.
    """
    tables = _Tables(connections, parameters)
    source, last = connections[0].source, connections[-1].target
    places = source.place + source.places()
    tiles = np.arange(0, len(places) - TILE + 1, TILE)
    if len(tiles):
        tiles = tiles[np.logical_or.reduceat(live_features(connections[0]), tiles)]
    sizes = np.zeros(fields.NUM_SIZES, np.int64)
    sizes[fields.SIZE] = last.place + last.channels * last.area
    sizes[fields.INPUT_SIZE] = source.channels * source.area
    sizes[fields.LOGITS], sizes[fields.NUM_CLASSES] = last.place, last.channels
    sizes[fields.NUM_WEIGHTS] = sum(p.last - p.first for p in parameters.values() if p.tensor.dim() > 1)
    size = len(tables.offsets)
    return fields.Arrays(
        tables.ops, tables.numbers, np.concatenate(tables.rows), tables.offsets, places, tiles, sizes,
        params=np.zeros(size, np.float32), gradients=np.zeros(size, np.float32),
        statistics=np.zeros((tables.num_statistics, 4)), values=zeros(0), slopes=zeros(0),
    )  # fmt: skip


class _Tables:
    """The operations, rows and offsets of the layers, filled one layer after the other."""

    def __init__(self, connections: Sequence[Connection], parameters: Mapping[str, Parameter]) -> None:
        self._first = {name: parameter.first for name, parameter in parameters.items()}
        self.ops = np.zeros((len(connections), fields.NUM_FIELDS), np.int64)
        self.numbers = np.zeros((len(connections), 2))
        self.offsets = np.zeros(max(p.last for p in parameters.values()), np.int32)
        self.num_statistics = 0
        self.rows = [self._add(number, connection) for number, connection in enumerate(connections)]

    def _add(self, number: int, connection: Connection) -> NDArray[np.int64]:
        """Fill the operation of a layer; returns its rows."""
        op, layer, source, target = self.ops[number], connection.layer, connection.source, connection.target
        op[fields.KIND], op[fields.NUMBER] = _KINDS.index(layer.kind), number
        has_parameters = np.isin(self.ops[:number, fields.KIND], (fields.WEIGHTED, fields.BATCH_NORM))
        op[fields.NEEDS_GRADIENT] = has_parameters.any()
        op[fields.INPUT], op[fields.OUTPUT] = source.place + source.corner, target.place + target.corner
        op[fields.HEIGHT], op[fields.WIDTH] = target.height, target.width
        op[fields.TILE_HEIGHT], op[fields.TILE_WIDTH] = target.height, target.width
        op[fields.OUTPUT_STRIDE] = target.stride
        op[fields.STEP_DOWN], op[fields.STEP_RIGHT] = source.stride, 1
        live = np.flatnonzero(target.live)
        rows = np.full((len(live), fields.NUM_COLUMNS), -1, np.int64)
        rows[:, fields.ROW_INPUT], rows[:, fields.ROW_OUTPUT] = live * source.area, live * target.area
        if layer.kind == "weighted":
            self._add_weights(connection, op, rows, live)
        elif layer.kind == "max_pool":
            op[fields.WINDOW], op[fields.WINDOW_STRIDE] = layer.window, source.stride
            op[fields.STEP_DOWN], op[fields.STEP_RIGHT] = layer.stride * source.stride, layer.stride
        elif isinstance(layer.module, nn.Dropout):
            self.numbers[number, 0] = layer.module.p
        elif isinstance(layer.module, nn.BatchNorm1d | nn.BatchNorm2d):
            self.numbers[number] = layer.module.eps, layer.module.momentum
            op[fields.USES_BATCH] = layer.module.training
            rows[:, fields.ROW_BIAS] = self._first[layer.parameter("weight")] + live
            rows[:, fields.ROW_FIRST] = self._first[layer.parameter("bias")] + live
            rows[:, fields.ROW_LAST] = self.num_statistics + live
            self.num_statistics += target.channels
        op[fields.FIRST_ROW] = self.ops[number - 1, fields.LAST_ROW] if number else 0
        op[fields.LAST_ROW] = op[fields.FIRST_ROW] + len(live)
        return rows

    def _add_weights(
        self, connection: Connection, op: fields.Int64Array, rows: fields.Int64Array, live: NDArray[np.int64]
    ) -> None:
        """Set the fields of a linear layer or a convolution, its rows, and the offset of each kept weight."""
        source, layer, mask = connection.source, connection.layer, connection.mask
        places = np.nonzero(mask)
        op[fields.INPUT] = source.place
        if isinstance(layer.module, nn.Conv2d):
            kernel, stride, padding, dilation = convolution_settings(layer.module)
            channel = places[0] // (len(mask) // layer.module.groups) * mask.shape[1] + places[1]
            down, right = (
                source.border - p + k * d for p, k, d in zip(padding, places[2:], dilation, strict=True)
            )
            offsets = channel * source.area + down * source.stride + right
            op[fields.STEP_DOWN], op[fields.STEP_RIGHT] = stride[0] * source.stride, stride[1]
            op[fields.TILE_HEIGHT], op[fields.TILE_WIDTH] = _tile(source, connection.target, kernel, stride)
        else:
            offsets = source.places()[places[1]]
        first = self._first[layer.parameter("weight")]
        self.offsets[first : first + len(offsets)] = offsets
        counts = mask.reshape(len(mask), -1).sum(1)
        ends = first + counts.cumsum()
        rows[:, fields.ROW_FIRST], rows[:, fields.ROW_LAST] = (ends - counts)[live], ends[live]
        if layer.module is not None and layer.module.bias is not None:
            rows[:, fields.ROW_BIAS] = self._first[layer.parameter("bias")] + live


def _tile(source: Slot, target: Slot, kernel: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the largest tile, halved from the whole output, whose inputs fit into `CACHE_BYTES`."""
    tile = [target.height, target.width]
    while max(tile) > 1:
        lines, columns = ((t - 1) * s + k for t, s, k in zip(tile, stride, kernel, strict=True))
        if source.live.sum() * lines * columns * 4 * LANES <= CACHE_BYTES:
            break
        longer = 0 if tile[0] >= tile[1] else 1
        tile[longer] = -(-tile[longer] // 2)
    return tile[0], tile[1]
