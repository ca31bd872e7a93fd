"""IDX, the format of the MNIST files: a typed array of any rank, plain or gzipped.

    0 0 type rank | rank × uint32 sizes | the entries, row by row; everything big-endian

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", section "File formats".
"""

import gzip
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.data.files import read_maybe_gzipped, writing
from prunus.errors import DataError

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_DIMENSIONS = 32
"""The bound of numpy 1; the format would allow 255."""


def parse(content: bytes, where: str = "IDX content") -> NDArray[Any]:
    """Read an array from the bytes of an IDX file.

    Args:
        content: The bytes, decompressed.
        where: The name of the file, for errors.

    Returns:
        The array in native byte order.

    Raises:
        DataError: The magic number is wrong, the type is unknown, or the length is not the announced one.

    Example:
        >>> parse(encode(np.arange(6, dtype=np.uint8).reshape(2, 3))).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES or content[3] > MAX_DIMENSIONS:
        raise DataError(f"{where} is not an IDX file: it begins with {content[:4].hex() or 'nothing'}.")
    dtype, rank = np.dtype(TYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise DataError(f"{where} is truncated: expected a header of {start} bytes, got {len(content)}.")
    shape = struct.unpack(f">{rank}I", content[4:start])
    announced = start + math.prod(shape) * dtype.itemsize
    if len(content) != announced:
        raise DataError(
            f"{where} announces {'×'.join(map(str, shape))} entries, {announced} bytes, but contains {len(content)} "
            "bytes."
        )
    try:
        array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    except ValueError as error:  # sizes beyond numpy's, with a zero among them
        raise DataError(f"{where} announces the shape {shape}, which no array can have.") from error
    return array.astype(dtype.newbyteorder("="), copy=False)


def encode(array: NDArray[Any]) -> bytes:
    """`array` as IDX content. Raises DataError for a type or rank that IDX cannot hold."""
    codes = {np.dtype(name).newbyteorder("="): code for code, name in TYPES.items()}
    code = codes.get(array.dtype.newbyteorder("="))
    if code is None or array.ndim > MAX_DIMENSIONS:
        raise DataError(f"IDX cannot hold an array of {array.dtype} with {array.ndim} dimensions.")
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(TYPES[code], copy=False).tobytes()


def read(path: Path, limit: int = 1 << 30) -> NDArray[Any]:
    """Read the array in an IDX file.

    Args:
        path: The file; it is decompressed if its name ends in .gz.
        limit: The most bytes, after decompression.

    Returns:
        The array in native byte order.

    Raises:
        DataError: The file cannot be read, is too large, or is not an IDX file.
    """
    return parse(read_maybe_gzipped(path, limit), str(path))


def write(path: Path, array: NDArray[Any]) -> None:
    """Write an array as an IDX file; the same array gives the same bytes.

    Args:
        path: The file; it is compressed if its name ends in .gz. Missing folders are created.
        array: An array of a type and rank that IDX can hold.

    Raises:
        DataError: IDX cannot hold the array, or the file cannot be written.
    """
    content = encode(array)
    with writing(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                packed.write(content)
        else:
            file.write(content)
