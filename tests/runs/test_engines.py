"""Laws of engines: whoever carries out a plan, what comes of it is the same; whatever is killed is taken up."""

import json
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunus.errors import DivergenceError, InvariantWarning, SpecError, StatisticsError, StoreError
from prunus.runs.directory import RunFolder
from prunus.runs.executors import ENGINES
from prunus.runs.executors.processes import one as run_in_worker
from prunus.runs.executors.run_task import run_to_completion
from prunus.runs.executors.scheduler import RunScheduler
from prunus.runs.executors.worker_pool import to_picklable_error
from prunus.runs.plan import plan as plan_of
from prunus.runs.runner import run_plan
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.tickets.ticket import TicketSpec

HELPERS = Path(__file__).parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))

from plan import DENSE, RECIPE, plan  # noqa: E402

TIMES = {"seconds"}


def everything(specs) -> list:
    """The specs and what they need, needs first."""
    found: dict = {}
    for spec in specs:
        for one in [*everything(spec.needs()), spec]:
            found[run_id(one)] = one
    return list(found.values())


def numbers(store: Store, spec):
    """All numbers of a finished run but times: rows, curves, summary."""
    folder = store.folder(run_id(spec))
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in folder.rows()]
    summary = {k: v for k, v in folder.result()["summary"].items() if k not in TIMES}
    return rows, folder.curve(), summary


def tensors(store: Store, spec):
    path = store.folder(run_id(spec)).path
    return {file.name: load_file(file) for file in sorted(path.glob("*.safetensors"))}


def check_same(store, other, specs):
    """Both stores hold equal numbers and bit-identical tensors of the specs and of what they need."""
    for spec in everything(specs):
        assert numbers(store, spec) == numbers(other, spec)
        mine, theirs = tensors(store, spec), tensors(other, spec)
        assert mine.keys() == theirs.keys()
        for file, found in mine.items():
            assert found.keys() == theirs[file].keys()
            for name, tensor in found.items():
                assert torch.equal(tensor, theirs[file][name]), (file, name)


def files(path: Path) -> dict[str, tuple[int, int]]:
    found = (file for file in path.rglob("*") if file.is_file() and "ledger" not in file.name)
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in found}


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    """The plan carried out by each engine, once."""
    found = {}

    def by(engine: str, epochs: int = 2):
        if (engine, epochs) not in found:
            store, said = Store(tmp_path_factory.mktemp("stores") / engine), []
            run_plan(plan(epochs), store, engine=engine, workers=2, say=said.append)
            found[engine, epochs] = store, said
        return found[engine, epochs]

    return by


each_engine = pytest.mark.parametrize("engine", ENGINES)


@each_engine
def test_everything_is_done_once_and_said(engine, carried):
    store, said = carried(engine)
    specs = everything(plan())
    assert said[0].startswith("8 runs wanted, 0 found, 10 to do (2 dense runs shared by 8), about ")
    assert sorted(line.rpartition(": ")[2] for line in said[1:]) == sorted(map(run_id, specs))
    assert [line.partition(":")[0] for line in said[1:]] == [f"{n} of 10" for n in range(1, 11)]
    assert not any(store.work.iterdir())
    for spec in specs:
        folder = store.folder(run_id(spec))
        assert folder.result()["attempts"] == 1
        assert folder.environment()["engine"] == engine
        assert folder.environment()["threads"] == 1
        assert not [
            file.name for file in folder.path.iterdir() if file.name.startswith(("training", "claim"))
        ]
        assert folder.result()["invariants"] == ("passed" if spec.kind == "ticket" else None)


def test_all_engines_give_the_same_bits(carried):
    first, *others = ENGINES
    for engine in others:
        check_same(carried(first)[0], carried(engine)[0], plan())


@each_engine
def test_where_nothing_is_to_do_nothing_is_done(engine, carried):
    store, said = carried(engine)[0], []
    before = files(store.path)
    run_plan(plan(), store, engine=engine, workers=2, say=said.append)
    assert said == ["8 runs wanted, 8 found, 0 to do"]
    assert files(store.path) == before


