"""What `prunus compress` prints before and after its work."""

import re

import pytest
from torch import nn

from prunus import training
from prunus.cli.compress_report import compress_and_report
from prunus.errors import NoEffectWarning


def test_frozen_weights_are_listed_and_named_in_one_warning(digits, tmp_path, capsys):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Linear(12, 10))
    model[1].weight.requires_grad_(False)
    with pytest.warns(NoEffectWarning, match="neither pruned nor quantized") as caught:
        compress_and_report(
            model, digits, "without-training", title="", out=tmp_path / "a", page=tmp_path / "b", as_json=True,
            settings={}, train=False,
        )  # fmt: skip
    assert len(caught) == 1
    assert capsys.readouterr().err.splitlines() == [
        "will prune 2.weight (10 × 12) to density 0.5, and quantize it to 4 bits",
        "not pruned: 1.weight, 1.bias, 2.bias",
    ]


def test_the_test_split_is_evaluated_by_the_requested_backend(digits, tmp_path, capsys, monkeypatch):
    def recorded(model, split, **options):
        if split is digits.test:
            backends.append(options["backend"])
        return evaluate(model, split, **options)

    backends, evaluate = [], training.evaluate
    monkeypatch.setattr("prunus.training.evaluate", recorded)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Linear(12, 10))
    compress_and_report(
        model, digits, "without-training", title="", out=tmp_path / "a", page=tmp_path / "b", as_json=True,
        settings={}, train=False, backend="dense",
    )  # fmt: skip
    assert backends == ["dense", "dense"]


def test_lines_below_the_table_can_be_read_alone(digits, tmp_path, capsys):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    compress_and_report(
        model, digits, "without-training", title="", out=tmp_path / "a", page=tmp_path / "b", as_json=False,
        settings={}, train=False,
    )  # fmt: skip
    skipped, zeros = capsys.readouterr().out.splitlines()[-3:-1]
    assert skipped == "2.4 % of all parameters (22 of 910) were not pruned: 1.bias, 3.bias (bias)."
    assert re.fullmatch(r"zero activations: \d+ % → \d+ % \(inputs of layers, mean over layers\)", zeros)
