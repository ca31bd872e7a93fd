"""Load a file into a module: a built-in model by the name in the file, or a module of the user."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.compression.container.edits import (
    EditedAttributes,
    TensorShapes,
    apply_edits,
    check_edits,
    edits_of,
    remaining_state,
)
from prunus.compression.container.file_format import CHECKSUM, PLAIN_DATA, as_bytes, checksum
from prunus.compression.container.reading import (
    ParsedFile,
    decode_section,
    named_memory_errors,
    named_model,
    parse_file,
    read_bytes,
    unpack,
)
from prunus.errors import CorruptFileError, ModelMismatchError
from prunus.models.checkpoints import match_names
from prunus.models.safetensors_file import missing_names, tied_pairs
from prunus.modules import check_initialized, unwrapped
from prunus.pruning.shared_memory import is_expanded

Kind = tuple[str, tuple[int, ...]]
"""The dtype and shape of a tensor; PLAIN_DATA and () of another value."""

EXTRA_STATE = "_extra_state"
"""How torch ends the name of the extra state of a module, which the module itself checks: any value may replace it."""

PART_BYTES = 32 << 20
"""Tensors of this many bytes are copied into a module at a time."""


def load(
    path: str | os.PathLike[str], into: nn.Module | None = None, max_bytes: int | None = None
) -> nn.Module:
    """Return the model whose weights are in the file at `path`.

    Args:
        path: A file that `save` wrote.
        into: The module to copy the weights into; its mode is unchanged. Tensors are read and copied one after
            another, so that little more memory than that of the file is taken. Without it, the built-in model that the
            file names is built, in evaluation mode. It consists of the tensors that were read and takes no more memory.
            If channels were removed from the saved model, `into` is the original module, and becomes as small. Of
            several names of a tied tensor, the file needs to have one.
        max_bytes: The most memory that reading may take, in bytes; see `unpack`.

    Returns:
        `into`, or the model that was built.

    Raises:
        ModelMismatchError: The file is for another model (the names and shapes that differ are listed), or has two
            values for what is one tensor in `into`.
        ModelError: `into` is not a module, or has tensors without values (lazy, on the meta device).
        ContainerError: The file cannot be read; see `unpack`.

    If an error is raised, `into` is not changed.
    """
    if into is not None:
        check_initialized(into)
        with named_memory_errors():
            _fill(os.fspath(path), unwrapped(into), parse_file(read_bytes(path, max_bytes), max_bytes))
        return into
    header, state = unpack(read_bytes(path, max_bytes), max_bytes)
    name, edits = os.fspath(path), edits_of(header)
    model = _build(name, header)
    smaller = _check_same_tensors(name, model, edits, {key: _kind(value) for key, value in state.items()})
    apply_edits(model, edits, smaller)
    # The model is on the meta device: the tensors that were read become its own.
    model.load_state_dict(state, assign=True)
    if any(tensor.is_meta for tensor in model.buffers()):  # buffers that are not part of the state_dict
        model = _build(name, header, device="cpu")
        apply_edits(model, edits, smaller)
        model.load_state_dict(state)
    return model.eval()


def _fill(path: str, model: nn.Module, file: ParsedFile) -> None:
    """Copy the tensors of a file into a model, a few at a time, after all of them have been checked."""
    names = [entry.name for entry in file.entries]
    edits = edits_of(file.header)
    expected = remaining_state(model, edits)
    renamed = match_names(names, list(expected)).names
    numbers = {renamed.get(name, name): number for number, name in enumerate(names)}
    kinds = {name: (entry.dtype, entry.shape) for name, entry in zip(numbers, file.entries, strict=True)}
    smaller = _check_same_tensors(path, model, edits, kinds)
    _check_tied_values(path, model, tied_pairs(expected, numbers), file, numbers)
    parts = list(_parts(file, numbers))
    if len(parts) == 1:  # all tensors are decoded before the model is changed
        state = {name: file.decode(number) for name, number in numbers.items()}
        apply_edits(model, edits, smaller)
        model.load_state_dict(state, strict=False)  # the file may hold one name of several tied tensors
        return
    sections = _Sections(path, file)
    del file  # and the content of the file
    for number in numbers.values():
        sections.decode(number)  # raises before the model is changed
    apply_edits(model, edits, smaller)
    for part in parts:
        model.load_state_dict({n: sections.decode(number) for n, number in part.items()}, strict=False)


class _Sections:
    """The tensors of a file that was checked, each read from the disk again where it is needed."""

    def __init__(self, path: str, file: ParsedFile) -> None:
        self.path, self.entries = path, file.entries
        self.tied_to = [blob.tied_to for blob in file.blobs]
        self.checksums = [checksum(section) for section in file.sections]
        self.offsets, position = list[int](), file.size
        for entry in reversed(file.entries):  # nothing follows the last
            position -= entry.length + CHECKSUM.size
            self.offsets.insert(0, position)

    def decode(self, number: int) -> Any:
        """The tensor of this number; CorruptFileError where the file is another one now, or cannot be decoded."""
        first = self.tied_to[number]
        number = number if first is None else first
        with Path(self.path).open("rb") as file:
            file.seek(self.offsets[number])
            section = file.read(self.entries[number].length)
        if checksum(section) != self.checksums[number]:
            raise CorruptFileError(f"{self.path} was changed while it was read; read it again.")
        return decode_section(memoryview(section), self.entries[number])


def _parts(file: ParsedFile, numbers: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The tensors in parts of about PART_BYTES, each with all tensors of its modules."""
    by_module: dict[str, dict[str, int]] = {}
    for name, number in numbers.items():
        by_module.setdefault(name.rpartition(".")[0], {})[name] = number
    part: dict[str, int] = {}
    size = 0
    for tensors in by_module.values():
        nbytes = sum(file.entries[number].nbytes for number in tensors.values())
        if part and size + nbytes > PART_BYTES:
            yield part
            part, size = {}, 0
        part, size = part | tensors, size + nbytes
    if part:
        yield part


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
    except Exception as error:  # a file may hold any arguments
        raise ModelMismatchError(
            f"{path} names {model} with {arguments}, which cannot be built: {str(error).rstrip('.')}."
        ) from error


