"""Which weights are prunable: by layer type, by pattern, never a tied one in silence."""

import pytest
import torch
from torch import nn

from prunus import models
from prunus.errors import ModelError, NoPrunableWeightsError, NotPrunedWarning
from prunus.models import MODELS
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.weight_layers import layer_kinds

PUBLISHED = {
    "lenet-300-100": (266_610, 266_200),
    "lenet-5": (431_080, 430_500),
    "conv-2": (4_301_642, 4_300_992),
    "conv-4": (2_425_930, 2_425_024),
    "conv-6": (2_262_602, 2_261_184),
    "resnet-20": (269_722, 268_336),
    "resnet-32": (464_154, 461_872),
    "resnet-44": (658_586, 655_408),
    "resnet-56": (853_018, 848_944),
    "resnet-110": (1_727_962, 1_719_856),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    model = MODELS[name]()
    weights = sum(weight.numel() for weight in prunable_weights(model).values())
    assert (sum(p.numel() for p in model.parameters()), weights) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_model_is_a_function_of_its_seed(name):
    first, same, other = (MODELS[name](seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[n], same[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_glorot_normal_has_its_variance():
    weight = models.lenet_300_100().fc1.weight.detach()
    assert float(weight.var()) == pytest.approx(2 / (784 + 300), rel=0.02)


def test_biases_and_norms_are_not_prunable():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.Embedding(5, 2)
    )
    assert layer_kinds(model) == {"0.weight": "conv", "3.weight": "linear"}
    assert list(prunable_weights(model, exclude=["4.*"])) == ["0.weight", "3.weight"]


def test_include_and_exclude_select_by_pattern():
    model = models.lenet_5()
    assert list(prunable_weights(model, include=["conv*"])) == ["conv1.weight", "conv2.weight"]
    assert list(prunable_weights(model, exclude=["conv*", "fc2.weight"])) == ["fc1.weight"]
    with pytest.raises(ModelError, match="'cnv\\*' matches none"):
        prunable_weights(model, include=["cnv*"])


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), nn.BatchNorm1d(3)], ids=str)
def test_nothing_to_prune_is_an_error(model):
    with pytest.raises(NoPrunableWeightsError, match=type(model).__name__):
        prunable_weights(model)


def test_empty_layer_has_nothing_to_prune():
    with pytest.warns(UserWarning, match="zero-element"):
        model = nn.Linear(0, 3)
    with pytest.raises(NoPrunableWeightsError, match="Linear"):
        prunable_weights(model)


def test_tied_weights_are_pruned_once_under_the_first_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))
    model[2].weight = model[0].weight
    assert list(prunable_weights(model)) == ["0.weight", "3.weight"]
    assert list(prunable_weights(model, include=["2.weight"])) == ["0.weight"]
    assert list(prunable_weights(model, exclude=["2.weight"])) == ["3.weight"]


def test_layer_used_twice_is_pruned_once():
    inner = nn.Linear(3, 3)
    assert list(prunable_weights(nn.Sequential(inner, nn.ReLU(), inner))) == ["0.weight"]


def test_embedding_that_is_the_weight_of_a_layer_is_prunable():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    assert list(prunable_weights(model)) == ["0.weight"]


@pytest.mark.filterwarnings("ignore::prunus.errors.NotPrunedWarning")
@pytest.mark.parametrize(
    ("include", "names"),
    [
        (["*"], ["1.weight"]),
        (["*", "0.weight"], ["0.weight", "1.weight"]),
        (["0.*"], ["0.weight"]),  # a matrix
        (["2.*"], None),  # a scale and a bias
        (["2.weight"], ["2.weight"]),
        (["1.bias", "3"], ["1.bias", "3"]),
    ],
)
def test_patterns_include_matrices_and_exact_names_any_parameter(include, names):
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2), nn.LayerNorm(2))
    model.register_parameter("3", nn.Parameter(torch.ones(2, 2)))
    if names is None:
        with pytest.raises(ModelError, match=r"2\.weight \(scale of LayerNorm\); 2\.bias"):
            prunable_weights(model, include=include)
    else:
        assert sorted(prunable_weights(model, include=include)) == sorted(names)


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        ),
        (nn.LSTM(3, 4, proj_size=2), ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
        (nn.GRUCell(3, 4), ["weight_ih", "weight_hh"]),
        (nn.ConvTranspose3d(3, 4, 2), ["weight"]),
    ],
)
def test_all_matrices_of_a_layer_are_prunable(layer, names):
    assert list(prunable_weights(layer)) == names


def test_conv1d_of_transformers_is_a_linear_layer():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    assert layer_kinds(nn.Sequential(pytorch_utils.Conv1D(4, 3))) == {"0.weight": "linear"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_and_quantized_modules_are_refused_with_advice():
    with pytest.raises(ModelError, match=r"RecursiveScriptModule.*prune the module that it was made from"):
        prunable_weights(torch.jit.script(nn.Linear(2, 2)))
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(NoPrunableWeightsError, match=r"'0'.*packed integers; prune the model first"):
        prunable_weights(quantized)


def test_excluded_lazy_layer_has_no_share_of_the_parameters():
    model = nn.Sequential(nn.Embedding(3, 4), nn.LazyLinear(5), nn.Linear(4, 2))
    with pytest.warns(NotPrunedWarning, match=r"54.5 % of its 22 parameters: 0\.weight"):
        assert list(prunable_weights(model, exclude=["1.*"])) == ["2.weight"]


def test_weight_whose_entries_overlap_in_memory_is_left_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3))
    model[0].weight = nn.Parameter(torch.arange(1.0, 5.0).as_strided((3, 2), (1, 1)))
    model[1].weight = nn.Parameter(torch.rand(2, 3).T)
    with pytest.warns(NotPrunedWarning, match="several of its entries share one place in memory"):
        assert list(prunable_weights(model)) == ["1.weight", "2.weight"]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_weight_of_another_layout_is_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.eye(2).to_sparse())
    model[1].weight = nn.Parameter(torch.eye(2).to_sparse_csr())
    with pytest.warns(
        NotPrunedWarning, match=r"0\.weight \(weight of layout sparse_coo.*sparse_csr, not supp"
    ):
        assert list(prunable_weights(model)) == ["2.weight"]
