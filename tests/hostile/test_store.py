"""A store under attack: many processes, killed ones, late ones, full disks, damaged files."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from prunus.errors import LeaseLostError, StoreError
from prunus.runs.leases import SILENT_SECONDS, LeaseTable
from prunus.runs.process_identity import is_alive, this_process
from prunus.runs.spec import run_id
from prunus.runs.store import Store

JOBS = '''
import os, random, signal, sys, time, warnings
from dataclasses import dataclass
from typing import ClassVar
import torch
from prunus.runs.environment import environment
from prunus.runs.spec import run_id
from prunus.runs.store import Store

@dataclass(frozen=True)
class Job:
    kind: ClassVar[str] = "job"
    number: int
    def needs(self):
        return ()
    def cost(self):
        return "unit", 1.0

LEVELS = 4

def carry_out(store, job):
    """One job from where it is; None where it is not ours."""
    folder = store.begin(job, "test")
    if folder is None:
        return
    start = len(folder.rows())
    for level in range(start, LEVELS):
        folder.put(f"level-{level}", {"w": torch.full((50,), float(level))})
        folder.append_curve({"level": level, "step": step} for step in range(20))
        folder.append({"level": level, "pid": os.getpid()})
    store.finish(folder, {"by": os.getpid(), "from": start})

def whole(folder):
    """Everything that a finished run must have."""
    assert folder.spec()["id"] == folder.id and folder.environment()["engine"] == "test"
    assert folder.result()["cost"] == {"unit": "unit", "number": 1.0}
    assert [row["level"] for row in folder.rows()] == list(range(LEVELS))
    assert len(folder.curve()) == 20 * LEVELS
    for level in range(LEVELS):
        assert folder.get(f"level-{level}")["w"].tolist() == [float(level)] * 50
    left = {path.name.partition("-")[0] for path in folder.path.iterdir()}
    assert left == {"spec.json", "environment.json", "metrics.jsonl", "curves.jsonl", "result.json", "level"}

def child(work):
    """`work` in a process of its own: its id."""
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
environment("test", "cpu")  # git is asked once
path = sys.argv[1]
'''

SWARM = (
    JOBS
    + """
def work(seed):
    jobs = [Job(number) for number in range(30)]
    random.Random(seed).shuffle(jobs)
    store = Store(path)
    while not all(store.done(run_id(job)) for job in jobs):
        for job in jobs:
            carry_out(store, job)

pids = [child(lambda: work(seed)) for seed in range(8)]
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 8
"""
)

KILLED = (
    JOBS
    + """
def files():
    return sum(len(names) for _, _, names in os.walk(path))

jobs, draw, cut_short = [Job(number) for number in range(24)], random.Random(1), 0
seen = set()
Store(path)  # its folders are there before anybody looks
for attempt in range(10):
    enough = files() + draw.randint(1, 20)  # of 9 a run
    pid = child(lambda: [carry_out(Store(path), job) for job in jobs])
    while files() < enough and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        for name in set(os.listdir(f"{path}/runs")) - seen:
            assert len(os.listdir(f"{path}/runs/{name}")) == LEVELS + 5, "seen before it was whole"
            seen.add(name)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet buried
    store = Store(path)
    for folder in store.folders():
        whole(folder)
    cut_short += any(run.status == "stale" for run in store.runs())
assert cut_short >= 3, cut_short
assert os.waitpid(child(lambda: [carry_out(Store(path), job) for job in jobs]), 0)[1] == 0
for folder in Store(path).folders():
    whole(folder)
