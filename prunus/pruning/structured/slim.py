"""Make a network smaller by removing whole channels: `plan = prunus.slim(...)`, then `plan.apply()`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from math import isnan
from typing import Any

import numpy as np
from torch import Tensor, nn

from prunus.data.examples import Calibration
from prunus.errors import DensityError, ModelError, StatisticsError
from prunus.modules import check_module, copied, unwrapped
from prunus.pruning.statistics import Criterion
from prunus.pruning.structured.analysis import analyze
from prunus.pruning.structured.budgets import Ranking, Removed, count_parameters, fit_budget
from prunus.pruning.structured.criteria import FilterCriterion, FilterStatistics, filter_criterion
from prunus.pruning.structured.groups import Analysis, Group
from prunus.pruning.structured.latency import measure_latency
from prunus.pruning.structured.macs import check_countable
from prunus.pruning.structured.plan import SlimPlan
from prunus.pruning.structured.refit import refit_weights
from prunus.training.losses import AnyLoss
from prunus.training.outputs import Forward

BUDGETS = ("macs", "parameters", "density", "file_bytes", "latency", "budget")
"""The arguments of `slim` of which exactly one is given."""


def slim(
    model: nn.Module,
    example_inputs: object,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    density: float | None = None,
    file_bytes: float | None = None,
    latency: float | None = None,
    budget: tuple[Callable[[nn.Module], float], float] | None = None,
    criterion: str | FilterCriterion | Criterion | Mapping[str, Tensor] = "l2",
    scope: str = "layer",
    calibration: Calibration | None = None,
    forward: Forward | None = None,
    loss: str | AnyLoss | None = None,
    seed: int = 0,
    round_to: int = 1,
    min_channels: int = 1,
    exclude: Sequence[str] = (),
    allow_inexact: bool = False,
    verify: bool | str = True,
    rewrite: bool = False,
    refit: bool = False,
) -> SlimPlan:
    """Plan the removal of channels; the model is not changed.

    Exactly one of `macs`, `parameters`, `density`, `file_bytes`, `latency` and `budget` must be given: it is the goal.

    Args:
        model: Any module that `torch.export` can export.
        example_inputs: What its forward takes: one tensor, a tuple of arguments, or a dict of named arguments.
        macs: The largest number of multiply-accumulates to keep: a fraction of the dense ones in (0, 1], or a larger
            number.
        parameters: The largest number of parameters to keep: a fraction of all in (0, 1], or a larger number.
        density: The fraction of the channels to keep, in (0, 1]: of each group, or, with the scope "global", of all.
        file_bytes: The largest number of bytes of the file that `prunus.save` writes: a fraction of the dense one's in
            (0, 1], or a larger number.
        latency: The longest time of a forward pass of the example inputs on this machine, as a fraction of the dense
            one in (0, 1]; measured for about 15 candidates.
        budget: (function, limit): the value of the function for a smaller copy of the model is at most the limit.
        criterion: A key of FILTER_CRITERIA ("l1", "l2", "bn_scale", "taylor", "geometric_median", "activation", "apoz",
            "thinet", "lasso", "obs", "obd_hutchinson", "random"), or a criterion for weights, whose scores are summed
            over all coupled kernels.
        scope: "layer": every group keeps the same fraction. "global": channels of all groups are ranked together, by
            the score relative to the mean of the group unless scores of different groups are comparable.
        calibration: Examples in any form, for `refit` and for criteria that need some; others do not use them.
        forward: (model, batch) -> outputs of calibration examples; None: the model is called with the inputs.
        loss: For criteria with gradients: a key of LOSSES, a Loss, or a function (outputs, batch) -> mean loss; None:
            the loss that the outputs contain, else cross-entropy.
        seed: For criteria that draw random numbers.
        round_to: The number of channels that a group keeps is a multiple of this, or all of them.
        min_channels: The smallest number of channels that a group keeps.
        exclude: Names of parameters or modules; groups that contain one of them are not pruned.
        allow_inexact: Also remove channels that a LayerNorm or GroupNorm normalizes together.
        verify: Check on the example inputs that removing is the same as setting to zero, before `apply`: True, False,
            or "groups" to check every group alone.
        rewrite: Allow groups whose sizes are literals of the model's code: `apply` then returns the exported graph with
            these changed, which computes what the model computes in evaluation mode.
        refit: Refit the weights of the layers that lose inputs to the outputs of the dense layers on the calibration
            examples, by least squares (He et al. 2017, with the criterion "lasso").

    Returns:
        The plan.

    Raises:
        ModelError: The model cannot be exported, has no group to remove channels from, or has no module or
            parameter of a name in `exclude`; or `macs` is given for a model with recurrent layers.
        DensityError: Not exactly one goal, a goal out of range, or a budget that cannot be met.
        StatisticsError: The criterion has no scores for a group, there are no calibration examples, or a loss would
            have no effect.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(slim(model, torch.zeros(1, 4), macs=0.5).report)
        layer  channels  parameters  MACs     coupled by
        0      8 → 4     40 → 20     32 → 16  0.weight
        2      2         18 → 10     16 → 8
        all              58 → 30     48 → 24
    """
    goal, limit = _check_goal(
        macs=macs,
        parameters=parameters,
        density=density,
        file_bytes=file_bytes,
        latency=latency,
        budget=budget,
    )
    if verify not in (True, False, "groups"):
        raise ModelError(f"Expected verify=True, False or 'groups', got {verify!r}.")
    scorer = filter_criterion(criterion)
    if loss is not None and not scorer.uses_loss:
        raise StatisticsError(
            f"Expected no loss with a criterion that differentiates none, got {loss!r}; leave it out, or choose a "
            "criterion such as 'taylor'."
        )
    check_module(model)
    model = unwrapped(model)
    check_excluded(model, exclude)
    if macs is not None:
        check_countable(model)
    analysis = analyze(model, example_inputs, rewrite=rewrite)
    groups = [group for group in analysis.groups if is_allowed(group, exclude, allow_inexact)]
    if not groups:
        raise ModelError(
            f"Expected a group of channels to remove in {type(model).__name__}, got none{_why_none(model, analysis)}."
        )
    statistics = FilterStatistics(model, groups, calibration, forward, loss, seed)

    def make_plan(target: nn.Module, removed: Removed, verify: bool | str) -> SlimPlan:
        weights = refit_weights(statistics, removed) if refit else {}
        return SlimPlan(target, analysis, removed, verify, rewrite, weights)

    ranking = Ranking(
        groups, scorer(statistics), scope,
        round_to=round_to, min_channels=min_channels, is_comparable=scorer.is_comparable,
    )  # fmt: skip
    if goal == "density":
        return make_plan(model, ranking.removed(round(limit * ranking.num_levels)), verify)

    def of_model(function: Callable[[nn.Module], float], removed: Removed) -> float:
        return function(make_plan(copied(model), removed, False).apply())

    costs: dict[str, Callable[[Removed], float]] = {
        "macs": analysis.macs,
        "parameters": partial(count_parameters, model, analysis),
        "file_bytes": partial(of_model, _saved_size),
        "latency": partial(of_model, partial(measure_latency, example_inputs=example_inputs)),
    }
    if budget is not None:
        costs["budget"], limit = partial(of_model, budget[0]), budget[1]
    elif limit <= 1:
        limit = limit * costs[goal]({})
    return make_plan(model, fit_budget(ranking, costs[goal], limit, goal), verify)


def _check_goal(**goals: Any) -> tuple[str, Any]:
    """The name and the value of the only goal. Raises DensityError for none, several, or one out of range."""
    goals_given = {name: value for name, value in goals.items() if value is not None}
    if len(goals_given) != 1:
        raise DensityError(f"Expected one of {', '.join(goals)}, got {', '.join(goals_given) or 'none'}.")
    name, value = goals_given.popitem()
    if name == "budget":
        if not (isinstance(value, tuple) and len(value) == 2 and callable(value[0]) and _is_number(value[1])):
            raise DensityError(f"Expected budget=(function of a model, limit), got {value!r}.")
        return name, value
    highest = 1.0 if name in ("density", "latency") else float("inf")
    if not _is_number(value) or not 0 < value <= highest or value == float("inf"):
        text = f"a {name} in (0, 1]" if highest == 1 else f"{name} above 0, a fraction or a number to keep"
        raise DensityError(f"Expected {text}, got {value!r}.")
    return name, value


def _saved_size(model: nn.Module) -> float:
    """The bytes of the file of a model. The file format is in a package that imports this one."""
    return float(import_module("prunus.compression.save").saved_size(model))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and not isnan(value)


def _why_none(model: nn.Module, analysis: Analysis) -> str:
    """Why there is no group to remove channels from, with the first excluded group or refused operator."""
    if analysis.groups:
        first = analysis.groups[0]
        reason = "it is excluded" if first.inexact is None else f"{first.inexact.reason} (allow_inexact=True)"
        return f": {len(analysis.groups)} left out, the first {first.name!r} because {reason}"
    if analysis.refused:
        return f": {analysis.refused[0].refusal}"
    types = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if not p.is_floating_point()}
    return f": its {' and '.join(sorted(types))} parameters are not floating-point numbers" if types else ""


def check_excluded(model: nn.Module, exclude: Sequence[str]) -> None:
    """Raise ModelError where a name is neither a module nor a parameter of the model.

    Args:
        model: The model.
        exclude: Names of parameters or modules.

    Raises:
        ModelError: There is no such name.
    """
    if isinstance(exclude, str):
        raise ModelError(f"Expected exclude to be a list of names, got {exclude!r}; write [{exclude!r}].")
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
        exclude: Names of parameters or modules not to prune.
        allow_inexact: Whether groups are allowed whose channels a normalization normalizes together.

    Returns:
        True if they may.
    """
    names = {member.name for member in group.members}
    is_excluded = any(name == other or other.startswith(f"{name}.") for name in exclude for other in names)
    return (group.exact or allow_inexact) and not is_excluded
