"""Magnitude: large weights are kept.

    score = |w|

Source: Han et al. 2015, section 3 (there as a threshold, see `scopes.threshold`); older than that.
Also called: large_final (Zhou et al. 2019), L1 magnitude.
"""

from prunus.types import Scores, Statistics


def magnitude(evidence: Statistics) -> Scores:
    """|w| of every weight.

    >>> import torch
    >>> magnitude(Statistics({"fc": torch.tensor([-2.0, 1.0])}))
    {'fc': tensor([2., 1.])}
    """
    return {name: weight.detach().abs() for name, weight in evidence.weights.items()}
