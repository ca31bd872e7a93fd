"""Han's threshold: a layer keeps what is larger than a multiple of its own standard deviation.

    keep |w| > quality · σ(w)

Source: Han et al. 2015, section 3.1 ("a quality parameter multiplied by the standard deviation of a layer's
weights").

It says *how many* each layer keeps, and so it is written as a density a layer, to be handed to the `layer`
scope: the same weights, with the counts known beforehand.
"""

from collections.abc import Mapping

from prunus.errors import DensityError
from prunus.types import Params


def densities_from_threshold(weights: Params, quality: float | Mapping[str, float]) -> dict[str, float]:
    """The density of each tensor at |w| > quality x standard deviation (of the population), in [0, 1].

    Raises DensityError where nothing of a tensor would be left, or quality is negative.

    >>> import torch
    >>> densities_from_threshold({"fc": torch.tensor([1.0, -1.0, 3.0, -3.0])}, 1.0)
    {'fc': 0.5}
    """
    result = {}
    for name, weight in weights.items():
        q = quality if isinstance(quality, float | int) else quality[name]
        if q < 0:
            raise DensityError(f"Quality {q} was asked for {name!r}; it must not be negative.")
        kept = int((weight.detach().abs() > q * weight.detach().std(correction=0)).sum())
        if kept == 0:
            raise DensityError(
                f"Quality {q} leaves no weight of {name!r}: the largest is "
                f"{float(weight.detach().abs().max()):.4g}, the standard deviation "
                f"{float(weight.detach().std(correction=0)):.4g}; lower the quality."
            )
        result[name] = kept / weight.numel()
    return result
