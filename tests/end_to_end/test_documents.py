"""Every Python block of README and docs runs, in the order of its page, in an empty folder.

A block that begins with `# NAME.py` is the content of that file. On a page with such a block, the commands run too.
"""

import re
import shlex
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest

from prunus.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str = "python") -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def files(page: Path) -> dict[str, str]:
    named = ((re.match(r"# (\w+\.py)\n", block), block) for block in blocks(page))
    return {name[1]: block for name, block in named if name}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


OPTIONAL = re.compile(r"^(?:from|import) (lightning|transformers|accelerate)", re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_python_blocks_of_the_page_run(page, folder):
    for library in OPTIONAL.findall("".join(blocks(page))):
        pytest.importorskip(library)
    names: dict[str, object] = {"__name__": "__page__"}
    for name, text in files(page).items():
        (folder / name).write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for block in blocks(page):
            if block not in files(page).values():
                exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if files(page)], ids=lambda page: page.name)
def test_commands_of_the_page_run(page, folder, capsys):
    for name, text in files(page).items():
        (folder / name).write_text(text)
    lines = [shlex.split(line, comments=True) for block in blocks(page, "sh") for line in block.splitlines()]
    for program, *arguments in lines:
        assert program == "prunus"
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        for option, value in pairwise(arguments):
            assert option != "--out" or (folder / value).exists()


def test_programs_of_own_code_have_at_most_15_lines():
    programs = blocks(ROOT / "docs" / "in-your-code.md")[1:]  # the first makes the network and the data
    assert len(programs) == 7
    assert max(len(re.findall(r"^.*\S", program, re.MULTILINE)) for program in programs) <= 15


def test_page_on_user_models_has_its_file():
    assert list(files(ROOT / "docs" / "compress.md")) == ["mymodels.py"]
