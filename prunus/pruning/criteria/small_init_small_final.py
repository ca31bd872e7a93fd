"""Small init, small final: weights that are small both before and after training are kept.

    score = min(rank(−|w_i|), rank(−|w_f|))    rank: within the layer, among the weights earlier rounds left

Source: Zhou et al. 2019, section 3: −max(α|w_f|, |w_i|); the control of large init, large final.
Departs: as there, the lower rank instead of a bisection for a share common to both.
"""

from prunus.nouns import Evidence, Scores
from prunus.pruning.criteria.parts import initial_of, lower_ranks, masks_of
from prunus.pruning.criteria.small_final import small_final

NAME = "small_init_small_final"


def small_init_small_final(evidence: Evidence) -> Scores:
    """The lower of a weight's ranks by −|w_i| and by −|w_f|, in (0, 1], float64; 0 where it is pruned.

    Raises EvidenceError where the initial weights are missing, NotFiniteError.

    >>> import torch
    >>> weights, initial = {"fc": torch.tensor([1.0, 2.0, 3.0, 4.0])}, {"fc": torch.tensor([4.0, 3.0, 1.0, 2.0])}
    >>> small_init_small_final(Evidence(weights, initial=initial))["fc"].tolist()
    [0.25, 0.5, 0.5, 0.25]
    """
    starts = {name: -start.abs() for name, start in initial_of(evidence, NAME).items()}
    return lower_ranks(starts, small_final(evidence), masks_of(evidence, NAME))
