"""A probe answers as the network did, whatever happens to it later; and the criteria that ask one."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.errors import ModelError, StatisticsError
from prunus.pruning.criteria import CRITERIA, gradient, grasp, snip, synflow
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.pruners import get_criterion
from prunus.pruning.scopes import Global, Layer
from prunus.pruning.scoring_batch import make_scoring_batch
from prunus.seeds import make_generator
from prunus.types import Params, ScoringBatch, Split, Statistics

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


def evidence(model: nn.Module, dtype: torch.dtype = torch.float64) -> Statistics:
    weights = copies(model, dtype)
    return Statistics(weights, initial=weights, probe=make_scoring_batch(model, inputs(), LABELS))


def loss(given: Statistics, weights: Params) -> Tensor:
    assert given.probe is not None
    return F.cross_entropy(given.probe.answer(weights, given.probe.inputs), LABELS)


def test_it_answers_as_the_network_in_evaluation_mode():
    model = normed()
    asked, x = make_scoring_batch(model, inputs(), LABELS), inputs()
    weights = {name: weight + 1 for name, weight in copies(model).items()}
    del weights["4.weight"]  # stays as it is in the model
    answer = asked.answer(weights, x)
    model.load_state_dict({**model.state_dict(), **weights})
    assert torch.equal(answer, model.eval()(x))
    assert torch.equal(asked.inputs, x)
    assert torch.equal(asked.labels, LABELS)


def test_neither_training_nor_mode_changes_it_and_it_changes_nothing():
    model = normed().train()
    model[3].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    asked, weights = make_scoring_batch(model, inputs(), LABELS), copies(model)
    answer = asked.answer(weights, inputs())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, True, True, False, True, True, True]
    model[3].train()
    F.cross_entropy(model(inputs()), LABELS).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.5 * parameter.grad
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert not torch.equal(model[6].bias, before["6.bias"])
    assert torch.equal(asked.answer(weights, inputs()), answer)


def test_it_is_differentiable_by_the_given_weights_alone_in_their_dtype():
    model = normed()
    weights = {name: weight.requires_grad_() for name, weight in copies(model, torch.float64).items()}
    answer = make_scoring_batch(model, inputs(), LABELS).answer(weights, inputs())
    assert answer.dtype == torch.float64
    answer.sum().backward()
    assert all(weight.grad is not None for weight in weights.values())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


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
def test_a_batch_that_is_none_is_refused(x, labels):
    with pytest.raises(StatisticsError, match=r"one input with one label, torch\.int64, each"):
        make_scoring_batch(normed(), x, labels)


@pytest.mark.parametrize("labels", [LABELS + 1, LABELS - 1], ids=["above", "below"])
def test_labels_beyond_the_classes_are_refused(labels):
    with pytest.raises(ModelError, match=f"labels from {labels.min()} to {labels.max()}"):
        make_scoring_batch(normed(), torch.ones(5, 4), labels)


def test_an_answer_that_is_no_logits_is_refused():
    with pytest.raises(ModelError, match=r"answers 2 inputs with \(2, 3, 2\)"):
        make_scoring_batch(
            nn.Sequential(seeded(nn.Linear(4, 6)), nn.Unflatten(1, (3, 2))), torch.ones(5, 4), LABELS
        )


class Returning(nn.Module):
    """Returns `change` of its logits."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.change = seeded(nn.Linear(4, 3)), change

    def forward(self, x):
        return self.change(self.layer(x))


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "fisher", "obd_hutchinson"])
@pytest.mark.parametrize(
    "change", [lambda y: {"logits": y}, lambda y: (y, y), lambda y: None, lambda y: y[:1]]
)
def test_output_that_is_not_one_row_of_logits_per_example_is_refused_under_every_method(method, change):
    model = Returning(change)
    with pytest.raises((ModelError, StatisticsError), match=r"logits \[|outputs \[B, C\]"):
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


@pytest.mark.parametrize("method", ["snip", "obd", "obs", "sparse_gpt", "fisher"])
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
    return get_criterion(method).on(model, split, 0)(prunable_weights(model, **patterns), 0.5, Layer())


def test_weights_of_another_network_are_refused():
    asked = make_scoring_batch(normed(), inputs(), LABELS)
    with pytest.raises(ModelError, match=r"'7\.weight', which Sequential has not"):
        asked.answer({"7.weight": torch.ones(2, 2)}, inputs())
    with pytest.raises(ModelError, match=r"'0\.weight' of shape \(4, 6\), but in Sequential it has \(6, 4\)"):
        asked.answer({"0.weight": torch.ones(4, 6)}, inputs())
    with pytest.raises(ModelError, match="no weights"):
        asked.answer({}, inputs())


def test_inputs_of_another_shape_are_refused():
    said = r"Sequential does not take calibration inputs of shape \([12], 3\)"
    with pytest.raises(StatisticsError, match=said):
        make_scoring_batch(normed(), torch.ones(5, 3), LABELS)
    model = normed()
    with pytest.raises(StatisticsError, match=said):
        make_scoring_batch(model, inputs(), LABELS).answer(copies(model), torch.ones(1, 3))


@pytest.mark.parametrize("name", ["snip", "gradient", "grasp", "synflow"])
def test_an_answer_that_ignores_the_weights_is_refused(name):
    given = evidence(bias_free())
    deaf = replace(given.probe, answer=lambda weights, x: torch.ones(len(x), 3))
    with pytest.raises(StatisticsError, match="does not depend on the weights"):
        CRITERIA[name](replace(given, probe=deaf))


