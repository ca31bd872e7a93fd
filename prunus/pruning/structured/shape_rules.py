"""How operators that move entries carry channel labels: most of them are run on the labels themselves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.pruning.structured.labels import Atoms, Coupling, Labels, Layer
from prunus.pruning.structured.rules import (
    Arguments,
    Result,
    Shapes,
    UnsupportedCall,
    elementwise,
    output_shape,
    rule,
)

WHOLE = "a part of it is taken by its position"


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_alias", "view_as", "reshape_as")
def view(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """Another shape of the same entries, in the same order."""
    value, shape = a.get("self", a.get("input")), output_shape(shapes)
    result = reshape(coupling, value, shape)
    name = next((name for name in ("size", "shape", "sizes") if isinstance(a.get(name), list | tuple)), None)
    if name is not None:
        first = a["dim"] % len(value.shape) if name == "sizes" else 0
        _note_sizes(coupling, result, name, a[name], first)
    return result


def _note_sizes(
    coupling: Coupling, result: Labels, argument: str, sizes: Sequence[int], first: int = 0
) -> None:
    """Note the sizes among the arguments that are lengths of labeled dimensions."""
    for position, size in enumerate(sizes):
        layer = result.layer(first + position)
        if layer is not None and size != -1:
            entries = np.moveaxis(layer.atoms, layer.dims.index(first + position), 0)
            coupling.constant(argument, position, entries, is_ambiguous=-1 in sizes)


def reshape(coupling: Coupling, value: Labels, shape: tuple[int, ...]) -> Labels:
    """The labels of a tensor in another shape.

    Dimensions of both shapes are split into blocks of equal size that are reshaped separately: [B, T | H x D] to
    [B, T | H, D]. A dimension that is split stays removable along any of its parts until an operator decides; dimensions
    that are merged are removed along the first of them.

    Args:
        coupling: Collects what is coupled.
        value: Labels of the tensor.
        shape: The other shape.

    Returns:
        The labels in the other shape.
    """
    blocks = _blocks(value.shape, shape)
    for old, new in blocks:
        labeled = [dim for dim in old if value.layer(dim) is not None]
        if [value.shape[d] for d in old] != [shape[d] for d in new]:
            for dim in labeled[1:]:
                value = coupling.fix(value, dim, "it is merged with other channels")
    layers: list[Layer] = []
    for layer in value.layers:
        atoms, dims = layer.atoms, list(layer.dims)
        for old, new in blocks:
            if (dim := next((d for d in layer.dims if d in old), None)) is None:
                continue
            if len(old) > 1 and [value.shape[d] for d in old] == [shape[d] for d in new]:
                moved = {d: n for d, n in zip(old, new, strict=True)}
                dims = [("new", moved[d]) if d in moved else d for d in dims]  # type: ignore[misc]
                continue
            axis = dims.index(dim)
            atoms = _reshape_axis(
                atoms, axis, [value.shape[d] for d in old], old.index(dim), [shape[d] for d in new]
            )
            dims[axis : axis + 1] = [("new", d) for d in new]  # type: ignore[list-item]
        layers += _varying(coupling, atoms, [d[1] for d in dims], layer.zero)  # type: ignore[index]
    return _separate(coupling, shape, layers)


def _reshape_axis(atoms: Atoms, axis: int, old: list[int], place: int, new: list[int]) -> Atoms:
    """Reshape the axis that is one of the dimensions `old`, along the others of which labels do not vary."""
    moved = np.moveaxis(atoms, axis, -1)
    rest = moved.shape[:-1]
    in_block = moved.reshape(*rest, *(size if i == place else 1 for i, size in enumerate(old)))
    reshaped = np.broadcast_to(in_block, (*rest, *old)).reshape(*rest, *new)
    return np.moveaxis(reshaped, range(len(rest), len(rest) + len(new)), range(axis, axis + len(new)))


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
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


def _varying(coupling: Coupling, atoms: Atoms, dims: Sequence[int], zero: bool) -> list[Layer]:
    """The layer of the dimensions along which labels vary."""
    kept = []
    for axis, dim in enumerate(dims):
        first = atoms.take([0], axis)
        if atoms.shape[axis] > 1 and not (atoms == first).all():
            kept.append(dim)
        else:
            atoms = first
    if not kept:
        coupling.block(atoms, "a channel would be a whole dimension")
        return []
    order = sorted(range(len(dims)), key=lambda axis: dims[axis])
    atoms = atoms.transpose(order)
    kept_axes = [axis for axis, original in enumerate(order) if dims[original] in kept]
    shape = [atoms.shape[axis] for axis in kept_axes]
    return [Layer(tuple(sorted(kept)), atoms.reshape(shape), zero)]


def _separate(coupling: Coupling, shape: tuple[int, ...], layers: Sequence[Layer]) -> Labels:
    """Labels of these layers; those that label one dimension together are blocked."""
    separate = []
    for layer in layers:
        if any(set(layer.dims) & set(other.dims) for other in layers if other is not layer):
            coupling.block(layer.atoms, "two kinds of channels are merged into one dimension")
        else:
            separate.append(layer)
    return Labels(shape, tuple(separate))


# --- operators that are run on the labels -----------------------------------------------------------------------


@rule("permute", "transpose", "t", "numpy_T", "movedim", "swapaxes", "swapdims", "squeeze", "unsqueeze", "expand",
      "expand_as", "repeat", "repeat_interleave", "tile", "roll", "flip", "rot90", "pixel_shuffle",
      "pixel_unshuffle", "diagonal", "atleast_1d", "atleast_2d",
      "unfold", "mT")  # fmt: skip
def moved(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """Any operator that only moves or repeats entries."""
    value = a.get("self", a.get("input"))
    name = str(getattr(coupling.node, "target", "")).split(".")[1]
    if name == "unfold":
        value = coupling.fix(value, a["dimension"] % len(value.shape), "a window slides over it")
    result = run_on_labels(coupling, a, value)[0]
    sizes = next((a[key] for key in ("size",) if isinstance(a.get(key), list | tuple)), None)
    if name == "expand" and sizes is not None:
        _note_sizes(coupling, result, "size", sizes)
    return result


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """The channels of groups, interleaved: the same channels are removed from every group."""
    value = a.get("self", a.get("input"))
    groups, shape = a["groups"], value.shape
    split_shape = (shape[0], groups, shape[1] // groups, *shape[2:])
    value = coupling.fix(reshape(coupling, value, split_shape), 1, "it is the number of groups")
    swapped = (shape[0], shape[1] // groups, groups, *shape[2:])
    layers = tuple(Layer((1,), x.atoms, x.zero) if x.dims == (2,) else x for x in value.layers)
    return reshape(coupling, Labels(swapped, layers), shape)


@rule("glu")
def gated_linear_unit(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """The first half of a dimension times the sigmoid of the second."""
    shape = output_shape(shapes)
    first, second = split(coupling, {"self": a["self"], "dim": a["dim"]}, [shape, shape])  # type: ignore[misc]
    assert first is not None and second is not None
    return elementwise(coupling, torch.mul, [first, second], {}, shape)


def run_on_labels(coupling: Coupling, a: Arguments, value: Labels) -> list[Labels]:
    """Run the operator of the node on the labels of a tensor.

    Args:
        coupling: Collects what is coupled.
        a: Arguments of the operator; other tensors stand for their shapes only.
        value: Labels of the tensor among them.

    Returns:
        The labels of each result.
    """
    assert coupling.node is not None
    target: Any = coupling.node.target
    layers: list[list[Layer]] = []
    outputs: Sequence[Tensor] = []
    for layer in value.layers:
        labels = _expand(torch.tensor(layer.atoms), layer.dims, value.shape)
        arguments = [_stand_in(x, value, labels) for x in a.values()]
        names = [argument for argument in target._schema.arguments]
        positional = [x for x, argument in zip(arguments, names, strict=True) if not argument.kwarg_only]
        result = target(*positional)
        outputs = result if isinstance(result, list | tuple) else [result]
        layers.append([_reduce(coupling, output, layer.zero) for output in outputs])  # type: ignore[misc]
    return [
        _separate(coupling, tuple(output.shape), [part for own in layers for part in own[i]])  # type: ignore[attr-defined]
        for i, output in enumerate(outputs)
    ]


def _expand(labels: Tensor, dims: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    return labels.reshape([size if dim in dims else 1 for dim, size in enumerate(shape)]).expand(shape)


def _stand_in(argument: Any, value: Labels, labels: Tensor) -> Any:
    if argument is value:
        return labels
    return torch.empty(argument.shape, device="meta") if isinstance(argument, Labels) else argument


def _reduce(coupling: Coupling, output: Tensor, zero: bool) -> list[Layer]:
    """The layer of a result that is a tensor of labels, without the dimensions along which they do not vary."""
    index = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in output.stride())
    return _varying(coupling, output[index].numpy(), range(output.dim()), zero)


# --- parts ------------------------------------------------------------------------------------------------------


def _fix_if_split(coupling: Coupling, value: Labels, dim: int) -> Labels:
    """A part is taken along this dimension: channels that were split are removed from the other dimensions."""
    layer = value.layer(dim)
    return coupling.fix(value, dim, WHOLE) if layer is not None and len(layer.dims) > 1 else value


@rule("slice", "narrow")
def take_slice(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """A part of a dimension; its ends are constants of the user's code."""
    value, shape = a.get("self", a.get("input")), output_shape(shapes)
    dim = (a["dim"] or 0) % len(value.shape)
    if value.shape[dim] == shape[dim] and (a.get("step") or 1) == 1:
        return Labels(shape, value.layers)
    value = _fix_if_split(coupling, value, dim)
    layer = value.layer(dim)
    if layer is None:
        return Labels(shape, value.layers)
    if "length" in a:
        start, step = a["start"] % value.shape[dim], 1
        coupling.constant("length", None, layer.atoms[start : start + a["length"]], layer.atoms, True)
        coupling.constant("start", None, layer.atoms[:start], layer.atoms, True)
    else:
        size, step = value.shape[dim], a["step"] or 1
        start, end, step = slice(a["start"], a["end"], step).indices(size)
        if step != 1:
            return Labels(shape, coupling.fix(value, dim, "every nth entry of it is taken").layers)
        for argument, place in (("start", start), ("end", end)):
            if a[argument] is not None and 0 < place < size:
                entries = layer.atoms[:place] if a[argument] >= 0 else layer.atoms[place:]
                coupling.constant(argument, None, entries, layer.atoms, True)
    part = Layer((dim,), layer.atoms[start : start + shape[dim]], layer.zero)
    others = tuple(other for other in value.layers if other is not layer)
    return Labels(shape, (*others, part) if shape[dim] > 1 else _without(coupling, others, part))


