"""Runs of functions: one per replicate and arm, stored, resumed after a kill, and never done twice."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from prunus.errors import SpecError
from prunus.experiments import EXPERIMENTS
from prunus.experiments.function_run import FunctionRun, Output
from prunus.experiments.running import draw_experiment, run_experiment
from prunus.runs.executors import run_plan
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.training import Recipe

ROOT = Path(__file__).parents[2]


RECIPE = Recipe(1, 0.1, 10)


@dataclass(frozen=True)
class Numbers:
    """The settings of the functions below."""

    kind: ClassVar[str] = "numbers"

    count: int = 3
    recipe: Recipe = RECIPE


def make_tensor(settings, replicate):
    """Return a tensor and its mask."""
    tensor = torch.arange(float(settings.count))
    return Output([{"sum": float(tensor.sum())}], {"t": tensor}, {"t": tensor > replicate})


def read_tensor(settings, replicate, made):
    """Return one row per kept number."""
    remaining = made.load_tensors("tensors")["t"][made.load_masks("masks")["t"]]
    return [{"curve": "kept", "value": value} for value in remaining.tolist()]


def test_function_reads_the_directories_of_its_inputs(tmp_path):
    made = FunctionRun.of(make_tensor, Numbers(), replicate=1)
    spec = FunctionRun.of(read_tensor, Numbers(), replicate=1, inputs=(made,))
    store = Store(tmp_path)
    run_plan([spec], store, executor="inline")
    assert store.directory(run_id(spec)).rows() == [{"curve": "kept", "value": 2.0}]
    assert store.directory(run_id(made)).rows() == [{"sum": 3.0}]


def rows_of_two_curves(settings, replicate):
    """Return two rows of one level."""
    return [{"curve": name, "level": 1} for name in ("a", "b")]


def test_rows_that_would_take_the_place_of_each_other_are_refused(tmp_path):
    with pytest.raises(SpecError, match="got level 1 twice"):
        run_plan([FunctionRun.of(rows_of_two_curves, Numbers())], Store(tmp_path), executor="inline")


def test_version_settings_and_inputs_change_the_id():
    spec = FunctionRun.of(read_tensor, Numbers())
    others = [
        replace(spec, version=2),
        replace(spec, settings=Numbers(count=4)),
        replace(spec, replicate=1),
        replace(spec, inputs=(spec,)),
        FunctionRun.of(make_tensor, Numbers()),
    ]
    assert len({run_id(run) for run in (spec, *others)}) == 6


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (Numbers(count=0), "Expected count to be at least 1, got 0"),
        (Numbers(recipe=Recipe(0, 0.1, 10)), r"Expected recipe\.epochs to be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused_before_the_run(settings, match):
    with pytest.raises(SpecError, match=match):
        FunctionRun.of(make_tensor, settings).cost()


SCRIPT = """
import sys
from pathlib import Path
from prunus.experiments import EXPERIMENTS
from prunus.experiments.running import run_experiment

name, folder = sys.argv[1], Path(sys.argv[2])
run_experiment(EXPERIMENTS[name], "smoke", folder / "out", store=folder / "store", executor="inline", log=print)
"""


@pytest.mark.parametrize(
    "name", ["hassibi1993.xor", pytest.param("frankle2019.lenet", marks=pytest.mark.slow)]
)
def test_killed_experiment_continues_with_the_same_numbers(name, tmp_path):
    """Killed after its first finished run: the rest is done once, and the rows are those of an unbroken experiment."""
    command = [sys.executable, "-u", "-c", SCRIPT, name, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("1 of "):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = {record.id for record in Store(tmp_path / "store").runs() if record.state == "done"}
    assert done
    lines: list[str] = []
    experiment = EXPERIMENTS[name]
    arguments = {"executor": "inline", "log": lines.append}
    resumed = run_experiment(experiment, "smoke", tmp_path / "out", store=tmp_path / "store", **arguments)
    assert not any(id in line for id in done for line in lines[1:])
    unbroken = run_experiment(experiment, "smoke", tmp_path / "whole", store=tmp_path / "other", **arguments)
    assert [strip(row) for row in resumed.content["rows"]] == [strip(row) for row in unbroken.content["rows"]]
    assert resumed.table == unbroken.table
    redrawn = draw_experiment(experiment, Store(tmp_path / "store"), tmp_path / "drawn")
    assert redrawn.content["verdicts"] == unbroken.content["verdicts"]


def strip(row):
    """The row without times."""
    return {key: value for key, value in row.items() if key != "seconds"}


def test_page_is_drawn_from_rows_without_tensors(tmp_path):
    """As after an import of exported rows."""
    experiment = EXPERIMENTS["hassibi1993.xor"]
    settings = {"networks": "3"}
    result = run_experiment(
        experiment, "smoke", tmp_path / "out", store=tmp_path / "store", executor="inline", settings=settings
    )
    for path in (tmp_path / "store").rglob("*.safetensors"):
        path.unlink()
    redrawn = draw_experiment(experiment, Store(tmp_path / "store"), tmp_path / "drawn")
    assert redrawn.content["rows"] == result.content["rows"]
    assert {row["n"] for row in redrawn.table} == {3}
