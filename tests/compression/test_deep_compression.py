"""Properties of Deep Compression: sizes of the stages, exact files, resuming, and named errors."""

import copy
import dataclasses
import json
import math
import re
import warnings
from contextlib import nullcontext
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.compression.accuracy_budget import Trial
from prunus.compression.checks import bits_by_name
from prunus.compression.result import STAGE_LABELS
from prunus.errors import (
    ContainerError,
    CorruptFileError,
    DensityError,
    EmptyLayerWarning,
    NoEffectWarning,
    NonFiniteError,
    NoPrunableWeightsError,
    OutputError,
    PrunusError,
    QuantizationError,
    SpecError,
    UnknownNameError,
)
from prunus.models.initialization import glorot_normal
from prunus.pruning.density import num_to_keep
from prunus.pruning.scopes import Layer
from prunus.seeds import derive_seed
from prunus.training import Recipe

SHORT = Recipe(1, 0.005, 32)
RECIPE = prunus.CompressionRecipe(
    dense=SHORT,
    density=0.2,
    schedule="iterative",
    rounds=2,
    retrain=SHORT,
    final_retrain=SHORT,
    bits=3,
    finetune=SHORT,
)


def same_bits(a: dict, b: dict) -> bool:
    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(-1).view(torch.uint8)

    return a.keys() == b.keys() and all(torch.equal(bits(a[n]), bits(b[n])) for n in a)


@pytest.fixture(scope="module")
def trained(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    glorot_normal(model, seed=0)
    prunus.train(model, digits, Recipe(8, 0.003, 32))
    return model


@pytest.fixture(scope="module")
def compressed(trained, digits):
    return prunus.compress(trained, data=digits, preset=RECIPE)


def test_compress_does_not_modify_the_model(trained, digits):
    before = copy.deepcopy(trained.state_dict())
    prunus.compress(trained, data=digits, preset=RECIPE)
    assert same_bits(before, trained.state_dict())


def test_compress_stages_decrease_in_size(compressed):
    assert tuple(stage.name for stage in compressed.stages) == tuple(STAGE_LABELS)
    sizes = [stage.bytes for stage in compressed.stages]
    *before, last = sizes
    assert before == sorted(before, reverse=True)
    assert (
        last <= before[-1] + 4
    )  # the range coder flushes a word, which a network this small may not win back
    assert sizes[0] == sum(p.numel() * 4 for p in compressed.model.parameters())


def test_compress_reaches_requested_density_and_bits(compressed):
    assert compressed.density == pytest.approx(0.2, abs=1e-3)
    for name, mask in compressed.masks.items():
        weight = compressed.model.get_parameter(name)
        assert torch.equal(weight != 0, mask)
        assert len(weight[mask].unique()) <= 8


def test_compress_rounds_biases_to_half_precision(compressed):
    for name, parameter in compressed.model.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, parameter.half().float())


