"""Operators that take parts of a dimension."""

import numpy as np
import torch

from prunus.pruning.structured.labels import Coupling, LabelLayer, Labels
from prunus.pruning.structured.rules.elementwise import elementwise
from prunus.pruning.structured.rules.registry import (
    ResultShapes,
    RuleArguments,
    RuleResult,
    UnsupportedCall,
    operand,
    output_shape,
    register_rule,
)

WHOLE = "a part of the channels is taken by position"


def fix_if_split(coupling: Coupling, value: Labels, dim: int) -> Labels:
    """A part is taken along a dimension: channels that were split are removed from the other dimensions.

    Args:
        coupling: Collects what is coupled.
        value: Labels of a tensor.
        dim: The dimension.

    Returns:
        Labels in which this dimension is fixed or has a layer of its own.
    """
    layer = value.layer(dim)
    return coupling.fix(value, dim, WHOLE) if layer is not None and len(layer.dims) > 1 else value


@register_rule("slice", "narrow")
def _take_slice(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """A part of a dimension; its ends are constants of the user's code."""
    value, shape = operand(a), output_shape(shapes)
    dim = (a["dim"] or 0) % len(value.shape)
    if value.shape[dim] == shape[dim] and (a.get("step") or 1) == 1:
        return Labels(shape, value.layers)
    value = fix_if_split(coupling, value, dim)
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
            return Labels(shape, coupling.fix(value, dim, "every nth channel is taken").layers)
        for argument, place in (("start", start), ("end", end)):
            if a[argument] is not None and 0 < place < size:
                entries = layer.atoms[:place] if a[argument] >= 0 else layer.atoms[place:]
                coupling.constant(argument, None, entries, layer.atoms, True)
    part = LabelLayer((dim,), layer.atoms[start : start + shape[dim]], layer.zero)
    others = tuple(other for other in value.layers if other is not layer)
    return Labels(shape, (*others, part) if shape[dim] > 1 else _without(coupling, others, part))


def _without(coupling: Coupling, others: tuple[LabelLayer, ...], part: LabelLayer) -> tuple[LabelLayer, ...]:
    coupling.block(part.atoms, "a single channel is taken by position")
    return others


@register_rule("select")
def _select(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """One entry of a dimension, which cannot be removed."""
    value, shape = a["self"], output_shape(shapes)
    dim = a["dim"] % len(value.shape)
    value = fix_if_split(coupling, value, dim)
    if value.layer(dim) is not None:
        value = coupling.fix(value, dim, WHOLE)
    layers = [
        LabelLayer(tuple(d - (d > dim) for d in layer.dims), layer.atoms, layer.zero)
        for layer in value.layers
    ]
    return Labels(shape, tuple(layers))


@register_rule("index", "_unsafe_index", "index_select", "gather")
def _take_indices(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """Entries of some dimensions by their positions; the other dimensions are carried along."""
    value, shape = a["self"], output_shape(shapes)
    if "indices" in a:
        indexed = [dim for dim, indices in enumerate(a["indices"]) if indices is not None]
    else:
        indexed = [a["dim"] % len(value.shape)]
    if indexed != list(range(indexed[0], indexed[-1] + 1)):
        raise UnsupportedCall("prunus has no rule for indices of dimensions that are not adjacent")
    for dim in range(len(value.shape)):
        if dim in indexed or "sparse_grad" in a:
            value = coupling.fix(value, dim, "channels are selected by index")
    for labels in a.get("indices") or [a["index"]]:
        for dim in range(len(labels.shape) if labels is not None else 0):
            coupling.fix(labels, dim, "the values are used as indices")
    shift = len(shape) - len(value.shape)
    layers = [
        LabelLayer(tuple(d + shift * (d > indexed[-1]) for d in layer.dims), layer.atoms, layer.zero)
        for layer in value.layers
    ]
    return Labels(shape, tuple(layers))


@register_rule("unbind")
def _unbind(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> RuleResult:
    """All entries of a dimension, each as a tensor."""
    assert shapes[0] is not None
    layers = _select(coupling, a, shapes[:1]).layers
    return [Labels(shapes[0], layers) for _ in shapes]


@register_rule(
    "split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "split_copy"
)
def _split(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> RuleResult:
    """Parts of a dimension."""
    return [*_split_labels(coupling, a, shapes)]


def _split_labels(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> list[Labels]:
    """The labels of the parts of a dimension.

    Parts that are made equal by the operator stay equal: they are coupled, entry by entry.

    Args:
        coupling: Collects what is coupled.
        a: RuleArguments of the operator; with `split_sizes`, parts may lose different numbers of channels.
        shapes: The shapes of the parts.

    Returns:
        The labels of each part.
    """
    value = operand(a)
    dim = a["dim"] % len(value.shape)
    value = fix_if_split(coupling, value, dim)
    layer = value.layer(dim)
    sizes = [shape[dim] for shape in shapes if shape is not None]
    if layer is not None and 1 in sizes:
        value, layer = coupling.fix(value, dim, "a single channel is taken by position"), None
    if layer is None:
        return [Labels(shape, value.layers) for shape in shapes if shape is not None]
    parts = np.split(layer.atoms, np.cumsum(sizes)[:-1])
    argument = next(
        (name for name in ("split_sizes", "split_size") if isinstance(a.get(name), list | tuple)), None
    )
    if argument:
        for position, part in enumerate(parts):
            coupling.constant(argument, position, part, layer.atoms, True)
    elif len(set(sizes)) > 1:
        coupling.block(layer.atoms, "the channels are split into parts of different lengths")
    else:
        for part in parts[1:]:
            coupling.tie(parts[0], part)
        if "split_size" in a:
            coupling.constant("split_size", None, parts[0])
    others = tuple(other for other in value.layers if other is not layer)
    return [
        Labels(shape, (*others, LabelLayer((dim,), part, layer.zero)))
        for shape, part in zip(shapes, parts, strict=True)
        if shape is not None
    ]


@register_rule("glu")
def _gated_linear_unit(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """The first half of a dimension times the sigmoid of the second."""
    shape = output_shape(shapes)
    first, second = _split_labels(coupling, {"self": a["self"], "dim": a["dim"]}, [shape, shape])
    return elementwise(coupling, torch.mul, [first, second], {}, shape)
