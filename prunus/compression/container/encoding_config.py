"""The settings of the encoder: the only choices in a file that its tensors do not determine."""

from dataclasses import dataclass

from prunus.compression.codecs import CODECS
from prunus.errors import ContainerError
from prunus.registry import lookup

INDEX_BITS = range(2, 13)
"""The values of `index_bits` that the encoder tries when none is given."""


@dataclass(frozen=True)
class EncodingConfig:
    """How positions and values become bytes. The three stages of Deep Compression are three of these.

    >>> pruned = EncodingConfig(codec="bitpack", use_codebook=False)   # P: positions and the values themselves
    >>> quantized = EncodingConfig(codec="bitpack", index_bits=5)      # P + Q: positions and codes of centroids
    >>> encoded = EncodingConfig(codec="huffman", index_bits=5)        # P + Q + H: both of them entropy-coded
    """

    codec: str = "range"
    """A key of `prunus.compression.codecs.CODECS`."""
    index_bits: int | None = None
    """Bits of a stored difference between positions, 1 to 16. `None` takes the value of the smallest encoding."""
    use_codebook: bool = True
    """Whether a tensor of at most 256 distinct nonzero values is stored as a codebook and codes."""

    def __post_init__(self) -> None:
        lookup("codec", CODECS, self.codec)
        bits = self.index_bits
        if bits is not None and (not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 16):
            raise ContainerError(f"Expected index_bits as an integer from 1 to 16, or None, got {bits!r}.")
