"""Residual blocks: which the graph has, their removal and its file, and factors that become zero in training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.data.digits import load_digits
from prunus.errors import (
    CheckpointError,
    ModelError,
    ModelMismatchError,
    NoEffectWarning,
    SpecError,
    UnknownNameError,
)
from prunus.models import MODELS
from prunus.pruning.structured.edits import merge_edits

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A block that may be removed, one whose branch is also an output, and one with a layer as shortcut."""

    def __init__(self, size=8):
        super().__init__()
        self.stem = nn.Linear(64, size)
        self.first = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Dropout(0.1), nn.Linear(size, size))
        self.second, self.shared = nn.Linear(size, size), nn.Linear(size, size)
        self.third, self.shortcut = nn.Linear(size, size), nn.Linear(size, size)
        self.head = nn.Linear(2 * size, 10)

    def forward(self, x):
        x = F.relu(self.stem(x.flatten(1)))
        x = x + F.dropout(self.first(x), 0.2, self.training)
        side = self.shared(F.relu(self.second(x)))
        x = F.relu(x + side)
        x = self.third(x) + self.shortcut(x)
        return self.head(torch.cat([x, side], 1))


@pytest.mark.parametrize(
    ("name", "count", "last", "modules"),
    [
        ("resnet-20", 7, "layer3.2.bn2", 4),
        ("vit-small", 24, "blocks.11.mlp.fc2", 2),
    ],
)
def test_blocks_of_built_in_models(name, count, last, modules):
    shape = (3, 224, 224) if name == "vit-small" else (3, 32, 32)
    blocks = prunus.residual_blocks(MODELS[name](), torch.zeros(1, *shape))
    assert (len(blocks), blocks[-1].name, len(blocks[-1].modules)) == (count, last, modules)


def test_branches_that_are_used_elsewhere_and_shortcuts_with_layers_are_no_blocks():
    [block] = prunus.residual_blocks(Net(), torch.zeros(2, 1, 8, 8))
    assert (block.name, block.modules) == ("first.3", ("first",))


