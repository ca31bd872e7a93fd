"""What MNIST and Fashion-MNIST have in common: four IDX files, checked by the hash of their content."""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from prunus.data import idx
from prunus.data.download import DownloadError, download, try_sources
from prunus.data.files import read_maybe_gzipped, redownload_hint
from prunus.data.normalization import normalize
from prunus.data.paths import data_root
from prunus.data.splits import split_indices
from prunus.errors import DataError
from prunus.types import Dataset, Split

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
LIMIT = 64 << 20
"""Bytes; the largest of the files is 47,040,016, decompressed."""
VALIDATION = 5_000

Fetch = Callable[[Path, list[str]], None]
"""Puts the named files, as .gz, into a folder, or raises SourceError."""


@dataclass(frozen=True)
class IdxSet:
    """A data set in the four files of MNIST, each plain or with .gz."""

    name: str
    title: str
    sha256: Mapping[str, str]
    """Of the decompressed content, by file name: compressed bytes differ with who compressed them."""
    mean: float
    std: float
    class_names: tuple[str, ...]
    mirrors: tuple[str, ...]
    fallbacks: Mapping[str, Fetch] = field(default_factory=dict)


def load_idx_set(
    description: IdxSet, root: str | Path | None, device: str, seed: int, download: bool
) -> Dataset:
    """The data set that `description` describes, from `root`/its name, fetched first if it is not there."""
    folder = data_root(root) / description.name
    missing = [name for name in FILES if _present(folder, name) is None]
    if missing and not download:
        raise DataError(
            f"{description.title} was asked from {folder}, which lacks {', '.join(missing)}; "
            "allow the download or put the official files there."
        )
    if missing:
        fetch_missing(description, folder)
    images, labels, test_images, test_labels = (_read(description, folder, name) for name in FILES)
    chosen = split_indices(len(labels), VALIDATION, seed)
    train, validation = (_split(description, images[part], labels[part]) for part in chosen)
    test = _split(description, test_images, test_labels)
    provenance = "official content, sha256 verified"
    return Dataset(description.name, train, validation, test, description.class_names, provenance).to(device)


def fetch_missing(description: IdxSet, folder: Path) -> None:
    """Fetch the files that are not in `folder`, from the mirrors in order, then the fallbacks."""

    def run(fetch: Fetch) -> None:
        fetch(folder, [name for name in FILES if _present(folder, name) is None])

    mirrors = {url: partial(run, partial(_from_mirror, description, url)) for url in description.mirrors}
    fallbacks = {name: partial(run, fetch) for name, fetch in description.fallbacks.items()}
    try_sources(f"{description.title} ({folder})", mirrors | fallbacks)


def _from_mirror(description: IdxSet, url: str, folder: Path, names: list[str]) -> None:
    for name in names:
        check = partial(_check_packed, description.sha256[name])
        download(f"{url}{name}.gz", folder / f"{name}.gz", LIMIT, check)


def _check_packed(expected: str, path: Path) -> None:
    """A check for `download`: the gzipped content must have the hash `expected`."""
    try:
        with gzip.open(path) as file:
            found = hashlib.sha256(file.read(LIMIT)).hexdigest()
    except (EOFError, OSError, zlib.error) as error:
        raise DownloadError(f"it sent a damaged gzip file: {error}") from error
    if found != expected:
        raise DownloadError(f"the sha256 of what it sent is {found}, not {expected}")


def _present(folder: Path, name: str) -> Path | None:
    """Where file `name` lies in `folder`: plain, else gzipped, else nowhere."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def is_present(root: Path, description: IdxSet) -> bool:
    """Whether all files of the data set are below the data root `root`."""
    return all(_present(root / description.name, name) is not None for name in FILES)


def _read(description: IdxSet, folder: Path, name: str) -> torch.Tensor:
    path = _present(folder, name)
    if path is None:
        raise DataError(f"{folder / name} was there and is no more; load again.")
    content = read_maybe_gzipped(path, LIMIT)
    array: NDArray[Any] = idx.parse(content, str(path))
    found, expected = hashlib.sha256(content).hexdigest(), description.sha256[name]
    if found != expected:
        raise DataError(
            f"{path} is not {description.title}'s: the sha256 of its content is {found}, "
            f"expected {expected}; {redownload_hint(path)}"
        )
    return torch.from_numpy(array.copy())


def _split(description: IdxSet, images: torch.Tensor, labels: torch.Tensor) -> Split:
    inputs = normalize(images.unsqueeze(1), 255, [description.mean], [description.std])
    return Split(inputs, labels.to(torch.int64))
