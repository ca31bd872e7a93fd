"""OBS and OBD: inverses against inversion, updates against the constrained minimum, steps against the paper's loop."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian

from prunus.errors import DensityError, ModelError, NonFiniteError, StatisticsError, UnknownNameError
from prunus.models.mlp import ScaledTanh, mlp
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.methods import CriterionMethod
from prunus.pruning.obs.full_obs import MAX_WEIGHTS, FullObs, gauss_newton_factors, inverse_hessian
from prunus.pruning.obs.obd import Obd
from prunus.pruning.obs.objective import Objective, flatten_weights, make_objective, unflatten_weights
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES
from prunus.training.losses import LOSSES
from prunus.types import Params

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
from objectives import draw, make_test_objective

ACTIVATIONS = [
    nn.Tanh(),
    nn.Sigmoid(),
    ScaledTanh(),
    nn.GELU(),
    nn.Softplus(),
    nn.ELU(),
    nn.CELU(0.7),
    nn.SiLU(),
    nn.Hardswish(),
    nn.ReLU(),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
"""torch.func.hessian, by which the tests check, brings it in."""
BAR = 1e-4
"""Relative error against the true diagonal, in float64."""


def true_hessian(objective: Objective) -> Tensor:
    return hessian(lambda w: objective.error(unflatten_weights(w, objective.weights)))(
        flatten_weights(objective.weights)
    )


def relative_error(actual: Params, other: Params) -> float:
    """The largest relative error of a tensor."""
    return max(float((actual[n] - other[n]).abs().max() / other[n].abs().max()) for n in other)


def outer_hessian(objective: Objective) -> Tensor:
    vectors = torch.cat(list(gauss_newton_factors(objective)))
    return vectors.T @ vectors / len(objective.inputs)


@pytest.mark.parametrize("loss", LOSSES)
def test_outer_products_are_the_hessian_where_outputs_are_linear_in_the_weights(loss):
    objective = make_test_objective(mlp(3, 4), (3,), loss, n=40)
    torch.testing.assert_close(outer_hessian(objective), true_hessian(objective))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("damping", [1e-4, 1e-6])
def test_recursive_inverse_is_the_inverse(loss, damping):
    """One vector at a time as the paper has it, blocks, and numpy's; fewer examples than weights: singular."""
    objective = make_test_objective(mlp(3, 4, 2), (3,), loss, n=7)
    size = len(flatten_weights(objective.weights))
    plain = torch.from_numpy(
        np.linalg.inv((outer_hessian(objective) + damping * torch.eye(size).double()).numpy())
    )
    for block in (1, 5, 1000):
        actual = inverse_hessian(gauss_newton_factors(objective), 7, damping, block)
        assert float((actual - plain).abs().max() / plain.abs().max()) < 1e-6
    assert torch.linalg.matrix_rank(outer_hessian(objective)) < size


def masks_from(objective: Objective, left: Tensor) -> dict[str, Tensor]:
    return unflatten_weights(left.clone(), objective.weights)


def full_obs_state(objective: Objective, damping: float = 1e-5):
    return FullObs(damping=damping).examiner(objective)(
        objective.weights, masks_from(objective, torch.ones(len(flatten_weights(objective.weights))).bool())
    )


@pytest.mark.parametrize("gone", [[4], [0, 7, 21], list(range(0, 20, 2))], ids=["one", "three", "ten"])
def test_deleting_is_the_constrained_minimum_of_the_quadratic_model(gone):
    """Against the linear system of Lagrange's conditions; the downdated inverse against a new one."""
    objective = make_test_objective(mlp(3, 4, 2), (3,), n=50)
    before, w = full_obs_state(objective), flatten_weights(objective.weights)
    full = outer_hessian(objective) + 1e-5 * torch.eye(len(w)).double()
    left = torch.ones(len(w), dtype=torch.bool)
    left[gone] = False
    after = before.prune_to(masks_from(objective, left))
    pick = torch.eye(len(w)).double()[gone]
    system = torch.cat(
        [torch.cat([full, pick.T], 1), torch.cat([pick, torch.zeros(len(gone), len(gone)).double()], 1)]
    )
    answer = torch.linalg.solve(system, torch.cat([torch.zeros(len(w)).double(), -w[gone]]))
    move = answer[: len(w)]
    torch.testing.assert_close(flatten_weights(after.weights), w + move, rtol=1e-6, atol=1e-8)
    assert after.predicted_increase == pytest.approx(float(move @ full @ move) / 2, rel=1e-6)
    assert not flatten_weights(after.weights)[gone].any()
    inverse = torch.linalg.inv(full[left][:, left])
    assert float((after.inverse[left][:, left] - inverse).abs().max() / inverse.abs().max()) < 1e-6
    assert not after.inverse[~left].any()
    if len(gone) == 1:
        assert float(flatten_weights(before.scores())[gone[0]]) == pytest.approx(
            after.predicted_increase, rel=1e-9
        )


