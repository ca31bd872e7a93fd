"""Normalization and reductions."""

import torch

from prunus.pruning.structured.labels import Coupling, LabelLayer, Labels
from prunus.pruning.structured.rules.elementwise import elementwise
from prunus.pruning.structured.rules.registry import (
    ResultShapes,
    RuleArguments,
    RuleResult,
    fixed,
    operand,
    output_shape,
    register_rule,
)


@register_rule("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
def _batch_norm(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> RuleResult:
    """Normalization of every channel alone, with statistics over other dimensions."""
    value, shape = a["input"], shapes[0]
    assert shape is not None
    for dim in range(len(shape)):
        if dim != 1:
            value = coupling.fix(value, dim, "statistics are computed over this dimension")
    tensors = [a.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    layer = value.layer(1)
    vectors = [layer.atoms if layer else None]
    present = [tensor for tensor in tensors if tensor is not None]
    vectors += [tensor.layers[0].atoms if tensor.layers else None for tensor in present]
    vector = coupling.join(vectors, "the number of channels is fixed")
    affine = tensors[0] is not None and all(x.layers[0].zero for x in tensors[:2] if x and x.layers)
    result = Labels(shape, () if vector is None else (LabelLayer((1,), vector, affine),))
    return result if len(shapes) == 1 else [result, *[None] * (len(shapes) - 1)]


@register_rule("layer_norm", "native_layer_norm", "rms_norm")
def _layer_norm(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> RuleResult:
    """Normalization over the last dimensions: removal changes the statistics, so that it is not exact."""
    value, shape = a["input"], shapes[0]
    assert shape is not None
    count = len(a["normalized_shape"])
    for layer in value.layers:
        inside = [dim for dim in layer.dims if dim >= len(shape) - count]
        for dim in inside if len(layer.dims) > 1 else []:
            if len((value.layer(dim) or layer).dims) > 1:
                value = coupling.fix(value, dim, "")
    for position in range(count):
        dim = len(shape) - count + position
        if (vector := value.layer(dim)) is not None:
            coupling.mark_inexact(vector.atoms, "the values are normalized over the channels")
            coupling.constant("normalized_shape", position, vector.atoms)
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            operation = torch.mul if name == "weight" else torch.add
            value = elementwise(coupling, operation, [value, a[name]], {}, shape)
    return value if len(shapes) == 1 else [value, *map(fixed, shapes[1:])]


@register_rule("group_norm", "native_group_norm")
def _group_norm(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> RuleResult:
    """Normalization of groups of channels: whole groups are removed, which is exact; of one group, it is not."""
    value, shape = a["input"], shapes[0]
    assert shape is not None
    groups = a.get("num_groups", a.get("group"))
    for dim in range(len(shape)):
        if dim != 1:
            value = coupling.fix(value, dim, "statistics are computed over this dimension")
    if (layer := value.layer(1)) is not None:
        if groups == 1:
            coupling.mark_inexact(layer.atoms, "the values are normalized over the channels")
        else:
            by_group = layer.atoms.reshape(groups, -1)
            coupling.tie(by_group[:, :1], by_group)
            coupling.constant("num_groups", None, by_group[:, :1])
    for name in ("weight", "bias"):
        if (tensor := a.get(name)) is not None:
            tensor = Labels((*tensor.shape, *[1] * (len(shape) - 2)), tensor.layers)
            value = elementwise(
                coupling, torch.mul if name == "weight" else torch.add, [value, tensor], {}, shape
            )
    return value if len(shapes) == 1 else [value, *map(fixed, shapes[1:])]


EXACT_REDUCTIONS = ("sum", "norm", "linalg_vector_norm", "nansum")
"""Reductions to which a zero contributes nothing."""


@register_rule("mean", "sum", "amax", "amin", "var", "std", "prod", "norm", "linalg_vector_norm", "logsumexp",
      "any", "all", "max", "min", "nansum")  # fmt: skip
def _reduction(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> RuleResult:
    """A reduction over some or all dimensions."""
    assert coupling.node is not None
    value, name = operand(a), str(coupling.node.target).split(".")[1]
    if isinstance(a.get("other"), Labels):  # the elementwise maximum of two tensors
        return elementwise(coupling, coupling.node.target, [value, a["other"]], {}, output_shape(shapes))
    requested_dims = a.get("dim")
    requested_dims = [requested_dims] if isinstance(requested_dims, int) else requested_dims
    ndim = len(value.shape)
    reduced = sorted({dim % ndim for dim in requested_dims} if requested_dims else range(ndim))
    for dim in reduced:
        if (layer := value.layer(dim)) is not None and len(layer.dims) > 1:
            value = coupling.fix(value, dim, "")
        elif layer is not None and not (name in EXACT_REDUCTIONS and layer.zero):
            coupling.mark_inexact(layer.atoms, f"{name} is computed over the channels")
    keep = a.get("keepdim", False)
    dims = {
        old: old if keep else old - sum(r < old for r in reduced) for old in range(ndim) if old not in reduced
    }
    layers = []
    for layer in value.layers:
        if all(dim in dims for dim in layer.dims):
            zero = layer.zero and name not in ("logsumexp",)
            layers.append(LabelLayer(tuple(dims[dim] for dim in layer.dims), layer.atoms, zero))
    results: list[Labels | None] = [
        None if shape is None else Labels(shape, tuple(layers)) for shape in shapes
    ]
    return results if len(results) > 1 else results[0]  # type: ignore[return-value]


@register_rule("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod")
def _softmax(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """A function of all entries along one dimension, for each of the other positions."""
    value: Labels = a["self"]
    dim = a["dim"] % len(value.shape)
    if (layer := value.layer(dim)) is not None:
        if len(layer.dims) > 1:
            value = coupling.fix(value, dim, "")
        else:
            coupling.mark_inexact(layer.atoms, "the values are normalized over the channels")
    return Labels(value.shape, tuple(LabelLayer(layer.dims, layer.atoms, False) for layer in value.layers))
