"""Decode all symbols of a codec at once."""

import numpy as np
from numpy.typing import NDArray

from prunus.compression.codecs import Codec


def decode(codec: Codec, data: bytes, count: int, alphabet: int) -> NDArray[np.int32]:
    """The symbols of all chunks, of which each is valid until the next one is requested."""
    chunks = [chunk.copy() for chunk in codec.decode_chunks(data, count, alphabet)]
    return np.concatenate([np.zeros(0, np.int32), *chunks])
