"""Read arrays from a pickle without letting it call anything.

A pickle is a program that may name any function and call it. Here the only names it can reach are the stand-ins below,
which record the arguments that numpy's own functions would get; the arrays are then built from these records. Python 2
pickles (whose strings are bytes) and Python 3 pickles up to protocol 4 are read alike.
"""

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.errors import DataError

MAX_MEMO_INDEX = 1 << 20
"""The unpickler allocates memory up to the highest memo index that the pickle names, used or not."""


class _Dtype:
    """Replaces numpy.dtype: a number type of at most 8 bytes."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name = _text(name)
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])

    def dtype(self) -> np.dtype[Any]:
        dtype = np.dtype(self.name)
        dtype = dtype.newbyteorder(">") if self.order == ">" else dtype
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise pickle.UnpicklingError(f"an array of {dtype}")
        return dtype


class _Array:
    """Replaces numpy.ndarray; its state is (version, shape, dtype, whether in Fortran order, bytes)."""

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
    """Replaces _codecs.encode, with which Python 3 writes bytes in protocol 2."""
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
        """Return the stand-in for a name; any other name is refused before anything is imported."""
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return STAND_INS[module, name]


def load_arrays(content: bytes, where: str) -> Any:
    """Read a pickle of numbers, strings, arrays of numbers, and tuples, lists and dicts of them.

    Args:
        content: The pickle.
        where: The name of the file, for errors.

    Returns:
        The pickled object. Strings of Python 2 are bytes; arrays may be read-only.

    Raises:
        DataError: The pickle is damaged or contains anything else.

    Example:
        >>> load_arrays(pickle.dumps({"labels": [1, 2]}, protocol=2), "a file")
        {'labels': [1, 2]}
    """
    try:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name.endswith("PUT") and int(argument or 0) > MAX_MEMO_INDEX:
                raise pickle.UnpicklingError(f"memo {argument}")
        return _resolve(_Restricted(io.BytesIO(content), encoding="bytes").load(), {})
    except Exception as error:  # a damaged pickle may fail in any way
        raise DataError(f"{where} is not a pickle of plain arrays: {error}.") from error


def _resolve(value: Any, done: dict[int, Any]) -> Any:
    """Replace the stand-ins in `value` by arrays; `done` has the results by identity, so that each is visited once.

    Without it, thirty lists that each contain the next one twice would take a billion visits.
    """
    if isinstance(value, str | bytes | int | float | None):
        return value
    if isinstance(value, _Array) and value.array is not None:
        return value.array
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, tuple | list):
        done[id(value)] = type(value)(_resolve(entry, done) for entry in value)
        return done[id(value)]
    if isinstance(value, dict):
        done[id(value)] = {_resolve(key, done): _resolve(entry, done) for key, entry in value.items()}
        return done[id(value)]
    raise pickle.UnpicklingError(f"it contains a {type(value).__name__.strip('_')}")


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value
