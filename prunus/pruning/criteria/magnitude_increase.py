"""Magnitude increase: weights that training made larger are kept; those it made smaller score below zero.

    score = |w_f| − |w_i|

Source: Zhou et al. 2019, section 3.
"""

from prunus.pruning.criteria.magnitude import magnitude
from prunus.pruning.criteria.parts import require_start_weights
from prunus.types import Scores, Statistics


def magnitude_increase(evidence: Statistics) -> Scores:
    """|w_f| − |w_i| of every weight. Raises StatisticsError where the initial weights are missing.

    >>> import torch
    >>> initial = {"fc": torch.tensor([1.0, 2.0])}
    >>> magnitude_increase(Statistics({"fc": torch.tensor([-3.0, 1.0])}, initial=initial))
    {'fc': tensor([ 2., -1.])}
    """
    initial = require_start_weights(evidence, "magnitude_increase")
    return {name: score - initial[name].abs() for name, score in magnitude(evidence).items()}
