"""Executors: each gives the same results, and a run that was killed is resumed to the same bits."""

import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest

from prunus.errors import DivergenceError, InvariantWarning, SpecError, StatisticsError, StoreError
from prunus.runs.executors import inline, run_plan
from prunus.runs.executors.run_task import run_to_completion
from prunus.runs.executors.scheduler import RunScheduler, RunsProgress
from prunus.runs.executors.worker import MissingRuns, do_missing_runs, to_picklable_error
from prunus.runs.plan import plan as plan_of
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.tickets.baseline import load_data_cached
from prunus.tickets.instability import InstabilitySpec
from prunus.tickets.procedure import run_ticket
from prunus.tickets.supermask.criterion_supermask import CriterionSupermaskSpec
from prunus.tickets.ticket import TicketSpec

HELPERS = Path(__file__).parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))

from plan import DENSE, RECIPE, plan  # noqa: E402
from same_runs import check_same, with_dependencies  # noqa: E402

EXECUTORS = ("inline", "processes")
"""Those that need one machine; the others are tested in test_many_machines.py."""


def files(path: Path) -> dict[str, tuple[int, int]]:
    unique = (file for file in path.rglob("*") if file.is_file())
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in unique}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The plan executed out by each executor, once."""
    unique = {}

    def by(executor: str, epochs: int = 2):
        if (executor, epochs) not in unique:
            store, lines = Store(tmp_path_factory.mktemp("stores") / executor), []
            run_plan(plan(epochs), store, executor=executor, workers=2, log=lines.append)
            unique[executor, epochs] = store, lines
        return unique[executor, epochs]

    return by


each_executor = pytest.mark.parametrize("executor", EXECUTORS)


@each_executor
def test_run_plan_does_every_run_once_and_reports_it(executor, executed):
    store, lines = executed(executor)
    specs = with_dependencies(plan())
    assert lines[0].startswith("8 runs requested, 0 found, 10 to do, about ")
    assert sorted(line.rpartition(": ")[2] for line in lines[1:]) == sorted(map(run_id, specs))
    assert [line.partition(":")[0] for line in lines[1:]] == [f"{n} of 10" for n in range(1, 11)]
    for spec in specs:
        directory = store.directory(run_id(spec))
        record = directory.record()
        assert record.attempts == 1
        assert record.environment["executor"] == executor
        assert record.environment["threads"] == 1
        assert not list(directory.path.glob("training*"))
        assert record.invariants == ("passed" if spec.kind == "ticket" else None)


def test_executors_give_the_same_bits(executed):
    first, *others = EXECUTORS
    for executor in others:
        check_same(executed(first)[0], executed(executor)[0], plan())


@each_executor
def test_run_plan_changes_no_file_when_all_runs_are_done(executor, executed):
    store, lines = executed(executor)[0], []
    before = files(store.path)
    run_plan(plan(), store, executor=executor, workers=2, log=lines.append)
    assert lines == ["8 runs requested, 8 found, 0 to do"]
    assert files(store.path) == before


def test_progress_counts_the_steps_of_all_trainings_of_a_run(tmp_path):
    store = Store(tmp_path)
    for spec in with_dependencies(plan()[:4]):
        counts, total = [], int(spec.cost()[1])
        assert run_to_completion(spec, store, "inline", lambda *count, counts=counts: counts.append(count))
        assert list(dict.fromkeys(counts)) == [(run_id(spec), done, total) for done in range(total + 1)]


def test_progress_names_a_run_that_another_process_computes_before_its_first_step(tmp_path):
    store, seen = Store(tmp_path), []
    progress = RunsProgress({run_id(DENSE): 1.0}, lambda *call: seen.append(call))
    scheduler = RunScheduler([DENSE], store, progress=progress)
    scheduler.update()
    assert seen == []
    directory = store.open(DENSE, "processes", "cpu")
    scheduler.update()
    directory.write_steps(3, 6)
    scheduler.update()
    texts = [text for text, *_ in seen]
    id = run_id(DENSE)
    assert texts == [
        f"0 of 1 runs finished, {id} is running",
        f"0 of 1 runs finished, {id} at step 3 of 6",
    ]


def test_progress_of_a_resumed_run_begins_with_the_steps_that_are_done(tmp_path):
    store, counts = Store(tmp_path), []

    def interrupt(id, done, total):
        if done == 6:  # the checkpoint is that of the first epoch, of four steps
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_to_completion(DENSE, store, "inline", interrupt)
    assert run_to_completion(DENSE, store, "inline", lambda id, done, total: counts.append(done))
    assert counts == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "spec", [TicketSpec(DENSE, rounds=3, rewind_step=5), InstabilitySpec(DENSE, 5, points=3)]
)
def test_progress_of_a_resumed_run_counts_the_levels_that_are_done(spec, tmp_path):
    store, counts = Store(tmp_path), []
    run_to_completion(DENSE, store, "inline")

    def interrupt(id, done, total):
        if done == 4:  # the first step of the second training of three steps
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_to_completion(spec, store, "inline", interrupt)
    assert run_to_completion(spec, store, "inline", lambda id, done, total: counts.append(done))
    assert list(dict.fromkeys(counts)) == list(range(3, int(spec.cost()[1]) + 1))


FAULT = "The criterion 'raising' failed: ValueError: a fault; correct the function."
BAD = replace(DENSE, recipe=RECIPE.replace(learning_rate=1e30, optimizer="sgd"))


@pytest.mark.parametrize(
    "executor",
    ["inline", *(pytest.param(name, marks=pytest.mark.slow) for name in EXECUTORS if name != "inline")],
)
def test_a_run_that_fails_does_not_stop_the_others(executor, tmp_path):
    bad = TicketSpec(BAD, rounds=2)
    specs = [bad, replace(bad, masks_from=bad, mask1="reinitialize"), TicketSpec(DENSE, rounds=1)]
    store, lines = Store(tmp_path), []
    for _ in range(2):
        with pytest.raises(
            DivergenceError, match=rf"^1 of \d runs failed; the first, {run_id(BAD)}: The loss is"
        ):
            run_plan(specs, store, executor=executor, workers=2, log=lines.append)
        (failed,) = (line for line in lines if line.startswith("failed"))
        assert failed.startswith(f"failed: {run_id(BAD)}: The loss is ")
        assert failed.endswith(" (2 more depend on it)")
        assert [run.id for run in store.runs() if run.state == "done"] == [
            run_id(DENSE),
            run_id(specs[2]),
        ]
        (lost,) = (run for run in store.runs() if run.state != "done")
        assert (lost.id, lost.state) == (run_id(BAD), "failed")
        assert "The loss is" in lost.error
        lines.clear()
    assert lost.attempts == 2


def test_a_run_that_failed_in_another_worker_meanwhile_is_not_repeated(tmp_path):
    scheduler = RunScheduler([BAD], Store(tmp_path))
    assert scheduler.next() == BAD
    for attempts in (0, 1):
        with pytest.raises(DivergenceError):  # the other worker, then another command
            run_to_completion(BAD, scheduler.store, "inline", attempts=attempts)
        assert not run_to_completion(BAD, scheduler.store, "inline", attempts=attempts)
    assert scheduler.store.directory(run_id(BAD), unfinished=True).record().attempts == 2
    assert scheduler.next() is None
    assert list(scheduler.errors) == [run_id(BAD)]


def test_a_failed_run_is_resumed_where_it_failed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FAILING").touch()
    spec, store = TicketSpec(DENSE, rounds=2, criterion="tiny_networks:failing"), Store(tmp_path / "store")
    with pytest.raises(StatisticsError, match=r"1 of 2 runs failed; .*Asked to fail"):
        run_plan([spec], store, executor="inline", log=print)
    first = store.directory(run_id(spec), unfinished=True).rows()
    assert [row["level"] for row in first] == [1]
    (tmp_path / "FAILING").unlink()
    run_plan([spec], store, executor="inline", log=print)
    uninterrupted = Store(tmp_path / "whole")
    run_plan([spec], uninterrupted, executor="inline", log=print)
    assert store.directory(run_id(spec)).rows()[0] == first[0]
    check_same(store, uninterrupted, [spec])
    assert store.directory(run_id(spec)).record().attempts == 2


@pytest.mark.parametrize(
    "executor",
    ["inline", *(pytest.param(name, marks=pytest.mark.slow) for name in EXECUTORS if name != "inline")],
)
def test_an_error_of_a_user_function_fails_only_its_run(executor, tmp_path):
    bad, good = (
        TicketSpec(DENSE, rounds=1, criterion=name)
        for name in ("tiny_networks:raising", "tiny_networks:by_column")
    )
    store, lines = Store(tmp_path), []
    with pytest.raises(
        StatisticsError, match=f"^1 of 3 runs failed; the first, {run_id(bad)}: {re.escape(FAULT)}$"
    ) as ended:
        run_plan([bad, good], store, executor=executor, workers=2, log=lines.append)
    cause = ended.value.__cause__
    assert (type(cause), str(cause)) == (StatisticsError, FAULT)
    assert ", in raising\n" in "".join(traceback.format_exception(cause))
    assert f"failed: {run_id(bad)}: {FAULT}" in lines
    assert {run.id: (run.state, run.error) for run in store.runs()} == {
        run_id(DENSE): ("done", None),
        run_id(good): ("done", None),
        run_id(bad): ("failed", FAULT),
    }


def test_an_error_in_a_worker_has_the_traceback_in_its_notes(tmp_path):
    Store(tmp_path)
    bad = TicketSpec(DENSE, rounds=1, criterion="tiny_networks:raising")
    faults = do_missing_runs(MissingRuns((DENSE, bad), tmp_path, "processes", {}))
    assert [*faults] == [run_id(bad)]
    error = pickle.loads(pickle.dumps(faults[run_id(bad)]))
    assert (type(error), str(error)) == (StatisticsError, FAULT)
    assert ", in raising\n" in error.__notes__[0]


class Odd(Exception):
    """Of a type that takes more than words, so that it cannot be rebuilt in the parent."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize(
    ("error", "type_", "lines"),
    [
        (DivergenceError("It is NaN."), DivergenceError, "It is NaN."),
        (ValueError("a fault"), ValueError, "a fault"),
        (OSError(28, "No space left"), OSError, "[Errno 28] No space left"),
        (KeyError("x"), RuntimeError, "KeyError: 'x'"),
        (Odd("this", "that"), RuntimeError, "Odd: this and that"),
    ],
)
def test_raise_first_error_keeps_the_type_and_counts_the_failures(error, type_, lines, tmp_path):
    for raised in (error, to_picklable_error(error)):
        scheduler = RunScheduler([DENSE], Store(tmp_path))
        scheduler.fail(run_id(DENSE), raised)
        with pytest.raises(type_) as ended:
            scheduler.raise_first_error()
        assert str(ended.value) == f"1 of 1 runs failed; the first, {run_id(DENSE)}: {lines}"
        assert ended.value.__cause__ is (None if type_ is DivergenceError else raised)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_stops_the_plan(interrupt, tmp_path, monkeypatch):
    def stop_or_run(spec, *arguments, **options):
        if spec.criterion == "large_final":
            raise interrupt
        return run_ticket(spec, *arguments, **options)

    monkeypatch.setattr("prunus.tickets.procedure.run_ticket", stop_or_run)
    specs = [
        TicketSpec(DENSE, rounds=1, criterion=name) for name in ("large_final", "tiny_networks:by_column")
    ]
    store = Store(tmp_path)
    with pytest.raises(interrupt):
        run_plan(specs, store, executor="inline", log=print)
    assert [store.is_done(run_id(spec)) for spec in (DENSE, *specs)] == [True, False, False]


