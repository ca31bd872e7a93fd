"""Movement: weights that training moved far are kept.

    score = |w_f − w_i|

Source: Zhou et al. 2019, section 3. Not the movement pruning of Sanh et al. 2020, whose score is summed up from
gradients during training.
"""

from prunus.pruning.criteria.parts import require_start_weights
from prunus.types import Scores, Statistics


def movement(evidence: Statistics) -> Scores:
    """|w_f − w_i| of every weight. Raises StatisticsError where the initial weights are missing.

    >>> import torch
    >>> movement(Statistics({"fc": torch.tensor([-3.0, 1.0])}, initial={"fc": torch.tensor([1.0, 2.0])}))
    {'fc': tensor([4., 1.])}
    """
    initial = require_start_weights(evidence, "movement")
    return {name: (weight.detach() - initial[name]).abs() for name, weight in evidence.weights.items()}
