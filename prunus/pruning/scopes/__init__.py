"""Scopes: which weights are ranked together, and in which pattern they are pruned.

    Layer()               each tensor alone, single weights                     "layer"
    Global()              all tensors together, single weights                  "global"
    NByM(2, 4)            exactly N of every M neighboring inputs               "2:4"
    Block(1, 4)           each tensor alone, blocks of rows × columns           "1x4"

A scope is a value. `counts` gives the number of weights that it keeps by arithmetic on shapes alone, and `select` the
masks, which keep exactly that many. Ties are broken at random by the seed.
"""

import re
from collections.abc import Callable

from prunus.errors import DensityError, UnknownNameError
from prunus.pruning.scopes.function_scope import FunctionScope
from prunus.pruning.scopes.patterns import Block, NByM
from prunus.pruning.scopes.scope import Global, Layer, Scope, Shapes, shapes_of
from prunus.registry import lookup
from prunus.types import MaskDict

__all__ = [
    "SCOPES",
    "Block",
    "FunctionScope",
    "Global",
    "Layer",
    "NByM",
    "Scope",
    "Shapes",
    "parse_scope",
    "shapes_of",
]

SCOPES: dict[str, Scope] = {
    "layer": Layer(),
    "global": Global(),
    "2:4": NByM(2, 4),
    "4:8": NByM(4, 8),
    "1x4": Block(1, 4),
}
"""Other N:M patterns and blocks have names too, see `parse_scope`."""


def parse_scope(scope: str | Scope | Callable[..., MaskDict]) -> Scope:
    """The scope of a name, "layer", "global", "N:M" or "ROWSxCOLUMNS"; a scope is returned as it is.

    Args:
        scope: A name, a scope, or a function (scores, density, within, seed) -> masks.

    Returns:
        The scope as a value.

    Raises:
        UnknownNameError: There is no scope of this name.
        DensityError: The name describes an impossible pattern, such as 5:4, or the scope is none of these.

    >>> parse_scope("1:3"), parse_scope("4x4")
    (NByM(n=1, m=3), Block(rows=4, columns=4))
    """
    if isinstance(scope, Scope):
        return scope
    if not isinstance(scope, str):
        if not callable(scope):
            raise DensityError(f"Expected a scope: a name, a function or a scope value, got {scope!r}.")
        return FunctionScope(scope)
    # At most nine digits: no layer has more rows or columns.
    if match := re.fullmatch(r"([0-9]{1,9})([:x])([0-9]{1,9})", scope):
        make = NByM if match[2] == ":" else Block
        return make(int(match[1]), int(match[3]))
    try:
        return lookup("scope", SCOPES, scope)
    except UnknownNameError as error:
        raise UnknownNameError(
            f"{error} Patterns N:M, such as 1:4, and blocks ROWSxCOLUMNS, such as 4x4, are scopes too."
        ) from None