"""
)


@dataclass(frozen=True)
class Job:
    kind: ClassVar[str] = "job"
    number: int = 0

    def needs(self):
        return ()

    def cost(self):
        return "unit", 1.0


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def script(text, *arguments):
    command = [sys.executable, "-c", text, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def row(store, **values):
    """Change the one row of a ledger by hand."""
    with sqlite3.connect(store.ledger.path) as connection:
        for name, value in values.items():
            connection.execute(f"UPDATE runs SET {name} = ?", (value,))
    connection.close()


def silent(store):
    """The claim as of a process in another container, that gave no sign of life for too long."""
    row(store, host="elsewhere", heartbeat=time.time() - SILENT_SECONDS - 1)


# Processes


def test_many_processes_do_every_run_exactly_once(tmp_path):
    script(SWARM, tmp_path)
    runs = Store(tmp_path).runs()
    assert len(runs) == 30
    for run in runs:
        assert (run.status, run.attempts, run.summary["from"]) == ("done", 1, 0)
        assert {level["pid"] for level in Store(tmp_path).folder(run.id).rows()} == {run.summary["by"]}
    assert len({run.summary["by"] for run in runs}) > 1
    assert not any((tmp_path / "work").iterdir())


def test_killed_at_any_moment_a_finished_run_is_whole_and_the_others_go_on(tmp_path):
    script(KILLED, tmp_path)
    runs = Store(tmp_path).runs()
    assert [run.status for run in runs] == ["done"] * 24
    assert any(run.attempts > 1 and run.summary["from"] > 0 for run in runs), "no work was kept"


HOLD = """
import sys, time, torch
sys.path.insert(0, {folder!r})
from jobs import Job
from prunus.runs.store import Store
folder = Store({store!r}).begin(Job(), "test")
folder.append({{"level": 0}})
folder.put("weights", {{"w": torch.ones(3)}})
print("held", flush=True)
time.sleep(60)
"""


def test_the_run_of_a_killed_process_is_taken_over_at_once_with_its_work(store, tmp_path):
    job = "from dataclasses import dataclass\nfrom typing import ClassVar\n@dataclass(frozen=True)\nclass Job:\n"
    (tmp_path / "jobs.py").write_text(
        job + "    kind: ClassVar[str] = 'job'\n    number: int = 0\n"
        "    def needs(self): return ()\n    def cost(self): return 'unit', 1.0\n"
    )
    code = HOLD.format(folder=str(tmp_path), store=str(store.path))
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    try:
        assert store.begin(Job(), "test") is None
        assert store.runs()[0].status == "running"
        with pytest.raises(StoreError, match="under way"):
            store.remove(run_id(Job()))
        holder.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 5
        while (folder := store.begin(Job(), "test")) is None and time.monotonic() < deadline:
            time.sleep(
                0.01
            )  # the signal takes a moment; the process is dead, though nobody has waited for it
    finally:
        holder.kill()
        holder.communicate()
    assert folder.rows() == [{"level": 0}]
    assert folder.get("weights")["w"].tolist() == [1.0] * 3
    store.finish(folder, {})
    assert store.runs()[0].attempts == 2


def test_a_late_writer_loses_its_run(store):
    late = store.begin(Job(), "test")
    late.append({"level": 0, "by": "late"})
    silent(store)
    now = store.begin(Job(), "test")
    late._beaten = 0.0  # its last sign of life is more than two seconds ago
    for attempt in (
        late.beat,
        lambda: late.append({"level": 0, "by": "late again"}),
        lambda: late.append_curve([{"level": 0, "step": 0}]),
        lambda: late.put("w", {"w": torch.ones(1)}),
        lambda: late.put_masks("m", {"w": torch.ones(1)}),
        lambda: late.drop("w"),
        lambda: store.finish(late, {"by": "late"}),
        lambda: store.fail(late, "late"),
    ):
        with pytest.raises(LeaseLostError, match="no longer this process's"):
            attempt()
    now.append({"level": 1, "by": "now"})
    store.finish(now, {"by": "now"})
    with pytest.raises(LeaseLostError):
        store.finish(late, {"by": "late"})
    assert [level["by"] for level in store.folder(now.id).rows()] == ["late", "now"]
    assert store.runs()[0].summary == {"by": "now"}


def test_who_is_dead(store):
    me = this_process()
    assert is_alive(me) is True
    store.begin(Job(), "test")
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    for values, free in (
        ({"heartbeat": 0.0}, False),  # silent, but seen to live
        ({"host": "elsewhere", "heartbeat": time.time() - SILENT_SECONDS / 2}, False),
        ({"host": "elsewhere", "heartbeat": time.time() - SILENT_SECONDS - 1}, True),
        ({"pid": int(dead.stdout)}, True),
        ({"pid_started": "another boot, or another time"}, True),
        ({"pid_started": "", "heartbeat": time.time() - 1}, False),  # a system that does not say
        ({"pid_started": "", "heartbeat": time.time() - SILENT_SECONDS - 1}, True),
    ):
        row(store, host=me.host, pid=me.pid, pid_started=me.started, heartbeat=time.time(), state="running")
        row(store, **values)
        assert (store.ledger.claim(run_id(Job()), "job") is not None) == free, values


def test_a_sign_of_life_is_given_at_most_every_two_seconds(store):
    folder = store.begin(Job(), "test")
    beats = lambda: store.ledger.entries()[folder.id].heartbeat  # noqa: E731
    folder.beat()
    first = beats()
    started = time.monotonic()
    for _ in range(10_000):
        folder.beat()
    assert time.monotonic() - started < 1.0
    assert beats() == first
    folder._beaten -= 2.0
    folder.beat()
    assert beats() > first


# The ledger


def damage_deleted(path):
    path.unlink()


def damage_emptied(path):
    path.write_bytes(b"")


def damage_overwritten(path):
    path.write_bytes(b"\x00\xff nonsense " * 1000)


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def damage_inside(path):
    data = bytearray(path.read_bytes())
    data[4096 : 4096 + 200] = os.urandom(200)
    path.write_bytes(data)


def damage_another_table(path):
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE runs (id, other)")
    connection.close()


DAMAGES = [
    damage_deleted,
    damage_emptied,
    damage_overwritten,
    damage_cut,
    damage_inside,
    damage_another_table,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_made_anew_from_the_folders(store, damage):
    done = store.begin(Job(1), "test")
    store.finish(done, {"a": 1})
    failed = store.begin(Job(2), "test")
    failed.append({"level": 0})
    store.fail(failed, "stop")
    held = store.begin(Job(3), "test")
    damage(store.ledger.path)
    with pytest.warns(UserWarning, match="made anew"):
        runs = {run.id: run for run in store.runs()}
    assert (runs[done.id].status, runs[done.id].summary) == ("done", {"a": 1})
    assert runs[held.id].status == "running"
    assert store.begin(Job(1), "test") is None
    assert store.begin(Job(3), "test") is None
    again = store.begin(Job(2), "test")
    assert again.rows() == [{"level": 0}]
    held._beaten = 0.0
    held.append({"level": 0})
    store.finish(held, {})
    store.finish(again, {})
    assert {run.status for run in store.runs()} == {"done"}


def test_an_old_log_is_not_played_into_a_new_ledger(store):
    """SQLite's log stays when its file is deleted while a connection is open."""
    folder = store.begin(Job(), "test")
    connection = sqlite3.connect(store.ledger.path)
    connection.execute("UPDATE runs SET state = 'done'")
    connection.commit()
    assert store.ledger.path.with_name("ledger.sqlite-wal").stat().st_size
    store.ledger.path.unlink()
    with pytest.warns(UserWarning, match="missing"):
        assert store.ledger.entries()[folder.id].state == "running"
    connection.close()


