"""OBD: weights whose removal would raise the error most, by its curvature, are kept.

    score = h_kk u_k² / 2          h_kk = d²E/du_k², of the evidence

Source: LeCun, Denker, Solla 1990, "Optimal Brain Damage", eq. 5, "saliency". It takes the weights to be at a minimum
(no slope) and the Hessian to be diagonal. The diagonal is computed, in one of four ways that are chosen by name, by
`prunus.pruning.obs.DIAGONALS`.
A curvature that is negative, as away from a minimum, gives a negative score: such a weight goes first.
"""

from prunus.errors import StatisticsError
from prunus.pruning.calibration_checks import check_nonzero
from prunus.pruning.criteria.parts import check_same_shapes, masks_or_ones
from prunus.types import Scores, Statistics


def obd(evidence: Statistics) -> Scores:
    """h u² / 2 of every weight. Raises StatisticsError where the curvature is missing, or zero for a whole layer.

    >>> import torch
    >>> obd(Statistics({"fc": torch.tensor([2.0, 1.0])}, curvature={"fc": torch.tensor([1.0, 6.0])}))
    {'fc': tensor([2., 3.])}
    """
    if evidence.curvature is None:
        raise StatisticsError(
            "The criterion 'obd' looks at the diagonal of the Hessian, and the evidence has none; pass "
            "Evidence(weights, curvature=prunus.pruning.obs.DIAGONALS['recursion'](objective))."
        )
    check_same_shapes(evidence, evidence.curvature, "curvature", "obd")
    check_nonzero(evidence.curvature, masks_or_ones(evidence, "obd"), "The curvature by")
    return {
        name: evidence.curvature[name].detach() * weight.detach().square() / 2
        for name, weight in evidence.weights.items()
    }
