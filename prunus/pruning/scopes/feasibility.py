"""Whether a scope can give the densities of a schedule: known from shapes alone, before anything is trained."""

import warnings
from collections.abc import Sequence

import torch

from prunus.errors import EmptyLayerWarning
from prunus.pruning.scopes.layer import Scope
from prunus.types import Density, MaskDict, Params


def check_densities_reachable(
    scope: Scope, weights: Params, densities: Sequence[Density], within: MaskDict | None = None
) -> None:
    """Select as often as there are densities, each time within the masks before, from scores that mean nothing.

    Raises what the scope raises.

    >>> from prunus.pruning.scopes import n_m
    >>> check_densities_reachable(n_m(2, 4), {"fc": torch.zeros(3, 8)}, [0.7, 0.5])
    Traceback (most recent call last):
    prunus.errors.DensityError: Density 0.7 was asked for 'fc', but 2:4 keeps exactly 0.5 of every layer it prunes; ...
    """
    scores = {
        name: torch.arange(w.numel(), dtype=torch.float32, device=w.device).reshape(w.shape)
        for name, w in weights.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyLayerWarning)  # what these scores empty means nothing either
        for density in densities:
            within = scope(scores, density, within)
