"""Layer by layer: prune one layer, retrain, go on to the next, from the input to the output.

    d_t[l] = d[l] for the layers up to t, 1 for those to come

Source: Han et al. 2015, section 3.3 (layers pruned in turn, the others held, against vanishing gradients).
"""

from collections.abc import Mapping

from prunus.errors import DensityError
from prunus.pruning.density import check_density
from prunus.types import Density


def layer_by_layer(target: Density, rounds: int = 0) -> list[Density]:
    """One round a layer, in the order of `target`, which must name its layers.

    `rounds` may be 0 or the number of layers; anything else is a DensityError.

    >>> layer_by_layer({"a": 0.1, "b": 0.2})
    [{'a': 0.1, 'b': 1.0}, {'a': 0.1, 'b': 0.2}]
    """
    if not isinstance(target, Mapping):
        raise DensityError(f"Pruning layer by layer needs a density a layer, by name, not {target}.")
    if rounds not in (0, len(target)):
        raise DensityError(
            f"{rounds} rounds were asked, but layer by layer takes one for each of {list(target)}."
        )
    for name, density in target.items():
        check_density(density, name)
    names = list(target)
    return [
        {name: target[name] if place <= done else 1.0 for place, name in enumerate(names)}
        for done in range(len(names))
    ]
