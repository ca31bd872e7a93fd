"""Magnitude increase, different sign: weights that changed their sign and became larger are kept.

    score = |w_f| − |w_i| where sign(w_i) ≠ sign(w_f), else 0

Source: Zhou et al. 2019, section 3; the control of the same sign.
As published, 0 is not the lowest score here: a weight that kept its sign is tied at 0, below those that changed
it and grew, but above those that changed it and shrank. At densities beyond the share of the former (few
weights cross zero and come out larger), most of what is kept is drawn at random from those that kept their sign.
"""

import torch

from prunus.pruning.criteria.magnitude_increase import magnitude_increase
from prunus.pruning.criteria.parts import same_sign_masks
from prunus.types import Scores, Statistics


def magnitude_increase_diff_sign(evidence: Statistics) -> Scores:
    """|w_f| − |w_i| of every weight that has not the sign it started with, 0 of the others.

    Raises StatisticsError where the initial weights are missing, NonFiniteError.

    >>> import torch
    >>> initial = {"fc": torch.tensor([-1.0, -1.0, -1.0])}
    >>> magnitude_increase_diff_sign(Statistics({"fc": torch.tensor([-2.0, 3.0, 0.5])}, initial=initial))
    {'fc': tensor([ 0.0000,  2.0000, -0.5000])}
    """
    agree = same_sign_masks(evidence, "magnitude_increase_diff_sign")
    return {
        name: torch.where(agree[name], 0.0, score) for name, score in magnitude_increase(evidence).items()
    }
