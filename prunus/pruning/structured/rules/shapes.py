"""Operators that move entries: most of them are run on the labels themselves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.pruning.structured.labels import ChannelIds, Coupling, LabelLayer, Labels, Shape
from prunus.pruning.structured.rules.registry import Arguments, operand, register_rule


@register_rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_alias", "view_as", "reshape_as",
    moves=True,
)  # fmt: skip
def _view(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Another shape of the same entries, in the same order."""
    value = operand(a)
    result = reshape(coupling, value, shape)
    name = next((name for name in ("size", "shape", "sizes") if isinstance(a.get(name), list | tuple)), None)
    if name is not None:
        first = a["dim"] % len(value.shape) if name == "sizes" else 0
        note_sizes(coupling, result, name, a[name], first)
    return result


def note_sizes(
    coupling: Coupling, result: Labels, argument: str, sizes: Sequence[int], first: int = 0
) -> None:
    """Note the sizes among the arguments that are lengths of labeled dimensions.

    Args:
        coupling: Collects the sizes.
        result: Labels of the result.
        argument: Name of the argument with the sizes.
        sizes: The sizes; -1 is computed by torch.
        first: The dimension of the result that the first size is of.
    """
    for position, size in enumerate(sizes):
        layer = result.layer(first + position)
        if layer is not None and size != -1:
            entries = np.moveaxis(layer.ids, layer.dims.index(first + position), 0)
            coupling.constant(argument, position, entries, is_ambiguous=-1 in sizes)


def reshape(coupling: Coupling, value: Labels, shape: Shape) -> Labels:
    """The labels of a tensor in another shape.

    Dimensions of both shapes are split into blocks of equal size that are reshaped separately: [B, T | H x D] to
    [B, T | H, D]. A dimension that is split stays removable along any of its parts until an operator decides;
    dimensions that are merged are removed along the first of them.

    Args:
        coupling: Collects what is coupled.
        value: Labels of the tensor.
        shape: The other shape.

    Returns:
        The labels in the other shape.
    """
    blocks = _blocks(value.shape, shape)
    for old, new in blocks:
        if not _is_same(value.shape, old, shape, new):
            labeled = [dim for dim in old if value.layer(dim) is not None]
            value = coupling.fix(value, *labeled[1:], reason="the dimension is merged with other channels")
    layers: list[LabelLayer] = []
    for layer in value.layers:
        ids, dims = layer.ids, list[int]()
        for axis in reversed(range(len(layer.dims))):
            dim = layer.dims[axis]
            old, new = next(block for block in blocks if dim in block[0])
            if _is_same(value.shape, old, shape, new):
                dims.insert(0, new[old.index(dim)])
            else:
                sizes = [value.shape[d] for d in old]
                ids = _reshape_axis(ids, axis, sizes, old.index(dim), [shape[d] for d in new])
                dims = [*new, *dims]
        layers += _varying(coupling, ids, dims, layer.zero)
    return _separate(coupling, shape, layers)


def _is_same(old_shape: Sequence[int], old: list[int], shape: Sequence[int], new: list[int]) -> bool:
    """Whether a block of dimensions has the same sizes in both shapes."""
    return [old_shape[dim] for dim in old] == [shape[dim] for dim in new]


def _reshape_axis(ids: ChannelIds, axis: int, old: list[int], place: int, new: list[int]) -> ChannelIds:
    """Reshape the axis that is one of the dimensions `old`, along the others of which labels do not vary."""
    moved = np.moveaxis(ids, axis, -1)
    rest = moved.shape[:-1]
    in_block = moved.reshape(*rest, *(size if i == place else 1 for i, size in enumerate(old)))
    reshaped = np.broadcast_to(in_block, (*rest, *old)).reshape(*rest, *new)
    return np.moveaxis(reshaped, range(len(rest), len(rest) + len(new)), range(axis, axis + len(new)))


