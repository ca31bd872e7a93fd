"""ExactOBS against loops and least squares."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor, nn

import prunus
from prunus.errors import DensityError, NonFiniteError
from prunus.masks import all_kept, mask_density
from prunus.pruning.density import num_to_keep
from prunus.pruning.matrix import to_matrix
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES, Block, NByM, parse_scope

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
from layers import IN, OUT, N, convolution, correlated, linear, relative_output_errors
from objectives import sparse_gpt


def deleted_by_hand(row: Tensor, hessian: Tensor) -> list[tuple[int, float]]:
    """Which weight is the cheapest to delete next, and its cost, from one linear system per candidate."""
    left, path, spent = list(range(len(row))), [], 0.0
    while left:
        costs = {q: cost_without(row, hessian, [p for p in left if p != q]) for q in left}
        cheapest = min(costs, key=lambda q: costs[q])
        path.append((cheapest, costs[cheapest] - spent))
        spent = costs[cheapest]
        left.remove(cheapest)
    return path


def least_squares(row: Tensor, hessian: Tensor, left: list[int]) -> Tensor:
    solved = torch.zeros_like(row)
    if left:
        solved[left] = torch.linalg.solve(hessian[left][:, left], (hessian @ row)[left])
    return solved


def cost_without(row: Tensor, hessian: Tensor, left: list[int]) -> float:
    change = least_squares(row, hessian, left) - row
    return float(change @ hessian @ change / 2)


def test_scores_are_the_costs_of_deleting_the_cheapest_next():
    model, weights, inputs = linear()
    state = ExactObs().examiner(model, inputs)(weights, all_kept(weights))
    scores, hessian = state.scores()["weight"], state.hessians["weight"].damped()[0]
    for row, message in zip(weights["weight"].detach(), scores, strict=True):
        path = deleted_by_hand(row, hessian)
        assert message.argsort().tolist() == [q for q, _ in path]
        rising = IsotonicRegression().fit_transform(range(IN), [cost for _, cost in path])
        assert message.sort().values.tolist() == pytest.approx(rising.tolist(), rel=1e-6)
        assert message.unique().numel() == IN


@pytest.mark.parametrize("kind", ["linear", "padded", "grouped", "one"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_remaining_weights_are_the_least_squares(kind, scope):
    model, weights, inputs = linear() if kind == "linear" else convolution(kind)
    done = prune_in_steps(ExactObs().examiner(model, inputs), weights, 0.4, SCOPES[scope])
    (name,) = weights
    actual = layer_hessians(model, weights, inputs)[name]
    per_group = len(weights[name]) // len(actual.hessian)
    for number, (row, mask, moved) in enumerate(
        zip(
            to_matrix(weights[name].detach()),
            to_matrix(done.masks[name]),
            to_matrix(done.weights[name]),
            strict=True,
        )
    ):
        hand = least_squares(row, actual.damped()[number // per_group], mask.nonzero().flatten().tolist())
        torch.testing.assert_close(moved, hand)
    assert mask_density(done.masks) == num_to_keep(0.4, weights[name].numel()) / weights[name].numel()
    assert not done.weights[name][~done.masks[name]].any()


def test_predicted_is_the_increase_of_the_damped_error():
    model, weights, inputs = linear()
    done = prune_in_steps(ExactObs().examiner(model, inputs), weights, 0.5, SCOPES["layer"])
    actual = layer_hessians(model, weights, inputs)["weight"]
    change = done.weights["weight"] - weights["weight"].detach()
    damped = actual.error(change) + actual.damping / 2 * float(change.square().sum())
    assert done.predicted_increase == pytest.approx(damped)
    assert done.damping == actual.damping


def test_two_steps_give_the_weights_of_one_step():
    model, weights, inputs = linear()
    state = ExactObs().examiner(model, inputs)(weights, all_kept(weights))
    half = SCOPES["layer"].select(state.scores(), 0.6)
    less = SCOPES["layer"].select(state.scores(), 0.3, half)
    at_once, stepwise = state.prune_to(less), state.prune_to(half).prune_to(less)
    torch.testing.assert_close(at_once.weights["weight"], stepwise.weights["weight"])
    assert at_once.predicted_increase == pytest.approx(stepwise.predicted_increase)


def test_order_of_removals_is_the_same_after_pruning():
    """The order in which the rest goes does not depend on when one looks at it."""
    model, weights, inputs = linear()
    state = ExactObs().examiner(model, inputs)(weights, all_kept(weights))
    first = state.scores()["weight"]
    half = SCOPES["layer"].select({"weight": first}, 0.5)
    again = state.prune_to(half).scores()["weight"]
    assert not again[~half["weight"]].any()
    for before, after, left in zip(first, again, half["weight"], strict=True):
        assert before[left].argsort().tolist() == after[left].argsort().tolist()


def test_scores_are_equal_for_any_number_of_threads():
    model, weights, inputs = linear()
    before = torch.get_num_threads()
    actual = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        actual.append(ExactObs().examiner(model, inputs)(weights, all_kept(weights)).scores()["weight"])
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(*actual)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("method", ["exact_obs", "sparse_gpt"])
@pytest.mark.parametrize(
    ("kind", "scope"),
    [("linear", "4:8"), *itertools.product(["linear", "plain"], ["2:4", "1:2", "1x2", "1x4", "2x2"])],
)
def test_masks_have_the_pattern_and_the_update_lowers_the_error(method, scope, kind):
    model, weights, inputs = linear() if kind == "linear" else convolution(kind)
    (name,), density = weights, 0.5
    if method == "exact_obs":
        done = prune_in_steps(
            ExactObs().examiner(model, inputs, parse_scope(scope)), weights, density, parse_scope(scope)
        )
    else:
        done = sparse_gpt(model, inputs, mask_block_size=8)(weights, density, parse_scope(scope))
    actual = layer_hessians(model, weights, inputs)
    bare = {name: weights[name].detach() * done.masks[name]}
    by_magnitude = parse_scope(scope).select({name: weights[name].detach().abs()}, density)
    # Columns that are gone before cannot make up for the last ones: so few inputs leave SparseGPT no promise but one.
    rivals = [bare, *([{name: weights[name].detach() * by_magnitude[name]}] if method == "exact_obs" else [])]
    ours = relative_output_errors(actual, weights, done.weights)[name]
    assert mask_density(done.masks) == 0.5
    # What the scope made of constant scores of this mask is this mask: it has the pattern.
    assert torch.equal(
        parse_scope(scope).select({name: done.masks[name].double()}, density)[name], done.masks[name]
    )
    assert all(ours < relative_output_errors(actual, weights, rival)[name] for rival in rivals)


def test_n_by_m_scores_prune_every_group_before_one_is_emptied():
    model, weights, inputs = linear()
    scores = ExactObs().examiner(model, inputs, NByM(2, 4))(weights, all_kept(weights)).scores()["weight"]
    for row in scores:
        early = set(row.argsort()[: IN // 2].tolist())
        assert len(early & set(range(4))) == len(early & set(range(4, 8))) == 2


def test_earlier_removals_count_in_n_m_groups():
    """2:4 within 3:4 deletes one of each group before it deletes a second of any."""
    model, weights, inputs = linear()
    before = parse_scope("3:4").select({"weight": weights["weight"].detach().abs()}, 0.75)
    state = ExactObs().examiner(model, inputs, parse_scope("2:4"))(weights, before)
    scores, left = state.scores()["weight"].reshape(OUT, -1, 4), before["weight"].reshape(OUT, -1, 4)
    first = scores.masked_fill(~left, float("inf")).amin(2)  # the cheapest of a group
    second = scores.masked_fill(~left, float("inf")).kthvalue(2, 2).values
    assert bool((first.amax(1) < second.amin(1)).all())


def test_updated_weights_are_contiguous():
    model, weights, inputs = convolution("grouped")
    done = prune_in_steps(ExactObs().examiner(model, inputs), weights, 0.5, SCOPES["layer"])
    assert all(weight.is_contiguous() for weight in done.weights.values())


def test_layer_called_by_keyword_is_examined():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(IN, OUT).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=x)

    model, inputs = Named(), correlated(N, IN)
    actual = layer_hessians(model, prunable_weights(model), inputs)["fc.weight"]
    torch.testing.assert_close(actual.hessian[0], 2 * inputs.T @ inputs / N)


def test_block_costs_what_its_weights_cost_together():
    model, weights, inputs = linear()
    state = ExactObs().examiner(model, inputs, Block(1, 4))(weights, all_kept(weights))
    scores, hessian = state.scores()["weight"], state.hessians["weight"].damped()[0]
    for row, message in zip(weights["weight"].detach(), scores, strict=True):
        costs = [cost_without(row, hessian, rest) for rest in ([4, 5, 6, 7], [0, 1, 2, 3])]
        assert 4 * float(message.min()) == pytest.approx(min(costs), rel=1e-6)
        assert int(message.argmin()) // 4 == int(np.argmin(costs))


def test_weights_of_zero_inputs_are_pruned_first_without_an_update():
    model, weights, inputs = linear()
    inputs[:, [1, 5]] = 0
    state = ExactObs(damping=1e-9).examiner(model, inputs)(weights, all_kept(weights))
    assert state.hessians["weight"].num_zero_inputs == 2
    done = prune_in_steps(ExactObs(damping=1e-9).examiner(model, inputs), weights, 0.75, SCOPES["layer"])
    assert not done.masks["weight"][:, [1, 5]].any()
    left = [0, 2, 3, 4, 6, 7]
    torch.testing.assert_close(done.weights["weight"][:, left], weights["weight"].detach()[:, left])


def test_fewer_examples_than_inputs_need_damping():
    model, weights, inputs = linear()
    done = prune_in_steps(ExactObs().examiner(model, inputs[:3]), weights, 0.5, SCOPES["layer"])
    assert done.damping > 0
    assert torch.isfinite(done.weights["weight"]).all()
    with pytest.raises(NonFiniteError, match=r"singular with damping 0.*use a larger one"):
        prune_in_steps(ExactObs(damping=0.0).examiner(model, inputs[:3]), weights, 0.5, SCOPES["layer"])
    with pytest.raises(NonFiniteError, match="singular"):
        sparse_gpt(model, inputs[:3], damping=0.0)(weights, 0.5, SCOPES["layer"])


def test_masks_that_restore_a_pruned_weight_are_refused():
    model, weights, inputs = linear()
    state = ExactObs().examiner(model, inputs)(weights, all_kept(weights))
    half = SCOPES["layer"].select(state.scores(), 0.5)
    with pytest.raises(DensityError, match="cannot be restored"):
        state.prune_to(half).prune_to(all_kept(weights))


def test_number_of_threads_of_torch_is_restored_after_an_error():
    def interrupt(what, done, total):
        if what.startswith("rows of"):
            raise KeyboardInterrupt

    torch.set_num_threads(1)
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(
            nn.Linear(8, 4), 0.5, criterion="obs", calibration=torch.randn(32, 8), progress=interrupt
        )
    assert torch.get_num_threads() == 1
