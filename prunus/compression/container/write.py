"""Write a state_dict into a file: a pure function of its bits, the metadata and the coding."""

import os
from collections.abc import Mapping

from torch import Tensor

from prunus.compression.container.encoding_config import EncodingConfig
from prunus.compression.container.file_format import (
    CHECKSUM,
    DTYPES,
    LONGEST_HEADER,
    MAGIC,
    PREFIX,
    VERSION,
    checksum,
)
from prunus.compression.container.header import header_text, parse_header
from prunus.compression.container.seeded_encoder import check, encode_seeded
from prunus.compression.container.tensor_encoder import encode_tensor
from prunus.errors import ContainerError, CorruptFileError, SizeLimitError
from prunus.files import write_atomic
from prunus.seeded_tensors import SeededTensor

Json = Mapping[str, object]


def pack(
    state: Mapping[str, Tensor],
    *,
    model: Json | None = None,
    made: Json | None = None,
    coding: EncodingConfig = EncodingConfig(),  # noqa: B008 - frozen
    generated: Mapping[str, SeededTensor] | None = None,
    factors: Mapping[str, float] | None = None,
) -> bytes:
    """The file that holds `state` bit for bit; the same arguments give the same bytes.

    `model` is {"name": ..., "arguments": {...}} of a built-in model, or None; `made` is anything JSON can
    say about how the weights came to be. Tensors in `generated` are stored as a seed and a mask: their entries are
    zero, or what is generated times the tensor's entry in `factors` (1 by default) or minus that; of them alone
    -0.0, which a mask leaves of a negative weight, comes back as the +0.0 it equals. Raises NonFiniteError for NaN or
    infinity, ContainerError for what no file holds.

    >>> import torch
    >>> from prunus.compression.container.read import unpack
    >>> data = pack({"weight": torch.tensor([[0.0, 0.5], [0.0, -0.5]])}, made={"by": "hand"})
    >>> unpack(data)[1]["weight"]
    tensor([[ 0.0000,  0.5000],
            [ 0.0000, -0.5000]])
    """
    if not isinstance(state, Mapping):
        raise ContainerError(
            f"Expected a state_dict, that is tensors by name, got a {type(state).__name__}; pass model.state_dict()."
        )
    generated, factors = generated or {}, factors or {}
    check(generated, factors, state.keys())
    names = {dtype: name for name, dtype in DTYPES.items()}
    tensors: list[list[object]] = []
    blobs = []
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ContainerError(f"{name} is a {type(tensor).__name__}; a file holds tensors only.")
        if name in generated:
            blob = encode_seeded(name, tensor, generated[name], factors.get(name, 1.0), coding).to_bytes()
        else:
            blob = encode_tensor(name, tensor, coding).to_bytes()
        blobs.append(blob)
        tensors.append([name, names[tensor.dtype], list(tensor.shape), len(blob)])
    header = _header({} if made is None else made, model, tensors)
    prefix = PREFIX.pack(MAGIC, VERSION, len(header))
    parts, running = [prefix + header], checksum(prefix + header)
    for blob in blobs:
        parts += [CHECKSUM.pack(running), blob]
        running = checksum(blob, running)
    return b"".join([*parts, CHECKSUM.pack(running)])


def _header(made: Json, model: Json | None, tensors: list[list[object]]) -> bytes:
    try:
        header = header_text(made, model, tensors).encode()
    except UnicodeEncodeError as error:
        raise ContainerError(
            "The header cannot be written: expected names and metadata of valid Unicode, got "
            f"{error.object[max(error.start - 20, 0) : error.end + 20]!r}; rename the tensor or correct the metadata."
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ContainerError(f"The header cannot be written as JSON: {error}.") from error
    if len(header) > LONGEST_HEADER:
        raise ContainerError(
            f"The header would take {len(header)} bytes; the most allowed is {LONGEST_HEADER}."
        )
    try:
        parse_header(header)
    except (CorruptFileError, SizeLimitError) as error:
        raise ContainerError(f"No file may say this of itself: {error}") from error
    return header


def write(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    *,
    model: Json | None = None,
    made: Json | None = None,
    coding: EncodingConfig = EncodingConfig(),  # noqa: B008 - frozen
    generated: Mapping[str, SeededTensor] | None = None,
    factors: Mapping[str, float] | None = None,
) -> int:
    """Write `state` to `path` as `pack` does and return the file's size in bytes.

    The file appears whole or not at all, and replaces a regular file that exists. Raises OutputError where it
    cannot be written (a full disk, no such folder, a device), and leaves the file that was there as it was.
    """
    data = pack(state, model=model, made=made, coding=coding, generated=generated, factors=factors)
    write_atomic(path, data)
    return len(data)
