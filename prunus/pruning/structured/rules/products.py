"""Sums of products: matrices, `torch.einsum`, embeddings, attention."""

from collections.abc import Sequence

import torch

from prunus.pruning.structured.labels import Coupling, LabelLayer, Labels, Work
from prunus.pruning.structured.rules.elementwise import elementwise
from prunus.pruning.structured.rules.registry import (
    ResultShapes,
    RuleArguments,
    UnsupportedCall,
    output_shape,
    register_rule,
)


def contract(
    coupling: Coupling,
    operands: Sequence[Labels],
    letters: Sequence[str],
    output: str,
    shape: tuple[int, ...],
) -> Labels:
    """A sum of products, as in `torch.einsum`: equal letters are one dimension, and letters not in `output` are summed.

    Args:
        coupling: Collects what is coupled.
        operands: The factors.
        letters: A letter per dimension of each.
        output: A letter per dimension of the result.
        shape: The shape of the result.

    Returns:
        The labels of the result.
    """
    operands = list(operands)
    for i, subscripts in enumerate(letters):
        for dim, letter in enumerate(subscripts):
            if letter not in output:
                layer = operands[i].layer(dim)
                if layer is not None and len(layer.dims) > 1:
                    operands[i] = coupling.fix(operands[i], dim, "")
        for layer in operands[i].layers:
            operands[i] = coupling.isolate(operands[i], layer.dims[0])
    layers, factor, channels = [], 1, []
    for letter in dict.fromkeys("".join(letters)):
        places = [
            (op, subscripts.index(letter))
            for op, subscripts in zip(operands, letters, strict=True)
            if letter in subscripts
        ]
        places = [(op, dim) for op, dim in places if op.shape[dim] > 1]
        labeled = [op.layer(dim) for op, dim in places]
        fixed = [
            f"dimension {dim} of a tensor of shape {op.shape}" for op, dim in places if not op.layer(dim)
        ]
        reason = f"it is multiplied with {' and '.join(fixed)}, from which no channel can be removed"
        vector = coupling.join([layer.atoms if layer else None for layer in labeled], reason)
        if vector is None:
            factor *= max((op.shape[dim] for op, dim in places), default=1)
            continue
        channels.append(vector)
        zero = any(layer.zero for layer in labeled if layer)
        if letter in output:
            layers.append(LabelLayer((output.index(letter),), vector, zero))
        elif not zero:
            coupling.mark_inexact(vector, "a channel whose parameters are zero still contributes to the sum")
    assert coupling.node is not None
    coupling.work.append(Work(coupling.node, factor, tuple(channels)))
    return Labels(shape, tuple(sorted(layers, key=lambda layer: layer.dims)))


def _add_bias(coupling: Coupling, value: Labels, bias: Labels | None) -> Labels:
    """A result plus a bias [O] of the dimension 1 of images, or the last one of other tensors."""
    return value if bias is None else elementwise(coupling, torch.add, [value, bias], {}, value.shape)


