"""Operators that compute each entry of their result from the entries at the same position, with broadcasting."""

from collections.abc import Sequence
from typing import Any

import torch

from prunus.pruning.structured.labels import Coupling, LabelLayer, Labels, Shape
from prunus.pruning.structured.rules.registry import Arguments


def elementwise(
    coupling: Coupling, operation: Any, tensors: Sequence[Labels], scalars: Arguments, shape: Shape
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
    aligned = [_align(labels, shape) for labels in tensors]
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
                aligned[i] = coupling.fix(aligned[i], dim, reason=reason)
    layers = []
    for key in sorted({layer.dims for labels in aligned for layer in labels.layers}):
        matching = [next((layer for layer in labels.layers if layer.dims == key), None) for labels in aligned]
        first, *others = (layer.ids for layer in matching if layer is not None)
        for ids in others:
            coupling.tie(first, ids)
        zeros = [layer is not None and layer.zero for layer in matching]
        layers.append(LabelLayer(key, first, any(zeros) and _maps_to_zero(operation, zeros, scalars)))
    return Labels(shape, tuple(layers))


def _align(labels: Labels, shape: Shape) -> Labels:
    """Labels of a tensor with as many dimensions as the result."""
    offset = len(shape) - len(labels.shape)
    return labels.moved((*[1] * offset, *labels.shape), lambda dim: dim + offset)


def _maps_to_zero(operation: Any, zeros: Sequence[bool], scalars: Arguments) -> bool:
    """Whether an elementwise operator returns zero where some of its tensors are zero; the others are arbitrary."""
    arbitrary = torch.tensor([0.7, -1.3, 2.1])
    tensors = iter([torch.zeros(3) if zero else arbitrary.clone() for zero in zeros])
    positional, named = list[Any](), dict[str, Any]()
    try:
        schema = getattr(operation, "_schema", None)
        if schema is None:
            positional = list(tensors)
        for argument in schema.arguments if schema is not None else ():
            value = scalars[argument.name] if argument.name in scalars else next(tensors)
            if argument.kwarg_only:
                named[argument.name] = value
            else:
                positional.append(value)
        result = operation(*positional, **named)
    except Exception:  # integers or booleans are needed: not a function of zeros
        return False
    return isinstance(result, torch.Tensor) and not result.any()


def scale_and_shift(coupling: Coupling, value: Labels, a: Arguments, dims_after: int = 0) -> Labels:
    """A tensor times the argument `weight`, where there is one, plus `bias`, where there is one.

    Args:
        coupling: Collects what is coupled.
        value: Labels of the tensor.
        a: The arguments of the operator.
        dims_after: The number of dimensions of the tensor after those of weight and bias.

    Returns:
        The labels of the result.
    """
    for name, operation in (("weight", torch.mul), ("bias", torch.add)):
        if (tensor := a.get(name)) is not None:
            value = elementwise(coupling, operation, [value, tensor.unsqueezed(dims_after)], {}, value.shape)
    return value
