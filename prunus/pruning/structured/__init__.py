"""Structured pruning: the removal of whole neurons and filters."""
