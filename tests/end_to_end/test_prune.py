"""The command `prunus prune`: the file, the table of the layers, and errors in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, load_model, save_file, save_model

import prunus
from prunus.models.safetensors_file import safetensors_bytes
from prunus.pruning.methods import METHODS
from prunus.training import Recipe, evaluate, train

OWN = """
import torch
from torch import nn
from prunus import Dataset, Split, load_data

def net():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10)
    )

class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(64, 10), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x.flatten(1))

def spare():
    return Spare()

class Zero(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.zero = nn.Linear(64, 10), nn.Linear(64, 10)
        nn.init.zeros_(self.zero.weight)

    def forward(self, x):
        return self.used(x.flatten(1)) + self.zero(x.flatten(1))

def zero():
    return Zero()

def large():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 64, bias=False), nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x.flatten(1))).relu())[:, :10]

class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("edges", torch.zeros(2).to_sparse())

    def forward(self, x):
        return self.layer(x.flatten(1))

def few():
    return load_data("digits").take(300, 150)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a module of networks, and trained weights of one of them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "prune_nets.py").write_text(OWN)
    names: dict = {}
    exec(OWN, names)
    torch.manual_seed(0)
    model = names["net"]()
    train(model, names["few"](), Recipe(8, 0.01, 25), seed=0)
    save_file(model.state_dict(), folder / "own.safetensors")
    return folder


