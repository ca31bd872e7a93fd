"""Structured pruning: remove whole neurons and filters."""

from prunus.pruning.structured.removal import DeadNeurons, dead_neurons, remove_dead_neurons

__all__ = ["DeadNeurons", "dead_neurons", "remove_dead_neurons"]
