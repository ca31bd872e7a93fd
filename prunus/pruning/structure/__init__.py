"""Structure: which channels hang together, and taking them out without changing the function."""

from prunus.pruning.structure.chains import Link, layers_without_link, links
from prunus.pruning.structure.dead_neurons import DeadNeurons, dead_neurons, remove_dead_neurons

__all__ = ["DeadNeurons", "Link", "dead_neurons", "layers_without_link", "links", "remove_dead_neurons"]
