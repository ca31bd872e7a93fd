"""Export and import: the rows of a store move, its tensors do not, and a damaged file adds nothing."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from specs import Baseline, Ticket, finish

from prunus.errors import StoreError
from prunus.runs.content import read_rows, to_lines
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.runs.transfer import export_runs, import_runs

ROWS = [
    {"level": level, "accuracy": 97.5 - level, "invariants": {"passed": True, "checks": {}}}
    for level in (0, 1)
]


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store")
    finish(made, Baseline(), ROWS[:1], seconds=12.0)
    directory = made.open(Ticket(), "test")
    for row in ROWS:
        directory.append_row(row)
    directory.append_curve([{"level": 0, "step": step, "loss": 1 / (step + 1)} for step in range(5)])
    directory.save_tensors("final", {"w": torch.ones(3)})
    made.finish(directory, {"accuracy": 97.5}, seconds=30.0)
    made.fail(made.open(Baseline(seed=1), "test"), "stop")
    made.request("zhou2019.criteria", "smoke", [({"replicate": 0}, Ticket())], {"epochs": "3"})
    made.request("zhou2019.criteria", "smoke", [], {})
    return made


@pytest.fixture
def file(store, tmp_path):
    exported = export_runs(store, tmp_path / "runs.jsonl")
    assert (set(exported.runs), exported.skipped) == (
        {run_id(Baseline()), run_id(Ticket())},
        (run_id(Baseline(seed=1)),),
    )
    return tmp_path / "runs.jsonl"


def test_imported_runs_have_the_records_rows_curves_and_requests(store, file, tmp_path):
    other = Store(tmp_path / "other")
    imported = import_runs(file, other)
    assert (set(imported.runs), imported.skipped) == ({run_id(Baseline()), run_id(Ticket())}, ())
    for id in imported.runs:
        original, theirs = store.run(id), other.run(id)
        assert theirs == replace(original, imported=True, attempt="", started=0.0)
        assert other.directory(id).rows() == store.directory(id).rows()
        assert other.directory(id).curve() == store.directory(id).curve()
    assert [request.settings for request in other.requests()] == [
        request.settings for request in store.requests()
    ]
    assert import_runs(file, other).skipped == imported.runs


def test_imported_runs_are_done_and_their_tensors_a_named_error(file, tmp_path):
    other = Store(tmp_path / "other")
    import_runs(file, other)
    assert other.open(Ticket(), "test") is None
    directory = other.directory(run_id(Ticket()))
    assert directory.has("final")
    with pytest.raises(
        StoreError, match=rf"{directory.id} was imported without its tensors, 'final' among .*runs rm"
    ):
        directory.load_tensors("final")
    other.remove(directory.id)
    assert other.open(Ticket(), "test") is not None


def test_only_the_runs_of_an_experiment_and_their_dependencies_are_exported(store, tmp_path):
    finish(store, Baseline(seed=2), ROWS[:1])
    store.request("liu2019", "smoke", [({}, Baseline(seed=2)), ({}, Baseline(seed=1))], {})
    for names, runs, requests in (
        (["zhou2019.criteria"], {run_id(Ticket()), run_id(Baseline())}, 2),
        (["liu2019"], {run_id(Baseline(seed=2))}, 1),
        (["liu2019", "zhou2019.criteria"], {run.id for run in store.runs() if run.state == "done"}, 3),
    ):
        other = Store(tmp_path / "-".join(names))
        exported = export_runs(store, tmp_path / "runs.jsonl", names)
        assert (set(exported.runs), exported.requests) == (runs, requests)
        assert exported.skipped == ((run_id(Baseline(seed=1)),) if "liu2019" in names else ())
        assert set(import_runs(tmp_path / "runs.jsonl", other).runs) == runs
        assert {request.experiment for request in other.requests()} == set(names)
    for names, hint in (
        (["liu2018"], "did you mean 'liu2019'?"),
        (["x"], "it has liu2019, zhou2019.criteria."),
    ):
        with pytest.raises(StoreError, match=rf"has no experiment '{names[0]}'; {re.escape(hint)}"):
            export_runs(store, tmp_path / "none.jsonl", names)
    assert not (tmp_path / "none.jsonl").exists()


def test_import_does_not_change_a_run_of_the_store(file, tmp_path):
    other = Store(tmp_path / "other")
    other.fail(other.open(Ticket(), "test"), "stop")
    running = other.open(Baseline(), "test")
    assert set(import_runs(file, other).skipped) == {run_id(Ticket()), running.id}
    assert [run.state for run in other.runs()] == ["running", "failed"]


def test_import_completes_an_import_that_was_killed(file, tmp_path):
    other = Store(tmp_path / "other")
    partial = other.runs_path / run_id(Ticket())
    partial.mkdir()
    (partial / "rows.jsonl").write_text("")
    assert run_id(Ticket()) in import_runs(file, other).runs


def test_every_damaged_file_adds_nothing(file, tmp_path):
    content = file.read_bytes()
    for position in range(0, len(content), 41):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        file.write_bytes(flipped)
        with pytest.raises(StoreError, match=r"runs\.jsonl"):
            import_runs(file, Store(tmp_path / "other"))
    for length in (0, 1, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(StoreError, match=r"runs\.jsonl"):
            import_runs(file, Store(tmp_path / "other"))
    assert not any((tmp_path / "other").rglob("*.json*"))


@pytest.mark.parametrize(
    "change",
    [
        {"run": {}}, {"run": []}, {"run": None}, {"rows": None}, {"rows": [1]}, {"curve": "x"},
        {"request": None}, {"request": {"experiment": "../x"}},
        {"request": {"experiment": 1, "size": 2, "settings": 3, "entries": []}},
    ],
)  # fmt: skip
def test_a_forged_line_adds_nothing(change, file, tmp_path):
    header, *lines = read_rows(file)
    file.write_bytes(to_lines(file, [header, {**lines[0], **change}, *lines[1:]]))
    with pytest.raises(StoreError):
        import_runs(file, Store(tmp_path / "other"))
    assert not any((tmp_path / "other").rglob("*.json*"))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../../up-0123456789abcdef"},
        {"kind": "../up"},
        {"settings": {"rounds": 5}},
        {"state": "running"},
        {"extra": 1},
    ],
)
def test_a_forged_record_adds_nothing(change, file, tmp_path):
    header, first, *lines = read_rows(file)
    forged = {**first, "run": {**first["run"], **change}}
    file.write_bytes(to_lines(file, [header, forged, *lines]))
    why = "was written by another version" if "extra" in change else "is damaged"
    with pytest.raises(StoreError, match=rf"runs\.jsonl {why}"):
        import_runs(file, Store(tmp_path / "other"))
    assert not any((tmp_path / "other").rglob("*.json*"))
