"""The templates of the HTML pages: every name that a page shows is escaped, a forgotten one is an error."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.errors import PrunusError

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")


def environment() -> "Environment":
    """The templates of this room."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_whole(path: str | os.PathLike[str], page: str) -> None:
    """Write a page, which appears whole or not at all. Raises PrunusError where it cannot be written."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.part")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise PrunusError(f"The page could not be written to {target}: {error.strerror or error}.") from error
