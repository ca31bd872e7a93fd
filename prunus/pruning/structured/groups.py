"""Groups of channels: the parts of all tensors that must be removed together.

    channel   one set of coupled entries of parameters and buffers, for example a filter, its bias, its BatchNorm
              channel and the input slices of the next layers
    group     channels with the same tensors and dimensions, for example all filters of a layer

How a criterion scores channels: `group.member_values(member, tensor)` gives the part of any tensor with the shape of a
parameter (weights, gradients, activations of a dimension) that belongs to each channel, [channels, entries]; a group
score is a reduction over these, for example `group.reduce(scores)` with scores per weight by parameter name.

    >>> import torch; from torch import nn; from prunus.pruning.structured.analysis import analyze
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    >>> analysis = analyze(model, torch.zeros(1, 1, 8, 8))
    >>> [group] = analysis.groups
    >>> group
    Group(name='0.weight', channels=4, exact=True)
    >>> [(member.name, member.dim) for member in group.members][:3]
    [('0.weight', 0), ('0.bias', 0), ('1.weight', 0)]
    >>> group.reduce({name: p.detach().abs() for name, p in model.named_parameters()}).shape
    torch.Size([4])
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import ModelError
from prunus.pruning.structured.graph import TracedGraph
from prunus.pruning.structured.labels import ChannelIds, KeptIds, Refusal, connected_components
from prunus.pruning.structured.rules import KERNEL
from prunus.pruning.structured.walk import LabeledGraph


@dataclass(frozen=True)
class GroupMember:
    """One dimension of one tensor, and the entries of it that belong to each channel of a group."""

    name: str
    """Of a parameter, buffer or tensor attribute of the model."""
    dim: int
    indices: Tensor
    """[channels, entries per channel]."""


@dataclass(frozen=True)
class Group:
    """Channels that are removed in the same way."""

    name: str
    """The first parameter of the group in the order of the model; unique with `dim` of that member."""
    channels: int
    members: tuple[GroupMember, ...]
    ids: ChannelIds
    """The id of each channel."""
    inexact: Refusal | None = None
    """Why removing a channel is not the same as setting it to zero; None where it is the same."""

    @property
    def exact(self) -> bool:
        """Whether removing a channel is the same as setting its parameters to zero."""
        return self.inexact is None

    def __repr__(self) -> str:
        return f"Group(name={self.name!r}, channels={self.channels}, exact={self.exact})"

    def member_values(self, member: GroupMember, tensor: Tensor) -> Tensor:
        """The entries of a tensor that belong to each channel.

        Args:
            member: A member of this group.
            tensor: Of the shape of the member's tensor.

        Returns:
            [channels, entries], the entries in the order of the tensor.
        """
        selected = tensor.index_select(member.dim, member.indices.flatten().to(tensor.device))
        return selected.movedim(member.dim, 0).reshape(self.channels, -1)

    def reduce(self, scores: Mapping[str, Tensor]) -> Tensor:
        """One score per channel: the sum of the scores of all its weights.

        Args:
            scores: A score per weight by parameter name, of the shape of the parameter; members without are left out.

        Returns:
            [channels].
        """
        total = torch.zeros(self.channels)
        for member in self.members:
            if member.name in scores:
                tensor = scores[member.name]
                tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
                others = [dim for dim in range(tensor.dim()) if dim != member.dim]
                sums = tensor.sum(others) if others else tensor
                total = total.to(sums) + sums[member.indices.to(sums.device)].sum(1)
        return total


@dataclass(frozen=True)
class RefusedDimension:
    """Dimensions of parameters from which no channel can be removed, and the reason."""

    refusal: Refusal
    dimensions: tuple[tuple[str, int], ...]
    """Names and dimensions of parameters."""

    @property
    def operator(self) -> str:
        """The name of the operator that prevents it; empty where none does."""
        return self.refusal.operator

    @property
    def source(self) -> str:
        """The line of the user's code, "file:line: code"."""
        return self.refusal.source

    @property
    def reason(self) -> str:
        """Why no channel can be removed."""
        return self.refusal.reason