def _blocks(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Split the dimensions of two shapes of equal size into the shortest runs of equal size.

    >>> _blocks((2, 8, 32), (16, 4, 8))
    [([0, 1], [0]), ([2], [1, 2])]
    """
    blocks, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        first_i, first_j = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right or j == len(new):
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        blocks.append((list(range(first_i, i)), list(range(first_j, j))))
    return blocks


def _varying(coupling: Coupling, ids: ChannelIds, dims: Sequence[int], zero: bool) -> list[LabelLayer]:
    """The layer of the dimensions along which labels vary."""
    varying = []
    for axis, dim in enumerate(dims):
        first = ids.take([0], axis)
        if ids.shape[axis] > 1 and not (ids == first).all():
            varying.append(dim)
        else:
            ids = first
    if not varying:
        coupling.block(ids, "removing one channel would remove a whole dimension")
        return []
    order = sorted(range(len(dims)), key=lambda axis: dims[axis])
    ids = ids.transpose(order)
    varying_axes = [axis for axis, original in enumerate(order) if dims[original] in varying]
    shape = [ids.shape[axis] for axis in varying_axes]
    return [LabelLayer(tuple(sorted(varying)), ids.reshape(shape), zero)]


def _separate(coupling: Coupling, shape: Shape, layers: Sequence[LabelLayer]) -> Labels:
    """Labels of these layers; those that label one dimension together are blocked."""
    separate = []
    for layer in layers:
        if any(set(layer.dims) & set(other.dims) for other in layers if other is not layer):
            coupling.block(layer.ids, "two kinds of channels are merged into one dimension")
        else:
            separate.append(layer)
    return Labels(shape, tuple(separate))


@register_rule(
    "permute", "transpose", "t", "numpy_T", "mT", "movedim", "swapaxes", "swapdims", "squeeze", "unsqueeze",
    "expand", "expand_as", "repeat", "repeat_interleave", "tile", "roll", "flip", "rot90", "diagonal", "unfold",
    "pixel_shuffle", "pixel_unshuffle", "atleast_1d", "atleast_2d", moves=True,
)  # fmt: skip
def _moved(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Any operator that only moves or repeats entries: it is run on the labels."""
    value, target = operand(a), coupling.node.target
    if coupling.operator == "unfold":
        value = coupling.fix(
            value, a["dimension"] % len(value.shape), reason="a window slides over this dimension"
        )
    layers: list[LabelLayer] = []
    for layer in value.layers:
        sizes = [size if dim in layer.dims else 1 for dim, size in enumerate(value.shape)]
        ids = torch.tensor(layer.ids).reshape(sizes).expand(value.shape)
        arguments = [_stand_in(x, operand(a), ids) for x in a.values()]
        in_schema = zip(arguments, target._schema.arguments, strict=True)  # type: ignore[union-attr]
        output = target(*(x for x, argument in in_schema if not argument.kwarg_only))  # type: ignore[operator]
        index = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in output.stride())
        layers += _varying(coupling, output[index].numpy(), range(output.dim()), layer.zero)
    result = _separate(coupling, shape, layers)
    if coupling.operator == "expand":
        note_sizes(coupling, result, "size", a["size"])
    return result


def _stand_in(argument: Any, value: Labels, ids: Tensor) -> Any:
    """An argument of the operator that is run on ids: other tensors stand for their shapes only."""
    if argument is value:
        return ids
    return torch.empty(argument.shape, device="meta") if isinstance(argument, Labels) else argument


@register_rule("channel_shuffle", "native_channel_shuffle", moves=True)
def _channel_shuffle(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """The channels of groups, interleaved: the same channels are removed from every group."""
    groups, size = a["groups"], shape[1] // a["groups"]
    value = reshape(coupling, operand(a), (shape[0], groups, size, *shape[2:]))
    value = coupling.fix(value, 1, reason="the number of groups is fixed")
    swapped = value.moved((shape[0], size, groups, *shape[2:]), lambda dim: 1 if dim == 2 else dim)
    return reshape(coupling, swapped, shape)
