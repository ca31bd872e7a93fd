"""Scopes: scores and a density -> masks. What is ranked together, and the shape of a hole. A file a scope."""

from collections.abc import Callable

from prunus.nouns import Masks
from prunus.pruning.scopes.global_ import global_
from prunus.pruning.scopes.layer import layer
from prunus.pruning.scopes.threshold import threshold

Scope = Callable[..., Masks]
"""(scores, density, within=None, seed=0) -> masks."""

SCOPES: dict[str, Scope] = {"layer": layer, "global": global_}

__all__ = ["SCOPES", "Scope", "global_", "layer", "threshold"]
