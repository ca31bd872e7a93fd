"""What a plan changes: layers with their channels, parameters and MACs before and after, and which are coupled."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import nn

from prunus.pruning.structured.graph import module_path
from prunus.pruning.structured.groups import Analysis
from prunus.text_tables import text_table


@dataclass(frozen=True)
class SlimRow:
    """One layer, or another module with parameters of its own."""

    name: str
    channels: tuple[int, int]
    """The size of dimension 0 of its first parameter, before and after."""
    parameters: tuple[int, int]
    macs: tuple[int, int]
    """For the whole batch of example inputs."""
    groups: tuple[str, ...]
    """The groups that its channels belong to; layers with the same one are coupled."""


@dataclass(frozen=True)
class SlimReport:
    """What a plan changes; prints as a table. Pairs are numbers before and after."""

    rows: list[SlimRow]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    """Of convolutions, matrix products and attention, for the whole batch of example inputs."""
    refused: list[str]
    """Operators and source lines that prevent the removal of channels from some dimensions."""

    def table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """The header and the rows of the table, as text."""
        header = ("layer", "channels", "parameters", "MACs", "coupled by")
        rows = [
            (row.name, *map(_change, (row.channels, row.parameters, row.macs)), ", ".join(row.groups))
            for row in self.rows
        ]
        return header, [*rows, ("all", "", _change(self.parameters), _change(self.macs), "")]

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        header, rows = self.table()
        return text_table([header, *rows], text_columns=len(header))


def _change(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} → {pair[1]:,}"


def describe_plan(model: nn.Module, analysis: Analysis, removed: Mapping[str, Sequence[int]]) -> SlimReport:
    """The report of a plan.

    Args:
        model: The model before or after the removal.
        analysis: Its groups.
        removed: The indices of the channels to remove, by name of the group.

    Returns:
        One row for each module with parameters of its own, in the order of the model.
    """
    before, after = analysis.kept_shapes(model, {}), analysis.kept_shapes(model, removed)
    macs = _macs_of_modules(analysis, removed)
    groups_of: dict[str, dict[str, None]] = defaultdict(dict)
    for group in analysis.groups:
        for member in group.members:
            if member.dim == 0:
                groups_of[member.name][group.name] = None
    modules: dict[str, list[str]] = defaultdict(list)
    for name in before:
        modules[name.rpartition(".")[0]].append(name)
    rows = []
    for path, names in modules.items():
        channels = (before[names[0]] or (1,))[0], (after[names[0]] or (1,))[0]
        counts = sum(prod(before[name]) for name in names), sum(prod(after[name]) for name in names)
        own_groups = tuple(dict.fromkeys(g for name in names for g in groups_of[name]))
        rows.append(SlimRow(path or "(model)", channels, counts, macs.get(path, (0, 0)), own_groups))
    parameters = sum(map(prod, before.values())), sum(map(prod, after.values()))
    refused = [str(dimension.refusal) for dimension in analysis.refused]
    return SlimReport(rows, parameters, (analysis.macs(), analysis.macs(removed)), refused)


def _macs_of_modules(analysis: Analysis, removed: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    """MACs before and after, by name of the module whose weight is multiplied, or that multiplies activations."""
    is_kept, is_any = analysis.kept_ids(removed), analysis.kept_ids({})
    totals: dict[str, tuple[int, int]] = {}
    for work in analysis.graph.coupling.work:
        tensors = analysis.traced.tensors
        names = [tensors[node.name] for node in work.node.all_input_nodes if node.name in tensors]
        path = names[0].rpartition(".")[0] if names else module_path(work.node)
        before, after = totals.get(path, (0, 0))
        totals[path] = before + work.macs(is_any), after + work.macs(is_kept)
    return totals
