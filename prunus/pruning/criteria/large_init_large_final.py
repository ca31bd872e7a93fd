"""Large init, large final: weights that are large both before and after training are kept.

    score = min(rank(|w_i|), rank(|w_f|))      rank: within the layer, among the weights earlier rounds left

Source: Zhou et al. 2019, section 3: min(α|w_f|, |w_i|), with α so that one share of the layer lies below both
thresholds.
Departs: the authors bisect for that share until about the wanted number passes both thresholds. A weight passes
both exactly if its lower rank passes, so that the lower rank orders the weights as the bisection does, for
every share at once, and the scope's count is exact. At most two weights (one by either rank) share a score,
unless magnitudes are equal. Ranks of layers compare: under the global scope every layer keeps about its share.
"""

from prunus.nouns import Evidence, Scores
from prunus.pruning.criteria.magnitude import magnitude
from prunus.pruning.criteria.parts import initial_of, lower_ranks, masks_of

NAME = "large_init_large_final"


def large_init_large_final(evidence: Evidence) -> Scores:
    """The lower of a weight's ranks by |w_i| and by |w_f|, in (0, 1], float64; 0 where it is pruned.

    Raises EvidenceError where the initial weights are missing, NotFiniteError.

    >>> import torch
    >>> weights, initial = {"fc": torch.tensor([1.0, 2.0, 3.0, 4.0])}, {"fc": torch.tensor([4.0, 3.0, 1.0, 2.0])}
    >>> large_init_large_final(Evidence(weights, initial=initial))["fc"].tolist()
    [0.25, 0.5, 0.25, 0.5]
    """
    starts = {name: start.abs() for name, start in initial_of(evidence, NAME).items()}
    return lower_ranks(starts, magnitude(evidence), masks_of(evidence, NAME))
