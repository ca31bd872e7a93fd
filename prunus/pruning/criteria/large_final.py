"""Large final: weights that are large after training are kept; magnitude, under its name in the ticket papers.

    score = |w_f|

Source: Frankle & Carbin 2019, section 2; Zhou et al. 2019, section 3, where it has this name.
Also called: magnitude (see there), the criterion of the lottery ticket.
"""

from prunus.pruning.criteria.magnitude import magnitude
from prunus.types import Scores, Statistics


def large_final(evidence: Statistics) -> Scores:
    """|w_f| of every weight.

    >>> import torch
    >>> large_final(Statistics({"fc": torch.tensor([-2.0, 1.0])}))
    {'fc': tensor([2., 1.])}
    """
    return magnitude(evidence)
