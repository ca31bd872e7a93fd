"""The container: one file that holds a state_dict bit for bit, small where it is sparse. See SPEC.md."""

from prunus.compression.container.encoding_config import EncodingConfig
from prunus.compression.container.inspection import FileInspection, TensorStats, inspect
from prunus.compression.container.loading import load
from prunus.compression.container.reading import read, read_header, unpack
from prunus.compression.container.writing import EncodedState, encode_tensors, pack, write

__all__ = [
    "EncodedState",
    "EncodingConfig",
    "FileInspection",
    "TensorStats",
    "encode_tensors",
    "inspect",
    "load",
    "pack",
    "read",
    "read_header",
    "unpack",
    "write",
]