@pytest.mark.parametrize("name", ["snip", "gradient", "grasp", "synflow"])
def test_the_initial_weights_are_scored_and_the_final_ones_do_not_matter(name):
    given = evidence(normed())
    trained = replace(given, weights={n: w + 1 for n, w in given.weights.items()})
    moved = replace(given, initial=trained.weights)
    scores, same, other = (CRITERIA[name](one) for one in (given, trained, moved))
    assert all(torch.equal(scores[n], same[n]) for n in scores)
    assert any(not torch.equal(scores[n], other[n]) for n in scores)


def test_gradient_and_snip_are_finite_differences_of_the_loss():
    given = evidence(normed())
    steep, sensitive = gradient(given), snip(given)
    for name, weight in given.weights.items():
        for place in range(weight.numel()):
            step = torch.zeros_like(weight)
            step.view(-1)[place] = 1e-5
            up, down = (loss(given, {**given.weights, name: weight + s * step}) for s in (1, -1))
            slope = abs(float(up - down)) / 2e-5
            assert float(steep[name].view(-1)[place]) == pytest.approx(slope, abs=1e-8)
            assert float(sensitive[name].view(-1)[place]) == pytest.approx(
                slope * abs(float(weight.view(-1)[place])), abs=1e-8
            )


def slopes(given: Statistics, weights: Params) -> Params:
    return torch.func.grad(lambda those: loss(given, those))(weights)


def test_grasp_is_a_finite_difference_of_gradients():
    """H g = (g(w + h g) - g(w - h g)) / 2h."""
    given, step = evidence(normed()), 1e-5
    g = slopes(given, given.weights)
    up, down = (slopes(given, {n: w + s * step * g[n] for n, w in given.weights.items()}) for s in (1, -1))
    for name, score in grasp(given).items():
        expected = given.weights[name] * (up[name] - down[name]) / (2 * step)
        assert score.abs().max() > 1e-3
        assert torch.allclose(score, expected, rtol=1e-6, atol=1e-9)


def test_grasp_of_one_layer_in_closed_form():
    """Softmax regression: g = mean (p - y) x', H g = mean (diag p - p p') (g x) x'."""
    model = seeded(nn.Linear(4, 3, bias=False))
    given = evidence(model)
    w, x = given.weights["weight"], inputs().double()
    p = (x @ w.T).softmax(1)
    g = (p - F.one_hot(LABELS)).T @ x / 5
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hg = torch.einsum("bij,bj,bk->ik", curvature, x @ g.T, x) / 5
    assert torch.allclose(gradient(given)["weight"], g.abs(), rtol=1e-10)
    assert torch.allclose(grasp(given)["weight"], w * hg, rtol=1e-10)


def test_what_grasp_removes_first_raises_the_gradient_most():
    """The score is, to first order, minus the change of |g|^2 / 2 as the weight shrinks towards zero."""
    given, shrink = evidence(normed()), 1e-6
    norm = sum(float((g**2).sum()) for g in slopes(given, given.weights).values()) / 2
    for name, score in grasp(given).items():
        place = int(score.argmin())
        changed = given.weights[name].clone()
        changed.view(-1)[place] *= 1 - shrink
        after = slopes(given, {**given.weights, name: changed})
        rise = sum(float((g**2).sum()) for g in after.values()) / 2 - norm
        assert rise / shrink == pytest.approx(-float(score.min()), rel=1e-3)


def masked(given: Statistics, density: float) -> Statistics:
    draw = make_generator(0, "masks")
    return replace(
        given, masks={n: torch.rand(w.shape, generator=draw) < density for n, w in given.weights.items()}
    )


@pytest.mark.parametrize("density", [2.0, 0.7], ids=["dense", "masked"])
def test_synflow_conserves_the_flow(density):
    """What flows into a unit flows out of it, and through every layer flows R; pruned places carry nothing."""
    given = masked(evidence(bias_free()), density)
    scores = synflow(given)
    first, second, third = scores.values()
    assert torch.allclose(first.sum(1), second.sum(0), rtol=1e-12)
    assert torch.allclose(second.sum(1), third.sum(0), rtol=1e-12)
    total = torch.ones(4, dtype=torch.float64)
    for name, weight in given.weights.items():
        total = (weight.abs() * given.masks[name]) @ total
        assert not scores[name][~given.masks[name]].any()
    for score in scores.values():
        assert float(score.sum()) == pytest.approx(float(total.sum()), rel=1e-12)


def test_synflow_looks_at_no_data_and_no_sign():
    given = evidence(bias_free(), torch.float32)
    scores = synflow(given)
    flipped = {name: -weight for name, weight in given.weights.items()}
    other = ScoringBatch(given.probe.answer, 100 * torch.ones(2, 4), torch.tensor([2, 2]))
    for changed in (replace(given, initial=flipped), replace(given, probe=other)):
        assert all(torch.equal(score, scores[name]) for name, score in synflow(changed).items())
    assert all(score.dtype == torch.float64 for score in scores.values())


def test_synflow_asked_again_after_every_weight_ends_in_a_path():
    """Maximal critical compression (Tanaka et al. 2020): as few weights as layers, and the signal passes."""
    given = evidence(bias_free())
    total = sum(weight.numel() for weight in given.weights.values())
    for left in range(total - 1, 2, -1):
        given = replace(given, masks=Global().select(synflow(given), left / total, within=given.masks))
    assert [int(mask.sum()) for mask in given.masks.values()] == [1, 1, 1]
    assert all(score.sum() > 0 for score in synflow(given).values())
