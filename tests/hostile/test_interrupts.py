"""Signals: one sentence, the documented exit code, no process left, no half-written file, the same bits on resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from prunus.cli.interrupts import Interrupted, interruptible
from prunus.runs.store import Store

HELPERS = Path(__file__).parents[1] / "helpers"
TIMES = ("seconds", "attempts", "attempt", "started", "environments", "digest", "kept", "stalled")
"""What differs between a run that was interrupted and one that was not."""
CODES = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143}
SETTINGS = {
    "model": "tiny_networks:mlp",
    "data": "digits",
    "examples": "85",
    "epochs": "60",
    "batch_size": "25",
    "eval_every": "3",
    "rounds": "4",
}


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`prunus` in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "prunus", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path]), "OMP_NUM_THREADS": "1"},
        preexec_fn=restore_signals,
    )


def restore_signals() -> None:
    """What a shell starts in the background ignores SIGINT, and what nohup starts SIGHUP, and they hand that down."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start_run(folder: Path, executor: str) -> "subprocess.Popen[str]":
    """A ticket experiment of seven runs."""
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    arguments = (
        "run",
        "zhou2019.zeros",
        "--smoke",
        f"--executor={executor}",
        "--workers=2",
        "--replicates=1",
    )
    return start(folder, *arguments, *settings, "--store=store", "--out=out")