def _check_same_tensors(
    path: str, model: nn.Module, edits: EditedAttributes | None, kinds: Mapping[str, Kind]
) -> TensorShapes:
    """The shapes of the tensors of a model that `edits` make smaller, by name; nothing is changed.

    Raises ModelMismatchError unless the model then has tensors of the names and `kinds` of the file.
    """
    smaller = check_edits(path, model, edits, {name: shape for name, (_, shape) in kinds.items()})
    state = remaining_state(model, edits)
    expected = {name: _kind(value) for name, value in state.items()}
    expected |= {name: (expected[name][0], shape) for name, shape in smaller.items()}
    differing = [
        f"{printable(name)} ({_text(kinds[name])} in the file, {_text(expected[name])} in the model)"
        for name in expected
        if name in kinds and kinds[name] != expected[name] and not name.endswith(EXTRA_STATE)
    ]
    problems = {
        "missing": sorted(map(printable, missing_names(state, kinds))),
        "unexpected": sorted(map(printable, kinds.keys() - expected.keys())),
        "differing": differing,
    }
    listed = [f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names]
    if listed:
        raise ModelMismatchError(
            f"{path} is for another model than {type(model).__name__}; {'; '.join(listed)}."
        )
    expanded = [name for name, value in state.items() if isinstance(value, Tensor) and is_expanded(value)]
    if expanded:
        raise ModelMismatchError(
            f"Expected tensors that can be set, but several entries of {expanded[0]!r} of {type(model).__name__} "
            "share one place in memory; make it contiguous, or a buffer with persistent=False."
        )
    return smaller


def _check_tied_values(
    path: str,
    model: nn.Module,
    pairs: Sequence[tuple[str, str]],
    file: ParsedFile,
    numbers: Mapping[str, int],
) -> None:
    """Raise ModelMismatchError where one tensor of `model` would have to hold two different tensors of the file."""
    for first, name in pairs:
        same = [file.blobs[numbers[n]].tied_to for n in (first, name)]
        if same[1] is not None and same[1] in (numbers[first], same[0]):
            continue
        values = [as_bytes(file.decode(numbers[n])) for n in (first, name)]
        if not torch.equal(*values):
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


def _kind(value: object) -> Kind:
    if not isinstance(value, Tensor):
        return PLAIN_DATA, ()
    return str(value.dtype).removeprefix("torch."), tuple(value.shape)


def _text(kind: Kind) -> str:
    dtype, shape = kind
    return f"{dtype} {list(shape)}" if dtype != PLAIN_DATA else "not a tensor"
