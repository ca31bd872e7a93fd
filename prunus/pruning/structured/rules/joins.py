"""Operators that join or generate tensors."""

import numpy as np

from prunus.pruning.structured.labels import Coupling, LabelLayer, Labels
from prunus.pruning.structured.rules.parts import fix_if_split
from prunus.pruning.structured.rules.registry import (
    ResultShapes,
    RuleArguments,
    UnsupportedCall,
    output_shape,
    register_rule,
)
from prunus.pruning.structured.rules.shapes import note_sizes


@register_rule("cat", "concat", "concatenate")
def _concatenate(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """Tensors one after the other along a dimension; coupled along all others."""
    shape = output_shape(shapes)
    parts: list[Labels] = [part for part in a["tensors"] if len(part.shape) == len(shape)]
    dim = a.get("dim", 0) % len(shape)
    parts = [fix_if_split(coupling, part, dim) for part in parts]
    along = [part.layer(dim) for part in parts]
    layers = _join_layers(coupling, parts, dim)
    if any(along):
        atoms = []
        for part, layer in zip(parts, along, strict=True):
            if layer is None:  # of fixed length: its entries have labels that cannot be removed
                new_atoms = coupling.new(part.shape[dim])
                coupling.block(new_atoms, "this part of the concatenation has a fixed length")
            atoms.append(new_atoms if layer is None else layer.atoms)
        layers.append(
            LabelLayer(
                (dim,), np.concatenate(atoms), all(layer is not None and layer.zero for layer in along)
            )
        )
    return Labels(shape, tuple(layers))


def _join_layers(coupling: Coupling, parts: list[Labels], dim: int | None) -> list[LabelLayer]:
    """Couple the layers of tensors that are joined, except those of the dimension `dim`."""
    shape = tuple(1 if d == dim else size for d, size in enumerate(parts[0].shape))
    others = [Labels(shape, tuple(layer for layer in part.layers if dim not in layer.dims)) for part in parts]
    for i, part in enumerate(others):
        for d in {d for layer in part.layers for d in layer.dims}:
            keys = [other_layer for other in others if (other_layer := other.layer(d)) is not None]
            if len(keys) < len(others):
                others[i] = coupling.fix(
                    others[i], d, "it is joined with a tensor in which this dimension has a fixed length"
                )
            elif len({layer.dims for layer in keys}) > 1:
                others[i] = coupling.isolate(others[i], min(keys[0].dims))
    layers = []
    for layer in others[0].layers:
        same = [x for other in others if (x := other.layer(layer.dims[0])) and x.dims == layer.dims]
        for coupled in same[1:]:
            coupling.tie(layer.atoms, coupled.atoms)
        layers.append(LabelLayer(layer.dims, layer.atoms, all(coupled.zero for coupled in same)))
    return layers


@register_rule("stack")
def _stack(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """Tensors of one shape along a new dimension."""
    shape = output_shape(shapes)
    dim = a["dim"] % len(shape)
    layers = _join_layers(coupling, list(a["tensors"]), None)
    moved_layers = [
        LabelLayer(tuple(d + (d >= dim) for d in layer.dims), layer.atoms, layer.zero) for layer in layers
    ]
    return Labels(shape, tuple(moved_layers))


@register_rule("pad", "constant_pad_nd")
def _pad(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """Constant entries around a tensor; their number is a constant of the user's code."""
    value, shape = a["self"], output_shape(shapes)
    if a.get("mode", "constant") != "constant":
        raise UnsupportedCall(f"prunus has no rule for padding of the mode {a['mode']!r}")
    zero = not a.get("value")
    layers = []
    widths = {len(shape) - 1 - i // 2: (a["pad"][i], a["pad"][i + 1], i) for i in range(0, len(a["pad"]), 2)}
    for dim, (before, after, _) in widths.items():
        if (before or after) and value.layer(dim) is not None:
            value = fix_if_split(coupling, value, dim)
    for layer in value.layers:
        before, after, position = widths.get(layer.dims[0], (0, 0, 0)) if len(layer.dims) == 1 else (0, 0, 0)
        if min(before, after) < 0:
            raise UnsupportedCall("prunus has no rule for padding of a negative width")
        atoms = layer.atoms
        for width, place in ((before, position), (after, position + 1)):
            if width:
                new = coupling.new(width)
                coupling.constant("pad", place, new)
                atoms = np.concatenate([atoms, new] if place % 2 else [new, atoms])
        layers.append(LabelLayer(layer.dims, atoms, layer.zero and zero))
    return Labels(shape, tuple(layers))


GENERATORS = (
    "full", "zeros", "ones", "empty", "new_full", "new_zeros", "new_ones", "new_empty", "empty_strided",
)  # fmt: skip
"""Operators that make a tensor of one value, of a shape that is in their arguments."""


@register_rule(*GENERATORS)
def _generate(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """A tensor of one value: of each dimension any entries can be removed, if its size is not written out."""
    shape = output_shape(shapes)
    assert coupling.node is not None
    zero = "zeros" in str(coupling.node.target) or a.get("fill_value", 1) == 0
    layers = [LabelLayer((dim,), coupling.new(size), zero) for dim, size in enumerate(shape) if size > 1]
    result = Labels(shape, tuple(layers))
    note_sizes(coupling, result, "size", a["size"])
    return result


@register_rule("full_like", "zeros_like", "ones_like", "empty_like")
def _generate_like(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """A tensor of one value, of the shape of another tensor."""
    assert coupling.node is not None
    zero = "zeros" in str(coupling.node.target) or a.get("fill_value", 1) == 0
    layers = [LabelLayer(layer.dims, layer.atoms, zero) for layer in a["self"].layers]
    return Labels(output_shape(shapes), tuple(layers))
