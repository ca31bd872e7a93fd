"""Files are written whole or not at all, and nothing but a regular file is ever replaced."""

import os
import socket
import stat
from pathlib import Path

import pytest

from prunus import files
from prunus.errors import CheckpointError, OutputError, StoreError
from prunus.files import (
    after_writing,
    check_writable,
    create_folder,
    open_atomic,
    why_not_writable,
    write_atomic,
)


def fails(*arguments, **options):
    raise OSError(28, "No space left on device")


@pytest.fixture
def old(tmp_path):
    """A file that is there already."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("before", [None, b"old"])
def test_write_atomic_writes_the_content_only(before, tmp_path):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    write_atomic(path, b"\0new")
    assert path.read_bytes() == b"\0new"
    write_atomic(path, "± × – \udcff\r\n")
    assert path.read_bytes() == "± × – ".encode() + b"\\udcff\r\n"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")], ids=["flush", "rename"])
def test_write_atomic_preserves_the_old_file_when_a_step_fails(owner, step, old, monkeypatch):
    monkeypatch.setattr(owner, step, fails)
    with pytest.raises(OutputError, match=r"file cannot be written: No space left on device\.$"):
        write_atomic(old, b"new")
    with pytest.raises(StoreError, match=r"No space left on device; make room\.$"):
        write_atomic(old, b"new", error=StoreError, advice="make room")
    assert old.read_bytes() == b"old"
    assert names(old.parent) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, CheckpointError])
def test_open_atomic_preserves_the_old_file_when_its_block_fails(error, old):
    def write_half():
        with open_atomic(old) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert old.read_bytes() == b"old"
    assert names(old.parent) == ["file"]


def test_open_atomic_ignores_a_folder_that_cannot_be_flushed(old, monkeypatch):
    monkeypatch.setattr(os, "open", fails)
    write_atomic(old, b"new")
    assert old.read_bytes() == b"new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(mask, old):
    old.chmod(0o600)
    before = os.umask(mask)
    try:
        write_atomic(old, b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(old.stat().st_mode) == 0o666 & ~mask


def test_temporary_name_is_random_and_not_opened_through_a_link(old, monkeypatch):
    with open_atomic(old) as first, open_atomic(old) as second:
        assert len({first.name, second.name}) == 2
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "guessed")
    victim = old.with_name("victim")
    victim.write_bytes(b"victim")
    old.with_name(".guessed.part").symlink_to(victim)
    with pytest.raises(OutputError, match="File exists"):
        write_atomic(old, b"new")
    assert victim.read_bytes() == b"victim"


@pytest.mark.parametrize(
    "name",
    [".file.part", f".file.{os.getpid()}.part", f".file.{os.getpid()}"],
    ids=["part", "process part", "process"],
)
def test_link_at_a_predictable_name_is_not_followed(name, old):
    victim = old.with_name("victim")
    victim.write_bytes(b"victim")
    old.with_name(name).symlink_to(victim)
    write_atomic(old, b"new")
    assert (old.read_bytes(), victim.read_bytes()) == (b"new", b"victim")
    assert names(old.parent) == sorted([name, "file", "victim"])
    assert not old.is_symlink()


@pytest.mark.parametrize("target", ["old", "new"])
def test_symbolic_link_is_followed(target, tmp_path):
    """Also where what it names does not exist yet."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(Path("folder", target))
    with pytest.raises(OutputError, match="exists") if target == "old" else after_writing():
        check_writable(link)
    check_writable(link, force=True)
    write_atomic(link, b"new")
    assert link.readlink() == Path("folder", target)
    assert (tmp_path / "folder" / target).read_bytes() == b"new"
    assert names(tmp_path / "folder") == sorted({"old", target})


def special(kind, path):
    """Make what is no regular file at `path`; the socket must live as long as the test."""
    if kind == "a folder":
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a device":
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except OSError:
            pytest.skip("only root makes a device")
    else:
        folder_handle = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)  # the name of a socket has at most 107 bytes
        try:
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(path.name)
        finally:
            os.fchdir(folder_handle)
            os.close(folder_handle)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a socket", "a device"])
