"""Magnitude increase: weights that training made larger are kept; those it made smaller score below zero.

    score = |w_f| − |w_i|

Source: Zhou et al. 2019, section 3.
"""

from prunus.nouns import Evidence, Scores
from prunus.pruning.criteria.magnitude import magnitude
from prunus.pruning.criteria.parts import initial_of


def magnitude_increase(evidence: Evidence) -> Scores:
    """|w_f| − |w_i| of every weight. Raises EvidenceError where the initial weights are missing.

    >>> import torch
    >>> initial = {"fc": torch.tensor([1.0, 2.0])}
    >>> magnitude_increase(Evidence({"fc": torch.tensor([-3.0, 1.0])}, initial=initial))
    {'fc': tensor([ 2., -1.])}
    """
    initial = initial_of(evidence, "magnitude_increase")
    return {name: score - initial[name].abs() for name, score in magnitude(evidence).items()}
