"""Names and sentences use the terms of the field: no private words in identifiers, no obscure phrases in prose."""

import ast
import re

from sources import ROOT, SOURCES, tree_of

WORDS = re.compile(
    r"(?:^|_)(?:found|asked|said|told|looks?|likely|drawn|wanted|foretold|anew|beside|chosen|taken|mine|thing|everything|"
    r"nouns?|holes?|shelf|surgeon|receipts?|laboratory|telling)$"
)
"""Names that do not say what a value is, and metaphors."""

PHRASES = re.compile(
    r"\b(?:anew|at one go|in one go|what (?:goes|stays|is left)|was to be|w(?:as|ere) asked for|(?:is|are) asked for|"
    r"the laws|the (?:house|room|laboratory|receipts?)|its card|holes?|foretells?|nought|let go of|surgeons?|shelf|"
    r"will keep whole|(?:network|layer|model) answers?|(?<!most )likely masks?)\b|[Ww]here we depart|\bDeparts:",
)
"""Phrases that a reader of this field would not understand."""

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CHECKED = [*SOURCES, *PAGES]


def identifiers(tree):
    """The names that a module defines or assigns, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name.lower(), node.lineno


def prose(path):
    """The lines of a page, or of the docstrings and messages of a module, with their numbers."""
    if path.suffix == ".md":
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from enumerate(node.value.splitlines(), node.lineno)


def test_words_are_those_of_the_field():
    places = []
    for path in CHECKED:
        names = identifiers(tree_of(path)) if path.suffix == ".py" else ()
        lines = [(line, f"the name {name}") for name, line in names if WORDS.search(name)]
        lines += [(line, text.strip()) for line, text in prose(path) if PHRASES.search(text)]
        places += [f"{path.relative_to(ROOT)}:{line}: {text}" for line, text in lines]
    assert not places, "\n".join(places)
