"""`prunus prune` and `prunus evaluate` with models and data of any task, from functions of a user."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import prunus

OWN = """
import torch
from torch import nn
from torch.nn import functional as F
from prunus import Dataset, Split

torch.manual_seed(0)
X, IDS = torch.randn(64, 8), torch.randint(0, 50, (64, 7))

def dataset(inputs, labels, names):
    split = Split(inputs, labels)
    return Dataset("own", split, split, split, names)

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

def noise():
    return dataset(X, torch.arange(64) % 3, ("a", "b", "c"))

def inputs():
    return X

def loader():
    return [(X[i : i + 10],) for i in range(0, 60, 10)]

def empty():
    return []

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x):
        return self.a(x), self.b(x).softmax(1)

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.e, self.f = nn.Embedding(50, 8), nn.Linear(8, 50)

    def forward(self, ids):
        return self.f(self.e(ids))

def text():
    return dataset(IDS, IDS.roll(-1, 1), ())

def regression():
    return dataset(X, X[:, :3], ())

def regression_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

def second(model, batch):
    return model(batch[0])[1]

def distance(output, batch):
    return -F.l1_loss(output, batch[1])
"""


@pytest.fixture
def run(run_cli, monkeypatch, tmp_path):
    (tmp_path / "task_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield run_cli
    sys.modules.pop("task_nets", None)


def prune(run, model, *arguments, **options):
    common = ("--density=0.5", "--no-train", "--out=o.safetensors", "--force")
    return run("prune", f"task_nets:{model}", *common, *arguments, **options)


def halved(name="o.safetensors"):
    weights = [tensor for tensor in load_file(name).values() if tensor.ndim == 2]
    return any(float((weight != 0).float().mean()) == 0.5 for weight in weights)


def test_weights_of_the_function_are_pruned_as_they_are(run):
    """Cases c06 and c08: no training, no data for magnitude, inputs without labels for obs."""
    printed = prune(run, "net")
    assert "trained first" not in printed.err
    assert "of all parameters" in printed.out
    assert "test" not in printed.out
    import task_nets

    dense = task_nets.net()
    weight = load_file("o.safetensors")["0.weight"]
    assert torch.equal(weight, torch.where(weight != 0, dense[0].weight.detach(), 0.0))
    for data in ("inputs", "loader"):
        layers = json.loads(prune(run, "net", "--criterion=obs", f"--data=task_nets:{data}", "--json").out)[
            "layers"
        ]
        assert all(row["error_updated"] < row["error_zeroed"] for row in layers)


def test_outputs_that_are_no_tensor_are_named_and_a_forward_selects_one(run):
    """Case c07."""
    printed = prune(run, "Two", "--data=task_nets:noise")
    assert "no test error: Expected Two to return a tensor" in printed.err
    assert halved()
    printed = prune(
        run, "Two", "--data=task_nets:noise", "--forward=task_nets:second", "--exclude=a.*", "--json"
    )
    assert 0 < json.loads(printed.out)["test_error"] < 100


def test_tokens_and_labels_by_position_are_pruned_and_evaluated(run):
    """Case c09, and the error of a language model is counted per label."""
    report = json.loads(prune(run, "Text", "--data=task_nets:text", "--criterion=snip", "--json").out)
    assert report["n"] == 64 * 7
    assert 0 < report["test_error"] <= 100
    import task_nets

    model = task_nets.Text()
    model.load_state_dict(load_file("o.safetensors"))
    prunus.save(model, "text.prunus")
    result = json.loads(
        run("evaluate", "text.prunus", "--model=task_nets:Text", "--data=task_nets:text", "--json").out
    )
    assert result["n"] == 64 * 7
    assert result["test_error"] == report["test_error"]


def test_regression_has_a_loss_and_a_metric(run):
    arguments = ("--data=task_nets:regression", "--loss=squared_error")
    report = json.loads(prune(run, "net", *arguments, "--criterion=fisher", "--json").out)
    assert report["test_error"] is None
    assert report["test_loss"] > 0
    printed = prune(run, "net", *arguments, "--metric=task_nets:distance").out
    assert "test   metric before pruning -" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--criterion=obs", "--data=task_nets:empty"), 5, "yields no batch"),
        (("--criterion=obs",), 3, "Expected a data set for task_nets:net, which is not built in"),
        (("--data=task_nets:regression",), 3, "class indices"),
        (("--data=task_nets:noise", "--metric=task_nets:missing"), 2, "missing"),
        (("--data=task_nets:noise", "--loss=mse"), 2, "Unknown loss 'mse'"),
        (("--data=task_nets:noise", "--forward=task_nets:second"), 4, "one row per example, got [3]"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_a_file_is_written(arguments, code, message, run, tmp_path):
    assert message in " ".join(prune(run, "net", *arguments, code=code).err.split())
    assert not (tmp_path / "o.safetensors").exists()


def test_data_that_are_no_data_set_train_no_model(run):
    printed = run("prune", "task_nets:net", "--density=0.5", "--data=task_nets:inputs", code=3)
    assert "--no-train" in printed.err


def compress(run, model, *arguments, **options):
    common = ("--density=0.5", "--out=o.prunus", "--page=o.html", "--force")
    return run("compress", f"task_nets:{model}", *common, *arguments, **options)


def test_a_regression_is_compressed_with_its_loss_and_metric(run):
    task = ("--data=task_nets:regression", "--loss=squared_error", "--metric=task_nets:distance")
    result = json.loads(compress(run, "net", *task, "--no-train", "--bits=4", "--json").out)
    assert result["test_error"] is None
    assert result["dense_test_metric"] > result["test_metric"]
    assert [stage["validation_metric"] for stage in result["stages"]][1] < result["dense_test_metric"]
    page = Path("o.html").read_text()
    assert "Test metric after compression" in page
    assert "after pruning, without retraining" in page
    assert "nan" not in page.partition("</header>")[0]
    evaluated = run("evaluate", "o.prunus", "--model=task_nets:net", *task, "--json").out
    assert json.loads(evaluated)["test_metric"] == result["test_metric"]


def test_a_regression_is_retrained_with_its_loss(run):
    task = ("--data=task_nets:regression", "--loss=squared_error")
    epochs = ("--epochs=final_retrain=3", "--epochs=finetune=1", "--rounds=1", "--epochs=dense=2")
    printed = compress(run, "net", *task, *epochs)
    assert "validation loss" in printed.out
    assert re.search(r"test  loss \d+\.\d+ before, \d+\.\d+ after compression", printed.out)
    assert "quantizing: validation loss" in printed.err
    page = Path("o.html").read_text()
    assert "Validation loss after each epoch" in page
    assert "after pruning and retraining" in page


def test_one_of_several_outputs_is_compressed(run):
    arguments = ("--data=task_nets:noise", "--exclude=a.*", "--no-train", "--bits=3")
    assert "Expected Two to return a tensor" in compress(run, "Two", *arguments, code=4).err.replace(
        "\n", " "
    )
    assert not Path("o.prunus").exists()
    result = json.loads(compress(run, "Two", *arguments, "--forward=task_nets:second", "--json").out)
    assert 0 < result["test_error"] < 100


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data=task_nets:regression",), 5, "Expected int64 labels"),
        (("--data=task_nets:noise", "--metric=task_nets:missing"), 2, "missing"),
        (("--data=task_nets:noise", "--loss=mse"), 2, "Unknown loss 'mse'"),
        (("--data=task_nets:noise", "--loss=task_nets:second"), 5, "loss(outputs, batch) failed"),
    ],
)
def test_a_task_that_cannot_be_compressed_is_refused_before_the_work(arguments, code, message, run):
    assert message in " ".join(compress(run, "net", *arguments, code=code).err.split())
    assert not Path("o.prunus").exists()


def test_the_training_before_pruning_has_the_loss_and_the_forward_of_the_options(run):
    common = ("--density=0.5", "--out=o.safetensors", "--force")
    own = ("--data=task_nets:regression", "--loss=squared_error", "--metric=task_nets:distance", "--json")
    trained = json.loads(run("prune", "task_nets:regression_net", *own, *common).out)
    untrained = json.loads(run("prune", "task_nets:regression_net", *own, *common, "--no-train").out)
    assert trained["dense_test_metric"] > untrained["dense_test_metric"]
    printed = run("prune", "task_nets:Two", "--data=task_nets:noise", "--forward=task_nets:second", *common)
    assert "trained first" in printed.err
