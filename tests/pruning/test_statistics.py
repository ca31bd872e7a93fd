"""Statistics are those of the network in evaluation mode at the given weights, which finite differences confirm."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from prunus.data.examples import sample_examples
from prunus.errors import ModelError, StatisticsError
from prunus.pruning.criteria.gradients import gradient, grasp, obd, snip, synflow
from prunus.pruning.methods import pruning_method
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import Global, Layer
from prunus.pruning.statistics import Statistics, collect
from prunus.seeds import make_generator
from prunus.types import Params, Split

LABELS = torch.tensor([0, 1, 2, 1, 0])


def seeded(model: nn.Module) -> nn.Module:
    draw = make_generator(0, "probe")
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.7, generator=draw)
    return model


def normed() -> nn.Module:
    """With everything that a mode or a training may change: dropout, BatchNorm and its statistics."""
    model = nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    model[1].running_mean.copy_(torch.linspace(-1, 1, 6))
    return seeded(model)


def bias_free() -> nn.Module:
    widths = [(4, 6), (6, 5), (5, 3)]
    layers = [part for i, o in widths for part in (nn.Linear(i, o, bias=False), nn.ReLU())]
    return seeded(nn.Sequential(*layers[:-1]))


def inputs() -> Tensor:
    return torch.randn(5, 4, generator=make_generator(0, "inputs"))


def copies(model: nn.Module, dtype: torch.dtype = torch.float32) -> Params:
    return {name: weight.detach().clone().to(dtype) for name, weight in prunable_weights(model).items()}


REQUIRES = {"gradients", "hessian_gradients", "output_sum_gradients"}


def statistics(model: nn.Module, weights: Params | None = None, masks=None) -> Statistics:
    """All statistics that examples are needed for, in double precision."""
    weights = copies(model, torch.float64) if weights is None else weights
    return collect(model, weights, REQUIRES, Split(inputs(), LABELS), masks=masks)


def loss(model: nn.Module, weights: Params) -> Tensor:
    """Computed with another mechanism than `collect`: functional_call of the model in double precision."""
    double = copy.deepcopy(model).double().eval().requires_grad_(False)
    return F.cross_entropy(torch.func.functional_call(double, weights, (inputs().double(),)), LABELS)


def test_collect_uses_the_network_in_evaluation_mode_with_the_given_weights():
    model = normed().train()
    weights = {name: weight + 1 for name, weight in copies(model).items()}
    del weights["4.weight"]  # used as it is in the model
    collected = collect(model, weights, {"gradients"}, Split(inputs(), LABELS)).gradients
    model.load_state_dict({**model.state_dict(), **weights})
    F.cross_entropy(model.eval()(inputs()), LABELS).backward()
    assert collected.keys() == weights.keys()
    for name, found_gradient in collected.items():
        assert torch.equal(found_gradient, model.get_parameter(name).grad)


@pytest.mark.parametrize("requires", sorted(REQUIRES))
def test_collect_changes_neither_the_model_nor_its_modes_nor_the_weights(requires):
    model = normed().train()
    model[3].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    collect(model, prunable_weights(model), {requires}, Split(inputs(), LABELS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, True, True, False, True, True, True]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("requires", sorted(REQUIRES))
def test_collect_returns_detached_statistics_of_the_dtype_of_the_weights_also_without_grad(requires):
    model = normed()
    with torch.no_grad():
        collected = getattr(
            collect(model, copies(model, torch.float64), {requires}, Split(inputs(), LABELS)), requires
        )
    assert all(tensor.dtype == torch.float64 and not tensor.requires_grad for tensor in collected.values())


def test_collect_calls_a_forward_and_a_loss_of_the_user():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = seeded(nn.Linear(4, 3))

        def forward(self, x, *, scale):
            return {"logits": scale * self.layer(x)}

    def mean_square(outputs, labels):
        return (outputs - F.one_hot(labels, 3)).square().mean()

    model, examples = Pair(), Split(inputs(), LABELS)
    with pytest.raises(StatisticsError, match="scale"):
        collect(model, copies(model), {"gradients"}, examples)
    collected = collect(
        model,
        copies(model),
        {"gradients"},
        examples,
        forward=lambda module, batch: module(batch[0], scale=2.0)["logits"],
        loss=lambda outputs, batch: mean_square(outputs, batch[1]),
    ).gradients["layer.weight"]
    mean_square(2 * model.layer(inputs()), LABELS).backward()
    assert torch.equal(collected, model.layer.weight.grad)


def test_collect_without_examples_is_refused():
    model = normed()
    with pytest.raises(StatisticsError, match="Expected calibration examples to collect 'gradients'"):
        collect(model, copies(model), {"gradients"})
    assert collect(model, copies(model), {"initial"}).weights.keys() == copies(model).keys()


def test_collect_of_an_unknown_statistic_is_refused():
    model = normed()
    with pytest.raises(StatisticsError, match=r"initial, gradients, .* got \['gradient'\]"):
        collect(model, copies(model), {"gradient"}, Split(inputs(), LABELS))


@pytest.mark.parametrize(
    ("x", "labels"),
    [
        (torch.empty(0, 4), torch.empty(0, dtype=torch.int64)),
        (torch.empty(5, 0), LABELS),
        (torch.ones(5, 4), LABELS[:4]),
        (torch.ones(5, 4), F.one_hot(LABELS)),
        (torch.ones(5, 4), LABELS.float()),
    ],
    ids=["empty", "empty inputs", "fewer labels", "one-hot", "float"],
)
def test_examples_without_one_label_each_are_refused(x, labels):
    model = normed()
    with pytest.raises(
        StatisticsError, match=r"at least one example|one entry per example|Expected int64 labels"
    ):
        collect(model, copies(model), {"gradients"}, Split(x, labels))


@pytest.mark.parametrize("labels", [LABELS + 1, LABELS - 1], ids=["above", "below"])
def test_labels_beyond_the_classes_are_refused(labels):
    model = normed()
    with pytest.raises(StatisticsError, match=f"labels from {labels.min()} to {labels.max()}"):
        collect(model, copies(model), {"gradients"}, Split(torch.ones(5, 4), labels))


def test_output_that_is_no_logits_is_refused():
    model = nn.Sequential(seeded(nn.Linear(4, 6)), nn.Unflatten(1, (3, 2)))
    with pytest.raises(StatisticsError, match=r"got outputs \[5, 3, 2\] and labels \[5\]"):
        collect(model, copies(model), {"gradients"}, Split(torch.ones(5, 4), LABELS))


class Returning(nn.Module):
    """Returns `change` of its logits."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.change = seeded(nn.Linear(4, 3)), change

    def forward(self, x):
        return self.change(self.layer(x))


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "fisher", "obd_hutchinson"])
@pytest.mark.parametrize(
    "change", [lambda y: {"scores": y}, lambda y: (y, y), lambda y: None, lambda y: y[:1]]
)
def test_output_that_is_not_one_row_of_logits_per_example_is_refused_under_every_method(method, change):
    model = Returning(change)
    if method == "synflow" and change(torch.ones(2)) is not None and len(change(torch.ones(2))) == 1:
        return  # it sums all outputs of one example
    with pytest.raises((ModelError, StatisticsError), match=r"to return a tensor|Expected int64 labels"):
        pruned_by(method, model, Split(torch.ones(5, 4), LABELS))


