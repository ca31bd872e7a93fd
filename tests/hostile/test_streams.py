"""Neither the output of user functions nor a broken stdout or stderr changes the results or the exit code."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

USER_MODULE = """
import dataclasses

import torch
from prunus import load_data
from torch import nn

print("printed while it was imported")

def net():
    print("printed by the model")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def data():
    print("printed by the data set")
    return load_data("digits")

class Quits(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        raise SystemExit(0)

class QuitsLater(Quits):
    calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 5:
            raise SystemExit(0)
        return self.layer(x.flatten(1))

class Stop(BaseException):
    pass

def stops():
    raise Stop("enough")

def not_copyable():
    model = net()
    model.generator = (number for number in range(3))
    return model

def expanded():
    model = net()
    model[1].weight = nn.Parameter(torch.ones(1, 64).expand(10, 64))
    return model

def sparse():
    model = net()
    model.register_buffer("eye", torch.eye(3).to_sparse())
    return model

def stops_at_a_seed(seed):
    raise SystemExit(0)

def no_data():
    raise SystemExit(0)

def unprintable():
    return dataclasses.replace(load_data("digits"), name="two\\nlines")

def numbered():
    return dataclasses.replace(load_data("digits"), name=3)
"""
FAST = ("--rounds=1", "--density=0.5", "--epochs=dense=1", "--epochs=final_retrain=0", "--epochs=finetune=0")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a user module and weights of its network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "stream_nets", raising=False)
    (tmp_path / "stream_nets.py").write_text(USER_MODULE)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), tmp_path / "net.pt")
    return tmp_path


def test_missing_package_is_named(folder):
    arguments = ["compress", "--model=lenet-5", "--data=digits", "--out=n.prunus"]
    script = f"import sys; sys.modules['numba'] = None; from prunus.cli import main; main({arguments})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "error: The package numba is not installed; run `prunus doctor`" in done.stderr


def test_output_of_user_functions_goes_to_stderr(folder, run_cli):
    names = ("--model=stream_nets:net", "--data=stream_nets:data")
    printed = run_cli("compress", *names, *FAST, "--out=n.prunus", "--json")
    assert json.loads(printed.out)["file"] == "n.prunus"
    for origin in ("while it was imported", "by the model", "by the data set"):
        assert f"printed {origin}" in printed.err
    assert json.loads(run_cli("evaluate", "n.prunus", *names, "--json").out)["n"] == 300


@pytest.mark.parametrize(
    ("code", "model", "message"),
    [
        (4, "Quits", "Quits failed on a batch"),
        (70, "QuitsLater", "SystemExit: 0"),
        (70, "stops", "Stop: enough"),
        (4, "not_copyable", "copy.deepcopy"),
    ],
)
def test_model_that_exits_is_an_error(code, model, message, folder, run_cli):
    printed = run_cli(
        "compress", f"--model=stream_nets:{model}", "--data=digits", *FAST, "--out=n.prunus", code=code
    )
    assert printed.out == ""
    assert message in printed.err.splitlines()[-1]
    assert not list(folder.glob("n.*"))


@pytest.mark.parametrize("model", ["expanded", "sparse"])
def test_prune_refuses_a_model_whose_tensors_cannot_be_filled(model, folder, run_cli):
    weights = {"1.weight": torch.ones(10, 64), "1.bias": torch.ones(10)}
    torch.save(weights if model == "expanded" else {**weights, "eye": torch.eye(3)}, "filled.pt")
    arguments = (f"stream_nets:{model}", "--weights=filled.pt", "--data=digits", "--density=0.5")
    assert "cannot be copied into Sequential" in run_cli("prune", *arguments, code=4).err


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda weight: weight.to("meta")])
def test_nondense_weights_are_refused(change, folder, run_cli):
    torch.save({"1.weight": change(torch.ones(10, 64)), "1.bias": torch.ones(10)}, "odd.pt")
    arguments = ("stream_nets:net", "--weights=odd.pt", "--data=digits", "--density=0.5")
    assert "Expected dense tensors with values in odd.pt" in run_cli("prune", *arguments, code=4).err


@pytest.mark.parametrize("data", ["unprintable", "numbered"])
def test_data_set_name_must_be_text(data, folder, run_cli):
    arguments = ("--model=stream_nets:net", f"--data=stream_nets:{data}", "--out=n.prunus")
    assert "Expected the name of a data set" in run_cli("compress", *arguments, code=3).err


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect",),
        ("decompress",),
        ("evaluate", "--data=digits"),
        ("prune", "--density=0.5", "--data=digits"),
    ],
)
def test_pipe_without_writer_is_refused(arguments, folder, run_cli):
    os.mkfifo("pipe.prunus")
    printed = run_cli(arguments[0], "pipe.prunus", *arguments[1:], code=7)
    assert printed.err.endswith("error: pipe.prunus cannot be read: it is not a regular file.\n")


def test_output_without_name_or_behind_broken_link_is_refused(folder, run_cli):
    assert ". cannot be written: it is a folder" in run_cli("decompress", "", code=1).err
    (folder / "link.prunus").symlink_to("missing/file.prunus")
    names = ("--model=stream_nets:net", "--data=digits")
    stderr = run_cli("compress", *names, "--out=link.prunus", code=1).err
    assert f"{folder / 'missing'} is not a folder" in stderr
    stderr = run_cli("compress", *names, "--out=n.prunus", "--checkpoints=two\nlines", code=1).err
    assert "its name has control characters" in stderr
    assert "will prune" not in stderr


@pytest.mark.parametrize("name", [(), ("inspect",), ("runs", "rm")])
def test_help_accepts_both_option_names(name, run_cli):
    text = run_cli(*name, "--help").out
    assert "Usage" in text
    assert run_cli(*name, "-h").out == text


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (
            2,
            ("--set=baseline.recipe.learning_rate=-1",),
            "Expected learning_rate to be a finite number of at least 0, got -1.0",
        ),
        (
            2,
            ("--set=baseline.recipe.weight_decay=-0.1",),
            "Expected weight_decay to be a finite number of at least 0, got -0.1",
        ),
        (2, ("--executor=",), "Unknown executor ''"),
        (2, ("--replicates=1000000000000",), "--replicates"),
        (8, ("--store=two\nlines",), "its name has control characters"),
        (4, ("--set=baseline.model=stream_nets:stops_at_a_seed",), "failed: SystemExit: 0"),
        (3, ("--set=baseline.data=stream_nets:no_data",), "failed: SystemExit: 0"),
    ],
)
def test_run_refuses_before_creating_a_store(code, arguments, message, folder, run_cli):
    printed = run_cli("run", "zhou2019.zeros", "--smoke", "--workers=1", *arguments, code=code)
    assert message in printed.err.splitlines()[-1]
    assert not [
        path for path in folder.iterdir() if path.name not in ("stream_nets.py", "net.pt", "__pycache__")
    ]


@pytest.mark.parametrize(
    ("redirections", "arguments", "code", "message"),
    [
        (">/dev/full", "--version", 1, "error: No space left on device.\n"),
        (">/dev/full", "--help", 1, "error: No space left on device.\n"),
        (">&-", "list --json", 0, ""),
        ("2>/dev/full", "inspect missing", 7, ""),
        ("2>/dev/full", "list --json", 0, ""),
        (">&- 2>&-", "inspect missing", 7, ""),
    ],
)
def test_unwritable_stream_changes_nothing_else(redirections, arguments, code, message, tmp_path):
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m prunus {arguments} {redirections}"],
        cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines(keepends=True) if " so far" not in line]
    assert "".join(lines) == message
