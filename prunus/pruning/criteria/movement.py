"""Movement: weights that training moved far are kept.

    score = |w_f − w_i|

Source: Zhou et al. 2019, section 3. Not the movement pruning of Sanh et al. 2020, whose score is summed up from
gradients during training.
"""

from prunus.nouns import Evidence, Scores
from prunus.pruning.criteria.parts import initial_of


def movement(evidence: Evidence) -> Scores:
    """|w_f − w_i| of every weight. Raises EvidenceError where the initial weights are missing.

    >>> import torch
    >>> movement(Evidence({"fc": torch.tensor([-3.0, 1.0])}, initial={"fc": torch.tensor([1.0, 2.0])}))
    {'fc': tensor([4., 1.])}
    """
    initial = initial_of(evidence, "movement")
    return {name: (weight.detach() - initial[name]).abs() for name, weight in evidence.weights.items()}
