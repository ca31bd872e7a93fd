"""Optimal Brain Damage as a surgeon: saliencies from a diagonal that is looked at, nothing moved.

    score = h_kk u_k² / 2          predicted increase = the sum of those deleted

Source: LeCun, Denker, Solla 1990, eq. 5 and the recipe of section 2.3. The criterion of the same name takes the
diagonal as evidence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from prunus.masks import apply_masks
from prunus.pruning.criteria.obd import obd as saliency
from prunus.pruning.second_order.hessian_diagonal import DIAGONALS
from prunus.pruning.second_order.objective import Objective
from prunus.pruning.second_order.pruning_state import PruningMethod
from prunus.registry import lookup
from prunus.seeds import derive_seed
from prunus.types import MaskDict, Params, Progress, Scores, Statistics


@dataclass(frozen=True)
class ObdState:
    """Weights, what is left of them, and the diagonal of the Hessian."""

    weights: Params
    masks: MaskDict
    curvature: Params
    predicted: float = 0.0
    damping: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def scores(self) -> Scores:
        """h w² / 2 of every weight; 0 for deleted ones."""
        return saliency(Statistics(self.weights, masks=self.masks, curvature=self.curvature))

    def keep(self, masks: MaskDict) -> "ObdState":
        """Set the rest to zero."""
        scores = self.scores()
        cost = sum(float(scores[n][self.masks[n] & ~mask].sum()) for n, mask in masks.items())
        return ObdState(apply_masks(self.weights, masks), masks, self.curvature, self.predicted + cost)


def obd(
    asked: Objective, diagonal: str = "recursion", seed: int = 0, progress: Progress | None = None
) -> PruningMethod:
    """The surgeon with a diagonal of DIAGONALS, chosen by name. Raises what the diagonal and the criterion raise."""
    estimate = lookup("diagonal", DIAGONALS, diagonal)

    def examine(weights: Params, masks: MaskDict) -> ObdState:
        here = asked.at(apply_masks(weights, masks))
        left = sum(int(mask.sum()) for mask in masks.values())
        look = derive_seed(seed, "diagonal", left)  # an estimate draws anew when fewer are left
        return ObdState(here.weights, masks, estimate(here, seed=look, progress=progress))

    return examine
