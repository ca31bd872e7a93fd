"""How many channels each group keeps: by a density, or the largest number within a budget.

A ranking determines for every level, from the smallest network (0) to the dense one, how many channels each group
keeps; a higher level never keeps fewer. The highest level whose cost is within the budget is found by bisection.

    layer    every group keeps the same fraction of its channels
    global   the channels of all groups are ranked together
"""

from collections.abc import Callable, Mapping, Sequence
from math import isnan, prod

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import DensityError, SpecError
from prunus.pruning.structured.groups import Analysis, Group
from prunus.registry import lookup

Removed = dict[str, list[int]]
"""The indices of the channels to remove, by name of the group."""
LEVELS = 10_000
"""The number of densities to choose from when every group keeps the same fraction."""


class Ranking:
    """The channels of some groups in the order in which they are removed."""

    def __init__(
        self,
        groups: Sequence[Group],
        scores: Mapping[str, Tensor],
        scope: str,
        *,
        round_to: int = 1,
        min_channels: int = 1,
        is_comparable: bool = False,
    ) -> None:
        """Rank channels.

        Args:
            groups: The groups.
            scores: One score per channel, by name of the group; the lowest are removed first.
            scope: "layer" or "global".
            round_to: The number of channels that a group keeps is a multiple of this, or all of them.
            min_channels: The smallest number of channels that a group keeps.
            is_comparable: For "global", whether scores of different groups have one scale; others are divided by the
                mean of their group.

        Raises:
            UnknownNameError: Another scope.
            SpecError: A number is not an integer of at least 1.
        """
        lookup("scope", {"layer": None, "global": None}, scope)
        if not all(
            isinstance(number, int | np.integer) and number >= 1 for number in (round_to, min_channels)
        ):
            raise SpecError(
                f"Expected integers of at least 1 as round_to and min_channels, got {round_to!r}, {min_channels!r}."
            )
        self.groups, self.round_to, self.min_channels = groups, round_to, min_channels
        self.orders = {
            group.name: torch.argsort(scores[group.name], stable=True).tolist() for group in groups
        }
        self.num_levels = LEVELS
        self.levels: dict[str, Tensor] | None = None
        if scope == "global":
            self.levels = _common_levels(groups, scores, self.orders, is_comparable)
            self.num_levels = sum(group.channels for group in groups)

    def removed(self, level: int) -> Removed:
        """The channels to remove on a level between 0 (as many as possible) and `num_levels` (none)."""
        removed = {}
        for group in self.groups:
            fraction = level / self.num_levels
            if self.levels is not None:
                fraction = int((self.levels[group.name] < level).sum()) / group.channels
            keep = channels_to_keep(group.channels, fraction, self.round_to, self.min_channels)
            removed[group.name] = sorted(self.orders[group.name][: group.channels - keep])
        return removed


def _common_levels(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    orders: Mapping[str, list[int]],
    is_comparable: bool,
) -> dict[str, Tensor]:
    """The position of each channel in the order of all groups, the highest score first.

    Of equal scores, that with the higher position in its group, as a fraction, is first: ties are removed evenly.
    """
    scaled, fractions = [], []
    for group in groups:
        group_scores = scores[group.name]
        scale = 1.0 if is_comparable else group_scores.abs().mean().clamp(min=1e-30)
        scaled.append(group_scores / scale)
        fractions.append((torch.argsort(torch.tensor(orders[group.name])) + 1) / group.channels)
    order = torch.argsort(torch.cat(fractions), descending=True, stable=True)
    order = order[torch.argsort(torch.cat(scaled)[order], descending=True, stable=True)]
    positions = torch.split(torch.argsort(order), [group.channels for group in groups])
    return dict(zip((group.name for group in groups), positions, strict=True))


def fit_budget(ranking: Ranking, cost: Callable[[Removed], float], limit: float, what: str) -> Removed:
    """The channels to remove so that a cost is within a limit, as few as possible.

    Args:
        ranking: The order of removal.
        cost: A function of the removed channels that does not increase if more of them are removed.
        limit: The highest cost.
        what: The argument that gives the limit, for the error.

    Returns:
        The indices by name of the group.

    Raises:
        DensityError: The cost is above the limit even if every group keeps its smallest number of channels.
    """
    least = cost(ranking.removed(0))
    if not isinstance(least, int | float | np.number) or isnan(least):
        raise DensityError(f"Expected a number as the {what} of the smaller model, got {least!r}.")
    if least > limit:
        raise DensityError(
            f"Expected {what} of at least {least:.6g}, which remains if every group keeps its smallest number of "
            f"channels, got {limit:.6g}; raise it, or allow more groups and fewer channels."
        )
    low, high = 0, ranking.num_levels
    if cost(ranking.removed(high)) <= limit:
        return ranking.removed(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(ranking.removed(middle)) <= limit else (low, middle)
    return ranking.removed(low)


def count_parameters(model: nn.Module, analysis: Analysis, removed: Mapping[str, Sequence[int]]) -> int:
    """The number of parameters that remain if channels are removed.

    Args:
        model: The model before or after the removal; only tensors without groups are looked up in it.
        analysis: The groups.
        removed: Indices by name of the group.

    Returns:
        The number.
    """
    return sum(map(prod, analysis.kept_shapes(model, removed).values()))


def channels_to_keep(channels: int, density: float, round_to: int = 1, min_channels: int = 1) -> int:
    """The number of channels that a group keeps: the nearest multiple, halves to the even one; at least one multiple.

    Args:
        channels: Channels of the group.
        density: The fraction to keep.
        round_to: The number is a multiple of this.
        min_channels: The smallest number.

    Returns:
        Between 1 and `channels`.

    >>> channels_to_keep(64, 0.3, round_to=8)
    16
    """
    rounded = max(round(channels * density / round_to) * round_to, round_to)
    least = -(-min_channels // round_to) * round_to
    return min(max(rounded, least), channels)