def test_progress_counts_the_steps_of_all_trainings_of_a_run(tmp_path):
    store = Store(tmp_path)
    for spec in everything(plan()[:4]):
        counts, total = [], int(spec.cost()[1])
        assert run_to_completion(spec, store, "inline", lambda *count, counts=counts: counts.append(count))
        assert list(dict.fromkeys(counts)) == [(run_id(spec), done, total) for done in range(total + 1)]


def test_progress_of_a_resumed_run_begins_with_the_steps_that_are_done(tmp_path):
    store, counts = Store(tmp_path), []

    def interrupt(id, done, total):
        if done == 6:  # the checkpoint is that of the first epoch, of four steps
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_to_completion(DENSE, store, "inline", interrupt)
    assert run_to_completion(DENSE, store, "inline", lambda id, done, total: counts.append(done))
    assert counts == [4, 5, 6, 7, 8]


BAD = replace(DENSE, recipe=RECIPE.replace(learning_rate=1e30, optimizer="sgd"))


@pytest.mark.parametrize(
    "engine",
    ["inline", *(pytest.param(name, marks=pytest.mark.slow) for name in ENGINES if name != "inline")],
)
def test_a_run_that_fails_does_not_stop_the_others(engine, tmp_path):
    bad = TicketSpec(BAD, rounds=2)
    specs = [bad, replace(bad, masks_from=bad, mask1="reinitialize"), TicketSpec(DENSE, rounds=1)]
    store, said = Store(tmp_path), []
    for _ in range(2):
        with pytest.raises(
            DivergenceError, match=rf"^1 of \d runs failed; the first, {run_id(BAD)}: The loss is"
        ):
            run_plan(specs, store, engine=engine, workers=2, say=said.append)
        (failed,) = (line for line in said if line.startswith("failed"))
        assert failed.startswith(f"failed: {run_id(BAD)}: The loss is ")
        assert failed.endswith(" (2 more need it)")
        assert [run.id for run in store.runs() if run.status == "done"] == [
            run_id(DENSE),
            run_id(specs[2]),
        ]
        (lost,) = (run for run in store.runs() if run.status != "done")
        assert (lost.id, lost.status) == (run_id(BAD), "failed")
        assert "The loss is" in lost.error
        said.clear()
    assert lost.attempts == 2


def test_taken_up_after_a_failure_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FAILING").touch()
    spec, store = TicketSpec(DENSE, rounds=2, criterion="small:failing"), Store(tmp_path / "store")
    with pytest.raises(StatisticsError, match=r"1 of 2 runs failed; .*Asked to fail"):
        run_plan([spec], store, engine="inline", say=print)
    first = store.look(run_id(spec)).rows()
    assert [row["level"] for row in first] == [1]
    (tmp_path / "FAILING").unlink()
    run_plan([spec], store, engine="inline", say=print)
    whole = Store(tmp_path / "whole")
    run_plan([spec], whole, engine="inline", say=print)
    assert store.folder(run_id(spec)).rows()[0] == first[0]
    check_same(store, whole, [spec])
    assert store.folder(run_id(spec)).result()["attempts"] == 2


@pytest.mark.parametrize(
    "engine",
    ["inline", *(pytest.param(name, marks=pytest.mark.slow) for name in ENGINES if name != "inline")],
)
def test_a_fault_in_a_users_function_is_that_runs_alone(engine, tmp_path):
    bad, good = (TicketSpec(DENSE, rounds=1, criterion=name) for name in ("small:raising", "small:by_column"))
    store, said = Store(tmp_path), []
    with pytest.raises(ValueError, match=f"^1 of 3 runs failed; the first, {run_id(bad)}: a fault$") as ended:
        run_plan([bad, good], store, engine=engine, workers=2, say=said.append)
    cause = ended.value.__cause__
    assert (type(cause), str(cause)) == (ValueError, "a fault")
    assert ", in raising\n" in "".join(traceback.format_exception(cause))
    assert f"failed: {run_id(bad)}: ValueError: a fault" in said
    assert {run.id: (run.status, run.error) for run in store.runs()} == {
        run_id(DENSE): ("done", None),
        run_id(good): ("done", None),
        run_id(bad): ("failed", "ValueError: a fault"),
    }