def test_weights_pruned_one_by_one_equal_weights_pruned_together():
    """Of the same look: the quadratic model does not know in what order weights went."""
    objective = make_test_objective(mlp(3, 4, 2), (3,), n=50)
    left = torch.ones(26, dtype=torch.bool)
    stepwise = start = full_obs_state(objective)
    for place in (3, 11, 20):
        left[place] = False
        stepwise = stepwise.prune_to(masks_from(objective, left))
    at_once = start.prune_to(masks_from(objective, left))
    torch.testing.assert_close(
        flatten_weights(stepwise.weights), flatten_weights(at_once.weights), rtol=1e-7, atol=1e-9
    )
    assert stepwise.predicted_increase == pytest.approx(at_once.predicted_increase)


def test_predicted_increase_is_the_true_one_of_a_quadratic_error():
    """A linear network at its minimum: predicted and true increase are one, for OBS; for OBD with its own term."""
    model, n = mlp(6, 1), 60
    x, d = draw(n, 6), draw(n, 1, role="d")
    design = torch.cat([x, torch.ones(n, 1).double()], 1)
    best = torch.linalg.lstsq(design, d).solution
    weights = {"0.weight": best[:6].T.contiguous(), "0.bias": best[6]}
    objective = make_objective(model.double(), weights, x, d, loss="squared_error")
    start = float(objective.error(weights))
    for density in (6 / 7, 3 / 7):
        done = prune_in_steps(
            FullObs(damping=1e-10).examiner(objective), weights, density, SCOPES["global"], num_steps=None
        )
        assert float(objective.error(done.weights)) - start == pytest.approx(
            done.predicted_increase, rel=1e-6
        )
        plain = prune_in_steps(Obd(diagonal="exact").examiner(objective), weights, density, SCOPES["global"])
        assert done.predicted_increase <= float(objective.error(plain.weights)) - start
        assert sum(int(m.sum()) for m in done.masks.values()) == round(7 * density)
    result = prune_in_steps(Obd(diagonal="recursion").examiner(objective), weights, 6 / 7, SCOPES["global"])
    assert float(objective.error(result.weights)) - start == pytest.approx(
        result.predicted_increase, rel=1e-9
    )


def test_duplicate_inputs_can_be_pruned_at_no_cost_by_full_obs_alone():
    """Two weights on one input: one takes over the other's part, where the Hessian is singular."""
    x = draw(20, 1).repeat(1, 2)
    weights = {"0.weight": torch.tensor([[1.0, 1.1]]).double()}
    objective = make_objective(nn.Sequential(nn.Linear(2, 1, bias=False)).double(), weights, x, x[:, :1] * 2.1,
                      loss="squared_error")  # fmt: skip
    for method, cheap in (
        (FullObs().examiner(objective), True),
        (Obd(diagonal="recursion").examiner(objective), False),
        (CriterionMethod(CRITERIA["magnitude"]).examiner(), False),
    ):
        done = prune_in_steps(method, weights, 0.5, SCOPES["global"])
        assert (float(objective.error(done.weights)) < 1e-6) == cheap
    assert (
        prune_in_steps(FullObs(damping=1e-5).examiner(objective), weights, 0.5, SCOPES["global"]).damping
        == 1e-5
    )


@pytest.mark.parametrize("num_steps", [1, 4, None])
@pytest.mark.parametrize("num_recomputations", [1, 3])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("method", [FullObs(), Obd(diagonal="recursion")], ids=["full_obs", "obd"])
def test_masks_have_the_exact_count_under_a_scope(method, scope, num_recomputations, num_steps):
    objective = make_test_objective(mlp(4, 5, 3), (4,), n=30)
    fixed = {n: w.clone() for n, w in objective.weights.items()}
    within = {n: torch.ones_like(w, dtype=torch.bool) for n, w in fixed.items()}
    within["0.weight"][0, :2] = False
    density = 0.5 if scope == "global" else {"0.weight": 0.5, "0.bias": 1.0, "2.weight": 0.4, "2.bias": 1.0}
    examine, states = method.examiner(objective), []

    def recorded(weights, masks):
        states.append(examine(weights, masks))
        return states[-1]

    done = prune_in_steps(
        recorded,
        fixed,
        density,
        SCOPES[scope],
        within=within,
        num_steps=num_steps,
        num_recomputations=num_recomputations,
        seed=1,
    )
    num_kept = sum(int(mask.sum()) for mask in done.masks.values())
    assert num_kept == (22 if scope == "global" else 10 + 5 + 6 + 3)
    for name, mask in done.masks.items():
        assert not (mask & ~within[name]).any()
        assert not done.weights[name][~mask].any()
        assert torch.isfinite(done.weights[name]).all()
        assert torch.equal(fixed[name], objective.weights[name])
    assert len(states) == min(num_recomputations, num_steps or 43 - 2 - num_kept)
    assert done.predicted_increase > 0 or isinstance(method, Obd)


