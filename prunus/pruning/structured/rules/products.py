"""Sums of products: matrices, `torch.einsum`, embeddings, attention."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from prunus.pruning.structured.labels import Coupling, LabelLayer, Labels, Shape, Work
from prunus.pruning.structured.rules.elementwise_rules import elementwise
from prunus.pruning.structured.rules.registry import Arguments, UnsupportedCall, register_rule


def contract(
    coupling: Coupling, operands: Sequence[Labels], letters: Sequence[str], output: str, shape: Shape
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
                operands[i] = coupling.fix_split(operands[i], dim)
        for layer in operands[i].layers:
            operands[i] = coupling.isolate(operands[i], layer.dims[0])
    layers, factor, channels = [], 1, []
    for letter in dict.fromkeys("".join(letters)):
        places = [
            (op, dim)
            for op, subscripts in zip(operands, letters, strict=True)
            if (dim := subscripts.find(letter)) >= 0 and op.shape[dim] > 1
        ]
        labeled = [op.layer(dim) for op, dim in places]
        fixed = [
            f"dimension {dim} of a tensor of shape {op.shape}" for op, dim in places if not op.layer(dim)
        ]
        reason = f"it is multiplied with {' and '.join(fixed)}, from which no channel can be removed"
        ids = coupling.join([op.ids(dim) for op, dim in places], reason)
        if ids is None:
            factor *= max((op.shape[dim] for op, dim in places), default=1)
            continue
        channels.append(ids)
        zero = any(layer.zero for layer in labeled if layer)
        if letter in output:
            layers.append(LabelLayer((output.index(letter),), ids, zero))
        elif not zero:
            coupling.mark_inexact(ids, "a channel whose parameters are zero still contributes to the sum")
    coupling.work.append(Work(coupling.node, factor, tuple(channels)))
    return Labels(shape, tuple(sorted(layers, key=lambda layer: layer.dims)))


@register_rule("linear")
def _linear(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """x [..., I] times weight [O, I]."""
    x = a["input"]
    batch = "abcdefgh"[: len(x.shape) - 1]
    weight = "i" if len(a["weight"].shape) == 1 else "oi"
    result = contract(coupling, [x, a["weight"]], [batch + "i", weight], batch + weight[:-1], shape)
    return result if a["bias"] is None else elementwise(coupling, torch.add, [result, a["bias"]], {}, shape)


@register_rule("matmul", "mm", "bmm", "mv", "dot")
def _matmul(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Products of matrices with batch dimensions, and of vectors."""
    other = next(a[name] for name in ("other", "mat2", "vec", "tensor") if name in a)
    return _product(coupling, a["self"], other, shape)


def _product(coupling: Coupling, x: Labels, y: Labels, shape: Shape) -> Labels:
    """The matrix product of two tensors, with the shape of the result."""
    rows, columns = ("r" if len(x.shape) > 1 else ""), ("c" if len(y.shape) > 1 else "")
    batch = "abcdefgh"[: max(len(x.shape), len(y.shape), 2) - 2]
    own_x = batch[len(batch) - max(len(x.shape) - 2, 0) :] + rows + "k"
    own_y = batch[len(batch) - max(len(y.shape) - 2, 0) :] + "k" + columns
    return contract(coupling, [x, y], [own_x, own_y], batch + rows + columns, shape)


@register_rule("addmm", "baddbmm", "addmv", "addbmm")
def _add_product(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """self + a product."""
    first, second = [value for name, value in a.items() if isinstance(value, Labels) and name != "self"]
    if len(first.shape) == 3 and len(shape) == 2:
        raise UnsupportedCall("prunus has no rule for a sum over a batch of products")
    result = _product(coupling, first, second, shape)
    return elementwise(coupling, torch.add, [a["self"], result], {}, shape)


@register_rule("einsum")
def _einsum(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Sums of products in Einstein's notation."""
    inputs, arrow, output = a["equation"].replace(" ", "").partition("->")
    letters = inputs.split(",")
    has_diagonal = any(len(set(subscripts)) < len(subscripts) for subscripts in letters)
    if not arrow or "." in a["equation"] or has_diagonal:
        raise UnsupportedCall(
            "prunus has no rule for an equation without '->', with '...', or with a diagonal"
        )
    return contract(coupling, a["tensors"], letters, output, shape)


@register_rule("embedding")
def _embedding(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Rows of a table [V, D]."""
    dims = range(len(a["indices"].shape))
    coupling.fix(a["indices"], *dims, reason="the values are used as indices")
    table = coupling.fix(a["weight"], 0, reason="the rows of an embedding table are selected by index")
    return table.moved(shape, lambda _: len(shape) - 1)


@register_rule("scaled_dot_product_attention")
def _attention(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Attention: whole heads are removed, so that the scale, a function of the head size, is the same."""
    head = len(shape) - 3
    reason = "attention combines all entries of this dimension"
    query, key = (coupling.fix(a[name], head + 1, head + 2, reason=reason) for name in ("query", "key"))
    value = coupling.fix_split(coupling.fix(a["value"], head + 1, reason=reason), head + 2)
    if a.get("enable_gqa") and head >= 0:
        key, value = (_repeat_heads(x, head, query.shape[head]) for x in (key, value))
    if any(query.layer(dim) is not None for dim in range(head + 1)):
        value = coupling.fix(value, head + 2, reason="whole heads are removed, not entries of a head")
    batch = "abcdefgh"[: head + 1]
    scores_shape = (*shape[:-1], key.shape[head + 1])
    scores = contract(coupling, [query, key], [batch + "qd", batch + "kd"], batch + "qk", scores_shape)
    if isinstance(mask := a["attn_mask"], Labels):
        scores = elementwise(coupling, torch.add, [scores, mask], {}, scores_shape)
    return contract(coupling, [scores, value], [batch + "qk", batch + "kv"], batch + "qv", shape)


def _repeat_heads(x: Labels, head: int, heads: int) -> Labels:
    """The labels of keys or values after each head is repeated, up to a number of heads."""
    shape = (*x.shape[:head], heads, *x.shape[head + 1 :])
    layers = [
        replace(layer, ids=layer.ids.repeat(heads // x.shape[head])) if layer.dims == (head,) else layer
        for layer in x.layers
    ]
    return Labels(shape, tuple(layers))
