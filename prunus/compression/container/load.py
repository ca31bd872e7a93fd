"""Load a file into a module: a built-in model by the name in the file, or a module of the user."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.compression.container.edits import apply_edits, edits_of
from prunus.compression.container.file_format import as_bytes
from prunus.compression.container.read import named_model, read_bytes, unpack
from prunus.errors import ModelMismatchError, PrunusError
from prunus.modules import check_initialized

_CONSTRUCTION_ERRORS = (
    *(TypeError, ValueError, ArithmeticError, RuntimeError, LookupError, AttributeError, MemoryError),
)
"""What a model that is built from the arguments in a file may raise."""


def load(
    path: str | os.PathLike[str], into: nn.Module | None = None, max_bytes: int | None = None
) -> nn.Module:
    """Return the model whose weights are in the file at `path`.

    Args:
        path: A file that `save` wrote.
        into: The module to copy the weights into; its mode is unchanged. Without it, the built-in model that the
            file names is built, in evaluation mode. It consists of the tensors that were read and takes no more
            memory. If channels were removed from the saved model, `into` is the original module, and becomes as small.
        max_bytes: The most memory that reading may take, in bytes; see `unpack`.

    Returns:
        `into`, or the model that was built.

    Raises:
        ModelMismatchError: The file is for another model (the names and shapes that differ are listed), or has two
            values for what is one tensor in `into`.
        ModelError: `into` is not a module, or has tensors without values (lazy, on the meta device).
        ContainerError: The file cannot be read; see `unpack`.
    """
    if into is not None:
        check_initialized(into)
    header, state = unpack(read_bytes(path, max_bytes), max_bytes)
    name, edits = os.fspath(path), edits_of(header)
    model = _build(name, header) if into is None else into
    if edits is None:
        _check_same_tensors(name, model, state)
    else:
        _check_same_tensors(name, model, state, allow_smaller=True)
        apply_edits(name, model, edits, state)
    if into is not None:
        _check_tied_values(name, model, state)
        model.load_state_dict(state)
        return model
    # The model is on the meta device: the tensors that were read become its own.
    model.load_state_dict(state, assign=True)
    if any(tensor.is_meta for tensor in model.buffers()):  # buffers that are not part of the state_dict
        model = _build(name, header, device="cpu")
        if edits is not None:
            apply_edits(name, model, edits, state)
        model.load_state_dict(state)
    return model.eval()


def _build(path: str, header: Mapping[str, object], device: str = "meta") -> nn.Module:
    """The built-in model that a header names; on the meta device, its arguments cannot demand too much memory."""
    from prunus.models import MODELS

    model, arguments = named_model(header) or (None, {})
    if model not in MODELS:
        problem = (
            "names no built-in model"
            if model is None
            else f"names the model {model!r}, which is not built in"
        )
        raise ModelMismatchError(f"{path} {problem}; pass the module to fill as into=.")
    try:
        with torch.device(device):
            return MODELS[model](**arguments)
    except PrunusError:
        raise
    except _CONSTRUCTION_ERRORS as error:
        raise ModelMismatchError(
            f"{path} names {model} with {arguments}, which cannot be built: {error}."
        ) from error


def _check_same_tensors(
    path: str, model: nn.Module, state: Mapping[str, Tensor], allow_smaller: bool = False
) -> None:
    """Raise ModelMismatchError unless names, dtypes, and (if not `allow_smaller`) shapes are the same on both sides."""
    expected = model.state_dict()
    differing = [
        f"{printable(name)} ({_kind(state[name])} in the file, {_kind(expected[name])} in the model)"
        for name in expected.keys() & state.keys()
        if (
            state[name].dtype != getattr(expected[name], "dtype", None)
            if allow_smaller
            else _kind(state[name]) != _kind(expected[name])
        )
    ]
    problems = {
        "missing": sorted(map(printable, expected.keys() - state.keys())),
        "unexpected": sorted(map(printable, state.keys() - expected.keys())),
        "differing": differing,
    }
    listed = [f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names]
    if listed:
        raise ModelMismatchError(
            f"{path} is for another model than {type(model).__name__}; {'; '.join(listed)}."
        )


def _check_tied_values(path: str, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ModelMismatchError where one tensor of `model` would have to hold two different tensors of the file."""
    names: dict[tuple[object, ...], str] = {}
    for name, tensor in model.state_dict().items():
        # Sparse and empty tensors, and those on a device without addresses, have no memory to compare.
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.data_ptr():
            continue
        first = names.setdefault((tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        if not torch.equal(as_bytes(state[first]), as_bytes(state[name])):
            raise ModelMismatchError(
                f"{path} has different values for {printable(first)} and {printable(name)}, which are one tensor in "
                f"the {type(model).__name__}; load it into a module in which they are two."
            )


def printable(name: str) -> str:
    """A name for a message, quoted with escapes where it has characters that a terminal may interpret.

    >>> printable("fc1.weight"), printable("\\x1b[2J")
    ('fc1.weight', "'\\\\x1b[2J'")
    """
    return name if name.isprintable() else repr(name)


def _kind(tensor: object) -> str:
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
