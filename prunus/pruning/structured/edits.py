"""Changes of a model that a file stores besides its tensors: attributes of modules, and layers that are removed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.pruning.structured.attention import PrunedMultiheadAttention, can_lose_heads


class RemovedLayer(nn.Module):
    """Takes the place of a layer of a residual block that was removed, and returns zero, which is added to x."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """A zero without dimensions, of the dtype and on the device of the first tensor among the arguments."""
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        return tensors[0].new_zeros(()) if tensors else torch.zeros(())


def set_data(tensor: Tensor, data: Tensor) -> None:
    """Give a tensor data of another shape, in place.

    A graph of an earlier backward pass may still hold the node that accumulates the gradient, with the old shape. Data
    of another dtype in between makes torch drop that node; hooks of the tensor are kept.

    Args:
        tensor: A parameter or another tensor.
        data: Its new data.
    """
    other = torch.float16 if tensor.dtype != torch.float16 else torch.float32
    if tensor.requires_grad:
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = data


def select_indices(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """A tensor with only some indices of dimensions, in the same memory format.

    Args:
        tensor: Any tensor.
        dims: The indices that are kept, by dimension.

    Returns:
        A new tensor without a gradient.
    """
    result = tensor.detach()
    for dim, indices in sorted(dims.items()):
        result = result.index_select(dim, indices.to(result.device))
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not tensor.is_contiguous():
        return result.contiguous(memory_format=torch.channels_last)
    return result


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set attributes of modules.

    Args:
        model: The model.
        attributes: The value by module name and attribute. A list becomes a tuple. A dict contains the indices that a
            tensor keeps, by dimension. None removes the layer.
    """
    for path, values in sorted(attributes.items(), reverse=True):  # modules before those that contain them
        module = model.get_submodule(path)
        for name, value in values.items():
            if isinstance(value, dict):
                tensor = getattr(module, name)
                all_indices = {int(dim): torch.tensor(indices) for dim, indices in value.items()}
                changed = {dim: i for dim, i in all_indices.items() if tensor.shape[dim] != len(i)}
                set_data(tensor, select_indices(tensor, changed))
            elif value is None:
                setattr(module, name, RemovedLayer())
            else:
                setattr(module, name, tuple(value) if isinstance(value, list) else value)
        if values and can_lose_heads(module):
            module.__class__ = PrunedMultiheadAttention
            attention: Any = module
            attention._qkv_same_embed_dim = False  # keeps the fused path of TransformerEncoderLayer off


def merge_edits(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The edits of two removals, one after the other, as those of one; those of removed modules are left out.

    Args:
        before: The edits of the first.
        after: The edits of the second.

    Returns:
        The value by module name and attribute.

    >>> merge_edits({"a": {"k": {"0": [0, 2, 5]}}}, {"a": {"k": {"0": [1, 2]}}, "b": {"n": 3}})
    {'a': {'k': {'0': [2, 5]}}, 'b': {'n': 3}}
    """
    merged: dict[str, dict[str, Any]] = {path: dict(values) for path, values in before.items()}
    for path, values in after.items():
        attributes = merged.setdefault(path, {})
        for name, value in values.items():
            old = attributes.get(name)
            if isinstance(value, dict) and isinstance(old, dict):
                value = old | {
                    dim: [old[dim][i] for i in indices] if dim in old else indices
                    for dim, indices in value.items()
                }
            attributes[name] = value
    removed = removed_prefixes(merged)
    return {path: values for path, values in merged.items() if not f"{path}.".startswith(removed)}


def removed_prefixes(edits: Mapping[str, Mapping[str, object]]) -> tuple[str, ...]:
    """The beginnings of the names of the tensors of layers that edits remove.

    Args:
        edits: The value by module name and attribute, None for a layer that is removed.

    Returns:
        The path of each such layer, with a dot at the end.
    """
    return tuple(
        f"{path}.{name}.".lstrip(".")
        for path, values in edits.items()
        for name, value in values.items()
        if value is None
    )
