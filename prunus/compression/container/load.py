"""Give the module back: a built-in model by the name in the file, or the user's own."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.compression.container.read import arguments_of, file_bytes, unpack
from prunus.errors import ModelMismatchError, PrunusError
from prunus.modules import check_initialized


def load(
    path: str | os.PathLike[str], into: nn.Module | None = None, max_bytes: int | None = None
) -> nn.Module:
    """The model whose weights are in the file at `path`, in evaluation mode where it is built here.

    With `into`, the weights are copied into that module, which is returned; its mode stays. Raises
    ModelMismatchError where the file is for another model, with the names and shapes that differ, or has two values for what
    is one tensor in `into`; ModelError where `into` is no module, or has tensors without values (lazy, on the meta
    device); `max_bytes` and other errors as `unpack`. A module that is built here consists of the tensors that were
    read and takes no more memory.
    """
    if into is not None:
        check_initialized(into)
    header, state = unpack(file_bytes(path, max_bytes), max_bytes)
    module = _build(os.fspath(path), header) if into is None else into
    _compare(os.fspath(path), module, state)
    if into is not None:
        _check_shared(os.fspath(path), module, state)
        module.load_state_dict(state)
        return module
    # A module that was built here has no memory yet: the tensors that were read become its own.
    module.load_state_dict(state, assign=True)
    if any(tensor.is_meta for tensor in module.buffers()):  # buffers that are not part of the state_dict
        module = _build(os.fspath(path), header, device="cpu")
        module.load_state_dict(state)
    return module.eval()


def _build(path: str, header: Mapping[str, object], device: str = "meta") -> nn.Module:
    """The built-in model that a header names; on the meta device, its arguments cannot demand too much memory."""
    from prunus.models import MODELS

    named = arguments_of(header)
    if named is None or named[0] not in MODELS:
        what = (
            "names no built-in model"
            if named is None
            else f"names the model {named[0]!r}, which is not built in"
        )
        raise ModelMismatchError(f"{path} {what}; pass the module to fill as into=.")
    name, arguments = named
    try:
        with torch.device(device):
            return MODELS[name](**arguments)
    except PrunusError:
        raise
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
        LookupError,
        AttributeError,
        MemoryError,
    ) as error:
        raise ModelMismatchError(
            f"{path} asks for {name} with {arguments}, which cannot be built: {error}."
        ) from error


def _compare(path: str, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """ModelMismatchError unless names, shapes and dtypes are the same on both sides."""
    wanted = module.state_dict()
    missing, unexpected = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    differing = [
        f"{printable(name)} ({_kind(state[name])} in the file, {_kind(wanted[name])} in the model)"
        for name in wanted.keys() & state.keys()
        if _kind(state[name]) != _kind(wanted[name])
    ]
    found = [
        f"{what}: {', '.join(map(printable, sorted(names)))}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("differing", differing))
        if names
    ]
    if found:
        raise ModelMismatchError(
            f"{path} is for another model than {type(module).__name__}; {'; '.join(found)}."
        )


def _check_shared(path: str, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """ModelMismatchError where one tensor of `module` would have to hold two different tensors of the file."""
    names: dict[tuple[object, ...], str] = {}
    for name, tensor in module.state_dict().items():
        # Sparse tensors, empty ones, and those on a device that gives no address have no place in memory to compare.
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.data_ptr():
            continue
        first = names.setdefault((tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        if not torch.equal(_bits(state[first]), _bits(state[name])):
            raise ModelMismatchError(
                f"{path} has different values for {printable(first)} and {printable(name)}, which are one tensor in "
                f"the {type(module).__name__}; load it into a module in which they are two."
            )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def printable(name: str) -> str:
    """A name for a message: as it is, or quoted with escapes where it has characters that a terminal may obey.

    >>> printable("fc1.weight"), printable("\\x1b[2J")
    ('fc1.weight', "'\\\\x1b[2J'")
    """
    return name if name.isprintable() else repr(name)


def _kind(tensor: object) -> str:
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
