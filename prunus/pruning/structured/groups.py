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
from torch import Tensor, fx, nn

from prunus.errors import ModelError
from prunus.pruning.structured.graph import TracedGraph
from prunus.pruning.structured.labels import Atoms, Coupling, Refusal, SizeConstant, connected_components
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
    roots: Atoms
    """The label of each channel."""
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

    traced: TracedGraph
    groups: list[Group]
    refused: list[RefusedDimension]
    constants: list[SizeConstant]
    coupling: Coupling
    roots: Atoms
    """The channel that each label belongs to."""
    shapes: dict[str, tuple[int, ...]]
    """The shape of each tensor that has labels."""
    labels: dict[fx.Node, Any] = field(default_factory=dict)
    """The labels of the results of each node."""
    bindings: list[Any] = field(default_factory=list)
    """Attributes of modules that change with the channels; see `sizes`."""

    def length(self, name: str, dim: int) -> int:
        """The length of a dimension when it was analyzed.

        Args:
            name: The name of the tensor.
            dim: The dimension.

        Returns:
            The number of entries.
        """
        return self.shapes[name][dim]

    def kept_labels(self, removed: Mapping[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which labels are kept if channels are removed.

        Args:
            removed: Indices of the channels to remove, by name of the group.

        Returns:
            A boolean for each label.
        """
        kept_root = np.ones(len(self.roots), bool)
        for group in self.groups:
            if group.name in removed:
                kept_root[group.roots[np.asarray(removed[group.name], np.int64)]] = False
        return kept_root[self.roots]

    def macs(self, removed: Mapping[Any, Any] | None = None) -> int:
        """The MACs for the example inputs if channels are removed: of layers, and of products of activations.

        Args:
            removed: Indices of the channels to remove, by name of the group; None: no channel.

        Returns:
            The number of multiply-accumulate operations.
        """
        is_kept = self.kept_labels(removed or {})
        return sum(
            work.factor * int(np.prod([is_kept[atoms].sum() for atoms in work.channels], dtype=np.int64))
            for work in self.coupling.work
        )


def group_labels(labeled: LabeledGraph, model: nn.Module) -> Analysis:
    """Form groups from the coupled labels of a graph.

    Args:
        labeled: The result of `label_graph`.
        model: The model of the graph.

    Returns:
        The groups in the order of the model's tensors, and the dimensions from which no channel can be removed.
    """
    coupling = labeled.coupling
    roots = connected_components(coupling.count, coupling.ties)
    reasons: dict[int, Refusal] = {}
    blocked = np.zeros(coupling.count, bool)
    for atoms, refusal in coupling.blocks:
        for root in np.unique(roots[atoms]).tolist():
            reasons.setdefault(root, refusal)
            blocked[root] = True
    places = _places(labeled, model, roots)
    _block_whole_dimensions(coupling, places, blocked, reasons)
    inexact: dict[int, Refusal] = {}
    for atoms, refusal in coupling.inexact:
        for root in np.unique(roots[atoms]).tolist():
            inexact.setdefault(root, refusal)
    groups = _groups(places, blocked, inexact)
    return Analysis(
        labeled.traced, groups, _refused(places, blocked, reasons), coupling.constants, coupling, roots,
        {name: labels.shape for name, labels in labeled.parameters.items()}, labeled.results,
    )  # fmt: skip


ChannelsByPlace = dict[tuple[str, int], Atoms]
"""The channel of each entry of a dimension, by name of the tensor and dimension."""


def _places(labeled: LabeledGraph, model: nn.Module, roots: Atoms) -> ChannelsByPlace:
    order = {name: i for i, (name, _) in enumerate([*model.named_parameters(), *model.named_buffers()])}
    names = sorted(labeled.parameters, key=lambda name: order.get(name, len(order)))
    return {
        (name, layer.dims[0]): roots[layer.atoms]
        for name in names
        for layer in labeled.parameters[name].layers
    }


def _block_whole_dimensions(
    coupling: Coupling, places: ChannelsByPlace, blocked: np.ndarray[Any, Any], reasons: dict[int, Refusal]
) -> None:
    """Block channels that are all entries of a dimension."""
    for channel in places.values():
        if (channel == channel[0]).all() and not blocked[channel[0]]:
            blocked[channel[0]] = True
            reasons[int(channel[0])] = Refusal(
                "", "", "removing one channel would remove a whole dimension of a parameter"
            )


def _groups(
    places: ChannelsByPlace, blocked: np.ndarray[Any, Any], inexact: Mapping[int, Refusal]
) -> list[Group]:
    """Channels with the same signature: the same dimensions with the same number of entries."""
    signature = np.zeros(len(blocked), np.uint64)
    generator = np.random.default_rng(0)
    for channel in places.values():
        unique, counts = np.unique(channel, return_counts=True)
        number = generator.integers(1, 1 << 63, dtype=np.uint64) | np.uint64(1)
        signature[unique] += number * counts.astype(np.uint64)
    for root in inexact:
        signature[root] ^= np.uint64(1 << 63)
    members: dict[int, list[GroupMember]] = defaultdict(list)
    roots: dict[int, Atoms] = {}
    for (name, dim), channel in places.items():
        signatures = signature[channel]
        for key in dict.fromkeys(map(int, signatures[~blocked[channel]])):
            positions = np.flatnonzero(signatures == key)
            positions = positions[~blocked[channel[positions]]]
            if key not in roots:
                roots[key] = _in_order(channel[positions])
            ordered = positions[np.argsort(_ranks(roots[key], channel[positions]), kind="stable")]
            indices = torch.from_numpy(ordered.reshape(len(roots[key]), -1))
            members[key].append(GroupMember(name, dim, indices))
    groups, names = [], set()
    for key, own_roots in roots.items():
        first = members[key][0]
        name = first.name if first.name not in names else f"{first.name}:{first.dim}"
        while name in names:
            name += "'"
        names.add(name)
        group = Group(name, len(own_roots), tuple(members[key]), own_roots, inexact.get(int(own_roots[0])))
        groups.append(group)
    return groups


def _in_order(values: Atoms) -> Atoms:
    """Unique values in the order of their first occurrence."""
    unique, first = np.unique(values, return_index=True)
    return unique[np.argsort(first)]


def _ranks(order: Atoms, values: Atoms) -> Atoms:
    """The position in `order` of each value."""
    sorting = np.argsort(order)
    return sorting[np.searchsorted(order, values, sorter=sorting)]


def _refused(
    places: ChannelsByPlace, blocked: np.ndarray[Any, Any], reasons: Mapping[int, Refusal]
) -> list[RefusedDimension]:
    dimensions: dict[Refusal, list[tuple[str, int]]] = defaultdict(list)
    for place, channel in places.items():
        blocked_roots = channel[blocked[channel]]
        for root in np.unique(blocked_roots).tolist()[:1] if len(blocked_roots) else ():
            dimensions[reasons[root]].append(place)
    return [
        RefusedDimension(refusal, tuple(refused))
        for refusal, refused in dimensions.items()
        if refusal.reason != KERNEL
    ]


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
    removed_indices: dict[tuple[str, int], list[Tensor]] = {}
    sizes = {group.name: group for group in analysis.groups}
    for name, channels in removed.items():
        group = sizes.get(name)
        if group is None or any(not 0 <= channel < group.channels for channel in channels):
            raise ModelError(f"Expected channels of a group, got {name!r} with {list(channels)[:5]}.")
        for member in group.members if len(channels) else ():
            removed_indices.setdefault((member.name, member.dim), []).append(
                member.indices[list(channels)].flatten()
            )
    result: dict[str, dict[int, Tensor]] = {}
    for (name, dim), parts in removed_indices.items():
        size = analysis.length(name, dim)
        is_kept = torch.ones(size, dtype=torch.bool)
        is_kept[torch.cat(parts)] = False
        if not is_kept.any():
            raise ModelError(f"Expected a channel of {name!r} to remain, but all {size} would be removed.")
        result.setdefault(name, {})[dim] = is_kept.nonzero().flatten()
    return result
