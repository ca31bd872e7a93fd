"""Where data sets lie on disk."""

import os
from pathlib import Path

from prunus.errors import DataError

VARIABLE = "PRUNUS_DATA"


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds the data sets: `root`, else $PRUNUS_DATA, else ~/.cache/prunus.

    Nothing is created. Raises DataError if "~" stands in it and there is no home directory.
    """
    chosen = root or os.environ.get(VARIABLE) or "~/.cache/prunus"
    try:
        return Path(chosen).expanduser().absolute()
    except RuntimeError as error:
        raise DataError(
            f"The data root {chosen} needs a home directory and there is none: set {VARIABLE}."
        ) from error
