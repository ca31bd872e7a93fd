"""CIFAR-10: 60,000 color images, 32 × 32, ten classes.

x = (pixel / 255 - mean) / std, channel by channel, [N, 3, 32, 32]; 45,000 training, 5,000 validation and 10,000 test
examples. The mean and the standard deviation are those of the official 50,000 training images, over all pixels of a
channel.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images" (2009). Files: the binary layout in
<data root>/cifar-10-batches-bin or the Python layout in <data root>/cifar-10-batches-py.
"""

import hashlib
import secrets
import shutil
import tarfile
import tempfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prunus.data.download import DownloadError, download, try_sources, verified_by
from prunus.data.files import data_root, local_errors, read_maybe_gzipped, redownload_hint, writing
from prunus.data.preprocessing import divide, normalize
from prunus.data.safe_pickle import load_arrays
from prunus.errors import DataError
from prunus.types import Dataset, Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
NUM_VALIDATION = 5_000
IMAGES_PER_FILE = 10_000
PIXELS = 3 * 32 * 32
BINARY_BYTES = IMAGES_PER_FILE * (1 + PIXELS)
"""Bytes of a file of the binary layout."""
PICKLE_BYTES = 64 << 20
"""The most bytes of a file of the Python layout; the official ones have 31 million."""
PARTS = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE_BYTES = 200 << 20
"""The most bytes of the archive, which has 170 million."""
BINARY_FOLDER = "cifar-10-batches-bin"
PYTHON_FOLDER = "cifar-10-batches-py"
MEMBERS = {f"{part}.bin": BINARY_BYTES for part in PARTS}
"""The files that are extracted, with their sizes in bytes."""
CHECKSUMS = "SHA256SUMS"
"""A file that marks a downloaded folder; its other files must still have these checksums."""