def test_save_and_load_return_the_compressed_model_bit_for_bit(compressed, tmp_path, trained):
    path = tmp_path / "net.prunus"
    size = prunus.save(compressed, path)
    assert size == path.stat().st_size == prunus.inspect(path).file_bytes
    assert same_bits(prunus.read(path), compressed.model.state_dict())
    again = prunus.load(path, into=copy.deepcopy(trained))
    assert same_bits(again.state_dict(), compressed.model.state_dict())
    prunus.save(compressed, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_compress_writes_the_file_of_save_and_counts_its_bytes(trained, digits, compressed, tmp_path):
    result = prunus.compress(trained, tmp_path / "a", data=digits, preset=RECIPE)
    prunus.save(compressed, tmp_path / "b", metadata={"data": digits.name})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    inspection = prunus.inspect(tmp_path / "a")
    assert result.file_bytes == compressed.file_bytes == inspection.file_bytes
    assert result.ratio == inspection.ratio
    assert result.metadata_bytes == inspection.metadata_bytes
    assert result.file_stages[-1].bytes == result.file_bytes


def test_compress_trains_first_when_requested(trained, digits):
    untrained = copy.deepcopy(trained)
    glorot_normal(untrained, seed=3)
    recipe = RECIPE.replace(rounds=1, schedule="one_shot")
    stages = []
    result = prunus.compress(
        untrained, data=digits, preset=recipe, train_first=True, seed=5, report=lambda *e: stages.append(e[0])
    )
    dense = copy.deepcopy(untrained)
    prunus.train(dense, digits, recipe.dense, seed=derive_seed(5, "dense"))
    assert stages == ["dense", "pruned", "quantized"]
    assert same_bits(result.dense_model.state_dict(), dense.state_dict())
    again = prunus.compress(dense, data=digits, preset=recipe, seed=5)
    assert same_bits(again.model.state_dict(), result.model.state_dict())


def test_compress_raises_when_the_file_does_not_load_back(trained, small_digits, tmp_path, monkeypatch):
    other = copy.deepcopy(trained)
    monkeypatch.setattr(
        "prunus.compression.deep_compression.write_atomic", lambda path, content: prunus.save(other, path)
    )
    with pytest.raises(CorruptFileError, match=r"to hold 1\.weight bit for bit"):
        prunus.compress(trained, tmp_path / "m", data=small_digits, preset=RECIPE)


def test_compress_refuses_an_unwritable_path_before_work(trained, digits, tmp_path):
    with pytest.raises(OutputError, match="is not a folder"):
        prunus.compress(trained, tmp_path / "no" / "m", data=digits, preset=RECIPE, report=pytest.fail)


def test_compressed_prints_a_table_and_converts_to_json(compressed):
    header, *rows = str(compressed).splitlines()
    assert header.split()[:3] == ["stage", "bytes", "ratio"]
    labels = ["dense", "P", "P + Q", "P + Q + H", "P + Q + range coder"]
    assert [row.split("  ")[0] for row in rows] == labels
    assert all("× " in row for row in rows)
    assert f"{compressed.file_bytes:,}" in rows[-1]
    content = json.loads(json.dumps(compressed.to_json()))
    assert [stage["name"] for stage in content["stages"]] == list(STAGE_LABELS)
    assert content["stages"][-1]["bytes"] == content["file_bytes"] == compressed.file_bytes
    assert content["ratio"] == content["original_bytes"] / content["file_bytes"]
    last = compressed.stages[-1]
    undefined = dataclasses.replace(last, validation=dataclasses.replace(last.validation, metric=math.nan))
    other = dataclasses.replace(compressed, stages=[undefined], trials=[Trial(0.5, 4, math.nan, 9)])
    content = json.loads(json.dumps(other.to_json(), allow_nan=False))
    assert content["stages"][0]["validation_metric"] is content["trials"][0]["accuracy_drop"] is None


def test_save_accepts_any_module(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model(torch.randn(5, 3, 3, 3))  # moves the running statistics
    prunus.save(model, tmp_path / "m")
    assert same_bits(prunus.read(tmp_path / "m"), model.state_dict())


@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5", "conv-2", "conv-4", "conv-6", "resnet-20"])
def test_load_returns_built_in_models_by_name(name, tmp_path):
    model = prunus.models.MODELS[name](seed=3)
    for parameter in model.parameters():
        parameter.data.mul_(torch.rand_like(parameter) < 0.01).add_(0.0)
    prunus.save(model, tmp_path / "m")
    loaded = prunus.load(tmp_path / "m")
    assert type(loaded) is type(model)
    assert same_bits(loaded.state_dict(), model.state_dict())
    assert not loaded.training


def test_compress_resumes_bit_identically_after_an_interrupt(trained, digits, compressed, tmp_path):
    class Killed(Exception):
        pass

    calls = []

    def kill(stage, epoch):
        calls.append(stage)
        if len(calls) == 2:
            raise Killed

    with pytest.raises(Killed):
        prunus.compress(trained, data=digits, preset=RECIPE, checkpoints=tmp_path, report=kill)
    resumed = prunus.compress(trained, data=digits, preset=RECIPE, checkpoints=tmp_path)
    assert same_bits(resumed.model.state_dict(), compressed.model.state_dict())
    assert resumed.epochs == compressed.epochs  # those before the kill, too


def test_compress_does_not_use_the_test_split(trained, digits, compressed):
    blind = dataclasses.replace(digits, test=None)
    again = prunus.compress(trained, data=blind, preset=RECIPE)
    assert same_bits(again.model.state_dict(), compressed.model.state_dict())


def test_bits_by_name_accepts_kinds_and_names():
    model = prunus.models.lenet_5()
    names = list(prunus.prunable_weights(model))
    assert list(bits_by_name(model, names, {"conv": 8, "linear": 5, "fc2.weight": 6}).values()) == [
        8,
        8,
        5,
        6,
    ]
    with pytest.raises(QuantizationError, match=r"'fc1.weight', a linear weight"):
        bits_by_name(model, names, {"conv": 8})


def spoiled(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    model[1].weight.data[3, 5] = float("nan")
    return model


def test_compress_raises_named_errors_for_bad_input(trained, digits):
    cases = [
        (spoiled(trained), RECIPE, NonFiniteError, "'1.weight' holds 1 of 6400"),
        (nn.Sequential(nn.Flatten()), RECIPE, NoPrunableWeightsError, "Sequential"),
        (trained, RECIPE.replace(density=0.0), DensityError, "got 0.0"),
        (trained, RECIPE.replace(density=1.5), DensityError, "got 1.5"),
        (
            trained,
            RECIPE.replace(bits=9),
            QuantizationError,
            "1 to 8 bits for '1.weight', as an integer, got 9",
        ),
        (trained, RECIPE.replace(rounds=0), DensityError, "0 rounds"),
    ]
    for model, recipe, error, message in cases:
        with pytest.raises(error, match=message):
            prunus.compress(model, data=digits, preset=recipe)


EMPTY = [
    (RECIPE.replace(density=0.0004), "one of the 1000 weights of '3.weight', at least 0.0005, got 0.0004"),
    (
        RECIPE.replace(density={"1.weight": 7e-5, "3.weight": 0.5}),
        "one of the 6400 weights of '1.weight', at least 7.813e-05, got 7e-05",
    ),
    (
        RECIPE.replace(density=1e-6, scope="global"),
        "one of the 7400 weights of all layers together, at least 6.757e-05, got 1e-06",
    ),
    (RECIPE.replace(density=0.0004, schedule="layer_by_layer"), "one of the 1000 weights of"),
]


@pytest.mark.parametrize(("recipe", "message"), EMPTY)
def test_compress_raises_before_work_for_densities_that_keep_nothing(recipe, message, trained, digits):
    """Before the first evaluation: the data set has no splits."""
    nothing = dataclasses.replace(digits, train=None, validation=None, test=None)
    with pytest.raises(DensityError, match=message):
        prunus.compress(trained, data=nothing, preset=recipe)


@pytest.fixture(scope="module")
def wide(digits):
    """160 + 40 of the digits on a field of 28 × 28."""
    parts = (prunus.types.Split(F.pad(s.inputs[:n].reshape(-1, 1, 8, 8), (10,) * 4), s.labels[:n])
             for s, n in ((digits.train, 160), (digits.validation, 40), (digits.test, 40)))  # fmt: skip
    return prunus.types.Dataset("wide", *parts, digits.class_names)


@pytest.mark.parametrize(("scope", "density"), [("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.25), ("2x4", 0.3)])
def test_compress_keeps_the_sparsity_pattern_in_the_file(scope, density, wide, tmp_path):
    """The file gives back zeros in the pattern, whatever retraining and fine-tuning did."""
    recipe = RECIPE.replace(scope=scope, density=density, schedule="one_shot")
    exclude = ["fc2.*", "fc3.*"] if scope == "4:8" else []  # 300 and 100 inputs are not a multiple of 8
    done = prunus.compress(prunus.models.lenet_300_100(), data=wide, preset=recipe, exclude=exclude)
    prunus.save(done, tmp_path / "m")
    state = prunus.load(tmp_path / "m").state_dict()
    for name in prunus.prunable_weights(done.model, exclude=exclude):
        is_nonzero = state[name] != 0
        o, i = is_nonzero.shape
        assert not (is_nonzero & ~done.masks[name]).any()
        if ":" in scope:
            n, m = map(int, scope.split(":"))
            assert (done.masks[name].reshape(o, i // m, m).sum(-1) == n).all()
            assert (is_nonzero.reshape(o, i // m, m).sum(-1) <= n).all()
        else:
            blocks = done.masks[name].reshape(o // 2, 2, i // 4, 4).sum((1, 3))
            assert set(blocks.unique().tolist()) == {0, 8}
            assert int((blocks == 8).sum()) == num_to_keep(density, blocks.numel())


UNREACHABLE = [
    (RECIPE.replace(scope="2:4", density=0.5), r"density 0\.5 of .* 2:4 keeps .* got 0\.707107"),
    (RECIPE.replace(scope="2:4", density=0.5, schedule="cubic"), r"density 0\.5 of .* 2:4 keeps"),
    (RECIPE.replace(scope="2:4", density=0.3, schedule="one_shot"), r"density 0\.5 of .* 2:4 keeps"),
    (RECIPE.replace(scope="3:7", density=3 / 7, schedule="one_shot"), r"'1\.weight', \[100, 64\], got 64"),
    (RECIPE.replace(scope="3x4", density=0.5), r"multiple of 3 outputs in '1\.weight', \[100, 64\]"),
    (
        RECIPE.replace(scope="2x4", density=0.003),
        "one of the 125 blocks of 2x4 of '3.weight', at least 0.004, got 0.003",
    ),
]


@pytest.mark.parametrize(("recipe", "message"), UNREACHABLE)
def test_compress_raises_before_work_for_unreachable_densities(recipe, message, trained, digits):
    nothing = dataclasses.replace(digits, train=None, validation=None, test=None)
    with pytest.raises(DensityError, match=message):
        prunus.compress(trained, data=nothing, preset=recipe)


def test_compress_raises_before_work_for_an_unknown_scope(trained, digits):
    nothing = dataclasses.replace(digits, train=None, validation=None, test=None)
    with pytest.raises(UnknownNameError, match="Patterns N:M"):
        prunus.compress(trained, data=nothing, preset=RECIPE.replace(scope="filters"))


@pytest.mark.parametrize("weights", [1, 2, 3, 7, 10, 999, 1000, 6400, 266_200, 10_000_001])
def test_density_error_names_the_smallest_density_that_keeps_a_weight(weights):
    shapes = {"fc.weight": (weights,)}
    with pytest.raises(DensityError) as raised:
        Layer().check_not_empty(shapes, 1e-9)
    named = float(re.search(r"at least (\S+), got", str(raised.value))[1])
    Layer().check_not_empty(shapes, named)
    assert num_to_keep(named, weights) == 1
    assert num_to_keep(named * 0.999, weights) == 0
    with pytest.raises(DensityError):
        Layer().check_not_empty(shapes, named * 0.999)


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_compress_accepts_layers_of_equal_weights(value, digits, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 10))
    model[1].weight.data.fill_(value)
    with pytest.warns(EmptyLayerWarning) if value == 0 else nullcontext():
        compressed = prunus.compress(model, data=digits, preset=RECIPE)
    assert bool(compressed.masks["1.weight"].any()) == (value != 0)
    prunus.save(compressed, tmp_path / "m")
    assert same_bits(prunus.read(tmp_path / "m"), compressed.model.state_dict())


def test_compress_accepts_layers_of_one_weight(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Linear(1, 1, bias=False), nn.Linear(1, 10))
    with pytest.warns(prunus.errors.NoEffectWarning) as warned:
        prunus.compress(
            model,
            data=digits,
            preset=RECIPE.replace(density={"1.weight": 0.5, "2.weight": 1.0, "3.weight": 0.5}),
        )
    assert any("'2.weight' has 1 distinct" in str(w.message) for w in warned)


def test_compress_warns_when_density_one_prunes_nothing(trained, digits):
    with pytest.warns(prunus.errors.NoEffectWarning, match="nothing is pruned"):
        compressed = prunus.compress(trained, data=digits, preset=RECIPE.replace(density=1.0, rounds=1))
    assert compressed.density == 1.0


def sparse(trained: nn.Module, density: float, scope: str = "layer") -> tuple[nn.Module, dict]:
    """A copy of `trained`, pruned by magnitude, half of its zeros -0.0 as a product with a mask leaves them."""
    model = copy.deepcopy(trained)
    masks = prunus.SCOPES[scope].select(
        prunus.CRITERIA["magnitude"](prunus.Statistics(prunus.prunable_weights(model))), density
    )
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model, masks


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("criterion", ["magnitude", "random", "obs"])
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_compress_keeps_zeros_of_a_sparse_model(density, criterion, scope, trained, small_digits, tmp_path):
    model, masks = sparse(trained, 0.3)
    recipe = RECIPE.replace(density=density, scope=scope, criterion=criterion)
    with pytest.warns(NoEffectWarning, match="stay zero") if density == 1 else nullcontext():
        done = prunus.compress(model, data=small_digits, preset=recipe)
    expected = {name: num_to_keep(min(density, 0.3), mask.numel()) for name, mask in masks.items()}
    assert sum(int(mask.sum()) for mask in done.masks.values()) == sum(expected.values())
    assert done.density == sum(expected.values()) / sum(mask.numel() for mask in masks.values())
    for name, mask in masks.items():
        assert not (done.masks[name] & ~mask).any()
        assert torch.equal(done.model.get_parameter(name) != 0, done.masks[name])
        assert scope == "global" or int(done.masks[name].sum()) == expected[name]
    prunus.save(done, tmp_path / "m")
    assert same_bits(prunus.read(tmp_path / "m"), done.model.state_dict())


def test_compress_keeps_an_existing_pattern_and_raises_before_work_where_none_fits(trained, small_digits):
    model, masks = sparse(trained, 0.5, "2:4")
    recipe = RECIPE.replace(scope="2:4", density=0.5, schedule="one_shot", rounds=1)
    done = prunus.compress(model, data=small_digits, preset=recipe)
    assert all(torch.equal(done.masks[name], mask) for name, mask in masks.items())
    epochs = []
    with pytest.raises(DensityError, match="zero at the start count as pruned: exclude these layers"):
        prunus.compress(
            sparse(trained, 0.3)[0],
            data=small_digits,
            preset=recipe,
            report=lambda *epoch: epochs.append(epoch),
        )
    assert not epochs


def test_compress_counts_negative_zeros_as_zeros(trained, small_digits):
    model, masks = sparse(trained, 0.3)
    assert any(bool(torch.signbit(w[w == 0]).any()) for w in prunus.prunable_weights(model).values())
    with pytest.warns(NoEffectWarning):
        done = prunus.compress(model, data=small_digits, preset=RECIPE.replace(density=1.0, rounds=1))
    num_nonzero = sum(int(mask.sum()) for mask in masks.values())
    assert [stage.num_kept for stage in done.stages] == [num_nonzero] * len(STAGE_LABELS)
    assert all(
        sum(sum(counts) for _, counts in stage.histograms.values()) == num_nonzero for stage in done.stages
    )
    for name, weight in prunus.prunable_weights(done.model).items():
        assert not torch.signbit(weight[~done.masks[name]]).any()


@pytest.mark.parametrize("emptied", ["1.weight", "3.weight", "5.weight"])
def test_compress_stores_layers_emptied_by_the_global_scope(emptied, small_digits, tmp_path):
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)
    )
    glorot_normal(model, seed=0)
    model.get_parameter(emptied).data.mul_(1e-6)
    still = SHORT.replace(learning_rate=1e-9)
    with pytest.warns(EmptyLayerWarning, match=f"No weight of '{emptied}'"):
        done = prunus.compress(
            model,
            data=small_digits,
            preset=RECIPE.replace(scope="global", retrain=still, final_retrain=still),
        )
    assert not done.masks[emptied].any()
    assert not done.model.get_parameter(emptied).any()
    assert len(done.quantized[emptied].codebook) == 0
    prunus.save(done, tmp_path / "m")
    again = prunus.load(tmp_path / "m", into=copy.deepcopy(model))
    assert same_bits(again.state_dict(), done.model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        with pytest.warns(EmptyLayerWarning):  # and once more, from the file
            assert (
                not prunus.compress(again, data=small_digits, preset=RECIPE)
                .model.get_parameter(emptied)
                .any()
            )


def with_all_kinds() -> nn.Module:
    """FrozenWeights, excluded and other layers, and buffers, all with values that half precision does not hold."""
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )
    model.register_buffer("offset", torch.full((3,), 0.1))
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=draw)
    model[1].bias.data.fill_(2e-8)
    return model


def test_compress_leaves_excluded_and_frozen_tensors_exact(small_digits):
    model = with_all_kinds()
    model[1].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    recipe = RECIPE.replace(
        retrain=SHORT.replace(weight_decay=0.1), finetune=SHORT.replace(optimizer="adamw", weight_decay=0.1)
    )
    done = prunus.compress(model, data=small_digits, preset=recipe, exclude=["1.weight", "6.*"])
    for name in ("1.weight", "1.bias", "2.bias", "offset"):
        assert same_bits({name: done.model.state_dict()[name]}, {name: model.state_dict()[name]})
    rounded = {name: torch.equal(p, p.half().float()) for name, p in done.model.named_parameters()}
    assert rounded["2.weight"]
    assert rounded["4.bias"]
    for name in ("6.weight", "6.bias"):  # excluded, but not frozen: trained and not rounded
        assert not rounded[name]
        assert not torch.equal(done.model.get_parameter(name), model.get_parameter(name))


def test_compress_warns_of_frozen_weights(small_digits):
    model = with_all_kinds()
    model[1].requires_grad_(False)
    with pytest.warns(NoEffectWarning, match=r"\['1.weight'\] have requires_grad=False"):
        done = prunus.compress(model, data=small_digits, preset=RECIPE)
    assert list(done.masks) == ["4.weight", "6.weight"]
    assert same_bits(done.model[1].state_dict(), model[1].state_dict())
    with pytest.raises(NoPrunableWeightsError, match="none has requires_grad"):
        prunus.compress(model.requires_grad_(False), data=small_digits, preset=RECIPE)


def test_exclude_matches_any_name_of_a_tied_parameter(small_digits):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((64,), 1 / 3))
            self.body, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
            self.body.bias = self.scale

        def forward(self, x):
            return self.head(self.body(x.flatten(1) * self.scale).relu())

    done = prunus.compress(Tied(), data=small_digits, preset=RECIPE, exclude=["body.*"])
    assert not torch.equal(done.model.scale, done.model.scale.half().float())
    assert torch.equal(done.model.head.bias, done.model.head.bias.half().float())


@pytest.mark.parametrize("mode", [True, False])
def test_compressed_model_has_the_modes_and_flags_of_the_original(mode, small_digits):
    model = with_all_kinds().train(mode)
    model[2].train(not mode)
    model[2].weight.requires_grad_(False)
    flags = lambda m: (  # noqa: E731
        [module.training for module in m.modules()],
        [(p.requires_grad, p.grad) for p in m.parameters()],
    )
    before, state = flags(model), copy.deepcopy(model.state_dict())
    done = prunus.compress(model, data=small_digits, preset=RECIPE)
    assert flags(model) == flags(done.model) == before
    assert same_bits(state, model.state_dict())


def with_buffer(trained: nn.Module, buffer: torch.Tensor) -> nn.Module:
    model = copy.deepcopy(trained)
    model.register_buffer("extra", buffer)
    return model


def test_compress_raises_late_failures_before_work(trained, digits):
    """Before the data are used: the data set has no splits."""
    nothing = dataclasses.replace(digits, train=None, validation=None, test=None)
    lone = with_buffer(trained, torch.zeros(1))
    lone.get_submodule("3").register_buffer("\ud800", torch.zeros(1))
    cases = [
        (with_buffer(trained, torch.zeros(2).to_sparse()), RECIPE, ContainerError, "extra is torch.sparse"),
        (lone, RECIPE, ContainerError, "."),
        (
            trained,
            RECIPE.replace(bits={"linear": 4, "conv2d": 5}),
            QuantizationError,
            r"\['conv2d'\]; correct or remove",
        ),
        (
            trained,
            RECIPE.replace(bits={"linear": 4, "9.weight": 5}),
            QuantizationError,
            r"\['9.weight'\]; correct",
        ),
        (trained, RECIPE.replace(bits={"linear": 0}), QuantizationError, "got 0"),
        (trained, RECIPE.replace(bits=4.0), QuantizationError, "got 4.0"),
        (trained, RECIPE.replace(density={"1.weight": 0.5, "3.weight": 0.5, "x": 0.5}), DensityError, "x"),
        (trained, RECIPE.replace(kmeans_init="optimum"), UnknownNameError, "did you mean 'optimal'"),
        (trained, RECIPE.replace(criterion="magnitud"), UnknownNameError, "did you mean 'magnitude'"),
        (trained, RECIPE.replace(schedule="cubical"), UnknownNameError, "cubic"),
        (trained, RECIPE.replace(finetune=SHORT.replace(optimizer="adan")), UnknownNameError, "adam"),
        (
            trained,
            RECIPE.replace(final_retrain=SHORT.replace(lr_schedule="cosin")),
            UnknownNameError,
            "cosine",
        ),
    ]
    for model, recipe, error, message in cases:
        with pytest.raises(PrunusError) as raised:
            prunus.compress(model, data=nothing, preset=recipe)
        assert isinstance(raised.value, error), repr(raised.value)
        assert re.search(message, str(raised.value)), repr(raised.value)


def test_compress_accepts_neighboring_floats(small_digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    near = np.float32(0.25).view(np.uint32) + np.arange(640, dtype=np.uint32) % 7
    model[1].weight.data = torch.from_numpy(near.view(np.float32).reshape(10, 64).copy())
    with pytest.warns(NoEffectWarning):
        done = prunus.compress(
            model,
            data=small_digits,
            preset=RECIPE.replace(
                density=1.0,
                rounds=1,
                retrain=SHORT.replace(epochs=0),
                final_retrain=SHORT.replace(epochs=0),
                finetune=SHORT.replace(epochs=0),
            ),
        )
    assert same_bits({"w": done.model[1].weight}, {"w": model[1].weight})
    assert sum(done.stages[0].histograms["1.weight"][1]) == 640


def test_save_converts_settings_to_builtin_types(trained, small_digits, tmp_path):
    recipe = RECIPE.replace(
        density=MappingProxyType({"1.weight": np.float32(0.25), "3.weight": np.float64(0.5)})
    )
    done = prunus.compress(trained, data=small_digits, preset=recipe, seed=np.int64(3))
    prunus.save(done, tmp_path / "m")
    header = prunus.inspect(tmp_path / "m").metadata
    assert header["seed"] == 3
    assert header["recipe"]["density"] == {"1.weight": 0.25, "3.weight": 0.5}


WRONG_TYPES = [
    ({"encoding": "huffman"}, SpecError, "encoding of a compression recipe as a value of EncodingConfig"),
    ({"half_precision_biases": "no"}, SpecError, "value of bool, got 'no'"),
    ({"final_retrain": "default"}, SpecError, "value of Recipe, got 'default'"),
    ({"epochs": 3}, SpecError, "epochs by stage, such as {'final_retrain': 5}, got 3"),
    ({"learning_rate": "0.1"}, SpecError, "learning_rate to be a number, got '0.1'"),
    ({"recipe": RECIPE}, UnknownNameError, "Unknown recipe CompressionRecipe"),
    ({"kmeans_init": 3}, UnknownNameError, "initialization of k-means 3; available: linear"),
    ({"preset": ""}, UnknownNameError, "compression preset ''"),
    ({"preset": SHORT}, UnknownNameError, "compression preset Recipe"),
    ({"backend": "sparse", "fit": print}, SpecError, "got fit and backend; leave out one of them"),
]


@pytest.mark.parametrize(("settings", "error", "message"), WRONG_TYPES)
def test_settings_of_another_type_or_without_effect_are_refused(settings, error, message, trained, digits):
    with pytest.raises(error, match=message):
        prunus.compress(trained, data=digits, **settings)


def test_a_wrapped_model_is_written_with_the_names_of_the_model_inside(trained, small_digits, tmp_path):
    options = {"data": small_digits, "train": False}
    plain = prunus.compress(trained, tmp_path / "plain", **options)
    compiled = prunus.compress(torch.compile(trained, backend="eager"), tmp_path / "compiled", **options)
    prunus.compress(nn.DataParallel(trained), tmp_path / "parallel", **options)
    assert compiled.masks.keys() == plain.masks.keys()
    for name in ("compiled", "parallel"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "plain").read_bytes()


def test_fit_that_leaves_nan_is_an_error_and_no_file_is_written(trained, small_digits, tmp_path):
    def fit(model, masks):
        model[1].bias.data.fill_(math.nan)

    with pytest.raises(NonFiniteError, match=r"'1\.bias'"):
        prunus.compress(trained, tmp_path / "m", data=small_digits, fit=fit, rounds=1)
    assert not (tmp_path / "m").exists()