@register_rule("linear")
def _linear(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """x [..., I] times weight [O, I]."""
    x, shape = a["input"], output_shape(shapes)
    batch = "abcdefgh"[: len(x.shape) - 1]
    weight = "i" if len(a["weight"].shape) == 1 else "oi"
    result = contract(coupling, [x, a["weight"]], [batch + "i", weight], batch + weight[:-1], shape)
    return _add_bias(coupling, result, a["bias"])


@register_rule("matmul", "mm", "bmm", "mv", "dot")
def _matmul(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """Products of matrices with batch dimensions, and of vectors."""
    x = a["self"]
    y = next(a[name] for name in ("other", "mat2", "vec", "tensor") if name in a)
    return _product(coupling, x, y, output_shape(shapes))


def _product(coupling: Coupling, x: Labels, y: Labels, shape: tuple[int, ...]) -> Labels:
    """The matrix product of two tensors, with the shape of the result."""
    batch = "abcdefgh"
    rows, columns = ("r" if len(x.shape) > 1 else ""), ("c" if len(y.shape) > 1 else "")
    dims = max(len(x.shape), len(y.shape)) - 2
    own_x = batch[max(dims - len(x.shape) + 2, 0) : max(dims, 0)] + rows + "k"
    own_y = batch[max(dims - len(y.shape) + 2, 0) : max(dims, 0)] + "k" + columns
    output = batch[: max(dims, 0)] + rows + columns
    return contract(coupling, [x, y], [own_x, own_y], output, shape)


@register_rule("addmm", "baddbmm", "addmv", "addbmm")
def _add_product(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """self + a product."""
    first, second = [value for name, value in a.items() if isinstance(value, Labels) and name != "self"]
    if len(first.shape) == 3 and len(output_shape(shapes)) == 2:
        raise UnsupportedCall("prunus has no rule for a sum over a batch of products")
    result = _product(coupling, first, second, output_shape(shapes))
    return elementwise(coupling, torch.add, [a["self"], result], {}, output_shape(shapes))


@register_rule("einsum")
def _einsum(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """Sums of products in Einstein's notation."""
    equation, operands = a["equation"].replace(" ", ""), a["tensors"]
    inputs, arrow, output = equation.partition("->")
    letters = inputs.split(",")
    if not arrow or "." in equation or any(len(set(subscripts)) < len(subscripts) for subscripts in letters):
        raise UnsupportedCall(
            "prunus has no rule for an equation without '->', with '...', or with a diagonal"
        )
    return contract(coupling, operands, letters, output, output_shape(shapes))


@register_rule("embedding")
def _embedding(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """Rows of a table [V, D]."""
    table, indices = a["weight"], a["indices"]
    for dim in range(len(indices.shape)):
        indices = coupling.fix(indices, dim, "the values are used as indices")
    table = coupling.fix(table, 0, "the rows of an embedding table are selected by index")
    shape = output_shape(shapes)
    return Labels(
        shape, tuple(LabelLayer((len(shape) - 1,), layer.atoms, layer.zero) for layer in table.layers)
    )


@register_rule("scaled_dot_product_attention")
def _attention(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """Attention: whole heads are removed, so that the scale, a function of the head size, is the same."""
    shape = output_shape(shapes)
    head = len(shape) - 3
    reason = "attention combines all entries of this dimension"
    operands = {}
    for name in ("query", "key", "value"):
        x = a[name]
        for dim in (head + 1, head + 2):
            layer = x.layer(dim)
            if name != "value" or dim == head + 1 or (layer is not None and len(layer.dims) > 1):
                x = coupling.fix(x, dim, reason)
        operands[name] = x
    if a.get("enable_gqa") and head >= 0:
        for name in ("key", "value"):
            operands[name] = _repeat_heads(operands[name], head, a["query"].shape[head])
    if any(operands["query"].layer(dim) is not None for dim in range(head + 1)):
        operands["value"] = coupling.fix(
            operands["value"], head + 2, "whole heads are removed, not entries of a head"
        )
    values = [layer for layer in operands["value"].layers if layer.dims == (head + 2,)]
    layers, factor = list[LabelLayer](), shape[head + 1] * operands["key"].shape[head + 1]
    for dim in range(head + 1):
        present = [x.layer(dim) for x in operands.values() if x.shape[dim] > 1]
        vector = coupling.join(
            [layer.atoms if layer else None for layer in present],
            "query, key or value has a fixed number of heads",
        )
        mask = a["attn_mask"]
        if vector is not None:
            if (
                isinstance(mask, Labels)
                and mask.shape[dim - len(shape) :]
                and len(mask.shape) >= len(shape) - dim
            ):
                position = dim - len(shape) + len(mask.shape)
                mask_layer = mask.layer(position)
                if mask.shape[position] > 1:
                    coupling.join(
                        [vector, mask_layer.atoms if mask_layer else None],
                        "the attention mask has a fixed number of heads",
                    )
            layers.append(LabelLayer((dim,), vector, any(layer.zero for layer in present if layer)))
        else:
            factor *= shape[dim]
    assert coupling.node is not None
    channels = tuple(layer.atoms for layer in layers)
    coupling.work.append(Work(coupling.node, factor * operands["query"].shape[head + 2], channels))
    factor *= 1 if values else shape[head + 2]
    coupling.work.append(Work(coupling.node, factor, (*channels, *(layer.atoms for layer in values))))
    return Labels(shape, tuple(sorted(layers + values, key=lambda layer: layer.dims)))


def _repeat_heads(x: Labels, head: int, heads: int) -> Labels:
    repeats = heads // x.shape[head]
    shape = (*x.shape[:head], heads, *x.shape[head + 1 :])
    layers = [
        LabelLayer(layer.dims, layer.atoms.repeat(repeats), layer.zero) if layer.dims == (head,) else layer
        for layer in x.layers
    ]
    return Labels(shape, tuple(layers))
