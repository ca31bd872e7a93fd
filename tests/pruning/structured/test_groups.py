"""Groups: in every network, removing a channel gives the outputs of setting it to zero, or it is refused."""

import copy
import time

import pytest
import torch
from channel_checks import check_channels, exact_channels
from coupled_blocks import BLOCKS, TOKENS, conv, make
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.pruning.structured.analysis import analyze

OF_THE_MODEL = ("the tensor is an output", "the number of input channels is fixed", "it is multiplied with")
"""Reasons that inputs and outputs of a model give for every model."""


@pytest.mark.parametrize("name", BLOCKS)
def test_block_has_the_expected_channels_and_they_are_right(name):
    block, model = BLOCKS[name], make(name).eval()
    analysis = analyze(model, block.inputs)
    assert sum(group.channels for group in analysis.groups if group.exact) == block.channels
    refused = {
        dimension.refusal.operator
        for dimension in analysis.refused
        if not dimension.refusal.reason.startswith(OF_THE_MODEL)
    }
    assert refused == set(block.refused)
    channels = exact_channels(analysis)
    check_channels(model, analysis, channels[:: max(len(channels) // 3, 1)])


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_every_channel_of_every_block_is_right(name):
    model = make(name).eval()
    analysis = analyze(model, BLOCKS[name].inputs)
    check_channels(model, analysis, exact_channels(analysis), halves=False)


def test_refusal_names_operator_source_line_and_dimensions():
    analysis = analyze(make("NoRule").eval(), BLOCKS["NoRule"].inputs)
    [refused] = [dimension for dimension in analysis.refused if dimension.refusal.operator == "sort"]
    assert refused.operator == "sort"
    assert refused.reason == "prunus has no rule for this operator"
    assert refused.source.startswith("coupled_blocks.py:")
    assert refused.source.endswith("return self.head(self.second(self.first(x).sort(1)[0]))")
    assert refused.dimensions == (("first.weight", 0), ("first.bias", 0))


def test_inexact_group_names_the_normalization():
    analysis = analyze(make("LayerScale").eval(), BLOCKS["LayerScale"].inputs)
    [stream] = [group for group in analysis.groups if not group.exact]
    assert (stream.channels, stream.inexact.operator) == (8, "layer_norm")


def test_group_members_list_every_coupled_dimension():
    analysis = analyze(make("Lstm").eval(), BLOCKS["Lstm"].inputs)
    unit = next(group for group in analysis.groups if group.name == "lstm.weight_ih_l0")
    shapes = {(member.name, member.dim): tuple(member.indices.shape) for member in unit.members}
    assert shapes["lstm.weight_ih_l0", 0] == (8, 4)  # four gates
    assert shapes["lstm.weight_hh_l1_reverse", 1] == (8, 1)
    assert shapes["lstm.weight_ih_l1", 1] == shapes["head.weight", 1] == (8, 2)  # two directions


def test_scores_of_a_group_are_sums_over_its_weights():
    model = make("CalledTwice")
    [group] = analyze(model, BLOCKS["CalledTwice"].inputs).groups
    scores = group.reduce({name: p.detach().abs() for name, p in model.named_parameters()})
    values = [group.member_values(member, model.get_parameter(member.name)) for member in group.members]
    torch.testing.assert_close(scores, sum(value.abs().sum(1) for value in values).detach())


def test_multiplications_are_those_of_the_layers():
    model = nn.Sequential(
        conv(3, 8, 3), nn.ReLU(), conv(8, 4, 3, groups=4), nn.Flatten(), nn.Linear(4 * 64, 5)
    )
    analysis = analyze(model, torch.zeros(2, 3, 8, 8))
    dense = 2 * (64 * 9 * 3 * 8 + 64 * 9 * 2 * 4 + 4 * 64 * 5)
    assert analysis.macs() == dense
    [first] = analysis.groups  # a channel of each of the groups
    assert first.channels == 4
    without = 2 * (64 * 9 * 3 * 6 + 64 * 9 * 2 * 3 + 3 * 64 * 5)
    assert analysis.macs({first.name: [1]}) == without


def test_multiplications_of_attention_are_counted_and_belong_to_its_layer():
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True).eval()
    inputs = torch.randn(2, 5, 16), torch.randn(2, 7, 16)  # 5 positions attend to 5, and to 7
    projections = [10 * 16 * 48, 10 * 16 * 16, (10 + 14 + 14) * 16 * 16, 10 * 16 * 16]
    products = [2 * 2 * 16 * 5 * 5, 2 * 2 * 16 * 5 * 7]  # query times key, and weights times value
    dense = sum(projections) + sum(products) + 2 * 10 * 16 * 32
    assert prunus.count_macs(layer, inputs) == dense
    plan = prunus.slim(layer, inputs, density=0.5)
    assert plan.report.macs[0] == sum(row.macs[0] for row in plan.report.rows) == dense
    rows = {row.name: row.macs[0] for row in plan.report.rows}
    assert rows["multihead_attn"] == projections[2] + products[1]
    assert prunus.count_macs(plan.apply(), inputs) == plan.report.macs[1] < 0.7 * dense


class Wide(nn.Module):
    """Every layer reads all layers before it."""

    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(conv(4 * (i + 1), 4) for i in range(depth))
        self.first, self.head = conv(3, 4), nn.Linear(4 * (depth + 1), 3)

    def forward(self, x):
        parts = [self.first(x)]
        for layer in self.layers:
            parts.append(F.relu(layer(torch.cat(parts, 1))))
        return self.head(torch.cat(parts, 1).mean((2, 3)))


def test_analysis_of_dense_concatenations_is_fast():
    """Torch-Pruning #527: searches over paths do not end; here every node is visited once."""
    model = Wide(60)
    analyze(Wide(2), torch.zeros(1, 3, 4, 4))
    seconds = -time.process_time()
    analysis = analyze(model, torch.zeros(1, 3, 4, 4))
    seconds += time.process_time()
    assert [group.channels for group in analysis.groups] == [4] * 61
    assert seconds < 20  # 3, most of it the export, on a busy machine when written


class Deep(nn.Module):
    """Many attention layers with the number of heads in an attribute."""

    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(make("HeadsInAttributes") for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = F.pad(layer(x), (0, 13))
        return x


def test_attributes_are_found_once_for_all_modules_of_a_class():
    analysis = analyze(Deep(3).eval(), TOKENS)
    bound = {(binding.path, binding.attribute) for binding in analysis.bindings}
    assert bound == {(f"layers.{i}", "num_heads") for i in range(3)}


def test_analysis_changes_nothing():
    model = make("Normalizations").train()
    model.first.eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    analyze(model, BLOCKS["Normalizations"].inputs)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class Positions(nn.Module):
    """Adds the first rows of a table, or attends with the first rows of a mask."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.e, self.norm = kind, nn.Linear(8, 16), nn.LayerNorm(16)
        self.f, self.o = nn.Linear(16, 32), nn.Linear(32, 4)
        if kind in ("parameter", "scaled parameter", "split"):
            self.table = nn.Parameter(torch.randn(64, 16))
        elif kind == "buffer":
            self.register_buffer("table", torch.randn(1, 64, 16))
        elif kind == "mask":
            self.register_buffer("table", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))
        else:
            self.table = nn.Parameter(torch.randn(16, 1, 9))

    def forward(self, x):
        h, length = self.e(x), x.shape[1]
        if self.kind == "parameter":
            h = h + self.table[:length]
        elif self.kind == "scaled parameter":
            h = h + (self.table * 0.5)[:length]
        elif self.kind == "split":
            h = h + self.table.split([length, len(self.table) - length])[0]
        elif self.kind == "buffer":
            h = h + self.table[:, :length]
        elif self.kind == "mask":
            mask = self.table[:, :, :length, :length] == 0
            h = (h @ h.mT / 4)[:, None].masked_fill(mask, -torch.inf).softmax(-1)[:, 0] @ h
        else:
            h = F.conv1d(h.mT, self.table[:, :, :3], padding=1, groups=16).mT
        return self.o(torch.relu(self.f(self.norm(h))))


@pytest.mark.parametrize("kind", ["parameter", "scaled parameter", "split", "buffer", "mask", "kernel"])
def test_what_a_slice_leaves_out_is_no_channel(kind):
    torch.manual_seed(0)
    model = Positions(kind)
    table, longer = model.table.detach().clone(), torch.randn(2, 30, 8)
    plan = prunus.slim(model, torch.randn(2, 12, 8), density=0.5, allow_inexact=True)
    dims = {(member.name, member.dim) for group in plan.groups for member in group.members}
    is_channel = {dim for name, dim in dims if name == "table"}
    assert is_channel <= {dim for dim, size in enumerate(table.shape) if size == 16}  # of the residual stream
    plan = prunus.slim(model, torch.randn(2, 12, 8), density=0.5)
    assert [group.name for group in plan.groups if group.exact] == ["f.weight"]
    assert torch.equal(plan.apply().table, table)
    assert model(longer).shape == (2, 30, 4)


class PartlyUnread(nn.Module):
    """Some outputs of a layer are not used: removing their rows is right."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 9, bias=False), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.first(x)[:, :4])


def test_outputs_of_a_layer_that_are_not_read_are_channels():
    [group] = analyze(PartlyUnread(), torch.randn(2, 4)).groups
    assert group.members[0].indices.flatten().tolist() == [4, 5, 6, 7, 8]
