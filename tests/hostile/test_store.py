"""A store under attack: many processes, killed ones, full disks, damaged files, read-only file systems."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from specs import Baseline, Ticket, finish

from prunus.errors import StoreError
from prunus.runs.record import write_record
from prunus.runs.spec import run_id
from prunus.runs.store import Store

JOBS = f'''
import os, random, signal, sys, time, warnings
from pathlib import Path
import torch
sys.path.insert(0, {str(Path(__file__).parents[1] / "helpers")!r})
from specs import Baseline
from prunus.runs.environment import environment
from prunus.runs.spec import run_id
from prunus.runs.store import Store

LEVELS = 4

def compute(store, job):
    """One job from where an earlier attempt ended; nothing if another process has it."""
    directory = store.open(job, "test")
    if directory is None:
        return
    start = len(directory.rows())
    for level in range(start, LEVELS):
        directory.save_tensors(f"level-{{level}}", {{"w": torch.full((50,), float(level))}})
        directory.append_curve({{"level": level, "step": step}} for step in range(20))
        directory.append_row({{"level": level, "pid": os.getpid()}})
    store.finish(directory, {{"by": os.getpid(), "from": start}})

def check_complete(directory):
    """Everything that a finished run must have."""
    record = directory.record()
    assert record.id == directory.id and record.environment["executor"] == "test"
    assert record.cost == ("small/60", 100.0)
    assert [row["level"] for row in directory.rows()] == list(range(LEVELS))
    assert len(directory.curve()) == 20 * LEVELS
    for level in range(LEVELS):
        assert directory.load_tensors(f"level-{{level}}")["w"].tolist() == [float(level)] * 50
    names = {{path.name.partition("-")[0] for path in directory.path.iterdir()}}
    assert names == {{"run.json", "rows.jsonl", "curve.jsonl", "level"}}, names

def child(work):
    """Call `work` in a process of its own; return its ID."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
    return pid

