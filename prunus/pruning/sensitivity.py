"""Sensitivity: how the loss and the accuracy change with the density of one layer, while the others stay dense.

Source: Han et al. 2015, Figure 6, from whose curves the thresholds of the layers were chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from prunus.data.validation import check_split
from prunus.errors import DensityError
from prunus.masks import apply_masks
from prunus.pruning.criteria.weights import magnitude
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import Layer
from prunus.pruning.statistics import Criterion, Statistics, as_criterion
from prunus.pruning.weights import copied
from prunus.training import evaluate
from prunus.training.checks import check_model
from prunus.types import Progress, Scores, Split


@dataclass(frozen=True)
class SensitivityPoint:
    """Accuracy in percent and loss in nats with one layer at one density."""

    density: float
    accuracy: float
    loss: float


Curves = dict[str, list[SensitivityPoint]]

DENSITIES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02)


def sensitivity(
    model: nn.Module,
    split: Split,
    *,
    densities: Sequence[float] = DENSITIES,
    criterion: Criterion | Callable[[Statistics], Scores] = magnitude,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Curves:
    """One curve per prunable layer, without retraining; the model is not changed.

    Args:
        model: A trained network.
        split: The examples to measure on; use the validation split.
        densities: Each in (0, 1].
        criterion: A criterion of the weights alone, or a function of statistics.
        include: Shell patterns of the names of weights to prune.
        exclude: Shell patterns of the names of weights not to prune; `skipped_parameters` gives the reasons.
        seed: Of random criteria and ties.
        progress: Called after each density of each layer.

    Returns:
        {name: points in order of falling density}.

    Raises:
        ModelError, NoPrunableWeightsError, TiedWeightsError: As `prunable_weights`.
        DensityError: A density out of range.
        StatisticsError: The criterion needs more than weights.
    """
    check_split(split)
    check_model(model, split, int(split.labels.max()) + 1)
    trial = copied(model)
    weights = prunable_weights(trial, include, exclude)
    curves: Curves = {}
    for name, weight in weights.items():
        original = weight.detach().clone()
        scores = as_criterion(criterion)(Statistics({name: original}, seed=seed))
        curves[name] = []
        for density in sorted(densities, reverse=True):
            masks = Layer().select(scores, density, seed=seed)
            weight.data.copy_(apply_masks({name: original}, masks)[name])
            result = evaluate(trial, split)
            curves[name].append(SensitivityPoint(density, result.accuracy, result.loss))
            if progress:
                done = (len(curves) - 1) * len(densities) + len(curves[name])
                progress("densities of layers evaluated", done, len(weights) * len(densities))
        weight.data.copy_(original)
    return curves


def choose_densities(curves: Mapping[str, Sequence[SensitivityPoint]], tolerance: float) -> dict[str, float]:
    """The lowest density of each layer at which, and above which, at most `tolerance` points of accuracy are lost.

    Args:
        curves: From `sensitivity`.
        tolerance: Percentage points of accuracy below that at the highest density of a curve, at least 0.

    Returns:
        {name: density}.

    Raises:
        DensityError: A negative tolerance.

    >>> curve = [SensitivityPoint(1.0, 98.0, 0.1), SensitivityPoint(0.5, 97.9, 0.1), SensitivityPoint(0.1, 90.0, 0.4)]
    >>> choose_densities({"fc": curve}, 0.5)
    {'fc': 0.5}
    """
    if tolerance < 0:
        raise DensityError(
            f"Expected a tolerance of at least 0 accuracy points, got {tolerance}; increase it."
        )
    densities = {}
    for name, curve in curves.items():
        falling = sorted(curve, key=lambda point: -point.density)
        floor = falling[0].accuracy - tolerance
        for point in falling:
            if point.accuracy < floor:
                break
            densities[name] = point.density
    return densities
