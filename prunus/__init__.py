"""prunus: prune and compress trained neural networks, and reproduce lottery-ticket experiments.

>>> import prunus
>>> data = prunus.load_data("digits")
>>> model = prunus.models.lenet_300_100(seed=0)
>>> list(prunus.prunable_weights(model))
['fc1.weight', 'fc2.weight', 'fc3.weight']

The public names are listed once, in `__init__.pyi`, which type checkers and editors read too. Each is imported when it
is first used, so that `prunus --help` does not import torch.
"""

import ast
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path


def _read_origins() -> dict[str, tuple[str, str]]:
    """The module and the name there of each public name."""
    stub = Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8")
    imports = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in imports
        for alias in node.names
    }


_ORIGINS = _read_origins()
__all__ = sorted(_ORIGINS)


def _document_fields(kind: type) -> None:
    """Append the texts below the fields of a dataclass to its docstring, which is what `help` shows."""
    import inspect
    from textwrap import fill

    try:
        (definition,) = ast.parse(inspect.getsource(kind)).body
    except OSError:  # without the source
        return
    lines = []
    for pair in pairwise(getattr(definition, "body", [])):
        match pair:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                text = " ".join(text.split())
                lines.append(fill(f"{name}: {text}", 88, initial_indent=" " * 4, subsequent_indent=" " * 8))
    if lines:
        kind.__doc__ = "\n".join([inspect.getdoc(kind) or "", "", "Attributes:", *lines])


def __getattr__(name: str) -> object:
    """Import a public name, or a module such as `prunus.errors`, when it is first used."""
    module, original_name = _ORIGINS.get(name, ("prunus", name))
    if module != "prunus":
        value: object = getattr(import_module(module), original_name)
        if isinstance(value, type) and hasattr(value, "__dataclass_fields__"):
            _document_fields(value)
    elif not name.startswith("_") and find_spec(f"prunus.{name}"):
        value = import_module(f"prunus.{name}")
    else:
        raise AttributeError(f"module 'prunus' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
