"""How each operator carries channel labels from its inputs to its outputs.

`RULES` has one function per operator name: `rule(coupling, arguments, shapes)`, with the arguments by the names of the
operator's schema and `Labels` in place of tensors, returns the labels of the results. Operators that are elementwise
share `elementwise`; an operator with no rule is refused (`walk.label_graph`).
"""

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch

from prunus.pruning.structured.labels import Atoms, Coupling, Labels, Layer, Work

Arguments = dict[str, Any]
Shapes = list[tuple[int, ...] | None]
Result = Labels | list[Labels | None]
Rule = Callable[[Coupling, Arguments, Shapes], Result]

RULES: dict[str, Rule] = {}


class UnsupportedCall(Exception):
    """A call of an operator that its rule does not cover; the message is the reason."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the operators of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def output_shape(shapes: Shapes) -> tuple[int, ...]:
    """The shape of the only result."""
    assert shapes[0] is not None
    return shapes[0]


# --- products ---------------------------------------------------------------------------------------------------


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
    for i, own in enumerate(letters):
        for dim, letter in enumerate(own):
            if letter not in output:
                layer = operands[i].layer(dim)
                if layer is not None and len(layer.dims) > 1:
                    operands[i] = coupling.fix(operands[i], dim, "")
        for layer in operands[i].layers:
            operands[i] = coupling.isolate(operands[i], layer.dims[0])
    layers, factor, channels = [], 1, []
    for letter in dict.fromkeys("".join(letters)):
        places = [(op, own.index(letter)) for op, own in zip(operands, letters, strict=True) if letter in own]
        places = [(op, dim) for op, dim in places if op.shape[dim] > 1]
        found = [op.layer(dim) for op, dim in places]
        vector = coupling.join(
            [layer.atoms if layer else None for layer in found], "it is multiplied with a fixed dimension"
        )
        if vector is None:
            factor *= max((op.shape[dim] for op, dim in places), default=1)
            continue
        channels.append(vector)
        zero = any(layer.zero for layer in found if layer)
        if letter in output:
            layers.append(Layer((output.index(letter),), vector, zero))
        elif not zero:
            coupling.mark_inexact(vector, "a channel that is zero contributes to the sum")
    assert coupling.node is not None
    coupling.work.append(Work(coupling.node, (), factor, tuple(channels)))
    return Labels(shape, tuple(sorted(layers, key=lambda layer: layer.dims)))


def add_bias(coupling: Coupling, value: Labels, bias: Labels | None) -> Labels:
    """A result plus a bias [O] of the dimension 1 of images, or the last one of other tensors."""
    return value if bias is None else elementwise(coupling, torch.add, [value, bias], {}, value.shape)


@rule("linear")
def linear(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """x [..., I] times weight [O, I]."""
    x, shape = a["input"], output_shape(shapes)
    batch = "abcdefgh"[: len(x.shape) - 1]
    weight = "i" if len(a["weight"].shape) == 1 else "oi"
    result = contract(coupling, [x, a["weight"]], [batch + "i", weight], batch + weight[:-1], shape)
    return add_bias(coupling, result, a["bias"])


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """Products of matrices with batch dimensions, and of vectors."""
    x = a["self"]
    y = next(a[name] for name in ("other", "mat2", "vec", "tensor") if name in a)
    return product(coupling, x, y, output_shape(shapes))


def product(coupling: Coupling, x: Labels, y: Labels, shape: tuple[int, ...]) -> Labels:
    """The matrix product of two tensors, with the shape of the result."""
    batch = "abcdefgh"
    rows, columns = ("r" if len(x.shape) > 1 else ""), ("c" if len(y.shape) > 1 else "")
    dims = max(len(x.shape), len(y.shape)) - 2
    own_x = batch[max(dims - len(x.shape) + 2, 0) : max(dims, 0)] + rows + "k"
    own_y = batch[max(dims - len(y.shape) + 2, 0) : max(dims, 0)] + "k" + columns
    output = batch[: max(dims, 0)] + rows + columns
    return contract(coupling, [x, y], [own_x, own_y], output, shape)


@rule("addmm", "baddbmm", "addmv", "addbmm")
def add_product(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """self + a product."""
    first, second = [value for name, value in a.items() if isinstance(value, Labels) and name != "self"]
    if len(first.shape) == 3 and len(output_shape(shapes)) == 2:
        raise UnsupportedCall("it sums over a batch of products")
    result = product(coupling, first, second, output_shape(shapes))
    return elementwise(coupling, torch.add, [a["self"], result], {}, output_shape(shapes))


@rule("einsum")
def einsum(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """Sums of products in Einstein's notation."""
    equation, operands = a["equation"].replace(" ", ""), a["tensors"]
    inputs, arrow, output = equation.partition("->")
    letters = inputs.split(",")
    if not arrow or "." in equation or any(len(set(own)) < len(own) for own in letters):
        raise UnsupportedCall("an equation without '->', with '...', or with a diagonal has no rule")
    return contract(coupling, operands, letters, output, output_shape(shapes))


