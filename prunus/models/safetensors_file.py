"""Tensors as the bytes of a safetensors file, and the names of tied tensors."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from prunus.errors import ModelError


def tied_names(state: Mapping[str, object]) -> dict[str, str]:
    """Map each name whose tensor shares the memory of an earlier tensor to the first name of that memory.

    >>> import torch
    >>> weight = torch.ones(2)
    >>> tied_names({"encoder": weight, "bias": torch.ones(2), "decoder": weight})
    {'decoder': 'encoder'}
    """
    first: dict[object, str] = {}
    tied = {}
    for name, tensor in state.items():
        # Sparse tensors, empty ones, and those on a device without addresses have no place in memory to compare.
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.data_ptr():
            memory = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
            if first.setdefault(memory, name) != name:
                tied[name] = first[memory]
    return tied


def tied_pairs(state: Mapping[str, object], names: Iterable[str]) -> list[tuple[str, str]]:
    """The names that are one tensor in a state_dict, each after the first of them.

    Args:
        state: Tensors by name, for example of a model.
        names: Names that are present, for example in a file, in any order.

    Returns:
        Pairs of `names`; no pair for the first name of a tensor.

    >>> weight = torch.ones(2)
    >>> tied_pairs({"encoder": weight, "decoder": weight, "bias": torch.ones(2)}, ["decoder", "encoder", "bias"])
    [('decoder', 'encoder')]
    """
    tied = tied_names(state)
    firsts: dict[str, str] = {}
    pairs = [(firsts.setdefault(tied.get(name, name), name), name) for name in names]
    return [(first, name) for first, name in pairs if first != name]


def missing_names(state: Mapping[str, Tensor], names: Iterable[str]) -> list[str]:
    """The names of `state` that are not in `names` and are not tied to one that is.

    Args:
        state: Tensors by name, for example a `state_dict`.
        names: Names that are present, for example in a file.

    Returns:
        The missing names, in the order of `state`.
    """
    tied, present = tied_names(state), set(names)
    first_present = {tied.get(name, name) for name in present}
    return [name for name in state if name not in present and tied.get(name, name) not in first_present]


def safetensors_bytes(state: Mapping[str, Any]) -> bytes:
    """The content of a safetensors file with the tensors of `state`; each of several tied tensors is stored once.

    The other names of a tied tensor are in the metadata, each with the first name, as `safetensors.torch.save_model`
    writes them and `safetensors.torch.load_model` reads them. The same tensors give the same bytes.

    Raises:
        ModelError: A tensor is of a kind, or has a name, that a safetensors file cannot hold.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"Expected tensors alone for a safetensors file, but {name!r} is a {type(value).__name__}; write a "
                ".prunus file, which holds the extra state of modules too."
            )
    try:
        tied = {name: first for name, first in tied_names(state).items() if name != "format"}
        # Copies, because safetensors refuses tensors that overlap in memory.
        untied = {name: tensor for name, tensor in state.items() if name not in tied}
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in untied.items()}
        if "__metadata__" in state:
            raise ValueError("the name __metadata__ is reserved")
        return _with_sorted_metadata(save(tensors, {"format": "pt", **tied}))
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"The tensors cannot be written as a safetensors file: {error}.") from error


def _with_sorted_metadata(content: bytes) -> bytes:
    """The same file with sorted metadata, which safetensors writes in another order every time."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[start:]
