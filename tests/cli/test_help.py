"""The help of every command fits into a terminal of 80 columns."""

import inspect

import pytest

from prunus.cli import main
from prunus.cli.app import COMMANDS
from prunus.cli.runs import app as runs

FUNCTIONS = {
    **{(name,): function for name, function in COMMANDS.items()},
    **{("runs", command.name): command.callback for command in runs.registered_commands},
}
"""The function of each command, by its words."""


@pytest.mark.parametrize("words", FUNCTIONS, ids=" ".join)
def test_help_is_not_truncated_at_80_columns(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert "…" not in capsys.readouterr().out


@pytest.mark.parametrize("words", FUNCTIONS, ids=" ".join)
def test_lines_of_the_help_are_not_broken_twice(words):
    """Typer breaks a line of a later paragraph where the docstring does, and also where the terminal ends."""
    paragraphs = inspect.getdoc(FUNCTIONS[words]).split("\n\n")[1:]
    assert not [line for text in paragraphs if "\n" in text for line in text.splitlines() if len(line) > 78]
