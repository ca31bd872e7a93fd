"""Convolutions, and operators that slide over the positions of each channel."""

from math import prod

import numpy as np
import torch

from prunus.pruning.structured.labels import ChannelIds, Coupling, LabelLayer, Labels, Shape, Work
from prunus.pruning.structured.rules.elementwise_rules import elementwise
from prunus.pruning.structured.rules.registry import Arguments, operand, register_rule

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
def _convolution(coupling: Coupling, a: Arguments, shape: Shape) -> Labels:
    """Convolutions, grouped, depthwise and transposed ones; weight [O, I / groups, ...] or [I, O / groups, ...]."""
    transposed = a.get("transposed", "transpose" in coupling.operator)
    x, weight, groups = a["input"], a["weight"], a["groups"]
    dim = 1 if len(shape) == len(weight.shape) else 0  # a single image has no dimension of examples
    others = (other for other in range(len(x.shape)) if other != dim)
    x = coupling.fix(x, *others, reason="a convolution slides over this dimension")
    weight = coupling.fix(weight, *range(2, len(weight.shape)), reason=KERNEL)
    weight = coupling.isolate(coupling.isolate(weight, 0), 1)
    channels, rows, columns = coupling.isolate(x, dim).ids(dim), weight.ids(0), weight.ids(1)
    zero = all(layer.zero for layer in weight.layers) or rows is None
    inputs, outputs = (rows, columns) if transposed else (columns, rows)
    num_inputs, num_outputs = x.shape[dim], shape[dim]
    if groups > 1:
        repeats = num_outputs // groups
        inputs, outputs = _couple_groups(coupling, groups, channels, rows, columns, repeats, transposed)
    elif num_inputs > 1:
        inputs = coupling.join([channels, inputs], "the number of input channels is fixed")
    positions = prod((x.shape if transposed else shape)[dim + 1 :]) * (shape[0] if dim else 1)
    labeled = [ids for ids in (inputs, outputs) if ids is not None]
    factor = positions * prod(weight.shape[2:]) * (num_inputs // groups * num_outputs)
    coupling.work.append(Work(coupling.node, factor // prod(map(len, labeled)), tuple(labeled)))
    result = Labels(shape, () if outputs is None else (LabelLayer((dim,), outputs, zero),))
    if a["bias"] is None:
        return result
    bias = a["bias"].unsqueezed(len(shape) - dim - 1)
    return elementwise(coupling, torch.add, [result, bias], {}, shape)


def _couple_groups(
    coupling: Coupling,
    groups: int,
    channels: ChannelIds | None,
    rows: ChannelIds | None,
    columns: ChannelIds | None,
    repeats: int,
    transposed: bool,
) -> tuple[ChannelIds | None, ChannelIds | None]:
    """Couple the channels of the input of a grouped convolution with the rows and columns of its weight.

    Returns the ids of the inputs of one group, where channels of a group can be removed, and of all outputs.
    """
    if channels is None or rows is None:
        for ids in (channels, rows, columns):
            if ids is not None:
                coupling.block(ids, "the number of channels of a grouped convolution is fixed")
        return None, None
    if transposed:
        coupling.tie(channels, rows)
    by_group, rows_by_group = channels.reshape(groups, -1), rows.reshape(groups, -1)
    if removes_whole_groups(groups, len(channels)):
        if columns is not None:
            coupling.block(columns, "whole groups of a convolution are removed, not channels of a group")
        coupling.tie(by_group[:, :1], by_group)
        coupling.constant("groups", None, by_group[:, :1])
        if transposed:
            return None, by_group[:, 0].repeat(repeats)
        coupling.tie(by_group[:, :1], rows_by_group)
        return None, rows
    coupling.tie(by_group[:1], by_group)
    if transposed:
        return by_group[0], None if columns is None else np.tile(columns, groups)
    if columns is None:
        coupling.block(channels, "the number of channels in a group of a convolution is fixed")
    else:
        coupling.tie(by_group, columns)
    coupling.tie(rows_by_group[:1], rows_by_group)
    return columns, rows


@register_rule(
      *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3)),
      *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
      *(f"_adaptive_avg_pool{n}d" for n in (2, 3)), *(f"upsample_{kind}" for kind in
      ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d",
       "nearest_exact1d", "nearest_exact2d", "nearest_exact3d")),
      *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)))  # fmt: skip
def _per_channel(coupling: Coupling, a: Arguments, shape: Shape) -> list[Labels]:
    """Pooling, interpolation and padding of each channel alone: over all but the first two dimensions."""
    value = operand(a)
    spatial = next(int(digit) for digit in coupling.operator + "2" if digit in "123")
    dims = range(len(value.shape) - spatial, len(value.shape))
    layers = coupling.fix(value, *dims, reason="a window slides over this dimension").layers
    return [Labels(shape, layers) for shape in coupling.shapes]
