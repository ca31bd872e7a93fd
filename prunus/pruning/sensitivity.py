"""Sensitivity: how the loss and the accuracy change with the density of one layer, while the others stay dense.

Source: Han et al. 2015, Figure 6, from whose curves the thresholds of the layers were chosen.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from torch import nn

from prunus.data.examples import DEFAULT_NUM_EXAMPLES, Batch, Calibration, Examples, sample_examples
from prunus.errors import DensityError, ModelError
from prunus.masks import all_kept, apply_masks
from prunus.modules import check_initialized, copied, uncompiled
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.methods import CriterionMethod
from prunus.pruning.obs.state import PruneResult, PruningState
from prunus.pruning.progress import tracked
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import Layer
from prunus.pruning.statistics import Criterion, Statistics, as_criterion
from prunus.pruning.views import LayerView
from prunus.pruning.weights import set_weights
from prunus.registry import check_callbacks, lookup
from prunus.training.evaluation import evaluate
from prunus.training.evaluation_totals import MetricFunction, score_drop
from prunus.training.losses import Loss, LossFunction
from prunus.training.outputs import Forward
from prunus.types import Progress, Scores, Split


@dataclass(frozen=True)
class SensitivityPoint:
    """Accuracy in percent, mean loss and a metric with one layer at one density."""

    density: float
    accuracy: float
    loss: float
    metric: float | None = None

    @property
    def score(self) -> float:
        """The metric where there is one, else the accuracy; higher is better."""
        return self.accuracy if self.metric is None else self.metric


Curves = dict[str, list[SensitivityPoint]]

DENSITIES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02)


def sensitivity(
    model: nn.Module,
    data: Split | Examples | tuple[Any, ...] | Iterable[Batch],
    *,
    densities: Sequence[float] = DENSITIES,
    criterion: str | Criterion | Callable[[Statistics], Scores] = "magnitude",
    calibration: Calibration | None = None,
    forward: Forward | None = None,
    loss: str | Loss | LossFunction | None = None,
    metric: MetricFunction | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Curves:
    """One curve per prunable layer, without retraining; the model is not changed.

    Args:
        model: A trained network.
        data: The examples to measure on, as for `evaluate`; use the validation split. An iterable is read again for
            each measurement.
        densities: Each in (0, 1].
        criterion: A name in `CRITERIA`, a criterion, or a function of statistics.
        calibration: Examples in any form, for criteria that use gradients.
        forward: As for `evaluate`, and where calibration examples pass through the model.
        loss: As for `evaluate`, and what criteria differentiate.
        metric: As for `evaluate`.
        include: Shell patterns of the names of weights to prune.
        exclude: Shell patterns of the names of weights not to prune; `skipped_parameters` gives the reasons.
        seed: Seed of random criteria and ties.
        progress: Called after each density of each layer.

    Returns:
        {name: points in order of falling density}. The curve of a layer with weight_norm ends where a row would have no
        weight left, which it divides by the norm of.

    Raises:
        ModelError, NoPrunableWeightsError, TiedWeightsError: As `prunable_weights`.
        DensityError: A density out of range.
        DataError, StatisticsError: The examples cannot be used, or the criterion needs examples and there are none.
        SpecError: `progress` is not a function.
    """
    check_callbacks(progress=progress)
    check_initialized(model)
    trial = copied(uncompiled(model))
    named = lookup("criterion", CRITERIA, criterion) if isinstance(criterion, str) else criterion
    method = CriterionMethod(as_criterion(named))
    examples = None if calibration is None else sample_examples(calibration, DEFAULT_NUM_EXAMPLES, seed)
    options: dict[str, Any] = {"forward": forward, "loss": loss}
    parameters = dict(trial.named_parameters())
    weights = {name: weight.detach() for name, weight in prunable_weights(trial, include, exclude).items()}
    curves: Curves = {name: [] for name in weights}

    @lru_cache(maxsize=1)  # the scores of a layer do not depend on the density
    def examine(name: str) -> tuple[LayerView, PruningState]:
        view = method.view(trial, [name], Layer())
        viewed = view.weights({name: weights[name].clone()})
        with view.names_of_model():
            state = method.examiner(view.model, examples, seed=seed, **options)(viewed, all_kept(viewed))
        return view, state

    steps = list(product(weights, sorted(densities, reverse=True)))
    for name, density in tracked(steps, "densities of layers evaluated", progress):
        view, state = examine(name)
        masks = Layer().select(state.scores(), density, seed=seed)
        try:
            pruned = view.from_view(PruneResult(apply_masks(state.weights, masks), masks)).weights
        except ModelError:  # a weight_norm would divide by zero
            continue
        before = {changed: parameters[changed].detach().clone() for changed in pruned}
        set_weights(trial, pruned)
        measured = evaluate(trial, data, metric=metric, **options)
        set_weights(trial, before)
        curves[name].append(SensitivityPoint(density, measured.accuracy, measured.loss, measured.metric))
    return curves


def choose_densities(curves: Mapping[str, Sequence[SensitivityPoint]], tolerance: float) -> dict[str, float]:
    """The lowest density of each layer at which, and above which, at most `tolerance` of the score is lost.

    Args:
        curves: From `sensitivity`.
        tolerance: Percentage points of accuracy, or units of the metric, below that at the highest density of a curve;
            at least 0.

    Returns:
        {name: density}.

    Raises:
        DensityError: A negative tolerance, or curves without accuracy or metric.

    >>> curve = [SensitivityPoint(1.0, 98.0, 0.1), SensitivityPoint(0.5, 97.9, 0.1), SensitivityPoint(0.1, 90.0, 0.4)]
    >>> choose_densities({"fc": curve}, 0.5)
    {'fc': 0.5}
    """
    if not tolerance >= 0:
        raise DensityError(
            f"Expected a tolerance of at least 0 accuracy points, got {tolerance}; increase it."
        )
    if any(math.isnan(point.score) for curve in curves.values() for point in curve):
        raise DensityError(
            "Expected an accuracy or a metric at each density, got curves of the loss alone; pass metric=... to "
            "`sensitivity`."
        )
    densities = {}
    for name, curve in curves.items():
        falling = sorted(curve, key=lambda point: -point.density)
        for point in falling:
            if score_drop(falling[0].score, point.score) > tolerance:
                break
            densities[name] = point.density
    return densities
