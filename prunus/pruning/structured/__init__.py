"""Structure: which channels hang together, and taking them out without changing the function."""

from prunus.pruning.structured.dead_neurons import DeadNeurons, dead_neurons, remove_dead_neurons
from prunus.pruning.structured.tracing import LayerPair, layer_pairs, layers_without_link

__all__ = [
    "DeadNeurons",
    "LayerPair",
    "dead_neurons",
    "layer_pairs",
    "layers_without_link",
    "remove_dead_neurons",
]
