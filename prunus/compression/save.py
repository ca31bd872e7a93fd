"""Write a compressed network, or any module, into one file."""

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from torch import nn

from prunus.compression.container import Coding, write
from prunus.compression.deep_compression import Compressed
from prunus.generators import Generated


def save(
    network: Compressed | nn.Module,
    path: str | os.PathLike[str],
    *,
    coding: Coding | None = None,
    made: Mapping[str, Any] | None = None,
    generated: Mapping[str, Generated] | None = None,
    factors: Mapping[str, float] | None = None,
) -> int:
    """Write `network` to `path` and return the file's size in bytes.

    The file holds every parameter and buffer bit for bit; zeros and repeated values are what makes it small, so
    that any module may be saved. A built-in model comes back by `load(path)`, any other by
    `load(path, into=module)`. `made` goes into the header as it is (JSON). Weights in
    `generated` are stored as a seed and a mask, as `pack` explains: a supermask is little more than its mask.
    A file that exists is replaced, once the new one is complete.

    Raises NotFiniteError, ContainerError (a kind of tensor that cannot be stored), OutputError (a full disk; a path
    that is a folder or a device).
    """
    if isinstance(network, nn.Module):
        model, about, coding = network, {}, coding or Coding()
    else:
        model, about, coding = network.model, summary(network), coding or network.recipe.coding
    libraries = {name: version(name) for name in ("prunus", "torch", "numpy", "constriction")}
    built_in = getattr(model, "built_in", None)
    return write(
        path,
        model.state_dict(),
        model=built_in,
        made={**libraries, **about, **(made or {})},
        coding=coding,
        generated=generated,
        factors=factors,
    )


def summary(compressed: Compressed) -> dict[str, Any]:
    """How a network was compressed, for the file's header: the recipe without its training details, the seed."""
    names = ("criterion", "scope", "schedule", "rounds", "density", "bits", "start")
    settings = {name: _plain(getattr(compressed.recipe, name)) for name in names}
    return {"recipe": settings, "seed": _plain(compressed.seed)}


def _plain(value: Any) -> Any:
    """`value` with Python's own numbers and dicts, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if hasattr(value, "item") else value