@dataclass
class Analysis:
    """The groups of a model."""

    graph: LabeledGraph
    channels: ChannelIds
    """The channel that each id belongs to: the smallest of the ids that are coupled."""
    groups: list[Group]
    refused: list[RefusedDimension]
    bindings: list[Any] = field(default_factory=list)
    """Attributes of modules that change with the channels; see `sizes`."""

    @property
    def traced(self) -> TracedGraph:
        """The traced graph."""
        return self.graph.traced

    def kept_ids(self, removed: Mapping[str, Sequence[int]]) -> KeptIds:
        """Which ids are kept if channels are removed.

        Args:
            removed: Indices of the channels to remove, by name of the group.

        Returns:
            A boolean for each id.
        """
        is_kept = np.ones(len(self.channels), bool)
        for group in self.groups:
            if group.name in removed:
                is_kept[group.ids[np.asarray(removed[group.name], np.int64)]] = False
        return is_kept[self.channels]

    def macs(self, removed: Mapping[str, Sequence[int]] | None = None) -> int:
        """The MACs for the example inputs if channels are removed: of layers, and of products of activations.

        Args:
            removed: Indices of the channels to remove, by name of the group; None: no channel.

        Returns:
            The number of multiply-accumulate operations.
        """
        is_kept = self.kept_ids(removed or {})
        return sum(work.macs(is_kept) for work in self.graph.coupling.work)

    def kept_shapes(
        self, model: nn.Module, removed: Mapping[str, Sequence[int]]
    ) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters if channels are removed.

        Args:
            model: The model before or after the removal; only tensors without groups are looked up in it.
            removed: Indices of the channels to remove, by name of the group.

        Returns:
            The shapes by name.
        """
        remaining, labels = kept_indices(self, removed), self.graph.parameters
        return {
            name: tuple(
                len(remaining[name][dim]) if dim in remaining.get(name, {}) else size
                for dim, size in enumerate(labels[name].shape if name in labels else parameter.shape)
            )
            for name, parameter in model.named_parameters()
        }


def group_labels(graph: LabeledGraph, model: nn.Module) -> Analysis:
    """Form groups from the coupled ids of a graph.

    Args:
        graph: The result of `label_graph`.
        model: The model of the graph.

    Returns:
        The groups in the order of the model's tensors, and the dimensions from which no channel can be removed.
    """
    coupling = graph.coupling
    channels = connected_components(coupling.count, coupling.ties)
    places = _places(graph, model, channels)
    refusals = _by_channel(channels, coupling.blocks)
    for channel in places.values():
        if (channel == channel[0]).all():
            reason = "removing one channel would remove a whole dimension of a parameter"
            refusals.setdefault(int(channel[0]), Refusal("", "", reason))
    # What a slice leaves out, such as the positions of a table beyond the length of the example inputs, is needed for
    # other inputs, and removing it would move the entries behind it.
    is_read = np.zeros(coupling.count, bool)
    is_read[channels[np.concatenate([np.empty(0, np.int64), *coupling.read])]] = True
    for channel in places.values():
        for unread in np.unique(channel[~is_read[channel]]).tolist():
            refusals.setdefault(
                unread, Refusal("", "", "no operator reads these entries for the example inputs")
            )
    groups = _groups(places, refusals, _by_channel(channels, coupling.inexact), coupling.count)
    return Analysis(graph, channels, groups, _refused(places, refusals))


def _by_channel(channels: ChannelIds, marked: Sequence[tuple[ChannelIds, Refusal]]) -> dict[int, Refusal]:
    """The first refusal of each channel that has one."""
    refusals: dict[int, Refusal] = {}
    for ids, refusal in marked:
        for channel in np.unique(channels[ids]).tolist():
            refusals.setdefault(channel, refusal)
    return refusals


ChannelsByPlace = dict[tuple[str, int], ChannelIds]
"""The channel of each entry of a dimension, by name of the tensor and dimension."""


def _places(graph: LabeledGraph, model: nn.Module, channels: ChannelIds) -> ChannelsByPlace:
    order = {name: i for i, (name, _) in enumerate([*model.named_parameters(), *model.named_buffers()])}
    names = sorted(graph.parameters, key=lambda name: order.get(name, len(order)))
    return {
        (name, layer.dims[0]): channels[layer.ids]
        for name in names
        for layer in graph.parameters[name].layers
    }


def _groups(
    places: ChannelsByPlace, refusals: Mapping[int, Refusal], inexact: Mapping[int, Refusal], count: int
) -> list[Group]:
    """Channels with the same signature: the same dimensions with the same number of entries."""
    signature, is_refused = np.zeros(count, np.uint64), np.zeros(count, bool)
    is_refused[list(refusals)] = True
    generator = np.random.default_rng(0)
    for channel in places.values():
        unique, counts = np.unique(channel, return_counts=True)
        number = generator.integers(1, 1 << 63, dtype=np.uint64) | np.uint64(1)
        signature[unique] += number * counts.astype(np.uint64)
    signature[list(inexact)] ^= np.uint64(1 << 63)
    members: dict[int, list[GroupMember]] = defaultdict(list)
    ids: dict[int, ChannelIds] = {}
    for (name, dim), channel in places.items():
        removable = np.flatnonzero(~is_refused[channel])
        signatures = signature[channel[removable]]
        for key in dict.fromkeys(map(int, signatures)):
            positions = removable[signatures == key]
            if key not in ids:
                ids[key] = _in_order(channel[positions])
            ordered = positions[np.argsort(_ranks(ids[key], channel[positions]), kind="stable")]
            indices = torch.from_numpy(ordered.reshape(len(ids[key]), -1))
            members[key].append(GroupMember(name, dim, indices))
    groups, names = [], set()
    for key, own_ids in ids.items():
        first = members[key][0]
        name = first.name if first.name not in names else f"{first.name}:{first.dim}"
        while name in names:
            name += "'"
        names.add(name)
        groups.append(Group(name, len(own_ids), tuple(members[key]), own_ids, inexact.get(int(own_ids[0]))))
    return groups


def _in_order(values: ChannelIds) -> ChannelIds:
    """Unique values in the order of their first occurrence."""
    unique, first = np.unique(values, return_index=True)
    return unique[np.argsort(first)]


def _ranks(order: ChannelIds, values: ChannelIds) -> ChannelIds:
    """The position in `order` of each value."""
    sorting = np.argsort(order)
    return sorting[np.searchsorted(order, values, sorter=sorting)]


def _refused(places: ChannelsByPlace, refusals: Mapping[int, Refusal]) -> list[RefusedDimension]:
    """The dimensions with a channel that cannot be removed, by the reason of the first one."""
    dimensions: dict[Refusal, list[tuple[str, int]]] = defaultdict(list)
    for place, channel in places.items():
        first = next((refusals[c] for c in np.unique(channel).tolist() if c in refusals), None)
        if first is not None and first.reason != KERNEL:
            dimensions[first].append(place)
    return [RefusedDimension(refusal, tuple(refused)) for refusal, refused in dimensions.items()]


def kept_indices(analysis: Analysis, removed: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Tensor]]:
    """The indices of each dimension of each tensor that remain if channels are removed.

    Args:
        analysis: The groups.
        removed: Indices of the channels to remove, by name of the group.

    Returns:
        The sorted indices by name of the tensor and dimension; whole dimensions are left out.

    Raises:
        ModelError: A group has no such channel, or all of its channels would be removed.
    """
    is_kept: dict[str, dict[int, Tensor]] = defaultdict(dict)
    groups = {group.name: group for group in analysis.groups}
    for name, channels in removed.items():
        group = groups.get(name)
        if group is None or any(not 0 <= channel < group.channels for channel in channels):
            raise ModelError(f"Expected channels of a group, got {name!r} with {list(channels)[:5]}.")
        for member in group.members if len(channels) else ():
            size = analysis.graph.parameters[member.name].shape[member.dim]
            entries = is_kept[member.name].setdefault(member.dim, torch.ones(size, dtype=torch.bool))
            entries[member.indices[list(channels)]] = False
            if not entries.any():
                raise ModelError(
                    f"Expected a channel of {member.name!r} to remain, but all {size} would be removed."
                )
    return {
        name: {dim: entries.nonzero().flatten() for dim, entries in dims.items()}
        for name, dims in is_kept.items()
    }
