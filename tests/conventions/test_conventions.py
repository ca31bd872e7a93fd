"""Guards against forgetting: the direction of the rooms, complete tables, an exact surface, light imports."""

import ast
import importlib
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prunus
from prunus.cli.app import COMMANDS
from prunus.cli.exit_codes import EXIT_CODES
from prunus.cli.names import NAMES
from prunus.compression.codecs import CODECS
from prunus.compression.quantization.kmeans_init import KMEANS_INITS
from prunus.data import DATASETS
from prunus.experiments import EXPERIMENTS, PAPERS
from prunus.experiments.rows import SIZES
from prunus.models import MODELS
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.pruners import GRADIENT_PRUNERS, PRUNERS
from prunus.pruning.schedules import SCHEDULES
from prunus.pruning.scopes import SCOPES
from prunus.pruning.second_order import DIAGONALS, LOSSES
from prunus.runs.executors import EXECUTORS
from prunus.seeded_tensors import GENERATORS
from prunus.tickets.mask0 import MASK0_ACTIONS
from prunus.tickets.mask1 import MASK1_ACTIONS
from prunus.tickets.supermask import SUPERMASKS, WEIGHT_INITS
from prunus.training.augmentation import AUGMENTATIONS

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "prunus").rglob("*.py"))

ROOMS = (
    ("errors", "files", "version", "types", "seeds", "registry", "seeded_tensors", "compiled", "masks"),
    ("data",),
    ("models",),
    ("training",),
    ("pruning",),
    ("tickets",),
    ("runs",),
    ("compression",),
    ("report",),
    ("experiments", "diagnostics"),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("prunus.")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_rooms_above_it(path):
    parts = path.relative_to(ROOT / "prunus").with_suffix("").parts
    if len(parts) == 1 and parts[0] in {"__init__", "__main__"}:
        return
    for name in imports(path):
        other = name.split(".")[1]
        assert FLOOR[other] <= FLOOR[parts[0]], f"{path.name} imports {name}"


READS = {"tarfile.open", "archive.open", "webbrowser.open", "zipfile.open", "store.open"}
"""Calls of `open` that open no file for writing, whatever their arguments."""
WRITES = {
    *("write_text", "write_bytes", "touch", "rename", "truncate", "ftruncate", "fdopen", "mkstemp", "link"),
    *(
        "symlink",
        "symlink_to",
        "hardlink_to",
        "mknod",
        "mkfifo",
        "NamedTemporaryFile",
        "save_file",
        "copyfile",
    ),
    *("copy2", "copytree", "move", "savetxt", "tofile", "print_png", "print_svg"),
}
"""Methods and functions that write or rename a file."""
ALLOWED = {
    "files.py": {"open", "replace"},
    "runs/content.py": {"open", "truncate"},  # a log: rows are appended, and a partial last line is removed
    "runs/store.py": {"rename"},  # folders, moved whole
    "data/cifar10_download.py": {"rename"},  # a folder, moved whole
    "cli/exit_codes.py": {"open"},  # the null device, in place of a closed pipe
}
"""Where something else than `prunus.files` writes, and how."""


def calls(path: Path) -> list[tuple[ast.Call, str, str]]:
    """The calls in a file, each with the name of what is called, without and with what stands before it."""
    found = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    names = [ast.unparse(node.func) for node in found]
    return [(node, name.rpartition(".")[2], name) for node, name in zip(found, names, strict=True)]


def mode_of(node: ast.Call, name: str) -> str:
    """The mode of a call of `open`: "?" where it is not written out, "w" for `os.open` that does not only read."""
    if name == "os.open":
        return "rb" if ast.unparse(node.args[1]) == "os.O_RDONLY" else "w"
    given = [keyword.value for keyword in node.keywords if keyword.arg == "mode"]
    given += node.args[1:2] if name in ("open", "io.open", "gzip.open") else node.args[:1]
    mode = given[0] if given else ast.Constant("rb" if name == "gzip.open" else "r")
    return str(mode.value) if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else "?"


def writes(node: ast.Call, short: str, name: str) -> bool:
    if short == "open":
        return name not in READS and not set(mode_of(node, name)) <= set("rbt")
    if (
        short == "replace"
    ):  # of a path; that of a text has two arguments, that of a dataclass has a name alone
        return name == "os.replace" or ("." in name and len(node.args) == 1 and not node.keywords)
    if short in ("save", "savez") and name.partition(".")[0] in ("torch", "np", "numpy"):
        return True
    return short in WRITES


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_written_in_one_place(path):
    """A file that is written or renamed without `prunus.files` could be left half-written, or destroy another."""
    place = str(path.relative_to(ROOT / "prunus"))
    found = {short: node.lineno for node, short, name in calls(path) if writes(node, short, name)}
    assert found.keys() == ALLOWED.get(place, set()), f"{place}: {found}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_text_has_an_encoding(path):
    """Without one it would be that of the locale, which is ASCII in many a container."""
    for node, short, name in calls(path):
        given = {keyword.arg for keyword in node.keywords}
        opens = short == "open" and name not in {*READS, "os.open"} and "b" not in mode_of(node, name)
        texts = short in ("read_text", "write_text") or bool(given & {"text", "universal_newlines"})
        assert not (opens or texts) or "encoding" in given, f"{path}, line {node.lineno}"


@pytest.mark.parametrize(
    ("code", "writing"),
    [
        ("path.open('wb')", True),
        ("open(path, mode='a')", True),
        ("open(path, mode)", True),
        ("gzip.open(path, 'w')", True),
        ("os.open(path, os.O_RDWR)", True),
        ("path.replace(other)", True),
        ("np.save(path, array)", True),
        ("path.open()", False),
        ("path.open('rb')", False),
        ("gzip.open(path)", False),
        ("name.replace('a', 'b')", False),
        ("replace(settings, a=1)", False),
    ],
)
def test_calls_that_write_are_told_from_others(code, writing, tmp_path):
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    assert [writes(*call) for call in calls(tmp_path / "code.py")] == [writing]


@pytest.mark.parametrize("room", ["compression/codecs"])
def test_codecs_know_nothing_of_torch(room):
    for path in (ROOT / "prunus" / room).glob("*.py"):
        assert "torch" not in path.read_text().replace("never import torch", "").replace("PyTorch", ""), path


@pytest.mark.parametrize(
    ("folder", "table", "helpers"),
    [
        ("pruning/criteria", CRITERIA, {"parts"}),
        ("pruning/scopes", SCOPES, {"han_threshold", "tiles", "feasibility"}),
        ("pruning/schedules", SCHEDULES, {"progress"}),
        ("tickets/mask1", MASK1_ACTIONS, {"rescaled", "scale", "shuffles"}),
        ("tickets/mask0", MASK0_ACTIONS, {"places"}),
        (
            "tickets/supermask",
            SUPERMASKS,
            {"uniforms", "criterion_supermask", "constraint", "learned_supermask", "weights"},
        ),
    ],
)
def test_every_variant_has_a_file_a_card_and_a_place_in_its_table(folder, table, helpers):
    stems = {path.stem for path in (ROOT / "prunus" / folder).glob("*.py")} - {"__init__"}
    files = {stem.rstrip("_") for stem in stems}
    patterns = {"2:4": "n_m", "4:8": "n_m", "1x4": "block"}
    # What ends so, `rescaled` makes of others; patterns of one kind are one file.
    variants = {patterns.get(name, name) for name in table if not name.endswith("_rescaled")}
    assert files - helpers == variants
    for name in variants | (helpers & {"rescaled"}):
        module = next(p for p in (ROOT / "prunus" / folder).glob("*.py") if p.stem.rstrip("_") == name)
        card = ast.get_docstring(ast.parse(module.read_text())) or ""
        assert "Source:" in card, f"{module} has no source on its card"


def test_everything_built_in_is_in_the_docs():
    text = (ROOT / "docs" / "variants.md").read_text()
    tables = (
        MODELS,
        DATASETS,
        CRITERIA,
        PRUNERS,
        DIAGONALS,
        LOSSES,
        SCOPES,
        SCHEDULES,
        MASK1_ACTIONS,
        MASK0_ACTIONS,
        SUPERMASKS,
        WEIGHT_INITS,
        GENERATORS,
        CODECS,
        KMEANS_INITS,
        (*PAPERS, *EXPERIMENTS),
        EXECUTORS,
        AUGMENTATIONS,
        prunus.COMPRESSION_RECIPES,
    )
    missing = [name for table in tables for name in table if f"`{name}`" not in text]
    assert not missing


def test_the_surface_is_exact():
    """What is offered, what is listed, where each name comes from, and what type checkers see are one list."""
    assert len(prunus.__all__) == len(set(prunus.__all__))
    assert set(dir(prunus)) == set(prunus.__all__)
    tree = ast.parse((ROOT / "prunus" / "__init__.py").read_text())
    (seen,) = (node.body for node in tree.body if isinstance(node, ast.If))
    typed = {name.asname or name.name: (line.module, name.name) for line in seen for name in line.names}
    assert typed.keys() | {"__version__"} == set(prunus.__all__)
    for name, (module, origin) in typed.items():
        assert getattr(prunus, name) is getattr(importlib.import_module(module), origin), name


def in_a_process_of_its_own(code: str) -> list[str]:
    return subprocess.check_output([sys.executable, "-c", code], text=True).split()


def test_a_name_is_there_when_it_is_asked_for_and_not_before():
    said = in_a_process_of_its_own(
        "import sys, prunus; print('torch' in sys.modules);"
        "print(prunus.load_data('digits').name, prunus.errors.DataError.exit_code, 'torch' in sys.modules)"
    )
    assert said == ["False", "digits", "3", "True"]
    with pytest.raises(AttributeError, match="module 'prunus' has no attribute 'tarin'"):
        prunus.tarin  # noqa: B018
    assert not hasattr(prunus, "_train")
    with pytest.raises(ImportError):
        exec("from prunus import tarin")


def test_a_star_brings_everything_and_things_travel_by_pickle():
    names: dict[str, object] = {}
    exec("from prunus import *", names)
    assert set(prunus.__all__) == names.keys() - {"__builtins__"}
    for name in ("train", "Recipe", "PrunusError"):
        assert pickle.loads(pickle.dumps(names[name])) is names[name]
    recipe = prunus.RECIPES["conv-2"]
    assert pickle.loads(pickle.dumps(recipe)) == recipe


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_waits_for_nothing_heavy(arguments):
    heavy = "{'torch', 'numpy', 'numba', 'scipy', 'safetensors', 'matplotlib', 'jinja2', 'constriction'}"
    code = (
        "import atexit, sys; from prunus.cli import main;"
        f"atexit.register(lambda: print('heavy:', *({heavy} & set(sys.modules)))); main({arguments})"
    )
    assert in_a_process_of_its_own(code)[-1] == "heavy:"


def test_every_public_error_is_drawn_in_the_tree():
    from prunus import errors

    for name, thing in vars(errors).items():
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert re.search(rf"\b{name}\b", errors.__doc__ or ""), name


def test_the_exit_codes_of_all_errors_are_in_the_table_of_the_page_and_in_the_tree():
    from prunus import errors

    page = (ROOT / "docs" / "command-line.md").read_text()
    assert {
        int(code): text for code, text in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)
    } == EXIT_CODES
    named = {name: thing for name, thing in vars(errors).items() if hasattr(thing, "exit_code")}
    assert {thing.exit_code for thing in named.values()} <= EXIT_CODES.keys()
    drawn = {
        name: int(code)
        for name, code in re.findall(r"(\w+Error) +(?:exit code )?(\d)\b", errors.__doc__ or "")
    }
    assert drawn == {name: named[name].exit_code for name in drawn}
    not_drawn = [thing for name, thing in named.items() if name not in drawn]
    assert all(thing.exit_code == thing.__base__.exit_code for thing in not_drawn)


