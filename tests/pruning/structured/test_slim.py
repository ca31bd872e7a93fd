"""Filter criteria, budgets and rankings of `prunus.slim`."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import prunus
from prunus.errors import (
    DensityError,
    ModelError,
    PrunusError,
    SpecError,
    StatisticsError,
    UnknownNameError,
)
from prunus.models import MODELS
from prunus.pruning.obs.diagonals import DIAGONALS
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.obs.objective import make_objective
from prunus.pruning.structured.analysis import analyze
from prunus.pruning.structured.criteria import FILTER_CRITERIA, FilterStatistics, filter_criterion
from prunus.pruning.structured.latency import compare_latency, measure_latency
from prunus.seeds import make_generator

X = torch.zeros(1, 3, 32, 32)


def draw(*shape):
    return torch.randn(*shape, generator=make_generator(0, "slim", *map(str, shape)))


EXAMPLES = draw(40, 2, 6, 6), torch.arange(40) % 3


class Net(nn.Module):
    """Two convolutions, the first with BatchNorm, and a linear layer that reads nine positions of each channel."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.fc = nn.Linear(36, 3)
        for p in self.parameters():
            p.data = draw(*p.shape) / 2

    def forward(self, x):
        x = F.relu(self.norm(self.conv1(x)))
        return self.fc(F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1))


def score(criterion, model=None, calibration=EXAMPLES, **arguments):
    model = model or Net().eval()
    groups = analyze(
        model, EXAMPLES[0][:1].to(model.conv1.weight if isinstance(model, Net) else torch.float32)
    ).groups
    return filter_criterion(criterion)(FilterStatistics(model, groups, calibration, **arguments))


def test_norms_are_over_all_coupled_weights():
    model = Net()
    coupled = [model.conv1.weight, model.conv1.bias, model.norm.weight, model.norm.bias]
    coupled = [p.detach().flatten(1) if p.dim() > 1 else p.detach()[:, None] for p in coupled]
    rows = torch.cat([*coupled, model.conv2.weight.detach().transpose(0, 1).flatten(1)], 1)
    for criterion, expected in (("l1", rows.abs().sum(1)), ("l2", rows.norm(dim=1))):
        torch.testing.assert_close(score(criterion, model)["conv1.weight"].float(), expected)
    rows = torch.cat(
        [model.conv2.weight.flatten(1), model.fc.weight.reshape(3, 4, 9).transpose(0, 1).flatten(1)], 1
    )
    torch.testing.assert_close(
        score("magnitude", model)["conv2.weight"], rows.abs().sum(1).double().detach(), rtol=1e-6, atol=0
    )


def test_bn_scale_is_that_of_the_channel_and_refuses_groups_without():
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    model[1].weight.data = torch.tensor([0.1, -3.0, 0.5, 2.0, 0.0])
    torch.testing.assert_close(score("bn_scale", model)["0.weight"], model[1].weight.detach().abs().double())
    plan = prunus.slim(model, EXAMPLES[0][:1], density=0.6, criterion="bn_scale")
    assert plan.removed == {"0.weight": [0, 4]}
    with pytest.raises(
        StatisticsError,
        match=r"'conv2\.weight', got none, as no BatchNorm with a scale normalizes them; choose another",
    ):
        score("bn_scale")
    assert prunus.batch_norm_scales(model).item() == pytest.approx(5.6)
    with pytest.raises(StatisticsError, match="BatchNorm layers"):
        prunus.batch_norm_scales(nn.Linear(1, 1))