Records = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Images [N, 3, 32, 32] and labels [N]."""


def load_cifar_10(root: str | Path | None = None, seed: int = 0, download: bool = True) -> Dataset:
    """CIFAR-10: 60,000 color images, 32 × 32, ten classes.

    The binary layout is preferred to the Python layout. Of files that prunus did not download only the sizes and
    labels are checked, and the provenance says so.

    Args:
        root: As in `data_root`.
        seed: Seed of the validation split.
        download: Whether a missing archive may be downloaded.

    Returns:
        The data set.

    Raises:
        DataError: A file is missing, damaged, or was changed after its download.
    """
    parts, provenance = _read_parts(data_root(root), download)
    images, labels = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts[:-1], strict=True))
    test = Split(*(torch.from_numpy(array) for array in parts[-1]))
    train, validation, test = (
        Split(normalize(split.inputs, 255, MEAN, STD), split.labels.to(torch.int64))
        for split in (*divide(images, labels, NUM_VALIDATION, seed), test)
    )
    return Dataset("cifar-10", train, validation, test, CLASSES, provenance)


def is_present(root: Path) -> bool:
    """Whether all files of one of the two layouts are below the data root `root`."""
    binary = all((root / BINARY_FOLDER / f"{part}.bin").is_file() for part in PARTS)
    return binary or all((root / PYTHON_FOLDER / part).is_file() for part in PARTS)


def _read_parts(root: Path, download: bool) -> tuple[list[Records], str]:
    """The records of the six files, the test file last, and their provenance."""
    binary, python = root / BINARY_FOLDER, root / PYTHON_FOLDER
    if not binary.exists() and python.exists():
        unverified = "local copy (Python layout), not verified against the official archive"
        return [read_python(python / part) for part in PARTS], unverified
    if not binary.exists():
        if not download:
            raise DataError(
                f"Expected CIFAR-10 in {root}, which has neither {BINARY_FOLDER} nor {PYTHON_FOLDER}; allow the "
                "download or put one of them there."
            )
        download_cifar10(root)
    parts = [read_binary(binary / f"{part}.bin") for part in PARTS]
    return parts, check_downloaded(binary)


def read_binary(path: Path) -> Records:
    """The records of a file of the binary layout: 10,000 × (label, 3 × 32 × 32 pixels), one byte each."""
    content = read_maybe_gzipped(path, BINARY_BYTES)
    if len(content) != BINARY_BYTES:
        raise DataError(
            f"Expected {BINARY_BYTES} bytes in {path}, got {len(content)}; {redownload_hint(path.parent)}"
        )
    records = np.frombuffer(content, np.uint8).reshape(IMAGES_PER_FILE, 1 + PIXELS)
    return _check_records(path, records[:, 1:], records[:, 0])


def read_python(path: Path) -> Records:
    """The records of a file of the Python layout: a pickle of {"data": uint8 [N, 3072], "labels": ints}."""
    content = load_arrays(read_maybe_gzipped(path, PICKLE_BYTES), str(path))
    if not isinstance(content, dict):
        raise DataError(f"Expected a pickled dict in {path}, got a pickled {type(content).__name__}.")
    named = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    data, labels = named.get("data"), named.get("labels")
    shape = (IMAGES_PER_FILE, PIXELS)
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape == shape):
        raise DataError(f"{path} has no uint8 data of {shape[0]}×{shape[1]}; {redownload_hint(path.parent)}")
    is_valid = isinstance(labels, list) and all(isinstance(n, int) and 0 <= n < 256 for n in labels)
    if not is_valid:
        raise DataError(f"{path} has no list of labels 0..9; {redownload_hint(path.parent)}")
    return _check_records(path, data, np.array(labels, np.uint8))


def _check_records(path: Path, pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Records:
    if len(labels) != IMAGES_PER_FILE or labels.max() >= len(CLASSES):
        raise DataError(
            f"Expected {IMAGES_PER_FILE} labels 0..9 in {path}, got {len(labels)} labels up to "
            f"{labels.max(initial=0)}; {redownload_hint(path.parent)}"
        )
    return pixels.reshape(-1, 3, 32, 32).copy(), labels.copy()


def check_downloaded(folder: Path) -> str:
    """The provenance of the binary files in `folder`. Raises DataError if they were changed after their download."""
    if not (folder / CHECKSUMS).exists():
        return "local copy, not verified against the official archive"
    checksums = read_maybe_gzipped(folder / CHECKSUMS, 1 << 16).decode("ascii", "replace")
    for line in checksums.splitlines():
        expected, _, name = line.partition("  ")
        digest = hashlib.sha256(read_maybe_gzipped(folder / Path(name).name, BINARY_BYTES)).hexdigest()
        if digest != expected:
            raise DataError(
                f"{folder / name} has sha256 {digest}, but had {expected} when it was downloaded; "
                f"{redownload_hint(folder)}"
            )
    return "official archive, md5 verified"


def download_cifar10(root: Path, url: str = URL, md5: str = MD5) -> None:
    """Download the official archive and put the binary layout into `root`, all of it or nothing.

    Args:
        root: The data root; created if it does not exist.
        url: Where the archive is.
        md5: Its checksum, as published.

    Raises:
        DataError: The archive cannot be downloaded or has other content, or `root` cannot be written.
    """
    try_sources(f"CIFAR-10 ({root})", {url: partial(_download_archive, root, url, md5)})


def _download_archive(root: Path, url: str, md5: str) -> None:
    with local_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cifar-10.", dir=root) as temporary:
            archive = Path(temporary) / "archive.tar.gz"
            download(url, archive, ARCHIVE_BYTES, verified_by("md5", md5))
            extract(archive, root / BINARY_FOLDER)


def extract(archive: Path, folder: Path, members: dict[str, int] = MEMBERS) -> None:
    """Extract known files from an archive into a new folder, and write their checksums into it.

    Everything else in the archive is ignored: other names, links, devices.

    Args:
        archive: A .tar.gz file.
        folder: Appears complete or not at all.
        members: The files to extract, with their sizes in bytes.

    Raises:
        DownloadError: The archive is damaged, or a file is missing, is not a regular file, or has another size.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        checksums = _extract_members(archive, temporary, members)
        with writing(temporary / CHECKSUMS) as file:
            file.write("".join(f"{digest}  {name}\n" for name, digest in checksums.items()).encode())
        if not folder.exists():  # otherwise another process was faster
            with local_errors(folder):
                temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract_members(archive: Path, folder: Path, members: dict[str, int]) -> dict[str, str]:
    """Write `members` into `folder`; returns their SHA-256 by name."""
    checksums = {}
    try:
        with tarfile.open(archive, "r:gz") as packed:
            for member in packed:
                name = member.name.removeprefix(f"{BINARY_FOLDER}/")
                if member.isreg() and members.get(name) == member.size and name not in checksums:
                    file = packed.extractfile(member)
                    content = file.read() if file else b""
                    checksums[name] = hashlib.sha256(content).hexdigest()
                    with writing(folder / name) as out:
                        out.write(content)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DownloadError(f"the archive is damaged: {error}") from error
    missing = sorted(set(members) - set(checksums))
    if missing:
        raise DownloadError(f"the archive has no regular file of the right size for {', '.join(missing)}")
    return checksums
