"""The fraction of zeros in the inputs of layers."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import prunus
from prunus.errors import StatisticsError


class Shared(nn.Module):
    """A layer that is called twice, a layer that is not called, and another output of a ReLU that pools."""

    def __init__(self):
        super().__init__()
        self.conv, self.shared, self.unused = nn.Conv2d(1, 2, 3), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, images):
        x = self.conv(images).relu().amax((2, 3))
        return self.shared(input=self.shared(x) * 0)


def test_zeros_are_counted_where_a_layer_reads_its_inputs():
    model, images = Shared().train(), torch.rand(7, 1, 6, 6)
    images[images < 0.5] = 0
    zeros = prunus.activation_zeros(model, images, batch_size=3)
    first = model.conv(images).relu().amax((2, 3))
    assert list(zeros) == ["conv", "shared"]
    assert zeros["conv"] == pytest.approx(float((images == 0).double().mean()))
    assert zeros["shared"] == pytest.approx((int((first == 0).sum()) + 14) / 28)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_layers_that_compute_their_weights_have_their_own_names():
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), prune.identity(nn.Linear(2, 1), "weight")
    )
    assert list(prunus.activation_zeros(model, torch.ones(5, 2))) == ["0", "1"]


def test_a_call_without_examples_does_not_count():
    """As of an expert that no token is sent to."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return torch.cat([self.first(x), self.other(x[:0])])

    assert prunus.activation_zeros(Experts(), torch.ones(5, 2)) == {"first": 0.0}


def test_layers_of_a_compiled_model_have_the_names_of_the_original():
    model = torch.compile(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), backend="eager")
    assert list(prunus.activation_zeros(model, torch.ones(5, 2))) == ["0", "1"]


def test_dropout_is_not_counted():
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 1)).train()
    assert prunus.activation_zeros(model, torch.ones(5, 4)) == {"1": 0.0}


def test_a_model_without_layers_has_no_fractions():
    assert prunus.activation_zeros(nn.ReLU(), torch.ones(5, 4)) == {}


def test_hooks_are_removed_after_an_error():
    model = nn.Sequential(nn.Linear(4, 1))
    with pytest.raises(StatisticsError, match="at least one example"):
        prunus.activation_zeros(model, torch.ones(0, 4))
    assert not model[0]._forward_pre_hooks
