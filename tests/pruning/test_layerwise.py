"""Laws of pruning layer by layer: H against sums by hand, deletions against loops and least squares, SparseGPT's
schedule against its definition, budgets against exhaustive search, and an error by name for what cannot be asked.
"""

import itertools
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.errors import DensityError, ModelError, NonFiniteError, StatisticsError
from prunus.masks import all_kept, are_nested, mask_density
from prunus.pruning.layerwise import (
    SparsityPattern,
    allocate_densities,
    error_curves,
    exact_obs,
    layer_hessians,
    relative_output_errors,
    sparse_gpt,
)
from prunus.pruning.layerwise.hessian import STRIPE
from prunus.pruning.layerwise.sparse_gpt import SOLVED, _upper
from prunus.pruning.masks import num_to_keep
from prunus.pruning.matrix import to_matrix
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES, get_scope
from prunus.pruning.second_order import prune_weights
from prunus.seeds import make_generator
from prunus.types import Params

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import small

OUT, IN, N = 6, 8, 40


def draw(*shape: int, role: str = "x") -> Tensor:
    return torch.randn(shape, generator=make_generator(1, role), dtype=torch.float64)


def correlated(n: int, size: int) -> Tensor:
    return draw(n, size) @ (torch.eye(size, dtype=torch.float64) + draw(size, size, role="mix"))


def linear() -> tuple[nn.Module, Params, Tensor]:
    model = nn.Linear(IN, OUT).double()
    with torch.no_grad():
        model.weight.copy_(draw(OUT, IN, role="w"))
    return model, prunable_weights(model), correlated(N, IN)


CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "padded": (nn.Conv2d(4, 6, 3, padding=1, stride=2), (4, 7, 8)),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same"), (4, 6, 7)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2), (4, 9, 8)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 6, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6)),
    "one": (nn.Conv1d(4, 6, 3, padding=1, stride=2), (4, 9)),
    "one grouped": (nn.Conv1d(4, 6, 3, groups=2), (4, 9)),
    "one replicated": (nn.Conv1d(4, 6, 3, padding=2, padding_mode="replicate"), (4, 9)),
    "one circular": (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (4, 9)),
}


def convolution(kind: str) -> tuple[nn.Module, Params, Tensor]:
    layer, shape = CONVOLUTIONS[kind]
    model = nn.Sequential(layer).double()
    with torch.no_grad():
        layer.weight.copy_(draw(*layer.weight.shape, role="w"))
    return model, prunable_weights(model), draw(9, *shape)


# --- H ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_error_that_h_foretells_is_that_of_the_outputs(kind):
    model, weights, inputs = convolution(kind)
    change = draw(*weights["0.weight"].shape, role="change")
    found = layer_hessians(model, weights, inputs, batch_size=4)["0.weight"]
    before = model(inputs)
    with torch.no_grad():
        model[0].weight.add_(change)
    said = (model(inputs) - before).detach().square().sum() / len(inputs)
    assert found.error(change) == pytest.approx(float(said), rel=1e-9)


def test_h_is_twice_the_mean_of_the_outer_products():
    model, weights, inputs = linear()
    found = layer_hessians(model, weights, inputs, damping=0.1)["weight"]
    hand = 2 * sum(torch.outer(x, x) for x in inputs) / N
    torch.testing.assert_close(found.hessian[0], hand)
    assert found.damping == pytest.approx(0.1 * float(hand.diagonal().mean()))
    assert (found.examples, found.vectors, found.dead) == (N, N, 0)


@pytest.mark.parametrize("batch", [1, 7, 40, 100])
def test_batches_change_nothing(batch):
    model, weights, inputs = convolution("padded")
    whole, parts = (
        layer_hessians(model, weights, inputs, batch_size=size)["0.weight"].hessian for size in (100, batch)
    )
    torch.testing.assert_close(whole, parts)


def test_many_inputs_are_multiplied_as_they_come():
    model, weights, _ = linear()
    inputs = correlated(3000, IN)
    found = layer_hessians(model, weights, inputs, batch_size=100)["weight"]
    torch.testing.assert_close(found.hessian[0], 2 * inputs.T @ inputs / 3000)