def test_global_ranking_divides_scores_by_the_mean_of_the_group():
    """The sum in place of the mean would keep fewer channels of the larger group."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3))
    for parameter in model.parameters():
        parameter.data = draw(*parameter.shape)
    statistics = FilterStatistics(model, analyze(model, torch.zeros(1, 6)).groups)
    scores = filter_criterion("l1")(statistics)
    scaled = torch.cat([values / values.mean() for values in scores.values()])
    sums = torch.cat([values / values.sum() for values in scores.values()])
    is_kept = {key: values >= values.sort().values[10] for key, values in (("mean", scaled), ("sum", sums))}
    assert not torch.equal(is_kept["mean"], is_kept["sum"])
    plan = prunus.slim(model, torch.zeros(1, 6), density=0.5, criterion="l1", scope="global")
    parts = torch.split(is_kept["mean"], [len(values) for values in scores.values()])
    assert plan.removed == {
        name: (~part).nonzero().flatten().tolist() for name, part in zip(scores, parts, strict=True)
    }


@pytest.mark.parametrize("criterion", ["activation", "apoz", "thinet", "lasso", "obs"])
@pytest.mark.parametrize("reader", [nn.ConvTranspose2d(8, 4, 3), nn.Conv2d(8, 4, 3, groups=2)])
def test_criteria_of_inputs_say_which_layers_they_need(criterion, reader):
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), reader)
    with pytest.raises(
        StatisticsError, match="got none, as no Linear or convolution without groups reads them"
    ):
        prunus.slim(model, EXAMPLES[0][:1], density=0.5, criterion=criterion, calibration=EXAMPLES)


def test_penalty_makes_scales_small_in_training():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    before = prunus.batch_norm_scales(model).item()
    for _ in range(10):
        optimizer.zero_grad()
        (F.cross_entropy(model(EXAMPLES[0]), EXAMPLES[1]) + prunus.batch_norm_scales(model)).backward()
        optimizer.step()
    assert prunus.batch_norm_scales(model).item() < 0.5 * before


def test_taylor_is_the_square_of_the_derivative_by_a_gate():
    """Scaling all weights of a channel by 1 + t changes the loss by t Σ g w."""
    model = Net().eval().double()
    inputs, labels = EXAMPLES[0].double(), EXAMPLES[1]
    scores = score("taylor", model, (inputs, labels))["conv2.weight"]
    step, expected = 1e-5, torch.zeros(4, dtype=torch.float64)
    batches = [slice(0, 20), slice(20, 40)]  # as few of at most 32 as possible, which are equal
    for channel in range(4):
        for batch in batches:
            losses = []
            for sign in (1, -1):
                changed = copy.deepcopy(model)
                with torch.no_grad():
                    changed.conv2.weight[channel] *= 1 + sign * step
                    changed.fc.weight.reshape(3, 4, 9)[:, channel] *= 1 + sign * step
                    losses.append(float(F.cross_entropy(changed(inputs[batch]), labels[batch])))
            expected[channel] += ((losses[0] - losses[1]) / (2 * step)) ** 2 / 2
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-8)


def test_geometric_median_is_the_sum_of_distances_to_other_filters():
    model = Net()
    filters = model.conv2.weight.detach().flatten(1)
    expected = torch.stack(
        [(filters - filter_weight).norm(dim=1).sum() for filter_weight in filters]
    ).double()
    torch.testing.assert_close(score("geometric_median", model)["conv2.weight"], expected)


def test_activations_are_those_that_the_next_layer_reads():
    model = Net().eval()
    with torch.no_grad():
        hidden = F.relu(model.norm(model.conv1(EXAMPLES[0])))
        last = F.max_pool2d(F.relu(model.conv2(hidden)), 2)
    for criterion, function in (("activation", torch.abs), ("apoz", lambda x: (x != 0).double())):
        scores = score(criterion, model, EXAMPLES[0])
        for name, x in (("conv1.weight", hidden), ("conv2.weight", last)):
            torch.testing.assert_close(scores[name], function(x).mean((0, 2, 3)).double(), rtol=1e-5, atol=0)


def test_activations_of_images_without_a_batch_are_those_of_the_channels():
    model, images = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), draw(5, 2, 6, 6)
    one_by_one = score("activation", model, images, forward=lambda m, x: torch.stack([*map(m, x)]))
    torch.testing.assert_close(one_by_one["0.weight"], score("activation", model, images)["0.weight"])


@pytest.mark.parametrize("criterion", ["l1", "l2", "geometric_median"])
def test_scores_of_networks_in_half_precision_have_the_precision_of_single(criterion):
    model = Net()
    scores = score(criterion, copy.deepcopy(model).bfloat16())["conv1.weight"]
    for parameter in model.parameters():
        parameter.data = parameter.bfloat16().float()
    torch.testing.assert_close(scores, score(criterion, model)["conv1.weight"], rtol=1e-6, atol=0)


def test_calibration_examples_of_an_iterator_are_read_once():
    model, x = Net().eval(), EXAMPLES[0][:1]
    settings = {"density": 0.5, "criterion": "taylor", "refit": True}
    plans = [prunus.slim(model, x, calibration=data, **settings) for data in (EXAMPLES, iter([EXAMPLES]))]
    assert plans[0].removed == plans[1].removed
    settings = {"densities": [0.5, 0.25], "criterion": "activation"}
    measured = [
        prunus.group_sensitivity(
            model, x, lambda net: net.fc.weight.sum().item(), calibration=data, **settings
        )
        for data in (EXAMPLES, iter([EXAMPLES]))
    ]
    assert measured[0] == measured[1]


def test_latency_on_a_gpu_waits_for_inputs_by_name(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append(None))
    with FakeTensorMode():
        measure_latency(nn.Identity(), {"input": torch.empty(2, device="cuda")})
    assert len(calls) >= 6  # before and after each of three passes


def test_latencies_of_two_models_are_measured_in_turn():
    calls = []

    class Recorded(nn.Linear):
        def forward(self, x):
            calls.append((self, len(x)))
            return super().forward(x)

    before, after = Recorded(2, 2), Recorded(2, 2)
    measured = compare_latency(before, after, torch.zeros(1, 2), batch_size=8)
    assert calls == [(before, 8), (after, 8)] * (measured.n + 1)
    low, middle, high = measured.speedup
    assert 0 < low <= middle <= high
    assert measured.n == 20


@pytest.mark.parametrize("name", ["conv1.weight", "conv2.weight"])
def test_thinet_removes_greedily_what_changes_the_next_layer_least(name):
    model = Net().eval().double()
    x = EXAMPLES[0].double()
    with torch.no_grad():
        hidden = F.relu(model.norm(model.conv1(x)))
        last = F.max_pool2d(F.relu(model.conv2(hidden)), 2)

    @torch.no_grad()
    def change(removed):  # of the output of the next layer, without its bias
        source = hidden if name.startswith("conv1") else last
        part = torch.zeros_like(source)
        part[:, removed] = source[:, removed]
        if name.startswith("conv1"):
            return float(F.conv2d(part, model.conv2.weight, padding=1).square().sum())
        return float((part.flatten(1) @ model.fc.weight.T).square().sum())

    removed = []
    channels = range(6 if name.startswith("conv1") else 4)
    for _ in channels:
        removed.append(min((c for c in channels if c not in removed), key=lambda c: change([*removed, c])))
    assert score("thinet", model, x)[name].argsort().tolist() == removed


@pytest.mark.parametrize("name", ["conv1.weight", "conv2.weight"])
def test_obs_is_the_error_of_the_refitted_next_layer(name):
    """The least-squares problem without the channel, solved on its own; with the damping of the Hessian."""
    model = Net().eval()
    layer = "conv2.weight" if name.startswith("conv1") else "fc.weight"
    weight = model.get_parameter(layer).detach()
    hessian = layer_hessians(model, {layer: weight}, EXAMPLES[0])[layer]
    matrix, products = hessian.rows(weight)[0], hessian.damped()[0]
    scores = score("obs", model)[name]
    for channel in range(len(scores)):
        parts = torch.arange(weight[0].numel()) % weight.shape[1] // (weight.shape[1] // len(scores))
        gone = parts == channel
        change = torch.zeros_like(matrix)
        change[:, gone] = -matrix[:, gone]
        fit = torch.linalg.solve(products[~gone][:, ~gone], products[~gone][:, gone] @ matrix[:, gone].T)
        change[:, ~gone] = fit.T
        torch.testing.assert_close(scores[channel], ((change @ products) * change).sum() / 2)


def test_obd_hutchinson_is_the_sum_over_all_coupled_weights():
    model = Net().eval()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    diagonal = DIAGONALS["hutchinson"](make_objective(model, weights, EXAMPLES), seed=0)
    [conv1, conv2] = analyze(model, EXAMPLES[0][:1]).groups
    expected = {name: diagonal[name] * weight.square() / 2 for name, weight in weights.items()}
    scores = score("obd_hutchinson", model)
    for group in (conv1, conv2):
        torch.testing.assert_close(scores[group.name].float(), group.reduce(expected))
    plan = prunus.slim(
        MODELS["resnet-20"](width=0.25), X, density=0.5, criterion="obd_hutchinson",
        calibration=(draw(4, 3, 32, 32), torch.arange(4)),
    )  # fmt: skip
    assert plan.report.macs[1] < 0.5 * plan.report.macs[0]


def test_lasso_keeps_what_the_output_needs():
    """A channel that another one repeats and one that nothing reads are used last; the largest part is used first."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    model[0].weight.data = torch.eye(4)
    model[1].weight.data = torch.tensor([[3.0, 1.0, 0.0, 0.3], [0.0, 1.0, 0.0, -0.3]])
    analysis = analyze(model, torch.zeros(1, 4))
    statistics = FilterStatistics(model, analysis.groups, torch.cat([draw(200, 4)]))
    (scores,) = FILTER_CRITERIA["lasso"](statistics).values()
    assert scores.argsort(descending=True).tolist() == [0, 1, 3, 2]


