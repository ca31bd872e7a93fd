"""Large final, different sign: large weights that changed their sign are kept; the control of the same sign.

    score = |w_f| where sign(w_i) ≠ sign(w_f), else 0

Source: Zhou et al. 2019, section 3: max(0, −w_i w_f / |w_i|).
All weights that kept their sign are tied at 0, below every other: where more are asked for than changed it, the
rest is drawn at random. A weight that started at zero and left it counts as changed.
"""

import torch

from prunus.pruning.criteria.magnitude import magnitude
from prunus.pruning.criteria.parts import same_sign_masks
from prunus.types import Scores, Statistics


def large_final_diff_sign(evidence: Statistics) -> Scores:
    """|w_f| of every weight that has not the sign it started with, 0 of the others.

    Raises StatisticsError where the initial weights are missing, NonFiniteError.

    >>> import torch
    >>> initial = {"fc": torch.tensor([-1.0, -1.0])}
    >>> large_final_diff_sign(Statistics({"fc": torch.tensor([-2.0, 3.0])}, initial=initial))
    {'fc': tensor([0., 3.])}
    """
    agree = same_sign_masks(evidence, "large_final_diff_sign")
    return {name: torch.where(agree[name], 0.0, score) for name, score in magnitude(evidence).items()}
