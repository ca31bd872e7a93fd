"""Operators that take parts of a dimension."""

from collections.abc import Sequence

import numpy as np
import torch

from prunus.pruning.structured.labels import Coupling, LabelLayer, Labels, Shape
from prunus.pruning.structured.rules.elementwise_rules import elementwise
from prunus.pruning.structured.rules.registry import Arguments, UnsupportedCall, operand, register_rule


@register_rule("slice", "narrow", moves=True)
def _take_slice(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """A part of a dimension; its ends are constants of the user's code."""
    value = operand(a)
    dim = (a["dim"] or 0) % len(value.shape)
    size = value.shape[dim]
    if size == shape[dim] and (a.get("step") or 1) == 1:
        return Labels(shape, value.layers)
    value = coupling.fix_split(value, dim)
    layer = value.layer(dim)
    if layer is None:
        return Labels(shape, value.layers)
    if "length" in a:
        start = a["start"] % size
        coupling.constant("length", None, layer.ids[start : start + a["length"]], layer.ids, True)
        coupling.constant("start", None, layer.ids[:start], layer.ids, True)
    else:
        start, end, step = slice(a["start"], a["end"], a["step"] or 1).indices(size)
        if step != 1:
            return Labels(shape, coupling.fix(value, dim, reason="every nth channel is taken").layers)
        for argument, place in (("start", start), ("end", end)):
            if a[argument] is not None and 0 < place < size:
                entries = layer.ids[:place] if a[argument] >= 0 else layer.ids[place:]
                coupling.constant(argument, None, entries, layer.ids, True)
    part = LabelLayer((dim,), layer.ids[start : start + shape[dim]], layer.zero)
    if shape[dim] == 1:
        coupling.block(part.ids, "a single channel is taken by position")
        return Labels(shape, value.without(layer))
    return Labels(shape, (*value.without(layer), part))


@register_rule("select", moves=True)
def _select(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """One entry of a dimension, which cannot be removed."""
    value: Labels = a["self"]
    dim = a["dim"] % len(value.shape)
    value = coupling.fix_split(value, dim)
    value = coupling.fix(value, dim, reason="a part of the channels is taken by position")
    return value.moved(shape, lambda d: d - (d > dim))


@register_rule("unbind", moves=True)
def _unbind(coupling: Coupling, a: Arguments, shape: Shape) -> list[Labels]:
    """All entries of a dimension, each as a tensor."""
    return [_select(coupling, a, shape)] * len(coupling.shapes)


@register_rule("index", "_unsafe_index", "index_select", "gather")
def _take_indices(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Entries of some dimensions by their positions; the other dimensions are carried along."""
    value: Labels = a["self"]
    if "indices" in a:
        indexed = [dim for dim, indices in enumerate(a["indices"]) if indices is not None]
    else:
        indexed = [a["dim"] % len(value.shape)]
    if indexed != list(range(indexed[0], indexed[-1] + 1)):
        raise UnsupportedCall("prunus has no rule for indices of dimensions that are not adjacent")
    dims = range(len(value.shape)) if "sparse_grad" in a else indexed
    value = coupling.fix(value, *dims, reason="channels are selected by index")
    for labels in a.get("indices") or [a["index"]]:
        if labels is not None:
            coupling.fix(labels, *range(len(labels.shape)), reason="the values are used as indices")
    shift = len(shape) - len(value.shape)
    return value.moved(shape, lambda d: d + shift * (d > indexed[-1]))


@register_rule(
    "split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "split_copy",
    moves=True,
)  # fmt: skip
def _split(coupling: Coupling, a: Arguments, shape: Shape) -> list[Labels]:
    """Parts of a dimension."""
    return _split_labels(coupling, a, coupling.shapes)


def _split_labels(coupling: Coupling, a: Arguments, shapes: Sequence[Shape]) -> list[Labels]:
    """The labels of the parts of a dimension.

    Parts that are made equal by the operator stay equal: they are coupled, entry by entry.

    Args:
        coupling: Collects what is coupled.
        a: Arguments of the operator; with `split_sizes`, parts may lose different numbers of channels.
        shapes: The shapes of the parts.

    Returns:
        The labels of each part.
    """
    value = operand(a)
    dim = a["dim"] % len(value.shape)
    value = coupling.fix_split(value, dim)
    sizes = [shape[dim] for shape in shapes]
    if 1 in sizes:
        value = coupling.fix(value, dim, reason="a single channel is taken by position")
    layer = value.layer(dim)
    if layer is None:
        return [Labels(shape, value.layers) for shape in shapes]
    parts = np.split(layer.ids, np.cumsum(sizes)[:-1])
    lists = [name for name in ("split_sizes", "split_size") if isinstance(a.get(name), list | tuple)]
    if lists:
        for position, part in enumerate(parts):
            coupling.constant(lists[0], position, part, layer.ids, True)
    elif len(set(sizes)) > 1:
        coupling.block(layer.ids, "the channels are split into parts of different lengths")
    else:
        for part in parts[1:]:
            coupling.tie(parts[0], part)
        if "split_size" in a:
            coupling.constant("split_size", None, parts[0])
    others = value.without(layer)
    return [
        Labels(shape, (*others, LabelLayer((dim,), part, layer.zero)))
        for shape, part in zip(shapes, parts, strict=True)
    ]


@register_rule("glu")
def _gated_linear_unit(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """The first half of a dimension times the sigmoid of the second."""
    return elementwise(coupling, torch.mul, _split_labels(coupling, a, [shape, shape]), {}, shape)