def test_a_criterion_for_weights_is_described_as_a_sum():
    assert filter_criterion("magnitude").description == "The sum of magnitude over all coupled kernels."


@pytest.mark.parametrize("criterion", [*FILTER_CRITERIA, "magnitude", "wanda", "snip"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_criterion_keeps_the_budget_and_does_not_change_the_model(criterion, scope):
    exclude = ["fc"] if criterion == "bn_scale" else []
    model = Net()
    state = copy.deepcopy(model.state_dict())
    plan = prunus.slim(
        model, EXAMPLES[0][:1], macs=0.7, criterion=criterion, scope=scope, calibration=EXAMPLES, exclude=exclude
    )  # fmt: skip
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert 0.45 < plan.report.macs[1] / plan.report.macs[0] <= 0.7
    plan.apply()
    assert prunus.count_macs(model, EXAMPLES[0][:1]) == plan.report.macs[1]
    assert sum(p.numel() for p in model.parameters()) == plan.report.parameters[1]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    "goal", [{"macs": 0.5}, {"parameters": 0.4}, {"macs": 20_000_000}, {"parameters": 100_000}]
)
def test_budgets_are_kept_and_used(scope, goal):
    model = MODELS["resnet-20"]()
    plan = prunus.slim(model, X, scope=scope, **goal)
    ((name, value),) = goal.items()
    before, after = getattr(plan.report, name)
    limit = value * before if value <= 1 else value
    assert 0.96 * limit < after <= limit
    assert before == {"macs": 40_551_040, "parameters": 269_722}[name]
    rows = plan.report.rows
    assert sum(row.macs[1] for row in rows) == plan.report.macs[1]
    assert sum(row.parameters[1] for row in rows) == plan.report.parameters[1]
    state = plan.apply().state_dict()
    assert all(len(state[f"{row.name}.weight"]) == row.channels[1] for row in rows)


def test_multiples_and_least_numbers_hold_under_a_global_budget():
    plan = prunus.slim(MODELS["resnet-20"](), X, macs=0.4, scope="global", round_to=4, min_channels=6)
    num_kept = {group.name: group.channels - len(plan.removed[group.name]) for group in plan.groups}
    assert all(number % 4 == 0 and number >= 8 for number in num_kept.values())
    assert plan.report.macs[1] <= 0.4 * plan.report.macs[0]


def test_ties_of_a_global_ranking_are_removed_evenly():
    """All scales of a new network are 1."""
    plan = prunus.slim(MODELS["resnet-20"](), X, density=0.5, scope="global", criterion="bn_scale")
    for group in plan.groups:
        assert len(plan.removed[group.name]) == pytest.approx(group.channels / 2, abs=1)


def test_budget_of_any_function_of_the_smaller_model():
    model = MODELS["resnet-20"](width=0.5)

    def file_bytes(smaller):
        return len(prunus.pack(smaller.state_dict()))

    plan = prunus.slim(
        model, X, budget=(lambda smaller: np.float32(file_bytes(smaller)), 0.5 * file_bytes(model))
    )
    dense = file_bytes(model)
    assert 0.4 * dense < file_bytes(plan.apply()) <= 0.5 * dense


def test_file_bytes_are_those_that_save_writes(tmp_path):
    for limit in (0.6, 30_000):
        model = MODELS["resnet-20"](width=0.25)
        dense = prunus.saved_size(model)
        smaller = prunus.slim(model, X, file_bytes=limit).apply()
        size = prunus.save(smaller, tmp_path / "smaller.prunus")
        allowed = limit * dense if limit < 1 else limit
        assert 0.9 * allowed < size <= allowed


@pytest.mark.slow
def test_half_the_latency_takes_far_fewer_channels():
    """Only channels are counted, because times depend on what else the machine does."""
    model = MODELS["resnet-20"](width=2.0)
    x = torch.zeros(32, 3, 32, 32)
    plan = prunus.slim(model, x, latency=0.5)
    assert plan.report.macs[1] < 0.8 * plan.report.macs[0]
    assert measure_latency(plan.apply(), x) > 0


def test_iterative_slimming_in_an_own_loop_keeps_the_optimizer():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    dense = prunus.count_macs(model, EXAMPLES[0][:1])
    for fraction in (0.8, 0.6, 0.4):
        goal = int(fraction * dense)
        plan = prunus.slim(
            model,
            EXAMPLES[0][:1],
            macs=np.int64(goal),
            round_to=np.int64(1),
            criterion="taylor",
            calibration=EXAMPLES,
        )
        plan.apply(optimizer)
        assert prunus.count_macs(model, EXAMPLES[0][:1]) <= goal
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(EXAMPLES[0]), EXAMPLES[1]).backward()
            optimizer.step()


