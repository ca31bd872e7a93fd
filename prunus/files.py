"""Write files: each appears complete or not at all, and only a regular file is ever replaced.

Everything in the package that writes a file does it here, except logs that are only appended to. A path that is a
symbolic link is written through: the link stays, and the file that it names is written. Text is UTF-8 in every locale.
"""

import os
import secrets
import stat
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from prunus.errors import OutputError, PrunusError

TEMPORARY = ".part"
"""How the names of temporary files end; they begin with a dot. A killed process may leave one."""

MAX_NAMES = 4
"""The most files that a message names."""

AnyPath = str | os.PathLike[str]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def open_atomic(
    path: AnyPath, *, error: type[PrunusError] = OutputError, advice: str = ""
) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` when the block ends without an exception.

    It is written under a random name in the same folder, flushed to the disk and renamed, with the permissions that
    the umask leaves. After an exception the file that was there is unchanged, and no temporary file is left.

    Args:
        path: A new name, or a regular file, which is replaced. A symbolic link is followed.
        error: The class that an OSError in the block is raised as.
        advice: Added to the message of that error.

    Yields:
        The file, under its temporary name.

    Raises:
        OutputError: The file cannot be written, or `path` is a folder, a device, a pipe or a socket; or `error`.
    """
    with os_errors(path, error, advice):
        target = _target(path, error)
        temporary = target.with_name(f".{secrets.token_hex(8)}{TEMPORARY}")
        try:
            with temporary.open("xb") as file:  # O_EXCL: never an existing file, never through a link
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(_target(target, error))
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        sync_folder(target.parent)


def write_atomic(
    path: AnyPath, content: bytes | str, *, error: type[PrunusError] = OutputError, advice: str = ""
) -> None:
    r"""Write a file as `open_atomic` does.

    Args:
        path: As in `open_atomic`.
        content: The bytes, or text, which is written as UTF-8. A lone surrogate, which represents a byte of a file name
            that is not UTF-8, is written as an escape.
        error: As in `open_atomic`.
        advice: As in `open_atomic`.

    Raises:
        OutputError: As in `open_atomic`.

    Example:
        >>> path = Path(tempfile.mkdtemp(), "note.txt")
        >>> write_atomic(path, "3 × 2")
        >>> path.read_bytes()
        b'3 \xc3\x97 2'
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with open_atomic(path, error=error, advice=advice) as file:
        file.write(data)


@contextmanager
def os_errors(path: AnyPath, error: type[PrunusError] = OutputError, advice: str = "") -> Iterator[None]:
    """Raise an OSError in the block as another error: "PATH cannot be written: REASON".

    Args:
        path: The file or folder that the block writes.
        error: The class of the error.
        advice: Added to the message.

    Raises:
        OutputError: An OSError was raised in the block; or `error`.
    """
    try:
        yield
    except OSError as cause:
        reason = cause.strerror or str(cause) or type(cause).__name__
        raise error(f"{os.fspath(path)} cannot be written: {reason}{'; ' * bool(advice)}{advice}.") from cause


def has_control_characters(path: AnyPath) -> bool:
    r"""Whether the name `path` contains control characters.

    >>> has_control_characters("a\nb"), has_control_characters("a b")
    (True, False)
    """
    return any(unicodedata.category(character) == "Cc" for character in os.fspath(path))


def why_not_writable(folder: Path) -> str:
    """The reason why no file can be written in `folder`, or it cannot be created; empty if there is none.

    Nothing is created.

    >>> why_not_writable(Path(tempfile.gettempdir()) / "new" / "folder"), why_not_writable(Path(__file__))
    ('', 'it is not a folder')
    """
    if has_control_characters(folder):
        return "its name has control characters"
    # The nearest parent that exists: a missing folder would be created in it. `lexists` also finds broken links.
    existing = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), folder)
    if not existing.is_dir():
        return "it is not a folder" if existing == folder else f"{existing} is not a folder"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def check_writable(path: AnyPath, *, force: bool = False, inputs: Iterable[AnyPath] = ()) -> None:
    """Check, before any work, that `path` can be written and that writing it destroys nothing.

    Args:
        path: The file to write.
        force: Whether it may replace a file that exists.
        inputs: Files that are read for it, and other files that are written with it; `path` must not be one of them,
            under any spelling, symbolic link or hard link, not even with `force`.

    Raises:
        OutputError: The path is a folder, a device, a pipe or a socket; it is one of `inputs`; it exists and `force`
            is False; its folder does not exist or cannot be written; its name is too long or has control characters.
    """
    name = os.fspath(path)
    if has_control_characters(name):
        raise OutputError(f"{name!r} cannot be written: its name has control characters; name another file.")
    with os_errors(name):
        target = _target(name, OutputError)
        for other in inputs:
            if _is_same_file(target, other):
                raise OutputError(
                    f"{name} cannot be written: it is the same file as {os.fspath(other)}, which the command reads "
                    "or writes as well; name another file."
                )
        if target.exists():
            if not force:
                raise OutputError(f"{name} exists; pass --force to replace it, or name another file.")
        elif not target.parent.is_dir():
            parent = target.parent if Path(name).is_symlink() else Path(name).parent
            raise OutputError(
                f"{name} cannot be written: {parent} is not a folder; make it first, or name another."
            )
        if reason := why_not_writable(target.parent):
            raise OutputError(
                f"{name} cannot be written: {reason}; make {Path(name).parent} writable, or name another folder."
            )


@contextmanager
def after_writing(*paths: AnyPath) -> Iterator[None]:
    """Add to the message of any exception in the block that the files `paths` are complete."""
    try:
        yield
    except BrokenPipeError:  # the reader of the standard output has gone
        raise
    except Exception as error:
        kind = type(error) if isinstance(error, PrunusError) else OutputError
        reason = str(error) if isinstance(error, PrunusError) else f"{type(error).__name__}: {error}"
        names = [os.fspath(path) for path in paths]
        if len(names) > MAX_NAMES:
            names[MAX_NAMES - 1 :] = [f"{len(names) - MAX_NAMES + 1} more files"]
        complete = f"{names[0]} is" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} are"
        raise kind(f"{complete} complete; the next step failed: {reason}") from error


def create_folder(path: AnyPath) -> None:
    """Create the folder `path` and its parents, if they do not exist. Raises OutputError."""
    name = os.fspath(path)
    if has_control_characters(name):
        raise OutputError(
            f"The folder {name!r} cannot be created: its name has control characters; name another folder."
        )
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"The folder {name} cannot be created: {getattr(error, 'strerror', None) or error}; make "
            f"{Path(name).parent} writable, or name another folder."
        ) from error


@contextmanager
def output_folder(path: AnyPath) -> Iterator[None]:
    """Create the folder `path` and its parents; those that are empty after an error are removed again."""
    missing = [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]
    create_folder(path)
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk, if the system can.

    Some file systems cannot. A renamed file is in place anyway, so this is not an error.
    """
    if os.name == "posix":
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _target(path: AnyPath, error: type[PrunusError]) -> Path:
    """The regular file, or the new name, to which `path` leads when links are followed."""
    try:
        kind = _KINDS.get(stat.S_IFMT(Path(path).stat().st_mode))
        if kind is not None:
            raise error(f"{os.fspath(path)} cannot be written: it is {kind}; name another file.")
    except FileNotFoundError:
        pass
    except ValueError as cause:  # a zero byte, or a character that the file system has no encoding for
        raise error(f"{os.fspath(path)!r} cannot be written: {cause}; name another file.") from cause
    return Path(os.path.realpath(path))


def _is_same_file(path: Path, other: AnyPath) -> bool:
    with suppress(OSError):
        return path.samefile(other)
    return path == Path(os.path.realpath(other))
