"""The content of a file of tensors or masks in the directory of a run: safetensors with a digest and metadata."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from prunus.errors import StoreError
from prunus.masks import pack_mask, unpack_mask
from prunus.runs.content import ZEROS, is_intact, seal
from prunus.types import MaskDict, Params

_HEADER_SIZE_BYTES = 8


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None) -> bytes:
    """Return the content of a file of tensors.

    Args:
        tensors: Tensors of any device and layout.
        metadata: Values that JSON has a form for.

    Returns:
        The content of the file, with its digest.
    """
    # Cloned, because safetensors refuses tensors that share memory.
    copies = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
    return _encode(copies, {"metadata": metadata, "names": list(tensors)})


def masks_to_bytes(masks: MaskDict) -> bytes:
    """Return the content of a file of masks, with one bit per weight."""
    empty = torch.zeros(0, dtype=torch.bool)
    flat = torch.cat([empty, *(mask.detach().cpu().reshape(-1) for mask in masks.values())])
    shapes = [[key, *mask.shape] for key, mask in masks.items()]
    return _encode({"bits": pack_mask(flat)}, {"metadata": None, "masks": shapes})


def tensors_from_bytes(content: bytes, path: Path) -> tuple[Params, dict[str, Any]]:
    """Return the tensors of a file, and what was written about them.

    Args:
        content: The content of the file.
        path: The file, which is named in errors.

    Returns:
        The tensors; and `metadata`, with the `names` of the tensors in order, or the shapes of the `masks`.

    Raises:
        StoreError: The content is not what was written.
    """
    if not is_intact(content):
        raise StoreError(f"{path} is damaged: its content does not have the digest written with it.")
    try:
        end = _HEADER_SIZE_BYTES + int.from_bytes(content[:_HEADER_SIZE_BYTES], "little")
        header = json.loads(content[_HEADER_SIZE_BYTES:end])
        return safetensors.torch.load(content), json.loads(header["__metadata__"]["prunus"])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error


def masks_from_bits(bits: Tensor, named_shapes: Sequence[Sequence[Any]]) -> MaskDict:
    """Return the masks of a file.

    Args:
        bits: The tensor "bits" of the file.
        named_shapes: The name and the shape of each mask, as `tensors_from_bytes` returned them.

    Returns:
        The masks by name.
    """
    shapes = {key: torch.Size(shape) for key, *shape in named_shapes}
    sizes = [shape.numel() for shape in shapes.values()]
    parts = torch.split(unpack_mask(bits, [sum(sizes)]), sizes)
    layers = zip(shapes.items(), parts, strict=True)
    return {key: part.reshape(shape).clone() for (key, shape), part in layers}


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of tensors: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[: len(ZEROS)]


def _encode(tensors: Params, about: Mapping[str, Any]) -> bytes:
    metadata = {"digest": ZEROS, "prunus": json.dumps(about, separators=(",", ":"))}
    return seal(safetensors.torch.save(tensors, metadata))
