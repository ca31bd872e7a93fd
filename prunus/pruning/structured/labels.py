"""Channel labels: which entries of a tensor's dimensions must be removed together.

Every entry of every dimension of a parameter has a label, an integer. The rule of an operator computes
the labels of its result, and couples the labels of entries that the operator combines. A tensor has `LabelLayer`s:

    one dimension       removing a label removes the entries of this dimension that have it
    several dimensions  a dimension of labeled channels was split (heads x head size). Channels can be removed from
                        either of the parts; the first operator that needs one of them at full length decides (`fix`)

A dimension without a layer has a fixed length. A set of coupled labels is a channel; see `groups`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import fx

from prunus.pruning.structured.graph import operator_name, source_line

Atoms = np.ndarray[Any, np.dtype[np.int64]]
"""Labels, as an array."""


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
    """Labels of the entries of one or several dimensions."""

    dims: tuple[int, ...]
    """Sorted."""
    atoms: Atoms
    """One axis for each of `dims`."""
    zero: bool
    """Whether the entries of a channel are zero where the parameters of the channel are zero."""


@dataclass(frozen=True)
class Labels:
    """The labels of one tensor."""

    shape: tuple[int, ...]
    layers: tuple[LabelLayer, ...] = ()

    def layer(self, dim: int) -> LabelLayer | None:
        """The layer that labels a dimension."""
        return next((layer for layer in self.layers if dim in layer.dims), None)


@dataclass(frozen=True, eq=False)
class SizeConstant:
    """A constant of the graph that changes with the channels: the length of a dimension, the end of a slice."""

    node: fx.Node
    argument: str
    position: int | None
    """The position in an argument that is a list."""
    value: int
    entries: Atoms
    """[value, m]: the constant is the number of rows with a label that is kept."""
    touches: Atoms
    """The labels whose removal is possible only if the user's code reads the constant from a shape or an attribute."""
    is_ambiguous: bool
    """Whether the operator also runs with a wrong value of the constant, so that running it checks nothing."""

    def reduced_value(self, is_kept: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
        """The value of the constant if only some labels are kept: a boolean for each label."""
        return int(is_kept[self.entries].any(1).sum())


@dataclass(frozen=True)
class Work:
    """The multiplications of one operator: a factor times the number of channels kept in each of some dimensions."""

    node: fx.Node
    factor: int
    channels: tuple[Atoms, ...]


@dataclass
class Coupling:
    """Everything that a walk over a graph collects."""

    count: int = 0
    ties: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    blocks: list[tuple[Atoms, Refusal]] = field(default_factory=list)
    inexact: list[tuple[Atoms, Refusal]] = field(default_factory=list)
    constants: list[SizeConstant] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    node: fx.Node | None = None
    """The node that is processed."""

    def new(self, size: int) -> Atoms:
        """New labels, which no tensor has yet."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def tie(self, first: Atoms, second: Atoms) -> None:
        """Couple labels, entry by entry.

        Args:
            first: Labels.
            second: Labels of a shape that broadcasts with that of `first`.
        """
        if first is not second:
            self.ties.append(tuple(np.broadcast_arrays(first, second)))  # type: ignore[arg-type]

    def refusal(self, reason: str) -> Refusal:
        """A refusal by the node that is processed."""
        assert self.node is not None
        name = operator_name(self.node.target) if self.node.op == "call_function" else self.node.op
        return Refusal(name, source_line(self.node), reason)

    def block(self, atoms: Atoms, reason: str) -> None:
        """Make labels unremovable.

        Args:
            atoms: The labels.
            reason: Why.
        """
        if atoms.size:
            self.blocks.append((atoms.ravel(), self.refusal(reason)))

    def mark_inexact(self, atoms: Atoms, reason: str) -> None:
        """Mark channels whose removal differs from setting them to zero.

        Args:
            atoms: The labels.
            reason: Why.
        """
        self.inexact.append((atoms.ravel(), self.refusal(reason)))

    def fix(self, labels: Labels, dim: int, reason: str) -> Labels:
        """Give a dimension a fixed length: channels that can be removed from another dimension are coupled along it.

        Args:
            labels: Labels of a tensor.
            dim: The dimension.
            reason: The reason for channels that have no other dimension, which are blocked.

        Returns:
            Labels without a layer of this dimension.
        """
        layer = labels.layer(dim)
        if layer is None:
            return labels
        others = tuple(layer_ for layer_ in labels.layers if layer_ is not layer)
        if len(layer.dims) == 1:
            self.block(layer.atoms, reason)
            return replace(labels, layers=others)
        axis = layer.dims.index(dim)
        first = layer.atoms.take([0], axis)
        self.tie(first, layer.atoms)
        dims = tuple(d for d in layer.dims if d != dim)
        return replace(labels, layers=(*others, LabelLayer(dims, first.squeeze(axis), layer.zero)))

    def isolate(self, labels: Labels, dim: int) -> Labels:
        """Decide that channels are removed from this dimension, not from another part of the dimension that was split.

        Args:
            labels: Labels of a tensor.
            dim: The dimension.

        Returns:
            Labels with a layer of this dimension alone.
        """
        layer = labels.layer(dim)
        for other in layer.dims if layer else ():
            if other != dim:
                labels = self.fix(labels, other, "")
        return labels

    def vector(self, labels: Labels, dim: int) -> tuple[Labels, Atoms | None]:
        """Isolate one dimension and return its labels.

        Args:
            labels: Labels of a tensor.
            dim: The dimension.

        Returns:
            The tensor's labels with this dimension isolated, and the labels [n] of the dimension; None: it is fixed.
        """
        labels = self.isolate(labels, dim)
        layer = labels.layer(dim)
        return labels, None if layer is None else layer.atoms

    def join(self, vectors: Sequence[Atoms | None], reason: str) -> Atoms | None:
        """Couple dimensions of equal length; if one has a fixed length, all have.

        Args:
            vectors: Labels [n] of each; None: a fixed length.
            reason: Why a fixed length does not allow removal here.

        Returns:
            The labels of the joined dimension.
        """
        labeled = [vector for vector in vectors if vector is not None]
        if not labeled:
            return None
        for vector in labeled[1:]:
            self.tie(labeled[0], vector)
        if len(labeled) < len(vectors):
            self.block(labeled[0], reason)
            return None
        return labeled[0]

    def constant(
        self,
        argument: str,
        position: int | None,
        entries: Atoms,
        touches: Atoms | None = None,
        is_ambiguous: bool = False,
    ) -> None:
        """Note that an argument of the node is the number of `entries` [n] or [n, m] that are kept.

        Args:
            argument: Name of the argument in the operator's schema.
            position: Position in an argument that is a list.
            entries: Labels; a row of several counts as kept if one of them is.
            touches: Labels whose removal the constant may depend on; None: the entries.
            is_ambiguous: Whether the operator also runs with other values, but returns another result.
        """
        assert self.node is not None
        rows = entries.reshape(len(entries), -1)
        touches = rows.ravel() if touches is None else touches.ravel()
        self.constants.append(
            SizeConstant(self.node, argument, position, len(rows), rows, touches, is_ambiguous)
        )


def connected_components(count: int, ties: Sequence[tuple[Atoms, Atoms]]) -> Atoms:
    """The smallest label that each of `count` labels is coupled with.

    Args:
        count: The number of labels.
        ties: Pairs of arrays of coupled labels.

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