def wait_for_work(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not any(folder.glob("store/runs/*/run.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def members(group: int) -> dict[int, str]:
    """The living processes of a group, with their command lines."""
    results = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group, *_ = (path / "stat").read_text().rpartition(")")[2].split()
            if int(its_group) == group and state not in "ZX":
                results[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return results


def workers(group: int) -> list[int]:
    return [pid for pid, command in members(group).items() if "--multiprocessing-fork" in command]


def check_none_left(group: int, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while left := members(group):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def check_sentence(error: str) -> str:
    """The last line, which alone tells of the end."""
    *before, last = error.splitlines()
    assert last.startswith("error: ")
    assert not [line for line in before if "error" in line.lower() or line.startswith(("Traceback", " "))]
    return last


def contents(folder: Path) -> dict[str, object]:
    """All that the finished runs hold, but times, attempts and the machine."""
    results: dict[str, object] = {}
    for path in sorted(folder.glob("store/runs/*/*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            # The random state of torch has bytes between its fields that are never set.
            tensors = {key: tensor for key, tensor in load_file(path).items() if key != "random"}
            results[name] = {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}
        elif path.suffix == ".jsonl" or path.name == "run.json":
            rows = (
                [json.loads(line) for line in path.read_text().splitlines()]
                if path.suffix == ".jsonl"
                else []
            )
            results[name] = _timeless(rows or json.loads(path.read_text()))
    return results


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


@pytest.mark.skipif(os.name != "posix", reason="process groups")
@pytest.mark.parametrize(
    ("number", "to_group"),
    [
        (signal.SIGINT, True),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_in_one_sentence_while_its_workers_start(number, to_group, tmp_path):
    process = start_run(tmp_path, "processes")
    while not workers(process.pid):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number) if to_group else process.send_signal(number)
    _, error = process.communicate(timeout=60)
    check_none_left(process.pid)
    assert process.returncode == CODES[number]
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert check_sentence(error).startswith(
        f"error: {word}; the finished runs are in store: repeat the same command"
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a run leaves that nobody interrupts."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start_run(folder, "inline")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return contents(folder)


@pytest.mark.slow
@pytest.mark.parametrize("to_group", [True, False], ids=["group", "parent"])
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_an_interrupted_run_resumes_to_the_same_bits(executor, number, to_group, uninterrupted, tmp_path):
    process = start_run(tmp_path, executor)
    wait_for_work(tmp_path)
    time.sleep(0.3)
    os.killpg(process.pid, number) if to_group else process.send_signal(number)
    _, error = process.communicate(timeout=60)
    check_none_left(process.pid)
    assert process.returncode == CODES[number], error
    check_sentence(error)
    assert {run.state for run in Store(tmp_path / "store").runs()} <= {"done", "interrupted"}
    process = start_run(tmp_path, executor)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert contents(tmp_path) == uninterrupted
    assert all(run.state == "done" for run in Store(tmp_path / "store").runs())
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_killed_worker_is_replaced(number, uninterrupted, tmp_path):
    process = start_run(tmp_path, "processes")
    wait_for_work(tmp_path)
    os.kill(workers(process.pid)[0], number)
    _, error = process.communicate(timeout=300)
    check_none_left(process.pid)
    assert process.returncode == 0, error
    assert f"a worker was killed by signal {number.value}" in error
    assert "; another one takes its place\n" in error
    assert contents(tmp_path) == uninterrupted
    assert sum(run.attempts - 1 for run in Store(tmp_path / "store").runs()) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("when", ["starting", "working"])
def test_no_worker_outlives_a_killed_parent(when, tmp_path):
    process = start_run(tmp_path, "processes")
    if when == "working":
        wait_for_work(tmp_path)
    while not workers(process.pid):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    check_none_left(process.pid, seconds=20.0)  # one that still imports torch ends when it has


@pytest.mark.slow
def test_a_second_interrupt_ends_the_run_at_once(tmp_path):
    process = start_run(tmp_path, "processes")
    wait_for_work(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    check_none_left(process.pid)
    assert process.returncode == 130
    assert check_sentence(error).startswith("error: interrupted")


# In this process


NETS = """
import os, signal
from torch import nn
from prunus import load_data

class Flat(nn.Flatten):
    def forward(self, x):
        if number := int(os.environ.get("SIGNAL", 0)):
            signal.raise_signal(number)
        return super().forward(x)

def net():
    return nn.Sequential(Flat(), nn.Linear(64, 10))

def few():
    return load_data("digits").take(120, 40)
"""
EPOCHS = [f"--epochs={stage}=1" for stage in ("dense", "retrain", "final_retrain", "finetune")]
NAMES = ("--data=signal_nets:few",)
COMPRESS = ("compress", "--model=signal_nets:net", *NAMES, "--rounds=1", *EPOCHS, "--out=out.prunus")


@pytest.fixture
def run(run_cli, monkeypatch, tmp_path):
    """`prunus` in this process, which Ctrl-C interrupts whatever shell has started the tests."""
    (tmp_path / "signal_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield run_cli
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


COMMANDS = {
    "compress": COMPRESS,
    "prune": ("prune", "signal_nets:net", *NAMES, "--weights=w.pt", "--density=0.5", "--out=out.safetensors"),
    "evaluate": ("evaluate", "whole.prunus", "--model=signal_nets:net", *NAMES),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_interrupted_leaves_nothing_half_written(
    command, number, run, monkeypatch, tmp_path
):
    if command == "prune":
        import torch
        from signal_nets import net

        torch.save(net().state_dict(), "w.pt")
    elif command == "evaluate":
        run(*COMPRESS[:-1], "--out=whole.prunus")
    before = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    monkeypatch.setenv("SIGNAL", str(int(number)))
    error = run(*COMMANDS[command], code=CODES[number]).err
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert check_sentence(error) == f"error: {word}."
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == before


def test_an_interrupt_while_a_file_is_written_leaves_the_old_file_whole(run, monkeypatch, tmp_path):
    run(*COMPRESS)
    (tmp_path / "out.html").unlink()
    before = (tmp_path / "out.prunus").read_bytes()
    sync = os.fsync

    def interrupted_sync(handle: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        sync(handle)

    monkeypatch.setattr(os, "fsync", interrupted_sync)
    run("decompress", "out.prunus", code=143)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "out.prunus",
        "signal_nets.py",
    ]
    assert (tmp_path / "out.prunus").read_bytes() == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted), interruptible():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


# Without a main guard


SCRIPT = """
from plan import DENSE
from prunus.runs.executors import run_plan
from prunus.runs.store import Store

{before}
run_plan([DENSE], Store("store"), executor="processes", workers=2, log=print)
"""


@pytest.mark.parametrize(
    "before", ["", pytest.param("__import__('os').mkdir('new')", marks=pytest.mark.slow)]
)
def test_a_script_without_a_main_guard_is_told_about_the_guard(before, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(before=before))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path])},
    )
    assert done.returncode == 1
    assert 'under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("prunus.errors.WorkerError: ")
    if not before:  # else the workers fail before they reach prunus, and show how
        assert done.stderr.count("Traceback") == 1
    assert "bootstrapping phase" not in done.stderr
