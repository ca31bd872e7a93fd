"""How a file is to be coded: the one choice of the writer that is not in the tensors."""

from dataclasses import dataclass

from prunus.compression.codecs import CODECS
from prunus.errors import ContainerError
from prunus.registry import lookup

WIDTHS = range(2, 13)
"""The widths of a stored difference, in bits, that are tried when none is asked for."""


@dataclass(frozen=True)
class EncodingConfig:
    """How positions and values become bytes; the three stages of Deep Compression are three of these.

    >>> pruned = EncodingConfig(codec="bitpack", share=False)      # P: positions, and values as they are
    >>> shared = EncodingConfig(codec="bitpack", index_bits=5)     # P + Q: positions, and codes of shared values
    >>> coded = EncodingConfig(codec="huffman", index_bits=5)      # P + Q + H: and both of them entropy-coded
    """

    codec: str = "range"
    """A name of `prunus.compression.codecs.CODECS`."""
    index_bits: int | None = None
    """Bits of a stored difference of positions, 1..16; None takes what makes the tensor smallest."""
    share: bool = True
    """Whether values that repeat are stored once, in a codebook of at most 256 non-zero values."""

    def __post_init__(self) -> None:
        lookup("codec", CODECS, self.codec)
        if self.index_bits is not None and not 1 <= self.index_bits <= 16:
            raise ContainerError(f"index_bits is {self.index_bits}; it must be from 1 to 16, or None.")
