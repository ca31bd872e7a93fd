"""The source files of prunus, and the imports and definitions in them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "prunus").rglob("*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    """The path below `prunus/`, for test names and messages."""
    return str(path.relative_to(ROOT / "prunus"))


def module_of(path: Path) -> str:
    """The name by which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES = {module_of(path): path for path in SOURCES}


def imports(path: Path) -> set[str]:
    """The modules of prunus that a file imports anywhere, `TYPE_CHECKING` included."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    modules = {_longest_module(name) for name in names if name.startswith("prunus.")}
    return modules - {"prunus", module_of(path)}


def _longest_module(name: str) -> str:
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def public_functions(path: Path) -> Iterator[Function]:
    """The public functions of a module, and the public methods of its public classes."""
    for node in tree_of(path).body:
        members = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        yield from (
            member for member in members if isinstance(member, Function) and not member.name.startswith("_")
        )
