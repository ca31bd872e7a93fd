"""Operators that compute each entry of their result from the entries at the same position, with broadcasting."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from prunus.pruning.structured.labels import Coupling, LabelLayer, Labels
from prunus.pruning.structured.rules.registry import RuleArguments


def elementwise(
    coupling: Coupling,
    operation: Any,
    tensors: Sequence[Labels],
    scalars: RuleArguments,
    shape: tuple[int, ...],
) -> Labels:
    """An operator that computes every entry of its result from the entries at the same position, with broadcasting.

    Args:
        coupling: Collects what is coupled.
        operation: The operator, to find out whether it maps zeros to zero.
        tensors: Labels of its tensors.
        scalars: Its other arguments, by name.
        shape: The shape of the result.

    Returns:
        The labels of the result.
    """
    aligned = [_align(labels, len(shape)) for labels in tensors]
    keys = {layer.dims for labels in aligned for layer in labels.layers}
    for i, labels in enumerate(aligned):
        for layer in labels.layers:
            overlaps = any(key != layer.dims and set(key) & set(layer.dims) for key in keys)
            if overlaps and len(layer.dims) > 1:
                aligned[i] = coupling.isolate(aligned[i], layer.dims[0])
    reason = "the channels are combined with a dimension of fixed length"
    for i, labels in enumerate(aligned):
        for dim in {dim for layer in labels.layers for dim in layer.dims}:
            if any(other.shape[dim] > 1 and other.layer(dim) is None for other in aligned):
                aligned[i] = coupling.fix(aligned[i], dim, reason)
    layers = []
    for key in sorted({layer.dims for labels in aligned for layer in labels.layers}):
        matching = [next((layer for layer in labels.layers if layer.dims == key), None) for labels in aligned]
        present = [layer for layer in matching if layer is not None]
        for layer in present[1:]:
            coupling.tie(present[0].atoms, layer.atoms)
        zeros = tuple(layer is not None and layer.zero for layer in matching)
        zero = any(zeros) and _maps_to_zero(operation, zeros, _Scalars(scalars))
        layers.append(LabelLayer(key, present[0].atoms, zero))
    return Labels(shape, tuple(layers))


def _align(labels: Labels, ndim: int) -> Labels:
    offset = ndim - len(labels.shape)
    if not offset:
        return labels
    layers = tuple(
        LabelLayer(tuple(dim + offset for dim in layer.dims), layer.atoms, layer.zero)
        for layer in labels.layers
    )
    return Labels((*[1] * offset, *labels.shape), layers)


class _Scalars:
    """RuleArguments by name, compared by their text, so that a result can be cached by them."""

    def __init__(self, arguments: RuleArguments) -> None:
        self.arguments = arguments
        self.text = repr(sorted(arguments.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Scalars) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@cache
def _maps_to_zero(operation: Any, zeros: tuple[bool, ...], scalars: _Scalars) -> bool:
    """Whether an elementwise operator returns zero where some of its tensors are zero; the others are arbitrary."""
    arbitrary = torch.tensor([0.7, -1.3, 2.1])
    tensors = iter([torch.zeros(3) if zero else arbitrary.clone() for zero in zeros])
    try:
        schema = getattr(operation, "_schema", None)
        if schema is None:
            result = operation(*tensors)
        else:
            values = {
                argument.name: next(tensors)
                if argument.name not in scalars.arguments
                else scalars.arguments[argument.name]
                for argument in schema.arguments
            }
            positional = [values[argument.name] for argument in schema.arguments if not argument.kwarg_only]
            named = {
                argument.name: values[argument.name] for argument in schema.arguments if argument.kwarg_only
            }
            result = operation(*positional, **named)
    except Exception:  # integers or booleans are needed: not a function of zeros
        return False
    return isinstance(result, torch.Tensor) and not result.any()
