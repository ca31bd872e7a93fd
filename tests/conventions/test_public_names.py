"""Guards against forgetting: public names, registries, errors and commands, their documentation, and light imports."""

import importlib
import inspect
import os
import pickle
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from sources import ROOT

import prunus
from prunus import errors
from prunus.cli.app import COMMANDS
from prunus.cli.exit_codes import EXIT_CODES
from prunus.cli.list_ import registries
from prunus.cli.names import NAMES
from prunus.experiments.rows import SIZES
from prunus.pruning.obs.diagonals import DIAGONALS
from prunus.seeded_tensors import GENERATORS
from prunus.tickets.supermask import WEIGHT_INITS
from prunus.training.losses import LOSSES

ERRORS = {name: value for name, value in vars(errors).items() if isinstance(value, type)}


def run_python(code):
    """The words that a new process prints; it stores its bytecode, as that of a user does."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).split()


def test_public_names_are_exact():
    names = [line.split() for line in (ROOT / "prunus" / "__init__.pyi").read_text().splitlines()]
    imports = [line for line in names if line[:1] == ["from"]]
    assert [line[2] + line[4] for line in imports] == ["import" + "as"] * len(imports)
    assert prunus.__all__ == dir(prunus) == sorted(line[5] for line in imports)
    for _, module, _, original_name, _, name in imports:
        if module != "prunus":
            assert getattr(prunus, name) is getattr(importlib.import_module(module), original_name), name


def test_public_names_are_imported_when_they_are_used():
    printed = run_python(
        "import sys, prunus; print('torch' in sys.modules);"
        "print(prunus.load_data('digits').name, prunus.errors.DataError.exit_code, 'torch' in sys.modules)"
    )
    assert printed == ["False", "digits", "3", "True"]
    with pytest.raises(AttributeError, match="module 'prunus' has no attribute 'tarin'"):
        prunus.tarin  # noqa: B018
    assert not hasattr(prunus, "_train")
    with pytest.raises(ImportError):
        exec("from prunus import tarin")


def test_help_of_dataclasses_shows_the_texts_of_their_fields():
    documented = [name for name in prunus.__all__ if "Attributes:" in (getattr(prunus, name).__doc__ or "")]
    assert {"Recipe", "CompressionRecipe", "Compressed", "Pruned", "Statistics", "Dataset"} <= {*documented}
    text = inspect.getdoc(prunus.Recipe)
    assert all(f"\n    {setting.name}: " in text for setting in fields(prunus.Recipe))
    assert "momentum: Of the optimizers" in text


def test_every_setting_of_a_recipe_is_in_the_docs():
    page = (ROOT / "docs" / "training.md").read_text()
    cells = " ".join(re.findall(r"^\| (`.+?) \|", page, re.MULTILINE))
    assert {setting.name for setting in fields(prunus.Recipe)} - {"source"} <= {
        *re.findall(r"`(\w+)`", cells)
    }


def test_star_import_gives_all_names_and_they_can_be_pickled():
    names = {}
    exec("from prunus import *", names)
    assert set(prunus.__all__) == names.keys() - {"__builtins__"}
    for name in ("train", "Recipe", "PrunusError"):
        assert pickle.loads(pickle.dumps(names[name])) is names[name]
    recipe = prunus.RECIPES["conv-2"]
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_import_of_all_names_is_light():
    """No plotting, command line or compiler; less than a third of the CPU time of importing torch (best of 3)."""
    code = (
        "import sys, time; start = time.process_time(); import torch; before = set(sys.modules);"
        "imported = time.process_time(); from prunus import *;"
        "ratio = (time.process_time() - imported) / (imported - start);"
        "names = {'matplotlib', 'typer', 'rich', 'jinja2', 'numba', 'scipy'};"
        "print(ratio, *(names & (set(sys.modules) - before)))"
    )
    runs = [run_python(code) for _ in range(3)]
    assert all(len(run) == 1 for run in runs), f"imports {runs[0][1:]}"
    assert min(float(run[0]) for run in runs) < 1 / 3


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_no_heavy_package(arguments):
    heavy = "{'torch', 'numpy', 'numba', 'scipy', 'safetensors', 'matplotlib', 'jinja2', 'constriction'}"
    code = (
        "import atexit, sys; from prunus.cli import main;"
        f"atexit.register(lambda: print('heavy:', *({heavy} & set(sys.modules)))); main({arguments})"
    )
    assert run_python(code)[-1] == "heavy:"


@pytest.mark.parametrize("words", ["prunus compress --model le", "prunus run zhou", "prunus runs "])
def test_completion_imports_no_heavy_package(words, monkeypatch):
    monkeypatch.setenv("_PRUNUS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    code = (
        "import atexit, sys; from prunus.cli import main;"
        "atexit.register(lambda: print('heavy:', *({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))); main([])"
    )
    *completions, heavy = run_python(code)
    assert heavy == "heavy:"
    assert completions


def test_completion_lists_exactly_the_built_in_names():
    tables = registries()
    expected = {
        "model": tables["models"],
        "data set": tables["data sets"],
        "criterion": {**tables["criteria"], **tables["pruning methods"]},
        "filter criterion": tables["filter criteria"],
        "scope": tables["scopes"],
        "preset": tables["compression presets"],
        "experiment": tables["experiments"],
        "executor": tables["executors"],
        "size": SIZES,
    }
    assert {kind: tuple(table) for kind, table in expected.items()} == NAMES


def test_every_built_in_name_is_in_the_docs():
    text = (ROOT / "docs" / "builtins.md").read_text()
    tables = [*registries().values(), DIAGONALS, LOSSES, WEIGHT_INITS, GENERATORS]
    assert not [name for table in tables for name in table if f"`{name}`" not in text]


@pytest.mark.parametrize("kind", ["criteria", "scopes", "mask-1 actions", "mask-0 actions", "supermasks"])
def test_every_method_of_a_paper_names_its_source(kind):
    for name, component in registries()[kind].items():
        function = getattr(component, "values", component)
        module = sys.modules[function.__module__]
        assert "Source" in f"{function.__doc__}{module.__doc__}", name


def test_every_error_is_in_the_tree_with_its_exit_code():
    tree = errors.__doc__ or ""
    assert not [name for name in ERRORS if not re.search(rf"\b{name}\b", tree)]
    codes = {name: int(code) for name, code in re.findall(r"(\w+Error) +(?:exit code )?(\d)\b", tree)}
    assert codes == {name: ERRORS[name].exit_code for name in codes}
    unlisted = [error for name, error in ERRORS.items() if name.endswith("Error") and name not in codes]
    assert all(error.exit_code == error.__base__.exit_code for error in unlisted)


def test_exit_codes_are_in_the_docs():
    page = (ROOT / "docs" / "command-line.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)
    assert {int(code): text for code, text in rows} == EXIT_CODES
    assert {error.exit_code for error in ERRORS.values() if hasattr(error, "exit_code")} <= EXIT_CODES.keys()


PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_docs_point_to_files(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


def test_every_image_is_in_a_page():
    pages = "".join(page.read_text() for page in PAGES)
    assert not [
        image.name for image in (ROOT / "docs/images").iterdir() if f"images/{image.name})" not in pages
    ]


def test_every_benchmark_is_listed_and_can_be_imported():
    """They are run by hand; a name that was moved shows here."""
    code = (
        "from importlib import import_module; from benchmarks.__main__ import NAMES;"
        "[import_module(f'benchmarks.{name}').run for name in NAMES]; print(*NAMES)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    others = {"__init__", "__main__", "timing", "baseline_script", "open_lth", "open_lth_script"}
    assert files - others == set(process.stdout.split())
