"""Whether a density leaves anything to share: known from the sizes alone, before any work."""

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context

from prunus.errors import DensityError
from prunus.pruning.masks import densities_by_name, num_to_keep
from prunus.pruning.scopes import weights_per_block
from prunus.types import Density, Params, numel_by_name


def check_densities_nonempty(density: Density, scope: str, weights: Params) -> None:
    """Raise DensityError where `density` rounds to no weight (or block) of a tensor, or of all if ranked together.

    >>> import torch
    >>> check_densities_nonempty({"a": 0.5, "b": 0.01}, "layer", {"a": torch.ones(4), "b": torch.ones(40)})
    Traceback (most recent call last):
    prunus.errors.DensityError: Density 0.01 keeps none of the 40 weights of 'b'; 0.0125 is the smallest that keeps one.
    """
    shares, totals = densities_by_name(density, list(weights)), numel_by_name(weights)
    at_once = weights_per_block(scope)
    what = "weights" if at_once == 1 else f"blocks of {scope}"
    named = {f"{what} of {name!r}": (shares[name], totals[name] // at_once) for name in weights}
    if scope == "global" and not isinstance(density, Mapping):
        named = {"weights of all layers together": (density, sum(totals.values()))}
    for what, (share, total) in named.items():
        if total == 0:
            raise DensityError(f"There are no {what}, which is smaller than one; choose smaller blocks.")
        if num_to_keep(share, total) == 0:
            raise DensityError(
                f"Density {share:g} keeps none of the {total} {what}; {_smallest(total):g} is the smallest that "
                "keeps one."
            )


def _smallest(total: int) -> float:
    """The density that keeps one of `total` weights, 1 / 2n, rounded up to four figures."""
    return float(Context(prec=4, rounding=ROUND_CEILING).divide(1, 2 * total))
