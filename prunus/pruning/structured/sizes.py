"""Sizes that are constants of the user's code: which groups they forbid, and which attributes of modules hold them.

`view(B, T, 4, 8)` has the number of heads as a constant of the graph. If the code reads it from a shape, it changes by
itself; if it reads an attribute (`self.num_heads`), the attribute must change; if it is a literal, no channel can be
removed in this model. The graph does not tell which. So the model is run without values (on the meta device) with
channels removed: first as it is, then with attributes of the module that have the value of the constant changed. Groups
without which it does not run are refused with the operator and the source line.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.errors import ModelError
from prunus.modules import copied
from prunus.pruning.structured.graph import module_path, operator_name, source_line
from prunus.pruning.structured.groups import Analysis, Group, RefusedDimension, kept_indices
from prunus.pruning.structured.labels import KeptIds, Refusal, SizeConstant
from prunus.pruning.structured.removal import follows_shapes, remove_channels
from prunus.pruning.structured.verify import removal_error
from prunus.training.modes import eval_mode

MAX_CHOICES = 200
"""The largest number of combinations of attributes that are tried for one set of groups; groups that would need more
are refused."""


@dataclass(frozen=True)
class Binding:
    """An attribute of a module that a constant of the graph is read from."""

    path: str
    attribute: str
    constant: SizeConstant


def resolve_sizes(analysis: Analysis, model: nn.Module) -> Analysis:
    """Refuse the groups that constants in the user's code forbid, and bind attributes to the constants of others.

    Args:
        analysis: The groups by the graph alone.
        model: The model; it is not changed.

    Returns:
        The analysis with only the groups without which the model still runs.
    """
    constants = analysis.graph.coupling.constants
    touched = _touched_groups(
        analysis, [c for c in constants if _can_change(c, analysis) and not _of_torch(c, model)]
    )
    if not touched:
        return analysis
    probe = _Probe(analysis, model)
    accepted: list[Group] = []
    bindings: set[Binding] = set()
    for groups, group_constants in _partitions(touched, model):
        solutions = [(groups, _solve(probe, groups, group_constants, model))]
        if solutions[0][1] is None and len(groups) > 1:
            solutions = [([group], _solve(probe, [group], group_constants, model)) for group in groups]
        for solved, solution in solutions:
            if solution is not None:
                accepted += solved
                bindings |= solution
    while accepted and not probe.runs(accepted, bindings):
        accepted.pop()
    names = {group.name for group in accepted}
    forbidden = {name: constants[0] for name, (_, constants) in touched.items() if name not in names}
    analysis.bindings = sorted(bindings, key=lambda binding: (binding.path, binding.attribute))
    _refuse(analysis, forbidden)
    return analysis


def _can_change(constant: SizeConstant, analysis: Analysis) -> bool:
    """Whether one of the entries that the constant counts is removed with a single channel."""
    channels = analysis.channels[constant.entries]
    return bool((channels == channels[:, :1]).all(1).any()) or len(constant.entries) == 0


def _of_torch(constant: SizeConstant, model: nn.Module) -> bool:
    """Whether a constant is an attribute of a module of torch, which changes with the module's tensors."""
    return follows_shapes(_module(model, module_path(constant.node)))


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return model


def _place(constant: SizeConstant, model: nn.Module) -> tuple[Any, ...]:
    """The place of a constant in the code: the class, the line and the argument."""
    module, node = _module(model, module_path(constant.node)), constant.node
    return type(module), source_line(node), constant.argument, constant.position


Touched = dict[str, tuple[Group, list[SizeConstant]]]


def _touched_groups(analysis: Analysis, constants: Sequence[SizeConstant]) -> Touched:
    """The groups that change a constant, by name, with these constants."""
    group_of = {channel: group for group in analysis.groups for channel in group.ids.tolist()}
    touched: Touched = {}
    for constant in constants:
        for channel in np.unique(analysis.channels[constant.touches]).tolist():
            if (group := group_of.get(channel)) is not None:
                group_constants = touched.setdefault(group.name, (group, []))[1]
                if constant not in group_constants[-1:]:
                    group_constants.append(constant)
    return touched


def _partitions(touched: Touched, model: nn.Module) -> Iterator[tuple[list[Group], list[SizeConstant]]]:
    """Partition the groups: those that change constants of the same lines of the same classes are solved together."""
    parts: dict[frozenset[Any], list[tuple[Group, list[SizeConstant]]]] = defaultdict(list)
    for group, constants in touched.values():
        parts[frozenset(_place(c, model) for c in constants)].append((group, constants))
    for members in parts.values():
        yield [group for group, _ in members], [c for _, constants in members for c in constants]


def _solve(
    probe: "_Probe", groups: Sequence[Group], constants: Sequence[SizeConstant], model: nn.Module
) -> set[Binding] | None:
    """The attributes to change so that the model runs without channels of these groups; None: no choice runs."""
    is_ambiguous = any(
        constant.is_ambiguous for constant in constants
    )  # a run does not confirm the constants
    for bindings in _choices(constants, model):
        is_run = probe.runs(groups, bindings)
        if is_run and (not (is_ambiguous or bindings) or probe.is_exact(groups, bindings)):
            return bindings
    return None