warnings.simplefilter("error")
environment("test", "cpu")  # git is called once
path = sys.argv[1]
'''

SWARM = (
    JOBS
    + """
def work(seed):
    jobs = [Baseline(seed=number) for number in range(30)]
    random.Random(seed).shuffle(jobs)
    store = Store(path)
    while not all(store.is_done(run_id(job)) for job in jobs):
        for job in jobs:
            compute(store, job)

pids = [child(lambda: work(seed)) for seed in range(8)]
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 8
"""
)

KILLED = (
    JOBS
    + """
def files():
    return sum(len(names) for _, _, names in os.walk(path))

jobs, draw, interrupted = [Baseline(seed=number) for number in range(24)], random.Random(1), 0
Store(path)
for attempt in range(10):
    enough = files() + draw.randint(1, 20)  # of 8 per run
    pid = child(lambda: [compute(Store(path), job) for job in jobs])
    while files() < enough and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet waited for
    store = Store(path)
    for run in store.runs():
        assert run.state in ("done", "interrupted")
        interrupted += run.state == "interrupted"
        if run.state == "done":
            check_complete(store.directory(run.id))
assert interrupted >= 3, interrupted
assert os.waitpid(child(lambda: [compute(Store(path), job) for job in jobs]), 0)[1] == 0
for run in Store(path).runs():
    check_complete(Store(path).directory(run.id))
"""
)

BETWEEN_WRITES = (
    JOBS
    + """
def killed_at(number):
    '''Compute the job in a process that kills itself at its change of that number of the file system.'''
    count = 0
    def counted(function):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **keywords)
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return call
    def work():
        for owner, name in ((os, "fsync"), (os, "truncate"), (Path, "replace"), (Path, "mkdir"), (Path, "unlink")):
            setattr(owner, name, counted(getattr(owner, name)))
        compute(Store(folder), Baseline())
    return child(work)

started = 0
for number in range(1, 1000):
    folder = f"{path}/{number}"
    status = os.waitpid(killed_at(number), 0)[1]
    assert status in (0, signal.SIGKILL), status
    if status == 0:
        break
    Path(folder).mkdir(exist_ok=True)
    states = [run.state for run in Store(folder).runs()]
    assert states in ([], ["interrupted"], ["done"]), states
    started += states == ["interrupted"]
    compute(Store(folder), Baseline())
    (run,) = Store(folder).runs()
    assert (run.state, run.attempts) == ("done", 1 if states != ["interrupted"] else 2), (number, states, run)
    check_complete(Store(folder).directory(run.id))
assert 60 < number < 1000 and started > 40, (number, started)
"""
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def script(text, *arguments):
    command = [sys.executable, "-c", text, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# Processes


def test_many_processes_do_every_run_exactly_once(tmp_path):
    script(SWARM, tmp_path)
    runs = Store(tmp_path).runs()
    assert len(runs) == 30
    for run in runs:
        assert (run.state, run.attempts, run.summary["from"]) == ("done", 1, 0)
        assert {level["pid"] for level in Store(tmp_path).directory(run.id).rows()} == {run.summary["by"]}
    assert len({run.summary["by"] for run in runs}) > 1


def test_a_run_killed_at_any_moment_is_resumed_with_its_files(tmp_path):
    script(KILLED, tmp_path)
    runs = Store(tmp_path).runs()
    assert [run.state for run in runs] == ["done"] * 24
    assert any(run.attempts > 1 and run.summary["from"] > 0 for run in runs), "no work was kept"


def test_a_run_killed_between_any_two_writes_is_resumed_and_done_once(tmp_path):
    script(BETWEEN_WRITES, tmp_path)


HOLD = (
    JOBS
    + """
directory = Store(path).open(Baseline(), "test")
directory.append_row({"level": 0})
directory.save_tensors("weights", {"w": torch.ones(3)})
print("held", flush=True)
time.sleep(60)
"""
)


def test_the_run_of_a_killed_process_is_free_at_once(store):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    try:
        assert store.open(Baseline(), "test") is None
        assert store.runs()[0].state == "running"
        with pytest.raises(StoreError, match="is running"):
            store.remove(run_id(Baseline()))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        (run,) = store.runs()
        assert (run.state, run.attempts, run.last_row) == ("interrupted", 1, {"level": 0})
        directory = store.open(Baseline(), "test")
    finally:
        holder.kill()
        holder.communicate()
    assert directory.rows() == [{"level": 0}]
    assert directory.load_tensors("weights")["w"].tolist() == [1.0] * 3
    store.finish(directory, {})
    assert store.runs()[0].attempts == 2


def test_a_process_that_lost_its_run_writes_nothing(store):
    """As on a network file system whose server has given the lock of a silent machine to another one."""
    late = store.open(Baseline(), "test")
    late.append_row({"level": 0, "by": "late"})
    (store.locks_path / f"{late.id}.lock").unlink()
    now = store.open(Baseline(), "test")
    before = {path.name: path.read_bytes() for path in now.path.iterdir()}
    for attempt in (
        lambda: late.append_row({"level": 0, "by": "late again"}),
        lambda: late.append_curve([{"level": 0, "step": 0}]),
        lambda: late.save_tensors("w", {"w": torch.ones(1)}),
        lambda: late.save_masks("m", {"w": torch.ones(1)}),
        lambda: late.remove("w"),
        lambda: store.finish(late, {"by": "late"}),
    ):
        with pytest.raises(StoreError, match="was taken over by another process"):
            attempt()
    store.fail(late, "late")
    assert {path.name: path.read_bytes() for path in now.path.iterdir()} == before
    now.append_row({"level": 1, "by": "now"})
    store.finish(now, {"by": "now"})
    assert [level["by"] for level in store.directory(now.id).rows()] == ["late", "now"]
    assert store.runs()[0].summary == {"by": "now"}


def test_a_run_finished_between_the_look_and_the_lock_is_not_done_again(tmp_path):
    class Overtaken(Store):
        def is_done(self, id):
            done = super().is_done(id)
            if not done:  # now the other process finishes
                Store(tmp_path).finish(other, {})
            return done

    other = Store(tmp_path).open(Baseline(), "test")
    assert Overtaken(tmp_path).open(Baseline(), "test") is None
    assert Store(tmp_path).run(other.id).attempts == 1


def test_the_seconds_of_attempts_add_up(store):
    directory = store.open(Baseline(), "test")
    directory.begun -= 100
    store.fail(directory, "stop")
    assert 100 <= store.runs()[0].seconds < 110
    directory = store.open(Baseline(), "test")
    record = directory.record()
    write_record(directory.path, replace(record, started=record.started - 50))
    directory.release()  # as if it were killed
    assert 150 <= store.runs()[0].seconds < 160
    directory = store.open(Baseline(), "test")
    store.finish(directory, {})
    assert 150 <= store.runs()[0].seconds < 160


def test_a_run_removed_by_hand_can_be_done_again(store):
    id = finish(store, Baseline())
    for path in store.directory(id).path.iterdir():
        path.unlink()
    (store.runs_path / id).rmdir()
    assert not store.is_done(id)
    assert finish(store, Baseline()) == id


# Places and files


def test_a_store_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match=r"cannot be written: .*; free space there, make it writable"):
            Store(path)
        with pytest.raises(StoreError, match="no store of runs"):
            Store(path, create=False)


def contents(path):
    return {str(file.relative_to(path)): file.stat().st_mtime_ns for file in path.rglob("*")}


def test_reading_a_store_writes_nothing(store, monkeypatch):
    id = finish(store, Baseline(), [{"level": 0}])
    open_run = store.open(Baseline(seed=1), "test")
    store.request("e", "smoke", [({}, Baseline())], {})
    before = contents(store.path)

    def refuse(*arguments, **keywords):
        raise OSError(30, "Read-only file system")

    for owner, name in (
        (Path, "mkdir"),
        (Path, "replace"),
        (Path, "unlink"),
        (os, "fsync"),
        (os, "truncate"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    opened, real_open = Store(store.path, create=False), Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *more, **keywords: refuse() if set(mode) & set("wax+")
        else real_open(self, mode, *more, **keywords),
    )  # fmt: skip
    assert {run.id: run.state for run in opened.runs()} == {id: "done", open_run.id: "running"}
    assert opened.run(id).experiments == ("e.smoke",)
    assert opened.directory(id).rows() == [{"level": 0}]
    assert opened.find(id[:10]) == id
    open_run.release()
    assert {run.state for run in opened.runs()} == {"done", "interrupted"}
    assert contents(store.path) == before


FULL = (
    JOBS
    + """
import resource
from prunus.errors import StoreError
store = Store(path)
directory = store.open(Baseline(), "test")
directory.append_row({"level": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
for attempt in (
    lambda: directory.save_tensors("w", {"w": torch.ones(9999)}),
    lambda: directory.append_row({"level": 1, "text": "x" * 8000}),
    lambda: directory.append_row({"level": 0, "text": "x" * 8000}),
    lambda: store.finish(directory, {"text": "x" * 8000}),
):
    try:
        attempt()
    except StoreError as error:
        print(error)
    else:
        print("no error")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert directory.rows() == [{"level": 0}]
names = {file.name for file in directory.path.iterdir()}
assert names == {"run.json", "rows.jsonl"}, names
directory.append_row({"level": 1})
store.finish(directory, {})
assert [row["level"] for row in store.directory(directory.id).rows()] == [0, 1]
"""
)


def test_a_full_disk_is_an_error_and_nothing_is_lost(tmp_path):
    lines = script(FULL, tmp_path).splitlines()
    assert len(lines) == 4
    assert ["cannot be written" in line for line in lines] == [True] * 4


def test_damaged_tensors_are_named(store):
    directory = store.open(Baseline(), "test")
    directory.save_tensors("w", {"w": torch.ones(99)})
    path = directory.path / "w.safetensors"
    content = path.read_bytes()
    for damaged in (b"", content[:7], content[:50], content[:-1], b"\xff" * 400):
        path.write_bytes(damaged)
        for read in (directory.load_tensors, directory.load_metadata, directory.load_masks):
            with pytest.raises(StoreError, match=r"w\.safetensors"):
                read("w")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"digest": "0123"}'])
def test_a_damaged_record_or_request_is_named(store, content):
    directory = store.open(Baseline(), "test")
    request = store.request("e", "smoke", [], {})
    store.fail(directory, "stop")
    (directory.path / "run.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        store.open(Baseline(), "test")
    with pytest.warns(UserWarning, match=rf"{directory.id} is left out: .*run\.json is damaged"):
        assert store.runs() == []
    (file,) = store.requests_path.glob(f"{request.name}.*")
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"e\.smoke\..*json is damaged"):
        store.requests()


@pytest.mark.parametrize("content", ["{", "{}", "[]", None])
@pytest.mark.parametrize("state", ["done", "failed"])
def test_nothing_is_removed_where_a_record_cannot_be_read(store, state, content):
    read = finish(store, Baseline(), [{"level": 0}])
    damaged = store.open(Ticket(), "test")
    damaged.append_row({"level": 1})
    store.finish(damaged, {}) if state == "done" else store.fail(damaged, "stop")
    record = damaged.path / "run.json"
    record.unlink() if content is None else record.write_text(content)
    with pytest.raises(StoreError, match=rf"Whether the run {damaged.id} was made from {read} .*run\.json"):
        store.remove(read)
    with pytest.raises(StoreError, match=r"run\.json"):
        store.run(damaged.id)
    with pytest.raises(StoreError, match=r"run\.json"):
        store.open(Ticket(), "test")
    assert store.run(read).state == "done"
    store.remove(damaged.id)
    store.remove(read)


@pytest.mark.slow
def test_ten_thousand_runs_are_listed_in_two_seconds(store):
    """By the command, its start included; in CPU seconds, because other processes share the machine."""
    id = finish(store, Ticket(), [{"level": 0, "density": 1.0}])
    record = store.directory(id).record()
    from prunus.runs.spec import make_id

    for number in range(10_000):
        settings = {"rounds": number + 10}
        other = replace(record, id=make_id("ticket", settings, {}), settings=settings)
        (store.runs_path / other.id).mkdir()
        write_record(store.runs_path / other.id, other)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "prunus", "runs", "list", "--json", "--store", str(store.path)]
    listed = json.loads(subprocess.check_output(command))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"10,001 runs listed in {seconds:.2f} CPU seconds")
    assert len(listed) == 10_001
    assert seconds < 2  # 1.1 when written, on a busy machine
