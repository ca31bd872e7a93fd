"""Random: the control that every criterion must beat.

    score ~ U(0, 1)

Source: LeCun et al. 1990, Figure 1a; Zhou et al. 2019, Table 1.
"""

import torch

from prunus.seeds import make_generator
from prunus.types import Scores, Statistics


def random(evidence: Statistics) -> Scores:
    """Uniform scores; a stream of its own for every tensor, from the evidence's seed.

    >>> import torch
    >>> evidence = Statistics({"fc": torch.zeros(3)}, seed=1)
    >>> torch.equal(random(evidence)["fc"], random(evidence)["fc"])
    True
    """
    return {
        name: torch.rand(weight.shape, generator=make_generator(evidence.seed, "random", name)).to(
            weight.device
        )
        for name, weight in evidence.weights.items()
    }
