"""Progress: lines in time with the remaining time, one mechanism for every command, and no cost to the results."""

import re
import time
from itertools import pairwise

import pytest
import torch

from prunus.cli import progress as module
from prunus.cli.progress import Reporter, cumulative_progress
from prunus.runs.executors.scheduler import RunsProgress
from prunus.training import Recipe, evaluate, train

LINE = re.compile(r"^.+: (\d+) %, about \d+ (s|min) left$")


class Clock:
    """Seconds that pass when the test says so, and the moments at which lines were written."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[tuple[float, str]] = []

    def __call__(self) -> float:
        return self.now

    def write(self, line: str) -> None:
        self.lines.append((self.now, line))


def longest_silence(clock: Clock, start: float) -> float:
    moments = [start, *(moment for moment, _ in clock.lines), clock.now]
    return max(later - earlier for earlier, later in pairwise(moments))


@pytest.mark.parametrize("step_seconds", [0.01, 1.0, 7.0, 29.0])
def test_lines_are_written_every_thirty_seconds_with_the_remaining_time(step_seconds):
    clock = Clock()
    start, total = clock.now, int(300 / step_seconds)
    reporter = Reporter("pruning", clock.write, clock)
    reporter("layer", 0, total)
    for done in range(1, total):
        clock.now += step_seconds
        reporter("layer", done, total)
    assert longest_silence(clock, start) <= 30
    # A line every 20 seconds, or at every step where these are farther apart.
    assert 300 / 20 * 0.6 - 1 <= len(clock.lines) <= 300 / 20 + 1 or len(clock.lines) == total - 1
    assert all(LINE.match(line) for _, line in clock.lines if not line.endswith("%, 2 s so far"))
    halfway = min(clock.lines, key=lambda line: abs(line[0] - start - 150))[1]
    minutes = re.search(r"about (\d+) min left", halfway)
    assert minutes is not None
    assert int(minutes[1]) in (2, 3)


def test_first_line_is_written_after_two_seconds():
    clock = Clock()
    reporter = Reporter("evaluate", clock.write, clock)
    for _ in range(19):
        clock.now += 0.1
        reporter.tick()
    assert clock.lines == []
    clock.now += 0.2
    reporter.tick()
    assert [line for _, line in clock.lines] == ["evaluate: 2 s so far"]


def test_lines_are_written_during_a_long_step():
    clock = Clock()
    start = clock.now
    reporter = Reporter("prune", clock.write, clock)
    reporter("layer 2", 1, 4)
    for _ in range(1200):
        clock.now += 0.25
        reporter.tick()
    assert longest_silence(clock, start) <= 30
    assert clock.lines[-1][1] == "layer 2: 25 %, 5 min so far"


def test_remaining_time_uses_the_pace_of_the_current_work():
    clock = Clock()
    reporter = Reporter("run", clock.write, clock)
    clock.now += 1
    reporter("slow", 9, 10)
    clock.now += 100
    reporter("fast", 0, 1000)
    clock.now += 30
    reporter("fast", 500, 1000)
    assert clock.lines[-1][1] == "fast: 50 %, about 30 s left"


def test_remaining_time_of_a_resumed_training():
    clock = Clock()
    reporter = Reporter("run", clock.write, clock)
    reporter("training", 900, 1000)
    clock.now += 50
    reporter("training", 950, 1000)
    assert clock.lines[-1][1] == "training: 95 %, about 50 s left"


def test_remaining_time_is_not_estimated_from_too_little_work():
    clock = Clock()
    reporter = Reporter("run", clock.write, clock)
    reporter("training", 0, 1000)
    clock.now += 100
    reporter("training", 19, 1000)
    assert clock.lines[-1][1] == "training: 1 %, 2 min so far"
    clock.now += 100
    reporter("training", 20, 1000)
    assert clock.lines[-1][1] == "training: 2 %, about 2.7 h left"


def test_other_line_replaces_a_line_of_progress():
    clock = Clock()
    reporter = Reporter("compress", clock.write, clock)
    for epoch in range(10):
        clock.now += 10
        reporter.line(f"epoch {epoch}")
        reporter("epoch", epoch, 10)
    assert [line for _, line in clock.lines] == [f"epoch {epoch}" for epoch in range(10)]


def test_cumulative_progress_counts_trainings_that_were_finished_before():
    reported = []
    add = cumulative_progress(40, lambda *call: reported.append(call))
    for done in (0, 5, 10, 0, 10, 10, 0, 10):  # the third was finished by an earlier call
        add("training", done, 10)
    add("coding the weights", 0, 0)
    assert [done for _, done, _ in reported[:-1]] == [0, 5, 10, 10, 20, 30, 30, 40]
    assert reported[-1] == ("coding the weights", 0, 0)


def test_runs_progress_weights_runs_by_estimated_time_without_failed_ones():
    reported = []
    runs = RunsProgress({"a": 10.0, "b": 30.0, "c": 60.0}, lambda *call: reported.append(call))
    runs.step("b", 1, 2)
    runs.finish("a")
    runs.drop(["c"])
    runs.step("b", 4, 5)
    runs.step("unknown", 1, 2)
    assert reported == [
        ("0 of 3 runs finished, b at step 1 of 2", 15_000, 100_000),
        ("1 of 3 runs finished", 25_000, 100_000),
        ("1 of 3 runs finished, b at step 4 of 5", 34_000, 40_000),
    ]


def test_progress_of_every_batch_does_not_change_the_results(mlp, small_digits):
    recipe, reported = Recipe(epochs=2, learning_rate=0.1, batch_size=50), []
    state = {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    train(mlp, small_digits, recipe)
    trained = {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    mlp.load_state_dict(state)
    train(mlp, small_digits, recipe, progress=lambda *call: reported.append(call))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in mlp.state_dict().items())
    assert reported == [
        ("training", 0, 8),
        *(("epoch 1 of 2", step, 8) for step in range(1, 5)),
        *(("epoch 2 of 2", step, 8) for step in range(5, 9)),
    ]
    reported.clear()
    evaluate(mlp, small_digits.validation, 15, progress=lambda *call: reported.append(call))
    assert reported == [("evaluation", 15, 40), ("evaluation", 30, 40), ("evaluation", 40, 40)]


NETS = """
import time
from torch import nn
from prunus import Dataset, Split, load_data

