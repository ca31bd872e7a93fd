"""What each executor adds to a run: runs that wait for half a second, on two workers.

A run writes one row and its record, as every run does. Workers start once per command; the time until the first
run begins is given apart from the rest. Waiting instead of computing leaves the processors to the executor. The
CPU time is that of a worker from one of its runs to the next.
"""

import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from benchmarks.timing import spread, table
from prunus.runs.executors import run_plan
from prunus.runs.executors.slurm import on_slurm
from prunus.runs.executors.worker import Executor
from prunus.runs.store import Store

RUNS, SECONDS, WORKERS = 24, 0.5, 2
EXECUTORS: dict[str, str | Executor] = {
    "inline": "inline",
    "processes": "processes",
    "ray": "ray",
    "submitit, local": partial(on_slurm, cluster="local"),
}


@dataclass(frozen=True)
class Waiting:
    kind: ClassVar[str] = "waiting"
    procedure: ClassVar[str] = "benchmarks.launchers:wait"
    number: int = 0

    def dependencies(self) -> dict[str, Any]:
        return {}

    def code_references(self) -> tuple[str, ...]:
        return ()

    def cost(self) -> tuple[str, float]:
        return "waiting", 1.0


def wait(spec: Waiting, directory: Any, needed: Any, report_steps: Callable[[int], None]) -> dict[str, Any]:
    time.sleep(SECONDS)
    directory.append_row({"level": 0, "pid": os.getpid(), "cpu": time.process_time()})
    return {}


def measure(executor: str | Executor) -> tuple[float, float, float]:
    """The seconds until the first run begins, from then until the last one is done, and the CPU seconds of a run."""
    with tempfile.TemporaryDirectory() as folder:
        store, begun = Store(folder), time.time()
        run_plan([Waiting(number) for number in range(RUNS)], store, executor=executor, workers=WORKERS)
        first = min(run.started for run in store.runs())
        records = [store.directory(id).path / "run.json" for id in store.ids()]
        last = max(path.stat().st_mtime for path in records)
        return first - begun, last - first, _cpu_seconds(store)


def _cpu_seconds(store: Store) -> float:
    """The CPU seconds of a worker between two of its runs."""
    times: dict[int, list[float]] = defaultdict(list)
    for id in store.ids():
        (row,) = store.directory(id).rows()
        times[row["pid"]].append(row["cpu"])
    return median((max(each) - min(each)) / (len(each) - 1) for each in times.values() if len(each) > 1)


def run(rounds: int = 3) -> str:
    os.environ["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in EXECUTORS}
    loads = []
    for _ in range(rounds):
        loads.append(os.getloadavg()[0])
        for name, executor in EXECUTORS.items():
            measured[name].append(measure(executor))
    rows: list[list[object]] = []
    for name, times in measured.items():
        workers = 1 if name == "inline" else WORKERS
        added = [seconds * workers / RUNS - SECONDS for _, seconds, _ in times]
        throughput = [b / a for (_, a, _), (_, b, _) in zip(times, measured["processes"], strict=True)]
        start, cpu = f"{median(first for first, *_ in times):.1f}", spread([1000 * cpu for *_, cpu in times])
        rows.append(
            [name, workers, start, spread(added), cpu, "" if name == "inline" else spread(throughput)]
        )
    header = [
        *("executor", "workers", "s until the first run", "s added per run and worker"),
        "CPU ms per run",
        "throughput, times that of processes",
    ]
    note = (
        f"{RUNS} runs, n = {rounds} in turn; median with quartiles; the machine's load before each round: "
        f"{', '.join(f'{load:.1f}' for load in loads)}."
    )
    return f"{table(header, rows)}\n\n{note}"
