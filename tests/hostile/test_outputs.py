"""Where commands write: nothing that exists is lost, and results outlive what follows them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pages import content_with
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import nn

import prunus
from prunus.cli import demo as demo_command
from prunus.cli import main
from prunus.compression.result import Compressed
from prunus.errors import OutputError
from prunus.experiments.results import write_results
from prunus.report.figure_data import Curve, FigureData
from prunus.runs.store import Store
from prunus.tickets.baseline import BaselineSpec

OWN = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 64, bias=False), nn.Linear(64, 10), nn.Linear(64, 64, bias=False)
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.b(self.c(self.a(x.flatten(1)).relu()))

class Complex(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
        self.register_buffer("sparse", __import__("torch").eye(3).to_sparse())

    def forward(self, x):
        return super().forward(x.flatten(1))
"""
NET, DATA = "--model=out_nets:net", "--data=digits"
FAST = ("--rounds=1", "--epochs=dense=0", "--epochs=final_retrain=0", "--epochs=finetune=0")
NAME = "zhou2019.criteria"


class WorkBegunError(Exception):
    """The command went past its checks."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with a user's module, weights, a compressed file, a store, and obstacles."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "out_nets", raising=False)
    Path("out_nets.py").write_text(OWN, encoding="utf-8")
    save_file(
        {"1.weight": torch.linspace(-1, 1, 640).reshape(10, 64), "1.bias": torch.ones(10)}, "w.safetensors"
    )
    prunus.save(nn.Linear(64, 10), "a.prunus")
    Store("store")
    Path("mine").write_text("mine", encoding="utf-8")
    os.mkfifo("pipe")
    return tmp_path


def files(folder):
    """Every file and its bytes; of what is no file, what it is."""
    paths = [
        path for path in folder.rglob("*") if "__pycache__" not in path.parts and "store" not in path.parts
    ]
    return {path: path.read_bytes() if path.is_file() else path.lstat().st_mode for path in paths}


@pytest.fixture
def refused(folder, capsys, monkeypatch):
    """Run `prunus`: exit code 1, one sentence, every file as it was, no work begun."""

    def begun(*arguments, **options):
        raise WorkBegunError

    for place in (
        "prunus.compression.deep_compression.compress",
        "prunus.cli.networks.load_network",
        "prunus.models.loading.make_model",
    ):
        monkeypatch.setattr(place, begun)
    monkeypatch.setattr("prunus.data.load_data", begun)

    def call(*arguments):
        before = files(folder)
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (1, ""), err
        assert files(folder) == before
        (sentence,) = err.splitlines()
        assert sentence.startswith("error: ")
        return sentence

    return call


COMPRESS = ("compress", NET, DATA, "--weights=w.safetensors")
PRUNE = ("prune", "out_nets:net", "--weights=w.safetensors", DATA, "--density=0.5")
WRITERS = {
    "compress": (*COMPRESS, "--out={}"),
    "page": (*COMPRESS, "--out=new.prunus", "--page={}"),
    "prune": (*PRUNE, "--out={}"),
    "decompress": ("decompress", "a.prunus", "--out={}"),
}


def command(writer, out):
    return [word.format(out) for word in WRITERS[writer]]


@pytest.mark.parametrize("writer", WRITERS)
def test_command_refuses_an_output_before_the_work(writer, refused, folder):
    """A file that exists, with --force an input, and what no file can take the place of."""
    for out in ("mine", "./mine"):
        assert "mine exists; pass --force to replace it" in refused(*command(writer, out))
    inputs = {"decompress": ["a.prunus"]}.get(writer, ["w.safetensors", "out_nets.py"])
    for number, source in enumerate(inputs):
        Path(f"link{number}").symlink_to(source)
        Path(f"hard{number}").hardlink_to(source)
        for out in (source, f"./{source}", folder / source, f"link{number}", f"hard{number}"):
            assert "it is the same file as" in refused(*command(writer, out), "--force")
    for out, reason in {
        "pipe": "it is a named pipe",
        "store": "it is a folder",
        "no/folder/x": "is not a folder",
        "mine/x": "Not a directory",
        "x" * 256: "File name too long",
        "a\x1bb": "control characters",
    }.items():
        assert reason in refused(*command(writer, out), "--force")


def test_file_and_page_must_differ(refused):
    Path("link").symlink_to("out.prunus")
    for page in ("out.prunus", "./out.prunus", "link"):
        message = refused(*COMPRESS, "--out=out.prunus", f"--page={page}")
        assert "it is the same file as out.prunus" in message


@pytest.mark.parametrize("checkpoints", ["mine", "mine/steps", "pipe"])
def test_unwritable_checkpoints_are_refused_before_the_work(checkpoints, refused):
    message = refused(*COMPRESS, "--out=out.prunus", f"--checkpoints={checkpoints}")
    assert f"Checkpoints cannot be written to {checkpoints}: " in message
    assert "is not a folder" in message


def test_output_must_not_be_a_checkpoint(refused, folder):
    (folder / "steps").mkdir()
    message = refused(*COMPRESS, "--out=steps/dense.safetensors", "--checkpoints=steps")
    assert "it is the same file as" in message


def test_prune_and_decompress_refuse_the_file_they_read(refused):
    assert "it is the same file as" in refused(
        "prune", "a.prunus", "--density=0.5", DATA, "--out=a.prunus", "--force"
    )
    Path("a.prunus").rename("b.safetensors")
    assert "it is the same file as" in refused("decompress", "b.safetensors", "--force")


def test_prune_does_not_replace_its_default_output(refused):
    Path("out_nets.net-pruned.safetensors").write_text("mine", encoding="utf-8")
    assert "pass --force" in refused(*PRUNE)


def test_demo_replaces_only_what_a_demo_wrote(refused, folder, monkeypatch):
    (folder / "demo").mkdir()
    file, page = folder / "demo" / "lenet-300-100.prunus", folder / "demo" / "report.html"
    file.write_text("mine", encoding="utf-8")
    assert "lenet-300-100.prunus exists; pass --force" in refused("demo")
    recipe, model = prunus.COMPRESSION_RECIPES["demo"], prunus.models.lenet_300_100()
    other = Compressed(model, model, {}, {}, [], [], replace(recipe, rounds=recipe.rounds + 1), 0, 0, 0, {})
    prunus.save(other, file, metadata={"data": "mnist"})
    assert "lenet-300-100.prunus exists; pass --force" in refused("demo")
    prunus.save(replace(other, recipe=recipe), file, metadata={"data": "mnist"})
    page.write_text("<title>mine</title>", encoding="utf-8")
    assert "report.html exists; pass --force" in refused("demo")
    page.write_text(f"<title>{demo_command.TITLE} · prunus</title>", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["demo"])
    assert ended.value.code == 70  # past its checks: the work of this test ends at once


def test_run_replaces_only_results_of_the_same_ticket_experiment(refused, folder):
    out = folder / "out"
    out.mkdir()
    for number, name in enumerate(("one_shot.json", "one_shot.errors.png")):
        (out / name).write_text('{"evidence": {"experiment": "one_shot"}}', encoding="utf-8")
        message = refused("run", "one_shot", "--smoke", "--out=out")
        assert "exists; pass --force" in message, number
        (out / name).unlink()
    (out / "one_shot.md").mkdir()
    assert "it is a folder" in refused("run", "one_shot", "--smoke", "--out=out", "--force")
    for content in ("mine", "[]", "{}", '{"evidence": {"experiment": "zhou2019.zeros"}}'):
        (out / f"{NAME}.json").write_text(content, encoding="utf-8")
        for verb in (("run", NAME, "--smoke"), ("figure", NAME)):
            assert f"{NAME}.json exists" in refused(*verb, "--out=out", "--store=store")


@pytest.mark.parametrize("inside", ["store/runs", "store/locks/x", "store/experiments"])
def test_results_are_not_written_into_the_store(inside, refused):
    assert "is inside the store" in refused("run", NAME, f"--out={inside}", "--store=store", "--force")


def test_runs_save_refuses_a_file_of_the_store(refused, folder, monkeypatch):
    store = Store("store")
    run = store.open(BaselineSpec(), "test")
    run.save_tensors("final", {"w": torch.ones(2)})
    store.finish(run, {})
    save = ("runs", "save", run.id, "--store=store")
    assert "mine exists; pass --force" in refused(*save, "mine")
    file = f"store/runs/{run.id}/final.safetensors"
    before = Path(file).read_bytes()
    assert "it is the same file as" in refused(*save, file, "--force")
    assert Path(file).read_bytes() == before


def test_force_replaces_a_file_and_writes_through_a_link(folder, run_cli):
    Path("link.safetensors").symlink_to("mine")
    run_cli("decompress", "a.prunus", "--out=link.safetensors", "--force")
    assert Path("link.safetensors").is_symlink()
    assert load_file("mine").keys() == {"weight", "bias"}
    Path("new.safetensors").symlink_to("fresh")
    run_cli("decompress", "a.prunus", "--out=new.safetensors")
    assert Path("fresh").read_bytes() == Path("mine").read_bytes()


@pytest.mark.parametrize("place", ["pipe", "store"])
def test_save_in_python_replaces_files_only(place, folder):
    prunus.save(nn.Linear(2, 3), "mine")
    assert prunus.read("mine").keys() == {"weight", "bias"}
    with pytest.raises(OutputError, match="cannot be written: it is"):
        prunus.save(nn.Linear(2, 3), place)


FULL_DISK = """
import resource, sys
from prunus.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
main(sys.argv[1:])
"""


def test_unwritable_page_does_not_lose_the_result(folder):
    """The file is smaller than what the disk takes, the page larger: the numbers are printed, the file is named."""
    arguments = [*COMPRESS, "--out=out.prunus", *FAST, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 1, done.stderr
    *_, last = done.stderr.splitlines()
    assert last == (
        "error: out.prunus is complete; the next step failed: out.html cannot be written: File too large."
    )
    assert json.loads(done.stdout)["file_bytes"] == Path("out.prunus").stat().st_size
    assert prunus.read("out.prunus").keys() == {"1.weight", "1.bias"}
    assert {path.name for path in folder.iterdir() if path.suffix in (".html", ".part")} == set()


def test_numbers_of_an_experiment_outlive_a_figure_that_fails(tmp_path, monkeypatch):
    content = {**content_with("word"), "experiment": "mine", "rows": [{"x": 1}], "comparisons": [{"x": 1}]}
    figure = FigureData([Curve("a", [1], [2], [2], [2], 1)], title="t", x_label="x", y_label="y")

    def fails(*arguments):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("prunus.experiments.results.save_images", fails)
    with pytest.raises(
        OutputError, match=r"mine\.md, .* are complete; the next step failed: RuntimeError: no fonts"
    ):
        write_results(content, {"errors": figure}, tmp_path)
    names = {"mine.json", "mine.md", "mine.errors.csv", "mine.comparisons.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "mine.json").read_bytes())["rows"] == [{"x": 1}]


@pytest.mark.parametrize("library", ["matplotlib", "jinja2", "scipy"])
def test_missing_library_is_named_before_the_work(library, folder, run_cli, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr("prunus.cli.REQUIRED", ())
    monkeypatch.setattr(
        "prunus.experiments.running.run_plan", lambda *arguments, **options: pytest.fail("begun")
    )
    commands = [("run", NAME, "--smoke", "--store=store")]
    if library != "scipy":
        commands.append(("run", "lecun1990.deletion", "--smoke"))
        monkeypatch.setattr(
            "prunus.compression.stages.train", lambda *arguments, **options: pytest.fail("begun")
        )
        commands.append(("compress", NET, DATA, "--out=out.prunus"))
    for arguments in commands:
        message = run_cli(*arguments, code=1).err.splitlines()[-1]
        assert library in message
        assert "prunus[cli]" in message


CURVE = [Curve("a ×", [1, 2], [2, 3], [1, 2], [3, 4], 2)]
LABELS = {"title": "t ±", "x_label": "x", "y_label": "y"}
CONTENT = {**content_with("× –"), "experiment": "mine"}
IN_C_LOCALE = f"""
import locale, sys
from pathlib import Path
from prunus.cli import main
from prunus.experiments.results import write_results
from prunus.report.figure_data import Curve, FigureData
assert locale.getpreferredencoding(False) != "UTF-8" and sys.stdout.encoding.lower() != "utf-8"
write_results({CONTENT!r}, {{"drawn": FigureData({CURVE!r}, **{LABELS!r})}}, Path("."))
assert "matplotlib.pyplot" not in sys.modules
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "backend", ["nonsense", pytest.param("module://matplotlib_inline.backend_inline", marks=pytest.mark.slow)]
)
def test_files_do_not_depend_on_locale_and_plotting_backend(backend, folder, tmp_path):
    """In an ASCII locale, with a backend of a notebook: the bytes that are written here, and no exception."""
    ascii_folder, other_folder = tmp_path / "here", tmp_path / "thère"
    ascii_folder.mkdir()
    other_folder.mkdir()
    (tmp_path / "script.py").write_text(IN_C_LOCALE, encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "MPLBACKEND": backend}
    arguments = (
        "prune",
        "out_nets:net",
        "--weights=../w.safetensors",
        DATA,
        "--density=0.5",
        "--out=é.safetensors",
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", *arguments],
        cwd=other_folder,
        env={**os.environ, **ascii_only, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert b"10 ? 64" in done.stdout
    write_results(CONTENT, {"drawn": FigureData(CURVE, **LABELS)}, ascii_folder)
    for path in ascii_folder.iterdir():
        assert (other_folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert "× – ± × –" in (other_folder / "mine.md").read_text(encoding="utf-8")
    assert load_file(other_folder / "é.safetensors").keys() == {"1.weight", "1.bias"}


def test_tied_weights_are_stored_once_and_restored(folder, run_cli):
    """As `safetensors.torch.save_model` stores them; the file is also taken as weights by the next command."""
    exclude = ("--exclude=a.weight", "--exclude=c.weight", DATA)
    torch.manual_seed(0)
    names: dict = {}
    exec(OWN, names)
    torch.save(names["Tied"]().state_dict(), "tied.pt")
    run_cli("prune", "out_nets:Tied", "--weights=tied.pt", "--density=0.5", *exclude, "--out=one.safetensors")
    state, full = load_file("one.safetensors"), torch.load("tied.pt")
    with safe_open("one.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "c.weight": "a.weight"}
    assert state.keys() == {"a.weight", "b.weight", "b.bias"}
    assert torch.equal(state["a.weight"], full["a.weight"])
    model = names["Tied"]()
    load_model(model, "one.safetensors")
    assert torch.equal(model.c.weight, full["c.weight"])
    again = ("--weights=one.safetensors", "--density=1", *exclude, "--out=two.safetensors")
    run_cli("prune", "out_nets:Tied", *again)
    assert Path("two.safetensors").read_bytes() == Path("one.safetensors").read_bytes()


def test_tensor_that_safetensors_cannot_hold_is_refused_before_the_work(folder, run_cli, monkeypatch):
    monkeypatch.setattr(
        "prunus.cli.networks.train_with_its_recipe", lambda *arguments: pytest.fail("it was trained")
    )
    message = run_cli("prune", "out_nets:Complex", DATA, "--density=0.5", "--out=x.safetensors", code=4).err
    assert "cannot be written as a safetensors file" in message
    prunus.compression.container.write("meta.prunus", {"__metadata__": torch.ones(2)})
    assert "__metadata__ is reserved" in run_cli("decompress", "meta.prunus", code=4).err
    assert [path.name for path in folder.glob("*.safetensors")] == ["w.safetensors"]
