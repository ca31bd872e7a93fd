"""The optimizers of recipes take the steps of torch's own optimizers, and do not import its compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from prunus.errors import SpecError, UnknownNameError
from prunus.training import Recipe, train
from prunus.training.optimizers import OPTIMIZERS, PENALTIES
from prunus.training.recipe import LR_SCHEDULES
from prunus.training.recipe_checks import check_recipe

RECIPE = Recipe(1, 0.01, 32, momentum=0.9, weight_decay=0.01)
REFERENCES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01, fused=True),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.9, weight_decay=0.01, nesterov=True, fused=True
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_takes_the_steps_of_torch(name):
    """Bit for bit, also after its state was saved and loaded; hooks of steps are called."""
    weights, calls = [], []
    for make in (lambda p: OPTIMIZERS[name](p, RECIPE), REFERENCES[name]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        optimizer = make(model.parameters())
        optimizer.register_step_post_hook(lambda *_: calls.append(1))
        for step in range(12):
            optimizer.zero_grad()
            model(torch.randn(6, 5)).square().mean().backward()
            optimizer.step()
            if step == 5:
                state, optimizer = optimizer.state_dict(), make(model.parameters())
                optimizer.load_state_dict(state)
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*weights)
    assert len(calls) == 12
    assert isinstance(
        OPTIMIZERS[name](model.parameters(), RECIPE), type(REFERENCES[name](model.parameters()))
    )


def test_training_does_not_import_the_compiler_of_torch():
    """It costs more than a CPU second per process."""
    code = (
        "import sys; from torch import nn; from prunus import Recipe, load_data, train;"
        "from prunus.training.optimizers import OPTIMIZERS;"
        "[train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), load_data('digits'),"
        " Recipe(1, 0.01, 500, optimizer=name, momentum=0.9)) for name in OPTIMIZERS];"
        "print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False"]


@pytest.mark.parametrize(
    ("name", "value"), [("l1", lambda w: w.abs().sum()), ("l2", lambda w: (w**2).sum() / 2)]
)
def test_penalty_adds_the_gradient_of_its_formula(name, value):
    weight = torch.randn(5, 3, requires_grad=True)
    expected = torch.autograd.grad(0.3 * value(weight), weight)[0]
    weight.grad = torch.ones_like(weight)
    PENALTIES[name]([weight], 0.3)
    assert torch.allclose(weight.grad, 1 + expected)


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_learning_rate_starts_at_one_and_never_rises(name):
    values = [LR_SCHEDULES[name](t / 100) for t in range(100)]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0


def test_unknown_optimizer_is_named_with_similar_names(mlp, small_data):
    with pytest.raises(UnknownNameError, match="did you mean 'adam'"):
        train(mlp, small_data, RECIPE.replace(optimizer="adamm"))


def test_number_out_of_range_is_named():
    with pytest.raises(SpecError, match="Expected batch_size to be an integer of at least 1, got 0"):
        check_recipe(RECIPE.replace(batch_size=0))
