"""Small final: weights that are small after training are kept; the control of magnitude.

    score = −|w_f|

Source: Zhou et al. 2019, section 3.
"""

from prunus.pruning.criteria.magnitude import magnitude
from prunus.types import Scores, Statistics


def small_final(evidence: Statistics) -> Scores:
    """−|w_f| of every weight.

    >>> import torch
    >>> small_final(Statistics({"fc": torch.tensor([-2.0, 1.0])}))
    {'fc': tensor([-2., -1.])}
    """
    return {name: -score for name, score in magnitude(evidence).items()}
