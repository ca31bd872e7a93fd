"""Large init: weights that were large before training are kept.

    score = |w_i|

Source: Zhou et al. 2019, section 3.
"""

from prunus.nouns import Evidence, Scores
from prunus.pruning.criteria.parts import initial_of


def large_init(evidence: Evidence) -> Scores:
    """|w_i| of every weight. Raises EvidenceError where the initial weights are missing.

    >>> import torch
    >>> large_init(Evidence({"fc": torch.zeros(2)}, initial={"fc": torch.tensor([-2.0, 1.0])}))
    {'fc': tensor([2., 1.])}
    """
    return {name: start.abs() for name, start in initial_of(evidence, "large_init").items()}
