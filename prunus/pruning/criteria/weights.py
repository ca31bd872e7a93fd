"""Criteria of the weights alone: magnitude, and the random control."""

import torch

from prunus.pruning.statistics import Statistics, criterion
from prunus.seeds import make_generator
from prunus.types import Scores


@criterion()
def magnitude(stats: Statistics) -> Scores:
    """Magnitude: |w|, large weights are kept.

    Source: Han et al. 2015, section 3 (there as a threshold, see `densities_from_threshold`); older than that.
    Also called: large_final (Zhou et al. 2019), L1 magnitude.

    >>> magnitude(Statistics({"fc": torch.tensor([-2.0, 1.0])}))
    {'fc': tensor([2., 1.])}
    """
    return {name: weight.abs() for name, weight in stats.weights.items()}


@criterion()
def scaled_magnitude(stats: Statistics) -> Scores:
    """Scaled magnitude: |w| / σ, with the standard deviation σ of the weights of the layer.

    Source: Han et al. 2015, section 4: a threshold of quality · σ with one quality for all layers keeps exactly the
    weights that this criterion ranks highest under the global scope. σ is that of the population; a layer of equal
    weights scores |w|.

    >>> scaled_magnitude(Statistics({"fc": torch.tensor([-2.0, 2.0])}))
    {'fc': tensor([1., 1.])}
    """
    scores = {}
    for name, weight in stats.weights.items():
        deviation = weight.std(correction=0)
        scores[name] = weight.abs() / (deviation if deviation > 0 else 1.0)
    return scores


@criterion()
def random(stats: Statistics) -> Scores:
    """Random: scores from U(0, 1), the control that every criterion must beat.

    Source: LeCun et al. 1990, Figure 1a; Zhou et al. 2019, Table 1. Each tensor has its own stream of random numbers,
    derived from the seed of the statistics.

    >>> stats = Statistics({"fc": torch.zeros(3)}, seed=1)
    >>> torch.equal(random(stats)["fc"], random(stats)["fc"])
    True
    """
    return {
        name: torch.rand(weight.shape, generator=make_generator(stats.seed, "random", name)).to(weight.device)
        for name, weight in stats.weights.items()
    }
