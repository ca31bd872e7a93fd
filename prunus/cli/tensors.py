"""Tensors as a safetensors file: tied ones once, and what such a file cannot hold as one sentence."""

import json
from collections.abc import Iterable, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from prunus.errors import ModelError


def tied_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Each name whose tensor is the same memory as that of an earlier name, with the first such name.

    >>> import torch
    >>> weight = torch.ones(2)
    >>> tied_names({"encoder": weight, "bias": torch.ones(2), "decoder": weight})
    {'decoder': 'encoder'}
    """
    first: dict[object, str] = {}
    tied = {}
    for name, tensor in state.items():
        # Sparse tensors, empty ones, and those on a device that gives no address have no place in memory to compare.
        if tensor.layout != torch.strided or not tensor.data_ptr():
            continue
        memory = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if memory in first:
            tied[name] = first[memory]
        else:
            first[memory] = name
    return tied


def missing_names(wanted: Mapping[str, Tensor], found: Iterable[str]) -> list[str]:
    """The names of `wanted` that are not in `found`, and are not tied to one that is."""
    tied, found = tied_names(wanted), set(found)
    there = {tied.get(name, name) for name in found}
    return [name for name in wanted if name not in found and tied.get(name, name) not in there]


def safetensors_bytes(state: Mapping[str, Tensor]) -> bytes:
    """The safetensors file of `state`. Each of several tied tensors is stored once, under its first name.

    The other names are in the metadata, each with the first name, as `safetensors.torch.save_model` writes them and
    `safetensors.torch.load_model` reads them.

    Raises:
        ModelError: A tensor is of a kind, or has a name, that a safetensors file cannot hold.
    """
    try:
        tied = {name: first for name, first in tied_names(state).items() if name != "format"}
        # Copies, because safetensors refuses tensors that overlap in memory.
        tensors = {
            name: tensor.detach().cpu().clone().contiguous()
            for name, tensor in state.items()
            if name not in tied
        }
        if "__metadata__" in state:
            raise ValueError("the name __metadata__ is reserved")
        return _with_sorted_metadata(save(tensors, {"format": "pt", **tied}))
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"The tensors cannot be written as a safetensors file: {error}.") from error


def _with_sorted_metadata(content: bytes) -> bytes:
    """The same file with its metadata in order, which safetensors writes in another order every time."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[start:]
