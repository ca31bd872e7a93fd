"""Pruning methods: criteria, and the OBS family, which uses calibration examples and updates the remaining weights.

    obs              ExactObs()              OBS layer by layer, exactly, row by row                   updates weights
    sparse_gpt       SparseGpt()             OBS layer by layer, column by column                      updates weights
    admm             Admm()                  output errors layer by layer, all rows at once            updates weights
    fisher           Fisher()                OBS with the blockwise empirical Fisher                   updates weights
    full_obs         FullObs()               OBS with the inverse Hessian of the whole network         updates weights
    obd              Obd()                   OBD with the Levenberg-Marquardt diagonal
    obd_hutchinson   Obd("hutchinson")       OBD with an estimated diagonal, any network
                     CriterionMethod(...)    any criterion; pruned weights are set to zero

A method is a value, and `method.prune` is the one call that schedules with retraining, Deep Compression, tickets (which
use the masks alone) and `prunus prune` make.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from prunus.data.examples import Calibration
from prunus.errors import StatisticsError
from prunus.masks import apply_masks
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.obs.admm import Admm
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.fisher import Fisher
from prunus.pruning.obs.full_obs import FullObs
from prunus.pruning.obs.method import PruneTask, PruningMethod
from prunus.pruning.obs.obd import Obd
from prunus.pruning.obs.sparse_gpt import SparseGpt
from prunus.pruning.obs.state import Examine, PruneResult, PruningState
from prunus.pruning.statistics import (
    Criterion,
    GivenScores,
    Statistics,
    as_criterion,
    check_same_shapes,
    collect,
)
from prunus.pruning.views import LayerView
from prunus.registry import import_object, lookup
from prunus.types import MaskDict, Params, Scores


@dataclass(frozen=True, kw_only=True)
class CriterionState(PruningState):
    """The scores of a criterion; pruned weights are set to zero, and no other weight is changed."""

    criterion: Criterion
    statistics: Statistics
    predicted_increase: float = float("nan")

    def scores(self) -> Scores:
        """The scores of the criterion."""
        return self.criterion(self.statistics)

    def _prune_to(self, masks: MaskDict) -> "CriterionState":
        return replace(self, weights=apply_masks(self.weights, masks), masks=masks)


@dataclass(frozen=True, kw_only=True)
class CriterionMethod(PruningMethod):
    """A criterion as a pruning method.

    Args:
        criterion: A function of statistics that returns one score per weight.
        num_examples: Calibration examples, for criteria that use gradients.
        num_steps: Steps of equal size; scores are computed again before each.

    Raises:
        StatisticsError: A number out of range, or several steps for a criterion that uses weights alone.

    >>> import torch
    >>> weights = {"weight": torch.tensor([[3.0, -1.0]])}
    >>> CriterionMethod(CRITERIA["magnitude"]).prune(nn.Linear(2, 1), weights, 0.5, "layer").weights
    {'weight': tensor([[3., 0.]])}
    """

    updates_weights: ClassVar[bool] = False
    criterion: Criterion = field(kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "criterion", as_criterion(self.criterion))
        if self.num_steps != 1 and not self.needs_examples:
            raise StatisticsError(
                f"Expected 1 step, as {self.summary} uses weights alone, so that steps change nothing, got "
                f"{self.num_steps}."
            )

    @property
    def summary(self) -> str:  # type: ignore[override]
        """The name of the criterion."""
        return f"the criterion {self.criterion.name!r}"

    @property
    def needs_examples(self) -> bool:  # type: ignore[override]
        """Whether the criterion requires statistics of calibration examples."""
        return self.criterion.needs_examples

    @property
    def uses_layer_inputs(self) -> bool:  # type: ignore[override]
        """Whether the criterion requires the inputs of each layer."""
        return "input_norms" in self.criterion.requires

    def examiner(
        self,
        model: nn.Module | None = None,
        calibration: Calibration | None = None,
        **options: Any,
    ) -> Examine:
        """The function (weights, masks) -> CriterionState; it collects the statistics at these weights.

        Args:
            model: The network, for criteria that need examples.
            calibration: The examples, all of which are used, in any form.
            options: Other arguments of `collect`: seed, initial, forward, loss.

        Returns:
            The function; it raises what `collect` and the criterion raise.
        """

        def examine(weights: Params, masks: MaskDict) -> CriterionState:
            network = nn.Identity() if model is None else model
            statistics = collect(
                network, weights, self.criterion.requires, calibration, masks=masks, **options
            )
            return CriterionState(
                weights=weights, masks=masks, criterion=self.criterion, statistics=statistics
            )

        return examine

    def in_view(self, view: LayerView, weights: Params) -> "CriterionMethod":
        """This method, with scores that were given by name in the order of a view.

        Args:
            view: The view.
            weights: The weights to prune, by name in the network.

        Returns:
            The method; itself, if its criterion computes scores.

        Raises:
            StatisticsError: The given scores are not of the names and shapes of the weights.
        """
        function = self.criterion.function
        if not isinstance(function, GivenScores):
            return self
        check_same_shapes(weights, function.scores, "scores by name")
        return replace(self, criterion=as_criterion(view.to_view(function.scores)))

    def _prune(self, task: PruneTask) -> PruneResult:
        examine = self.examiner(
            task.model, task.examples if self.needs_examples else None,
            seed=task.seeds[0], initial=task.initial, forward=task.forward, loss=task.loss,
        )  # fmt: skip
        return task.prune_in_steps(examine, self.num_steps)


METHODS: Mapping[str, PruningMethod] = {
    "obs": ExactObs(),
    "sparse_gpt": SparseGpt(),
    "admm": Admm(),
    "fisher": Fisher(),
    "full_obs": FullObs(),
    "obd": Obd(),
    "obd_hutchinson": Obd(diagonal="hutchinson"),
}
"""The OBS family by name."""


def pruning_method(
    method: str | PruningMethod | Criterion | Callable[[Statistics], Scores] | Mapping[str, Tensor],
) -> PruningMethod:
    """The pruning method of a name, a value or a criterion.

    Args:
        method: A name in METHODS or CRITERIA, "package.module:name" of a method or a criterion, a method, a criterion,
            a function of statistics, or scores by name.

    Returns:
        The method; a criterion as a `CriterionMethod`.

    Raises:
        UnknownNameError: There is nothing of this name.

    >>> pruning_method("obs")
    ExactObs(num_examples=1024, num_steps=1, damping=0.01, batch_size=100)
    """
    value: Any = method
    if isinstance(method, str):
        if ":" in method:
            value = import_object(method, PruningMethod)
        else:
            value = lookup("criterion", {**CRITERIA, **METHODS}, method)
    return value if isinstance(value, PruningMethod) else CriterionMethod(value)


def with_options(
    method: PruningMethod,
    *,
    num_examples: int | None = None,
    damping: float | None = None,
    num_steps: int | None = None,
) -> PruningMethod:
    """The method with some of its settings replaced; None: as it is.

    Args:
        method: Any pruning method.
        num_examples: Calibration examples.
        damping: In the scale of the method, see docs/prune.md.
        num_steps: Steps of equal size.

    Returns:
        A method of the same type.

    Raises:
        StatisticsError: A number out of range, or damping for a method that inverts nothing.

    >>> with_options(METHODS["obs"], damping=0.5).damping
    0.5
    """
    options: dict[str, Any] = {"num_examples": num_examples, "damping": damping, "num_steps": num_steps}
    changed = {name: value for name, value in options.items() if value is not None}
    if "damping" in changed and "damping" not in {field.name for field in fields(method)}:
        with_damping = [name for name, known in METHODS.items() if hasattr(known, "damping")]
        raise StatisticsError(
            f"Expected no damping, as nothing is inverted by {method.summary}, got {damping:g}; methods that invert a "
            f"curvature are {', '.join(with_damping)}."
        )
    return replace(method, **changed)
