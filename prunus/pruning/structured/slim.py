"""Make a network smaller by removing whole channels: `plan = prunus.slim(...)`, then `plan.apply()`."""

from collections.abc import Sequence

import torch
from torch import nn

from prunus.errors import DensityError, ModelError
from prunus.modules import check_module, unwrapped
from prunus.pruning.structured.analysis import analyze
from prunus.pruning.structured.groups import Group
from prunus.pruning.structured.plan import SlimPlan


def slim(
    model: nn.Module,
    example_inputs: object,
    *,
    density: float,
    round_to: int = 1,
    min_channels: int = 1,
    exclude: Sequence[str] = (),
    allow_inexact: bool = False,
    verify: bool | str = True,
    rewrite: bool = False,
) -> SlimPlan:
    """Plan the removal of channels; the model is not changed.

    Args:
        model: Any module that `torch.export` can export.
        example_inputs: What its forward takes: one tensor, a tuple of arguments, or a dict of named arguments.
        density: The fraction of the channels of each group that is kept, in (0, 1]; those with the largest L2 norm.
        round_to: The number of channels that a group keeps is a multiple of this, if the group has as many.
        min_channels: The least number of channels that a group keeps.
        exclude: Names of parameters or modules; groups with one of them are left alone.
        allow_inexact: Also remove channels over which a normalization runs.
        verify: Check on the example inputs that removing is the same as setting to zero, before `apply`: True, False,
            or "groups" to check every group alone.
        rewrite: Allow groups whose sizes are literals of the model's code: `apply` then returns the exported graph with
            these changed, which computes what the model computes in evaluation mode.

    Returns:
        The plan.

    Raises:
        ModelError: The model cannot be exported, has no group to remove channels from, or no part of an excluded name.
        DensityError: `density` is out of range.
    """
    if not 0 < density <= 1:
        raise DensityError(
            f"Expected a density in (0, 1], got {density}; pass the fraction of channels to keep."
        )
    if verify not in (True, False, "groups"):
        raise ModelError(f"Expected verify=True, False or 'groups', got {verify!r}.")
    check_module(model)
    model = unwrapped(model)
    check_excluded(model, exclude)
    analysis = analyze(model, example_inputs, rewrite=rewrite)
    weights = {name: parameter.detach().square() for name, parameter in model.named_parameters()}
    removed = {}
    groups = [group for group in analysis.groups if is_allowed(group, exclude, allow_inexact)]
    if not groups:
        raise ModelError(
            f"Expected a group of channels to remove in {type(model).__name__}, got none; see plan.refused."
        )
    for group in groups:
        count = group.channels - channels_to_keep(group.channels, density, round_to, min_channels)
        order = torch.argsort(group.reduce(weights), stable=True)
        removed[group.name] = sorted(order[:count].tolist())
    return SlimPlan(model, analysis, removed, verify, rewrite)


def check_excluded(model: nn.Module, exclude: Sequence[str]) -> None:
    """Raise ModelError where a name is neither a module nor a parameter of the model.

    Args:
        model: The model.
        exclude: Names of parameters or modules.

    Raises:
        ModelError: There is no such name.
    """
    names = {name for name, _ in [*model.named_modules(), *model.named_parameters(remove_duplicate=False)]}
    for name in exclude:
        if name not in names:
            raise ModelError(
                f"Expected names of modules or parameters of {type(model).__name__} to exclude, got {name!r}."
            )


def is_allowed(group: Group, exclude: Sequence[str], allow_inexact: bool) -> bool:
    """Whether channels of a group may be removed.

    Args:
        group: A group.
        exclude: Names of parameters or modules to leave alone.
        allow_inexact: Whether groups are allowed over which a normalization runs.

    Returns:
        True if they may.
    """
    names = {member.name for member in group.members}
    is_excluded = any(name == own or own.startswith(f"{name}.") for name in exclude for own in names)
    return (group.exact or allow_inexact) and not is_excluded


def channels_to_keep(channels: int, density: float, round_to: int = 1, min_channels: int = 1) -> int:
    """The number of channels that a group keeps: rounded, then to a multiple, at least one multiple.

    Args:
        channels: Channels of the group.
        density: The fraction to keep.
        round_to: The number is a multiple of this.
        min_channels: The least number.

    Returns:
        Between 1 and `channels`.

    >>> channels_to_keep(64, 0.3, round_to=8)
    16
    """
    rounded = max(round(channels * density / round_to) * round_to, round_to)
    least = -(-min_channels // round_to) * round_to
    return min(max(rounded, least), channels)
