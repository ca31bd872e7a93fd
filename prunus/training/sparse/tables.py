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
        all_indices = torch.arange(tensor.numel())
        self.indices = all_indices if mask is None else all_indices[mask.cpu().reshape(-1)]
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
    size = len(tables.offsets)
    return fields.Arrays(
        tables.ops, np.concatenate(tables.rows), tables.offsets, places, tiles,
        block_size=last.place + last.channels * last.area, num_inputs=source.channels * source.area,
        logits=last.place, num_classes=last.channels,
        num_weights=sum(p.last - p.first for p in parameters.values() if p.tensor.dim() > 1),
        params=np.zeros(size, np.float32), gradients=np.zeros(size, np.float32),
        statistics=np.zeros(tables.num_statistics, fields.STATISTICS), values=zeros(0), value_gradients=zeros(0),
    )  # fmt: skip


class _Tables:
    """The operations, rows and offsets of the layers, filled one layer after the other."""

    def __init__(self, connections: Sequence[Connection], parameters: Mapping[str, Parameter]) -> None:
        self._first = {name: parameter.first for name, parameter in parameters.items()}
        self.ops = np.zeros(len(connections), fields.OPERATION)
        self.offsets = np.zeros(max(p.last for p in parameters.values()), np.int32)
        self.num_statistics = 0
        self.rows = [self._add(number, connection) for number, connection in enumerate(connections)]

    def _add(self, number: int, connection: Connection) -> fields.RecordArray:
        """Fill the operation of a layer; returns its rows."""
        op, layer, source, target = self.ops[number], connection.layer, connection.source, connection.target
        op["kind"], op["number"] = _KINDS.index(layer.kind), number
        has_parameters = np.isin(self.ops["kind"][:number], (fields.WEIGHTED, fields.BATCH_NORM))
        op["needs_gradient"] = has_parameters.any()
        op["input"], op["output"] = source.place + source.corner, target.place + target.corner
        op["height"], op["width"] = target.height, target.width
        op["tile_height"], op["tile_width"] = target.height, target.width
        op["output_stride"] = target.stride
        op["step_down"], op["step_right"] = source.stride, 1
        live = np.flatnonzero(target.live)
        rows = np.zeros(len(live), fields.ROW)
        rows["bias"] = -1
        rows["input"], rows["output"] = live * source.area, live * target.area
        if layer.kind == "weighted":
            self._add_weights(connection, op, rows, live)
        elif layer.kind == "max_pool":
            op["window"], op["window_stride"] = layer.window, source.stride
            op["step_down"], op["step_right"] = layer.stride * source.stride, layer.stride
        elif isinstance(layer.module, nn.Dropout):
            op["probability"] = layer.module.p
        elif isinstance(layer.module, nn.BatchNorm1d | nn.BatchNorm2d):
            op["epsilon"], op["momentum"] = layer.module.eps, layer.module.momentum
            op["uses_batch"] = layer.module.training
            rows["scale"] = self._first[layer.parameter("weight")] + live
            rows["bias"] = self._first[layer.parameter("bias")] + live
            rows["statistics"] = self.num_statistics + live
            self.num_statistics += target.channels
        op["first_row"] = self.ops[number - 1]["last_row"] if number else 0
        op["last_row"] = op["first_row"] + len(live)
        return rows

    def _add_weights(
        self, connection: Connection, op: fields.Record, rows: fields.RecordArray, live: NDArray[np.int64]
    ) -> None:
        """Set the fields of a linear layer or a convolution, its rows, and the offset of each kept weight."""
        source, layer, mask = connection.source, connection.layer, connection.mask
        places = np.nonzero(mask)
        op["input"] = source.place
        if isinstance(layer.module, nn.Conv2d):
            kernel, stride, padding, dilation = convolution_settings(layer.module)
            channel = places[0] // (len(mask) // layer.module.groups) * mask.shape[1] + places[1]
            down, right = (
                source.border - p + k * d for p, k, d in zip(padding, places[2:], dilation, strict=True)
            )
            offsets = channel * source.area + down * source.stride + right
            op["step_down"], op["step_right"] = stride[0] * source.stride, stride[1]
            op["tile_height"], op["tile_width"] = _tile(source, connection.target, kernel, stride)
        else:
            offsets = source.places()[places[1]]
        first = self._first[layer.parameter("weight")]
        self.offsets[first : first + len(offsets)] = offsets
        counts = mask.reshape(len(mask), -1).sum(1)
        ends = first + counts.cumsum()
        rows["first"], rows["last"] = (ends - counts)[live], ends[live]
        if layer.module is not None and layer.module.bias is not None:
            rows["bias"] = self._first[layer.parameter("bias")] + live


def _tile(source: Slot, target: Slot, kernel: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the largest tile, halved from the whole output, whose inputs fit into `CACHE_BYTES`."""
    tile = [target.height, target.width]
    while max(tile) > 1:
        height, width = ((t - 1) * s + k for t, s, k in zip(tile, stride, kernel, strict=True))
        if source.live.sum() * height * width * 4 * LANES <= CACHE_BYTES:
            break
        longer = 0 if tile[0] >= tile[1] else 1
        tile[longer] = -(-tile[longer] // 2)
    return tile[0], tile[1]