def test_sensitivity_is_that_of_one_group_alone():
    model = Net().eval()
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        dense = model(EXAMPLES[0])

        @torch.no_grad()
        def error(smaller):
            return float((smaller(EXAMPLES[0]) - dense).square().mean())

        errors = prunus.group_sensitivity(model, EXAMPLES[0][:1], error, [1.0, 0.5], criterion="l1")
        expected = prunus.slim(model, EXAMPLES[0][:1], density=0.5, criterion="l1", exclude=["fc"]).removed
        zeroed = copy.deepcopy(model)
        for tensor in (zeroed.conv1.weight, zeroed.conv1.bias, zeroed.norm.weight, zeroed.norm.bias):
            tensor[expected["conv1.weight"]] = 0
    assert errors["conv1.weight"][0.5] == pytest.approx(error(zeroed), rel=1e-4)
    assert errors["conv2.weight"][1.0] == 0 < errors["conv2.weight"][0.5]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_deep_compression_after_slimming_is_one_file(tmp_path):
    model = MODELS["resnet-20"](width=0.5)
    prunus.slim(model, X, macs=0.5).apply()
    state = prunus.prune(model, 0.3)
    assert state.masks
    prunus.quantize(model, bits=4)
    size = prunus.save(model, tmp_path / "m.prunus")
    assert size < 0.3 * sum(t.nbytes for t in model.state_dict().values())
    loaded = prunus.load(tmp_path / "m.prunus")
    with torch.no_grad():
        torch.testing.assert_close(loaded(X + 1), model.eval()(X + 1))


