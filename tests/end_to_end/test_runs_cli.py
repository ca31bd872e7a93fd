"""`prunus runs` on a small store of runs that compute nothing."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from specs import Baseline, Ticket

from prunus.cli import main
from prunus.cli.runs import COMMANDS
from prunus.runs.spec import run_id
from prunus.runs.store import Store


def level(number, accuracy, holds=True):
    return {
        "level": number,
        "density": 0.5**number,
        "stop_step": 100 + number,
        "stop_test_accuracy": accuracy,
        "final_test_accuracy": accuracy - 0.125,
        "seconds": 1.5,
        "invariants": {"passed": holds, "checks": {"counts are exact": True, "masks are nested": holds}},
    }


RUNS = {
    "dense": (Baseline(), [level(0, 97.0)]),
    "good": (Ticket(), [level(0, 97.0), level(1, 97.5), level(2, 96.0)]),
    "bad": (Ticket(criterion="random"), [level(0, 97.0), level(1, 91.25, holds=False)]),
}
IDS = {name: run_id(spec) for name, (spec, _) in RUNS.items()}


@pytest.fixture
def store(tmp_path):
    """Three finished runs, one that failed and one that a killed process left."""
    made = Store(tmp_path / "store")
    made.request("small.figure", "smoke", [({}, spec) for spec, _ in RUNS.values()], {})
    for spec, rows in RUNS.values():
        directory = made.open(spec, "test")
        for row in rows:
            directory.append_row(row)
        directory.append_curve({"level": 0, "step": step, "loss": 1 / (step + 1)} for step in range(5))
        made.finish(directory, {"levels": len(rows)}, seconds=12.0)
    made.fail(made.open(Baseline(seed=1), "test"), ValueError("[red]too hot\x1b[0m"))
    directory = made.open(Baseline(seed=2), "test")
    directory.append_row(level(0, 95.0))
    directory.release()  # as if its process were killed
    return made


@pytest.fixture
def run(run_cli, store):
    """`prunus runs`: what it printed to stdout and to stderr."""

    def call(command, *arguments, code=0):
        where = () if command == "export" else ("--store", store.path)
        return run_cli("runs", command, *arguments, *where, code=code)

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit):
        main(["runs", command, "--help"])
    assert f"Example: prunus runs {command}" in capsys.readouterr().out


def test_list_names_every_run_with_its_last_level(run):
    listed_runs = {entry["id"]: entry for entry in json.loads(run("list", "--json").out)}
    assert len(listed_runs) == 5
    good = listed_runs[IDS["good"]]
    assert {"id", "experiment", "spec", "status", "invariants", "metrics"} <= good.keys()
    assert (good["experiment"], good["status"], good["invariants"]) == (
        "small.figure.smoke",
        "done",
        "passed",
    )
    assert good["metrics"] == {key: value for key, value in level(2, 96.0).items() if key != "invariants"}
    assert listed_runs[IDS["bad"]]["spec"] == {"criterion": "random"}
    assert listed_runs[IDS["bad"]]["invariants"] == "failed: masks are nested (level 1)"
    states = [listed_runs[run_id(Baseline(seed=seed))]["status"] for seed in range(3)]
    assert states == ["done", "failed", "interrupted"]
    assert listed_runs[run_id(Baseline(seed=1))]["metrics"] == {}
    words = run("list").out
    assert all(id in words for id in listed_runs)
    assert "25.00 % (75.00 %)" in words


def test_show_prints_all_sections_of_a_run(run):
    words = run("show", IDS["bad"][:12]).out
    for part in ("random", "torch", "small.figure.smoke", "91.25", "counts are exact", "not on level 1"):
        assert part in words
    assert "on all 2 levels" in words
    listed_runs = json.loads(run("show", IDS["bad"], "--json").out)
    assert listed_runs["levels"] == RUNS["bad"][1]
    assert listed_runs["environment"]["executor"] == "test"
    assert listed_runs["dependencies"] == {"baseline": IDS["dense"]}
    failed = run("show", run_id(Baseline(seed=1))).out
    assert "[red]too hot\\x1b[0m" in failed


def test_save_refuses_runs_without_a_network(run, tmp_path):
    file = tmp_path / "net.prunus"
    for id, why in (
        (IDS["good"], "runs of its kind store only numbers"),
        (run_id(Baseline(seed=1)), "it is failed, not done; repeat its `prunus run` command"),
        (run_id(Baseline(seed=2)), "it is interrupted, not done; repeat its `prunus run` command"),
    ):
        assert run("save", id, file, code=1).err == f"error: {id} has no network to write: {why}.\n"
    assert not file.exists()


def test_a_damaged_run_is_named_and_what_it_read_is_kept(run, store):
    (store.runs_path / IDS["good"] / "run.json").write_text("{")
    assert "run.json is damaged" in run("show", IDS["good"], code=8).err
    run("rm", IDS["bad"], code=8)
    error = run("rm", IDS["dense"], code=8).err
    assert f"error: Whether the run {IDS['good']} was made from {IDS['dense']} cannot be read: " in error
    run("rm", IDS["dense"], "--force")


def test_compare_prints_the_differences(run):
    listed_runs = json.loads(run("compare", IDS["good"], IDS["bad"], "--json").out)
    assert listed_runs["settings"] == {"criterion": ["magnitude", "random"]}
    stop = [entry for entry in listed_runs["levels"] if entry["metric"] == "stop_test_accuracy"]
    assert [(entry["level"], entry["difference"]) for entry in stop] == [(0, 0.0), (1, 91.25 - 97.5)]
    words = run("compare", IDS["good"], IDS["bad"]).out
    assert "-6.25" in words
    assert "criterion" in words
    assert json.loads(run("compare", IDS["good"], IDS["good"], "--json").out)["settings"] == {}
    kinds = json.loads(run("compare", IDS["good"], IDS["dense"], "--json").out)["settings"]
    assert kinds["kind"] == ["ticket", "dense"]


def test_rm_removes_only_runs_that_no_run_depends_on(run, store):
    error = run("rm", IDS["dense"], code=8).err
    assert "(done); remove or stop them first, or use --force" in error
    run("rm", IDS["good"], IDS["bad"], IDS["dense"])
    run("rm", run_id(Baseline(seed=1)), run_id(Baseline(seed=2)))
    assert run("list").out == f"The store {store.path} has no runs.\n"
    assert run("list", "--json").out == "[]\n"


def test_rm_with_force(run, store):
    run("rm", IDS["dense"], "--force")
    assert not store.is_done(IDS["dense"])


def test_unknown_runs_and_stores(run, capsys, tmp_path):
    assert "has no run 'nothing'" in run("show", "nothing", code=8).err
    assert "could be" in run("show", "ticket", code=8).err
    for command in (("list",), ("rm", "x"), ("compare", "x", "y")):
        with pytest.raises(SystemExit) as ended:
            main(["runs", *command, "--store", str(tmp_path / "typo")])
        assert ended.value.code == 8
        assert capsys.readouterr().err.startswith("error: There is no store of runs at ")
    assert not (tmp_path / "typo").exists()


def test_runs_are_imported_without_the_extras():
    code = (
        "import sys; import prunus.runs.plan, prunus.runs.transfer\n"
        "print(*{'rich', 'typer', 'jinja2', 'matplotlib'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"


def test_runs_are_listed_without_torch(store):
    """It costs more than a CPU second per process."""
    code = (
        "import sys; from prunus.cli.app import app\n"
        f"app(['runs', 'list', '--store', {str(store.path)!r}], standalone_mode=False)\n"
        "print(*{'torch', 'numpy'} & set(sys.modules))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert IDS["good"] in printed
    assert printed.endswith("\n\n")


def test_export_and_import_move_the_finished_runs(run, run_cli, store, tmp_path):
    file, other = tmp_path / "runs.jsonl", tmp_path / "other"
    printed = run("export", store.path, "--out", file)
    assert printed.out.startswith(f"{file}: 3 runs in ")
    assert run_id(Baseline(seed=1)) in printed.err
    text = file.read_text()
    assert socket.gethostname() not in text
    assert str(tmp_path) not in text
    assert "exists; pass --force" in run("export", store.path, "--out", file, code=1).err
    inside = store.runs_path / IDS["good"] / "rows.jsonl"
    assert "it is the same file as" in run("export", store.path, "--out", inside, "--force", code=1).err
    store.request("other", "smoke", [({}, Baseline(seed=3))], {})
    assert "0 runs in" in run("export", store.path, "--out", tmp_path / "o", "--experiment", "other").out
    wrong = run("export", store.path, "--out", tmp_path / "p", "--experiment", "othr", code=8).err
    assert "did you mean 'other'?" in wrong
    imported = run_cli("runs", "import", file, "--store", other, code=0).out
    assert imported == f"{other}: 3 runs imported.\n"
    again = run_cli("runs", "import", file, "--store", other, code=0).out
    assert again == f"{other}: 0 runs imported; the store had 3 runs already.\n"
    listed = {run_json["id"]: run_json for run_json in json.loads(run("list", "--json").out)}
    for run_json in json.loads(run_cli("runs", "list", "--json", "--store", other, code=0).out):
        assert run_json == {**listed[run_json["id"]], "imported": True}
    shown, original = (
        json.loads(run_cli("runs", "show", IDS["bad"], "--json", "--store", path, code=0).out)
        for path in (other, store.path)
    )
    assert (shown["levels"], shown["environment"]) == (original["levels"], original["environment"])
    error = run_cli("runs", "import", tmp_path / "none", "--store", other, code=8).err
    assert error.startswith("error: There is no file ")