@pytest.fixture
def run(run_cli, monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return run_cli


OURS = (
    "prune",
    "prune_nets:net",
    "--weights=own.safetensors",
    "--data=prune_nets:few",
    "--calibration-examples=200",
)
GRADIENTS = ["snip", "gradient", "grasp", "synflow"]
CRITERIA = ["magnitude", "random", *GRADIENTS, *(name for name in METHODS if name != "obd")]


def own_model(folder, path):
    names: dict = {}
    exec(OWN, names)
    model = names["net"]()
    model.load_state_dict(load_file(path))
    return model, names["few"]()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_writes_the_network_that_the_table_describes(criterion, run, folder, tmp_path):
    out = tmp_path / "out.safetensors"
    printed = json.loads(run(*OURS, "--criterion", criterion, "--density=0.5", "--out", out, "--json").out)
    model, data = own_model(folder, out)
    assert printed["test_error"] == evaluate(model, data.test).error
    dense, _ = own_model(folder, folder / "own.safetensors")
    assert printed["dense_test_error"] == evaluate(dense, data.test).error
    assert [layer["name"] for layer in printed["layers"]] == ["1.weight", "4.weight"]
    for layer in printed["layers"]:
        weight = load_file(out)[layer["name"]]
        assert layer["shape"] == list(weight.shape)
        assert layer["density"] == pytest.approx(float((weight != 0).double().mean()))
        assert layer["error_updated"] > 0
        if criterion not in METHODS or criterion == "obd_hutchinson":
            assert layer["error_updated"] == layer["error_zeroed"]
    assert torch.equal(load_file(out)["1.bias"], load_file(folder / "own.safetensors")["1.bias"])


def test_obs_with_a_pattern_beats_magnitude_with_it(run, tmp_path):
    reports = {}
    for criterion in ("magnitude", "obs", "sparse_gpt"):
        out = tmp_path / f"{criterion}.safetensors"
        printed = run(*OURS, "--criterion", criterion, "--density=0.5", "--scope=2:4", "--out", out, "--json")
        reports[criterion] = json.loads(printed.out)
        for name in ("1.weight", "4.weight"):
            groups = (load_file(out)[name] != 0).unflatten(1, (-1, 4)).sum(-1)
            assert groups.unique().tolist() == [2]
    for layer, rival in zip(reports["obs"]["layers"], reports["magnitude"]["layers"], strict=True):
        assert layer["error_updated"] < rival["error_updated"]
        assert layer["error_updated"] < layer["error_zeroed"]
        assert layer["seconds"] > 0
    assert reports["obs"]["damping"] > 0


def test_error_curves_give_layers_different_densities(run, tmp_path):
    out = tmp_path / "out.safetensors"
    printed = json.loads(
        run(*OURS, "--criterion=obs", "--density=0.4", "--densities=error-curves", "--out", out, "--json").out
    )
    assert printed["density"] <= 0.4
    assert printed["density"] == pytest.approx(0.4, abs=0.01)
    assert len({layer["density"] for layer in printed["layers"]}) == 2


def test_recalibration_changes_statistics_alone(run, tmp_path):
    plain, again = tmp_path / "plain.safetensors", tmp_path / "again.safetensors"
    run(*OURS, "--density=0.3", "--out", plain)
    printed = run(*OURS, "--density=0.3", "--out", again, "--recalibrate")
    assert "BatchNorm layers recalibrated: 1\n" in printed.out
    first, other = load_file(plain), load_file(again)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert changed == {"2.running_mean", "2.running_var", "2.num_batches_tracked"}


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_density_one_prunes_nothing_with_a_warning(criterion, run, folder, tmp_path):
    out = tmp_path / "out.safetensors"
    assert (
        "warning: Every weight is kept, so nothing is pruned."
        in run(*OURS, "--criterion", criterion, "--density=1", "--out", out).err
    )
    before, after = load_file(folder / "own.safetensors"), load_file(out)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert "warning" not in run(*OURS, "--criterion", criterion, "--density=0.9", "--out", out, "--force").err


def test_command_prints_one_row_per_layer_and_the_file(run, tmp_path):
    out = tmp_path / "out.prunus"
    printed = run(*OURS, "--criterion=sparse_gpt", "--density=0.5", "--out", out).out
    assert all(word in printed for word in ("1.weight", "12 × 64", "50.00 % (50.00 %)", "error, updated"))
    assert "error before pruning" in printed
    assert str(out) in printed
    assert set(prunus.read(out)) >= {"1.weight", "2.running_mean"}


def test_file_of_a_built_in_model_is_pruned_without_naming_its_data(run, tmp_path, monkeypatch):
    model = prunus.models.lenet_300_100(seed=0)
    monkeypatch.chdir(tmp_path)
    prunus.save(model, "mine.prunus")  # the file says what model it is, whatever its name
    run("prune", "mine.prunus", "--density=0.5", "--calibration-examples=50")
    assert (load_file("mine-pruned.safetensors")["fc1.weight"] != 0).double().mean() == 0.5
    prunus.save(torch.nn.Linear(2, 2), "own.prunus")
    printed = run("prune", "own.prunus", "--density=0.5", code=4)
    assert "own.prunus, which names none; pass package.module:function" in " ".join(printed.err.split())


def test_tied_weight_is_written_once_and_read_back(run, folder, tmp_path):
    names: dict = {}
    exec(OWN, names)
    model = names["Tied"]()
    save_model(model, folder / "tied.safetensors")
    job = ("prune", "prune_nets:Tied", "--data=prune_nets:few", "--exclude=a.weight", "--exclude=c.weight")
    run(*job, "--weights=tied.safetensors", "--density=0.5", "--out", tmp_path / "half.safetensors")
    with safe_open(tmp_path / "half.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["a.weight", "b.bias", "b.weight"]
        assert file.metadata() == {"c.weight": "a.weight", "format": "pt"}
    load_model(names["Tied"](), tmp_path / "half.safetensors")  # as safetensors itself reads it
    run(
        *job,
        "--weights",
        tmp_path / "half.safetensors",
        "--density=0.25",
        "--out",
        tmp_path / "q.safetensors",
    )
    quarter = load_file(tmp_path / "q.safetensors")
    assert torch.equal(quarter["a.weight"], model.a.weight)
    assert int((quarter["b.weight"] != 0).sum()) == 64 * 64 // 4


def test_tensors_that_share_a_part_of_their_memory_are_written_whole():
    base = torch.arange(6.0)
    content = safetensors_bytes({"a": base, "b": base[:3], "c": base.reshape(2, 3), "d": base, "e": base[:0]})
    state = load_bytes(content)
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        "a": [0, 1, 2, 3, 4, 5], "b": [0, 1, 2], "c": [[0, 1, 2], [3, 4, 5]], "e": [],
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["safetensors", "prunus"])
def test_tensor_that_the_file_cannot_contain_is_refused_before_training(suffix, run, tmp_path):
    out = tmp_path / f"m.{suffix}"
    code = 4 if suffix == "safetensors" else 7
    printed = run(
        "prune", "prune_nets:Sparse", "--data=prune_nets:few", "--density=0.5", "--out", out, code=code
    )
    assert "epoch" not in printed.err
    assert not out.exists()


def test_layer_with_zero_output_has_no_error_and_the_file_is_written(run, folder, tmp_path):
    names: dict = {}
    exec(OWN, names)
    save_file(names["zero"]().state_dict(), folder / "zero.safetensors")
    out = tmp_path / "zero-pruned.safetensors"
    arguments = (
        "prune",
        "prune_nets:zero",
        "--weights=zero.safetensors",
        "--data=prune_nets:few",
        "--density=0.5",
    )
    content = json.loads(run(*arguments, "--out", out, "--json").out)
    errors = {layer["name"]: layer["error_updated"] for layer in content["layers"]}
    assert errors["zero.weight"] is None
    assert errors["used.weight"] > 0
    assert int(load_file(out)["used.weight"].count_nonzero()) == 320


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--criterion=obs", "--scope=2:4", "--steps=2"), 5, "2 steps pass through other densities"),
        (("--criterion=sparse_gpt", "--damping=-1"), 5, "Expected a damping"),
        (("--criterion=fisher", "--damping=0"), 5, "Expected a damping"),
        (("--criterion=full_obs",), 4, "full inverse Hessian"),
    ],
)
def test_impossible_options_are_refused_before_training(arguments, code, words, run, tmp_path):
    untrained = ("prune", "prune_nets:large", "--data=prune_nets:few", "--density=0.5")
    printed = run(*untrained, "--out", tmp_path / "x.safetensors", *arguments, code=code)
    assert words in printed.err
    assert "trained first" not in printed.err