def test_removed_blocks_leave_the_optimizer_and_the_file(tmp_path):
    model = MODELS["resnet-20"](width=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(model(X), torch.arange(2)).backward()
    optimizer.step()
    expected = copy.deepcopy(model).eval()
    for layer in (expected.layer1[0].bn2, expected.layer3[2].bn2):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    size = sum(p.numel() for p in model.parameters())
    prunus.slim(model, X, density=0.75).apply(optimizer)
    assert prunus.remove_blocks(model, X, ["layer1.0.bn2", "layer3.2.bn2"], optimizer) is model
    assert sum(p.numel() for p in model.parameters()) < 0.5 * size
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert stepped == {id(p) for p in model.parameters()} == {id(p) for p in optimizer.state}
    F.cross_entropy(model(X), torch.arange(2)).backward()
    optimizer.step()
    prunus.save(model.eval(), tmp_path / "small.prunus")
    for into in (None, MODELS["resnet-20"](width=0.5).eval(), model):
        loaded = prunus.load(tmp_path / "small.prunus", into=into)
        torch.testing.assert_close(loaded(X), model(X))
        assert loaded.edited_attributes == model.edited_attributes
    with pytest.raises(ModelMismatchError):
        prunus.load(tmp_path / "small.prunus", into=Net())


def test_network_without_blocks_computes_what_it_did_with_outputs_of_zero():
    model = MODELS["resnet-20"](width=0.25).eval()
    expected = copy.deepcopy(model)
    nn.init.zeros_(expected.layer2[1].bn2.weight)
    nn.init.zeros_(expected.layer2[1].bn2.bias)
    assert torch.equal(prunus.remove_blocks(model, X, ["layer2.1.bn2"])(X), expected(X))


def test_blocks_of_a_compiled_network_have_the_names_of_the_original(tmp_path):
    model = Net()
    compiled, x = torch.compile(model, backend="eager"), torch.randn(2, 64)
    (block,) = prunus.residual_blocks(compiled, x)
    assert block.name == "first.3"
    assert prunus.remove_blocks(compiled, x, [block.name]) is model
    prunus.save(model, tmp_path / "net.prunus")
    loaded = prunus.load(tmp_path / "net.prunus", into=Net())
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_edits_of_layers_that_are_removed_later_are_dropped():
    first = {"": {"size": 3}, "a": {"n": 1}, "a.b": {"n": 2}, "ab": {"n": 4}}
    assert merge_edits(first, {"": {"a": None}}) == {"": {"size": 3, "a": None}, "ab": {"n": 4}}


def test_blocks_that_cannot_be_removed_leave_the_model_as_it_was():
    class Tuple(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Linear(64, 64), nn.Softmax(1))
            self.b = nn.Linear(64, 64)

        def forward(self, x):
            return x + self.b(self.a(x).reshape(len(x), 64))

    model, x = Tuple(), torch.randn(2, 64)
    expected = model(x)
    with pytest.raises(ModelError, match="does not run without"):
        prunus.remove_blocks(model, x, ["b"])
    with pytest.raises(UnknownNameError, match="residual block 'c'"):
        prunus.remove_blocks(model, x, ["c"])
    for names in ([], "b"):
        with pytest.raises(ModelError, match="Expected a list of names"):
            prunus.remove_blocks(model, x, names)
    with pytest.raises(ModelError, match="an optimizer of this Tuple"):
        prunus.remove_blocks(model, x, ["b"], torch.optim.SGD(Net().parameters(), lr=0.1))
    assert torch.equal(model(x), expected)
    with pytest.raises(
        ModelError, match=r"can have a factor, got none: Tuple does not run without .* b "
    ) as caught:
        prunus.BlockFactors(model, x, penalty=1.0)
    assert "rewrite" not in str(caught.value)
    assert not any(module._forward_hooks for module in model.modules())
    both = nn.Sequential(model, Scalar(64))
    with pytest.warns(
        NoEffectWarning, match=r"1 of 2 residual blocks have no factor: .* residual block 0\.b "
    ):
        factors = prunus.BlockFactors(both, x, penalty=1.0)
    assert factors.values() == {"1.layer": 1.0}


def test_layers_that_take_several_arguments_are_removed():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = Branch()

        def forward(self, x):
            return x + self.m(None, values=[x], mask=None)

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, state, values, mask=None):
            return self.layer(values[0])

    model, x = Masked(), torch.randn(2, 4)
    factors = prunus.BlockFactors(model, x, penalty=1.0, learning_rate=2.0)
    model(x).sum().mul(0).backward()
    factors.before_optimizer_step()
    assert factors.values() == {"m.layer": 0.0}
    with pytest.raises(ModelError, match="an optimizer of this Masked"):
        factors.remove(torch.optim.SGD(Net().parameters(), lr=0.1))
    assert torch.equal(factors.remove()(x), x)
    assert not list(model.parameters())
    assert torch.equal(torch.export.export(model, (x,)).module()(x), x)


def test_factors_are_removed_once_and_not_multiplied_into_shared_parameters():
    model, x = nn.Sequential(Scalar(), Scalar(), nn.Linear(2, 2)), torch.randn(3, 2)
    model[2].bias = model[0].layer.bias
    with pytest.warns(NoEffectWarning, match=r"0\.layer shares parameters"):
        factors = prunus.BlockFactors(model, x, penalty=1.0)
    factors.load_state_dict({"factors": torch.tensor([[0.5, 0.0]])})
    expected = model(x)
    with pytest.warns(NoEffectWarning, match="No factor is zero"):
        torch.testing.assert_close(factors.remove()(x), expected)
    with pytest.raises(ModelError, match="they were removed"):
        factors.remove()
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_patience_restores_the_factors_of_the_best_epoch(tmp_path, is_resumed):
    data, path = load_digits().take(60, 40), tmp_path / "checkpoint"
    recipe, seen = prunus.Recipe(8, 1.0, 16, optimizer="sgd", patience=2), []

    def report(metrics):
        seen.append((metrics.validation_loss, factors.state_dict()))
        if is_resumed and metrics.epoch == 4:
            raise KeyboardInterrupt

    for _ in range(1 + is_resumed):
        torch.manual_seed(0)
        model = Net(16)
        factors = prunus.BlockFactors(model, data.train.inputs[:2], penalty=0.1, learning_rate=0.02)
        try:
            history = prunus.train(model, data, recipe, constraint=factors, checkpoint=path, report=report)
        except KeyboardInterrupt:
            continue
    losses = [loss for loss, _ in seen]
    best = losses.index(min(losses))
    assert len(history) == len(seen) > best + 1
    value = float(seen[best][1]["factors"][0, 0])
    assert factors.values() == {"first.3": value} != {"first.3": float(seen[-1][1]["factors"][0, 0])}


