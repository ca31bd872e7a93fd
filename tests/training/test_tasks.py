"""Training of any task: labels per position, targets of a regression, other losses, half-precision networks."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.errors import DataError, DivergenceError, ModelError, PrunusError, SpecError, StatisticsError
from prunus.training import Recipe, evaluate, train
from prunus.training.precision import single_precision

RECIPE = Recipe(epochs=4, learning_rate=1e-2, batch_size=20)


def data_of(inputs, labels, class_names=()):
    split = prunus.Split(inputs, labels)
    return prunus.Dataset("task", split, split, split, class_names)


def regression():
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    return data_of(x, x.sum(1, keepdim=True))


def tokens():
    """The label of each position is the token before it; every fifth is ignored."""
    x = torch.randint(0, 6, (60, 10), generator=torch.Generator().manual_seed(0))
    labels = x.roll(1, 1)
    labels[:, ::5] = -100
    return data_of(x, labels)


def pixels():
    """Whether each pixel of a digit is dark."""
    images = prunus.load_data("digits").train.inputs[:100]
    return data_of(images, (images[:, 0] > images.mean()).long(), ("light", "dark"))


def network(outputs=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs))


def token_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(6, 8), Transposed(nn.Conv1d(8, 8, 3, padding=1)), nn.Linear(8, 6))


class Transposed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.mT).mT


def plain_loop(model, data, recipe, loss):
    """The same training, written out; the order of the examples is that of seed 0."""
    optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate)
    for epoch in range(recipe.epochs):
        for batch in prunus.data.batch_indices(len(data.train), recipe.batch_size, 0, epoch):
            optimizer.zero_grad()
            loss(model(data.train.inputs[batch]), data.train.labels[batch]).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize(
    ("data", "make", "loss", "plain"),
    [
        (regression, network, "squared_error", lambda o, y: (o - y).square().sum(1).mean() / 2),
        (regression, network, lambda o, batch: F.l1_loss(o, batch[1]), F.l1_loss),
        (tokens, token_network, None, lambda o, y: F.cross_entropy(o.mT, y)),
        (pixels, lambda: nn.Conv2d(1, 2, 1), None, F.cross_entropy),
    ],
    ids=["regression", "function", "labels [N, T]", "labels [N, H, W]"],
)
def test_training_of_a_task_is_that_of_a_plain_loop(data, make, loss, plain):
    data, model, expected = data(), make(), make()
    expected.load_state_dict(model.state_dict())
    recipe = RECIPE.replace(optimizer="adam", lr_schedule="constant")
    epochs = train(model, data, recipe, loss=loss)
    plain_loop(expected, data, recipe, plain)
    for actual, reference in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(actual, reference)
    with torch.no_grad():
        outputs = expected(data.validation.inputs)
    assert epochs[-1].validation_loss == pytest.approx(
        float(plain(outputs, data.validation.labels)), rel=1e-4
    )
    assert epochs[-1].validation_loss < epochs[0].validation_loss
    if loss is not None:
        assert math.isnan(epochs[-1].validation_accuracy)
    else:
        result = evaluate(expected, data.validation)
        assert epochs[-1].validation_accuracy == pytest.approx(result.accuracy, abs=0.2)
        assert 0 < result.accuracy <= 100


def test_early_stopping_and_resuming_use_the_loss_of_a_regression(tmp_path):
    recipe, data = RECIPE.replace(epochs=6, patience=1), regression()

    def loss(outputs, batch):
        return F.mse_loss(outputs, batch[1])

    complete, resumed, path = network(), network(), tmp_path / "run"
    expected = train(complete, data, recipe, loss=loss)

    class Killed(Exception):
        pass

    def kill(epoch):
        if epoch.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        train(network(), data, recipe, loss=loss, checkpoint=path, report=kill)
    with pytest.raises(prunus.PrunusError, match="belongs to another run"):
        train(network(), data, recipe, loss="squared_error", checkpoint=path)
    got = train(resumed, data, recipe, loss=loss, checkpoint=path)
    assert [e.validation_loss for e in got] == [e.validation_loss for e in expected]
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), complete.parameters(), strict=True))


def test_forward_gets_the_batch():
    data, model = regression(), network()
    task = {"loss": "squared_error", "forward": lambda m, batch: m(batch[0] / 2)}
    epochs = train(model, data, RECIPE, **task)
    assert epochs[-1].validation_loss == pytest.approx(evaluate(model, data.validation, **task).loss)
    expected = network()
    train(expected, data_of(data.train.inputs / 2, data.train.labels), RECIPE, loss="squared_error")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained_in_single_precision(dtype):
    half, single = network().to(dtype), network().to(dtype).float()
    for model in (half, single):
        train(model, regression(), RECIPE.replace(learning_rate=1e-4), loss="squared_error")
    assert all(
        torch.equal(a, b.to(dtype)) for a, b in zip(half.parameters(), single.parameters(), strict=True)
    )
    data = regression()
    halves = data_of(data.train.inputs.to(dtype), data.train.labels.to(dtype))
    own, expected = network().to(dtype), network().to(dtype)
    train(own, halves, RECIPE, loss="squared_error", forward=lambda model, batch: model(batch[0]))
    train(expected, halves, RECIPE, loss="squared_error")
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), expected.parameters(), strict=True))
    with single_precision(half):
        assert half[0].weight.dtype == torch.float32
    assert half[0].weight.dtype == dtype


def test_compression_of_a_regression_trains_with_its_loss(tmp_path):
    data = regression()
    model = network()
    train(model, data, RECIPE.replace(epochs=20), loss="squared_error")
    recipe = prunus.COMPRESSION_RECIPES["default"].replace(
        density=0.5,
        bits=2,
        rounds=1,
        schedule="one_shot",
        retrain=RECIPE,
        final_retrain=RECIPE,
        finetune=RECIPE,
    )
    done = prunus.compress(model, tmp_path / "r.prunus", data=data, preset=recipe, loss="squared_error")
    loss = evaluate(done.model, data.validation, loss="squared_error").loss
    assert done.stages[-1].validation.loss == pytest.approx(loss)
    untrained = prunus.compress(model, data=data, train=False, density=0.5, bits=2, loss="squared_error")
    assert loss < untrained.stages[-1].validation.loss
    with pytest.raises(
        SpecError, match="Expected a finite metric of the dense model with max_accuracy_drop, got nan"
    ):
        prunus.compress(model, data=data, preset=recipe, loss="squared_error", max_accuracy_drop=1.0)


REFUSED = {
    "no loss": (regression, network, {}, StatisticsError, "for the loss 'cross_entropy', got outputs"),
    "a loss per example": (
        regression, network, {"loss": lambda o, b: (o - b[1]).square()}, StatisticsError, "to return a scalar tensor",
    ),
    "a loss that fails": (regression, network, {"loss": lambda o, b: o @ o}, StatisticsError, "failed: RuntimeError"),
    "a loss of nothing": (regression, network, {"loss": lambda o, b: b[1].mean()}, ModelError, "no gradient reaches"),
    "a loss that is NaN": (
        regression, network, {"loss": lambda o, b: (o * math.nan).sum()}, DivergenceError, "The loss is nan",
    ),
    "an unknown loss": (regression, network, {"loss": "squared_eror"}, PrunusError, "did you mean 'squared_error'"),
    "a broadcast": (
        lambda: data_of(torch.randn(40, 8), torch.randn(40)), network, {"loss": "squared_error"}, StatisticsError,
        "numbers of the shape of the outputs",
    ),
    "a forward that fails": (
        regression, network, {"forward": lambda m, b: m(b), "loss": "squared_error"}, ModelError, "failed on a batch",
    ),
    "a label of no output": (tokens, lambda: nn.Sequential(nn.Embedding(6, 5)), {}, ModelError, "C at least 6"),
    "targets with class names": (
        lambda: data_of(torch.randn(40, 8), torch.randn(40, 1), ("a", "b")), network, {"loss": "squared_error"},
        DataError, "a Dataset without class_names",
    ),
    "the sparse backend": (
        regression, network, {"loss": "squared_error", "backend": "sparse"}, SpecError,
        "the task is not the classification of examples",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_tasks_are_refused_in_one_sentence_and_change_nothing(kind):
    data, make, options, error, message = REFUSED[kind]
    model, before = make(), make()
    before.load_state_dict(model.state_dict())
    with pytest.raises(error, match=message) as refused:
        train(model, data(), RECIPE, **options)
    assert "\n" not in str(refused.value)
    if error is not DivergenceError:
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_parameters_that_share_memory_are_trained_as_one():
    """Parameters that are different objects with one memory; a third one is a part of it."""
    model = nn.Sequential(
        nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
    )
    model.half()
    model[1].weight = nn.Parameter(model[0].weight.data.t())
    model[2].weight = nn.Parameter(model[0].weight.data[1:3])
    before = model[0].weight.detach().clone()
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    split = prunus.Split(inputs, (inputs[:, 0] > 0).long())
    train(model, prunus.Dataset("halves", split, split, split, ()), Recipe(2, 0.01, 20))
    first, second, third = (layer.weight for layer in model)
    assert not torch.equal(first, before)
    assert first.dtype == torch.float16
    assert torch.equal(second, first.t())
    assert torch.equal(third, first[1:3])
    assert second.data_ptr() == first.data_ptr()
