"""A sweep of one-shot tickets on two cores: the engine `processes` beside a plain PyTorch script, wall-clock.

Two replicates of LeNet-300-100 on MNIST, dense and under the masks of three criteria, the validation split evaluated
every 100 steps and the test split twice a training in both. The script is `plain_lottery.py`. prunus starts its workers
within its time, writes its checkpoints, its store and its receipts; the script keeps nothing.
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
from prunus.data import load
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


def write_pictures(path: Path) -> None:
    """MNIST as bytes, split as prunus splits it."""
    data, arrays = load("mnist"), {}
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        pictures = (split.inputs[:, 0] * 0.3081 + 0.1307) * 255
        arrays |= {
            f"{name}_pictures": pictures.round().to(torch.uint8).numpy(),
            f"{name}_labels": split.labels.numpy(),
        }
    np.savez(path, **arrays)


def plain(path: Path, epochs: int, workers: int) -> dict[str, float]:
    """Seconds of the script's trainings, with as many threads as torch takes by itself."""
    free = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    script = str(Path(__file__).with_name("plain_lottery.py"))
    command = [sys.executable, script, str(path), str(epochs), str(workers)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=free)
    found = json.loads(done.stdout)
    return {
        **found["seconds"],
        "cpu": _children(before),
        "steps": found["steps"],
        "pil": found["pil"],
        "threads": found["threads"],
    }


def ours(epochs: int) -> dict[str, float]:
    """Seconds until the store holds every run."""
    before, own = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        began = time.perf_counter()
        run_plan(specs(epochs), store, executor="processes", workers=CORES, say=lambda line: None)
        wall = time.perf_counter() - began
        steps = sum(row["steps"] for run in store.folders() for row in run.rows())
        passed = [
            row["invariants"]["passed"] for run in store.folders() for row in run.rows() if row["level"]
        ]
    assert len(passed) == REPLICATES * len(CRITERIA)
    assert all(passed)
    return {"wall": wall, "cpu": _children(before) + time.process_time() - own, "steps": steps}


def _children(before: resource.struct_rusage) -> float:
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime


def run(rounds: int = 3, epochs: int = 2) -> str:
    load("mnist")
    found: dict[str, list[dict[str, float]]] = {"prunus": [], "workers 0": [], "workers 2": []}
    loads = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mnist.npz"
        write_pictures(path)
        for _ in range(rounds):
            loads.append(os.getloadavg()[0])
            found["prunus"].append(ours(epochs))
            for workers in (0, 2):
                found[f"workers {workers}"].append(plain(path, epochs, workers))
    mine, script = found.pop("prunus"), {name: [_whole(one) for one in runs] for name, runs in found.items()}
    assert {one["steps"] for one in mine} == {one["steps"] for runs in found.values() for one in runs}
    steps = mine[0]["steps"]
    rows: list[list[object]] = [_row("prunus, processes", steps, [one["wall"] for one in mine], mine, mine)]
    for name, walls in script.items():
        rows.append(_row(f"script, num_{name.replace(' ', ' = ')}", steps, walls, found[name], mine))
    fastest = min(script, key=lambda name: median(script[name]))
    unshared = [one["tickets"] + len(CRITERIA) * one["dense"] for one in found[fastest]]
    words = "the faster, were it to train the dense network anew for every criterion"
    rows.append([words, "", f"{median(unshared):.0f}", "", "", _ratio(unshared, mine)])
    how = found[fastest][0]
    pictures = "PIL images" if how["pil"] else "bytes, as Pillow is not installed"
    note = (
        f"{steps} steps a sweep, n = {rounds} in turn; pictures made of {pictures}; the script computes with "
        f"{how['threads']} threads; the machine's load before each round: "
        f"{', '.join(f'{one:.1f}' for one in loads)}. Bar: 5 times the steps."
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


def _whole(one: dict[str, float]) -> float:
    return one["dense"] + one["tickets"]


def _row(
    name: str, steps: float, walls: list[float], runs: list[dict[str, float]], mine: list[dict[str, float]]
) -> list[object]:
    cpu = [one["cpu"] for one in runs]
    return [
        name,
        f"{steps / median(walls):,.0f}",
        f"{median(walls):.0f}",
        f"{median(cpu):.0f}",
        spread([a / b["cpu"] for a, b in zip(cpu, mine, strict=True)]),
        _ratio(walls, mine),
    ]


def _ratio(walls: list[float], mine: list[dict[str, float]]) -> str:
    return spread([wall / one["wall"] for wall, one in zip(walls, mine, strict=True)])
