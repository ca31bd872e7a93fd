"""Optimal Brain Damage: saliencies from the diagonal of the Hessian; the remaining weights are not updated.

    score = h_kk u_k² / 2          predicted increase = the sum over the pruned weights

Source: LeCun, Denker, Solla 1990, the saliencies and the recipe of section 2.3. The criterion of the same name takes
the diagonal from the statistics.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from prunus.masks import apply_masks
from prunus.pruning.criteria.gradients import obd
from prunus.pruning.obs.diagonals import DIAGONALS
from prunus.pruning.obs.method import LossMethod
from prunus.pruning.obs.objective import Objective
from prunus.pruning.obs.state import Examine, PruningState
from prunus.pruning.statistics import Statistics
from prunus.registry import lookup
from prunus.seeds import derive_seed
from prunus.types import MaskDict, Params, Progress, Scores


@dataclass(frozen=True, kw_only=True)
class ObdState(PruningState):
    """Weights and masks, and the diagonal of the Hessian."""

    hessian_diagonal: Params

    def scores(self) -> Scores:
        """h w² / 2 of every remaining weight; 0 for the others."""
        return obd(Statistics(self.weights, masks=self.masks, hessian_diagonal=self.hessian_diagonal))

    def _prune_to(self, masks: MaskDict) -> "ObdState":
        scores = self.scores()
        increase = sum(float(scores[n][self.masks[n] & ~mask].sum()) for n, mask in masks.items())
        return replace(
            self,
            weights=apply_masks(self.weights, masks),
            masks=masks,
            predicted_increase=self.predicted_increase + increase,
        )


@dataclass(frozen=True, kw_only=True)
class Obd(LossMethod):
    """OBD with a diagonal of DIAGONALS, computed again before each step.

    Args:
        diagonal: A key of DIAGONALS.
        num_examples: Calibration examples.
        num_steps: Steps of equal size.

    Raises:
        UnknownNameError: No such diagonal.
        StatisticsError: A number out of range.
    """

    updates_weights: ClassVar[bool] = False
    diagonal: str = "levenberg_marquardt"

    @property
    def summary(self) -> str:  # type: ignore[override]
        """What the method is, in one sentence."""
        return f"OBD: h w² / 2 with the diagonal `{self.diagonal}` of the Hessian, without an update."

    def __post_init__(self) -> None:
        super().__post_init__()
        lookup("diagonal", DIAGONALS, self.diagonal)

    def examiner(self, objective: Objective, *, seed: int = 0, progress: Progress | None = None) -> Examine:
        """The function (weights, masks) -> ObdState for this objective.

        Args:
            objective: The network, the weights to choose from, and the examples.
            seed: Seed of a diagonal that is estimated at random.
            progress: Called after each step of long work.

        Returns:
            The function; it raises what the diagonal and the criterion raise.
        """

        def examine(weights: Params, masks: MaskDict) -> ObdState:
            current = objective.replace_weights(apply_masks(weights, masks))
            num_remaining = sum(int(mask.sum()) for mask in masks.values())
            # With fewer weights an estimate uses new random numbers.
            draw = derive_seed(seed, "diagonal", num_remaining)
            diagonal = DIAGONALS[self.diagonal](current, seed=draw, progress=progress)
            return ObdState(weights=current.weights, masks=masks, hessian_diagonal=diagonal)

        return examine