def test_a_fault_comes_back_from_a_worker_and_says_where(tmp_path):
    run_in_worker(DENSE, tmp_path)
    _, is_done, fault = run_in_worker(TicketSpec(DENSE, rounds=1, criterion="small:raising"), tmp_path)
    error = pickle.loads(pickle.dumps(fault))
    assert (is_done, type(error), str(error)) == (False, ValueError, "a fault")
    assert ", in raising\n" in error.__notes__[0]


class Odd(Exception):
    """Of a type that takes more than words, so that it does not come back."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize(
    ("error", "type_", "said"),
    [
        (DivergenceError("It is NaN."), DivergenceError, "It is NaN."),
        (ValueError("a fault"), ValueError, "a fault"),
        (OSError(28, "No space left"), OSError, "[Errno 28] No space left"),
        (KeyError("x"), RuntimeError, "KeyError: 'x'"),
        (Odd("this", "that"), RuntimeError, "Odd: this and that"),
    ],
)
def test_what_is_raised_at_the_end_is_what_the_first_raised(error, type_, said, tmp_path):
    for mine in (error, to_picklable_error(error)):
        queue = RunScheduler([DENSE], Store(tmp_path))
        queue.failed(DENSE, mine)
        with pytest.raises(type_) as ended:
            queue.end()
        assert str(ended.value) == f"1 of 1 runs failed; the first, {run_id(DENSE)}: {said}"
        assert ended.value.__cause__ is (None if type_ is DivergenceError else mine)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_who_interrupts_stops_everything(interrupt, tmp_path, monkeypatch):
    def stopped(evidence):
        raise interrupt

    monkeypatch.setattr("small.stopped", stopped, raising=False)
    specs = [TicketSpec(DENSE, rounds=1, criterion=name) for name in ("small:stopped", "small:by_column")]
    store = Store(tmp_path)
    with pytest.raises(interrupt):
        run_plan(specs, store, engine="inline", say=print)
    assert [store.done(run_id(spec)) for spec in (DENSE, *specs)] == [True, False, False]


def test_a_training_of_a_run_that_is_lost_leaves_no_checkpoint(tmp_path, monkeypatch):
    """No evaluation, which would notice the loss, comes between the loss and the end of the epoch."""
    monkeypatch.setattr("prunus.runs.directory.BEAT_SECONDS", 0.0)
    spec = replace(DENSE, every=1000, states=(), recipe=RECIPE.replace(epochs=4))
    store, steps, taken = Store(tmp_path), [], []
    checkpoint = RunFolder(store.work / run_id(spec)).checkpoint("training-00")

    def take_over(id, done, total):
        steps.append(done)
        if taken or done < 5:  # an epoch has four steps
            return
        assert checkpoint.exists()
        with sqlite3.connect(store.ledger.path) as connection:
            connection.execute("UPDATE runs SET host = 'elsewhere', heartbeat = 0")
        connection.close()
        taken.append(store.begin(spec, "another"))
        taken[0].drop(checkpoint.stem)

    assert not run_to_completion(spec, store, "inline", take_over)
    assert steps[-1] == 8, "the training went on after the checkpoint that it could not write"
    assert not checkpoint.exists()
    assert not list(checkpoint.parent.glob(f".{checkpoint.name}*"))


def test_a_need_that_is_gone_is_said_and_waited_for_by_nobody(tmp_path):
    """The dense training was there when the plan was made, and is removed before the ticket begins."""
    spec, store = TicketSpec(DENSE, rounds=1), Store(tmp_path)
    run_plan([DENSE], store, engine="inline", say=print)
    todo = plan_of([spec], store).todo
    store.remove(run_id(DENSE))
    with pytest.raises(StoreError, match=f"{run_id(DENSE)}, which it needs, is gone"):
        ENGINES["inline"](todo, store, say=print)
    assert not RunScheduler(todo, store).ready()


def test_a_failed_receipt_is_stored_as_failed_and_the_run_is_done(tmp_path):
    spec, store = TicketSpec(DENSE, rounds=2, mask1="small:not_rewound"), Store(tmp_path)
    with pytest.warns(InvariantWarning):
        run_plan([spec], store, engine="inline", say=print)
    (run,) = (run for run in store.runs() if run.id == run_id(spec))
    assert run.status == "done"
    assert run.invariants.startswith("failed: mask-1: every kept weight is ")
    assert len(store.folder(run_id(spec)).rows()) == 2


def test_a_setting_no_run_can_have_is_refused_before_anything_is_done(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(SpecError, match="every is 0"):
        run_plan([TicketSpec(DENSE), TicketSpec(replace(DENSE, every=0))], store, engine="inline", say=print)
    assert not any(store.work.iterdir())
    assert not store.runs()


# Killed, and several at once

LONGER = 40
"""Epochs, so that there is a moment to be killed at."""


class Program:
    """`python plan.py` in a process group of its own."""

    def __init__(self, store: Path, engine: str, epochs: int) -> None:
        command = [sys.executable, str(HELPERS / "plan.py"), str(store), engine, str(epochs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
        )
        self.lines: list[str] = []

    def read(self, count: int) -> bool:
        """Wait for so many lines more; False at the end."""
        for line in self.process.stdout:
            self.lines.append(line.strip())
            count -= 1
            if not count:
                return True
        return False

    def kill(self) -> None:
        """The whole tree, at one stroke."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.end()

    def end(self) -> int:
        """Read what is left, and wait."""
        self.read(10_000)
        self.process.stdout.close()
        return self.process.wait()