def test_report_is_plain_data_and_names_coupled_layers():
    report = prunus.slim(MODELS["resnet-20"](), X, density=0.5).report
    content = report.to_json()
    assert [row["name"] for row in content["rows"]][:2] == ["conv1", "bn1"]
    coupled = {row["name"] for row in content["rows"] if "conv1.weight" in row["groups"]}
    assert {"conv1", "layer1.0.conv2", "layer1.2.bn2", "layer2.0.conv2"} <= coupled
    assert "layer1.0.conv1" not in coupled
    assert "conv1           16 → 8" in str(report)


class Frozen(nn.Module):
    def forward(self, x):
        return x.flatten(1).softmax(1)


BAD = {
    "no goal": ({}, DensityError, "one of macs, parameters, density, file_bytes, latency, budget, got none"),
    "two goals": ({"macs": 0.5, "density": 0.5}, DensityError, "got macs, density"),
    "zero": ({"macs": 0}, DensityError, "macs above 0"),
    "nan": ({"parameters": float("nan")}, DensityError, "parameters above 0"),
    "boolean": ({"macs": True}, DensityError, "macs above 0"),
    "slower": ({"latency": 2}, DensityError, r"a latency in \(0, 1\]"),
    "impossible": ({"macs": 0.0001}, DensityError, "Expected macs of at least"),
    "no function": ({"budget": 100}, DensityError, "function of a model, limit"),
    "no limit": ({"budget": (len, float("nan"))}, DensityError, "function of a model, limit"),
    "criterion": ({"macs": 0.5, "criterion": "l3"}, UnknownNameError, "Unknown criterion 'l3'"),
    "scope": ({"macs": 0.5, "scope": "2:4"}, UnknownNameError, "Unknown scope '2:4'"),
    "no examples": ({"macs": 0.5, "criterion": "taylor"}, StatisticsError, "calibration"),
    "loss": ({"macs": 0.5, "loss": "cross_entropy"}, StatisticsError, "Expected no loss with a criterion"),
    "loss of inputs": (
        {"macs": 0.5, "criterion": "apoz", "loss": "cross_entropy", "calibration": torch.zeros(1)},
        StatisticsError,
        "Expected no loss with a criterion that differentiates none",
    ),
    "multiple": (
        {"macs": 0.5, "round_to": 0},
        SpecError,
        "Expected integers of at least 1 as round_to and min_channels, got 0, 1",
    ),
    "all excluded": ({"macs": 0.5, "exclude": ["conv2"]}, ModelError, "left out, the first 'conv1.weight'"),
    "scores": (
        {"macs": 0.5, "criterion": {"conv1.weight": torch.full((6, 2, 3, 3), float("nan"))}},
        PrunusError,
        "of the names and shapes of the weights",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_inputs_are_named_and_the_model_is_untouched(kind):
    arguments, error, message = BAD[kind]
    model = Net()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        prunus.slim(model, EXAMPLES[0][:1], **arguments)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_a_model_without_channels_is_refused():
    with pytest.raises(ModelError, match="a group of channels to remove in Frozen, got none"):
        prunus.slim(Frozen(), EXAMPLES[0][:1], macs=0.5)


def test_multiply_accumulates_of_recurrent_layers_are_no_goal():
    with pytest.raises(
        ModelError, match="recurrent layers, whose multiply-accumulates are not counted, got GRU"
    ):
        prunus.slim(nn.GRU(3, 4), torch.zeros(2, 1, 3), macs=0.5)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        h = self.first(x)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.last(h.mean(1))


@pytest.mark.parametrize("criterion", ["obs", "lasso", "thinet", "activation", "apoz"])
def test_inputs_of_the_output_projection_of_attention_are_measured(criterion):
    """Its forward pass uses the weight of `out_proj` without calling the layer."""
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(40, 5, 8)
    before = sum(p.numel() for p in model.parameters())
    slimmed = prunus.slim(
        model, x[:2], density=0.5, criterion=criterion, calibration=x, refit=criterion in ("obs", "lasso")
    ).apply()
    assert sum(p.numel() for p in slimmed.parameters()) < before / 2
    assert slimmed(x).shape == (40, 3)


def test_a_model_that_was_made_smaller_in_inference_mode_can_be_trained():
    model = Net()
    with torch.inference_mode():
        prunus.slim(model, EXAMPLES[0][:1], macs=0.5).apply()
    model(EXAMPLES[0]).sum().backward()
    assert model.conv1.weight.grad is not None
