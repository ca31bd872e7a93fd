"""The structure of the source: layers, cycles, names, files that are written, docstrings."""

import ast
import importlib
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter

import pytest
from sources import MODULES, ROOT, SOURCES, imports, module_of, name_of, public_functions, tree_of

LAYERS = (
    *(
        "version",
        "errors",
        "modules",
        "types",
        "seeds",
        "registry",
        "files",
        "optimizer_hooks",
        "masks",
        "seeded_tensors",
        "compiled",
        "text_tables",
    ),
    *(
        "data",
        "models",
        "training",
        "pruning",
        "compression",
        "integrations",
        "runs",
        "tickets",
        "report",
        "experiments",
    ),
    *("diagnostics", "cli"),
)
"""The modules and packages below `prunus`; each imports only those before it."""

FORBIDDEN = {"runs": {"training", "pruning"}}
"""Packages that a package must not import, although they are before it."""

INTERFACES = {
    "cost": "of each codec: the interface that codecs share",
    "decode_chunks": "of each codec",
    "encode": "of each codec and file format, called by the name of its module, such as `idx.encode`",
    "linear": "a learning-rate schedule, and an initialization of k-means: each paper calls it so",
    "random": "a criterion, and an initialization of k-means: each paper calls it so",
    "read": "a file of the format of its module, called by the name of the module, such as `idx.read`",
    "write": "a file of the format of its module",
}
"""Public names that several modules may define, and why."""

READING_CALLS = {
    "Image.open",
    "tarfile.open",
    "archive.open",
    "store.open",
    "webbrowser.open",
    "zipfile.open",
}
"""Calls of `open` that open no file for writing, whatever their arguments."""
WRITING_NAMES = {
    *("write_text", "write_bytes", "touch", "rename", "truncate", "ftruncate", "fdopen", "mkstemp", "link"),
    *("symlink", "symlink_to", "hardlink_to", "mknod", "mkfifo", "NamedTemporaryFile", "save_file"),
    *("copyfile", "copy2", "copytree", "move", "savetxt", "tofile", "print_png", "print_svg"),
}
"""Methods and functions that write or rename a file."""
WRITING_MODULES = {
    "files.py": {"open", "replace"},
    "runs/content.py": {
        "open",
        "truncate",
    },  # a log: rows are appended, and an incomplete last line is removed
    "runs/store.py": {"rename"},  # folders
    "data/cifar10.py": {"rename"},  # a folder
    "cli/exit_codes.py": {"open"},  # the null device, in place of a closed pipe
}
"""Where something other than `prunus.files` writes, and how."""


def test_package_imports_only_packages_before_it():
    wrong = {}
    for path in SOURCES:
        package = module_of(path).partition(".")[2].partition(".")[0]
        if package in LAYERS:
            allowed = set(LAYERS[: LAYERS.index(package) + 1]) - FORBIDDEN.get(package, set())
            wrong[name_of(path)] = {name.split(".")[1] for name in imports(path)} - allowed
    assert not {name: packages for name, packages in wrong.items() if packages}


def test_every_package_has_a_layer():
    packages = {name.split(".")[1] for name in MODULES if "." in name} - {"__main__"}
    assert packages - set(LAYERS) == set()


def test_imports_have_no_cycle():
    graph = {module_of(path): imports(path) for path in SOURCES if path.name != "__init__.py"}
    modules = {name: names & graph.keys() for name, names in graph.items()}
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        pytest.fail(f"Import cycle: {' -> '.join(error.args[1])}")


def meanings(path):
    """The public classes, functions and type aliases of a module, each with its definition, as far as it is short."""
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, name_of(path)
        elif isinstance(node, ast.Assign) and re.match(r"[A-Z][a-z]", ast.unparse(node.targets[0])):
            yield ast.unparse(node.targets[0]), ast.unparse(node.value)


def test_public_name_has_one_meaning():
    defined = defaultdict(set)
    library = [path for path in SOURCES if not name_of(path).startswith("cli/")]
    for path in library:  # a command has the name of the function that it calls
        for name, meaning in meanings(path):
            if not name.startswith("_"):
                defined[name].add(meaning)
    several = {name for name, texts in defined.items() if len(texts) > 1}
    assert several - INTERFACES.keys() == set()


