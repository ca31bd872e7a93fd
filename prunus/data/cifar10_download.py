"""Fetch CIFAR-10's official archive and lay out exactly the files that belong in it."""

import hashlib
import secrets
import shutil
import tarfile
import tempfile
import zlib
from functools import partial
from pathlib import Path

from prunus.data.download import DownloadError, download, try_sources, verified_by
from prunus.data.files import local_errors, writing

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
LIMIT = 200 << 20
"""Bytes; the archive has 170 million."""
DIRECTORY = "cifar-10-batches-bin"
MEMBERS = {f"data_batch_{number}.bin": 30_730_000 for number in range(1, 6)} | {"test_batch.bin": 30_730_000}
"""The files we take, with their bytes; the class names are constants here."""
SUMS = "SHA256SUMS"
"""Marks a folder that prunus fetched, and holds its files to what they were then."""


def fetch(root: Path, url: str = URL, md5: str = MD5) -> None:
    """Put the binary layout into `root`, all of it or nothing. Raises DataError."""
    try_sources(f"CIFAR-10 ({root})", {url: partial(_fetch, root, url, md5)})


def _fetch(root: Path, url: str, md5: str) -> None:
    with local_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cifar-10.", dir=root) as temporary:
            archive = Path(temporary) / "archive.tar.gz"
            download(url, archive, LIMIT, verified_by("md5", md5))
            extract(archive, root / DIRECTORY)


def extract(archive: Path, folder: Path, members: dict[str, int] = MEMBERS) -> None:
    """Take `members`, by name and size, out of `archive` into the new `folder`, with their hashes in SUMS.

    Whatever else the archive holds is not looked at: names outside `members`, links, devices. Raises
    SourceError if one of them is missing, is no plain file, or has another size; nothing is left then.
    """
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        sums = _members(archive, beside, members)
        with writing(beside / SUMS) as file:
            file.write("".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())
        if not folder.exists():  # else another process was quicker
            with local_errors(folder):
                beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _members(archive: Path, folder: Path, members: dict[str, int]) -> dict[str, str]:
    """Write `members` into `folder`; their sha256 by name."""
    sums = {}
    try:
        with tarfile.open(archive, "r:gz") as packed:
            for member in packed:
                name = member.name.removeprefix(f"{DIRECTORY}/")
                if member.isreg() and members.get(name) == member.size and name not in sums:
                    file = packed.extractfile(member)
                    content = file.read() if file else b""
                    sums[name] = hashlib.sha256(content).hexdigest()
                    with writing(folder / name) as out:
                        out.write(content)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DownloadError(f"the archive is damaged: {error}") from error
    lacking = sorted(set(members) - set(sums))
    if lacking:
        raise DownloadError(f"the archive has no plain file of the right size for {', '.join(lacking)}")
    return sums
