"""Pruning by the blockwise empirical Fisher: gradients against loops, blocks against dense algebra and the recursive
inverse, updates against the constrained minimum, and one step against many.
"""

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import DensityError, ModelError, NonFiniteError, StatisticsError
from prunus.masks import all_kept, are_nested, mask_density
from prunus.models import MODELS
from prunus.models.mlp import mlp
from prunus.pruning.methods import CriterionMethod
from prunus.pruning.obs.fisher import (
    CHUNK_ENTRIES,
    MAX_FISHER_BYTES,
    Fisher,
    damped_cholesky,
    empirical_fisher,
    from_blocks,
    per_example_gradients,
    to_blocks,
)
from prunus.pruning.obs.full_obs import FullObsState, inverse_hessian
from prunus.pruning.obs.objective import Objective, flatten_weights, make_objective, unflatten_weights
from prunus.pruning.obs.state import prune_in_steps
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import SCOPES
from prunus.seeds import make_generator
from prunus.types import MaskDict

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
import objectives
import tiny_networks
from objectives import draw


class Normed(nn.Module):
    """A convolutional bridge with BatchNorm, and functions between: what a ResNet is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.over = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm(self.first(x)))
        x = nn.functional.relu(x + self.second(self.over(x)))
        return self.last(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


make_test_objective = partial(objectives.make_test_objective, loss="cross_entropy", n=30, biases=False)


def without(objective: Objective, gone: Sequence[int]) -> MaskDict:
    """Masks that lack the weights at these places of all."""
    left = torch.ones(len(flatten_weights(objective.weights)), dtype=torch.bool)
    left[list(gone)] = False
    return unflatten_weights(left, objective.weights)


def loop(objective: Objective) -> Tensor:
    """[N, P]: autograd, one example after the other."""
    rows = []
    for place in range(len(objective.inputs)):
        weights = {name: w.clone().requires_grad_() for name, w in objective.weights.items()}
        answer = objective.outputs(weights, objective.inputs[place : place + 1])
        error = objective.loss.value(answer, objective.targets[place : place + 1]).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(error, list(weights.values()))]))
    return torch.stack(rows)


def dense(objective: Objective, block: int, damping: float) -> Tensor:
    """[P, P]: λI + the mean outer product, with zeros between the blocks."""
    g, same = loop(objective), []
    for place, w in enumerate(objective.weights.values()):
        same.append(place * 10**6 + torch.arange(w.numel()) // block)
    number = torch.cat(same)
    full = (g.T @ g / len(g)) * (number[:, None] == number)
    return full + damping * torch.eye(len(full)).double()


MODELS_HERE = {
    "mlp": lambda: (mlp(4, 5, 3), (4,)),
    "residual": lambda: (tiny_networks.Residual(), (64,)),
    "normed": lambda: (Normed(), (2, 7, 7)),
}
WORST = 1e-6
"""Relative error of an inverse with damping 1e-5, in float64."""


# The Fisher


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("made", MODELS_HERE.values(), ids=MODELS_HERE)
def test_gradients_are_those_of_a_loop(made, loss):
    """Biases too; whatever the batch; BatchNorm with the statistics it has, though the model was in training."""
    objective = make_test_objective(*made(), loss=loss, n=7, biases=True)
    for batch in (1, 3, 100):
        actual = torch.cat(
            [
                torch.cat([t.flatten(1) for t in g.values()], 1)
                for g in per_example_gradients(objective, batch)
            ]
        )
        torch.testing.assert_close(actual, loop(objective))


class Square(torch.autograd.Function):
    """A function that functorch cannot transform."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Squared(nn.Module):
    def __init__(self, square):
        super().__init__()
        self.square, self.first, self.last = square, nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.square(self.first(x)))


@pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning")
def test_gradients_pass_through_functions_of_the_user():
    torch.manual_seed(0)
    custom, plain = Squared(Square.apply), Squared(torch.square)
    plain.load_state_dict(custom.state_dict())
    data = (draw(24, 8).float(), torch.arange(24) % 3)
    masks = [
        prunus.prune(model, 0.5, criterion="fisher", calibration=data).masks for model in (custom, plain)
    ]
    assert all(torch.equal(masks[0][name], mask) for name, mask in masks[1].items())
    for criterion in ("obd_hutchinson", "full_obs"):
        with pytest.raises(
            ModelError, match=r"cannot be differentiated .*; choose another method, such as fisher"
        ):
            prunus.prune(custom, 0.3, criterion=criterion, calibration=data)


