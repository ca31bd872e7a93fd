"""Look up a built-in variant by name, import and call functions of a user, digest their source, suggest names."""

import ast
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from prunus.errors import PrunusError, SpecError, UnknownNameError

T = TypeVar("T")


def lookup(kind: str, table: Mapping[str, T], name: object) -> T:
    """Return `table[name]`.

    Args:
        kind: What the table contains, for the error.
        table: The built-in components by name.
        name: The name to look up; anything that is no text is unknown.

    Returns:
        The component.

    Raises:
        UnknownNameError: The table has no such name; the message suggests one or lists them all.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    hint = (isinstance(name, str) and suggestion(name, table)) or f"available: {', '.join(table)}."
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


def import_object(reference: str, value_type: type | None = None) -> Any:
    """Import the function that a reference names. Importing runs the module: name only code you trust.

    The current directory is put first on the import path, as under `python -m`, and remains there, because the function
    may import more when it runs.

    Args:
        reference: "package.module:function".
        value_type: If given, the name may also be that of a value of this type.

    Returns:
        The function, or the value.

    Raises:
        UnknownNameError: The reference is malformed, the module cannot be imported or has no such name, or the object
            is of another kind.

    Example:
        >>> import_object("math:hypot")(3, 4)
        5.0
    """
    module_name, name = _split_reference(reference)
    folder = _make_current_folder_importable()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        raise UnknownNameError(
            f"Looking up {reference!r}, importing {module_name!r} from {folder} or the installed packages failed: "
            f"{type(error).__name__}: {error}; correct the name, or work in the folder of the module."
        ) from error
    if not hasattr(module, name):
        hint = suggestion(name, [other for other in vars(module) if callable(getattr(module, other))])
        origin = getattr(module, "__file__", None) or "built in"
        raise UnknownNameError(
            f"Looking up {reference!r}, module {module_name!r} ({origin}) has no {name!r}"
            + (f"; {hint}" if hint else ".")
        )
    value = getattr(module, name)
    if not (callable(value) or (value_type and isinstance(value, value_type))):
        expected = f"a {value_type.__name__} or a function" if value_type else "a function to call"
        raise UnknownNameError(f"Expected {reference!r} to be {expected}, got a {type(value).__name__}.")
    return value


def call_user_function(
    what: str, error: type[PrunusError], function: Callable[..., T], *args: Any, **options: Any
) -> T:
    """Call a function of a user, with an error that names it where it fails.

    Args:
        what: The kind of function, as in "The criterion".
        error: The type of the error.
        function: The function.
        *args: Its positional arguments.
        **options: Its keyword arguments.

    Returns:
        What the function returns.

    Raises:
        PrunusError: The function raised it, or `error` in the place of any other exception.

    >>> call_user_function("The criterion", UnknownNameError, lambda stats: stats["weight"], {})
    Traceback (most recent call last):
    prunus.errors.UnknownNameError: The criterion '<lambda>' failed: KeyError: 'weight'; correct the function.
    """
    try:
        return function(*args, **options)
    except PrunusError:
        raise
    except (Exception, SystemExit) as cause:  # a user's function may fail in any way
        name = getattr(function, "__name__", type(function).__name__)
        reason = " ".join(str(cause).split())
        raise error(
            f"{what} {name!r} failed: {type(cause).__name__}: {reason}; correct the function."
        ) from cause


def source_files(*references: str | None) -> list[Path]:
    """The source files, in the current directory, of the modules that these references "package.module:function" name.

    Other names are ignored.
    """
    named = [name.partition(":")[0].split(".") for name in references if name and ":" in name]
    modules = [Path(*parts) for parts in named if all(part.isidentifier() for part in parts)]
    files = [file for module in modules for file in (module.with_suffix(".py"), module / "__init__.py")]
    return [file for file in files if file.is_file()]


def source_digest(reference: str) -> str:
    """Return a digest of the source that the function `reference`, "package.module:function", depends on.

    It covers the file of the module and the files that it imports anywhere, directly or through others.
    Modules of the standard library, of prunus and of installed packages (site-packages) do not count, nor do the names
    of folders. The modules are found, but not imported.

    Raises:
        UnknownNameError: The reference is malformed, or there is no such module.
        SpecError: A file was changed after this process imported it, so that it does not compute what the file says.

    >>> source_digest("prunus.registry:lookup") == source_digest("prunus.registry:suggestion")
    True
    """
    name, _ = _split_reference(reference)
    folder = _make_current_folder_importable()
    importlib.invalidate_caches()
    modules = _find_modules(name)
    if len(modules) < len(name.split(".")):
        raise UnknownNameError(
            f"Looking up {reference!r}, no module {name!r} was found in {folder} or the installed packages."
        )
    waiting, digests = list(modules), dict.fromkeys(modules, "")
    while waiting:
        module = waiting.pop()
        path = _source_path(modules[module])
        if path is None:
            continue
        content = path.read_bytes()
        digests[module] = hashlib.sha256(content).hexdigest()
        _check_unchanged(module, path, digests[module])
        is_package = modules[module].submodule_search_locations is not None
        for imported in _imported_names(content, module if is_package else module.rpartition(".")[0]):
            for other, spec in _find_modules(imported).items():
                if other not in modules and _is_local(other, spec):
                    modules[other], digests[other] = spec, ""
                    waiting.append(other)
    lines = (f"{module} {digest}" for module, digest in sorted(digests.items()) if digest)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


_READ: dict[str, tuple[str, ModuleSpec | None]] = {}
"""The digest of the source of each module when it was first read, and the module spec that was loaded then."""


def _check_unchanged(module: str, path: Path, digest: str) -> None:
    """Raise SpecError if the module was imported from the file `path` before the file was changed."""
    loaded = getattr(sys.modules.get(module), "__spec__", None)
    before, loaded_before = _READ.setdefault(module, (digest, loaded))
    if digest != before and loaded is not None and loaded is loaded_before:
        raise SpecError(
            f"{path} was changed after it was imported; start Python again to compute with the change."
        )
    _READ[module] = (digest, loaded)


def _split_reference(reference: str) -> tuple[str, str]:
    """Return the module and the name of "package.module:name". Raises UnknownNameError if it is not of this form."""
    module, _, name = reference.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise UnknownNameError(f"Expected a name of the form 'package.module:function', got {reference!r}.")
    return module, name


def _find_modules(name: str) -> dict[str, ModuleSpec]:
    """Return the specs of a module and of the packages around it, as far as they are found."""
    modules: dict[str, ModuleSpec] = {}
    locations: Any = None
    for full_name in accumulate(name.split("."), "{}.{}".format):
        spec = PathFinder.find_spec(full_name, locations)
        if spec is None:
            break
        modules[full_name] = spec
        locations = spec.submodule_search_locations
        if locations is None:
            break
    return modules


def _source_path(spec: ModuleSpec) -> Path | None:
    """Return the file of a module; None for a folder without `__init__.py`."""
    return Path(spec.origin) if spec.origin is not None and Path(spec.origin).is_file() else None


def _is_local(name: str, spec: ModuleSpec) -> bool:
    """Return whether a module is neither of the standard library, of prunus, nor an installed package."""
    top, path = name.partition(".")[0], _source_path(spec)
    installed = path is not None and {"site-packages", "dist-packages"} & set(path.parts)
    return top != "prunus" and top not in sys.stdlib_module_names and not installed


@lru_cache(maxsize=256)
def _imported_names(content: bytes, package: str) -> tuple[str, ...]:
    """Return the modules that a source file of `package` may import, and the names that may be modules."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # a compiled module, or a file that cannot be imported
        return ()
    return tuple(dict.fromkeys(name for node in ast.walk(tree) for name in _names_in(node, package)))


def _names_in(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _make_current_folder_importable() -> str:
    """Put the current folder first on the path of imports, unless it is there; return its name."""
    folder = str(Path.cwd())
    if not {"", folder} & set(sys.path):
        sys.path.insert(0, folder)
    return folder


def check_callbacks(**functions: object) -> None:
    """Check the arguments that are called during long work, before that work.

    Args:
        functions: What was passed, by the name of the argument.

    Raises:
        SpecError: A value is neither a function nor None.

    >>> check_callbacks(progress=print, report=None)
    """
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise SpecError(
                f"Expected a function for {name}, got {function!r}; pass a function, or None to leave it out."
            )
