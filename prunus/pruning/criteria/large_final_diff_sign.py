"""Large final, different sign: large weights that changed their sign are kept; the control of the same sign.

    score = |w_f| where sign(w_i) ≠ sign(w_f), else 0

Source: Zhou et al. 2019, section 3: max(0, −w_i w_f / |w_i|).
All weights that kept their sign are tied at 0, below every other: where more are asked for than changed it, the
rest is drawn at random. A weight that started at zero and left it counts as changed.
"""

import torch

from prunus.nouns import Evidence, Scores
from prunus.pruning.criteria.magnitude import magnitude
from prunus.pruning.criteria.parts import signs_agree


def large_final_diff_sign(evidence: Evidence) -> Scores:
    """|w_f| of every weight that has not the sign it started with, 0 of the others.

    Raises EvidenceError where the initial weights are missing, NotFiniteError.

    >>> import torch
    >>> initial = {"fc": torch.tensor([-1.0, -1.0])}
    >>> large_final_diff_sign(Evidence({"fc": torch.tensor([-2.0, 3.0])}, initial=initial))
    {'fc': tensor([0., 3.])}
    """
    agree = signs_agree(evidence, "large_final_diff_sign")
    return {name: torch.where(agree[name], 0.0, score) for name, score in magnitude(evidence).items()}