@pytest.mark.parametrize("batch", [300, 1500])
def test_h_is_whole_where_it_is_summed_in_stripes(batch):
    model, inputs = nn.Linear(2 * STRIPE + 76, 1, bias=False).double(), draw(1500, 2 * STRIPE + 76)
    found = layer_hessians(model, prunable_weights(model), inputs, batch_size=batch)["weight"]
    torch.testing.assert_close(found.hessian[0], 2 * inputs.T @ inputs / 1500)
    assert found.vectors == 1500


def test_hessian_counts_the_calibration_examples_alone_when_a_batch_has_many_inputs():
    """Two images of 40 × 40 pixels are more inputs than are collected before they are multiplied."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU())
    images = torch.randn(3, 2, 40, 40, generator=make_generator(0, "images"))
    change = torch.randn(3, 2, 3, 3, generator=make_generator(0, "change"))
    found = layer_hessians(model, prunable_weights(model), images)["0.weight"]
    error = F.conv2d(images, change, padding=1).double().square().sum() / len(images)
    assert not found.hessian.requires_grad
    assert found.error(change) == pytest.approx(float(error), rel=1e-5)


def test_what_the_model_writes_over_its_inputs_later_does_not_count():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3, bias=False).double()

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x += self.fc(x)
            return x

    model, inputs = Residual(), draw(6, 3)
    found = layer_hessians(model, prunable_weights(model), inputs)["fc.weight"]
    torch.testing.assert_close(found.hessian[0], 2 * inputs.T @ inputs / 6)


def test_sequences_count_every_place():
    model, weights, _ = linear()
    inputs = draw(5, 3, IN)
    found = layer_hessians(model, weights, inputs)["weight"]
    rows = inputs.reshape(15, IN)
    torch.testing.assert_close(found.hessian[0], 2 * rows.T @ rows / 5)
    assert (found.examples, found.vectors) == (5, 15)


def test_a_layer_that_is_called_twice_is_given_both():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3, bias=False).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x))

    model, inputs = Twice(), draw(6, 3)
    second = model.fc(inputs).detach()
    found = layer_hessians(model, prunable_weights(model), inputs)["fc.weight"]
    torch.testing.assert_close(found.hessian[0], 2 * (inputs.T @ inputs + second.T @ second) / 6)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(IN, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2)).double().train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer_hessians(model, prunable_weights(model), correlated(N, IN))
    prune_weights(exact_obs(model, correlated(N, IN)), prunable_weights(model), 0.5, SCOPES["layer"])
    sparse_gpt(model, draw(N, IN))(prunable_weights(model), 0.5, SCOPES["layer"])
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(not module._forward_pre_hooks for module in model.modules())


# --- ExactOBS --------------------------------------------------------------------------------------------------


def deleted_by_hand(row: Tensor, hessian: Tensor) -> list[tuple[int, float]]:
    """Which weight is the cheapest to delete next, and its cost, by solving for every candidate anew."""
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
    surgeon = exact_obs(model, inputs)(weights, all_kept(weights))
    scores, hessian = surgeon.scores()["weight"], surgeon.inputs["weight"].damped()[0]
    for row, said in zip(weights["weight"].detach(), scores, strict=True):
        path = deleted_by_hand(row, hessian)
        assert said.argsort().tolist() == [q for q, _ in path]
        rising = IsotonicRegression().fit_transform(range(IN), [cost for _, cost in path])
        assert said.sort().values.tolist() == pytest.approx(rising.tolist(), rel=1e-6)
        assert said.unique().numel() == IN


@pytest.mark.parametrize("kind", ["linear", "padded", "grouped", "one"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_is_left_is_the_least_squares(kind, scope):
    model, weights, inputs = linear() if kind == "linear" else convolution(kind)
    done = prune_weights(exact_obs(model, inputs), weights, 0.4, SCOPES[scope])
    (name,) = weights
    found = layer_hessians(model, weights, inputs)[name]
    per_group = len(weights[name]) // len(found.hessian)
    for number, (row, mask, moved) in enumerate(
        zip(
            to_matrix(weights[name].detach()),
            to_matrix(done.masks[name]),
            to_matrix(done.weights[name]),
            strict=True,
        )
    ):
        hand = least_squares(row, found.damped()[number // per_group], mask.nonzero().flatten().tolist())
        torch.testing.assert_close(moved, hand)
    assert mask_density(done.masks) == num_to_keep(0.4, weights[name].numel()) / weights[name].numel()
    assert not done.weights[name][~done.masks[name]].any()


def test_predicted_is_the_increase_of_the_damped_error():
    model, weights, inputs = linear()
    done = prune_weights(exact_obs(model, inputs), weights, 0.5, SCOPES["layer"])
    found = layer_hessians(model, weights, inputs)["weight"]
    change = done.weights["weight"] - weights["weight"].detach()
    damped = found.error(change) + found.damping / 2 * float(change.square().sum())
    assert done.predicted == pytest.approx(damped)
    assert done.damping == found.damping


def test_in_two_steps_what_is_left_is_the_same_as_at_once():
    model, weights, inputs = linear()
    surgeon = exact_obs(model, inputs)(weights, all_kept(weights))
    half = SCOPES["layer"](surgeon.scores(), 0.6)
    less = SCOPES["layer"](surgeon.scores(), 0.3, half)
    at_once, stepwise = surgeon.keep(less), surgeon.keep(half).keep(less)
    torch.testing.assert_close(at_once.weights["weight"], stepwise.weights["weight"])
    assert at_once.predicted == pytest.approx(stepwise.predicted)


def test_scores_go_on_from_what_is_left():
    """The order in which the rest goes does not depend on when one looks at it."""
    model, weights, inputs = linear()
    surgeon = exact_obs(model, inputs)(weights, all_kept(weights))
    first = surgeon.scores()["weight"]
    half = SCOPES["layer"]({"weight": first}, 0.5)
    again = surgeon.keep(half).scores()["weight"]
    assert not again[~half["weight"]].any()
    for before, after, left in zip(first, again, half["weight"], strict=True):
        assert before[left].argsort().tolist() == after[left].argsort().tolist()


def test_threads_do_not_change_a_bit():
    model, weights, inputs = linear()
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(exact_obs(model, inputs)(weights, all_kept(weights)).scores()["weight"])
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("method", ["exact_obs", "sparse_gpt"])
@pytest.mark.parametrize(
    ("kind", "scope"),
    [("linear", "4:8"), *itertools.product(["linear", "plain"], ["2:4", "1:2", "1x2", "1x4", "2x2"])],
)
def test_patterns_are_kept_and_the_update_pays(method, scope, kind):
    model, weights, inputs = linear() if kind == "linear" else convolution(kind)
    (name,), density = weights, 0.5
    if method == "exact_obs":
        done = prune_weights(
            exact_obs(model, inputs, holes=SparsityPattern.of(scope)), weights, density, get_scope(scope)
        )
    else:
        done = sparse_gpt(model, inputs, select=8)(weights, density, get_scope(scope))
    found = layer_hessians(model, weights, inputs)
    bare = {name: weights[name].detach() * done.masks[name]}
    by_magnitude = get_scope(scope)({name: weights[name].detach().abs()}, density)
    # Columns that are gone before cannot make up for the last ones: so few inputs leave SparseGPT no promise but one.
    rivals = [bare, *([{name: weights[name].detach() * by_magnitude[name]}] if method == "exact_obs" else [])]
    ours = relative_output_errors(found, weights, done.weights)[name]
    assert mask_density(done.masks) == 0.5
    # What the scope made of constant scores of this mask is this mask: it has the pattern.
    assert torch.equal(get_scope(scope)({name: done.masks[name].double()}, density)[name], done.masks[name])
    assert all(ours < relative_output_errors(found, weights, rival)[name] for rival in rivals)


def test_an_n_m_run_deletes_from_every_group_before_it_empties_one():
    model, weights, inputs = linear()
    scores = exact_obs(model, inputs, holes=SparsityPattern(n_m=(2, 4)))(weights, all_kept(weights)).scores()[
        "weight"
    ]
    for row in scores:
        early = set(row.argsort()[: IN // 2].tolist())
        assert len(early & set(range(4))) == len(early & set(range(4, 8))) == 2


def test_what_a_group_has_lost_before_counts_in_an_n_m_run():
    """2:4 within 3:4 deletes one of each group before it deletes a second of any."""
    model, weights, inputs = linear()
    before = get_scope("3:4")({"weight": weights["weight"].detach().abs()}, 0.75)
    surgeon = exact_obs(model, inputs, holes=SparsityPattern.of("2:4"))(weights, before)
    scores, left = surgeon.scores()["weight"].reshape(OUT, -1, 4), before["weight"].reshape(OUT, -1, 4)
    first = scores.masked_fill(~left, float("inf")).amin(2)  # the cheapest of a group
    second = scores.masked_fill(~left, float("inf")).kthvalue(2, 2).values
    assert bool((first.amax(1) < second.amin(1)).all())


def test_what_is_kept_lies_in_memory_as_files_want_it():
    model, weights, inputs = convolution("grouped")
    done = prune_weights(exact_obs(model, inputs), weights, 0.5, SCOPES["layer"])
    assert all(weight.is_contiguous() for weight in done.weights.values())


def test_a_layer_called_by_keyword_is_looked_at():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(IN, OUT).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=x)

    model, inputs = Named(), correlated(N, IN)
    found = layer_hessians(model, prunable_weights(model), inputs)["fc.weight"]
    torch.testing.assert_close(found.hessian[0], 2 * inputs.T @ inputs / N)


def test_a_block_costs_what_its_weights_cost_together():
    model, weights, inputs = linear()
    surgeon = exact_obs(model, inputs, holes=SparsityPattern(block=4))(weights, all_kept(weights))
    scores, hessian = surgeon.scores()["weight"], surgeon.inputs["weight"].damped()[0]
    for row, said in zip(weights["weight"].detach(), scores, strict=True):
        costs = [cost_without(row, hessian, rest) for rest in ([4, 5, 6, 7], [0, 1, 2, 3])]
        assert 4 * float(said.min()) == pytest.approx(min(costs), rel=1e-6)
        assert int(said.argmin()) // 4 == int(np.argmin(costs))


def test_dead_inputs_go_first_and_move_nothing():
    model, weights, inputs = linear()
    inputs[:, [1, 5]] = 0
    surgeon = exact_obs(model, inputs, damping=1e-9)(weights, all_kept(weights))
    assert surgeon.inputs["weight"].dead == 2
    done = prune_weights(exact_obs(model, inputs, damping=1e-9), weights, 0.75, SCOPES["layer"])
    assert not done.masks["weight"][:, [1, 5]].any()
    left = [0, 2, 3, 4, 6, 7]
    torch.testing.assert_close(done.weights["weight"][:, left], weights["weight"].detach()[:, left])


def test_fewer_examples_than_inputs_are_damped_and_say_so():
    model, weights, inputs = linear()
    done = prune_weights(exact_obs(model, inputs[:3]), weights, 0.5, SCOPES["layer"])
    assert done.damping > 0
    assert torch.isfinite(done.weights["weight"]).all()
    with pytest.raises(NonFiniteError, match=r"singular with damping 0.*ask for more"):
        prune_weights(exact_obs(model, inputs[:3], damping=0.0), weights, 0.5, SCOPES["layer"])
    with pytest.raises(NonFiniteError, match="singular"):
        sparse_gpt(model, inputs[:3], damping=0.0)(weights, 0.5, SCOPES["layer"])


def test_a_deleted_weight_does_not_come_back():
    model, weights, inputs = linear()
    surgeon = exact_obs(model, inputs)(weights, all_kept(weights))
    half = SCOPES["layer"](surgeon.scores(), 0.5)
    with pytest.raises(DensityError, match="does not come back"):
        surgeon.keep(half).keep(all_kept(weights))


# --- SparseGPT -------------------------------------------------------------------------------------------------


def by_columns(weight: Tensor, inverse: Tensor, density: float, select: int) -> tuple[Tensor, Tensor]:
    """The schedule as its definition: the inverse of the columns to come, downdated one by one."""
    w, inverse, kept = weight.clone(), inverse.clone(), torch.zeros_like(weight, dtype=torch.bool)
    share = num_to_keep(density, w.numel()) / w.numel()
    factors, whole = [], inverse.clone()
    for c in range(w.shape[1]):
        factors.append(whole[c, c].clone())
        whole = whole - torch.outer(whole[:, c], whole[c]) / whole[c, c]
    spent = 0
    for c in range(w.shape[1]):
        if c % select == 0:
            end = min(c + select, w.shape[1])
            scores = w[:, c:end].square() / torch.stack(factors[c:end])
            k = num_to_keep(share, len(w) * end) - spent
            spent += k
            best = scores.flatten().argsort(descending=True)[:k]
            mask = torch.zeros(scores.numel(), dtype=torch.bool)
            mask[best] = True
            kept[:, c:end] = mask.reshape(scores.shape)
        lost = torch.where(kept[:, c], 0.0, w[:, c]) / inverse[c, c]
        w -= torch.outer(lost, inverse[c])
        w[:, c] = torch.where(kept[:, c], w[:, c], 0.0)
        inverse = inverse - torch.outer(inverse[:, c], inverse[c]) / inverse[c, c]
    return w, kept


@pytest.mark.parametrize("select", [1, 2, 3, 4, 8, 128])
@pytest.mark.parametrize("density", [0.3, 0.5, 0.9])
def test_halves_of_halves_are_the_schedule_column_by_column(select, density):
    model, weights, _ = linear()
    inputs = draw(N, IN)
    done = sparse_gpt(model, inputs, select=select)(weights, density, SCOPES["layer"])
    found = layer_hessians(model, weights, inputs)["weight"]
    hand, mask = by_columns(weights["weight"].detach(), found.damped()[0].inverse(), density, select)
    assert torch.equal(done.masks["weight"], mask)
    torch.testing.assert_close(done.weights["weight"], hand * mask)
    assert int(mask.sum()) == num_to_keep(density, OUT * IN)


@pytest.mark.parametrize("size", [IN, 2 * SOLVED + 45])
def test_the_factor_is_that_of_the_inverse(size):
    model, inputs = nn.Linear(size, 1, bias=False).double(), correlated(N, size)
    found = layer_hessians(model, prunable_weights(model), inputs)["weight"]
    upper = _upper("weight", found, 0)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, found.damped()[0].inverse())


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
@pytest.mark.parametrize("kind", ["grouped", "depthwise", "padded"])
def test_groups_of_a_convolution_are_layers_of_their_own(kind):
    model, weights, inputs = convolution(kind)
    layer, groups = model[0], model[0].groups
    done = sparse_gpt(model, inputs, select=None)(weights, 0.5, SCOPES["layer"])
    for group in range(groups):
        rows = slice(group * layer.out_channels // groups, (group + 1) * layer.out_channels // groups)
        ins = slice(group * layer.in_channels // groups, (group + 1) * layer.in_channels // groups)
        alone = nn.Conv2d(
            layer.in_channels // groups, layer.out_channels // groups, 3, layer.stride, layer.padding
        ).double()
        with torch.no_grad():
            alone.weight.copy_(layer.weight[rows])
        # The damping is a share of the mean over all groups; of one group alone it is another.
        share = 0.01 * float(
            layer_hessians(model, weights, inputs)["0.weight"].damping
            / layer_hessians(alone, prunable_weights(alone), inputs[:, ins])["weight"].damping
        )
        given = done.masks["0.weight"][rows]
        mine = sparse_gpt(alone, inputs[:, ins], select=None, damping=share)(
            prunable_weights(alone), 0.5, lambda scores, density, within, seed, given=given: {"weight": given}
        )
        torch.testing.assert_close(mine.weights["weight"], done.weights["0.weight"][rows])


def test_predicted_is_what_the_schedule_lost():
    """The columns before a deletion cannot make up for it: the cost is that of moving the columns after it alone."""
    model, weights, _ = linear()
    inputs = draw(N, IN)
    done = sparse_gpt(model, inputs)(weights, 0.5, SCOPES["layer"])
    found = layer_hessians(model, weights, inputs)["weight"]
    change = done.weights["weight"] - weights["weight"].detach()
    damped = found.error(change) + found.damping / 2 * float(change.square().sum())
    assert done.predicted == pytest.approx(damped)


def test_with_the_same_masks_exact_obs_is_never_worse():
    model, weights, inputs = linear()
    swept = sparse_gpt(model, inputs, select=4)(weights, 0.5, SCOPES["layer"])
    exact = exact_obs(model, inputs)(weights, all_kept(weights)).keep(swept.masks)
    assert exact.predicted <= swept.predicted * (1 + 1e-9)


def test_the_global_scope_chooses_before_anything_moves():
    model = nn.Sequential(nn.Linear(IN, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, weights = correlated(N, IN), prunable_weights(model)
    with pytest.raises(DensityError, match="select=None"):
        sparse_gpt(model, inputs)(weights, 0.5, SCOPES["global"])
    done = sparse_gpt(model, inputs, select=None)(weights, 0.5, SCOPES["global"])
    assert sum(int(mask.sum()) for mask in done.masks.values()) == num_to_keep(0.5, 5 * IN + 15)


@pytest.mark.parametrize("select", [2, None])
def test_what_was_pruned_before_stays_pruned(select):
    model, weights, inputs = linear()
    before = SCOPES["layer"]({"weight": weights["weight"].detach().abs()}, 0.6)
    done = sparse_gpt(model, inputs, select=select)(weights, 0.3, SCOPES["layer"], within=before)
    assert are_nested(done.masks, before)
    assert int(done.masks["weight"].sum()) == num_to_keep(0.3, OUT * IN)
    assert not done.weights["weight"][~done.masks["weight"]].any()


def test_densities_by_name_are_exact():
    model = nn.Sequential(nn.Linear(IN, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    asked = {"0.weight": 0.35, "2.weight": 0.6}
    inputs, weights = correlated(N, IN), prunable_weights(model)
    for prune in (sparse_gpt(model, inputs, select=3), by_surgeon(model, inputs)):
        done = prune(weights, asked, SCOPES["layer"])
        assert {n: int(m.sum()) for n, m in done.masks.items()} == {
            n: num_to_keep(asked[n], m.numel()) for n, m in done.masks.items()
        }


# --- Both ------------------------------------------------------------------------------------------------------

METHODS = {"exact_obs": lambda model, inputs, **kw: by_surgeon(model, inputs, **kw), "sparse_gpt": sparse_gpt}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def by_surgeon(model: nn.Module, inputs: Tensor, **kw: float):
    return lambda weights, density, scope, **rest: prune_weights(
        exact_obs(model, inputs, **kw), weights, density, scope, **rest
    )


@each_method
@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (torch.zeros(0, IN).double(), StatisticsError, "hold no example"),
        (torch.ones(4, 3).double(), StatisticsError, "does not take calibration inputs"),
        (torch.full((4, IN), torch.nan).double(), NonFiniteError, "calibration"),
        (torch.zeros(4, IN).double(), StatisticsError, "are zero in all 4"),
    ],
    ids=["empty", "shape", "nan", "zero"],
)
def test_bad_calibration_inputs_have_a_named_error(method, inputs, error, words):
    model, weights, _ = linear()
    with pytest.raises(error, match=words):
        method(model, inputs)(weights, 0.5, SCOPES["layer"])


@each_method
def test_a_layer_that_is_never_reached_is_named(method):
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(IN, 2), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Spare().double()
    with pytest.raises(ModelError, match=r"never reached the layer of 'spare.weight'.*exclude"):
        method(model, correlated(N, IN))(prunable_weights(model), 0.5, SCOPES["layer"])


@each_method
def test_layers_of_other_kinds_are_named(method):
    model = nn.Sequential(nn.ConvTranspose2d(2, 2, 2)).double()
    with pytest.raises(ModelError, match=r"ConvTranspose2d.*exclude"):
        method(model, draw(3, 2, 4, 4))(prunable_weights(model), 0.5, SCOPES["layer"])


@each_method
def test_densities_no_pattern_can_give_are_named(method):
    model, weights, inputs = linear()
    with pytest.raises(DensityError, match=r"2:4 keeps exactly 0\.5"):
        method(model, inputs)(weights, 0.3, SCOPES["2:4"])


@each_method
@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_damping_is_a_share(method, damping):
    model, weights, inputs = linear()
    with pytest.raises(StatisticsError, match=r"[Dd]amping"):
        method(model, inputs, damping=damping)(weights, 0.5, SCOPES["layer"])


@each_method
def test_weights_that_are_not_finite_are_named(method):
    model, weights, inputs = linear()
    broken = {"weight": weights["weight"].detach().clone()}
    broken["weight"][0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="weight"):
        method(model, inputs)(broken, 0.5, SCOPES["layer"])


@each_method
def test_float32_agrees_with_float64(method):
    model, weights, _ = linear()
    inputs = draw(N, IN)
    double = method(model, inputs)(weights, 0.5, SCOPES["layer"])
    single = method(model.float(), inputs.float())(prunable_weights(model), 0.5, SCOPES["layer"])
    assert torch.equal(double.masks["weight"], single.masks["weight"])
    torch.testing.assert_close(
        double.weights["weight"].float(), single.weights["weight"], rtol=1e-3, atol=1e-4
    )


@each_method
def test_density_one_moves_nothing(method):
    model, weights, inputs = linear()
    done = method(model, inputs)(weights, 1.0, SCOPES["layer"])
    assert torch.equal(done.weights["weight"], weights["weight"].detach())


@each_method
def test_the_same_masks_without_the_update_are_worse(method):
    """On a network of real layers, with what a layer passes on to the next."""
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 9, 9)).double()
    inputs, weights = draw(300, 8, 5, 5).cumsum(2), prunable_weights(small.drawn(model, 2))
    done = method(model, inputs)(weights, 0.5, SCOPES["layer"])
    found = layer_hessians(model, weights, inputs)
    bare = {name: weight.detach() * done.masks[name] for name, weight in weights.items()}
    updated, zeroed = (relative_output_errors(found, weights, one) for one in (done.weights, bare))
    assert all(updated[name] < zeroed[name] for name in weights)
    assert set(done.seconds) == set(weights)


# --- Budgets ---------------------------------------------------------------------------------------------------


def test_a_budget_is_the_best_of_all_choices():
    levels = (0.2, 0.5, 0.7, 1.0)
    sizes = {"a": 10, "b": 20, "c": 30}
    rough = {name: dict(zip(levels, draw(4, role=name).square().tolist(), strict=True)) for name in sizes}
    for density in (0.25, 0.4, 0.6, 0.9):
        chosen = allocate_densities(rough, sizes, density)
        fits = [
            choice
            for choice in itertools.product(levels, repeat=3)
            if sum(num_to_keep(d, n) for d, n in zip(choice, sizes.values(), strict=True))
            <= num_to_keep(density, 60)
        ]
        costs = [sum(rough[n][d] for n, d in zip(sizes, choice, strict=True)) for choice in fits]
        assert sum(rough[n][d] for n, d in chosen.items()) == pytest.approx(min(costs))
        assert sum(num_to_keep(chosen[n], sizes[n]) for n in sizes) <= num_to_keep(density, 60)


def test_on_convex_curves_a_budget_is_the_global_scope():
    scores = {name: draw(*shape, role=name).square() for name, shape in {"a": (10, 5), "b": (7, 10)}.items()}
    sizes = {name: score.numel() for name, score in scores.items()}
    fine = [level / 350 for level in range(1, 351)]
    chosen = allocate_densities(error_curves(scores, all_kept(scores), fine), sizes, 0.5)
    masks = SCOPES["global"](scores, 0.5)
    assert {n: num_to_keep(chosen[n], sizes[n]) for n in sizes} == {n: int(m.sum()) for n, m in masks.items()}


def test_curves_are_the_errors_of_exact_obs():
    model, weights, inputs = linear()
    surgeon = exact_obs(model, inputs)(weights, all_kept(weights))
    scores = surgeon.scores()
    curve = error_curves(scores, surgeon.masks, [0.25, 0.5, 1.0])["weight"]
    assert curve[1.0] == 0
    for density in (0.25, 0.5):
        done = surgeon.keep(SCOPES["layer"](scores, density))
        assert done.predicted == pytest.approx(curve[density], rel=0.01)


def test_a_budget_below_every_level_is_named():
    with pytest.raises(DensityError, match="lowest levels"):
        allocate_densities({"a": {0.5: 1.0, 1.0: 0.0}}, {"a": 10}, 0.3)


def test_no_warning_comes_of_ordinary_use():
    model, weights, inputs = convolution("padded")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune_weights(exact_obs(model, inputs), weights, 0.5, SCOPES["layer"])


def test_unfolded_convolutions_multiply_as_the_layer_does():
    model, weights, inputs = convolution("grouped")
    found = layer_hessians(model, weights, inputs)["0.weight"]
    bare = F.conv2d(inputs, model[0].weight, groups=2).detach()
    assert found.error(weights["0.weight"]) == pytest.approx(float(bare.square().sum()) / len(inputs))
