"""Large init: weights that were large before training are kept.

    score = |w_i|

Source: Zhou et al. 2019, section 3.
"""

from prunus.pruning.criteria.parts import require_start_weights
from prunus.types import Scores, Statistics


def large_init(evidence: Statistics) -> Scores:
    """|w_i| of every weight. Raises StatisticsError where the initial weights are missing.

    >>> import torch
    >>> large_init(Statistics({"fc": torch.zeros(2)}, initial={"fc": torch.tensor([-2.0, 1.0])}))
    {'fc': tensor([2., 1.])}
    """
    return {name: start.abs() for name, start in require_start_weights(evidence, "large_init").items()}
