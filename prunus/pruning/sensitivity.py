"""Sensitivity: how the loss or accuracy falls with the density of one layer, the others untouched.

Source: Han et al. 2015, Figure 6, from whose curves the thresholds of the layers were chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from prunus.data.validation import check_split
from prunus.errors import DensityError
from prunus.masks import apply_masks
from prunus.pruning.criteria import Criterion
from prunus.pruning.criteria.magnitude import magnitude
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import layer
from prunus.pruning.weights import copied
from prunus.training import evaluate
from prunus.training.checks import check_model
from prunus.types import Progress, Split, Statistics


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
    criterion: Criterion = magnitude,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Curves:
    """One curve a prunable layer, without retraining, measured on `split` (use the validation split).

    `model` itself is left as it is. `progress` is called after each density of each layer. Warns and raises as
    `prunable` does; `skipped_parameters` names the parameters without a curve.
    """
    check_split(split)
    check_model(model, split, int(split.labels.max()) + 1)
    trial = copied(model)
    weights = prunable_weights(trial, include, exclude)
    curves: Curves = {}
    for name, weight in weights.items():
        original = weight.detach().clone()
        scores = criterion(Statistics({name: original}, seed=seed))
        curves[name] = []
        for density in sorted(densities, reverse=True):
            masks = layer(scores, density, seed=seed)
            weight.data.copy_(apply_masks({name: original}, masks)[name])
            result = evaluate(trial, split)
            curves[name].append(SensitivityPoint(density, result.accuracy, result.loss))
            if progress:
                done = (len(curves) - 1) * len(densities) + len(curves[name])
                progress("densities of layers evaluated", done, len(weights) * len(densities))
        weight.data.copy_(original)
    return curves


def choose_densities(curves: Mapping[str, Sequence[SensitivityPoint]], tolerance: float) -> dict[str, float]:
    """The lowest density of each layer at which, and above which, at most `tolerance` accuracy points are lost.

    The loss is counted from the curve's highest density. Raises DensityError for a negative tolerance.

    >>> choose_densities({"fc": [SensitivityPoint(1.0, 98.0, 0.1), SensitivityPoint(0.5, 97.9, 0.1), SensitivityPoint(0.1, 90.0, 0.4)]}, 0.5)
    {'fc': 0.5}
    """
    if tolerance < 0:
        raise DensityError(f"A tolerance of {tolerance} accuracy points was asked; it must not be negative.")
    chosen = {}
    for name, curve in curves.items():
        falling = sorted(curve, key=lambda point: -point.density)
        floor = falling[0].accuracy - tolerance
        fine = falling[0].density
        for point in falling:
            if point.accuracy < floor:
                break
            fine = point.density
        chosen[name] = fine
    return chosen
