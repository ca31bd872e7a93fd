"""Tensors that a file holds as a seed and the codes of a mask: factor[code] · (scale · the generator's integer).

A factor of zero bits is a hole, +0; both products are float32's. See `prunus.generators` for the integers.
"""

import numpy as np
import torch
from torch import Tensor

from prunus.compression.codecs.bits import Ints
from prunus.compression.container.coding import Coding
from prunus.compression.container.layout import GENERATED, SHARED, Bits, Blob
from prunus.compression.container.tensors import bits_of, stream_of
from prunus.errors import ContainerError, CorruptError
from prunus.generators import CHUNK, Generated


def generated_blob(name: str, tensor: Tensor, how: Generated, factor: float, coding: Coding) -> Blob:
    """The blob of a tensor whose entries are zero, or what `how` generates times `factor` or minus it.

    Raises ContainerError where an entry is anything else.
    """
    if tensor.dtype != torch.float32:
        raise ContainerError(f"{name} is {tensor.dtype}; what is generated is float32.")
    bits = bits_of(name, tensor)
    made = how.values((bits.size,))
    factors = np.array([0.0, factor, -factor], dtype="<f4")
    codes: Ints = np.zeros(bits.size, np.int64)
    for code in (1, 2):
        codes[(bits == (made * factors[code]).astype("<f4").view("<u4")) & (bits != 0)] = code
    wrong = int(np.count_nonzero((codes == 0) & (bits != 0)))
    if wrong:
        raise ContainerError(
            f"{name} holds {wrong} entries that are neither 0 nor {factor:g} times what the seed {how.seed} gives; "
            "save it without `generated`."
        )
    used, codes = np.unique(codes, return_inverse=True)
    if not bits.size:
        used = np.array([0])
    stream = stream_of(codes.reshape(-1), len(used), coding)
    return Blob(GENERATED | SHARED, bits.size, factors[used].tobytes(), codes=stream, generated=how)


def regenerated(factors: Bits, how: Generated, what: str) -> Bits:
    """The entries, from the factor of each. Raises CorruptError for a scale that is no number."""
    if not np.isfinite(np.float32(how.scale)):
        raise CorruptError(f"{what} is generated at the scale {how.scale}.")
    with np.errstate(all="ignore"):
        made = how.values((factors.size,))
        for start in range(0, factors.size, CHUNK):
            piece, factor = made[start : start + CHUNK], factors[start : start + CHUNK]
            piece *= factor.view("<f4")
            piece[factor == 0] = 0.0
    return made.astype("<f4", copy=False).view("<u4")