@rule("embedding")
def embedding(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """Rows of a table [V, D]."""
    table, indices = a["weight"], a["indices"]
    for dim in range(len(indices.shape)):
        indices = coupling.fix(indices, dim, "it is used as an index")
    table = coupling.fix(table, 0, "its entries are the words of an embedding")
    shape = output_shape(shapes)
    return Labels(shape, tuple(Layer((len(shape) - 1,), layer.atoms, layer.zero) for layer in table.layers))


# --- convolutions -----------------------------------------------------------------------------------------------


KERNEL = "it is a dimension of a kernel"


def removes_whole_groups(groups: int, channels: int) -> bool:
    """Whether whole groups of a convolution are removed; otherwise the same channels of every group.

    Both are right; the finer of the two is chosen. A depthwise convolution has one channel per group.
    """
    return groups >= channels // groups


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
def convolution(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """Convolutions, grouped, depthwise and transposed ones; weight [O, I / groups, ...] or [I, O / groups, ...]."""
    assert coupling.node is not None
    transposed = a.get("transposed", "transpose" in str(coupling.node.target))
    x, weight, shape, groups = a["input"], a["weight"], output_shape(shapes), a["groups"]
    channel_dim = 1 if len(shape) == len(weight.shape) else 0  # a single image has no dimension of examples
    for dim in range(len(x.shape)):
        if dim != channel_dim:
            x = coupling.fix(x, dim, "a convolution slides over it")
    for dim in range(2, len(weight.shape)):
        weight = coupling.fix(weight, dim, KERNEL)
    weight, rows = coupling.vector(weight, 0)
    weight, columns = coupling.vector(weight, 1)
    x, channels = coupling.vector(x, channel_dim)
    zero = all(layer.zero for layer in weight.layers) or rows is None
    num_inputs, num_outputs = x.shape[channel_dim], shape[channel_dim]
    inputs, outputs = (rows, columns) if transposed else (columns, rows)
    if groups > 1:
        channels, outputs, inputs = _couple_groups(
            coupling, groups, (channels, inputs, outputs), (num_inputs, num_outputs), transposed
        )
    elif num_inputs > 1:
        inputs = channels = coupling.join([channels, inputs], "its input channels are fixed")
    positions = prod((x.shape if transposed else shape)[channel_dim + 1 :]) * (shape[0] if channel_dim else 1)
    labeled = [vector for vector in (inputs, outputs) if vector is not None]
    dense = num_inputs // groups * num_outputs
    factor = positions * prod(weight.shape[2:]) * dense // prod(len(vector) for vector in labeled)
    coupling.work.append(Work(coupling.node, (), factor, tuple(labeled)))
    layers = () if outputs is None else (Layer((channel_dim,), outputs, zero),)
    result = Labels(shape, layers)
    if a["bias"] is None:
        return result
    bias = Labels((num_outputs, *[1] * (len(shape) - channel_dim - 1)), a["bias"].layers)
    return elementwise(coupling, torch.add, [result, bias], {}, shape)


def _couple_groups(
    coupling: Coupling,
    groups: int,
    vectors: tuple[Atoms | None, Atoms | None, Atoms | None],
    sizes: tuple[int, int],
    transposed: bool,
) -> tuple[Atoms | None, Atoms | None, Atoms | None]:
    """Couple the channels of a grouped convolution: labels of its input, and of the two sides of its weight.

    Returns the labels of the input, the output [O], and the side of the weight that is counted beside the output.
    """
    channels, inputs, outputs = vectors
    num_inputs, num_outputs = sizes
    whole = removes_whole_groups(groups, num_inputs)
    if transposed:
        narrow, wide_is_input = outputs, True
    else:
        narrow, wide_is_input = inputs, False
    wide = inputs if wide_is_input else outputs
    if channels is None or wide is None:
        for vector in (channels, inputs, outputs):
            if vector is not None:
                coupling.block(vector, "the channels of a grouped convolution are fixed")
        return None, None, None
    if wide_is_input:
        coupling.tie(channels, wide)
    by_group = channels.reshape(groups, -1)
    if whole:
        if narrow is not None:
            coupling.block(
                narrow, "it is the width of a group of a convolution, of which whole groups are removed"
            )
        coupling.tie(by_group[:, :1], by_group)
        coupling.constant("groups", None, by_group[:, :1])
        if wide_is_input:
            return channels, by_group[:, 0].repeat(num_outputs // groups), None
        coupling.tie(by_group[:, :1], wide.reshape(groups, -1))
        return channels, wide, None
    coupling.tie(by_group[:1], by_group)
    if wide_is_input:
        repeated = None if narrow is None else np.tile(narrow, groups)
        return channels, repeated, by_group[0]
    if narrow is None:
        coupling.block(channels, "the width of a group of a convolution is fixed")
    else:
        coupling.tie(by_group, narrow)
    by_output = wide.reshape(groups, -1)
    coupling.tie(by_output[:1], by_output)
    return channels, wide, narrow


# --- normalization and attention --------------------------------------------------------------------------------


@rule("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
def batch_norm(coupling: Coupling, a: Arguments, shapes: Shapes) -> Result:
    """Normalization of every channel alone, with statistics over other dimensions."""
    value, shape = a["input"], shapes[0]
    assert shape is not None
    for dim in range(len(shape)):
        if dim != 1:
            value = coupling.fix(value, dim, "statistics are computed over it")
    tensors = [a.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    layer = value.layer(1)
    vectors = [layer.atoms if layer else None]
    present = [tensor for tensor in tensors if tensor is not None]
    vectors += [tensor.layers[0].atoms if tensor.layers else None for tensor in present]
    vector = coupling.join(vectors, "its channels are fixed")
    affine = tensors[0] is not None and all(own.layers[0].zero for own in tensors[:2] if own and own.layers)
    result = Labels(shape, () if vector is None else (Layer((1,), vector, affine),))
    return result if len(shapes) == 1 else [result, *[None] * (len(shapes) - 1)]


@rule("layer_norm", "native_layer_norm", "rms_norm")
def layer_norm(coupling: Coupling, a: Arguments, shapes: Shapes) -> Result:
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
            coupling.mark_inexact(vector.atoms, "it is normalized over its channels")
            coupling.constant("normalized_shape", position, vector.atoms)
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            operation = torch.mul if name == "weight" else torch.add
            value = elementwise(coupling, operation, [value, a[name]], {}, shape)
    return value if len(shapes) == 1 else [value, *map(fixed, shapes[1:])]


@rule("group_norm", "native_group_norm")
def group_norm(coupling: Coupling, a: Arguments, shapes: Shapes) -> Result:
    """Normalization of groups of channels: whole groups are removed, which is exact; of one group, it is not."""
    value, shape = a["input"], shapes[0]
    assert shape is not None
    groups = a.get("num_groups", a.get("group"))
    for dim in range(len(shape)):
        if dim != 1:
            value = coupling.fix(value, dim, "statistics are computed over it")
    if (layer := value.layer(1)) is not None:
        if groups == 1:
            coupling.mark_inexact(layer.atoms, "it is normalized over its channels")
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


@rule("scaled_dot_product_attention")
def attention(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """Attention: whole heads are removed, so that the scale, a function of the head size, is the same."""
    shape = output_shape(shapes)
    head = len(shape) - 3
    reason = "attention is over all its entries"
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
        operands["value"] = coupling.fix(operands["value"], head + 2, "whole heads are removed")
    layers = [layer for layer in operands["value"].layers if layer.dims == (head + 2,)]
    for dim in range(head + 1):
        present = [x.layer(dim) for x in operands.values() if x.shape[dim] > 1]
        vector = coupling.join([layer.atoms if layer else None for layer in present], "its heads are fixed")
        mask = a["attn_mask"]
        if vector is not None:
            if (
                isinstance(mask, Labels)
                and mask.shape[dim - len(shape) :]
                and len(mask.shape) >= len(shape) - dim
            ):
                position = dim - len(shape) + len(mask.shape)
                own = mask.layer(position)
                if mask.shape[position] > 1:
                    coupling.join([vector, own.atoms if own else None], "the attention mask has fixed heads")
            layers.append(Layer((dim,), vector, any(layer.zero for layer in present if layer)))
    return Labels(shape, tuple(sorted(layers, key=lambda layer: layer.dims)))


def _repeat_heads(x: Labels, head: int, heads: int) -> Labels:
    repeats = heads // x.shape[head]
    shape = (*x.shape[:head], heads, *x.shape[head + 1 :])
    layers = [
        Layer(layer.dims, layer.atoms.repeat(repeats), layer.zero) if layer.dims == (head,) else layer
        for layer in x.layers
    ]
    return Labels(shape, tuple(layers))


# --- elementwise and reductions ---------------------------------------------------------------------------------


def fixed(shape: tuple[int, ...] | None) -> Labels | None:
    """A tensor that no channel can be removed from."""
    return None if shape is None else Labels(shape)


def elementwise(
    coupling: Coupling, operation: Any, tensors: Sequence[Labels], scalars: Arguments, shape: tuple[int, ...]
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
    reason = "it meets a dimension of fixed length"
    for i, labels in enumerate(aligned):
        for dim in {dim for layer in labels.layers for dim in layer.dims}:
            if any(other.shape[dim] > 1 and other.layer(dim) is None for other in aligned):
                aligned[i] = coupling.fix(aligned[i], dim, reason)
    layers = []
    for key in sorted({layer.dims for labels in aligned for layer in labels.layers}):
        own = [next((layer for layer in labels.layers if layer.dims == key), None) for labels in aligned]
        present = [layer for layer in own if layer is not None]
        for layer in present[1:]:
            coupling.tie(present[0].atoms, layer.atoms)
        zeros = tuple(layer is not None and layer.zero for layer in own)
        zero = any(zeros) and maps_to_zero(operation, zeros, _Scalars(scalars))
        layers.append(Layer(key, present[0].atoms, zero))
    return Labels(shape, tuple(layers))


def _align(labels: Labels, ndim: int) -> Labels:
    offset = ndim - len(labels.shape)
    if not offset:
        return labels
    layers = tuple(
        Layer(tuple(dim + offset for dim in layer.dims), layer.atoms, layer.zero) for layer in labels.layers
    )
    return Labels((*[1] * offset, *labels.shape), layers)


class _Scalars:
    """Arguments by name, compared by their text, so that a result can be cached by them."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.text = repr(sorted(arguments.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Scalars) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@cache
def maps_to_zero(operation: Any, zeros: tuple[bool, ...], scalars: _Scalars) -> bool:
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


EXACT_REDUCTIONS = ("sum", "norm", "linalg_vector_norm", "nansum")
"""Reductions to which a zero contributes nothing."""


@rule("mean", "sum", "amax", "amin", "var", "std", "prod", "norm", "linalg_vector_norm", "logsumexp", "any", "all",
      "max", "min", "nansum")  # fmt: skip
def reduction(coupling: Coupling, a: Arguments, shapes: Shapes) -> Result:
    """A reduction over some or all dimensions."""
    assert coupling.node is not None
    value, name = a.get("self", a.get("input")), str(coupling.node.target).split(".")[1]
    if isinstance(a.get("other"), Labels):  # the elementwise maximum of two tensors
        return elementwise(coupling, coupling.node.target, [value, a["other"]], {}, output_shape(shapes))
    given = a.get("dim")
    given = [given] if isinstance(given, int) else given
    ndim = len(value.shape)
    reduced = sorted({dim % ndim for dim in given} if given else range(ndim))
    for dim in reduced:
        if (layer := value.layer(dim)) is not None and len(layer.dims) > 1:
            value = coupling.fix(value, dim, "")
        elif layer is not None and not (name in EXACT_REDUCTIONS and layer.zero):
            coupling.mark_inexact(layer.atoms, f"{name} is computed over its channels")
    keep = a.get("keepdim", False)
    dims = {
        old: old if keep else old - sum(r < old for r in reduced) for old in range(ndim) if old not in reduced
    }
    layers = []
    for layer in value.layers:
        if all(dim in dims for dim in layer.dims):
            zero = layer.zero and name not in ("logsumexp",)
            layers.append(Layer(tuple(dims[dim] for dim in layer.dims), layer.atoms, zero))
    results: list[Labels | None] = [
        None if shape is None else Labels(shape, tuple(layers)) for shape in shapes
    ]
    return results if len(results) > 1 else results[0]  # type: ignore[return-value]


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod")
def softmax(coupling: Coupling, a: Arguments, shapes: Shapes) -> Labels:
    """A function of all entries along one dimension, for each of the other positions."""
    value: Labels = a["self"]
    dim = a["dim"] % len(value.shape)
    if (layer := value.layer(dim)) is not None:
        if len(layer.dims) > 1:
            value = coupling.fix(value, dim, "")
        else:
            coupling.mark_inexact(layer.atoms, "it is normalized over its channels")
    return Labels(value.shape, tuple(Layer(layer.dims, layer.atoms, False) for layer in value.layers))


@rule(*(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3)),
      *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
      *(f"_adaptive_avg_pool{n}d" for n in (2, 3)), *(f"upsample_{kind}" for kind in
      ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d",
       "nearest_exact1d", "nearest_exact2d", "nearest_exact3d")), "grid_sampler",
      *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)))  # fmt: skip
def per_channel(coupling: Coupling, a: Arguments, shapes: Shapes) -> Result:
    """Pooling, interpolation and padding of each channel alone: over all but the first two dimensions."""
    value = a.get("self", a.get("input"))
    name = str(getattr(coupling.node, "target", ""))
    spatial = next(int(digit) for digit in name + "2" if digit in "123")
    first = len(value.shape) - spatial
    for dim in range(first, len(value.shape)):
        value = coupling.fix(value, dim, "a window slides over it")
    results = [None if shape is None else Labels(shape, value.layers) for shape in shapes]
    return results if len(results) > 1 else results[0]  # type: ignore[return-value]
