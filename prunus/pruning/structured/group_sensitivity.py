"""How much a network loses when channels of one group alone are removed."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from prunus.data.examples import as_examples
from prunus.modules import copied
from prunus.pruning.structured.plan import SlimPlan
from prunus.pruning.structured.slim import slim


def group_sensitivity(
    model: nn.Module,
    example_inputs: object,
    measure: Callable[[nn.Module], float],
    densities: Sequence[float] = (0.75, 0.5, 0.25),
    **options: Any,
) -> dict[str, dict[float, float]]:
    """Measure a network after removing channels of one group at a time, without training; the model is not changed.

    Li et al. 2017, Figure 2b, prune each layer alone in this way, and do not prune the most sensitive ones.

    Args:
        model: Any module that `torch.export` can export.
        example_inputs: As for `prunus.slim`.
        measure: A function of the smaller copy, for example its accuracy.
        densities: Fractions of the channels of the group to keep, in (0, 1].
        options: Further arguments of `prunus.slim`, such as `criterion` and `exclude`.

    Returns:
        The results of `measure`, by name of the group and density.

    Raises:
        PrunusError: As `prunus.slim`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> group_sensitivity(model, torch.zeros(1, 4), lambda smaller: smaller[0].out_features, [0.5, 0.25])
        {'0.weight': {0.5: 4, 0.25: 2}}
    """
    if options.get("calibration") is not None:
        options["calibration"] = as_examples(options["calibration"])  # an iterator can be read only once
    results: dict[str, dict[float, float]] = {}
    for density in densities:
        plan = slim(model, example_inputs, density=density, **options)
        for name, channels in plan.removed.items():
            smaller = SlimPlan(
                copied(plan.model), plan.analysis, {name: channels}, verify=False, rewrite=plan.rewrite
            )
            results.setdefault(name, {})[density] = measure(smaller.apply())
    return results
