"""The store: who may work on a run, what is recorded of it, which runs it lists and removes."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import pytest
import torch
from specs import Baseline, Ticket, finish

from prunus.errors import StoreError
from prunus.runs.directory import RunDirectory
from prunus.runs.record import check_settings_match, describe_run, write_record
from prunus.runs.settings import nondefault_settings
from prunus.runs.spec import run_id
from prunus.runs.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_a_run_is_opened_once_and_finished_once(store):
    spec = Baseline()
    directory = store.open(spec, "test")
    assert store.open(spec, "test") is None
    assert Store(store.path).open(spec, "test") is None
    assert not store.is_done(directory.id)
    directory.append_row({"level": 0, "invariants": {"passed": True, "checks": {"exact": True}}})
    store.finish(directory, {"best": 0.5})
    assert store.is_done(run_id(spec))
    assert store.open(spec, "test") is None
    (run,) = store.runs()
    assert (run.id, run.kind, run.state, run.invariants) == (run_id(spec), "dense", "done", "passed")
    assert (run.summary, run.attempts, run.cost) == ({"best": 0.5}, 1, ("small/60", 100.0))
    assert store.directory(run.id).rows() == [directory.rows()[0]]
    environment = run.environment
    assert {"prunus", "commit", "python", "torch", "numpy", "cpu", "threads", "device"} <= environment.keys()
    assert {"capability", "executor"} <= environment.keys()
    assert environment["executor"] == "test"
    names = {path.name for path in store.directory(run.id).path.iterdir()}
    assert names == {"run.json", "rows.jsonl"}
    for written in (directory, store.directory(run.id), store.directory(run.id, unfinished=True)):
        with pytest.raises(StoreError, match="opened for reading"):
            written.append_row({"level": 1})
    with pytest.raises(StoreError, match="not opened by this process"):
        store.finish(directory, {})


def test_a_failed_run_is_resumed_with_its_files(store):
    directory = store.open(Ticket(), "test")
    directory.append_row({"level": 0})
    directory.save_tensors("weights", {"a": torch.ones(2)})
    store.fail(directory, ValueError("too hot"))
    (run,) = store.runs()
    assert (run.state, run.error, run.attempts) == ("failed", "ValueError: too hot", 1)
    with pytest.raises(StoreError, match="is not finished"):
        store.directory(run.id)
    again = store.open(Ticket(), "another")
    assert again.rows() == [{"level": 0}]
    assert torch.equal(again.load_tensors("weights")["a"], torch.ones(2))
    assert [entry["executor"] for entry in again.record().environments] == ["test", "another"]
    assert again.record().environment["executor"] == "another"
    assert store.runs()[0].state == "running"
    store.finish(again, {})
    assert store.runs()[0].attempts == 2


def test_a_record_names_the_invariants_that_do_not_hold(store):
    rows = [
        {"level": 0, "invariants": {"passed": True, "checks": {"exact": True}}},
        {"level": 1, "invariants": {"passed": False, "checks": {"exact": True, "nested": False}}},
    ]
    finish(store, Ticket(), rows)
    assert store.runs()[0].invariants == "failed: nested (level 1)"
    finish(store, Baseline(), [{"level": 0}])
    assert store.runs()[0].invariants is None


def test_open_refuses_the_directory_of_another_spec(store):
    directory = store.open(Ticket(), "test")
    store.fail(directory, "stop")
    stored = directory.record()
    write_record(directory.path, replace(stored, settings={"rounds": 9}))
    with pytest.raises(StoreError, match="its settings are not those of the run"):
        store.open(Ticket(), "test")
    other = describe_run(Ticket(rounds=9))
    write_record(directory.path, other)
    with pytest.raises(StoreError, match="of another spec"):
        store.open(Ticket(), "test")
    write_record(directory.path, replace(stored, all_settings={**stored.all_settings, "rounds": 2}))
    with pytest.raises(StoreError, match="when the default of rounds was 2, but it is 3 now"):
        store.open(Ticket(), "test")
    newer = {key: value for key, value in stored.all_settings.items() if key != "rounds"}
    write_record(directory.path, replace(stored, all_settings=newer))  # a field that is newer than the run
    assert store.open(Ticket(), "test") is not None


def test_a_field_may_be_newer_than_a_run_also_in_the_inputs_of_the_run(store):
    def with_inputs(**settings):
        return replace(describe_run(Ticket()), all_settings={"inputs": [{"kind": "input", **settings}]})

    now = with_inputs(epochs=3, compile=False)
    check_settings_match(store.path, with_inputs(epochs=3), now)
    with pytest.raises(StoreError, match="when the default of inputs was"):
        check_settings_match(store.path, with_inputs(epochs=4), now)


def test_requests_are_kept_in_order(store):
    runs = [({"seed": seed}, Baseline(seed=seed)) for seed in (0, 1, 1)]
    store.request("lecun1990", "smoke", runs, {"epochs": "3"})
    store.request("han2015.tables", "full", runs[:1], {})
    finish(store, Baseline())
    assert [request.name for request in store.requests()] == ["han2015.tables.full", "lecun1990.smoke"]
    request = store.requests()[1]
    assert request.settings == {"epochs": "3"}
    assert [(entry.label, entry.id) for entry in request.entries] == [(a, run_id(b)) for a, b in runs]
    assert store.runs()[0].experiments == ("han2015.tables.full", "lecun1990.smoke")
    again = store.request("lecun1990", "smoke", runs, {"epochs": "3"})
    assert (again, len(store.requests())) == (request, 2)
    other = store.request("lecun1990", "smoke", [], {})
    assert store.requests()[1:] == [request, other]
    assert store.runs()[0].experiments == ("han2015.tables.full", "lecun1990.smoke")
    store.request("lecun1990", "smoke", runs, {"epochs": "3"})
    assert [entry.settings for entry in store.requests()[1:]] == [{}, {"epochs": "3"}]
    with pytest.raises(StoreError, match="for an experiment, got"):
        store.request("../x", "smoke", [], {})


def test_a_dependency_belongs_to_the_experiments_of_its_users(store):
    finish(store, Baseline())
    finish(store, Ticket())
    store.request("zhou2019.zeros", "smoke", [({}, Ticket())], {})
    store.request("other", "smoke", [({}, Baseline(seed=1))], {})
    store.request("other", "smoke", [({}, Ticket(rounds=9))], {})
    store.request("zhou2019.signs", "full", [({}, Baseline())], {})
    signs, zeros = "zhou2019.signs.full", "zhou2019.zeros.smoke"
    assert [run.experiments for run in store.runs()] == [(signs, zeros), (zeros,)]
    assert [store.run(run_id(spec)).experiments for spec in (Baseline(), Ticket())] == [
        (signs, zeros),
        (zeros,),
    ]


def test_remove_refuses_runs_that_are_read_or_running(store):
    baseline, ticket = finish(store, Baseline()), finish(store, Ticket())
    with pytest.raises(StoreError, match=rf"is read by {ticket} \(done\); remove or stop them first, or use"):
        store.remove(baseline)
    running = store.open(Ticket(rounds=4), "test")
    with pytest.raises(StoreError, match="is running"):
        store.remove(running.id, force=True)
    with pytest.raises(
        StoreError,
        match=rf"read by {ticket} \(done\), {running.id} \(running\); remove or stop them first, or use",
    ):
        store.remove(baseline)
    store.remove(ticket)
    with pytest.raises(StoreError, match=rf"{baseline} is read by {running.id} \(running\); remove or stop"):
        store.remove(baseline)
    store.fail(running, "stop")
    store.remove(running.id)
    ticket = finish(store, Ticket())
    store.remove(baseline, force=True)
    assert [run.id for run in store.runs()] == [ticket]
    assert store.open(Baseline(), "test") is not None
    store.remove(ticket)
    assert not store.is_done(ticket)
    with pytest.raises(StoreError, match="has no run"):
        store.remove(ticket)
    assert not list(store.path.glob("removed-*"))


@pytest.mark.parametrize("id", ["", ".", "..", "../runs"])
def test_remove_refuses_what_is_not_the_id_of_a_run(id, store):
    done = finish(store, Baseline())
    for force in (False, True):
        with pytest.raises(StoreError, match="has no run"):
            store.remove(id, force=force)
    assert store.ids() == [done]


def test_seconds_of_an_interrupted_attempt_end_with_its_last_write(store):
    directory = store.open(Baseline(), "test")
    started = time.time() - 1000
    write_record(directory.path, replace(directory.record(), started=started))
    directory.append_row({"level": 0})
    with (directory.path / "rows.jsonl").open("ab") as file:
        file.write(b'{"level"')
    directory.write_steps(3, 9)
    for path in directory.path.iterdir():
        os.utime(path, times=(0, started + (70 if path.name.startswith(".steps") else 40)))
    directory.release()  # as if it were killed, and resumed 930 seconds later
    resumed = store.open(Baseline(), "test")
    assert resumed.record().seconds == pytest.approx(70, abs=1)
    assert resumed.rows() == [{"level": 0}]
    assert sorted(path.name for path in resumed.path.iterdir()) == ["rows.jsonl", "run.json"]


def test_an_attempt_that_was_taken_over_removes_no_file_of_the_next_attempt(store):
    lost = store.open(Baseline(), "test")
    other = RunDirectory(lost.path)
    other.begin_attempt(other.record())
    other.write_steps(1, 2)
    with pytest.raises(StoreError, match="was taken over by another process"):
        store.finish(lost, {})
    assert other.steps() == (1, 2)


def test_find_accepts_the_beginning_of_an_id(store):
    ids = [finish(store, Baseline(seed=seed)) for seed in range(3)]
    for id in ids:
        assert store.find(id) == store.find(id[:14]) == store.find(id.removeprefix("dense-")[:8]) == id
    with pytest.raises(StoreError, match="'dense' could be dense-"):
        store.find("dense")
    with pytest.raises(StoreError, match="has no run 'ticket'"):
        store.find("ticket")
    for id in ids[1:]:
        store.remove(id)
    with pytest.raises(StoreError, match="has no run ''"):
        store.find("")


def test_opening_a_store_for_reading_creates_nothing(tmp_path):
    with pytest.raises(StoreError, match="no store of runs"):
        Store(tmp_path / "typo", create=False)
    assert list(tmp_path.iterdir()) == []


def test_runs_leaves_out_a_foreign_directory_with_a_warning(store):
    finish(store, Baseline())
    (store.path / "runs" / "strange").mkdir()
    assert len(store.runs()) == 1  # a run that was killed before it wrote its record looks like this
    (store.path / "runs" / "strange" / "rows.jsonl").touch()
    with pytest.warns(UserWarning, match="strange is left out"):
        assert len(store.runs()) == 1


def test_a_record_is_plain_json(store):
    id = finish(store, Ticket(layers=(3, 4), masks_from=Ticket()), [{"level": 0, "density": 1.0}])
    record = json.loads((store.path / "runs" / id / "run.json").read_text())
    assert (record["id"], record["state"]) == (id, "done")
    assert record["settings"] == nondefault_settings(Ticket(layers=(3, 4), masks_from=Ticket()))
    assert record["all_settings"]["rounds"] == 3
    assert record["dependencies"] == {"masks": run_id(Ticket())}
