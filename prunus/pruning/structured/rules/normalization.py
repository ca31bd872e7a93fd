"""Normalization and reductions."""

from dataclasses import replace

from prunus.pruning.structured.labels import Coupling, LabelLayer, Labels, Shape
from prunus.pruning.structured.rules.elementwise_rules import elementwise, scale_and_shift
from prunus.pruning.structured.rules.registry import Arguments, operand, register_rule

NORMALIZED = "the values are normalized over the channels"


def _fix_all_but_channels(coupling: Coupling, value: Labels) -> Labels:
    dims = (dim for dim in range(len(value.shape)) if dim != 1)
    return coupling.fix(value, *dims, reason="statistics are computed over this dimension")


@register_rule("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
def _batch_norm(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Normalization of every channel alone, with statistics over other dimensions."""
    value = _fix_all_but_channels(coupling, a["input"])
    names = ("weight", "bias", "running_mean", "running_var")
    tensors: dict[str, Labels] = {name: a[name] for name in names if a.get(name) is not None}
    vectors = [value.ids(1), *(tensor.ids(0) for tensor in tensors.values())]
    ids = coupling.join(vectors, "the number of channels is fixed")
    affine = [layer.zero for name in ("weight", "bias") if name in tensors for layer in tensors[name].layers]
    zero = "weight" in tensors and all(affine)
    return Labels(shape, () if ids is None else (LabelLayer((1,), ids, zero),))


@register_rule("layer_norm", "native_layer_norm", "rms_norm")
def _layer_norm(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Normalization over the last dimensions: removal changes the statistics, so that it is not exact."""
    value = a["input"]
    first = len(shape) - len(a["normalized_shape"])
    for dim in range(first, len(shape)):
        value = coupling.fix_split(value, dim)
        if (ids := value.ids(dim)) is not None:
            coupling.mark_inexact(ids, NORMALIZED)
            coupling.constant("normalized_shape", dim - first, ids)
    return scale_and_shift(coupling, value, a)


@register_rule("group_norm")
def _group_norm(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Normalization of groups of channels: whole groups are removed, which is exact; of one group, it is not."""
    value = _fix_all_but_channels(coupling, a["input"])
    groups: int = a["num_groups"]
    if (ids := value.ids(1)) is not None and groups == 1:
        coupling.mark_inexact(ids, NORMALIZED)
    elif ids is not None:
        by_group = ids.reshape(groups, -1)
        coupling.tie(by_group[:, :1], by_group)
        coupling.constant("num_groups", None, by_group[:, :1])
    return scale_and_shift(coupling, value, a, dims_after=len(shape) - 2)


EXACT_REDUCTIONS = ("sum", "norm", "linalg_vector_norm", "nansum")
"""Reductions to which a zero contributes nothing; to a norm of a negative order it does."""


@register_rule("mean", "sum", "amax", "amin", "var", "std", "prod", "norm", "linalg_vector_norm", "logsumexp",
      "any", "all", "max", "min", "nansum")  # fmt: skip
def _reduction(coupling: Coupling, a: Arguments, shape: Shape) -> Labels | list[Labels]:
    """A reduction over some or all dimensions."""
    value, name = operand(a), coupling.operator
    if isinstance(a.get("other"), Labels):  # the elementwise maximum of two tensors
        return elementwise(coupling, coupling.node.target, [value, a["other"]], {}, shape)
    dims = [a["dim"]] if isinstance(a.get("dim"), int) else a.get("dim")
    ndim = len(value.shape)
    reduced = {dim % ndim for dim in dims} if dims else set(range(ndim))
    order = a.get("ord", a.get("p"))
    is_exact = name in EXACT_REDUCTIONS and not (isinstance(order, int | float) and order < 0)
    for dim in sorted(reduced):
        if (layer := value.layer(dim)) is not None and len(layer.dims) > 1:
            value = coupling.fix(value, dim)
        elif layer is not None and not (is_exact and layer.zero):
            coupling.mark_inexact(layer.ids, f"{name} is computed over the channels")
    layers = [
        replace(layer, zero=layer.zero and name != "logsumexp")
        for layer in value.layers
        if reduced.isdisjoint(layer.dims)
    ]
    result = Labels(value.shape, tuple(layers))
    if not a.get("keepdim", False):
        result = result.moved(shape, lambda dim: dim - sum(r < dim for r in reduced))
    return [replace(result, shape=shape) for shape in coupling.shapes]


@register_rule("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod")
def _along_one_dimension(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """A function of all entries along one dimension, for each of the other positions."""
    value, dim = a["self"], a["dim"] % len(shape)
    if (layer := value.layer(dim)) is not None and len(layer.dims) == 1:
        name = coupling.operator
        coupling.mark_inexact(
            layer.ids, NORMALIZED if "softmax" in name else f"{name} is computed over the channels"
        )
    value = coupling.fix_split(value, dim)
    return Labels(shape, tuple(replace(layer, zero=False) for layer in value.layers))
