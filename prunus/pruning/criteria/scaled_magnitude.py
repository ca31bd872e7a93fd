"""Scaled magnitude: magnitude in units of the layer's own standard deviation.

    score = |w| / σ(layer)

Source: Han et al. 2015, section 3.1: a threshold of quality × σ(layer) with one quality for all layers keeps
exactly the weights that this criterion ranks highest under the global scope.
"""

from prunus.types import Scores, Statistics


def scaled_magnitude(evidence: Statistics) -> Scores:
    """|w| over the standard deviation (of the population) of its tensor; a constant tensor scores |w|.

    >>> import torch
    >>> scaled_magnitude(Statistics({"fc": torch.tensor([-2.0, 2.0])}))
    {'fc': tensor([1., 1.])}
    """
    scores = {}
    for name, weight in evidence.weights.items():
        deviation = weight.detach().std(correction=0)
        scores[name] = weight.detach().abs() / (deviation if deviation > 0 else 1.0)
    return scores