class Slow(nn.Flatten):
    def forward(self, x):
        time.sleep(0.04)
        return super().forward(x)

def net():
    return nn.Sequential(Slow(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

def small():
    return load_data("digits").take(200, 240)
"""


@pytest.fixture
def slow(run_cli, monkeypatch, tmp_path):
    """`prunus` on a slow network in this process, with a line of progress every tenth of a second."""
    (tmp_path / "slow_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, seconds in (("FIRST_SECONDS", 0.05), ("EVERY_SECONDS", 0.05), ("TICK_SECONDS", 0.02)):
        monkeypatch.setattr(module, name, seconds)
    return run_cli


def test_commands_write_plain_lines_when_stderr_is_a_file(slow):
    names = ("slow_nets:net", "--data=slow_nets:small")
    epochs = ("--epochs=dense=1", "--epochs=retrain=1", "--epochs=final_retrain=1", "--epochs=finetune=1")
    error = slow("compress", "--model", *names, "--rounds=1", "--out=x.prunus", *epochs).err
    lines = [line for line in error.splitlines() if LINE.match(line)]
    assert any(line.startswith("epoch 1 of 1: ") for line in lines)
    # One estimate over all trainings: the percentage only grows.
    percentages = [int(LINE.match(line)[1]) for line in lines if line.startswith("epoch ")]
    assert percentages == sorted(percentages)
    assert "\x1b" not in error
    assert "\r" not in error
    error = slow("evaluate", "x.prunus", "--model", *names).err
    assert "evaluation: " in error


def test_report_does_nothing_after_the_command_has_ended(slow, capsys):
    slow("list")
    module.report("late", 1, 2)
    time.sleep(0.3)
    assert capsys.readouterr().err == ""