def _without(coupling: Coupling, others: tuple[Layer, ...], part: Layer) -> tuple[Layer, ...]:
    coupling.block(part.atoms, "a single entry of it is taken")
    return others


@rule("select")
def select(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """One entry of a dimension, which cannot be removed."""
    value, shape = a["self"], output_shape(shapes)
    dim = a["dim"] % len(value.shape)
    value = _fix_if_split(coupling, value, dim)
    if value.layer(dim) is not None:
        value = coupling.fix(value, dim, WHOLE)
    layers = [
        Layer(tuple(d - (d > dim) for d in layer.dims), layer.atoms, layer.zero) for layer in value.layers
    ]
    return Labels(shape, tuple(layers))


@rule("index", "_unsafe_index", "index_select", "gather")
def index(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """Entries of some dimensions by their positions; the other dimensions are carried along."""
    value, shape = a["self"], output_shape(shapes)
    if "indices" in a:
        indexed = [dim for dim, indices in enumerate(a["indices"]) if indices is not None]
    else:
        indexed = [a["dim"] % len(value.shape)]
    if indexed != list(range(indexed[0], indexed[-1] + 1)):
        raise UnsupportedCall("indices of dimensions that are not next to each other have no rule")
    for dim in range(len(value.shape)):
        if dim in indexed or "sparse_grad" in a:
            value = coupling.fix(value, dim, "its entries are taken by their positions")
    for labels in a.get("indices") or [a["index"]]:
        for dim in range(len(labels.shape) if labels is not None else 0):
            coupling.fix(labels, dim, "it is used as an index")
    shift = len(shape) - len(value.shape)
    layers = [
        Layer(tuple(d + shift * (d > indexed[-1]) for d in layer.dims), layer.atoms, layer.zero)
        for layer in value.layers
    ]
    return Labels(shape, tuple(layers))


@rule("unbind")
def unbind(coupling: Coupling, a: Arguments, shapes: Shapes) -> Result:
    """All entries of a dimension, each as a tensor."""
    assert shapes[0] is not None
    result = select(coupling, a, shapes[:1])
    return [Labels(shapes[0], result.layers) for _ in shapes]


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "split_copy")
def split(coupling: Coupling, a: Arguments, shapes: Shapes) -> Result:
    """Parts of a dimension. Parts that are made equal by the operator stay equal: they are coupled, entry by entry."""
    value = a.get("self", a.get("input"))
    dim = a["dim"] % len(value.shape)
    value = _fix_if_split(coupling, value, dim)
    layer = value.layer(dim)
    sizes = [shape[dim] for shape in shapes if shape is not None]
    if layer is not None and 1 in sizes:
        value, layer = coupling.fix(value, dim, "a single entry of it is taken"), None
    if layer is None:
        return [Labels(shape, value.layers) for shape in shapes if shape is not None]
    parts = np.split(layer.atoms, np.cumsum(sizes)[:-1])
    given = next(
        (name for name in ("split_sizes", "split_size") if isinstance(a.get(name), list | tuple)), None
    )
    if given:
        for position, part in enumerate(parts):
            coupling.constant(given, position, part, layer.atoms, True)
    elif len(set(sizes)) > 1:
        coupling.block(layer.atoms, "it is split into parts of different lengths")
    else:
        for part in parts[1:]:
            coupling.tie(parts[0], part)
        if "split_size" in a:
            coupling.constant("split_size", None, parts[0])
    others = tuple(other for other in value.layers if other is not layer)
    return [
        Labels(shape, (*others, Layer((dim,), part, layer.zero)))
        for shape, part in zip(shapes, parts, strict=True)
        if shape is not None
    ]


# --- joined and generated tensors -------------------------------------------------------------------------------


@rule("cat", "concat", "concatenate")
def concatenate(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """Tensors one after the other along a dimension; coupled along all others."""
    shape = output_shape(shapes)
    parts: list[Labels] = [part for part in a["tensors"] if len(part.shape) == len(shape)]
    dim = a.get("dim", 0) % len(shape)
    parts = [_fix_if_split(coupling, part, dim) for part in parts]
    along = [part.layer(dim) for part in parts]
    layers = _join_layers(coupling, parts, dim)
    if any(along):
        atoms = []
        for part, layer in zip(parts, along, strict=True):
            if layer is None:  # of fixed length: its entries have labels that cannot be removed
                own = coupling.new(part.shape[dim])
                coupling.block(own, "a part of fixed length is concatenated")
            atoms.append(own if layer is None else layer.atoms)
        layers.append(
            Layer((dim,), np.concatenate(atoms), all(layer is not None and layer.zero for layer in along))
        )
    return Labels(shape, tuple(layers))


def _join_layers(coupling: Coupling, parts: list[Labels], dim: int | None) -> list[Layer]:
    """Couple the layers of tensors that are put together, except those of the dimension `dim`."""
    shape = tuple(1 if d == dim else size for d, size in enumerate(parts[0].shape))
    others = [Labels(shape, tuple(layer for layer in part.layers if dim not in layer.dims)) for part in parts]
    for i, part in enumerate(others):
        for d in {d for layer in part.layers for d in layer.dims}:
            keys = [own for other in others if (own := other.layer(d)) is not None]
            if len(keys) < len(others):
                others[i] = coupling.fix(others[i], d, "it is put together with a tensor of fixed length")
            elif len({layer.dims for layer in keys}) > 1:
                others[i] = coupling.isolate(others[i], min(keys[0].dims))
    layers = []
    for layer in others[0].layers:
        own = [other.layer(layer.dims[0]) for other in others]
        for other in own[1:]:
            if other is not None and other.dims == layer.dims:
                coupling.tie(layer.atoms, other.atoms)
        layers.append(Layer(layer.dims, layer.atoms, all(x is not None and x.zero for x in own)))
    return layers


@rule("stack")
def stack(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """Tensors of one shape along a new dimension."""
    shape = output_shape(shapes)
    dim = a["dim"] % len(shape)
    layers = _join_layers(coupling, list(a["tensors"]), None)
    moved_layers = [
        Layer(tuple(d + (d >= dim) for d in layer.dims), layer.atoms, layer.zero) for layer in layers
    ]
    return Labels(shape, tuple(moved_layers))


@rule("pad", "constant_pad_nd")
def pad(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """Constant entries around a tensor; their number is a constant of the user's code."""
    value, shape = a["self"], output_shape(shapes)
    if a.get("mode", "constant") != "constant":
        raise UnsupportedCall(f"padding of the mode {a['mode']!r} has no rule")
    zero = not a.get("value")
    layers = []
    widths = {len(shape) - 1 - i // 2: (a["pad"][i], a["pad"][i + 1], i) for i in range(0, len(a["pad"]), 2)}
    for dim, (before, after, _) in widths.items():
        if (before or after) and value.layer(dim) is not None:
            value = _fix_if_split(coupling, value, dim)
    for layer in value.layers:
        before, after, position = widths.get(layer.dims[0], (0, 0, 0)) if len(layer.dims) == 1 else (0, 0, 0)
        if min(before, after) < 0:
            raise UnsupportedCall("padding of a negative width has no rule")
        atoms = layer.atoms
        for width, place in ((before, position), (after, position + 1)):
            if width:
                new = coupling.new(width)
                coupling.constant("pad", place, new)
                atoms = np.concatenate([atoms, new] if place % 2 else [new, atoms])
        layers.append(Layer(layer.dims, atoms, layer.zero and zero))
    return Labels(shape, tuple(layers))


GENERATORS = (
    "full",
    "zeros",
    "ones",
    "empty",
    "new_full",
    "new_zeros",
    "new_ones",
    "new_empty",
    "empty_strided",
)
"""Operators that make a tensor of one value, of a shape that is in their arguments."""


@rule(*GENERATORS)
def generate(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """A tensor of one value: of each dimension any entries can be removed, if its size is not written out."""
    shape = output_shape(shapes)
    assert coupling.node is not None
    zero = "zeros" in str(coupling.node.target) or a.get("fill_value", 1) == 0
    layers = [Layer((dim,), coupling.new(size), zero) for dim, size in enumerate(shape) if size > 1]
    result = Labels(shape, tuple(layers))
    _note_sizes(coupling, result, "size", a["size"])
    return result


@rule("full_like", "zeros_like", "ones_like", "empty_like")
def generate_like(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """A tensor of one value, of the shape of another tensor."""
    assert coupling.node is not None
    zero = "zeros" in str(coupling.node.target) or a.get("fill_value", 1) == 0
    layers = [Layer(layer.dims, layer.atoms, zero) for layer in a["self"].layers]
    return Labels(output_shape(shapes), tuple(layers))


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(coupling: Coupling, a: Arguments, shapes: Shapes) -> Result:
    """Recurrent networks: a hidden unit is removed from all layers and directions, which have one size."""
    assert coupling.node is not None
    if "input" not in a or not isinstance(a["params"], list | tuple):
        raise UnsupportedCall("packed sequences have no rule")
    gates = {"lstm": 4, "gru": 3}.get(str(coupling.node.target).split(".")[1], 1)
    directions = 2 if a["bidirectional"] else 1
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    per_cell = 4 if a["has_biases"] else 2
    cells = [a["params"][i : i + per_cell] for i in range(0, len(a["params"]), per_cell)]
    if len(cells) != a["num_layers"] * directions:
        raise UnsupportedCall("recurrent networks with projections have no rule")
    x, unit = coupling.vector(a["input"], 2)
    x = coupling.fix(coupling.fix(x, 0, "it is the time or the batch"), 1, "it is the time or the batch")
    hidden = [_recurrent_cell(coupling, cell, gates) for cell in cells]
    for state in states:
        layer = state.layer(2)
        coupling.join([hidden[0], layer.atoms if layer else None], "the initial state has a fixed size")
        for dim in (0, 1):
            coupling.fix(state, dim, "it is the batch or the layers")
        if layer is not None and not layer.zero:
            coupling.mark_inexact(layer.atoms, "the initial state is not zero")
    for own in hidden[1:]:
        coupling.tie(hidden[0], own)
    for i, cell in enumerate(cells):
        below = unit if i < directions else np.concatenate(hidden[:directions])
        coupling.join([below, cell[0].layer(1).atoms if cell[0].layer(1) else None], "its inputs are fixed")
    sequence = Layer((2,), np.concatenate(hidden[:directions]), True)
    results: list[Labels | None] = []
    for i, shape in enumerate(shapes):
        assert shape is not None
        results.append(Labels(shape, (sequence if i == 0 else Layer((2,), hidden[0], True),)))
    return results


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def recurrent_step(coupling: Coupling, a: Arguments, shapes: Shapes) -> Result:
    """One step of a recurrent network."""
    assert coupling.node is not None
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(str(coupling.node.target).split(".")[1], 1)
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    cell = [tensor for tensor in (a["w_ih"], a["w_hh"], a["b_ih"], a["b_hh"]) if tensor is not None]
    unit = _recurrent_cell(coupling, cell, gates)
    last = len(a["input"].shape) - 1
    for state in states:
        layer = state.layer(last)
        coupling.join([unit, layer.atoms if layer else None], "the state has a fixed size")
        if layer is not None and not layer.zero:
            coupling.mark_inexact(layer.atoms, "the state is not zero")
    _, channels = coupling.vector(a["input"], last)
    columns = a["w_ih"].layer(1)
    coupling.join([channels, columns.atoms if columns else None], "its inputs are fixed")
    results: list[Labels | None] = [
        None if shape is None else Labels(shape, (Layer((last,), unit, True),)) for shape in shapes
    ]
    return results if len(results) > 1 else results[0]  # type: ignore[return-value]


def _recurrent_cell(coupling: Coupling, cell: Sequence[Labels], gates: int) -> Atoms:
    """Couple the rows of each gate with each other and with the recurrent columns; returns the units' labels."""
    recurrent_columns = cell[1].layer(1)
    if recurrent_columns is None:
        raise UnsupportedCall("a recurrent network with one hidden unit has no rule")
    unit = recurrent_columns.atoms
    for tensor in cell:
        rows = tensor.layer(0)
        if rows is not None:
            coupling.tie(unit, rows.atoms.reshape(gates, -1))
    return unit
