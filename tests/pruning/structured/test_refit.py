"""Refitted weights beside the least-squares solution, and what the refit does to a trained network."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.data.digits import load_digits
from prunus.errors import ModelError, StatisticsError
from prunus.pruning.matrix import to_matrix


class Net(nn.Module):
    """A convolution that reads channels at nine positions each, and a linear layer that reads four of each."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 10, 3, padding=1)
        self.fc = nn.Linear(40, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        return self.fc(F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1))


@pytest.fixture(scope="module")
def data():
    return load_digits()


@pytest.fixture(scope="module")
def trained(data):
    torch.manual_seed(0)
    model = Net()
    prunus.train(model, data, prunus.Recipe(epochs=4, batch_size=32, learning_rate=0.1))
    return model.eval()


def layer_inputs(model, inputs):
    """The vectors [n, D] that the rows of conv2 and fc are multiplied with."""
    x = F.max_pool2d(F.relu(model.norm(model.conv1(inputs))), 2)
    columns = (
        F.unfold(x, 3, padding=1).reshape(len(x), 12, 9, -1).permute(0, 3, 2, 1).flatten(0, 1).flatten(1)
    )
    return columns, F.max_pool2d(F.relu(model.conv2(x)), 2).flatten(1)


@pytest.mark.parametrize("criterion", ["l2", "lasso"])
def test_refitted_weights_are_the_damped_least_squares_solution(trained, data, criterion):
    inputs = data.train.inputs[:200]
    plan = prunus.slim(trained, inputs[:1], density=0.5, criterion=criterion, calibration=inputs, refit=True)
    kept_channels = {name: [i for i in range(size) if i not in plan.removed[f"{name}.weight"]]
            for name, size in (("conv1", 12), ("conv2", 10))}  # fmt: skip
    with torch.no_grad():
        vectors = [x.double() for x in layer_inputs(trained, inputs)]
    columns = {
        "conv2": [position * 12 + channel for position in range(9) for channel in kept_channels["conv1"]],
        "fc": [channel * 4 + position for channel in kept_channels["conv2"] for position in range(4)],
    }
    assert plan.weights.keys() == {"conv2.weight", "fc.weight"}
    for (name, kept_columns), x in zip(columns.items(), vectors, strict=True):
        weight = to_matrix(trained.get_parameter(f"{name}.weight").detach()).double()
        damping = 0.01 * x.square().sum(0)[x.square().sum(0) > 0].mean()
        rest = [i for i in range(weight.shape[1]) if i not in kept_columns]
        padded = torch.cat([x[:, kept_columns], damping.sqrt() * torch.eye(len(kept_columns))])
        target = torch.cat([x[:, rest] @ weight[:, rest].T, torch.zeros(len(kept_columns), len(weight))])
        expected = weight[:, kept_columns] + torch.linalg.lstsq(padded, target).solution.T
        actual = to_matrix(plan.weights[f"{name}.weight"])[:, kept_columns]
        torch.testing.assert_close(actual, expected.float(), rtol=1e-3, atol=1e-5)
        assert torch.equal(to_matrix(plan.weights[f"{name}.weight"])[:, rest], weight[:, rest].float())


def test_refit_keeps_the_outputs_of_the_next_layer_and_changes_nothing_before_apply(trained, data):
    inputs, errors = data.train.inputs[:300], []
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    outputs = {}
    for refit in (None, False, True):
        model = Net().eval()
        model.load_state_dict(before)
        if refit is not None:
            plan = prunus.slim(
                model, inputs[:1], density=0.5, exclude=["fc"], calibration=inputs, refit=refit
            )
            assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
            assert plan.apply(torch.optim.SGD(model.parameters(), lr=0.1)) is model
            assert model.conv2.weight.shape == (10, 6, 3, 3)
            assert model.conv2.weight.is_contiguous()  # as before
        model.conv2.register_forward_hook(lambda _, __, output, key=refit: outputs.update({key: output}))
        with torch.no_grad():
            model(data.test.inputs)
        errors.append(float((outputs[refit] - outputs[None]).square().mean()))
    assert errors[2] < 0.25 * errors[1]


def test_refit_counts_for_a_budget_and_refuses_what_it_would_break(trained, data):
    inputs = data.train.inputs[:50]
    seen = []

    def measure(model):
        seen.append(model.conv2.weight.detach().clone())
        return float(sum(p.numel() for p in model.parameters()))

    plan = prunus.slim(
        trained, inputs[:1], budget=(measure, 1000.0), calibration=inputs, refit=True, verify=False
    )
    masks = prunus.Masks(trained, {"conv2.weight": torch.ones_like(trained.conv2.weight).bool()})
    with pytest.raises(ModelError, match="no masks with refit=True"):
        plan.apply(masks=masks)
    columns = [c for c in range(12) if c not in plan.removed["conv1.weight"]]
    rows = [c for c in range(10) if c not in plan.removed["conv2.weight"]]
    expected = plan.weights["conv2.weight"][rows][:, columns]
    assert any(tensor.shape == expected.shape and torch.equal(tensor, expected) for tensor in seen)
    with pytest.raises(StatisticsError, match=r"or for refit, got none; pass calibration="):
        prunus.slim(trained, inputs[:1], density=0.5, refit=True)
