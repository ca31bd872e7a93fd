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

from prunus.errors import DivergedError, EvidenceError, LostClaimError, ReceiptWarning, SpecError, StoreError
from prunus.runs.engines import ARITHMETIC, ENGINES
from prunus.runs.engines.pool import sent
from prunus.runs.engines.processes import one as alone
from prunus.runs.engines.queue import Queue
from prunus.runs.engines.stacked import groups, together
from prunus.runs.engines.work import begin
from prunus.runs.execute import execute
from prunus.runs.plan import plan as plan_of
from prunus.runs.spec import identity
from prunus.runs.store import Store
from prunus.tickets.ticket import Ticket

HELPERS = Path(__file__).parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))

from plan import DENSE, RECIPE, plan  # noqa: E402

TIMES = {"seconds"}


def everything(specs) -> list:
    """The specs and what they need, needs first."""
    found: dict = {}
    for spec in specs:
        for one in [*everything(spec.needs()), spec]:
            found[identity(one)] = one
    return list(found.values())


def numbers(store: Store, spec):
    """All numbers of a finished run but times: rows, curves, summary."""
    folder = store.folder(identity(spec))
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in folder.rows()]
    summary = {k: v for k, v in folder.result()["summary"].items() if k not in TIMES}
    return rows, folder.curve(), summary


def tensors(store: Store, spec):
    path = store.folder(identity(spec)).path
    return {file.name: load_file(file) for file in sorted(path.glob("*.safetensors"))}


def check_same(store, specs, other, others, *, bits=True):
    for one, two in zip(everything(specs), everything(others), strict=True):
        if bits:
            assert numbers(store, one) == numbers(other, two)
        else:
            check_near(numbers(store, one), numbers(other, two))
        mine, theirs = tensors(store, one), tensors(other, two)
        assert mine.keys() == theirs.keys()
        for file, found in mine.items():
            assert found.keys() - {"random"} == theirs[file].keys() - {"random"}
            for name, tensor in found.items():
                if bits or file.startswith("masks"):
                    assert torch.equal(tensor, theirs[file][name]), (file, name)
                elif name != "random":
                    assert torch.allclose(tensor, theirs[file][name], rtol=1e-3, atol=1e-4), (file, name)


