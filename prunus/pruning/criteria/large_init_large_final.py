"""Large init, large final: weights that are large both before and after training are kept.

    score = min(rank(|w_i|), rank(|w_f|))      rank: within the layer, among the weights earlier rounds left

Source: Zhou et al. 2019, section 3: min(α|w_f|, |w_i|), with α so that one share of the layer lies below both
thresholds.
Departs: the authors bisect for that share until about the wanted number passes both thresholds. A weight passes
both exactly if its lower rank passes, so that the lower rank orders the weights as the bisection does, for
every share at once, and the scope's count is exact. At most two weights (one by either rank) share a score,
unless magnitudes are equal. Ranks of layers compare: under the global scope every layer keeps about its share.
"""

from prunus.pruning.criteria.magnitude import magnitude
from prunus.pruning.criteria.parts import masks_or_ones, min_ranks, require_start_weights
from prunus.types import Scores, Statistics

NAME = "large_init_large_final"


def large_init_large_final(evidence: Statistics) -> Scores:
    """The lower of a weight's ranks by |w_i| and by |w_f|, in (0, 1], float64; 0 where it is pruned.

    Raises StatisticsError where the initial weights are missing, NonFiniteError.

    >>> import torch
    >>> weights, initial = {"fc": torch.tensor([1.0, 2.0, 3.0, 4.0])}, {"fc": torch.tensor([4.0, 3.0, 1.0, 2.0])}
    >>> large_init_large_final(Statistics(weights, initial=initial))["fc"].tolist()
    [0.25, 0.5, 0.25, 0.5]
    """
    starts = {name: start.abs() for name, start in require_start_weights(evidence, NAME).items()}
    return min_ranks(starts, magnitude(evidence), masks_or_ones(evidence, NAME))