BAD_SPLITS = {
    "list": (torch.ones(5, 4).tolist(), LABELS, "got a list"),
    "list of labels": (torch.ones(5, 4), LABELS.tolist(), "got a list"),
    "sparse": (torch.eye(5, 4).to_sparse(), LABELS, "sparse_coo"),
    "sparse labels": (torch.ones(5, 4), LABELS.to_sparse(), "sparse_coo"),
    "meta": (torch.ones(5, 4, device="meta"), LABELS, "meta"),
    "no examples dimension": (torch.tensor(1.0), LABELS[0], "add a dimension"),
    "complex": (torch.ones(5, 4, dtype=torch.complex64), LABELS, "dtype"),
}


@pytest.mark.parametrize("method", ["snip", "wanda", "obd", "obs", "sparse_gpt", "admm", "fisher"])
@pytest.mark.parametrize("kind", BAD_SPLITS)
def test_calibration_examples_that_are_not_dense_real_tensors_are_refused(kind, method):
    inputs, labels, message = BAD_SPLITS[kind]
    with pytest.raises(StatisticsError, match=message):
        pruned_by(method, seeded(nn.Linear(4, 3)), Split(inputs, labels))


def test_integer_inputs_stay_integers_under_second_order_methods():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), seeded(nn.Linear(8, 3)))
    tokens = torch.arange(10).reshape(5, 2) % 6
    masks = pruned_by("obd_hutchinson", model, Split(tokens, LABELS), exclude=["0.weight"]).masks
    assert int(masks["2.weight"].sum()) == 12


