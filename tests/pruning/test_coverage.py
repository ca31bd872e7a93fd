"""What is not pruned is named with the reason, and all parameters are accounted for."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import prunus
from prunus.errors import ModelError, NoPrunableWeightsError, NotPrunedWarning, TiedWeightsError
from prunus.pruning.prunable import coverage, describe_skipped, prunable_weights, skipped_parameters


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(1, 1, 3))


class Standardized(nn.Module):
    def forward(self, weight):
        return weight - weight.mean()


def parametrized():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Standardized())
    return layer


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (lambda: nn.Embedding(3, 3), "weight", "weight of Embedding, pruned only where its name is included"),
        (Raw, "matrix", "parameter of Raw, pruned only where its name is included"),
        (
            parametrized,
            "parametrizations.weight.original",
            "'weight' is computed by the parametrization Standardized, which does not keep zeros",
        ),
        (
            lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
            "parametrizations.weight.original",
            "by the parametrization Orthogonal, which does not keep zeros",
        ),
    ],
)
def test_matrices_that_are_not_pruned_are_named(make, name, reason):
    model = nn.Sequential(make(), nn.Linear(2, 2, bias=False))
    name = f"0.{name}"
    with pytest.warns(NotPrunedWarning, match=name.replace(".", r"\.")) as warned:
        prunable = prunable_weights(model)
    assert len(warned) == 1
    total = sum(p.numel() for p in model.parameters())
    size = model.get_parameter(name).numel()
    assert f"{100 * size / total:.1f} % of its {total:,} parameters" in str(warned[0].message)
    skipped = skipped_parameters(model)
    assert reason in skipped[name]
    # Every parameter is either prunable or has a reason.
    assert prunable.keys() | skipped.keys() == dict(model.named_parameters()).keys()
    assert not prunable.keys() & skipped.keys()
    # What is excluded is not warned of; by the name of the weight where it is computed.
    pattern = "0.weight" if "computed" in reason else "0.*"
    assert list(prunable_weights(model, exclude=[pattern])) == ["1.weight"]


def test_reasons_of_biases_norms_and_patterns():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)
    )
    assert skipped_parameters(model, ["0.weight", "2.weight"], ["2.*"]) == {
        "0.bias": "bias",
        "1.weight": "scale of BatchNorm2d",
        "1.bias": "bias of BatchNorm2d",
        "2.weight": "excluded",
        "2.bias": "bias",
        "3.weight": "scale of LayerNorm",
        "3.bias": "bias of LayerNorm",
        "4.weight": "not included",
        "4.bias": "bias",
    }


def test_fraction_counts_each_parameter_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    skipped = skipped_parameters(model)
    assert coverage(model, skipped) == {"parameters": 26, "not_pruned": 11, "reasons": skipped}
    assert describe_skipped(model, skipped).startswith(
        "42.3 % of all parameters (11 of 26) were not pruned: "
    )


def test_frozen_weights_that_a_method_left_out_are_named():
    model = nn.Sequential(nn.Linear(2, 2, bias=False).requires_grad_(False), nn.Linear(2, 2, bias=False))
    assert list(prunable_weights(model)) == ["0.weight", "1.weight"]
    assert skipped_parameters(model, pruned=["1.weight"]) == {"0.weight": "frozen: requires_grad=False"}


def test_result_of_deep_compression_names_what_was_not_pruned():
    torch.manual_seed(0)
    x, y = torch.randn(40, 4), torch.randint(0, 2, (40,))
    split = prunus.Split(x, y)
    data = prunus.Dataset("toy", split, split, split, ("a", "b"))
    short = prunus.Recipe(epochs=1, learning_rate=1e-3, batch_size=20)
    recipe = prunus.COMPRESSION_RECIPES["default"].replace(
        density=0.5,
        scope="layer",
        bits=2,
        rounds=1,
        schedule="one_shot",
        retrain=short,
        final_retrain=short,
        finetune=short,
    )
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    done = prunus.compress(model, data=data, preset=recipe, exclude=["2.weight"])
    assert done.skipped == {"0.bias": "bias", "2.weight": "excluded", "2.bias": "bias", "4.bias": "bias"}


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_no_real_numbers_are_left_out(dtype):
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.full((2, 2), -128).to(dtype), requires_grad=False)
    with pytest.warns(NotPrunedWarning, match=f"weight of type {str(dtype).split('.')[1]}"):
        assert list(prunable_weights(nn.Sequential(layer, nn.Linear(2, 2)))) == ["1.weight"]


def test_pattern_that_matches_no_prunable_weight_is_refused_with_reasons():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    with pytest.raises(ModelError, match=r"matches none of the prunable.*0\.weight.*scale of BatchNorm1d"):
        prunable_weights(model, include=["0.*"])
    with pytest.raises(ModelError, match=r"'lsmt\.\*' matches none"):
        prunable_weights(model, exclude=["lsmt.*"])


def test_model_without_prunable_weights_is_refused_with_reasons():
    with pytest.raises(NoPrunableWeightsError, match=r"0\.weight: weight of Embedding, pruned only where"):
        prunable_weights(nn.Sequential(nn.Embedding(3, 3)))


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_layers_without_values_are_refused_with_advice():
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))
    with pytest.raises(ModelError, match=r"lazy|batch"):
        prunable_weights(lazy)
    meta = nn.Linear(2, 2, device="meta")
    with pytest.raises(ModelError, match=r"'weight'.*meta device"):
        prunable_weights(meta)


# --- shared memory ----------------------------------------------------------------------------------------------


def same_data(model):
    model[2].weight.data = model[0].weight.data


def transposed(model):
    model[2].weight = nn.Parameter(model[0].weight.detach().T)


def slices(model):
    flat = torch.randn(20)
    model[0].weight.data, model[2].weight.data = flat[:9].view(3, 3), flat[6:15].view(3, 3)


@pytest.mark.parametrize("tie", [same_data, transposed, slices])
def test_weights_that_share_memory_are_refused_and_excluded_together(tie):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))
    tie(model)
    with pytest.raises(
        TiedWeightsError, match=r"'0\.weight' shares memory with '2\.weight'.*exclude '0\.weight'"
    ):
        prunable_weights(model)
    for name, other in (("0.weight", "2.weight"), ("2.weight", "0.weight")):
        assert list(prunable_weights(model, exclude=[name])) == ["3.weight"]
        skipped = skipped_parameters(model, exclude=[name])
        assert (skipped[name], skipped[other]) == ("excluded", f"same tensor as {name!r}, which is excluded")


def test_layer_used_twice_is_excluded_by_either_name():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3, 1))
    for name in ("0.weight", "2.weight"):
        assert list(prunable_weights(model, exclude=[name])) == ["3.weight"]


def test_buffer_that_shares_memory_with_a_weight_is_refused():
    model = nn.Linear(3, 3)
    model.register_buffer("average", model.weight.data)
    with pytest.raises(TiedWeightsError, match="'weight' shares memory with 'average'"):
        prunable_weights(model)


def test_parts_of_one_storage_that_do_not_overlap_are_not_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    storage = torch.randn(3, 6)
    model[0].weight.data, model[1].weight.data = storage[:, :3], storage[:, 3:]
    assert list(prunable_weights(model)) == ["0.weight", "1.weight"]


@pytest.mark.parametrize("lazy", [nn.LazyBatchNorm1d, lambda: nn.LazyLinear(3)])
def test_what_has_no_shape_yet_counts_no_parameters(lazy):
    model = nn.Sequential(nn.Linear(4, 4), lazy())
    skipped = skipped_parameters(model, exclude=["1.*"])
    assert "(4 of 20) were not pruned" in describe_skipped(model, skipped)
    assert coverage(model, skipped)["parameters"] == 20
