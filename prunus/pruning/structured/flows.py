"""How channels pass through a network: the weights that compute them, and the weights that read them."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from torch import fx, nn

from prunus.pruning.structured.graph import (
    TracedGraph,
    bind_arguments,
    describe_node,
    layer_path,
    operator_name,
    result_shapes,
)
from prunus.pruning.structured.groups import Analysis, Group, GroupMember
from prunus.pruning.structured.walk import flatten_labels

_LAYERS = ("linear", "conv1d", "conv2d", "conv3d")
_COMBINING = ("lstm", "gru", "rnn_", "wrap_with_")
"""Prefixes of the names of operators that may combine channels of one group, or have a graph of their own."""

_JOINING = ("cat", "concat")
"""Prefixes of the names of operators that put channels next to each other and do not combine them."""


@dataclass(eq=False)
class ChannelFlow:
    """The weights of Linear layers and convolutions that the channels of a group pass through, by parameter name."""

    group: Group
    producers: dict[str, GroupMember] = field(default_factory=dict)
    """Weights of which some rows are a channel."""
    consumers: dict[str, GroupMember] = field(default_factory=dict)
    """Weights of which some columns read a channel."""
    obstacle: str | None = None
    """Why a channel may have an effect other than through the consumers, or None."""
    has_constants: bool = True
    """Whether a channel without incoming weights is a constant that can be added to the biases of the consumers."""


def channel_flows(analysis: Analysis, model: nn.Module) -> list[ChannelFlow]:
    """The flow of each group.

    Args:
        analysis: The groups of a model.
        model: The model.

    Returns:
        One flow per group, in the same order.
    """
    traced, carried = analysis.traced, _carried_groups(analysis)
    flows = [ChannelFlow(group, obstacle=str(group.inexact or "") or None) for group in analysis.groups]
    members = [{(member.name, member.dim): member for member in group.members} for group in analysis.groups]
    uses = Counter(traced.tensors.get(source.name) for node in carried for source in node.all_input_nodes)
    depend_on_inputs = {n for n in carried if n.op == "placeholder" and n.name not in traced.tensors}
    for node, carried_groups in carried.items():
        if node.op != "call_function":
            continue
        if not depend_on_inputs.isdisjoint(node.all_input_nodes):
            depend_on_inputs.add(node)
        weight, bias = _weight_and_bias(traced, node)
        rows = {i for i in carried_groups if (weight, 0) in members[i]}
        for i in rows:
            flows[i].producers[weight] = members[i][weight, 0]
        for source in [source for source in node.all_input_nodes if source.name in traced.tensors]:
            has_positions = sum(size > 1 for size in result_shapes(source)[0] or ()) > 1
            if has_positions and traced.tensors[source.name] != weight:
                for i in carried[source]:  # as a positional embedding, with a value for each position
                    flows[i].has_constants = False
        for source in [source for source in node.all_input_nodes if source.name not in traced.tensors]:
            for i in carried[source]:
                if (weight, 1) in members[i]:
                    flows[i].consumers[weight] = members[i][weight, 1]
                    is_layer = layer_path(traced, node, model) is not None
                    flows[i].has_constants &= is_layer and uses[weight] == 1 and (not bias or uses[bias] == 1)
                elif i not in carried_groups or _combines_channels(node):
                    flows[i].obstacle = flows[i].obstacle or f"its outputs go to {describe_node(node)}"
            is_part = source not in depend_on_inputs or operator_name(node.target).startswith(_JOINING)
            if not is_part:
                for i in carried_groups - rows - carried[source]:
                    flows[i].has_constants = False
    return flows


def _carried_groups(analysis: Analysis) -> dict[fx.Node, set[int]]:
    """The groups whose channels are in the results of each node, by position."""
    group_of = np.full(len(analysis.channels), -1)
    for i, group in enumerate(analysis.groups):
        group_of[group.ids] = i
    return {
        node: {
            int(i)
            for labels in flatten_labels(value)
            for layer in labels.layers
            for i in np.unique(group_of[analysis.channels[layer.ids]])
            if i >= 0
        }
        for node, value in analysis.graph.results.items()
    }


def _weight_and_bias(traced: TracedGraph, node: fx.Node) -> tuple[str, str]:
    """The names of the tensors of a Linear layer or an ordinary convolution; "" for computed weights, other nodes."""
    arguments = bind_arguments(node)
    if operator_name(node.target) not in _LAYERS or arguments.get("groups", 1) != 1:
        return "", ""
    weight, bias = (getattr(arguments[name], "name", "") for name in ("weight", "bias"))
    return traced.tensors.get(weight, ""), traced.tensors.get(bias, "")


def _combines_channels(node: fx.Node) -> bool:
    """Whether an operator may combine channels that its rule does not couple."""
    is_grouped = bind_arguments(node).get("groups", 1) > 1
    return is_grouped or operator_name(node.target).startswith(_COMBINING)