def pruned_by(method, model, split, **patterns):
    pruner = pruning_method(method)
    examples = sample_examples(split, pruner.num_examples, 0)
    return pruner.prune(model, prunable_weights(model, **patterns), 0.5, Layer(), examples)


def test_weights_of_another_network_are_refused():
    model, examples = normed(), Split(inputs(), LABELS)
    with pytest.raises(ModelError, match=r"parameters of Sequential .* got '7\.weight'"):
        collect(model, {"7.weight": torch.ones(2, 2)}, {"gradients"}, examples)
    with pytest.raises(ModelError, match=r"got '0\.weight' of shape \(4, 6\)"):
        collect(model, {"0.weight": torch.ones(4, 6)}, {"gradients"}, examples)
    with pytest.raises(ModelError, match="got none"):
        collect(model, {}, {"gradients"}, examples)


@pytest.mark.parametrize("requires", sorted(REQUIRES))
def test_inputs_of_another_shape_are_refused(requires):
    model = normed()
    with pytest.raises(
        StatisticsError, match=r"Sequential does not take calibration inputs of shape \(., 3\)"
    ):
        collect(model, copies(model), {requires}, Split(torch.ones(5, 3), LABELS))


@pytest.mark.parametrize("requires", sorted(REQUIRES))
def test_outputs_that_do_not_depend_on_the_weights_are_refused(requires):
    model = bias_free()
    constant = {"forward": lambda module, batch: torch.ones(len(batch[0]), 3)}
    with pytest.raises(StatisticsError, match="Expected outputs that depend on the weights"):
        collect(model, copies(model), {requires}, Split(inputs(), LABELS), **constant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activations_that_are_computed_again_are_refused(use_reentrant):
    """They would be computed from the weights of the model, in the place of those that are scored."""

    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return self[1](checkpoint(super().forward, self[0](x), use_reentrant=use_reentrant))

    model = Checkpointed(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ModelError, match="turn off activation checkpointing"):
        collect(model, copies(model), {"gradients"}, Split(inputs(), LABELS))


@pytest.mark.parametrize("requires", sorted(REQUIRES))
def test_layer_that_the_forward_pass_does_not_reach_is_named(requires):
    model = nn.ModuleDict({"used": seeded(nn.Linear(4, 3)), "unused": nn.Linear(4, 3)})
    forward = {"forward": lambda module, batch: module["used"](batch[0])}
    with pytest.raises(ModelError, match=r"'unused\.weight'"):
        collect(model, copies(model), {requires}, Split(inputs(), LABELS), **forward)


def test_hessian_diagonal_is_that_of_the_method_obd():
    model = seeded(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    weights, examples = copies(model), Split(inputs(), LABELS)
    stats = collect(model, weights, {"hessian_diagonal"}, examples)
    masks = Layer().select(obd(stats), 0.5)
    result = pruning_method("obd").prune(model, weights, 0.5, Layer(), examples)
    assert all(torch.equal(mask, result.masks[name]) for name, mask in masks.items())


def test_gradient_and_snip_are_finite_differences_of_the_loss():
    model = normed()
    stats = statistics(model)
    steepness, sensitivity = gradient(stats), snip(stats)
    for name, weight in stats.weights.items():
        for place in range(weight.numel()):
            step = torch.zeros_like(weight)
            step.view(-1)[place] = 1e-5
            up, down = (loss(model, {**stats.weights, name: weight + s * step}) for s in (1, -1))
            slope = abs(float(up - down)) / 2e-5
            assert float(steepness[name].view(-1)[place]) == pytest.approx(slope, abs=1e-8)
            assert float(sensitivity[name].view(-1)[place]) == pytest.approx(
                slope * abs(float(weight.view(-1)[place])), abs=1e-8
            )


def gradients(model: nn.Module, weights: Params) -> Params:
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(model, leaves), list(leaves.values())), strict=True))


