"""A state_dict as a safetensors file, or a named error where that format cannot hold it."""

from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from prunus.errors import ContainerError

RESERVED_NAME = "__metadata__"
"""The key of a safetensors header that is no tensor."""


def to_safetensors(state: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file of these tensors.

    Raises:
        ContainerError: A tensor has the reserved name, or a dtype that the installed version of safetensors does not
            hold.

    >>> import torch
    >>> from safetensors.torch import load
    >>> load(to_safetensors({"w": torch.ones(2)}))
    {'w': tensor([1., 1.])}
    """
    if RESERVED_NAME in state:
        raise ContainerError(
            f"Expected names that a safetensors file can hold, got {RESERVED_NAME!r}, which that format reserves; "
            "rename the tensor, or read the file with prunus.read."
        )
    try:
        return bytes(save(dict(state), {"format": "pt"}))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ContainerError(
            f"A safetensors file cannot hold these tensors: {error}; read the file with prunus.read instead."
        ) from error
