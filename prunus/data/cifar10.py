"""CIFAR-10: 60,000 color pictures, 32 × 32, ten classes.

x = (pixel / 255 - mean) / std, channel by channel, [N, 3, 32, 32]; 45,000 train, 5,000 validation,
10,000 test.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images" (2009). Files: the binary
layout in <data root>/cifar-10-batches-bin or the Python layout in <data root>/cifar-10-batches-py. Mean and
standard deviation are those of the 50,000, each over all pixels of a channel.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prunus.data.cifar10_download import DIRECTORY, SUMS, fetch
from prunus.data.files import read_maybe_gzipped, redownload_hint
from prunus.data.normalization import normalize
from prunus.data.paths import data_root
from prunus.data.safe_pickle import load_arrays
from prunus.data.splits import split_indices
from prunus.errors import DataError
from prunus.types import Dataset, Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
VALIDATION = 5_000
BATCH = 10_000
"""Pictures a file."""
PIXELS = 3 * 32 * 32
PYTHON_DIRECTORY = "cifar-10-batches-py"
PYTHON_LIMIT = 64 << 20
"""Bytes a pickle; the official ones are 31 million."""
PARTS = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")

Records = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Pictures [N, 3, 32, 32] and labels [N]."""


def load(
    root: str | Path | None = None, device: str = "cpu", seed: int = 0, download: bool = True
) -> Dataset:
    """CIFAR-10, from the binary layout, else the Python layout, else fetched. Raises DataError.

    Files that prunus did not fetch are checked for sizes and labels only, and the provenance says so.
    """
    parts, provenance = _parts(data_root(root), download)
    pictures, labels = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts[:-1], strict=True))
    chosen = split_indices(len(labels), VALIDATION, seed)
    train, validation = (_split(pictures[part], labels[part]) for part in chosen)
    test = _split(*(torch.from_numpy(array) for array in parts[-1]))
    return Dataset("cifar-10", train, validation, test, CLASSES, provenance).to(device)


def is_present(root: Path) -> bool:
    """Whether all files of one of the two layouts are below the data root `root`."""
    binary = all((root / DIRECTORY / f"{part}.bin").is_file() for part in PARTS)
    return binary or all((root / PYTHON_DIRECTORY / part).is_file() for part in PARTS)


def _parts(root: Path, download: bool) -> tuple[list[Records], str]:
    """The six files' records, the test part last, and where they came from."""
    binary, python = root / DIRECTORY, root / PYTHON_DIRECTORY
    if not binary.exists() and python.exists():
        unverified = "local copy (Python layout), not verified against the official archive"
        return [read_python(python / part) for part in PARTS], unverified
    if not binary.exists():
        if not download:
            raise DataError(
                f"CIFAR-10 was asked from {root}, which has neither {DIRECTORY} nor {PYTHON_DIRECTORY}; "
                "allow the download or put one of them there."
            )
        fetch(root)
    parts = [read_binary(binary / f"{part}.bin") for part in PARTS]
    return parts, _provenance(binary)


def read_binary(path: Path) -> Records:
    """The records of one file of the binary layout: 10,000 × (label, 3 × 32 × 32 pixels, a byte each)."""
    size = BATCH * (1 + PIXELS)
    content = read_maybe_gzipped(path, size)
    if len(content) != size:
        raise DataError(f"{path} holds {len(content)} bytes, not {size}; {redownload_hint(path.parent)}")
    records = np.frombuffer(content, np.uint8).reshape(BATCH, 1 + PIXELS)
    return _checked(path, records[:, 1:], records[:, 0])


def read_python(path: Path) -> Records:
    """The records of one file of the Python layout: a pickle of {"data": uint8 [N, 3072], "labels": ints}."""
    pickled = load_arrays(read_maybe_gzipped(path, PYTHON_LIMIT), str(path))
    if not isinstance(pickled, dict):
        raise DataError(f"{path} is a pickled {type(pickled).__name__}, not a dict with data and labels.")
    named = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in pickled.items()}
    data, labels = named.get("data"), named.get("labels")
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape == (BATCH, PIXELS)):
        raise DataError(f"{path} has no uint8 data of {BATCH}×{PIXELS}; {redownload_hint(path.parent)}")
    if not (
        isinstance(labels, list) and all(isinstance(label, int) and 0 <= label < 256 for label in labels)
    ):
        raise DataError(f"{path} has no list of labels 0..9; {redownload_hint(path.parent)}")
    return _checked(path, data, np.array(labels, np.uint8))


def _checked(path: Path, pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Records:
    if len(labels) != BATCH or labels.max() >= len(CLASSES):
        raise DataError(
            f"{path} has {len(labels)} labels up to {labels.max(initial=0)}, not {BATCH} of 0..9; "
            f"{redownload_hint(path.parent)}"
        )
    return pixels.reshape(-1, 3, 32, 32).copy(), labels.copy()


def _provenance(folder: Path) -> str:
    """Where the binary files came from; files that prunus fetched must still be as they were fetched."""
    sums = folder / SUMS
    if not sums.exists():
        return "local copy, not verified against the official archive"
    for line in read_maybe_gzipped(sums, 1 << 16).decode("ascii", "replace").splitlines():
        expected, _, name = line.partition("  ")
        found = hashlib.sha256(read_maybe_gzipped(folder / Path(name).name, BATCH * (1 + PIXELS))).hexdigest()
        if found != expected:
            raise DataError(
                f"{folder / name} has sha256 {found}, and {expected} when it was fetched; {redownload_hint(folder)}"
            )
    return "official archive, md5 verified"


def _split(pictures: torch.Tensor, labels: torch.Tensor) -> Split:
    return Split(normalize(pictures, 255, MEAN, STD), labels.to(torch.int64))
