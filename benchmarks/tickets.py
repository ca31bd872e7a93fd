"""A sweep of one-shot tickets on two cores: the executor `processes` compared with a plain PyTorch script, wall-clock.

Two replicates of LeNet-300-100 on MNIST, dense and under the masks of three criteria, the validation split evaluated
every 100 steps and the test split twice per training in both. The script is `baseline_script.py`. The time of prunus
includes starting workers and writing checkpoints, the store and invariant reports; the script saves nothing.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.timing import spread, table
from prunus.data import load_data
from prunus.runs.executors import run_plan
from prunus.runs.store import Store
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.ticket import TicketSpec
from prunus.training import RECIPES

CRITERIA = ("large_final", "small_final", "random")
REPLICATES, CORES = 2, 2


def specs(epochs: int) -> list[TicketSpec]:
    recipe = RECIPES["lenet-300-100"].replace(epochs=epochs)
    return [
        TicketSpec(
            BaselineSpec(recipe=recipe, replicate=replicate),
            criterion=criterion,
            schedule="one_shot",
            rounds=11,
            levels=(11,),
        )
        for replicate in range(REPLICATES)
        for criterion in CRITERIA
    ]


def write_images(path: Path) -> None:
    """Write MNIST as bytes, with the splits of prunus."""
    data, arrays = load_data("mnist"), {}
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        images = (split.inputs[:, 0] * 0.3081 + 0.1307) * 255
        arrays |= {
            f"{name}_images": images.round().to(torch.uint8).numpy(),
            f"{name}_labels": split.labels.numpy(),
        }
    np.savez(path, **arrays)


def plain(path: Path, epochs: int, workers: int) -> dict[str, float]:
    """Seconds of the script's trainings, with as many threads as torch takes by itself."""
    free = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    script = str(Path(__file__).with_name("baseline_script.py"))
    command = [sys.executable, script, str(path), str(epochs), str(workers)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=free)
    results = json.loads(done.stdout)
    return {
        **results["seconds"],
        "cpu": _children(before),
        "steps": results["steps"],
        "pil": results["pil"],
        "threads": results["threads"],
    }


def ours(epochs: int) -> dict[str, float]:
    """Seconds until the store holds every run."""
    before, own_process = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        started = time.perf_counter()
        run_plan(specs(epochs), store, executor="processes", workers=CORES, log=lambda line: None)
        wall = time.perf_counter() - started
        rows = [row for record in store.runs() for row in store.directory(record.id).rows()]
        steps = sum(row["steps"] for row in rows)
        passed = [row["invariants"]["passed"] for row in rows if row["level"]]
    assert len(passed) == REPLICATES * len(CRITERIA)
    assert all(passed)
    return {"wall": wall, "cpu": _children(before) + time.process_time() - own_process, "steps": steps}


def _children(before: resource.struct_rusage) -> float:
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime


def run(rounds: int = 3, epochs: int = 2) -> str:
    load_data("mnist")
    results: dict[str, list[dict[str, float]]] = {"prunus": [], "workers 0": [], "workers 2": []}
    loads = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mnist.npz"
        write_images(path)
        for _ in range(rounds):
            loads.append(os.getloadavg()[0])
            results["prunus"].append(ours(epochs))
            for workers in (0, 2):
                results[f"workers {workers}"].append(plain(path, epochs, workers))
    prunus_runs, script = (
        results.pop("prunus"),
        {name: [_total_seconds(result) for result in runs] for name, runs in results.items()},
    )
    assert {result["steps"] for result in prunus_runs} == {
        result["steps"] for runs in results.values() for result in runs
    }
    steps = prunus_runs[0]["steps"]
    rows: list[list[object]] = [
        _row("prunus, processes", steps, [result["wall"] for result in prunus_runs], prunus_runs, prunus_runs)
    ]
    for name, walls in script.items():
        rows.append(_row(f"script, num_{name.replace(' ', ' = ')}", steps, walls, results[name], prunus_runs))
    fastest = min(script, key=lambda name: median(script[name]))
    unshared = [result["tickets"] + len(CRITERIA) * result["dense"] for result in results[fastest]]
    words = "the faster script, if it trained the dense network again for every criterion"
    rows.append([words, "", f"{median(unshared):.0f}", "", "", _ratio(unshared, prunus_runs)])
    how = results[fastest][0]
    images = "PIL images" if how["pil"] else "bytes, as Pillow is not installed"
    note = (
        f"{steps} steps per sweep, n = {rounds} in turn; images made of {images}; the script computes with "
        f"{how['threads']} threads; the machine's load before each round: "
        f"{', '.join(f'{load:.1f}' for load in loads)}. Target: 5 times the steps."
    )
    header = [
        "sweep on two cores",
        "network-steps/s",
        "wall s",
        "CPU s",
        "CPU ratio",
        "times the wall-clock of prunus",
    ]
    return f"{table(header, rows)}\n\n{note}"


def _total_seconds(result: dict[str, float]) -> float:
    return result["dense"] + result["tickets"]


def _row(
    name: str,
    steps: float,
    walls: list[float],
    runs: list[dict[str, float]],
    prunus_runs: list[dict[str, float]],
) -> list[object]:
    cpu = [result["cpu"] for result in runs]
    return [
        name,
        f"{steps / median(walls):,.0f}",
        f"{median(walls):.0f}",
        f"{median(cpu):.0f}",
        spread([a / b["cpu"] for a, b in zip(cpu, prunus_runs, strict=True)]),
        _ratio(walls, prunus_runs),
    ]


def _ratio(walls: list[float], prunus_runs: list[dict[str, float]]) -> str:
    return spread([wall / result["wall"] for wall, result in zip(walls, prunus_runs, strict=True)])