def test_completion_offers_exactly_the_built_in_names():
    tables = {
        "model": MODELS,
        "data set": DATASETS,
        "criterion": {**CRITERIA, **GRADIENT_PRUNERS, **PRUNERS},
        "scope": SCOPES,
        "recipe": prunus.COMPRESSION_RECIPES,
        "experiment": (*PAPERS, *EXPERIMENTS),
        "engine": EXECUTORS,
        "size": SIZES,
    }
    assert {kind: tuple(table) for kind, table in tables.items()} == NAMES


@pytest.mark.parametrize("words", ["prunus compress --model le", "prunus run zhou", "prunus runs "])
def test_completion_waits_for_nothing_heavy(words, monkeypatch):
    monkeypatch.setenv("_PRUNUS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    code = (
        "import atexit, sys; from prunus.cli import main;"
        "atexit.register(lambda: print('heavy:', *({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))); main([])"
    )
    *offered, heavy = in_a_process_of_its_own(code)
    assert heavy == "heavy:"
    assert offered


def test_import_is_light():
    """All names: no plotting, no command line, no compiler; below 0.3 CPU seconds on top of torch (best of 3)."""
    code = (
        "import torch, sys, time; before = set(sys.modules); t = time.process_time(); from prunus import *;"
        "took = time.process_time() - t; names = {'matplotlib', 'typer', 'rich', 'jinja2', 'numba', 'scipy'};"
        "print(took, *(names & (set(sys.modules) - before)))"
    )
    runs = [in_a_process_of_its_own(code) for _ in range(3)]
    assert all(len(run) == 1 for run in runs), f"imports {runs[0][1:]}"
    assert min(float(run[0]) for run in runs) < 0.3


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md")), ids=lambda p: p.name
)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_unfinished_work(path):
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", path.read_text())


def test_modules_can_be_imported_alone():
    for path in SOURCES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not name.endswith("__main__"):
            importlib.import_module(name)


def test_every_benchmark_is_listed_and_imports():
    """They are run by hand; a name that moved under one of them shows here."""
    code = (
        "from importlib import import_module; from benchmarks.__main__ import NAMES;"
        "[import_module(f'benchmarks.{name}').run for name in NAMES]; print(*NAMES)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert files - {"__init__", "__main__", "timing", "plain_lottery"} == set(done.stdout.split())
