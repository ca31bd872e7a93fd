"""The container: one file that holds a state_dict bit for bit, small where that is sparse. See SPEC.md."""

from prunus.compression.container.coding import Coding
from prunus.compression.container.inspect import Inspection, Layer, inspect
from prunus.compression.container.load import load
from prunus.compression.container.read import read, read_header, unpack
from prunus.compression.container.write import pack, write

__all__ = [
    "Coding",
    "Inspection",
    "Layer",
    "inspect",
    "load",
    "pack",
    "read",
    "read_header",
    "unpack",
    "write",
]
