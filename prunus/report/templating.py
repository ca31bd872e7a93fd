"""The templates of the pages. Text inserted into HTML is escaped, and an undefined variable is an error."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.errors import PrunusError
from prunus.report import formatting
from prunus.text_tables import pluralize

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).with_name("templates")
FILTERS = {
    "thousands": "{:,}".format,
    "density": formatting.format_density,
    "density_pair": formatting.format_density_pair,
    "ratio": formatting.format_ratio,
    "quality": formatting.format_quality,
    "quality_name": formatting.quality_name,
    "base64": lambda data: base64.b64encode(data).decode(),
    "duration": formatting.format_duration,
    "count": pluralize,
}


def load_template(name: str) -> "Template":
    """Return the template in the file `name`. Raises PrunusError where jinja2 is not installed."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise PrunusError(
            "A page needs jinja2, which is not installed: pip install 'prunus[cli]'."
        ) from error

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template(name)
