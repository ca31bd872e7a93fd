"""`prunus runs` as a user meets it, on a small store of small runs."""

import json
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from prunus.cli import main
from prunus.cli.runs import COMMANDS
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.training.recipe import Recipe

SHORT = Recipe(epochs=2, learning_rate=0.1, batch_size=60)


@dataclass(frozen=True)
class Dense:
    kind: ClassVar[str] = "dense"
    recipe: Recipe = SHORT
    seed: int = 0

    def needs(self):
        return ()

    def cost(self):
        return "small/60", 100.0


@dataclass(frozen=True)
class Ticket:
    kind: ClassVar[str] = "ticket"
    dense: Dense = Dense()
    criterion: str = "magnitude"

    def needs(self):
        return (self.dense,)

    def cost(self):
        return "small/60", 300.0


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
    "dense": (Dense(), [level(0, 97.0)]),
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
        folder = made.begin(spec, "test")
        for row in rows:
            folder.append(row)
        folder.append_curve({"level": 0, "step": step, "loss": 1 / (step + 1)} for step in range(5))
        made.finish(folder, {"levels": len(rows)}, seconds=12.0)
    made.fail(made.begin(Dense(seed=1), "test"), ValueError("[red]too hot\x1b[0m"))
    folder = made.begin(Dense(seed=2), "test")
    folder.append(level(0, 95.0))
    with sqlite3.connect(made.ledger.path) as connection:
        connection.execute("UPDATE runs SET pid_started = 'another' WHERE id = ?", (folder.id,))
    connection.close()
    return made


@pytest.fixture
def run(called, store):
    """`prunus runs`: what it printed to stdout and to stderr."""
    return lambda *arguments, code=0: called("runs", *arguments, "--store", store.path, code=code)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit):
        main(["runs", command, "--help"])
    assert f"Example: prunus runs {command}" in capsys.readouterr().out


def test_list_names_every_run_with_its_last_level(run):
    found = {entry["id"]: entry for entry in json.loads(run("list", "--json").out)}
    assert len(found) == 5
    good = found[IDS["good"]]
    assert {"id", "experiment", "spec", "status", "invariants", "metrics"} <= good.keys()
    assert (good["experiment"], good["status"], good["invariants"]) == (
        "small.figure.smoke",
        "done",
        "passed",
    )
    assert good["metrics"] == {key: value for key, value in level(2, 96.0).items() if key != "invariants"}
    assert found[IDS["bad"]]["spec"] == {"criterion": "random"}
    assert found[IDS["bad"]]["invariants"] == "failed: masks are nested (level 1)"
    states = [found[run_id(Dense(seed=seed))]["status"] for seed in range(3)]
    assert states == ["done", "failed", "stale"]
    assert found[run_id(Dense(seed=1))]["metrics"] == {}
    words = run("list").out
    assert all(id in words for id in found)
    assert "25.00 % (75.00 %)" in words


def test_show_tells_all_of_a_run(run):
    words = run("show", IDS["bad"][:12]).out
    for part in ("random", "torch", "small.figure.smoke", "91.25", "counts are exact", "not on level 1"):
        assert part in words
    assert "on all 2 levels" in words
    found = json.loads(run("show", IDS["bad"], "--json").out)
    assert found["levels"] == RUNS["bad"][1]
    assert found["environment"]["engine"] == "test"
    assert found["needs"] == [IDS["dense"]]
    failed = run("show", run_id(Dense(seed=1))).out
    assert "[red]too hot\\x1b[0m" in failed


def test_what_leaves_no_network_is_not_saved(run, tmp_path):
    file = tmp_path / "net.prunus"
    for id, why in (
        (IDS["good"], "what a run of its kind leaves is numbers"),
        (run_id(Dense(seed=1)), "it is failed, not done"),
        (run_id(Dense(seed=2)), "it is stale, not done"),
    ):
        assert run("save", id, file, code=1).err == f"error: {id} has no network to write: {why}.\n"
    assert not file.exists()


def test_a_damaged_run_is_named_and_what_it_read_is_kept(run, store):
    (store.finished / IDS["good"] / "spec.json").write_text("{")
    assert "spec.json is damaged" in run("show", IDS["good"], code=8).err
    run("rm", IDS["bad"], code=8)
    said = run("rm", IDS["dense"], code=8).err
    assert f"error: Whether the run {IDS['good']} was made from {IDS['dense']} cannot be read: " in said
    run("rm", IDS["dense"], "--force")


def test_compare_names_what_differs(run):
    found = json.loads(run("compare", IDS["good"], IDS["bad"], "--json").out)
    assert found["settings"] == {"criterion": ["magnitude", "random"]}
    stop = [entry for entry in found["levels"] if entry["metric"] == "stop_test_accuracy"]
    assert [(entry["level"], entry["difference"]) for entry in stop] == [(0, 0.0), (1, 91.25 - 97.5)]
    words = run("compare", IDS["good"], IDS["bad"]).out
    assert "-6.25" in words
    assert "criterion" in words
    assert json.loads(run("compare", IDS["good"], IDS["good"], "--json").out)["settings"] == {}
    kinds = json.loads(run("compare", IDS["good"], IDS["dense"], "--json").out)["settings"]
    assert kinds["kind"] == ["ticket", "dense"]


def test_rm_removes_what_nothing_needs(run, store):
    said = run("rm", IDS["dense"], code=8).err
    assert "was read by the finished" in said
    run("rm", IDS["good"], IDS["bad"], IDS["dense"])
    run("rm", run_id(Dense(seed=1)), run_id(Dense(seed=2)))
    assert run("list").out == f"The store {store.path} has no runs.\n"
    assert run("list", "--json").out == "[]\n"


def test_rm_with_force(run, store):
    run("rm", IDS["dense"], "--force")
    assert not store.done(IDS["dense"])


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
        "import sys; import prunus.runs.plan, prunus.runs.store\n"
        "print(*{'rich', 'typer', 'jinja2', 'matplotlib'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"
