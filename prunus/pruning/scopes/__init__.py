"""Scopes: scores and a density -> masks. What is ranked together, and the shape of a hole. A file a scope."""

import re

from prunus.errors import UnknownNameError
from prunus.pruning.scopes.block import block
from prunus.pruning.scopes.global_ import global_
from prunus.pruning.scopes.layer import Scope, layer
from prunus.pruning.scopes.n_m import n_m
from prunus.pruning.scopes.rehearse import rehearse
from prunus.pruning.scopes.threshold import threshold
from prunus.tables import look_up

SCOPES: dict[str, Scope] = {
    "layer": layer,
    "global": global_,
    "2:4": n_m(2, 4),
    "4:8": n_m(4, 8),
    "1x4": block(1, 4),
}
"""Other N:M and blocks have names too: see `scope_named`."""


def scope_named(name: str) -> Scope:
    """The scope of SCOPES, or the one that "N:M" or "ROWSxCOLUMNS" describes.

    Raises UnknownNameError, or DensityError where there is no such pattern.

    >>> import torch
    >>> scope_named("1:3")({"fc": torch.tensor([[3.0, 1.0, 2.0]])}, 1 / 3)
    {'fc': tensor([[ True, False, False]])}
    """
    if name in SCOPES:
        return SCOPES[name]
    if pattern := n_m_of(name):
        return n_m(*pattern)
    if shape := block_of(name):
        return block(*shape)
    try:
        return look_up("scope", SCOPES, name)
    except UnknownNameError as error:
        raise UnknownNameError(
            f"{error} Patterns N:M, as 1:4, and blocks ROWSxCOLUMNS, as 4x4, are scopes too."
        ) from None


def hole(name: str) -> int:
    """How many weights go at once under the scope of this name: those of a block, else one.

    >>> hole("4x4"), hole("2:4")
    (16, 1)
    """
    rows, columns = block_of(name) or (1, 1)
    return rows * columns


def n_m_of(name: str) -> tuple[int, int] | None:
    """N and M of a scope of that kind, else None.

    >>> n_m_of("2:4"), n_m_of("layer")
    ((2, 4), None)
    """
    return _two_numbers(":", name)


def block_of(name: str) -> tuple[int, int] | None:
    """Rows and columns of the blocks of a scope of that kind, else None.

    >>> block_of("1x4"), block_of("2:4")
    ((1, 4), None)
    """
    return _two_numbers("x", name)


def _two_numbers(between: str, name: str) -> tuple[int, int] | None:
    found = re.fullmatch(rf"([0-9]{{1,9}}){between}([0-9]{{1,9}})", name)  # no layer has more of either
    return (int(found[1]), int(found[2])) if found else None


__all__ = [
    "SCOPES", "Scope", "block", "block_of", "global_", "hole", "layer", "n_m", "n_m_of", "rehearse", "scope_named",
    "threshold",
]  # fmt: skip
