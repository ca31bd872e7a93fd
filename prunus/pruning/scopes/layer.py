"""Layer: each tensor is ranked alone and keeps its own share.

Source: Han et al. 2015, section 3.1 (a threshold a layer); Frankle & Carbin 2019, section 2.
Also called: local, layer-wise, uniform (where the densities are equal).
"""

from collections.abc import Callable

import torch

from prunus.errors import DensityError
from prunus.pruning.masks import check_finite, densities_by_name, num_to_keep, top_k, warn_if_empty
from prunus.seeds import make_generator
from prunus.types import Density, MaskDict, Scores

Scope = Callable[..., MaskDict]
"""(scores, density, within=None, seed=0) -> masks."""


def layer(scores: Scores, density: Density, within: MaskDict | None = None, seed: int = 0) -> MaskDict:
    """Keep count(density, n) weights of every tensor, the highest scores first.

    Args:
        scores: one tensor of any shape a layer.
        density: the share of *all* weights of a tensor to keep, in (0, 1]; one, or one a name.
        within: earlier masks; what they pruned stays pruned.
        seed: for ties at the border.

    Raises DensityError (out of range, unknown name, more than `within` has left), NonFiniteError.

    >>> import torch
    >>> layer({"fc": torch.tensor([3.0, 1.0, 2.0, 4.0])}, 0.5)
    {'fc': tensor([ True, False, False,  True])}
    """
    check_finite(scores, "The score of")
    masks = {}
    for name, share in densities_by_name(density, list(scores)).items():
        flat, kept = scores[name].flatten(), num_to_keep(share, scores[name].numel())
        places = slice(None) if within is None else within[name].flatten().nonzero().squeeze(1)
        if within is not None and kept > len(flat[places]):
            raise DensityError(
                f"Density {share} of {name!r} means {kept} weights, but only {len(flat[places])} of "
                f"{flat.numel()} are left; a pruned weight does not come back."
            )
        mask = torch.zeros_like(flat, dtype=torch.bool)
        mask[places] = top_k(flat[places], kept, make_generator(seed, "ties", name))
        masks[name] = mask.reshape(scores[name].shape)
    warn_if_empty(masks)
    return masks