def test_only_regular_files_are_replaced(kind, linked, tmp_path):
    place = tmp_path / "place"
    special(kind, place)
    path = tmp_path / "link" if linked else place
    if linked:
        path.symlink_to(place)
    before = place.lstat()
    for write in (
        lambda: write_atomic(path, b"new"),
        lambda: check_writable(path),
        lambda: check_writable(path, force=True),
    ):
        with pytest.raises(OutputError, match=rf"cannot be written: it is {kind}; name another file"):
            write()
    assert (place.lstat().st_ino, place.lstat().st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no/folder/file", "no/folder is not a folder"),
        ("old/file", "Not a directory"),
        ("x" * 256, "File name too long"),
        ("loop", "Too many levels of symbolic links"),
        ("dangling", "is not a folder"),
        (".", "it is a folder"),
        ("", "it is a folder"),
        ("a\nb", "control characters"),
        ("\x1b[2J", "control characters"),
        ("a\0b", "control characters"),
        ("\x9b31m", "control characters"),
    ],
)
def test_check_writable_refuses_impossible_names(path, reason, old, monkeypatch):
    monkeypatch.chdir(old.parent)
    Path("old").write_bytes(b"")
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere/file")
    before = names(old.parent)
    for force in (False, True):
        with pytest.raises(OutputError, match="cannot be written") as raised:
            check_writable(path, force=force)
        assert reason in str(raised.value)
        assert str(raised.value).isprintable()
    if reason != "control characters" or "\0" in path:
        with pytest.raises(OutputError, match="cannot be written"):
            write_atomic(path, b"new")
    assert names(old.parent) == before


def test_longest_allowed_name_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)
    check_writable(path)
    write_atomic(path, b"new")
    assert names(tmp_path) == ["x" * 255]


def test_existing_file_needs_force(old):
    with pytest.raises(OutputError, match=r"file exists; pass --force to replace it"):
        check_writable(old)
    check_writable(old, force=True)
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("spelling", ["./file", "../{folder}/file", "link", "hard", "folder_link/file"])
@pytest.mark.parametrize("swapped", [False, True])
def test_input_is_not_replaced_under_any_spelling(spelling, swapped, old, monkeypatch):
    monkeypatch.chdir(old.parent)
    Path("link").symlink_to("file")
    Path("hard").hardlink_to("file")
    Path("folder_link").symlink_to(".")
    path, other = Path("file"), Path(spelling.format(folder=old.parent.name))
    path, other = (other, path) if swapped else (path, other)
    with pytest.raises(OutputError, match="it is the same file as"):
        check_writable(path, force=True, inputs=[other])


def test_new_outputs_that_are_one_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("out")
    for other in ("out", "./out", "link", tmp_path / "out"):
        with pytest.raises(OutputError, match="it is the same file as"):
            check_writable("out", inputs=[other])
    check_writable("out", inputs=["other"])
    assert names(tmp_path) == ["link"]


def test_after_writing_names_the_files_that_are_complete():
    with (
        pytest.raises(CheckpointError, match=r"^a is complete; the next step failed: no$"),
        after_writing("a"),
    ):
        raise CheckpointError("no")
    with (
        pytest.raises(OutputError, match=r"^a, b and c are complete; the next step failed: KeyError: 'x'$"),
        after_writing("a", "b", "c"),
    ):
        raise KeyError("x")
    with (
        pytest.raises(OutputError, match=r"^0, 1, 2 and 7 more files are complete"),
        after_writing(*"0123456789"),
    ):
        raise OSError
    with pytest.raises(BrokenPipeError), after_writing("a"):
        raise BrokenPipeError


def test_create_folder_refuses_impossible_folders(old):
    create_folder(old.parent / "a" / "b")
    create_folder(old.parent / "a" / "b")
    for path in (old, old / "below", old.parent / "a\nb", old.parent / ("x" * 256)):
        with pytest.raises(OutputError, match="cannot be created") as raised:
            create_folder(path)
        assert str(raised.value).isprintable()
    assert names(old.parent) == ["a", "file"]


def test_check_writable_leaves_no_file(tmp_path):
    check_writable(tmp_path / "file")
    assert names(tmp_path) == []


def test_why_not_writable_accepts_a_folder_that_can_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to("nowhere")
    assert why_not_writable(tmp_path) == ""
    assert why_not_writable(tmp_path / "new" / "folder") == ""
    assert why_not_writable(tmp_path / "file") == "it is not a folder"
    assert why_not_writable(tmp_path / "file" / "below") == f"{tmp_path / 'file'} is not a folder"
    assert why_not_writable(tmp_path / "broken") == "it is not a folder"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "broken"}
