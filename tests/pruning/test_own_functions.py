"""Criteria, scopes and schedules of a user that fail or return something else: one sentence that names the function."""

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import DensityError, StatisticsError


def fails(*arguments):
    raise KeyError("no such thing")


def returns_none(*arguments):
    return None


def returns_lists(scores, *arguments):
    return {"weight": [True]}


def returns_floats(scores, *arguments):
    return {name: score * 0 for name, score in scores.items()}


def refuses(*arguments):
    raise DensityError("too dense for me")


CASES = [
    ({"criterion": fails}, StatisticsError, "The criterion 'fails' failed: KeyError: 'no such thing'"),
    (
        {"criterion": returns_none},
        StatisticsError,
        "from the criterion 'returns_none' as one tensor .* NoneType",
    ),
    (
        {"criterion": returns_lists},
        StatisticsError,
        "from the criterion 'returns_lists' as one tensor .* list",
    ),
    (
        {"criterion": lambda statistics: {name: w.sign_() > 0 for name, w in statistics.weights.items()}},
        StatisticsError,
        "real numbers as the scores of 'weight' from the criterion '<lambda>', got torch.bool",
    ),
    ({"criterion": 3}, StatisticsError, "Expected a criterion: .* got 3"),
    ({"criterion": {"weight": [1.0]}}, StatisticsError, "scores by name as one tensor .* list"),
    ({"criterion": {"weight": torch.ones(3)}}, StatisticsError, "scores by name of the names and shapes"),
    ({"scope": fails}, DensityError, "The scope 'fails' failed: KeyError: 'no such thing'"),
    ({"scope": refuses}, DensityError, "^too dense for me$"),
    ({"scope": returns_none}, DensityError, "the scope 'returns_none' to return a boolean mask .* NoneType"),
    ({"scope": returns_lists}, DensityError, "the scope 'returns_lists' to return .* {'weight': list}"),
    ({"scope": returns_floats}, DensityError, r"returns_floats' .* {'weight': torch.float32 \[4, 4\]}"),
    ({"scope": 3}, DensityError, "Expected a scope: .* got 3"),
]


@pytest.mark.parametrize(("options", "error", "message"), CASES)
def test_a_function_that_fails_is_named_and_nothing_is_pruned(options, error, message):
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone()
    with pytest.raises(error, match=message):
        prunus.prune(model, 0.5, **options)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("criterion", ["magnitude", "snip", "obs", "sparse_gpt", "admm", "fisher"])
def test_scope_that_keeps_weights_which_earlier_masks_prune_is_refused(criterion):
    torch.manual_seed(0)
    model = nn.Linear(8, 4)

    def keep_first_half(scores, density, within, seed):
        return {name: torch.arange(score.shape[1]).expand_as(score) < 4 for name, score in scores.items()}

    data, within = (torch.randn(32, 8), torch.arange(32) % 4), {"weight": torch.rand(4, 8) < 0.7}
    with pytest.raises(DensityError, match="'keep_first_half' to keep only weights that earlier masks keep"):
        prunus.prune(model, 0.5, criterion=criterion, scope=keep_first_half, within=within, calibration=data)


def test_a_criterion_that_changes_its_arguments_does_not_change_the_kept_weights():
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone()

    def criterion(statistics):
        return {name: weight.abs_() for name, weight in statistics.weights.items()}

    mask = prunus.prune(model, 0.5, criterion=criterion).masks["weight"]
    assert torch.equal(model.weight, before * mask)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (fails, "The schedule 'fails' failed: KeyError"),
        (returns_none, "the schedule 'returns_none' to return a list of densities"),
        (lambda density, rounds: [], "a list of densities"),
        (lambda density, rounds: [None], "density of all weights to be above 0 .* got None"),
        (lambda density, rounds: [{"weight": 2.0}], "density of 'weight' to be above 0 .* got 2.0"),
    ],
)
def test_a_schedule_that_fails_is_named(schedule, message):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(DensityError, match=message):
        prunus.GradualPruning(schedule, model, 0.5, optimizer, rounds=2, every=1)


@pytest.mark.parametrize(
    "make", [lambda: nn.MultiheadAttention(8, 2), lambda: nn.ConvTranspose1d(4, 6, 4), lambda: nn.GRU(8, 4)]
)
@pytest.mark.parametrize("scope", ["layer", "2:4"])
def test_scores_by_name_are_in_the_order_of_the_parameters(make, scope):
    """Patterns run along the inputs of layers, which are in another order in some parameters."""
    torch.manual_seed(0)
    by_magnitude, by_scores = make(), make()
    scores = {name: p.detach().abs() for name, p in by_magnitude.named_parameters() if p.dim() > 1}
    expected = prunus.prune(by_magnitude, 0.5, scope=scope).masks
    actual = prunus.prune(by_scores, 0.5, scope=scope, criterion=scores).masks
    assert all(torch.equal(actual[name], expected[name]) for name in scores)


def test_scores_by_name_of_a_computed_weight():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    name = "parametrizations.weight.original1"
    scores = {name: torch.arange(16.0).reshape(4, 4) % 5}
    mask = prunus.prune(model, 0.5, criterion=scores).masks[name]
    assert int(mask.sum()) == 8
    assert float(scores[name][mask].min()) >= 2
