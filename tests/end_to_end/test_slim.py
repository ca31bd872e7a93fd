"""The command `prunus slim`: the smaller file, the table, the measured times, and errors in one sentence."""

import importlib
import json
import sys

import pytest
import torch

import prunus
from prunus.cli import networks
from prunus.errors import DataError
from prunus.models import MODELS
from prunus.pruning.structured import latency

OWN = """
import prunus
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x + self.second(x).relu())

def net():
    return Residual()

READ = []

def batches():
    for number in range(4):
        READ.append(number)
        yield torch.randn(500, 8), torch.arange(500) % 4

def data(*shape):
    inputs = torch.randn(120, *(shape or (8,)), generator=torch.Generator().manual_seed(0))
    split = prunus.data.Split(inputs, torch.arange(120) % 4)
    return prunus.Dataset("draws", split, split.take(60), split.take(80), tuple("abcd"))

def images():
    return data(1, 28, 28)

def examples():
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "slim_nets.py").write_text(OWN)
    monkeypatch.setattr(latency, "SECONDS", 0.0)  # the fewest runs
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_writes_a_smaller_built_in_model_that_loads_by_itself(run_cli, folder):
    printed = run_cli("slim", "resnet-20", "--macs=0.5", "--out=a.prunus", "--json")
    result = json.loads(printed.out)
    assert result["file_bytes"] == (folder / "a.prunus").stat().st_size
    model = prunus.load("a.prunus")
    macs = prunus.count_macs(model, torch.zeros(1, 3, 32, 32))
    assert result["macs"] == [40_551_040, macs]
    assert macs <= 0.5 * 40_551_040
    assert sum(p.numel() for p in model.parameters()) == result["parameters"][1]
    assert [row["batch_size"] for row in result["latency"]] == [1, 32]
    assert all(row["before_ms"] > 0 and row["after_ms"] > 0 for row in result["latency"])
    assert all(row["speedup_quartiles"][0] <= row["speedup_quartiles"][1] for row in result["latency"])
    assert "test_error" not in result  # of initial weights it means nothing
    assert "has the initial weights of seed 0" in printed.err
    assert result["page"] == "a.html"
    page = (folder / "a.html").read_text(encoding="utf-8")
    assert "40,551,040 → " in page
    assert "<dt>conv1.weight</dt><dd>conv1, layer1.0.conv2, layer1.1.conv2, layer1.2.conv2" in page
    again = json.loads(run_cli("slim", "a.prunus", "--parameters=0.5", "--out=b.prunus", "--json").out)
    assert again["parameters"][0] == result["parameters"][1]
    assert sum(p.numel() for p in prunus.load("b.prunus").parameters()) == again["parameters"][1]


def test_table_has_layers_coupling_times_and_what_is_left_alone(run_cli, folder):
    printed = run_cli(
        "slim", "slim_nets:net", "--density=0.5", "--criterion=taylor", "--data=slim_nets:examples", "--out=a.prunus"
    ).out  # fmt: skip
    assert "16 → 8" in printed
    assert printed.count("first.weight") == 2  # first and second are coupled
    assert "refused  output (output): the tensor is an output of the model" in printed
    assert "time     batch 1:" in printed
    assert "time     batch 32:" in printed
    smaller = prunus.load("a.prunus", into=__import__("slim_nets").net())
    assert smaller.second.weight.shape == (8, 8)


def test_test_errors_are_those_of_the_two_networks(run_cli, folder):
    module = importlib.import_module("slim_nets")
    model, data = module.net(), module.data()
    prunus.save(model, "dense.prunus")
    options = ("--weights=dense.prunus", "--density=0.25", "--out=a.prunus", "--data=slim_nets:data")
    result = json.loads(run_cli("slim", "slim_nets:net", *options, "--json").out)
    assert result["dense_test_error"] == prunus.evaluate(model, data.test).error
    assert (
        result["test_error"] == prunus.evaluate(prunus.load("a.prunus", into=module.net()), data.test).error
    )
    assert result["n"] == len(data.test)
    printed = run_cli("slim", "slim_nets:net", *options, "--force").out
    assert f"test     error before removal {result['dense_test_error']:.1f} %" in printed
    assert f", after removal without retraining {result['test_error']:.1f} %" in printed


def test_trained_built_in_model_is_evaluated_on_its_data_set(run_cli, folder, monkeypatch):
    module = importlib.import_module("slim_nets")
    model = MODELS["lenet-300-100"]()
    prunus.save(model, "dense.prunus")
    monkeypatch.setattr(networks, "default_data", lambda *_: "slim_nets:images")
    options = ("--density=0.25", "--out=a.prunus", "--force", "--json")
    printed = run_cli("slim", "dense.prunus", *options)
    assert json.loads(printed.out)["dense_test_error"] == prunus.evaluate(model, module.images().test).error

    def unavailable(*_):
        raise DataError("no network")

    monkeypatch.setattr(networks, "default_data", unavailable)
    printed = run_cli("slim", "dense.prunus", *options)
    assert "no test error: no network" in printed.err
    assert "test_error" not in json.loads(printed.out)


def test_as_many_calibration_examples_are_read_as_requested(run_cli, folder):
    options = ("--density=0.5", "--criterion=taylor", "--calibration-examples=1600", "--out=a.prunus")
    run_cli("slim", "slim_nets:net", "--data=slim_nets:batches", *options)
    assert sys.modules["slim_nets"].READ == [0, 1, 2, 3]


def test_file_bytes_are_those_of_the_file(run_cli, folder):
    dense = json.loads(
        run_cli("slim", "slim_nets:net", "--input-shape=8", "--density=1", "--out=d.prunus", "--json").out
    )
    limit = dense["file_bytes"] - 400
    options = ("--input-shape=8", f"--file-bytes={limit}", "--out=a.prunus", "--json")
    assert limit - 400 < json.loads(run_cli("slim", "slim_nets:net", *options).out)["file_bytes"] <= limit


BAD = [
    (("slim_nets:net", "--macs=0.5"), 3, "Expected the shape of one example of slim_nets:net"),
    (("slim_nets:net", "--macs=0.5", "--input-shape=eight"), 3, "an --input-shape such as 3,32,32"),
    (("slim_nets:net", "--macs=0.5", "--input-shape=9"), 4, "Residual does not take example inputs"),
    (("slim_nets:net", "--input-shape=8"), 5, "Expected one of macs, parameters"),
    (("slim_nets:net", "--macs=1e-4", "--input-shape=8"), 5, "Expected macs of at least"),
    (
        ("slim_nets:net", "--macs=0.5", "--input-shape=8", "--criterion=bn_scale"),
        5,
        "channels of 'first.weight'",
    ),
    (("slim_nets:net", "--macs=0.5", "--input-shape=8", "--criterion=taylor"), 3, "not built in, got none"),
    (("vit-small", "--macs=0.5", "--criterion=l3"), 2, "Unknown criterion 'l3'"),
    (("slim_nets:net", "--macs=0.5", "--input-shape=8", "--out=a.txt"), 1, "ends in .safetensors or .prunus"),
    (
        ("slim_nets:net", "--file-bytes=2000", "--input-shape=8", "--out=a.safetensors"),
        4,
        "ends in .prunus with --file-bytes",
    ),
]


@pytest.mark.parametrize(("options", "code", "message"), BAD)
def test_errors_are_one_sentence_and_no_file_is_written(options, code, message, run_cli, folder):
    before = sorted(folder.glob("*.prunus"))
    error = " ".join(run_cli("slim", *options, code=code).err.split())
    assert message in error
    assert sorted(folder.glob("*.prunus")) == before


def test_missing_library_of_the_page_is_named_before_the_work(run_cli, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    printed = run_cli(
        "slim", "slim_nets:net", "--macs=0.5", "--input-shape=8", "--out=no-page.prunus", code=1
    )
    assert "jinja2" in printed.err
    assert not (folder / "no-page.prunus").exists()
