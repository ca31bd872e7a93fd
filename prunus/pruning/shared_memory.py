"""Which tensors of a model have entries at the same place in memory."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


def names_by_tensor(parameters: Mapping[str, Tensor]) -> dict[int, list[str]]:
    """All names of each tensor, by its id, also those of tensors that share memory with it."""
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    tensors = {id(parameter): parameter for parameter in parameters.values()}
    for first, other in _pairs_that_share_memory(tensors):
        shared_names = sorted({*names[first], *names[other]}, key=list(parameters).index)
        names[first] = names[other] = shared_names
    return names


def _pairs_that_share_memory(tensors: Mapping[int, Tensor]) -> Iterator[tuple[int, int]]:
    """Keys of different tensors of which at least one entry is the same place in memory."""
    spans = sorted(
        (str(tensor.device), *_span(tensor), key)
        for key, tensor in tensors.items()
        # Some devices give no address.
        if not is_lazy(tensor)
        and tensor.layout == torch.strided
        and not tensor.is_meta
        and tensor.numel()
        and tensor.data_ptr()
    )
    for place, (device, _, end, key) in enumerate(spans):
        for other_device, start, _, other in spans[place + 1 :]:
            if other_device != device or start >= end:
                break
            if _share_an_entry(tensors[key], tensors[other]):
                yield key, other


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first address of a tensor's entries and the one after the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _share_an_entry(tensor: Tensor, other: Tensor) -> bool:
    if tensor.element_size() != other.element_size():
        return True
    start = min(tensor.data_ptr(), other.data_ptr())
    offsets = [(part.data_ptr() - start) // tensor.element_size() for part in (tensor, other)]
    length = max(_span(tensor)[1], _span(other)[1]) - start
    used = torch.zeros(length // tensor.element_size(), dtype=torch.bool)
    used.as_strided(tensor.shape, tensor.stride(), offsets[0]).fill_(True)
    return bool(used.as_strided(other.shape, other.stride(), offsets[1]).any())


def is_expanded(tensor: Tensor) -> bool:
    """Whether a dimension of a tensor repeats the same memory, so that torch refuses to set its entries.

    >>> is_expanded(torch.zeros(1).expand(3)), is_expanded(torch.zeros(8).as_strided((2, 3), (3, 2)))
    (True, False)
    """
    if tensor.layout != torch.strided:
        return False
    return any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether several entries of a tensor are one place in memory, as in an expanded tensor.

    >>> overlaps_itself(torch.zeros(1).expand(3)), overlaps_itself(torch.zeros(4, 3).T[:, ::2])
    (True, False)
    """
    span = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < span:
            return True
        span += (size - 1) * stride
    return False