@pytest.mark.parametrize("scope", ["2:4", "1x4"])
@pytest.mark.parametrize("method", [FullObs(), Obd(diagonal="recursion")], ids=["full_obs", "obd"])
def test_masks_have_the_pattern_in_one_step(method, scope):
    objective = make_test_objective(mlp(4, 8, 4), (4,), n=30)
    done = prune_in_steps(method.examiner(objective), objective.weights, 0.5, SCOPES[scope])
    assert [int(mask.sum()) for mask in done.masks.values()] == [16, 4, 16, 4 if scope == "1x4" else 2]
    assert all(not done.weights[name][~mask].any() for name, mask in done.masks.items())
    if scope == "2:4":
        with pytest.raises(DensityError, match=r"Expected density 0\.5"):
            prune_in_steps(method.examiner(objective), objective.weights, 0.5, SCOPES[scope], num_steps=2)


def test_as_many_recomputations_as_steps_is_the_loop_of_the_paper():
    """Look, delete the lowest, move the rest, look again; one look goes another way on a net that is not quadratic."""
    objective = make_test_objective(mlp(4, 6, 2), (4,), n=40, biases=False)
    examine, left, weights, predicted = (
        FullObs(damping=1e-4).examiner(objective),
        torch.ones(36).bool(),
        objective.weights,
        0.0,
    )
    for _ in range(5):
        current = examine(weights, masks_from(objective, left))
        left[flatten_weights(current.scores()).masked_fill(~left, torch.inf).argmin()] = False
        current = current.prune_to(masks_from(objective, left))
        weights, predicted = current.weights, predicted + current.predicted_increase
    done = prune_in_steps(
        examine, objective.weights, 31 / 36, SCOPES["global"], num_steps=None, num_recomputations=5
    )
    assert torch.equal(flatten_weights(done.weights), flatten_weights(weights))
    assert torch.equal(flatten_weights(done.masks), left)
    assert done.predicted_increase == pytest.approx(predicted)
    once = prune_in_steps(
        examine, objective.weights, 31 / 36, SCOPES["global"], num_steps=None, num_recomputations=1
    )
    assert not torch.allclose(flatten_weights(once.weights), flatten_weights(weights))


def test_float32_weights_stay_float32():
    model = mlp(4, 3)
    objective = make_objective(
        model, prunable_weights(model), torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1])
    )
    done = prune_in_steps(FullObs().examiner(objective), objective.weights, 0.5, SCOPES["layer"])
    assert done.weights["0.weight"].dtype == torch.float32
    assert torch.isfinite(done.weights["0.weight"]).all(), "five equal examples: a Hessian of rank two"


def test_invalid_arguments_are_refused():
    objective = make_test_objective(mlp(3, 2), (3,))
    for damping in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(StatisticsError, match="above 0"):
            prune_in_steps(
                FullObs(damping=damping).examiner(objective), objective.weights, 0.5, SCOPES["global"]
            )
    with pytest.raises(StatisticsError, match="got none"):
        inverse_hessian([], 1, 1e-3)
    with pytest.raises(NonFiniteError):
        inverse_hessian([torch.tensor([[torch.nan, 1.0]])], 1, 1e-3)
    state = full_obs_state(objective)
    left = torch.ones(8, dtype=torch.bool)
    left[0] = False
    with pytest.raises(DensityError, match="cannot be restored"):
        state.prune_to(masks_from(objective, left)).prune_to(state.masks)
    assert state.prune_to(state.masks) is state
    for wrong in ({"num_steps": 0}, {"num_recomputations": 0}):
        with pytest.raises(DensityError, match="at least 1"):
            prune_in_steps(FullObs().examiner(objective), objective.weights, 0.5, SCOPES["global"], **wrong)
    with pytest.raises(UnknownNameError):
        Obd(diagonal="fisher").examiner(objective)
    big = nn.Linear(MAX_WEIGHTS, 1)
    wide = make_objective(
        big, dict(big.named_parameters()), torch.ones(1, MAX_WEIGHTS), torch.ones(1, 1), loss="squared_error"
    )
    with pytest.raises(ModelError, match="GiB"):
        FullObs().examiner(wide)
