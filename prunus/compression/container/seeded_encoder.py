"""Encode and decode tensors that a file holds as a seed and the codes of a mask.

    entry = factor[code] · (scale · integer of the generator)        both products rounded to float32

A factor of zero gives +0. See `prunus.seeded_tensors` for the integers.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from prunus.compression.codecs.bitstream import Ints
from prunus.compression.container.encoding_config import EncodingConfig
from prunus.compression.container.file_format import Bits
from prunus.compression.container.tensor_blob import CODEBOOK, GENERATED, TensorBlob
from prunus.compression.container.tensor_encoder import encode_symbols, entry_bits
from prunus.data.validation import count_not_finite
from prunus.errors import ContainerError, CorruptFileError, NonFiniteError
from prunus.seeded_tensors import SeededTensor, is_float32

_MAGNITUDE = 0x7FFFFFFF
"""All bits of a float32 but its sign. A zero is recognized by its bits: a flushed subnormal compares equal to zero."""


def check_seeded(
    generated: Mapping[str, SeededTensor], factors: Mapping[str, float], names: Collection[str]
) -> None:
    """Check what is to be stored as seeds in a state with the tensors `names`.

    Args:
        generated: The seeds and scales of the tensors to store as seeds, by name.
        factors: Their factors by name; a tensor without an entry has the factor 1.
        names: The names of all tensors of the state.

    Raises:
        ContainerError: A name is not in the state, a factor belongs to no generated tensor, a seed or scale is out
            of range, or a factor is not finite in float32.
    """
    if unknown := generated.keys() - names:
        raise ContainerError(
            f"Expected `generated` to name tensors of the state, got {', '.join(sorted(unknown))}."
        )
    if stray := factors.keys() - generated.keys():
        raise ContainerError(
            f"Expected `factors` of tensors in `generated`, got {', '.join(sorted(stray))}; name them in both or in "
            "neither."
        )
    for name, seeded in generated.items():
        if why := seeded.why_invalid():
            raise ContainerError(f"{name} cannot be generated: {why}.")
        if name in factors and not is_float32(factors[name]):
            raise ContainerError(f"Expected a finite float32 as the factor of {name}, got {factors[name]}.")


def encode_seeded(
    name: str, tensor: Tensor, seeded: SeededTensor, factor: float, encoding: EncodingConfig
) -> TensorBlob:
    """Encode a tensor whose entries are zero, or the numbers of `seeded` times `factor` or minus it.

    A zero of either sign is stored as +0: a negative weight times a mask is -0.0. Call `check_seeded` first.

    Args:
        name: The name of the tensor, for errors.
        tensor: A float32 tensor of any shape.
        seeded: The seed and the scale of its numbers.
        factor: What the numbers are multiplied by; finite in float32.
        encoding: How codes become bytes.

    Returns:
        A blob of the seed, the factors that occur, and the code of each entry's factor.

    Raises:
        NonFiniteError: The tensor holds NaN or infinity.
        ContainerError: An entry has any other value, or the tensor is not float32.
    """
    if tensor.dtype != torch.float32:
        raise ContainerError(f"Expected a float32 tensor to store as a seed, got {name} of {tensor.dtype}.")
    bits = entry_bits(name, tensor)
    if num_not_finite := count_not_finite(tensor):
        raise NonFiniteError(
            f"{name} holds {num_not_finite} values that are NaN or infinite, which no seed generates; nothing was "
            "written."
        )
    nonzero = bits & _MAGNITUDE != 0
    numbers = seeded.values((bits.size,))
    factors = np.array([0.0, factor, -factor], dtype="<f4")
    codes: Ints = np.zeros(bits.size, np.int64)
    for code in (1, 2):
        with np.errstate(all="ignore"):  # the product may overflow where the entry is zero
            codes[(bits == (numbers * factors[code]).astype("<f4").view("<u4")) & nonzero] = code
    wrong = int(np.count_nonzero((codes == 0) & nonzero))
    if wrong:
        raise ContainerError(
            f"{name} holds {wrong} entries that are neither 0 nor {factor:g} times the numbers of seed {seeded.seed}; "
            "save it without `generated`."
        )
    used, codes = np.unique(codes, return_inverse=True)
    if not bits.size:
        used = np.array([0])
    stream = encode_symbols(codes.reshape(-1), len(used), encoding)
    values = factors[used].tobytes()
    return TensorBlob(GENERATED | CODEBOOK, bits.size, values, codes=stream, generated=seeded)


def decode_seeded(factors: Iterable[Bits], size: int, seeded: SeededTensor, label: str) -> Bits:
    """Decode the `size` entries of a tensor from the factor of each entry, given in chunks.

    Args:
        factors: The factor of each entry as the bits of a float32, in chunks of [n]; `size` factors together.
        size: The number of entries.
        seeded: The seed and the scale of the numbers.
        label: The name of the blob, for errors.

    Returns:
        The entries as the bits of float32, [size], little-endian.

    Raises:
        CorruptFileError: The scale, a factor or an entry is not finite.
    """
    if why := seeded.why_invalid():
        raise CorruptFileError(f"{label} cannot be generated: {why}.")
    entries, start = seeded.values((size,)), 0
    with np.errstate(all="ignore"):
        for chunk in factors:
            part = entries[start : start + chunk.size]
            part *= chunk.view("<f4")
            part[chunk & _MAGNITUDE == 0] = 0.0
            if not np.isfinite(part).all():
                raise CorruptFileError(f"{label} generates infinite entries; a file holds finite numbers.")
            start += chunk.size
    return entries.astype("<f4", copy=False).view("<u4")