def _choices(constants: Sequence[SizeConstant], model: nn.Module) -> Iterator[set[Binding]]:
    """Possible bindings: at each place of the code none or one of the attributes, the fewest first."""
    places: dict[Any, dict[str, set[Binding]]] = defaultdict(dict)
    for constant in constants:
        path = module_path(constant.node)
        for name, value in vars(_module(model, path)).items():
            if type(value) is int and value == constant.value and not name.startswith("_"):
                places[_place(constant, model)].setdefault(name, set()).add(Binding(path, name, constant))
    choices = [list(attributes.values()) for attributes in places.values()]
    by_number = (
        set[Binding]().union(*attributes)
        for number in range(len(choices) + 1)
        for bound in combinations(choices, number)
        for attributes in product(*bound)
    )
    yield from islice(by_number, MAX_CHOICES)


def bound_attributes(bindings: Iterable[Binding], is_kept: KeptIds) -> dict[str, dict[str, Any]] | None:
    """The new values of attributes; None where two constants give an attribute different values.

    Args:
        bindings: Attributes and constants.
        is_kept: The ids that are kept.

    Returns:
        The value by module name and attribute.
    """
    values: dict[str, dict[str, Any]] = {}
    for binding in bindings:
        new = binding.constant.reduced_value(is_kept)
        if values.setdefault(binding.path, {}).setdefault(binding.attribute, new) != new:
            return None
    return values


class _Probe:
    """Runs copies of a model with channels removed, without values where that is possible."""

    def __init__(self, analysis: Analysis, model: nn.Module) -> None:
        self.analysis, self.original = analysis, model
        for device in ("meta", None):
            self.device = device
            self.model = copied(model) if device is None else copied(model).to(device)
            self.inputs: Any = pytree.tree_map(
                lambda x: x.to(device) if isinstance(x, Tensor) and device else x,  # noqa: B023
                analysis.traced.inputs,
            )
            self.expected = self._shapes({}, {})
            if self.expected is not None:
                break

    def runs(self, groups: Sequence[Group], bindings: Iterable[Binding]) -> bool:
        """Whether the model runs without a different number of channels of each group, with outputs of equal shape."""
        if self.expected is None:
            return False
        indices, attributes = self._removal(groups, bindings)
        return attributes is not None and self._shapes(indices, attributes) == self.expected

    def is_exact(self, groups: Sequence[Group], bindings: Iterable[Binding]) -> bool:
        """Whether removing channels of the exact groups among these gives the outputs of setting them to zero."""
        indices, attributes = self._removal([group for group in groups if group.exact], bindings)
        if not indices or attributes is None:
            return attributes is not None
        try:
            error, tolerance = removal_error(self.original, self.analysis.traced.inputs, indices, attributes)
        except ModelError:
            return False
        return error <= tolerance

    def _removal(
        self, groups: Sequence[Group], bindings: Iterable[Binding]
    ) -> tuple[dict[str, dict[int, Tensor]], dict[str, dict[str, Any]] | None]:
        """The kept indices and the attributes without about half of the channels, a different number for each group."""
        removed = {
            group.name: list(range(1 + (max(group.channels // 2, 2) - 1 + i) % (group.channels - 1)))
            for i, group in enumerate(groups)
            if group.channels > 1
        }
        attributes = bound_attributes(bindings, self.analysis.kept_ids(removed))
        return kept_indices(self.analysis, removed), attributes

    def _shapes(
        self, indices: Mapping[str, Mapping[int, Tensor]], attributes: Mapping[str, Mapping[str, Any]]
    ) -> list[torch.Size] | None:
        """The shapes of the outputs; None where the model does not run."""
        model = copied(self.model)
        try:
            with torch.device(self.device or "cpu"), torch.no_grad(), eval_mode(model):
                remove_channels(model, indices, attributes)
                outputs = model(*self.inputs[0], **self.inputs[1])
        except Exception:  # the user's forward may fail in any way
            return None
        return [leaf.shape for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _refuse(analysis: Analysis, forbidden: Mapping[str, SizeConstant]) -> None:
    """Move groups to the refused dimensions."""
    refused: dict[Refusal, list[tuple[str, int]]] = defaultdict(list)
    for group in analysis.groups:
        if group.name in forbidden:
            node = forbidden[group.name].node
            reason = "a size is a literal of the code; rewrite=True changes it in the exported graph"
            refusal = Refusal(operator_name(node.target), source_line(node), reason)
            refused[refusal] += [(member.name, member.dim) for member in group.members]
    analysis.groups = [group for group in analysis.groups if group.name not in forbidden]
    analysis.refused += [
        RefusedDimension(refusal, tuple(dimensions)) for refusal, dimensions in refused.items()
    ]