def calls(tree):
    """Each call in a tree, with the name of the function, without and with what is before the last dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            yield node, name.rpartition(".")[2], name


def open_mode(node, name):
    """The mode of a call of `open`: "?" if it is no literal; for `os.open`, "w" unless it only reads."""
    if name == "os.open":
        return "rb" if ast.unparse(node.args[1]) == "os.O_RDONLY" else "w"
    modes = [keyword.value for keyword in node.keywords if keyword.arg == "mode"]
    modes += node.args[1:2] if name in ("open", "io.open", "gzip.open") else node.args[:1]
    mode = modes[0] if modes else ast.Constant("rb" if name == "gzip.open" else "r")
    return str(mode.value) if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else "?"


def writes(node, short_name, name):
    if short_name == "open":
        return name not in READING_CALLS and not set(open_mode(node, name)) <= set("rbt")
    if short_name == "replace":  # of a path; of a string it has two arguments, of a dataclass no dot
        return name == "os.replace" or ("." in name and len(node.args) == 1 and not node.keywords)
    if short_name in ("save", "savez") and name.partition(".")[0] in ("torch", "np", "numpy"):
        return True
    return short_name in WRITING_NAMES


def test_files_are_written_by_one_module():
    """A file that is written or renamed without `prunus.files` could be incomplete, or destroy another."""
    written = defaultdict(set)
    for path in SOURCES:
        for node, short_name, name in calls(tree_of(path)):
            if writes(node, short_name, name):
                written[name_of(path)].add(short_name)
    assert written == WRITING_MODULES


def test_text_files_have_an_encoding():
    """The default is that of the locale, which is ASCII in many containers."""
    places = []
    for path in SOURCES:
        for node, short_name, name in calls(tree_of(path)):
            keywords = {keyword.arg for keyword in node.keywords}
            is_open = short_name == "open" and name not in {*READING_CALLS, "os.open"}
            is_text = short_name in ("read_text", "write_text") or bool(
                keywords & {"text", "universal_newlines"}
            )
            if (is_text or (is_open and "b" not in open_mode(node, name))) and "encoding" not in keywords:
                places.append(f"{name_of(path)}:{node.lineno}")
    assert not places


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
def test_writing_calls_are_recognized(code, writing):
    assert [writes(*call) for call in calls(ast.parse(code))] == [writing]


def statements(node):
    """The nodes below a function, without those of functions that it defines."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield child
            yield from statements(child)


def missing_sections(function):
    """The sections that the docstring of a public function with two or more parameters lacks."""
    text = ast.get_docstring(function) or ""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    parameters = [argument for argument in arguments if argument.arg not in ("self", "cls")]
    if len(parameters) < 2 or "Example: prunus " in text:  # a command: its docstring is the help text
        return []
    returns = function.returns is not None and ast.unparse(function.returns) not in ("None", "Iterator[None]")
    raises = any(isinstance(node, ast.Raise) and node.exc is not None for node in statements(function))
    needed = {"Args": True, "Returns|Yields": returns, "Raises": raises}
    return [
        name for name, need in needed.items() if need and not re.search(rf"^({name}):", text, re.MULTILINE)
    ]


def test_public_functions_document_arguments_results_and_errors():
    incomplete = [
        f"{name_of(path)}:{function.lineno} {function.name}: {', '.join(sections)}"
        for path in SOURCES
        for function in public_functions(path)
        if (sections := missing_sections(function))
    ]
    assert not incomplete, "\n".join(incomplete)


def test_source_has_no_unfinished_work():
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    assert not [name_of(path) for path in SOURCES if marks.search(path.read_text(encoding="utf-8"))]


def test_codecs_do_not_import_torch():
    for path in (ROOT / "prunus" / "compression" / "codecs").glob("*.py"):
        roots = [
            name.partition(".")[0]
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
        ]
        assert "torch" not in roots, path


def test_modules_can_be_imported_and_no_name_hides_one():
    """`import prunus.runs.store as m` gives the module, not a function of the package."""
    names = [name for name in MODULES if not name.endswith("__main__")]
    modules = {name: importlib.import_module(name) for name in names}
    for name in names[1:]:
        package, _, last = name.rpartition(".")
        assert getattr(modules[package], last) is modules[name], name
