"""Shared fixtures: one thread, small real data, a small network, the command line in this process."""

import os

import pytest
import torch
from torch import nn

from prunus.data import load_data
from prunus.seeds import make_generator
from prunus.types import Dataset, Split

os.environ.pop("COLUMNS", None)  # the width of the test runner's output must not change the tables
os.unsetenv("COLUMNS")  # readline sets it for subprocesses alone


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def run_cli(capsys, monkeypatch):
    """Run `prunus` in this process; returns its output to stdout and stderr, without lines of progress."""
    from prunus.cli import main, progress

    monkeypatch.setattr(progress, "FIRST_SECONDS", 3600.0)

    def call(*arguments, code=0):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == code, printed.err
        assert "Traceback" not in printed.out + printed.err
        return printed

    return call


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="session")
def small_digits(digits) -> Dataset:
    """160 + 40 of the digits: enough to train on, in milliseconds."""
    cut = lambda split, n: Split(split.inputs[:n], split.labels[:n])  # noqa: E731
    return Dataset(
        "small_digits", cut(digits.train, 160), cut(digits.validation, 40), digits.test, digits.class_names
    )


@pytest.fixture(scope="session")
def small_data(small_digits) -> Dataset:
    """160 + 40 of the digits."""
    return small_digits


@pytest.fixture
def mlp() -> nn.Module:
    """64-24-16-10 with dropout, seeded."""
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 24),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(24, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )
    draw = make_generator(0, "mlp")
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2, generator=draw)
    return model
