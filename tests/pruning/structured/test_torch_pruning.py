"""Channels of the built-in networks beside the groups of Torch-Pruning, where it is installed, and removed."""

import random

import pytest
import torch
from channel_checks import check_channels, covered_fraction, exact_channels
from torch import nn

from prunus.models import MODELS
from prunus.pruning.structured.analysis import analyze

SAMPLES = 200
SIZES = {"resnet-50": 64, "vgg-16-bn": 32, "densenet-121": 64, "mobilenet-v2": 64, "vit-small": 224}
"""Of the images of the smaller networks whose channels are removed."""


def our_entries(group, channel, model):
    """The entries (tensor, dimension, index) of Linear, convolution and BatchNorm weights of one channel."""
    weights = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d)
    }
    return {
        (member.name, member.dim, index)
        for member in group.members
        if member.name in weights
        for index in member.indices[channel].tolist()
    }


def their_entries(group, names):
    """The same of a group of Torch-Pruning."""
    entries = set()
    for dependency, indices in group:
        module, handler = dependency.target.module, dependency.handler.__name__
        if module in names:
            # a depthwise convolution has one input per filter, in dimension 1
            is_input = "in_channels" in handler and getattr(module, "groups", 1) == 1
            dim = int(is_input and not isinstance(module, nn.BatchNorm2d))
            entries |= {(f"{names[module]}.weight", dim, index) for index in indices}
    return entries


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet-50", "vgg-16-bn", "densenet-121", "mobilenet-v2"])
def test_sampled_channels_are_coupled_as_torch_pruning_couples_them(name):
    tp = pytest.importorskip("torch_pruning")
    model, x = (
        MODELS[name]().eval(),
        torch.zeros(1, 3, 224, 224) if name != "vgg-16-bn" else torch.zeros(1, 3, 32, 32),
    )
    names = {module: path for path, module in model.named_modules()}
    groups = {
        (m.name, m.dim): group for group in analyze(model, x).groups for m in group.members if m.dim == 0
    }
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and (f"{names[module]}.weight", 0) in groups
    ]
    random.seed(0)
    for _ in range(SAMPLES):
        layer = random.choice(layers)
        group = groups[f"{names[layer]}.weight", 0]
        member = next(m for m in group.members if (m.name, m.dim) == (f"{names[layer]}.weight", 0))
        channel = random.randrange(group.channels)
        theirs = graph.get_pruning_group(
            layer, tp.prune_conv_out_channels, idxs=member.indices[channel].tolist()
        )
        assert our_entries(group, channel, model) == their_entries(theirs, names), names[layer]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_sampled_channels_of_narrow_networks_are_right(name):
    torch.manual_seed(0)
    x = torch.randn(1, 3, SIZES[name], SIZES[name])
    model = MODELS[name](width=0.25).eval()
    analysis = analyze(model, x)
    samples = SAMPLES if name == "vit-small" else 50  # Torch-Pruning confirms the others
    check_channels(model, analysis, random.Random(0).sample(exact_channels(analysis), samples))


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_groups_cover_the_weights_of_all_layers(name):
    model = MODELS[name]().eval()
    analysis = analyze(model, torch.zeros(1, 3, SIZES[name], SIZES[name]))
    assert covered_fraction(model, analysis) >= (0.96 if name == "vit-small" else 1)