# --- factors ----------------------------------------------------------------------------------------------------


def test_factors_follow_accelerated_proximal_gradient():
    """Beside the iterations of FISTA with constant momentum on a quadratic function of one factor."""
    x = torch.eye(2)
    model = Scalar()
    factors = prunus.BlockFactors(model, x, penalty=0.3, learning_rate=0.2, momentum=0.5)
    before, current = 1.0, 1.0
    for step in range(12):
        point = current + (0.5 * (current - before) if step else 0.0)
        z = point - 0.2 * 2 * (point - 0.4)
        before, current = current, max(abs(z) - 0.06, 0.0) * (1 if z > 0 else -1)
        (model(x) - x - 0.4 * x).square().sum().div(2).backward()
        factors.before_optimizer_step()
        assert factors.values()["layer"] == pytest.approx(current, abs=1e-5)
    assert current == pytest.approx(0.4 - 0.3 / 2, abs=0.02)


class Scalar(nn.Module):
    """x + x: the factor λ gives x + λ x."""

    def __init__(self, size=2):
        super().__init__()
        self.layer = nn.Linear(size, size)
        nn.init.eye_(self.layer.weight), nn.init.zeros_(self.layer.bias)

    def forward(self, x):
        return x + self.layer(x)


def test_training_makes_factors_zero_and_the_network_smaller(tmp_path):
    data = load_digits()
    torch.manual_seed(0)
    model = Net(16)
    recipe = prunus.Recipe(epochs=3, batch_size=64, learning_rate=0.1)
    factors = prunus.BlockFactors(model, data.train.inputs[:2], penalty=1.0, learning_rate=0.05)
    dense = sum(p.numel() for p in model.parameters())
    prunus.train(model, data, recipe, constraint=factors, checkpoint=tmp_path / "checkpoint")
    assert factors.values() == {"first.3": 0.0}
    expected = model.eval()(data.test.inputs)
    torch.testing.assert_close(factors.remove()(data.test.inputs), expected)
    assert sum(p.numel() for p in model.parameters()) == dense - 2 * (16 * 16 + 16)
    assert prunus.evaluate(model, data.test).accuracy > 0.5


def test_factors_that_remain_are_multiplied_into_the_last_layer():
    model = MODELS["resnet-20"](width=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    factors = prunus.BlockFactors(model, X, penalty=0.5).attach(optimizer)
    for _ in range(2):
        F.cross_entropy(model(X), torch.arange(2)).backward()
        optimizer.step()
    assert 0 < min(factors.values().values()) < max(factors.values().values()) < 1
    state = factors.state_dict()
    factors.finalize()
    expected = model.eval()(X)
    with pytest.warns(NoEffectWarning, match="No factor is zero"):
        torch.testing.assert_close(factors.remove()(X), expected)
    other = prunus.BlockFactors(model, X, penalty=0.5)
    other.load_state_dict(state)
    assert other.values() == factors.values()
    with pytest.raises(CheckpointError, match="7 residual blocks"):
        other.load_state_dict({})


def test_bad_factors_are_refused():
    for settings in ({"penalty": 0.0}, {"penalty": float("nan")}, {"penalty": 1.0, "momentum": 1.0}):
        with pytest.raises(SpecError, match="Expected"):
            prunus.BlockFactors(Net(), torch.zeros(2, 1, 8, 8), **settings)
    model = Scalar()
    prunus.BlockFactors(model, torch.eye(2), penalty=1.0)
    with pytest.raises(ModelError, match="without factors"):
        prunus.BlockFactors(model, torch.eye(2), penalty=1.0)
    with pytest.raises(ModelError, match="identity shortcut"):
        prunus.BlockFactors(nn.Linear(3, 3), torch.zeros(2, 3), penalty=1.0)


def test_a_block_that_does_not_run_in_a_step_keeps_its_factor():
    model = Dropped()
    factors = prunus.BlockFactors(model, torch.randn(2, 4), penalty=0.1, learning_rate=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    factors.attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        model.train()(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert factors.values()["second"] == 1
    assert factors.values()["first"] < 1


class Dropped(nn.Module):
    """Two residual blocks, the second of which runs in evaluation mode only."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = x + self.first(x)
        if not self.training:
            x = x + self.second(x)
        return self.head(x)
