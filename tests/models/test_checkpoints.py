"""Weights files as people have them: training checkpoints, prefixes, TorchScript, pickled modules."""

import argparse
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunus.errors import ModelError, ModelMismatchError
from prunus.models.checkpoints import match_names, read_checkpoint
from prunus.models.loading import load_weights, make_model

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def equal(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


STATE = linear(1).state_dict()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (STATE, ""),
        *(
            ({key: STATE, "epoch": 3}, f"from '{key}'")
            for key in ("state_dict", "model", "net", "model_state")
        ),
        (
            {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}}, "loss": 0.3},
            "'model_state_dict'",
        ),
        ({"model": {"state_dict": STATE}, "optimizer": {}}, "'model' → 'state_dict'"),
        ({"weights": STATE, "args": argparse.Namespace(lr=0.1), "best": np.float64(91.7)}, "'weights'"),
        *(
            ({p + n: t for n, t in STATE.items()}, f"the prefix '{p}' is stripped")
            for p in ("module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model.")
        ),
        (
            {"model": {f"module.{n}": t for n, t in STATE.items()}},
            "'model'; the prefix 'module.' is stripped",
        ),
        ({**STATE, "position_ids": torch.arange(9)}, "not in the model, and not used: position_ids"),
    ],
)
def test_checkpoint_is_recognized_and_reported(content, text, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    for wrap in (lambda model: model, nn.DataParallel, torch.compile):
        model = linear(2)
        assert text in load_weights(wrap(model), tmp_path / "w.pth")
        assert equal(model, linear(1))


def test_names_of_a_model_with_such_prefixes_are_kept():
    names = ["model.0.weight", "module.head"]
    assert match_names(names, names).change == ""
    assert match_names(["0.weight"], ["model.0.weight"]).names == {"0.weight": "model.0.weight"}
    assert match_names(["a.module.w", "b"], ["a.w", "b"]).names == {"a.module.w": "a.w", "b": "b"}
    assert match_names(["module.x", "x"], ["x", "y"]).change == ""  # both would be x


def test_extra_and_missing_names_are_shown(tmp_path):
    state = {f"module.{n}": t for n, t in STATE.items() if n != "0.bias"} | {
        "module.head.weight": torch.ones(1)
    }
    torch.save(state, tmp_path / "w.pth")
    model = linear(2)
    with pytest.raises(
        ModelMismatchError, match=r"0\.bias is missing; head\.weight is unknown \(the prefix 'module\.' is"
    ):
        load_weights(model, tmp_path / "w.pth")
    assert equal(model, linear(2))


def test_torchscript_file_is_refused_with_the_command_that_converts_it(tmp_path):
    path = tmp_path / "it's scripted.pt"
    torch.jit.script(linear(1).eval()).save(path)
    with pytest.raises(
        ModelError, match="is a TorchScript file, a compiled model; convert it with: python"
    ) as refused:
        load_weights(linear(2), path)
    run_conversion(refused.value, tmp_path)


def test_pickled_module_is_refused_with_the_command_that_converts_it(tmp_path):
    torch.save(linear(1), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match="convert a whole module with: python") as refused:
        load_weights(linear(2), tmp_path / "whole.pt")
    run_conversion(refused.value, tmp_path)


def run_conversion(error, folder):
    command = str(error).partition("with: python -c ")[2]
    subprocess.run(f"{sys.executable} -W ignore -c {command}", shell=True, check=True)
    (converted,) = folder.glob("*-weights.pt")
    model = linear(2)
    load_weights(model, converted)
    assert equal(model, linear(1))


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, {"a": STATE, "b": STATE}, [STATE], {"model": {"w": 3}}, {1: torch.ones(1)}]
)
def test_file_without_one_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"Expected a state_dict, tensors by name"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("kind", ["text", "truncated"])
def test_damaged_file_is_refused_in_one_sentence(name, kind, tmp_path):
    path = tmp_path / name
    save_file(STATE, path) if name.endswith("safetensors") else torch.save(STATE, path)
    path.write_bytes(b"hello" if kind == "text" else path.read_bytes()[:-40])
    with pytest.raises(
        ModelError, match=r"cannot be read as weights \(\w+: .*\); save model.state_dict"
    ) as caught:
        read_checkpoint(path)
    assert str(caught.value).count(". ") == 0


def published_names(blocks):
    """The tensors of a ResNet of 6n + 2 layers as akamaster's training script saves them, from a DataParallel."""
    shapes = {"conv1.weight": (16, 3, 3, 3), **batch_norm("bn1", 16)}
    inputs = 16
    for stage, outputs in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            path = f"layer{stage}.{block}"
            shapes |= {f"{path}.conv1.weight": (outputs, inputs, 3, 3), **batch_norm(f"{path}.bn1", outputs)}
            shapes |= {f"{path}.conv2.weight": (outputs, outputs, 3, 3), **batch_norm(f"{path}.bn2", outputs)}
            inputs = outputs
    return shapes | {"linear.weight": (10, 64), "linear.bias": (10,)}


def batch_norm(path, channels):
    return {f"{path}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")}


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (32, 5), (44, 7), (56, 9), (110, 18)])
def test_checkpoints_of_cifar_resnets_load_by_the_name_of_the_model(depth, blocks, tmp_path):
    tensors = {f"module.{name}": torch.full(shape, 0.5) for name, shape in published_names(blocks).items()}
    torch.save({"state_dict": tensors, "best_prec1": 91.0}, tmp_path / f"resnet{depth}.th")
    model = make_model(f"resnet{depth}")
    assert "'state_dict'; the prefix 'module.' is stripped" in load_weights(
        model, tmp_path / f"resnet{depth}.th"
    )
    assert model.built_in["name"] == f"resnet-{depth}"
    assert all((p == 0.5).all() for p in model.parameters())
