"""What each executor adds to a run, wall-clock: runs that wait for half a second, on two workers.

A run writes one row and its record, as every run does. Workers start once per command; the time until the first
run begins is given apart from the rest. Waiting instead of computing leaves the processors to the executor.
"""

import os
import sys
import tempfile
import time
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
    directory.append_row({"level": 0, "number": spec.number})
    return {}


def measure(executor: str | Executor) -> tuple[float, float]:
    """The seconds until the first run begins, and from then until the last one is recorded as done."""
    with tempfile.TemporaryDirectory() as folder:
        store, begun = Store(folder), time.time()
        run_plan([Waiting(number) for number in range(RUNS)], store, executor=executor, workers=WORKERS)
        first = min(run.started for run in store.runs())
        records = [store.directory(id).path / "run.json" for id in store.ids()]
        return first - begun, max(path.stat().st_mtime for path in records) - first


def run(rounds: int = 3) -> str:
    os.environ["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in EXECUTORS}
    loads = []
    for _ in range(rounds):
        loads.append(os.getloadavg()[0])
        for name, executor in EXECUTORS.items():
            measured[name].append(measure(executor))
    rows: list[list[object]] = []
    for name, times in measured.items():
        workers = 1 if name == "inline" else WORKERS
        added = [seconds * workers / RUNS - SECONDS for _, seconds in times]
        throughput = [b / a for (_, a), (_, b) in zip(times, measured["processes"], strict=True)]
        start = f"{median(first for first, _ in times):.1f}"
        rows.append([name, workers, start, spread(added), "" if name == "inline" else spread(throughput)])
    header = [
        *("executor", "workers", "s until the first run", "s added per run and worker"),
        "throughput, times that of processes",
    ]
    note = (
        f"{RUNS} runs, n = {rounds} in turn; median with quartiles; the machine's load before each round: "
        f"{', '.join(f'{load:.1f}' for load in loads)}."
    )
    return f"{table(header, rows)}\n\n{note}"
