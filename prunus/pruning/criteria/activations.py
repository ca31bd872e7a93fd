"""Criteria of the inputs that weights are multiplied with."""

from prunus.pruning.statistics import Statistics, criterion
from prunus.types import Scores


@criterion(requires={"input_norms"})
def wanda(stats: Statistics) -> Scores:
    """Wanda: |w| · |x|₂, the magnitude times the norm of the input over the calibration examples.

    Its square is the change of the squared error of the layer's output when the weight alone is set to zero.

    Source: Sun, Liu, Bair & Kolter 2024, "A simple and effective pruning approach for large language models", eq. 1.
    Differences: The authors rank each output alone where weights are unstructured; here the scope says what is ranked
    together. N:M is the same. Inputs are those of the network before any layer is pruned. The norm of a convolution is
    over all positions.

    >>> import torch
    >>> wanda(Statistics({"fc": torch.tensor([[2.0, -1.0]])}, input_norms={"fc": torch.tensor([[1.0, 3.0]])}))
    {'fc': tensor([[2., 3.]])}
    """
    return {name: weight.abs() * stats.input_norms[name] for name, weight in stats.weights.items()}
