"""Write a state_dict into a file: a pure function of its bits, the metadata and the encoding."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from prunus.compression.container.encoding_config import EncodingConfig
from prunus.compression.container.file_format import (
    CHECKSUM,
    DTYPES,
    MAGIC,
    MAX_HEADER_BYTES,
    PLAIN_DATA,
    PREFIX,
    VERSION,
    checksum,
)
from prunus.compression.container.header import header_text, parse_header
from prunus.compression.container.plain_data import encode_plain_data
from prunus.compression.container.seeded_encoder import check_seeded, encode_seeded
from prunus.compression.container.tensor_blob import TIED, TensorBlob
from prunus.compression.container.tensor_encoder import TensorEncoder
from prunus.errors import ContainerError, CorruptFileError, SizeLimitError
from prunus.files import write_atomic
from prunus.models.safetensors_file import tied_names
from prunus.seeded_tensors import SeededTensor

Json = Mapping[str, object]


@dataclass(frozen=True)
class EncodedState:
    """The tensors of a state_dict as blobs, from which files with any metadata are made."""

    rows: list[list[object]]
    """Name, dtype, shape and blob length of each tensor, as the header lists them."""
    blobs: list[bytes]

    def to_bytes(self, *, model: Json | None = None, metadata: Json | None = None) -> bytes:
        """The content of the file. See `pack`.

        Args:
            model: Name and arguments of a built-in model; None: the file names no model.
            metadata: A JSON object about how the tensors were made; None: an empty object.

        Returns:
            The bytes, which `unpack` reads.

        Raises:
            ContainerError: The header cannot be written as JSON, or no reader would accept it.
        """
        header = _encode_header({} if metadata is None else metadata, model, self.rows)
        prefix = PREFIX.pack(MAGIC, VERSION, len(header))
        parts, running = [prefix + header], checksum(prefix + header)
        for blob in self.blobs:
            parts += [CHECKSUM.pack(running), blob]
            running = checksum(blob, running)
        return b"".join([*parts, CHECKSUM.pack(running)])


def encode_tensors(
    state: Mapping[str, Any],
    encodings: Sequence[EncodingConfig],
    *,
    generated: Mapping[str, SeededTensor] | None = None,
    factors: Mapping[str, float] | None = None,
) -> list[EncodedState]:
    """Encode a state_dict with each of `encodings`; what they have in common is computed once per tensor.

    Args:
        state: Tensors by name; each of several that are one tensor in memory is stored once. Other values, such as the
            extra state of a module, are stored where they consist of numbers, text, lists, dicts and tensors.
        encodings: How positions and values become bytes, once for each result.
        generated: Tensors to store as a seed and a mask, by name; see `pack`. None: no tensor.
        factors: Factors of generated tensors, by name; None: all are 1.

    Returns:
        The encoded tensors, one result for each of `encodings`, in that order.

    Raises:
        ContainerError: The state holds what no file may hold, or an encoding is no EncodingConfig.
    """
    if not isinstance(state, Mapping):
        raise ContainerError(
            f"Expected a state_dict, that is tensors by name, got a {type(state).__name__}; pass model.state_dict()."
        )
    for encoding in encodings:
        if not isinstance(encoding, EncodingConfig):
            raise ContainerError(
                f"Expected the encoding as a prunus.EncodingConfig, got {encoding!r}; pass EncodingConfig(codec=...)."
            )
    generated, factors = generated or {}, factors or {}
    check_seeded(generated, factors, state.keys())
    dtype_names = {dtype: name for name, dtype in DTYPES.items()}
    results = [EncodedState([], []) for _ in encodings]
    tied, numbers = _tied_names(state, generated), {name: number for number, name in enumerate(state)}
    for name, value in state.items():
        is_tensor = isinstance(value, Tensor)
        if not is_tensor:
            blobs = [encode_plain_data(name, value)] * len(encodings)
        elif name in generated:
            seeded = generated[name], factors.get(name, 1.0)
            blobs = [encode_seeded(name, value, *seeded, encoding).to_bytes() for encoding in encodings]
        elif name in tied:
            blobs = [TensorBlob(TIED, 0, b"", tied_to=numbers[tied[name]]).to_bytes()] * len(encodings)
        else:
            blobs = list(map(TensorEncoder(name, value).encode, encodings))
        kind = (dtype_names.get(value.dtype), list(value.shape)) if is_tensor else (PLAIN_DATA, [])
        for result, blob in zip(results, blobs, strict=True):
            result.blobs.append(blob)
            result.rows.append([name, *kind, len(blob)])
    return results


def _tied_names(state: Mapping[str, object], generated: Mapping[str, SeededTensor]) -> dict[str, str]:
    """The first name of each tensor that is stored under an earlier name already."""
    tensors = {
        name: value for name, value in state.items() if isinstance(value, Tensor) and name not in generated
    }
    return tied_names({name: tensor for name, tensor in tensors.items() if not is_lazy(tensor)})


def pack(
    state: Mapping[str, Any],
    *,
    model: Json | None = None,
    metadata: Json | None = None,
    encoding: EncodingConfig = EncodingConfig(),  # noqa: B008 - frozen
    generated: Mapping[str, SeededTensor] | None = None,
    factors: Mapping[str, float] | None = None,
) -> bytes:
    """Return the content of the file that holds `state` bit for bit; the same arguments give the same bytes.

    Args:
        state: Tensors by name, and other values; see `encode_tensors`.
        model: `{"name": ..., "arguments": {...}}` of a built-in model, or None.
        metadata: Any JSON object about how the tensors were made; the key `made` of the header.
        encoding: How positions and values become bytes.
        generated: Tensors to store as a seed and a mask. Their entries are zero, or a generated number times the
            factor of the tensor, or minus that. Of these tensors alone, -0.0 is read back as 0.0.
        factors: Factors of generated tensors; 1 by default.

    Returns:
        The bytes, which `unpack` reads.

    Raises:
        NonFiniteError: A tensor to store as a seed holds NaN or infinity.
        ContainerError: The state or the metadata hold what no file may hold.

    Example:
        >>> import torch
        >>> from prunus.compression.container.reading import unpack
        >>> data = pack({"weight": torch.tensor([[0.0, 0.5], [0.0, -0.5]])}, metadata={"by": "hand"})
        >>> unpack(data)[1]["weight"]
        tensor([[ 0.0000,  0.5000],
                [ 0.0000, -0.5000]])
    """
    (encoded,) = encode_tensors(state, [encoding], generated=generated, factors=factors)
    return encoded.to_bytes(model=model, metadata=metadata)


def write(path: str | os.PathLike[str], state: Mapping[str, Any], **options: Any) -> int:
    """Write `state` to `path` and return the size of the file in bytes.

    The file appears whole or not at all, and replaces a regular file that exists.

    Args:
        path: The file to write.
        state: Tensors by name, and other values; see `encode_tensors`.
        options: Other arguments of `pack`: model, metadata, encoding, generated, factors.

    Returns:
        The size of the file in bytes.

    Raises:
        OutputError: The file cannot be written (a full disk, no such folder, a device); an existing file is
            unchanged.
        ContainerError: See `pack`.
    """
    data = pack(state, **options)
    write_atomic(path, data)
    return len(data)


def _encode_header(metadata: Json, model: Json | None, rows: list[list[object]]) -> bytes:
    try:
        header = header_text(metadata, model, rows).encode()
    except UnicodeEncodeError as error:
        raise ContainerError(
            "The header cannot be written: expected names and metadata of valid Unicode, got "
            f"{error.object[max(error.start - 20, 0) : error.end + 20]!r}; rename the tensor or correct the metadata."
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ContainerError(f"The header cannot be written as JSON: {error}.") from error
    if len(header) > MAX_HEADER_BYTES:
        raise ContainerError(
            f"Expected a header of at most {MAX_HEADER_BYTES} bytes, got {len(header)}; store less metadata."
        )
    try:
        parse_header(header)
    except (CorruptFileError, SizeLimitError) as error:
        raise ContainerError(f"No reader would accept this header: {error}") from error
    return header