@pytest.mark.slow
@each_engine
def test_killed_at_random_moments_and_started_again(engine, carried, tmp_path):
    moments, kills = random.Random(), 0
    for _ in range(40):
        program = Program(tmp_path, engine, LONGER)
        assert program.read(2)  # it is ready, and has made its plan
        if ", 0 to do" in program.lines[1] or kills == 5:
            assert program.end() == 0
            break
        if moments.random() < 0.5:
            program.read(1)
        time.sleep(moments.uniform(0, 0.2))
        program.kill()
        kills += 1
    store, specs = Store(tmp_path), plan(LONGER)
    assert all(store.done(run_id(spec)) for spec in everything(specs))
    assert not any(store.work.iterdir())
    check_same(carried("inline", LONGER)[0], store, specs)
    assert kills


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path):
    program = Program(tmp_path, "processes", 400)
    assert program.read(2)
    while not any((tmp_path / "work").iterdir()):
        time.sleep(0.05)
    program.process.kill()
    program.end()
    deadline = time.monotonic() + 30
    while living(program.process.pid):
        assert time.monotonic() < deadline, "its workers are still there"
        time.sleep(0.1)
    assert all(run.status == "stale" for run in Store(tmp_path).runs())


def living(group: int) -> bool:
    """Whether there is a process in that group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("engines", [("inline", "inline"), ("inline", "processes")])
def test_two_engines_on_one_store(engines, carried, tmp_path):
    programs = [Program(tmp_path, engine, 20) for engine in engines]
    assert [program.end() for program in programs] == [0, 0]
    store, specs = Store(tmp_path), plan(20)
    for spec in everything(specs):
        assert store.folder(run_id(spec)).result()["attempts"] == 1
    done = [line.rpartition(": ")[2] for program in programs for line in program.lines if " of " in line]
    assert sorted(done) == sorted(map(run_id, everything(specs)))
    check_same(carried("inline", 20)[0], store, specs)


def test_the_program_of_these_tests_is_the_plan(carried):
    """Every kind of run is in it."""
    kinds = {spec.kind for spec in everything(plan())}
    assert kinds == {"dense", "ticket", "instability"}
    assert (
        json.loads((carried("inline")[0].folder(run_id(DENSE)).path / "spec.json").read_text())["kind"]
        == "dense"
    )