def test_layer_that_is_not_reached_is_named_or_left_out(run, tmp_path):
    out = tmp_path / "out.safetensors"
    spare = ("prune", "prune_nets:spare", "--data=prune_nets:few", "--density=0.5", "--out", out)
    torch.manual_seed(1)
    names: dict = {}
    exec(OWN, names)
    save_file(names["spare"]().state_dict(), tmp_path / "spare.safetensors")
    spare = (*spare, "--weights", tmp_path / "spare.safetensors")
    assert "never reached" in run(*spare, "--criterion=obs", code=4).err
    assert not out.exists()
    run(*spare, "--criterion=obs", "--exclude=spare.*")
    printed = run(*spare, "--criterion=magnitude", "--force")
    assert "no error of spare.weight" in printed.err
    assert out.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--density=0.3", "--scope=2:4"), 5, "which 2:4 keeps of every layer"),
        (("--density=0",), 5, "above 0"),
        (("--density=0.5", "--criterion=nothing"), 2, "Unknown criterion"),
        (("--density=0.5", "--scope=nothing"), 2, "Unknown scope"),
        (("--density=0.5", "--damping=0.1"), 5, "nothing is inverted"),
        (("--density=0.5", "--damping=0.1", "--criterion=snip"), 5, "nothing is inverted"),
        (("--density=0.5", "--steps=3"), 5, "change nothing"),
        (("--density=0.5", "--criterion=sparse_gpt", "--steps=3"), 5, "in a single pass"),
        (("--density=0.5", "--criterion=obs", "--damping=-1"), 5, "Expected a damping"),
        (("--density=0.5", "--criterion=movement"), 5, "initial"),
        (("--density=0.5", "--exclude=nothing*"), 4, "matches none"),
        (("--density=0.5", "--out=out.bin"), 1, ".safetensors or .prunus"),
        (("--density=0.5", "--out=nowhere/out.safetensors"), 1, "cannot be written"),
    ],
)
def test_impossible_options_are_refused_in_one_sentence(arguments, code, words, run, folder):
    before = sorted(path.name for path in folder.iterdir())
    printed = run(*OURS, *arguments, code=code)
    assert words in printed.err
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        name for name in before if name != "__pycache__"
    ]


def test_data_set_must_be_named_for_a_model_that_is_not_built_in(run):
    assert "--data" in run("prune", "prune_nets:net", "--density=0.5", code=3).err


MOVED = """
import copy, torch, far, prunus
kept = far.add_device()
x, y = torch.randn(64, 12), torch.arange(64) % 3
split = prunus.Split(x, y)
pairs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
forms = {
    "dataset": prunus.Dataset("three", split, split, split, ("a", "b", "c")), "split": split, "tensor": x,
    "pair": (x, y), "dict": {"input": x}, "loader": pairs,
}
for name, calibration in forms.items():
    near = torch.nn.Linear(12, 3)
    model = copy.deepcopy(near).to("far")
    for network in (near, model):
        prunus.prune(network, 0.5, criterion="sparse_gpt", calibration=calibration)
    difference = (near.weight - torch.tensor(model.weight.tolist())).abs().max()
    print(name, model.weight.device, bool(difference < 1e-6))
"""


def test_calibration_examples_are_moved_to_the_device_of_the_model():
    """With the pretend device of `far.py`, which refuses operations on tensors of two devices."""
    done = subprocess.run(
        [sys.executable, "-c", MOVED],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    forms = ("dataset", "split", "tensor", "pair", "dict", "loader")
    assert done.stdout.splitlines() == [f"{form} far:0 True" for form in forms]
