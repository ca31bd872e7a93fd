"""What a method or a pattern cannot prune is left out by name, or refused where the call is strict."""

import pytest
import torch
from tiny_networks import TiedEmbedding
from torch import nn

import prunus
from prunus.errors import DensityError, ModelError, NotPrunedWarning


def images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    return model, (torch.randn(20, 3, 5, 5), torch.zeros(20, dtype=torch.int64))


@pytest.mark.parametrize("criterion", ["magnitude", "obs", "sparse_gpt"])
@pytest.mark.parametrize("scope", ["2:4", "1x4"])
def test_layer_that_a_pattern_does_not_fit_is_left_out_by_name(criterion, scope):
    model, data = images()
    first = model[0].weight.detach().clone()
    with pytest.warns(NotPrunedWarning, match=rf"0\.weight \(the pattern {scope} does not fit 3 inputs"):
        pruned = prunus.prune(model, 0.5, criterion=criterion, scope=scope, calibration=data)
    assert list(pruned.masks) == ["2.weight", "4.weight"]
    assert torch.equal(model[0].weight, first)
    assert pruned.skipped["0.weight"] == f"the pattern {scope} does not fit 3 inputs"
    assert "0.weight (the pattern" in str(pruned.report)
    assert pruned.report.to_json()["coverage"]["reasons"] == pruned.skipped
    with pytest.raises(DensityError, match=r"multiple of 4 inputs in '0\.weight'.*got 3"):
        prunus.prune(model, 0.5, criterion=criterion, scope=scope, calibration=data, strict=True)


def test_error_is_of_the_method_where_the_name_of_the_scope_is_a_word_of_the_reason():
    def known(scores, density, within, seed):
        return {name: score > 0 for name, score in scores.items()}

    model, data = nn.Sequential(nn.Embedding(10, 4), nn.Flatten()), (torch.arange(10), torch.arange(10) % 4)
    with pytest.raises(ModelError, match="is not known to this method"):
        prunus.prune(model, 0.5, criterion="obs", scope=known, calibration=data, include=["*", "0.weight"])


def test_tied_weight_is_pruned_once_and_left_out_where_layers_are_pruned_by_their_outputs():
    torch.manual_seed(0)
    model, data = TiedEmbedding(), (torch.arange(10), torch.arange(10))
    pruned = prunus.prune(model, 0.5)
    assert list(pruned.masks) == ["embed.weight", "hidden.weight"]
    assert model.decode.weight is model.embed.weight
    assert int(model.embed.weight.count_nonzero()) == 40
    with pytest.warns(NotPrunedWarning, match=r"embed\.weight \(its tensor is used by several layers"):
        pruned = prunus.prune(TiedEmbedding(), 0.5, criterion="obs", calibration=data)
    assert list(pruned.masks) == ["hidden.weight"]
    with pytest.raises(ModelError, match="as magnitude"):
        prunus.prune(TiedEmbedding(), 0.5, criterion="obs", calibration=data, strict=True)


def test_nothing_left_is_refused():
    with pytest.raises(DensityError, match=r"scope '2:4', got weight \(the pattern 2:4 does not fit 3"):
        prunus.prune(nn.Linear(3, 4), 0.5, scope="2:4")
    with pytest.raises(ModelError, match=r"got weight \(the output error of Bilinear is not known"):
        prunus.prune(
            nn.Bilinear(3, 4, 2), 0.5, criterion="obs", calibration=(torch.ones(2, 3), torch.zeros(2))
        )


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8, proj_size=4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_recurrent_layer_with_projections_is_pruned_by_its_weights_alone():
    torch.manual_seed(0)
    data = torch.randn(20, 5, 8), torch.zeros(20, dtype=torch.int64)
    names = ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hr_l0", "head.weight"]
    for scope in ("layer", "2:4"):
        assert list(prunus.prune(Projected(), 0.5, scope=scope).masks) == names
    with pytest.warns(
        NotPrunedWarning, match=r"output error of LSTM is not known.*as magnitude, can prune them"
    ):
        pruned = prunus.prune(Projected(), 0.5, criterion="obs", calibration=data)
    assert list(pruned.masks) == ["head.weight"]
    assert not pruned.skipped.keys() - {name for name, _ in Projected().named_parameters()}
