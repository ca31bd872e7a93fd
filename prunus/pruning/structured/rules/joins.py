"""Operators that join or generate tensors."""

from collections.abc import Sequence

import numpy as np

from prunus.pruning.structured.labels import Coupling, LabelLayer, Labels, Shape
from prunus.pruning.structured.rules.registry import Arguments, UnsupportedCall, register_rule
from prunus.pruning.structured.rules.shapes import note_sizes


@register_rule("cat", "concat", "concatenate", moves=True)
def _concatenate(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Tensors one after the other along a dimension; coupled along all others."""
    dim = a.get("dim", 0) % len(shape)
    parts = [coupling.fix_split(part, dim) for part in a["tensors"] if len(part.shape) == len(shape)]
    along = [part.layer(dim) for part in parts]
    layers = _join_layers(coupling, parts, dim)
    if any(along):
        ids = []
        for part, layer in zip(parts, along, strict=True):
            if layer is None:  # of fixed length: its entries have ids that cannot be removed
                ids.append(coupling.new(part.shape[dim]))
                coupling.block(ids[-1], "this part of the concatenation has a fixed length")
            else:
                ids.append(layer.ids)
        zero = all(layer is not None and layer.zero for layer in along)
        layers.append(LabelLayer((dim,), np.concatenate(ids), zero))
    return Labels(shape, tuple(layers))


def _join_layers(coupling: Coupling, parts: Sequence[Labels], dim: int | None) -> list[LabelLayer]:
    """Couple the layers of tensors that are joined, except those of the dimension `dim`."""
    reason = "it is joined with a tensor in which this dimension has a fixed length"
    shape = tuple(1 if d == dim else size for d, size in enumerate(parts[0].shape))
    others = [Labels(shape, tuple(layer for layer in part.layers if dim not in layer.dims)) for part in parts]
    for i, part in enumerate(others):
        for d in {d for layer in part.layers for d in layer.dims}:
            keys = [layer.dims for other in others if (layer := other.layer(d)) is not None]
            if len(keys) < len(others):
                others[i] = coupling.fix(others[i], d, reason=reason)
            elif len(set(keys)) > 1:
                others[i] = coupling.isolate(others[i], min(keys[0]))
    layers = []
    for layer in others[0].layers:
        same = [x for other in others if (x := other.layer(layer.dims[0])) and x.dims == layer.dims]
        for coupled in same[1:]:
            coupling.tie(layer.ids, coupled.ids)
        layers.append(LabelLayer(layer.dims, layer.ids, all(coupled.zero for coupled in same)))
    return layers


@register_rule("stack", moves=True)
def _stack(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Tensors of one shape along a new dimension."""
    dim = a["dim"] % len(shape)
    layers = _join_layers(coupling, a["tensors"], None)
    return Labels((), tuple(layers)).moved(shape, lambda d: d + (d >= dim))


@register_rule("pad", "constant_pad_nd", moves=True)
def _pad(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Constant entries around a tensor; their number is a constant of the user's code."""
    value: Labels = a["self"]
    if a.get("mode", "constant") != "constant":
        raise UnsupportedCall(f"prunus has no rule for padding of the mode {a['mode']!r}")
    zero = not a.get("value")
    widths = {len(shape) - 1 - i // 2: (a["pad"][i], a["pad"][i + 1], i) for i in range(0, len(a["pad"]), 2)}
    for dim, (before, after, _) in widths.items():
        if before or after:
            value = coupling.fix_split(value, dim)
    layers = []
    for layer in value.layers:
        before, after, position = widths.get(layer.dims[0], (0, 0, 0)) if len(layer.dims) == 1 else (0, 0, 0)
        if min(before, after) < 0:
            raise UnsupportedCall("prunus has no rule for padding of a negative width")
        ids = layer.ids
        for width, place in ((before, position), (after, position + 1)):
            if width:
                new = coupling.new(width)
                coupling.constant("pad", place, new)
                ids = np.concatenate([ids, new] if place % 2 else [new, ids])
        layers.append(LabelLayer(layer.dims, ids, layer.zero and zero))
    return Labels(shape, tuple(layers))


GENERATORS = (
    "full", "zeros", "ones", "empty", "new_full", "new_zeros", "new_ones", "new_empty", "empty_strided",
)  # fmt: skip
"""Operators that make a tensor of one value, of a shape that is in their arguments."""


def _generates_zeros(coupling: Coupling, a: Arguments) -> bool:
    return "zeros" in coupling.operator or a.get("fill_value", 1) == 0


@register_rule(*GENERATORS)
def _generate(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """A tensor of one value: of each dimension any entries can be removed, if its size is not written out."""
    result = coupling.new_labels(shape, _generates_zeros(coupling, a))
    note_sizes(coupling, result, "size", a["size"])
    return result


@register_rule("full_like", "zeros_like", "ones_like", "empty_like")
def _generate_like(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """A tensor of one value, of the shape of another tensor."""
    zero = _generates_zeros(coupling, a)
    return Labels(shape, tuple(LabelLayer(layer.dims, layer.ids, zero) for layer in a["self"].layers))
