"""Write a compressed network, or any module, into one file."""

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunus.compression.container import EncodingConfig, write
from prunus.compression.container.file_format import DTYPES, INTEGERS
from prunus.compression.deep_compression import Compressed
from prunus.errors import ModelError
from prunus.seeded_tensors import SeededTensor


def save(
    network: Compressed | nn.Module,
    path: str | os.PathLike[str],
    *,
    coding: EncodingConfig | None = None,
    made: Mapping[str, Any] | None = None,
    generated: Mapping[str, SeededTensor] | None = None,
    factors: Mapping[str, float] | None = None,
) -> int:
    """Write `network` to `path` and return the file's size in bytes.

    The file holds every parameter and buffer bit for bit, except that -0.0 is written as the 0.0 that it equals: a
    weight times a mask is -0.0 in about half of the pruned places, and their signs would take more bytes than the
    positions of all other weights. How many there were is in the header, as "negative_zeros_cleared"; `container.write`
    keeps them. Zeros and repeated values are what makes a file small, so that any module may be saved. A built-in model
    comes back by `load(path)`, any other by `load(path, into=module)`. `made` goes into the header as it is (JSON).
    Weights in
    `generated` are stored as a seed and a mask, as `pack` explains: a supermask is little more than its mask.
    A file that exists is replaced, once the new one is complete.

    Raises ModelError (no module), NonFiniteError, ContainerError (a kind of tensor that cannot be stored), OutputError
    (a full disk; a path that is a folder or a device).
    """
    if isinstance(network, nn.Module):
        model, about, coding = network, {}, coding or EncodingConfig()
    elif not isinstance(network, Compressed):
        raise ModelError(
            f"Expected a torch.nn.Module or a prunus.Compressed, got a {type(network).__name__}; pass the network "
            "itself."
        )
    else:
        model, about, coding = network.model, compression_metadata(network), coding or network.recipe.coding
    libraries = {name: version(name) for name in ("prunus", "torch", "numpy", "constriction")}
    built_in = getattr(model, "built_in", None)
    state, num_cleared = clear_negative_zeros(model.state_dict())
    cleared = {"negative_zeros_cleared": num_cleared} if num_cleared else {}
    return write(
        path,
        state,
        model=built_in,
        made={**libraries, **about, **cleared, **(made or {})},
        coding=coding,
        generated=generated,
        factors=factors,
    )


def clear_negative_zeros(state: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The same state with 0.0 in the place of every -0.0, and how many there were; no tensor is changed in place.

    >>> clear_negative_zeros({"w": torch.tensor([-0.0, 1.0])})
    ({'w': tensor([0., 1.])}, 1)
    """
    cleared, total = dict(state), 0
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or is_lazy(tensor) or tensor.dtype not in _FLOATS:
            continue
        if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type == "meta":
            continue  # `write` refuses it by name
        bits = tensor.detach().resolve_neg().view(INTEGERS[tensor.dtype.itemsize])
        is_negative_zero = bits == torch.iinfo(bits.dtype).min  # the sign bit alone
        if count := int(is_negative_zero.sum()):
            cleared[name] = torch.where(is_negative_zero, 0, bits).view(tensor.dtype)
            total += count
    return cleared, total


_FLOATS = tuple(dtype for dtype in DTYPES.values() if dtype.is_floating_point)


def compression_metadata(compressed: Compressed) -> dict[str, Any]:
    """How a network was compressed, for the file's header: the recipe without its training details, the seed."""
    names = ("criterion", "scope", "schedule", "rounds", "density", "bits", "start")
    settings = {name: _plain(getattr(compressed.recipe, name)) for name in names}
    return {"recipe": settings, "seed": _plain(compressed.seed)}


def _plain(value: Any) -> Any:
    """`value` with Python's own numbers and dicts, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if hasattr(value, "item") else value
