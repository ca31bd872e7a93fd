"""Convolutions, and operators that slide over the positions of each channel."""

from math import prod

import numpy as np
import torch

from prunus.pruning.structured.labels import Atoms, Coupling, LabelLayer, Labels, Work
from prunus.pruning.structured.rules.elementwise import elementwise
from prunus.pruning.structured.rules.registry import (
    ResultShapes,
    RuleArguments,
    RuleResult,
    operand,
    output_shape,
    register_rule,
)

KERNEL = "it is a dimension of a kernel"


def removes_whole_groups(groups: int, channels: int) -> bool:
    """Whether whole groups of a convolution are removed; otherwise the same channels of every group.

    Both are right; the finer of the two is chosen. A depthwise convolution has one channel per group.

    Args:
        groups: The number of groups.
        channels: The number of input channels.

    Returns:
        True for whole groups.
    """
    return groups >= channels // groups


@register_rule(
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"
)
def _convolution(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> Labels:
    """Convolutions, grouped, depthwise and transposed ones; weight [O, I / groups, ...] or [I, O / groups, ...]."""
    assert coupling.node is not None
    transposed = a.get("transposed", "transpose" in str(coupling.node.target))
    x, weight, shape, groups = a["input"], a["weight"], output_shape(shapes), a["groups"]
    channel_dim = 1 if len(shape) == len(weight.shape) else 0  # a single image has no dimension of examples
    for dim in range(len(x.shape)):
        if dim != channel_dim:
            x = coupling.fix(x, dim, "a convolution slides over this dimension")
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
        inputs = channels = coupling.join([channels, inputs], "the number of input channels is fixed")
    positions = prod((x.shape if transposed else shape)[channel_dim + 1 :]) * (shape[0] if channel_dim else 1)
    labeled = [vector for vector in (inputs, outputs) if vector is not None]
    dense = num_inputs // groups * num_outputs
    factor = positions * prod(weight.shape[2:]) * dense // prod(len(vector) for vector in labeled)
    coupling.work.append(Work(coupling.node, factor, tuple(labeled)))
    layers = () if outputs is None else (LabelLayer((channel_dim,), outputs, zero),)
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

    Returns the labels of the input, the output [O], and the other side of the weight.
    """
    channels, inputs, outputs = vectors
    num_inputs, num_outputs = sizes
    removes_groups = removes_whole_groups(groups, num_inputs)
    if transposed:
        narrow, wide_is_input = outputs, True
    else:
        narrow, wide_is_input = inputs, False
    wide = inputs if wide_is_input else outputs
    if channels is None or wide is None:
        for vector in (channels, inputs, outputs):
            if vector is not None:
                coupling.block(vector, "the number of channels of a grouped convolution is fixed")
        return None, None, None
    if wide_is_input:
        coupling.tie(channels, wide)
    by_group = channels.reshape(groups, -1)
    if removes_groups:
        if narrow is not None:
            coupling.block(narrow, "whole groups of a convolution are removed, not channels of a group")
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
        coupling.block(channels, "the number of channels in a group of a convolution is fixed")
    else:
        coupling.tie(by_group, narrow)
    by_output = wide.reshape(groups, -1)
    coupling.tie(by_output[:1], by_output)
    return channels, wide, narrow


@register_rule(
      *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3)),
      *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
      *(f"_adaptive_avg_pool{n}d" for n in (2, 3)), *(f"upsample_{kind}" for kind in
      ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d",
       "nearest_exact1d", "nearest_exact2d", "nearest_exact3d")),
      *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)))  # fmt: skip
def _per_channel(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> RuleResult:
    """Pooling, interpolation and padding of each channel alone: over all but the first two dimensions."""
    value = operand(a)
    name = str(getattr(coupling.node, "target", ""))
    spatial = next(int(digit) for digit in name + "2" if digit in "123")
    first = len(value.shape) - spatial
    for dim in range(first, len(value.shape)):
        value = coupling.fix(value, dim, "a window slides over this dimension")
    results = [None if shape is None else Labels(shape, value.layers) for shape in shapes]
    return results if len(results) > 1 else results[0]  # type: ignore[return-value]
