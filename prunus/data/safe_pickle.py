"""Read arrays from a pickle without letting it call anything.

A pickle is a program; it may name any function and call it. Here the only names it can reach are stand-ins
below, which hold what numpy's own would be told; arrays are then made from them by us. Python 2 pickles
(their strings are bytes) and Python 3 pickles up to protocol 4 read alike.
"""

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.errors import DataError

MOST_MEMOS = 1 << 20
"""Each memo index costs the unpickler memory, up to the highest named, whether used or not."""


class _Dtype:
    """Stands for numpy.dtype: a number type of at most 8 bytes."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name = _text(name)
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])

    def dtype(self) -> np.dtype[Any]:
        found = np.dtype(self.name)
        found = found.newbyteorder(">") if self.order == ">" else found
        if found.kind not in "biuf" or found.itemsize > 8:
            raise pickle.UnpicklingError(f"an array of {found}")
        return found


class _Array:
    """Stands for numpy.ndarray: its state is (version, shape, dtype, is it Fortran's order, bytes)."""

    def __init__(self, *_: object) -> None:
        self.array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        flat = np.frombuffer(raw, dtype.dtype())
        if len(flat) != math.prod(shape):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(flat)} entries")
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _encoded(text: str, encoding: str | bytes) -> bytes:
    """Stands for _codecs.encode, by which Python 3 writes bytes in protocol 2."""
    if _text(encoding) != "latin1":
        raise pickle.UnpicklingError(f"a string in {encoding!r}")
    return text.encode("latin1")


STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _encoded,
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; any other name is refused before anything is imported."""
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return STAND_INS[module, name]


def load_arrays(content: bytes, where: str) -> Any:
    """What the pickle `content` holds: numbers, strings, arrays of numbers, and tuples, lists, dicts of them.

    The bytes of Python 2 strings stay bytes; read-only arrays share the memory of the pickle's own strings.
    Raises DataError, naming `where`, if it is damaged or asks for anything else.

    >>> load_arrays(pickle.dumps({"labels": [1, 2]}, protocol=2), "a file")
    {'labels': [1, 2]}
    """
    try:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name.endswith("PUT") and int(argument or 0) > MOST_MEMOS:
                raise pickle.UnpicklingError(f"memo {argument}")
        return _bare(_Restricted(io.BytesIO(content), encoding="bytes").load(), {})
    except Exception as error:  # a damaged pickle fails in any way at all
        raise DataError(f"{where} is not a pickle of plain arrays and was not read: {error}.") from error


def _bare(value: Any, done: dict[int, Any]) -> Any:
    """`value` with the arrays in place of their stand-ins; `done` by identity, so that it visits each once.

    Without `done`, thirty lists, each of twice the next, would be visited a thousand million times.
    """
    if isinstance(value, str | bytes | int | float | None):
        return value
    if isinstance(value, _Array) and value.array is not None:
        return value.array
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, tuple | list):
        done[id(value)] = type(value)(_bare(entry, done) for entry in value)
        return done[id(value)]
    if isinstance(value, dict):
        done[id(value)] = {_bare(key, done): _bare(entry, done) for key, entry in value.items()}
        return done[id(value)]
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__.strip('_')}")


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value
