"""Tensors that a file holds as a seed and the codes of a mask: factor[code] · (scale · the generator's integer).

A factor of zero is a hole, +0; both products are float32's. See `prunus.seeded_tensors` for the integers.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from prunus.compression.codecs.bitstream import Ints
from prunus.compression.container.encoding_config import EncodingConfig
from prunus.compression.container.file_format import GENERATED, SHARED, Bits, TensorBlob
from prunus.compression.container.tensor_encoder import bits_of, encode_symbols
from prunus.errors import ContainerError, CorruptFileError
from prunus.seeded_tensors import SeededTensor, is_float32

_MAGNITUDE = 0x7FFFFFFF
"""All bits of a float32 but its sign: zeros are told by these, as a flushed subnormal compares equal to zero."""


def check(
    generated: Mapping[str, SeededTensor], factors: Mapping[str, float], names: Collection[str]
) -> None:
    """Raise ContainerError unless `generated` and `factors` can be asked for in a state of these names: each names a
    tensor in it, a factor one that is generated, seeds and scales are sound and factors finite in float32."""
    if unknown := generated.keys() - names:
        raise ContainerError(
            f"{', '.join(sorted(unknown))} were to be stored as seeds, but are not in the state."
        )
    if stray := factors.keys() - generated.keys():
        raise ContainerError(
            f"{', '.join(sorted(stray))} are in `factors` but not in `generated`, without which a factor means "
            "nothing; name them in both or in neither."
        )
    for name, how in generated.items():
        if flaw := how.flaw():
            raise ContainerError(f"{name} is generated {flaw}")
        if name in factors and not is_float32(factors[name]):
            raise ContainerError(f"{name} has the factor {factors[name]}; a factor is a finite float32.")


def encode_seeded(
    name: str, tensor: Tensor, how: SeededTensor, factor: float, coding: EncodingConfig
) -> TensorBlob:
    """The blob of a tensor whose entries are zero, or what `how` generates times `factor` or minus it.

    A zero of either sign is a hole: a negative weight times a mask leaves -0.0. Raises ContainerError where an
    entry is anything else. What is asked for is to be passed through `check` before.
    """
    if tensor.dtype != torch.float32:
        raise ContainerError(f"{name} is {tensor.dtype}; what is generated is float32.")
    bits = bits_of(name, tensor)
    filled = bits & _MAGNITUDE != 0
    made = how.values((bits.size,))
    factors = np.array([0.0, factor, -factor], dtype="<f4")
    codes: Ints = np.zeros(bits.size, np.int64)
    for code in (1, 2):
        with np.errstate(all="ignore"):  # where a hole is, the product may overflow
            codes[(bits == (made * factors[code]).astype("<f4").view("<u4")) & filled] = code
    wrong = int(np.count_nonzero((codes == 0) & filled))
    if wrong:
        raise ContainerError(
            f"{name} holds {wrong} entries that are neither 0 nor {factor:g} times what the seed {how.seed} gives; "
            "save it without `generated`."
        )
    used, codes = np.unique(codes, return_inverse=True)
    if not bits.size:
        used = np.array([0])
    stream = encode_symbols(codes.reshape(-1), len(used), coding)
    return TensorBlob(GENERATED | SHARED, bits.size, factors[used].tobytes(), codes=stream, generated=how)


def decode_seeded(factors: Iterable[Bits], size: int, how: SeededTensor, what: str) -> Bits:
    """The `size` entries, from the factor of each, which come in chunks.

    Raises CorruptFileError where the scale or an entry is not finite.
    """
    if flaw := how.flaw():
        raise CorruptFileError(f"{what} is generated {flaw}")
    made, start = how.values((size,)), 0
    with np.errstate(all="ignore"):
        for chunk in factors:
            piece = made[start : start + chunk.size]
            piece *= chunk.view("<f4")
            piece[chunk & _MAGNITUDE == 0] = 0.0
            if not np.isfinite(piece).all():
                raise CorruptFileError(
                    f"{what} generates entries that are infinite; a file holds finite numbers."
                )
            start += chunk.size
    return made.astype("<f4", copy=False).view("<u4")