def check_near(one, two):
    if isinstance(one, float):
        assert one == pytest.approx(two, rel=1e-3)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            check_near(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            check_near(a, b)
    else:
        assert one == two


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
            execute(plan(engine, epochs), store, engine=engine, workers=2, say=said.append)
            found[engine, epochs] = store, said
        return found[engine, epochs]

    return by


each_engine = pytest.mark.parametrize("engine", ENGINES)


@each_engine
def test_everything_is_done_once_and_said(engine, carried):
    store, said = carried(engine)
    specs = everything(plan(engine))
    assert said[0].startswith("8 runs wanted, 0 found, 10 to do (2 dense runs shared by 8), about ")
    assert sorted(line.rpartition(": ")[2] for line in said[1:]) == sorted(map(identity, specs))
    assert [line.partition(":")[0] for line in said[1:]] == [f"{n} of 10" for n in range(1, 11)]
    assert not any(store.work.iterdir())
    for spec in specs:
        folder = store.folder(identity(spec))
        assert folder.result()["attempts"] == 1
        assert folder.environment()["engine"] == engine
        assert folder.environment()["threads"] == 1
        assert not [
            file.name for file in folder.path.iterdir() if file.name.startswith(("training", "claim"))
        ]
        assert folder.result()["receipt"] == ("passed" if spec.kind == "ticket" else None)


@each_engine
def test_what_comes_of_it_does_not_hang_on_the_engine(engine, carried):
    """Bit for bit, or, where the arithmetic is another, near: 1e-3 of a number, 1e-4 of a weight, the same masks."""
    expected, store = carried("inline")[0], carried(engine)[0]
    check_same(expected, plan("inline"), store, plan(engine), bits=engine not in ARITHMETIC)
    names = [set(map(identity, everything(plan(name)))) for name in ("inline", engine)]
    assert bool(names[0] & names[1]) == (engine not in ARITHMETIC)


@each_engine
def test_where_nothing_is_to_do_nothing_is_done(engine, carried):
    store, said = carried(engine)[0], []
    before = files(store.path)
    execute(plan(engine), store, engine=engine, workers=2, say=said.append)
    assert said == ["8 runs wanted, 8 found, 0 to do"]
    assert files(store.path) == before


BAD = replace(DENSE, recipe=RECIPE.but(learning_rate=1e30, optimiser="sgd"))


@pytest.mark.parametrize(
    "engine",
    ["inline", *(pytest.param(name, marks=pytest.mark.slow) for name in ENGINES if name != "inline")],
)
def test_a_run_that_fails_does_not_stop_the_others(engine, tmp_path):
    bad = Ticket(BAD, rounds=2)
    specs = [bad, replace(bad, masks_of=bad, mask1="reinitialise"), Ticket(DENSE, rounds=1)]
    store, said = Store(tmp_path), []
    for _ in range(2):
        with pytest.raises(
            DivergedError, match=rf"^1 of \d runs failed; the first, {identity(BAD)}: The loss is"
        ):
            execute(specs, store, engine=engine, workers=2, say=said.append)
        (failed,) = (line for line in said if line.startswith("failed"))
        assert failed.startswith(f"failed: {identity(BAD)}: The loss is ")
        assert failed.endswith(" (2 more need it)")
        assert [run.id for run in store.runs() if run.status == "done"] == [
            identity(DENSE),
            identity(specs[2]),
        ]
        (lost,) = (run for run in store.runs() if run.status != "done")
        assert (lost.id, lost.status) == (identity(BAD), "failed")
        assert "The loss is" in lost.error
        said.clear()
    assert lost.attempts == 2


def test_taken_up_after_a_failure_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FAILING").touch()
    spec, store = Ticket(DENSE, rounds=2, criterion="small:failing"), Store(tmp_path / "store")
    with pytest.raises(EvidenceError, match=r"1 of 2 runs failed; .*Asked to fail"):
        execute([spec], store, engine="inline", say=print)
    first = store.look(identity(spec)).rows()
    assert [row["level"] for row in first] == [1]
    (tmp_path / "FAILING").unlink()
    execute([spec], store, engine="inline", say=print)
    whole = Store(tmp_path / "whole")
    execute([spec], whole, engine="inline", say=print)
    assert store.folder(identity(spec)).rows()[0] == first[0]
    check_same(store, [spec], whole, [spec])
    assert store.folder(identity(spec)).result()["attempts"] == 2


@pytest.mark.parametrize(
    "engine",
    ["inline", *(pytest.param(name, marks=pytest.mark.slow) for name in ENGINES if name != "inline")],
)
def test_a_fault_in_a_users_function_is_that_runs_alone(engine, tmp_path):
    dense = replace(DENSE, arithmetic=ARITHMETIC.get(engine, "single"))
    bad, good = (Ticket(dense, rounds=1, criterion=name) for name in ("small:raising", "small:by_column"))
    store, said = Store(tmp_path), []
    with pytest.raises(
        ValueError, match=f"^1 of 3 runs failed; the first, {identity(bad)}: a fault$"
    ) as ended:
        execute([bad, good], store, engine=engine, workers=2, say=said.append)
    cause = ended.value.__cause__
    assert (type(cause), str(cause)) == (ValueError, "a fault")
    assert ", in raising\n" in "".join(traceback.format_exception(cause))
    assert f"failed: {identity(bad)}: ValueError: a fault" in said
    assert {run.id: (run.status, run.error) for run in store.runs()} == {
        identity(dense): ("done", None),
        identity(good): ("done", None),
        identity(bad): ("failed", "ValueError: a fault"),
    }


@pytest.mark.parametrize("carry", [alone, together], ids=["processes", "stacked"])
def test_a_fault_comes_back_from_a_worker_and_says_where(carry, tmp_path):
    dense = replace(DENSE, arithmetic="stacked" if carry is together else "single")
    carry([dense], tmp_path)
    (outcome,) = carry([Ticket(dense, rounds=1, criterion="small:raising")], tmp_path)
    error = pickle.loads(pickle.dumps(outcome[2]))
    assert (outcome[1], type(error), str(error)) == (False, ValueError, "a fault")
    assert ", in raising\n" in error.__notes__[0]


class Odd(Exception):
    """Of a type that takes more than words, so that it does not come back."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize(
    ("error", "type_", "said"),
    [
        (DivergedError("It is NaN."), DivergedError, "It is NaN."),
        (ValueError("a fault"), ValueError, "a fault"),
        (OSError(28, "No space left"), OSError, "[Errno 28] No space left"),
        (KeyError("x"), RuntimeError, "KeyError: 'x'"),
        (Odd("this", "that"), RuntimeError, "Odd: this and that"),
    ],
)
def test_what_is_raised_at_the_end_is_what_the_first_raised(error, type_, said, tmp_path):
    for mine in (error, sent(error)):
        queue = Queue([DENSE], Store(tmp_path))
        queue.failed(DENSE, mine)
        with pytest.raises(type_) as ended:
            queue.end()
        assert str(ended.value) == f"1 of 1 runs failed; the first, {identity(DENSE)}: {said}"
        assert ended.value.__cause__ is (None if type_ is DivergedError else mine)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_who_interrupts_stops_everything(interrupt, tmp_path, monkeypatch):
    def stopped(evidence):
        raise interrupt

    monkeypatch.setattr("small.stopped", stopped, raising=False)
    specs = [Ticket(DENSE, rounds=1, criterion=name) for name in ("small:stopped", "small:by_column")]
    store = Store(tmp_path)
    with pytest.raises(interrupt):
        execute(specs, store, engine="inline", say=print)
    assert [store.done(identity(spec)) for spec in (DENSE, *specs)] == [True, False, False]


def test_a_training_of_a_run_that_is_lost_leaves_no_checkpoint(tmp_path):
    """No evaluation, with its sign of life, comes between the loss and the end of the epoch."""
    spec, store, taken = (
        replace(DENSE, every=1000, states=(), recipe=RECIPE.but(epochs=4)),
        Store(tmp_path),
        [],
    )
    work = begin(spec, store, "inline")
    checkpoint = work.job.checkpoint

    def lose(epoch):
        if not taken:
            assert checkpoint.exists()
            with sqlite3.connect(store.ledger.path) as connection:
                connection.execute("UPDATE runs SET host = 'elsewhere', heartbeat = 0")
            connection.close()
            taken.append(store.begin(spec, "another"))
            taken[0].drop(checkpoint.stem)
            work.folder._beaten = 0.0  # nobody takes over what was alive two seconds ago

    work.job = replace(work.job, report=lose)
    with pytest.raises(LostClaimError):
        work.job.carry_out()
    assert not checkpoint.exists()
    assert not list(checkpoint.parent.glob(f".{checkpoint.name}*"))


def test_a_need_that_is_gone_is_said_and_waited_for_by_nobody(tmp_path):
    """The dense training was there when the plan was made, and is removed before the ticket begins."""
    spec, store = Ticket(DENSE, rounds=1), Store(tmp_path)
    execute([DENSE], store, engine="inline", say=print)
    todo = plan_of([spec], store).todo
    store.remove(identity(DENSE))
    with pytest.raises(StoreError, match=f"{identity(DENSE)}, which it needs, is gone"):
        ENGINES["inline"](todo, store, say=print)
    assert not Queue(todo, store).ready()


def test_a_failed_receipt_is_stored_as_failed_and_the_run_is_done(tmp_path):
    spec, store = Ticket(DENSE, rounds=2, mask1="small:not_rewound"), Store(tmp_path)
    with pytest.warns(ReceiptWarning):
        execute([spec], store, engine="inline", say=print)
    (run,) = (run for run in store.runs() if run.id == identity(spec))
    assert run.status == "done"
    assert run.receipt.startswith("failed: mask-1: every kept weight is ")
    assert len(store.folder(identity(spec)).rows()) == 2


def test_of_a_stack_only_the_one_that_fails_fails(tmp_path):
    dense = [replace(DENSE, model="small:wild", replicate=r, arithmetic="stacked") for r in (0, 1, 2)]
    store = Store(tmp_path)
    outcomes = together(dense, store.path)
    assert [(spec, here, type(error)) for spec, here, error in outcomes] == [
        (dense[0], True, type(None)),
        (dense[1], False, DivergedError),
        (dense[2], True, type(None)),
    ]
    assert [store.done(identity(spec)) for spec in dense] == [True, False, True]
    (failed,) = (run for run in store.runs() if run.status == "failed")
    assert failed.id == identity(dense[1])


def test_a_stack_says_who_began_together(tmp_path):
    dense = [replace(DENSE, replicate=r, arithmetic="stacked") for r in range(5)]
    store, ids = Store(tmp_path), [identity(spec) for spec in dense]
    held = store.begin(dense[2], "test")
    together(dense[:3], store.path)
    together(dense[3:4], store.path)
    store.fail(held, "let go")
    for member, members in ((0, ids[:2]), (1, ids[:2]), (3, ids[3:4])):
        assert store.folder(ids[member]).environment()["together"] == members
    assert "together" not in held.environment()


def test_a_stack_begun_again_with_the_same_members_is_no_other_environment(tmp_path):
    store = Store(tmp_path)
    for members, earlier in (([1, 2], []), ([1, 2], []), ([1], [[1, 2]]), ([1], [[1, 2]])):
        folder = store.begin(DENSE, "stacked")
        folder.add_environment({"together": members})
        found = folder.environment()
        assert found["together"] == members
        assert [one["together"] for one in found.get("earlier", [])] == earlier
        store.fail(folder, "stop")


def test_of_a_stack_what_another_holds_or_spoilt_is_left_out(tmp_path):
    dense = [replace(DENSE, replicate=r, arithmetic="stacked") for r in (0, 1, 2)]
    store = Store(tmp_path)
    held = store.begin(dense[0], "test")
    (store.work / identity(dense[1])).mkdir()
    (store.work / identity(dense[1]) / "spec.json").write_text("no JSON")
    outcomes = together(dense, store.path)
    assert [(here, type(error)) for _, here, error in outcomes] == [
        (False, type(None)),
        (False, StoreError),
        (True, type(None)),
    ]
    store.fail(held, "let go")
    assert together(dense[:1], store.path)[0][1]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_stacks_are_of_runs_that_differ_in_their_replicate_alone(workers):
    specs = [spec for replicate in range(5) for spec in (
        replace(DENSE, replicate=replicate),
        replace(DENSE, replicate=replicate, every=4),
        Ticket(replace(DENSE, replicate=replicate)),
    )]  # fmt: skip
    for some in (specs, specs[:1], specs[:4], specs[::3], []):
        found = groups(some, workers)
        assert sorted(identity(s) for group in found for s in group) == sorted(map(identity, some))
        for group in found:
            assert len({identity(_first(spec)) for spec in group}) == 1
        kinds = len({identity(_first(spec)) for spec in some})
        assert len(found) == kinds or len(found) <= kinds * workers
    assert len(groups(specs[::3], workers)) == min(workers, 5)


def _first(spec):
    if isinstance(spec, Ticket):
        return replace(spec, dense=replace(spec.dense, replicate=0))
    return replace(spec, replicate=0)


def test_a_setting_no_run_can_have_is_refused_before_anything_is_done(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(SpecError, match="every is 0"):
        execute([Ticket(DENSE), Ticket(replace(DENSE, every=0))], store, engine="inline", say=print)
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
    store, specs = Store(tmp_path), plan(engine, LONGER)
    assert all(store.done(identity(spec)) for spec in everything(specs))
    assert not any(store.work.iterdir())
    expected = carried("inline", LONGER)[0]
    check_same(expected, plan("inline", LONGER), store, specs, bits=engine not in ARITHMETIC)
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
@pytest.mark.parametrize("engines", [("inline", "inline"), ("inline", "processes"), ("stacked", "stacked")])
def test_two_engines_on_one_store(engines, carried, tmp_path):
    programs = [Program(tmp_path, engine, 20) for engine in engines]
    assert [program.end() for program in programs] == [0, 0]
    store, specs = Store(tmp_path), plan(engines[0], 20)
    for spec in everything(specs):
        assert store.folder(identity(spec)).result()["attempts"] == 1
    done = [line.rpartition(": ")[2] for program in programs for line in program.lines if " of " in line]
    assert sorted(done) == sorted(map(identity, everything(specs)))
    check_same(carried("inline", 20)[0], plan("inline", 20), store, specs, bits=engines[0] not in ARITHMETIC)


def test_the_program_of_these_tests_is_the_plan(carried):
    """Every kind of run is in it, and every spec says who made its numbers."""
    kinds = {spec.kind for spec in everything(plan())}
    assert kinds == {"dense", "ticket", "instability"}
    assert (
        json.loads((carried("inline")[0].folder(identity(DENSE)).path / "spec.json").read_text())["kind"]
        == "dense"
    )
    assert {spec.arithmetic for spec in everything(plan("stacked")) if spec.kind == "dense"} == {"stacked"}