def test_a_run_removed_by_hand_can_be_done_again(store):
    folder = store.begin(Job(), "test")
    store.finish(folder, {})
    for path in folder.path.iterdir():
        path.unlink()
    folder.path.rmdir()
    assert store.ledger.entries()[folder.id].state == "done"
    assert store.begin(Job(), "test") is not None


def test_a_rename_whose_ledger_never_heard_of_it_counts(store):
    """Killed between the last rename and the end of the transaction."""
    folder = store.begin(Job(), "test")
    folder.write_result({"summary": {}, "invariants": None, "seconds": 1.0, "attempts": 1})
    folder.path.rename(store.path / "runs" / folder.id)
    assert store.begin(Job(), "test") is None
    assert store.runs()[0].status == "done"


def test_a_run_finished_between_the_look_and_the_claim_is_not_done_again(tmp_path):
    class Overtaken(Store):
        def done(self, id):
            answer = super().done(id)
            if not answer:  # right now the other process renames its folder, and is killed
                other.path.rename(self.path / "runs" / other.id)
            return answer

    store = Overtaken(tmp_path)
    other = Store(tmp_path).begin(Job(), "test")
    row(store, pid_started="another")
    assert store.begin(Job(), "test") is None
    assert store.ledger.entries()[other.id].state == "done"
    assert not any(store.work.iterdir())


