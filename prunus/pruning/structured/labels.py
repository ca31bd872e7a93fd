"""Channel labels: which entries of a tensor's dimensions must be removed together.

Every entry of every dimension of a parameter has an id, an integer. The rule of an operator computes the ids of
its result, and couples the ids of entries that the operator combines. A tensor has `LabelLayer`s:

    one dimension       removing an id removes the entries of this dimension that have it
    several dimensions  a dimension of labeled channels was split (heads x head size). Channels can be removed from
                        either of the parts; the first operator that needs one of them at full length decides (`fix`)

A dimension without a layer has a fixed length. A set of coupled ids is a channel; see `groups`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from torch import fx

from prunus.pruning.structured.graph import operator_name, result_shapes, source_line

ChannelIds = np.ndarray[Any, np.dtype[np.int64]]
"""The ids of entries of a dimension; entries of different dimensions may have the same."""
KeptIds = np.ndarray[Any, np.dtype[np.bool_]]
"""For each id whether it is kept."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Refusal:
    """Why channels cannot be removed: the operator, the user's source line, the reason."""

    operator: str
    source: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.operator} ({self.source}): " if self.operator else ""
        return f"{place}{self.reason}"


@dataclass(frozen=True)
class LabelLayer:
    """The ids of the entries of one or several dimensions."""

    dims: tuple[int, ...]
    """Sorted."""
    ids: ChannelIds
    """One axis for each of `dims`."""
    zero: bool
    """Whether the entries of a channel are zero where the parameters of the channel are zero."""


@dataclass(frozen=True)
class Labels:
    """The labels of one tensor."""

    shape: Shape
    layers: tuple[LabelLayer, ...] = ()

    def layer(self, dim: int) -> LabelLayer | None:
        """The layer that labels a dimension."""
        return next((layer for layer in self.layers if dim in layer.dims), None)

    def ids(self, dim: int) -> ChannelIds | None:
        """The ids of the layer that labels a dimension; None: its length is fixed."""
        layer = self.layer(dim)
        return None if layer is None else layer.ids

    def without(self, layer: LabelLayer) -> tuple[LabelLayer, ...]:
        """The other layers."""
        return tuple(other for other in self.layers if other is not layer)

    def moved(self, shape: Shape, new_dim: Callable[[int], int]) -> "Labels":
        """The labels of the same entries with other numbers of the dimensions.

        Args:
            shape: The shape of the result.
            new_dim: The new number of a dimension; numbers stay in order.

        Returns:
            The labels.
        """
        layers = [replace(layer, dims=tuple(map(new_dim, layer.dims))) for layer in self.layers]
        return Labels(shape, tuple(layers))

    def unsqueezed(self, count: int) -> "Labels":
        """The labels with `count` dimensions of one entry after the others."""
        return Labels((*self.shape, *[1] * count), self.layers)


@dataclass(frozen=True, eq=False)
class SizeConstant:
    """A constant of the graph that changes with the channels: the length of a dimension, the end of a slice."""

    node: fx.Node
    argument: str
    position: int | None
    """The position in an argument that is a list."""
    value: int
    entries: ChannelIds
    """[value, m]: the constant is the number of rows with an id that is kept."""
    touches: ChannelIds
    """The ids whose removal is possible only if the user's code reads the constant from a shape or an attribute."""
    is_ambiguous: bool
    """Whether the operator also runs with a wrong value of the constant, so that running it checks nothing."""

    def reduced_value(self, is_kept: KeptIds) -> int:
        """The value of the constant if only some ids are kept."""
        return int(is_kept[self.entries].any(1).sum())


@dataclass(frozen=True)
class Work:
    """The multiplications of one operator: a factor times the number of channels kept in each of some dimensions."""

    node: fx.Node
    factor: int
    channels: tuple[ChannelIds, ...]

    def macs(self, is_kept: KeptIds) -> int:
        """The number of multiplications if only some ids are kept."""
        return self.factor * prod(int(is_kept[ids].sum()) for ids in self.channels)