def test_an_interrupted_run_is_listed_as_such_and_resumed(tmp_path, monkeypatch):
    store = Store(tmp_path)

    def interrupt(id, done, total):
        assert store.run(id).state == "running"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_to_completion(DENSE, store, "inline", interrupt)
    (run,) = store.runs()
    assert (run.state, run.error, run.attempts) == ("interrupted", None, 1)
    assert run_to_completion(DENSE, store, "inline")
    assert store.run(run.id).attempts == 2


def test_a_run_is_not_resumed_with_other_data(tmp_path, monkeypatch):
    """The data function reads a file that changes, while its source does not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_data.py").write_text(
        "from pathlib import Path\nfrom prunus import load_data\n"
        "def data(): return load_data('digits').take(int(Path('number').read_text()), 40)\n"
    )
    spec, store = replace(DENSE, data="own_data:data", examples=None), Store(tmp_path / "store")
    ticket = TicketSpec(spec, rounds=1)

    def interrupt(id, done, total):
        raise KeyboardInterrupt

    for number, stop in (("120", interrupt), ("121", None)):
        (tmp_path / "number").write_text(number)
        load_data_cached.cache_clear()
        with pytest.raises(
            KeyboardInterrupt if stop else StoreError, match=None if stop else "gives other data"
        ):
            run_to_completion(spec, store, "inline", stop)
    (tmp_path / "number").write_text("120")
    load_data_cached.cache_clear()
    assert run_to_completion(spec, store, "inline")
    (tmp_path / "number").write_text("119")
    load_data_cached.cache_clear()
    scored = CriterionSupermaskSpec(replace(ticket, schedule="one_shot"))
    for run in (ticket, scored):
        with pytest.raises(StoreError, match=f"other data than the run {run_id(spec)} was computed with"):
            run_to_completion(run, store, "inline")


def test_a_removed_dependency_is_an_error(tmp_path):
    """The dense training was there when the plan was made, and is removed before the ticket begins."""
    spec, store = TicketSpec(DENSE, rounds=1), Store(tmp_path)
    run_plan([DENSE], store, executor="inline", log=print)
    todo = plan_of([spec], store).todo
    store.remove(run_id(DENSE))
    scheduler = RunScheduler(todo, store)
    inline(MissingRuns(todo, tmp_path, "inline", {}), None, scheduler)
    with pytest.raises(StoreError, match=f"{run_id(DENSE)}, which it depends on, is gone"):
        scheduler.raise_first_error()


def test_a_failed_invariant_is_recorded_in_a_finished_run(tmp_path):
    spec, store = TicketSpec(DENSE, rounds=2, mask1="tiny_networks:not_rewound"), Store(tmp_path)
    with pytest.warns(InvariantWarning):
        run_plan([spec], store, executor="inline", log=print)
    (run,) = (run for run in store.runs() if run.id == run_id(spec))
    assert run.state == "done"
    assert run.invariants.startswith("failed: mask-1: every kept weight equals ")
    assert len(store.directory(run_id(spec)).rows()) == 2


def test_an_impossible_setting_is_refused_before_any_run(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(SpecError, match="eval_every of at least 1, got 0"):
        run_plan(
            [TicketSpec(DENSE), TicketSpec(replace(DENSE, eval_every=0))], store, executor="inline", log=print
        )
    assert not store.runs()


# Killed, and several at once

LONGER = 40
"""Epochs, so that there is a moment to be killed at."""


class Program:
    """`python plan.py` in a process group of its own."""

    def __init__(self, store: Path, executor: str, epochs: int) -> None:
        command = [sys.executable, str(HELPERS / "plan.py"), str(store), executor, str(epochs)]
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
        """Read the rest, and wait."""
        self.read(10_000)
        self.process.stdout.close()
        return self.process.wait()


@pytest.mark.slow
@each_executor
def test_a_plan_killed_at_random_moments_resumes_to_the_same_bits(executor, executed, tmp_path):
    moments, kills = random.Random(), 0
    for _ in range(40):
        program = Program(tmp_path, executor, LONGER)
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
    assert all(store.is_done(run_id(spec)) for spec in with_dependencies(specs))
    check_same(executed("inline", LONGER)[0], store, specs)
    assert kills


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path):
    program = Program(tmp_path, "processes", 400)
    assert program.read(2)
    while not any((tmp_path / "runs").glob("*/run.json")):
        time.sleep(0.05)
    program.process.kill()
    program.end()
    deadline = time.monotonic() + 30
    while living(program.process.pid):
        assert time.monotonic() < deadline, "its workers are still there"
        time.sleep(0.1)
    assert all(run.state == "interrupted" for run in Store(tmp_path).runs())


def living(group: int) -> bool:
    """Whether there is a process in that group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("executors", [("inline", "inline"), ("inline", "processes")])
def test_two_executors_share_a_store(executors, executed, tmp_path):
    programs = [Program(tmp_path, executor, 20) for executor in executors]
    assert [program.end() for program in programs] == [0, 0]
    store, specs = Store(tmp_path), plan(20)
    for spec in with_dependencies(specs):
        assert store.directory(run_id(spec)).record().attempts == 1
    for program in programs:
        done = [line.rpartition(": ")[2] for line in program.lines if " of " in line]
        assert sorted(done) == sorted(map(run_id, with_dependencies(specs)))
    check_same(executed("inline", 20)[0], store, specs)


def test_the_plan_of_these_tests_has_every_kind_of_run(executed):
    kinds = {spec.kind for spec in with_dependencies(plan())}
    assert kinds == {"baseline", "ticket", "instability"}
    record = executed("inline")[0].directory(run_id(DENSE)).path / "run.json"
    assert json.loads(record.read_text())["kind"] == "baseline"