# Places and files


def test_a_store_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match=r"cannot be written: .*; make room there, make it writable"):
            Store(path)
        with pytest.raises(StoreError, match="no store of runs"):
            Store(path, create=False)


FULL = (
    JOBS
    + """
import resource
from prunus.errors import StoreError
store = Store(path)
folder = store.begin(Job(0), "test")
folder.append({"level": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
for attempt in (
    lambda: folder.put("w", {"w": torch.ones(9999)}),
    lambda: folder.append({"level": 1, "text": "x" * 4000}),
    lambda: folder.append({"level": 0, "text": "x" * 4000}),
    lambda: store.finish(folder, {"text": "x" * 4000}),
    lambda: store.begin(Job(1), "test"),
):
    try:
        attempt()
    except StoreError as error:
        print(error)
    else:
        print("nothing was said")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert folder.rows() == [{"level": 0}]
left = {file.name for file in folder.path.iterdir()}
assert left == {"spec.json", "environment.json", "claim.json", "metrics.jsonl"}, left
folder.append({"level": 1})
store.finish(folder, {})
assert [row["level"] for row in store.folder(folder.id).rows()] == [0, 1]
"""
)


def test_a_full_disk_is_a_sentence_and_nothing_is_lost(tmp_path):
    said = script(FULL, tmp_path).splitlines()
    assert len(said) == 5
    assert [("cannot be written" in line or "cannot be used" in line) for line in said] == [True] * 5


def test_damaged_tensors_are_named(store):
    folder = store.begin(Job(), "test")
    folder.put("w", {"w": torch.ones(99)})
    path = folder.path / "w.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:7], whole[:50], whole[:-1], b"\xff" * 400):
        path.write_bytes(content)
        for read in (folder.get, folder.note, folder.get_masks):
            with pytest.raises(StoreError, match=r"w\.safetensors"):
                read("w")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_damaged_json_is_named(store, content):
    folder = store.begin(Job(), "test")
    store.request("e", "smoke", [], {})
    store.fail(folder, "stop")
    (folder.path / "spec.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"spec\.json is damaged"):
        store.begin(Job(), "test")
    (store.experiments / "e.smoke.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"e\.smoke\.json is damaged"):
        store.requests()


@pytest.mark.parametrize("content", ["{", "{}", "[]", None])
@pytest.mark.parametrize("place", ["runs", "work"])
def test_where_it_cannot_be_read_what_a_run_was_made_from_nothing_is_removed(store, place, content):
    read, damaged = (store.begin(Job(number), "test") for number in range(2))
    store.finish(read, {})
    store.finish(damaged, {}) if place == "runs" else store.fail(damaged, "stop")
    spec = store.path / place / damaged.id / "spec.json"
    spec.unlink() if content is None else spec.write_text(content)
    if (place, content) != ("work", None):  # that one was killed before it wrote what it is
        with pytest.raises(
            StoreError, match=rf"Whether the run {damaged.id} was made from {read.id} .*spec\.json"
        ):
            store.remove(read.id)
        with pytest.raises(StoreError, match=r"spec\.json"):
            store.run(damaged.id)
    assert store.run(read.id).status == "done"
    store.remove(damaged.id)
    store.remove(read.id)


def test_two_ledgers_are_made_at_once_as_one(tmp_path):
    code = (
        "import sys; from pathlib import Path; from prunus.runs.leases import LeaseTable\n"
        "import os, time\n"
        "pids = []\n"
        "for place in range(8):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        ledger = LeaseTable(Path(sys.argv[1]) / 'ledger.sqlite')\n"
        "        got = ledger.claim('job-1', 'job') is not None\n"
        "        time.sleep(0.5)\n"
        "        os._exit(got)\n"
        "    pids.append(pid)\n"
        "print(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))\n"
    )
    assert script(code, tmp_path) == "1\n"
    assert len(LeaseTable(tmp_path / "ledger.sqlite").entries()) == 1