def settled(model: nn.Module, inputs: Tensor) -> nn.Module:
    """With the statistics of these inputs in every BatchNorm: untrained ResNets answer in millions without."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model.train()(inputs)
    return model


def test_gradients_of_a_resnet_are_those_of_a_loop():
    model = settled(MODELS["resnet-20"](), torch.rand(8, 3, 32, 32)).double()
    objective = make_objective(
        model, dict(model.named_parameters()), draw(2, 3, 32, 32), torch.tensor([1, 7])
    )
    (actual,) = per_example_gradients(objective, 2)
    torch.testing.assert_close(torch.cat([g.flatten(1) for g in actual.values()], 1), loop(objective))


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith(("lenet", "conv", "resnet-20"))])
def test_built_in_models_are_pruned_and_not_changed(name):
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    model = settled(MODELS[name](), torch.rand(8, *shape))
    state = {n: t.clone() for n, t in model.state_dict().items()}
    last = list(prunable_weights(model).items())[-1:]
    objective = make_objective(model, dict(last), torch.rand(3, *shape), torch.tensor([1, 7, 3]))
    done = prune_in_steps(
        Fisher().examiner(objective),
        objective.weights,
        0.3,
        SCOPES["layer"],
        num_recomputations=2,
        num_steps=2,
    )
    assert mask_density(done.masks) == pytest.approx(0.3, abs=1e-3)
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training


@pytest.mark.parametrize("block", [1, 4, 7, 1000])
def test_fisher_is_the_mean_outer_product_in_blocks_of_one_tensor(block):
    """In any order of the examples, in any batches."""
    objective = make_test_objective(*MODELS_HERE["normed"]())
    expected, start = dense(objective, block, 0.0), 0
    turned = objective.inputs.flip(0), objective.targets.flip(0)
    other = make_objective(objective.model, objective.weights, *turned)
    first, second = (empirical_fisher(a, block, batch) for a, batch in ((objective, 4), (other, 30)))
    for name, blocks in first.items():
        size, width = objective.weights[name].numel(), min(block, objective.weights[name].numel())
        assert blocks.shape == (math.ceil(size / width), width, width)
        actual = torch.block_diag(*blocks)
        torch.testing.assert_close(actual[:size, :size], expected[start:, start:][:size, :size])
        assert not actual[size:].any(), "what a last block is filled up with has no gradient"
        torch.testing.assert_close(second[name], blocks)
        start += size


def test_blocks_follow_the_flattened_order_and_come_back():
    weight = draw(3, 2, 2)
    for block in (1, 5, 12, 40):
        blocks = to_blocks(weight.flatten(), block)
        assert blocks.shape == (math.ceil(12 / block), min(block, 12))
        assert torch.equal(blocks.flatten()[:12], weight.flatten())
        assert torch.equal(from_blocks(blocks, weight), weight)


@pytest.mark.parametrize("damping", [1e-3, 1e-5])
@pytest.mark.parametrize("n", [1, 6, 60])
def test_inverse_is_the_recursive_one(n, damping):
    """Woodbury, one gradient after the other, of the same gradients; fewer of them than weights, or more."""
    objective = make_test_objective(mlp(4, 5, 3), (4,), n=n)
    actual = empirical_fisher(objective, 8, 32)
    for name, rows in {
        n: torch.cat([g[n] for g in per_example_gradients(objective, 32)]) for n in objective.weights
    }.items():
        left = to_blocks(torch.ones(objective.weights[name].numel()), 8).double()
        inverses = torch.cholesky_inverse(damped_cholesky(actual[name], left, damping, name))
        for place, chunk in enumerate(torch.split(rows.flatten(1), 8, dim=1)):
            expected = inverse_hessian([chunk], n, damping, block_size=1)
            current = inverses[place][: len(expected), : len(expected)]
            assert float((current - expected).abs().max() / expected.abs().max()) < WORST


# States


def lagrange(full: Tensor, w: Tensor, gone: Sequence[int]) -> Tensor:
    """The move that makes ½ δᵀ full δ least among those that set `gone` to zero, by its linear system."""
    pick = torch.eye(len(w)).double()[list(gone)]
    none = torch.zeros(len(gone), len(gone)).double()
    system = torch.cat([torch.cat([full, pick.T], 1), torch.cat([pick, none], 1)])
    return torch.linalg.solve(system, torch.cat([torch.zeros(len(w)).double(), -w[list(gone)]]))[: len(w)]


@pytest.mark.parametrize("block", [1, 6, 1000])
@pytest.mark.parametrize("gone", [[4], [0, 7, 21], list(range(0, 36, 2)), list(range(36))], ids=len)
def test_deleting_is_the_constrained_minimum_of_the_quadratic_model(gone, block):
    """And what is predicted is its increase there; blocks without a deleted weight stay as they are, bit for bit."""
    objective = make_test_objective(mlp(4, 6, 2), (4,), n=50)
    w, full = flatten_weights(objective.weights), dense(objective, block, 1e-5)
    before = Fisher(block_size=block, damping=1e-5).examiner(objective)(
        objective.weights, all_kept(objective.weights)
    )
    after, move = before.prune_to(without(objective, gone)), lagrange(full, w, gone)
    torch.testing.assert_close(flatten_weights(after.weights), w + move, rtol=1e-6, atol=1e-8)
    assert after.predicted_increase == pytest.approx(float(move @ full @ move) / 2, rel=1e-6)
    assert not flatten_weights(after.weights)[gone].any()
    untouched = (full[gone].abs().sum(0) == 0) if block < 1000 else torch.zeros(36).bool()
    assert torch.equal(flatten_weights(after.weights)[untouched], w[untouched])
    if len(gone) == 1:
        assert float(flatten_weights(before.scores())[gone[0]]) == pytest.approx(
            after.predicted_increase, rel=1e-9
        )
    left = flatten_weights(after.masks)
    pivots = torch.linalg.inv(full[left][:, left]).diagonal()
    torch.testing.assert_close(flatten_weights(after.pivots)[left], pivots, rtol=WORST, atol=0)
    assert (before.predicted_increase, before.damping, after.damping) == (0.0, 1e-5, 1e-5)


def test_blocks_beyond_one_chunk_are_processed_alike():
    """Of 20,010 weights in 401 blocks, against the inverse of each."""
    objective = make_test_objective(nn.Linear(667, 30, bias=False), (667,), n=40)
    g = to_blocks(torch.cat([g["weight"].flatten(1) for g in per_example_gradients(objective, 40)]), 50)
    full = torch.einsum("nbp,nbq->bpq", g, g) / 40 + 1e-4 * torch.eye(50).double()
    assert full.numel() > 3 * CHUNK_ENTRIES
    assert g.numel() > 3 * CHUNK_ENTRIES
    before = Fisher(batch_size=40).examiner(objective)(objective.weights, all_kept(objective.weights))
    inverse = torch.linalg.inv(full)
    pivots = from_blocks(inverse.diagonal(dim1=1, dim2=2), objective.weights["weight"])
    torch.testing.assert_close(before.pivots["weight"], pivots, rtol=WORST, atol=0)
    masks = SCOPES["layer"].select(before.scores(), 0.7)
    after, w = before.prune_to(masks), to_blocks(objective.weights["weight"].flatten(), 50)
    gone = to_blocks(~masks["weight"].flatten(), 50)
    both = inverse * gone.unsqueeze(1) * gone.unsqueeze(2) + torch.diag_embed((~gone).double())
    pull = torch.linalg.solve(both, (w * gone).unsqueeze(2))
    expected = (w - (inverse @ pull).squeeze(2)) * ~gone
    torch.testing.assert_close(
        after.weights["weight"], from_blocks(expected, masks["weight"]), rtol=1e-6, atol=1e-8
    )
    assert after.predicted_increase == pytest.approx(float((w * gone * pull.squeeze(2)).sum() / 2), rel=1e-6)


def test_one_tensor_in_one_block_is_obs_with_the_fisher_for_the_hessian():
    """Scores, weights, predictions, through two deletions; OBS downdates an inverse that was found by recursion."""
    objective = make_test_objective(nn.Linear(5, 4, bias=False), (5,), n=40)
    masks = all_kept(objective.weights)
    inverse = inverse_hessian([loop(objective)], 40, 1e-4)
    theirs, ours = (
        FullObsState(weights=objective.weights, masks=masks, inverse=inverse, damping=1e-4),
        Fisher(block_size=20, damping=1e-4).examiner(objective)(objective.weights, masks),
    )
    for gone in ([3], [3, 8, 9, 17]):
        torch.testing.assert_close(
            flatten_weights(ours.scores()), flatten_weights(theirs.scores()), rtol=1e-7, atol=0
        )
        theirs, ours = theirs.prune_to(without(objective, gone)), ours.prune_to(without(objective, gone))
        torch.testing.assert_close(
            flatten_weights(ours.weights), flatten_weights(theirs.weights), rtol=1e-7, atol=1e-12
        )
        assert ours.predicted_increase == pytest.approx(theirs.predicted_increase, rel=1e-7)


def test_blocks_of_one_are_the_diagonal_fisher_without_an_update():
    objective = make_test_objective(*MODELS_HERE["normed"]())
    before = Fisher(block_size=1, damping=1e-3).examiner(objective)(
        objective.weights, all_kept(objective.weights)
    )
    expected = flatten_weights(objective.weights).square() * (loop(objective).square().mean(0) + 1e-3) / 2
    torch.testing.assert_close(flatten_weights(before.scores()), expected)
    done = prune_in_steps(
        Fisher(block_size=1, damping=1e-3).examiner(objective),
        objective.weights,
        0.4,
        SCOPES["global"],
        num_steps=5,
        num_recomputations=1,
    )
    left = flatten_weights(done.masks)
    assert torch.equal(
        flatten_weights(done.weights), torch.where(left, flatten_weights(objective.weights), 0.0)
    )
    assert done.predicted_increase == pytest.approx(float(expected[~left].sum()))
    assert float(expected[~left].max()) <= float(expected[left].min())


@pytest.mark.parametrize("block", [5, 1000])
def test_weights_pruned_one_by_one_equal_weights_pruned_together(block):
    """Of the same look: the quadratic model does not know in what order weights went."""
    objective = make_test_objective(mlp(4, 6, 2), (4,), n=50)
    start = Fisher(block_size=block).examiner(objective)(objective.weights, all_kept(objective.weights))
    gone, stepwise = [3, 11, 1, 20, 22, 24, 0], start
    for count in range(1, len(gone) + 1):
        stepwise = stepwise.prune_to(without(objective, gone[:count]))
    at_once = start.prune_to(without(objective, gone))
    torch.testing.assert_close(
        flatten_weights(stepwise.weights), flatten_weights(at_once.weights), rtol=1e-7, atol=1e-9
    )
    assert stepwise.predicted_increase == pytest.approx(at_once.predicted_increase, rel=1e-7)
    torch.testing.assert_close(
        flatten_weights(stepwise.scores()), flatten_weights(at_once.scores()), rtol=1e-7, atol=0
    )
    assert torch.equal(flatten_weights(start.weights), flatten_weights(objective.weights)), (
        "pruning does not change the state"
    )


def test_examination_ignores_gradients_of_pruned_weights():
    """A look at weights some of which are gone is a look at a network without them."""
    objective = make_test_objective(nn.Linear(6, 4, bias=False), (6,), n=40)
    masks = all_kept(objective.weights)
    masks["weight"][:, 2:4] = False
    fisher_state = Fisher(block_size=6).examiner(objective)(objective.weights, masks)
    left = [0, 1, 4, 5]
    thin = make_objective(nn.Linear(4, 4, bias=False).double(), {"weight": objective.weights["weight"][:, left]},
                     objective.inputs[:, left], objective.targets)  # fmt: skip
    other = Fisher(block_size=4).examiner(thin)(thin.weights, all_kept(thin.weights))
    torch.testing.assert_close(fisher_state.scores()["weight"][:, left], other.scores()["weight"])
    assert not fisher_state.scores()["weight"][:, 2:4].any()
    assert not fisher_state.weights["weight"][:, 2:4].any()
    cut = {"weight": masks["weight"].clone()}
    cut["weight"][1:3, 0] = False
    torch.testing.assert_close(
        fisher_state.prune_to(cut).weights["weight"][:, left],
        other.prune_to({"weight": cut["weight"][:, left]}).weights["weight"],
    )


def test_weights_of_zero_inputs_are_pruned_first_without_an_update():
    """No gradient: the score is that of the damping alone, however large the weight."""
    objective = make_test_objective(nn.Linear(6, 4, bias=False), (6,), n=40)
    inputs = objective.inputs.clone()
    inputs[:, [1, 4]] = 0.0
    weights = {"weight": objective.weights["weight"].index_fill(1, torch.tensor([1, 4]), 30.0)}
    objective = make_objective(objective.model, weights, inputs, objective.targets)
    done = prune_in_steps(
        Fisher(block_size=6, damping=1e-7).examiner(objective), objective.weights, 16 / 24, SCOPES["global"]
    )
    assert not done.masks["weight"][:, [1, 4]].any()
    live = [0, 2, 3, 5]
    assert done.masks["weight"][:, live].all()
    torch.testing.assert_close(
        done.weights["weight"][:, live], weights["weight"][:, live], rtol=0, atol=1e-14
    )
    assert done.predicted_increase == pytest.approx(8 * 30.0**2 * 1e-7 / 2)


@pytest.mark.parametrize(("num_steps", "num_recomputations"), [(1, 1), (4, 4), (6, 2), (None, 3)])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("made", MODELS_HERE.values(), ids=MODELS_HERE)
def test_masks_have_the_exact_count_under_a_scope(made, scope, num_steps, num_recomputations):
    objective = make_test_objective(*made(), n=5)
    if num_steps is None:
        objective = make_objective(
            objective.model, dict(list(objective.weights.items())[-1:]), objective.inputs, objective.targets
        )
    fixed = {name: w.clone() for name, w in objective.weights.items()}
    within = all_kept(fixed)
    next(iter(within.values()))[0, :2] = False
    density = 0.3 if scope == "global" else dict.fromkeys(fixed, 0.3)
    examine, states = Fisher(block_size=10).examiner(objective), []

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
    )
    sizes = [w.numel() for w in fixed.values()]
    expected = [sum(sizes)] if scope == "global" else sizes
    assert sum(int(m.sum()) for m in done.masks.values()) == sum(math.floor(0.3 * n + 0.5) for n in expected)
    assert are_nested(done.masks, within)
    assert (len(states), done.damping) == (num_recomputations, 1e-4)
    assert done.predicted_increase > 0
    for name, mask in done.masks.items():
        assert not done.weights[name][~mask].any()
        assert torch.isfinite(done.weights[name]).all()
        assert torch.equal(fixed[name], objective.weights[name])


def test_update_lowers_the_error_below_that_of_no_update_and_of_magnitude():
    """On a network at its minimum the error rises less than without the update, and than by magnitude."""
    n = 200
    x = draw(n, 3) @ draw(3, 12, role="mix") + 0.1 * draw(n, 12, role="own")
    noise = 0.3 * draw(n, 2, role="noise")
    d = x @ draw(12, 2, role="truth") + noise
    weights = {"weight": torch.linalg.lstsq(x, d).solution.T.contiguous()}
    objective = make_objective(nn.Linear(12, 2, bias=False).double(), weights, x, d, loss="squared_error")
    rise = {}
    for block in (1, 4, 12):
        rise[block] = float(
            objective.error(
                prune_in_steps(
                    Fisher(block_size=block).examiner(objective),
                    weights,
                    0.5,
                    SCOPES["layer"],
                    num_steps=None,
                ).weights
            )
        )
    plain = CriterionMethod(lambda evidence: {n: w.abs() for n, w in evidence.weights.items()}).examiner()
    rise["magnitude"] = float(objective.error(prune_in_steps(plain, weights, 0.5, SCOPES["layer"]).weights))
    assert rise[12] < rise[4] < min(rise[1], rise["magnitude"])


def test_float32_is_near_float64():
    """The Fisher is summed in float64 whatever the network computes in, so that 1e-7 stays above rounding."""
    objective = make_test_objective(*MODELS_HERE["residual"](), n=64)
    weights = {name: weight.float() for name, weight in objective.weights.items()}
    single = make_objective(objective.model, weights, objective.inputs, objective.targets)
    first, second = (
        Fisher(damping=1e-7).examiner(a)(a.weights, all_kept(a.weights)) for a in (objective, single)
    )
    assert all(w.dtype == torch.float32 for w in second.weights.values())
    torch.testing.assert_close(
        flatten_weights(second.scores()), flatten_weights(first.scores()), rtol=2e-3, atol=0
    )
    masks = SCOPES["global"].select(first.scores(), 0.5)
    first, second = first.prune_to(masks), second.prune_to(masks)
    assert all(w.dtype == torch.float32 for w in second.weights.values())
    torch.testing.assert_close(
        flatten_weights(second.weights).double(), flatten_weights(first.weights), rtol=1e-2, atol=1e-4
    )
    assert second.predicted_increase == pytest.approx(first.predicted_increase, rel=1e-4)


# What cannot be done


def test_invalid_arguments_are_refused():
    objective = make_test_objective(mlp(4, 5, 3), (4,))
    for wrong in (
        {"block_size": 0},
        {"batch_size": 0},
        *({"damping": d} for d in (0.0, -1.0, math.inf, math.nan)),
    ):
        with pytest.raises(StatisticsError, match=r"at least 1|above 0"):
            Fisher(**wrong)
    fisher_state = Fisher().examiner(objective)(objective.weights, all_kept(objective.weights))
    with pytest.raises(DensityError, match="cannot be restored"):
        fisher_state.prune_to(without(objective, [0])).prune_to(fisher_state.masks)
    again = fisher_state.prune_to(fisher_state.masks)
    assert again.predicted_increase == 0.0
    assert all(again.weights[name] is w for name, w in fisher_state.weights.items())
    wide = math.isqrt(MAX_FISHER_BYTES // 8) + 1
    model = nn.Linear(wide, 1)
    objective = make_objective(
        model, prunable_weights(model), torch.ones(1, wide), torch.ones(1, 1), loss="squared_error"
    )
    with pytest.raises(ModelError, match="16 GiB"):
        Fisher(block_size=wide).examiner(objective)(objective.weights, all_kept(objective.weights))


def test_too_small_damping_names_the_tensor_and_a_larger_damping():
    objective = make_test_objective(mlp(4, 3), (4,), n=1)
    with pytest.raises(
        NonFiniteError, match=r"'0\.weight'.*damping 1e-30; try a larger one, such as 1e-1\d"
    ) as message:
        Fisher(damping=1e-30).examiner(objective)(objective.weights, all_kept(objective.weights))
    damping = float(str(message.value).split()[-1].rstrip("."))
    fisher_state = Fisher(damping=damping).examiner(objective)(objective.weights, all_kept(objective.weights))
    assert fisher_state.damping == damping
    assert all((p > 0).all() and (p <= 2 / damping).all() for p in fisher_state.pivots.values())
    first = Fisher(damping=1e-30, block_size=1).examiner(objective)(
        objective.weights, all_kept(objective.weights)
    )
    assert first.damping == 1e-30, "a diagonal has nothing that cancels"


def test_damping_below_rounding_is_refused():
    """Cholesky's factor of one outer product exists by luck, or does not; the error comes either way."""
    left, lucky = torch.ones(1, 2).double(), 0
    for seed in range(40):
        g = torch.randn(1, 2, 1, generator=make_generator(seed, "g"), dtype=torch.float64)
        block = g @ g.transpose(1, 2)
        lucky += int(torch.linalg.cholesky_ex(block + 1e-30 * torch.eye(2).double()).info == 0)
        with pytest.raises(NonFiniteError):
            damped_cholesky(block, left, 1e-30, "w")
        damped_cholesky(block, left, 1e-13, "w")
    assert lucky


@pytest.mark.filterwarnings("ignore:.*overflow:RuntimeWarning")
def test_gradients_that_are_not_finite_are_named():
    model = nn.Linear(2, 1, bias=False)
    huge = make_objective(model, {"weight": torch.full((1, 2), 1e-20)}, torch.full((1, 2), 1e30),
                     torch.full((1, 1), -1e18), loss="squared_error")  # fmt: skip
    with pytest.raises(NonFiniteError, match="'weight'"):
        Fisher().examiner(huge)(huge.weights, all_kept(huge.weights))
