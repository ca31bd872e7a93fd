"""SynFlow: weights that carry much of the flow through the network are kept; without data, before any training.

    score = |w · dR/dw| at w = |w_i|      R = the sum of the answers to an input of ones

Source: Tanaka, Kunin, Yamins & Ganguli 2020. In a ReLU network without biases the scores into a unit sum up to
those out of it, and those of every layer to R, so that no layer is emptied while another has weights to give.
That holds where the score is asked again after every few weights (the paper: 100 rounds, densities falling
exponentially, global scope), with `masks` the last round's.
Departs: pruned weights count as zero whatever `initial` holds there; biases and norms are as the probe has them,
where the authors take their absolute values too (the same for zero biases and for norms at the start). In
float64, since R grows with depth and width beyond what float32 resolves.
"""

import torch

from prunus.nouns import Evidence, Scores
from prunus.pruning.criteria.parts import derivative, initial_of, leaves, masks_of, probe_of

NAME = "synflow"


@torch.enable_grad()
def synflow(evidence: Evidence) -> Scores:
    """|w · dR/dw| of every weight, float64; of the probe only the network and the shape of an input are used.

    Raises EvidenceError where the initial weights or the probe are missing, ModelError naming a layer that the
    forward pass does not reach.

    >>> import torch
    >>> from prunus.nouns import Probe
    >>> probe = Probe(lambda weights, x: x @ weights["fc"].T, torch.zeros(1, 1), torch.tensor([0]))
    >>> initial = {"fc": torch.tensor([[2.0], [-3.0]])}
    >>> synflow(Evidence(initial, initial=initial, probe=probe))["fc"].flatten().tolist()
    [2.0, 3.0]
    """
    initial, masks, probe = initial_of(evidence, NAME), masks_of(evidence, NAME), probe_of(evidence, NAME)
    weights = leaves({name: torch.where(masks[name], w.abs().double(), 0.0) for name, w in initial.items()})
    ones = torch.ones_like(probe.inputs[:1], dtype=torch.float64)
    slopes = derivative(probe.answer(weights, ones).sum(), weights)
    return {name: (weight.detach() * slopes[name]).abs() for name, weight in weights.items()}
