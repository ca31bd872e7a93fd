"""The templates of the HTML pages: every name that a page shows is escaped, a forgotten one is an error."""

from pathlib import Path
from typing import TYPE_CHECKING

from prunus.errors import PrunusError

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")


def environment() -> "Environment":
    """The templates of this room."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise PrunusError(
            "A page needs jinja2, which is not installed: pip install 'prunus[cli]'."
        ) from error

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
