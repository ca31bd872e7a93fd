"""Small init, small final: weights that are small both before and after training are kept.

    score = min(rank(−|w_i|), rank(−|w_f|))    rank: within the layer, among the weights earlier rounds left

Source: Zhou et al. 2019, section 3: −max(α|w_f|, |w_i|); the control of large init, large final.
Departs: as there, the lower rank instead of a bisection for a share common to both.
"""

from prunus.pruning.criteria.parts import masks_or_ones, min_ranks, require_start_weights
from prunus.pruning.criteria.small_final import small_final
from prunus.types import Scores, Statistics

NAME = "small_init_small_final"


def small_init_small_final(evidence: Statistics) -> Scores:
    """The lower of a weight's ranks by −|w_i| and by −|w_f|, in (0, 1], float64; 0 where it is pruned.

    Raises StatisticsError where the initial weights are missing, NonFiniteError.

    >>> import torch
    >>> weights, initial = {"fc": torch.tensor([1.0, 2.0, 3.0, 4.0])}, {"fc": torch.tensor([4.0, 3.0, 1.0, 2.0])}
    >>> small_init_small_final(Statistics(weights, initial=initial))["fc"].tolist()
    [0.25, 0.5, 0.5, 0.25]
    """
    starts = {name: -start.abs() for name, start in require_start_weights(evidence, NAME).items()}
    return min_ranks(starts, small_final(evidence), masks_or_ones(evidence, NAME))
