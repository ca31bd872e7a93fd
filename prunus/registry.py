"""Look up built-in components by name, import objects by reference, and suggest known names for misspelled ones."""

import importlib
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from prunus.errors import UnknownNameError

T = TypeVar("T")


def lookup(kind: str, table: Mapping[str, T], name: str) -> T:
    """Return `table[name]`.

    Args:
        kind: What the table contains, for the error.
        table: The built-in components by name.
        name: The name to look up.

    Returns:
        The component.

    Raises:
        UnknownNameError: The table has no such name; the message suggests one or lists them all.
    """
    if name in table:
        return table[name]
    hint = suggestion(name, table) or f"available: {', '.join(table)}."
    raise UnknownNameError(f"Unknown {kind} {name!r}; {hint}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Ask whether the known name closest to a misspelled one was meant.

    Args:
        name: The misspelled name.
        known: The names that exist.

    Returns:
        The question; empty if no name is close.

    Example:
        >>> suggestion("--jso", ["--json", "--seed"]), suggestion("MNIST", ["mnist"]), suggestion("x", ["mnist"])
        ("did you mean '--json'?", "did you mean 'mnist'?", '')
    """
    closest = closest_names(name, known)
    return f"did you mean {closest[0]!r}?" if closest else ""


def closest_names(name: str, known: Iterable[str], limit: int = 1) -> list[str]:
    """Find the known names that resemble a misspelled one; case is ignored.

    Args:
        name: The misspelled name.
        known: The names that exist.
        limit: The most names to return.

    Returns:
        The names, the most similar first.

    Example:
        >>> closest_names("LeNet5", ["lenet-5", "lenet-300-100"], limit=2)
        ['lenet-5']
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    matches = get_close_matches(name.lower(), by_lower_case, n=limit)
    return [by_lower_case[match] for match in matches]


def import_object(reference: str, also: type | None = None) -> Any:
    """Import the function that a reference names. Importing runs the module: name only code you trust.

    The current directory is put first on the import path, as under `python -m`, and remains there, because the function
    may import more when it runs.

    Args:
        reference: "package.module:function".
        also: The name may also be that of a value of this type.

    Returns:
        The function, or the value.

    Raises:
        UnknownNameError: The reference is malformed, the module cannot be imported or has no such name, or the object
            is of another kind.

    Example:
        >>> import_object("math:hypot")(3, 4)
        5.0
    """
    module_name, colon, name = reference.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise UnknownNameError(f"{reference!r} is not of the form 'package.module:function'.")
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        raise UnknownNameError(
            f"Looking up {reference!r}, importing {module_name!r} from {here} or the installed packages "
            f"failed: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, name):
        hint = suggestion(name, [other for other in vars(module) if callable(getattr(module, other))])
        raise UnknownNameError(
            f"Looking up {reference!r}, module {module_name!r} ({_origin(module)}) has no {name!r}"
            + (f"; {hint}" if hint else ".")
        )
    value = getattr(module, name)
    if not (callable(value) or (also and isinstance(value, also))):
        expected = f"a {also.__name__} or a function" if also else "a function to call"
        raise UnknownNameError(f"{reference!r} is a {type(value).__name__}, not {expected}.")
    return value


def source_files(*references: str | None) -> list[Path]:
    """The files in the current directory that the references "package.module:function" among these names are in."""
    named = [name.partition(":")[0].split(".") for name in references if name and ":" in name]
    modules = [Path(*parts) for parts in named if all(part.isidentifier() for part in parts)]
    files = [file for module in modules for file in (module.with_suffix(".py"), module / "__init__.py")]
    return [file for file in files if file.is_file()]


def _origin(module: object) -> str:
    return getattr(module, "__file__", None) or "built in"
