"""Scopes: scores and a density -> masks. What is ranked together, and the shape of a hole. A file a scope."""

import re

from prunus.errors import UnknownNameError
from prunus.pruning.scopes.block import block
from prunus.pruning.scopes.feasibility import check_densities_reachable
from prunus.pruning.scopes.global_ import global_
from prunus.pruning.scopes.han_threshold import densities_from_threshold
from prunus.pruning.scopes.layer import Scope, layer
from prunus.pruning.scopes.n_m import n_m
from prunus.registry import lookup

SCOPES: dict[str, Scope] = {
    "layer": layer,
    "global": global_,
    "2:4": n_m(2, 4),
    "4:8": n_m(4, 8),
    "1x4": block(1, 4),
}
"""Other N:M and blocks have names too: see `scope_named`."""


def get_scope(name: str) -> Scope:
    """The scope of SCOPES, or the one that "N:M" or "ROWSxCOLUMNS" describes.

    Raises UnknownNameError, or DensityError where there is no such pattern.

    >>> import torch
    >>> get_scope("1:3")({"fc": torch.tensor([[3.0, 1.0, 2.0]])}, 1 / 3)
    {'fc': tensor([[ True, False, False]])}
    """
    if name in SCOPES:
        return SCOPES[name]
    if pattern := parse_n_m(name):
        return n_m(*pattern)
    if shape := parse_block(name):
        return block(*shape)
    try:
        return lookup("scope", SCOPES, name)
    except UnknownNameError as error:
        raise UnknownNameError(
            f"{error} Patterns N:M, as 1:4, and blocks ROWSxCOLUMNS, as 4x4, are scopes too."
        ) from None


def weights_per_block(name: str) -> int:
    """How many weights go at once under the scope of this name: those of a block, else one.

    >>> weights_per_block("4x4"), weights_per_block("2:4")
    (16, 1)
    """
    rows, columns = parse_block(name) or (1, 1)
    return rows * columns


def parse_n_m(name: str) -> tuple[int, int] | None:
    """N and M of a scope of that kind, else None.

    >>> parse_n_m("2:4"), parse_n_m("layer")
    ((2, 4), None)
    """
    return _two_numbers(":", name)


def parse_block(name: str) -> tuple[int, int] | None:
    """Rows and columns of the blocks of a scope of that kind, else None.

    >>> parse_block("1x4"), parse_block("2:4")
    ((1, 4), None)
    """
    return _two_numbers("x", name)


def _two_numbers(between: str, name: str) -> tuple[int, int] | None:
    found = re.fullmatch(rf"([0-9]{{1,9}}){between}([0-9]{{1,9}})", name)  # no layer has more of either
    return (int(found[1]), int(found[2])) if found else None


__all__ = [
    "SCOPES",
    "Scope",
    "block",
    "check_densities_reachable",
    "densities_from_threshold",
    "get_scope",
    "global_",
    "layer",
    "n_m",
    "parse_block",
    "parse_n_m",
    "weights_per_block",
]  # fmt: skip