@dataclass
class Coupling:
    """Everything that a walk over a graph collects."""

    count: int = 0
    ties: list[tuple[ChannelIds, ChannelIds]] = field(default_factory=list)
    blocks: list[tuple[ChannelIds, Refusal]] = field(default_factory=list)
    inexact: list[tuple[ChannelIds, Refusal]] = field(default_factory=list)
    constants: list[SizeConstant] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    read: list[ChannelIds] = field(default_factory=list)
    """The ids of the inputs of all operators that do more than move entries or change each entry alone."""
    node: fx.Node = field(init=False)
    """The node that is processed."""

    @property
    def operator(self) -> str:
        """The name of the operator that is processed."""
        return operator_name(self.node.target) if self.node.op == "call_function" else self.node.op

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of all results of the operator."""
        return [shape for shape in result_shapes(self.node) if shape is not None]

    def new(self, size: int) -> ChannelIds:
        """New ids, which no tensor has yet."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def new_labels(self, shape: Shape, zero: bool) -> Labels:
        """A tensor with new ids in each dimension of more than one entry.

        Args:
            shape: Its shape.
            zero: Whether its entries are zero where the parameters of their channels are.

        Returns:
            The labels.
        """
        sizes = [(dim, size) for dim, size in enumerate(shape) if size > 1]
        return Labels(shape, tuple(LabelLayer((dim,), self.new(size), zero) for dim, size in sizes))

    def tie(self, first: ChannelIds, second: ChannelIds) -> None:
        """Couple ids, entry by entry.

        Args:
            first: Ids.
            second: Ids of a shape that broadcasts with that of `first`.
        """
        if first is not second:
            self.ties.append(tuple(np.broadcast_arrays(first, second)))  # type: ignore[arg-type]

    def block(self, ids: ChannelIds, reason: str) -> None:
        """Make ids unremovable.

        Args:
            ids: The ids.
            reason: Why.
        """
        if ids.size:
            self.blocks.append((ids.ravel(), self._refusal(reason)))

    def mark_inexact(self, ids: ChannelIds, reason: str) -> None:
        """Mark channels whose removal differs from setting them to zero.

        Args:
            ids: The ids.
            reason: Why.
        """
        self.inexact.append((ids.ravel(), self._refusal(reason)))

    def _refusal(self, reason: str) -> Refusal:
        """A refusal by the node that is processed."""
        return Refusal(self.operator, source_line(self.node), reason)

    def fix(self, labels: Labels, *dims: int, reason: str = "") -> Labels:
        """Give dimensions a fixed length: channels that can be removed from another dimension are coupled along them.

        Args:
            labels: Labels of a tensor.
            dims: The dimensions.
            reason: The reason for channels that have no other dimension, which are blocked.

        Returns:
            Labels without a layer of these dimensions.
        """
        for dim in dims:
            layer = labels.layer(dim)
            if layer is None:
                continue
            others = labels.without(layer)
            if len(layer.dims) == 1:
                self.block(layer.ids, reason)
            else:
                axis = layer.dims.index(dim)
                first = layer.ids.take([0], axis)
                self.tie(first, layer.ids)
                rest = tuple(d for d in layer.dims if d != dim)
                others = (*others, LabelLayer(rest, first.squeeze(axis), layer.zero))
            labels = replace(labels, layers=others)
        return labels

    def fix_split(self, labels: Labels, dim: int) -> Labels:
        """Give a dimension a fixed length if its channels can be removed from another part of a split dimension.

        Args:
            labels: Labels of a tensor.
            dim: The dimension.

        Returns:
            Labels in which the dimension has a fixed length or a layer of its own.
        """
        layer = labels.layer(dim)
        return labels if layer is None or len(layer.dims) == 1 else self.fix(labels, dim)

    def isolate(self, labels: Labels, dim: int) -> Labels:
        """Decide that channels are removed from this dimension, not from another part of the dimension that was split.

        Args:
            labels: Labels of a tensor.
            dim: The dimension.

        Returns:
            Labels with a layer of this dimension alone.
        """
        layer = labels.layer(dim)
        return self.fix(labels, *(other for other in layer.dims if other != dim)) if layer else labels

    def join(self, vectors: Sequence[ChannelIds | None], reason: str) -> ChannelIds | None:
        """Couple dimensions of equal length; if one has a fixed length, all have.

        Args:
            vectors: Ids [n] of each; None: a fixed length.
            reason: Why a fixed length does not allow removal here.

        Returns:
            The ids of the joined dimension.
        """
        labeled = [vector for vector in vectors if vector is not None]
        for vector in labeled[1:]:
            self.tie(labeled[0], vector)
        if labeled and len(labeled) < len(vectors):
            self.block(labeled[0], reason)
            return None
        return labeled[0] if labeled else None

    def constant(
        self,
        argument: str,
        position: int | None,
        entries: ChannelIds,
        touches: ChannelIds | None = None,
        is_ambiguous: bool = False,
    ) -> None:
        """Note that an argument of the node is the number of `entries` [n] or [n, m] that are kept.

        Args:
            argument: Name of the argument in the operator's schema.
            position: Position in an argument that is a list.
            entries: Ids; a row of several counts as kept if one of them is.
            touches: Ids whose removal the constant may depend on; None: the entries.
            is_ambiguous: Whether the operator also runs with other values, but returns another result.
        """
        rows = entries.reshape(len(entries), -1)
        touched = (rows if touches is None else touches).ravel()
        self.constants.append(
            SizeConstant(self.node, argument, position, len(rows), rows, touched, is_ambiguous)
        )


def connected_components(count: int, ties: Sequence[tuple[ChannelIds, ChannelIds]]) -> ChannelIds:
    """The smallest id that each of `count` ids is coupled with.

    Args:
        count: The number of ids.
        ties: Pairs of arrays of coupled ids.

    Returns:
        An array [count].

    >>> connected_components(4, [(np.array([3]), np.array([1]))]).tolist()
    [0, 1, 2, 1]
    """
    root = np.arange(count)
    if not ties:
        return root
    first, second = (np.concatenate([pair[side].ravel() for pair in ties]) for side in (0, 1))
    while True:
        a, b = root[first], root[second]
        different = a != b
        if not different.any():
            return root
        first, second, a, b = first[different], second[different], a[different], b[different]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(parent := root[root], root):
            root = parent