def test_grasp_is_a_finite_difference_of_gradients():
    """H g = (g(w + h g) - g(w - h g)) / 2h."""
    model, step = normed(), 1e-5
    stats = statistics(model)
    g = gradients(model, stats.weights)
    up, down = (gradients(model, {n: w + s * step * g[n] for n, w in stats.weights.items()}) for s in (1, -1))
    for name, score in grasp(stats).items():
        expected = stats.weights[name] * (up[name] - down[name]) / (2 * step)
        assert score.abs().max() > 1e-3
        assert torch.allclose(score, expected, rtol=1e-6, atol=1e-9)


def test_grasp_of_one_layer_in_closed_form():
    """Softmax regression: g = mean (p - y) x', H g = mean (diag p - p p') (g x) x'."""
    model = seeded(nn.Linear(4, 3, bias=False))
    stats = statistics(model)
    w, x = stats.weights["weight"], inputs().double()
    p = (x @ w.T).softmax(1)
    g = (p - F.one_hot(LABELS)).T @ x / 5
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hg = torch.einsum("bij,bj,bk->ik", curvature, x @ g.T, x) / 5
    assert torch.allclose(gradient(stats)["weight"], g.abs(), rtol=1e-10)
    assert torch.allclose(grasp(stats)["weight"], w * hg, rtol=1e-10)


def test_lowest_grasp_score_raises_the_gradient_norm_most():
    """The score is, to first order, minus the change of |g|^2 / 2 as the weight shrinks towards zero."""
    model, shrink = normed(), 1e-6
    stats = statistics(model)
    norm = sum(float((g**2).sum()) for g in gradients(model, stats.weights).values()) / 2
    for name, score in grasp(stats).items():
        place = int(score.argmin())
        changed = stats.weights[name].clone()
        changed.view(-1)[place] *= 1 - shrink
        after = gradients(model, {**stats.weights, name: changed})
        rise = sum(float((g**2).sum()) for g in after.values()) / 2 - norm
        assert rise / shrink == pytest.approx(-float(score.min()), rel=1e-3)


@pytest.mark.parametrize("density", [2.0, 0.7], ids=["dense", "masked"])
def test_synflow_conserves_the_flow(density):
    """The flow into a unit equals the flow out of it, that through every layer is R; pruned weights carry nothing."""
    model, draw = bias_free(), make_generator(0, "masks")
    masks = {n: torch.rand(w.shape, generator=draw) < density for n, w in copies(model).items()}
    stats = statistics(model, masks=masks)
    scores = synflow(stats)
    first, second, third = scores.values()
    assert torch.allclose(first.sum(1), second.sum(0), rtol=1e-12)
    assert torch.allclose(second.sum(1), third.sum(0), rtol=1e-12)
    total = torch.ones(4, dtype=torch.float64)
    for name, weight in stats.weights.items():
        total = (weight.abs() * masks[name]) @ total
        assert not scores[name][~masks[name]].any()
    for score in scores.values():
        assert float(score.sum()) == pytest.approx(float(total.sum()), rel=1e-12)


def test_synflow_depends_on_no_data_and_no_sign():
    model = bias_free()
    weights, requires = copies(model), {"output_sum_gradients"}
    scores = synflow(collect(model, weights, requires, Split(inputs(), LABELS)))
    flipped = {name: -weight for name, weight in weights.items()}
    others = (
        collect(model, flipped, requires, Split(inputs(), LABELS)),
        collect(model, weights, requires, Split(100 * torch.ones(2, 4), torch.tensor([2, 2]))),
    )
    for stats in others:
        assert all(torch.equal(score, scores[name]) for name, score in synflow(stats).items())
    assert all(score.dtype == torch.float64 for score in scores.values())


def test_synflow_computed_again_after_every_weight_ends_in_a_path():
    """Maximal critical compression (Tanaka et al. 2020): as few weights as layers, and the signal passes."""
    model, masks = bias_free(), None
    total = sum(weight.numel() for weight in copies(model).values())
    for num_kept in range(total - 1, 2, -1):
        scores = synflow(statistics(model, masks=masks))
        masks = Global().select(scores, num_kept / total, within=masks)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1]
    assert all(score.sum() > 0 for score in synflow(statistics(model, masks=masks)).values())
