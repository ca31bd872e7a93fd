"""Global: all tensors are ranked together, so that layers with low scores give more.

Source: Frankle & Carbin 2019, section 4 (deep networks); Liu et al. 2019, section 3.
"""

import torch

from prunus.errors import DensityError
from prunus.pruning.masks import check_density, check_finite, num_to_keep, top_k, warn_if_empty
from prunus.seeds import make_generator
from prunus.types import Density, MaskDict, Scores


def global_(scores: Scores, density: Density, within: MaskDict | None = None, seed: int = 0) -> MaskDict:
    """Keep count(density, n) weights of all tensors together, the highest scores first.

    Arguments and errors as for `layer`; `density` is one number.

    >>> import torch
    >>> global_({"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([3.0, 2.0])}, 0.5)
    {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    if not isinstance(density, float | int):
        raise DensityError(
            f"The global scope ranks everything together and takes one density, not {density}."
        )
    check_density(density)
    check_finite(scores, "The score of")
    total = sum(score.numel() for score in scores.values())
    kept = num_to_keep(density, total)
    flat = torch.cat([score.flatten() for score in scores.values()])
    if within is not None:
        places = torch.cat([within[name].flatten() for name in scores]).nonzero().squeeze(1)
        if kept > len(places):
            raise DensityError(
                f"Density {density} means {kept} weights, but only {len(places)} of {total} are left; "
                "a pruned weight does not come back."
            )
        mask = torch.zeros_like(flat, dtype=torch.bool)
        mask[places] = top_k(flat[places], kept, make_generator(seed, "ties"))
    else:
        mask = top_k(flat, kept, make_generator(seed, "ties"))
    pieces = torch.split(mask, [score.numel() for score in scores.values()])
    masks = {name: piece.reshape(scores[name].shape) for name, piece in zip(scores, pieces, strict=True)}
    warn_if_empty(masks)
    return masks
