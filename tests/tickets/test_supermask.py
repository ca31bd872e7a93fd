"""Learned masks: the straight-through step against its definition, the sampler, invariants, resume."""

import copy
import math
import warnings
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus.errors import (
    CheckpointError,
    DensityError,
    EmptyLayerWarning,
    InvariantWarning,
    ModelError,
    SpecError,
    UnknownNameError,
)
from prunus.masks import mask_density
from prunus.pruning.density import num_to_keep
from prunus.pruning.prunable import prunable_weights
from prunus.runs.spec import run_id
from prunus.seeds import make_generator
from prunus.tickets.baseline import BaselineSpec, load_saved_state, masks_name
from prunus.tickets.export import load_trained_network
from prunus.tickets.statistical_checks import population_std
from prunus.tickets.supermask import (
    SUPERMASKS,
    WEIGHT_INITS,
    Bernoulli,
    EdgePopup,
    Signed,
    SupermaskConstraint,
)
from prunus.tickets.supermask.criterion_supermask import CriterionSupermaskSpec
from prunus.tickets.supermask.kth_largest import KthLargest
from prunus.tickets.supermask.learned_supermask import LearnedSupermaskSpec, final_scores
from prunus.tickets.supermask.uniforms import CHUNK, UniformStream, aligned_chunks, flat_view
from prunus.tickets.ticket import PruningRates, TicketSpec
from prunus.training import Recipe, evaluate, train
from prunus.training.state import clone_tensors
from tests.helpers import tickets, tiny_networks

KINDS = {
    "bernoulli": Bernoulli(),
    "bernoulli-rescaled": Bernoulli(start=0.7, rescale=True),
    "edge_popup": EdgePopup(density=0.3),
    "signed": Signed(threshold=0.02),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
RECIPE = Recipe(epochs=2, learning_rate=0.1, batch_size=20)
NETWORKS = {
    "mlp": tiny_networks.mlp,
    "convolved": tiny_networks.convolved,
    "normed": tiny_networks.normed,
    "residual": tiny_networks.residual,
}


def over(model, kind, seed=0, weights="initial"):
    """A constraint over the model's own weights."""
    frozen = WEIGHT_INITS[weights](clone_tensors(prunable_weights(model)), 1.0, seed)
    return SupermaskConstraint(model, frozen.values, kind, seed)


def spread(learned, seed=0):
    """Scores far enough apart that masks, chances and derivatives all differ."""
    with torch.no_grad():
        for name, layer in learned.layers.items():
            layer.scores.copy_(torch.randn(layer.scores.shape, generator=make_generator(seed, name)))


def test_every_kind_is_in_the_table():
    assert {kind.kind for kind in KINDS.values()} == set(SUPERMASKS)
    assert all(SUPERMASKS[name].kind == name for name in SUPERMASKS)
    assert all("Source:" in (kind.__doc__ or "") for kind in SUPERMASKS.values())


# --- the step against its definition


def definition(kind, scores, weight, mask):
    """Effective weights as a differentiable function of the scores, the mask of this step being given."""
    if kind.kind == "bernoulli":
        chance = torch.sigmoid(scores)
        m = mask + chance - chance.detach()
        return weight * m * (m.numel() / m.sum()) if kind.rescale else weight * m
    size = scores.abs() if kind.kind == "edge_popup" else scores
    return weight * (mask + size - size.detach())


@pytest.mark.parametrize("network", ["mlp", "convolved", "residual"])
@every_kind
def test_gradient_of_scores_equals_autograd_of_the_definition(kind, network, small_data):
    """Through autograd in double precision, with the mask of the step: the reference never sees `backward`."""
    model = NETWORKS[network](0)
    learned = over(model, kind)
    spread(learned)
    learned.apply()
    inputs, labels = small_data.train.inputs[:30], small_data.train.labels[:30]
    F.cross_entropy(model(inputs), labels).backward()
    learned.before_optimizer_step()
    reference = copy.deepcopy(model).double()
    scores = {n: layer.scores.detach().double().requires_grad_() for n, layer in learned.layers.items()}
    effective = {
        name: definition(
            kind, scores[name], learned.weights[name].double(), learned.layers[name].factors.double().sign()
        )
        for name in scores
    }
    for name, tensor in effective.items():
        assert torch.allclose(tensor.float(), model.get_parameter(name), rtol=1e-5, atol=1e-7)
    F.cross_entropy(torch.func.functional_call(reference, effective, (inputs.double(),)), labels).backward()
    for name, layer in learned.layers.items():
        expected = scores[name].grad
        assert float(expected.abs().max()) > 0
        assert torch.allclose(
            layer.scores.grad.double(), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max())
        )


def test_rescaled_gradient_equals_values_computed_by_hand():
    """Four weights, two of them drawn: w' = 2 w m; ∂L/∂m = 2 g w - Σ g w' / 2; times p (1 - p)."""
    model = nn.Linear(4, 1, bias=False)
    weight = torch.tensor([[1.0, 2.0, -1.0, 4.0]])
    learned = SupermaskConstraint(model, {"weight": weight}, Bernoulli(rescale=True), seed=0)
    layer = learned.layers["weight"]
    layer.scores.data.copy_(torch.tensor([[100.0, -100.0, 100.0, -100.0]]))
    learned.apply()
    assert model.weight.tolist() == [[2.0, 0.0, -2.0, 0.0]]
    layer.derivatives.copy_(torch.tensor([[0.25, 0.25, 0.5, 1.0]]))
    model.weight.grad = torch.tensor([[1.0, 1.0, 3.0, -1.0]])
    learned.before_optimizer_step()
    # Σ g w' = 2 - 6 = -4, over 2 ones: -2.  2 g w: 2, 4, -6, -8.  Both: 4, 6, -4, -6.
    assert layer.scores.grad.tolist() == [[1.0, 1.5, -2.0, -6.0]]
    assert learned.apply_most_likely_mask()["weight"].tolist() == [[2.0, 0.0, 2.0, 0.0]]


def test_an_empty_sample_is_not_rescaled():
    model = nn.Linear(3, 2, bias=False)
    learned = SupermaskConstraint(model, {"weight": torch.ones(2, 3)}, Bernoulli(rescale=True), seed=0)
    learned.layers["weight"].scores.data.fill_(-100.0)
    learned.apply()
    model.weight.grad = torch.ones(2, 3)
    learned.before_optimizer_step()
    assert not model.weight.any()
    assert torch.isfinite(learned.layers["weight"].scores.grad).all()


@every_kind
def test_weight_without_a_gradient_is_refused(kind):
    model = tiny_networks.mlp(0)
    learned = over(model, kind)
    learned.apply()
    with pytest.raises(ModelError, match=r"gradient of '1\.weight', over which .* forward pass does not use"):
        learned.before_optimizer_step()
    model[3].weight.requires_grad_(False)
    with pytest.raises(ModelError, match=r"requires_grad = True for '3\.weight'"):
        over(model, kind)


# --- the sampler


def test_uniforms_are_uniform_and_independent():
    """Chi-square over 256 bins, within 6 standard deviations; middles of steps; streams that have nothing in common."""
    n = 1 << 20
    u = UniformStream(3, 5).fill(torch.empty(n)).double()
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    assert torch.equal(u * 2**16 % 1, torch.full((n,), 0.5, dtype=torch.float64))
    counts = torch.histc(u, 256, 0, 1)
    chi = float(((counts - n / 256) ** 2 / (n / 256)).sum())
    assert abs(chi - 255) < 6 * math.sqrt(2 * 255)
    others = [UniformStream(3, 6), UniformStream(4, 5), UniformStream(3, -5), UniformStream(3, -6)]
    pairs = [u, u.roll(1), u.roll(2), *(stream.fill(torch.empty(n)).double() for stream in others)]
    for other in pairs[1:]:
        assert abs(float(torch.corrcoef(torch.stack([u, other]))[0, 1])) < 6 / math.sqrt(n)


@pytest.mark.parametrize("p", [0.003, 0.2, 0.5, 0.77, 0.999])
def test_weight_is_kept_with_the_probability_of_its_logit(p):
    """Over weights in one draw, and of one weight over draws: within 5 standard deviations."""
    n = 400_000
    model = nn.Linear(n // 100, 100, bias=False)
    learned = SupermaskConstraint(model, {"weight": torch.ones(100, n // 100)}, Bernoulli(start=p), seed=1)
    learned.apply()
    assert abs(float(model.weight.detach().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n)
    linear = nn.Linear(8, 1, bias=False)
    learned = SupermaskConstraint(linear, {"weight": torch.ones(1, 8)}, Bernoulli(start=p), seed=2)
    seen = torch.zeros(8)
    for _ in range(2000):
        learned.apply()
        seen += linear.weight.detach()[0]
    assert float((seen / 2000 - p).abs().max()) < 5 * math.sqrt(p * (1 - p) / 2000)


def test_probabilities_are_exact_for_16_bits():
    """Of the 2^16 numbers a draw may be, 2^15 are below 1/2, and round(2^16 p) below p."""
    every = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    for p in (0.5, 0.25, 0.1, 1e-4, 1 - 1e-5, 1e-7):
        assert int((every.float() < torch.tensor(p, dtype=torch.float32)).sum()) == round(p * 2**16)


def test_steps_layers_and_seeds_draw_independent_masks():
    model = nn.Sequential(nn.Linear(300, 300, bias=False), nn.Linear(300, 300, bias=False))
    weights = {"0.weight": torch.ones(300, 300), "1.weight": torch.ones(300, 300)}
    learned = SupermaskConstraint(model, weights, Bernoulli(), seed=0)
    other = SupermaskConstraint(copy.deepcopy(model), weights, Bernoulli(), seed=1)
    factors = []
    for constraint in (learned, learned, other):
        constraint.apply()
        factors += [layer.factors.clone() for layer in constraint.layers.values()]
    learned.apply_sample(0)
    factors += [layer.factors.clone() for layer in learned.layers.values()]
    for place, left in enumerate(factors):
        for right in factors[:place]:
            assert abs(float((left == right).float().mean()) - 0.5) < 5 * 0.5 / 300


def test_sample_depends_on_its_index_only():
    model = tiny_networks.mlp(0)
    learned = over(model, Bernoulli())
    learned.apply_sample(4)
    before = clone_tensors(model.state_dict())
    learned.apply()
    assert any(not torch.equal(before[n], t) for n, t in model.state_dict().items())
    learned.apply_sample(4)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_chunks_cover_all_entries_in_memory_order():
    tensor = torch.arange(2 * CHUNK + 10, dtype=torch.float32)
    assert torch.equal(torch.cat([piece for (piece,) in aligned_chunks(tensor)]), tensor)
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(flat_view(image), image.permute(0, 2, 3, 1).reshape(-1))


# --- selection


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9, 1.0])
def test_edge_popup_keeps_exactly_the_highest_scores(density, monkeypatch):
    """While scores wander, against a full sort; most borders are found among the near ones."""
    model = nn.Linear(300, 200, bias=False)
    learned = SupermaskConstraint(model, {"weight": torch.ones(200, 300)}, EdgePopup(density), seed=0)
    layer, full_searches, original = learned.layers["weight"], [], KthLargest._set_range
    monkeypatch.setattr(KthLargest, "_set_range", lambda *all: full_searches.append(original(*all)))
    for step in range(30):
        learned.apply()
        keep = num_to_keep(density, 60_000)
        order = layer.scores.detach().abs().flatten().argsort(descending=True)
        expected = torch.zeros(60_000).index_fill_(0, order[:keep], 1.0)
        assert torch.equal(layer.factors.flatten(), expected)
        layer.scores.data += 1e-4 * torch.randn(200, 300, generator=make_generator(step))
    assert len(full_searches) <= 10


def test_edge_popup_breaks_ties_in_favor_of_the_first():
    model = nn.Linear(4, 3, bias=False)
    learned = SupermaskConstraint(model, {"weight": torch.ones(3, 4)}, EdgePopup(0.5), seed=0)
    learned.layers["weight"].scores.data.copy_(torch.tensor([[1.0, -2, 1, -1], [1, -1, 2, 1], [1, 2, 0, 1]]))
    learned.apply()
    assert model.weight.tolist() == [[1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0]]


def test_kth_largest_is_exact_after_any_change():
    border, r = KthLargest(), np.random.default_rng(0)
    for shift in (0.0, 0.0, 1e-3, 5.0, -3.0, 0.0):
        values = torch.from_numpy(r.normal(shift, 1, 5000).astype(np.float32))
        for k in (1, 17, 2500, 5000):
            sizes = values.abs().sort(descending=True).values
            assert border.find(values, k) == (float(sizes[k - 1]), int((sizes >= sizes[k - 1]).sum()))


def test_signed_mask_equals_values_computed_by_hand():
    model = nn.Linear(5, 1, bias=False)
    learned = SupermaskConstraint(model, {"weight": torch.tensor([[1.0, -2, 3, 4, 5]])}, Signed(0.5), seed=0)
    learned.layers["weight"].scores.data.copy_(torch.tensor([[0.6, -0.6, 0.4, -0.5, 0.5]]))
    learned.apply()
    assert model.weight.tolist() == [[1, 2, 0, 0, 0]]


# --- what holds


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("network", NETWORKS)
@every_kind
def test_weights_are_never_trained(kind, network, optimizer, small_data):
    model = NETWORKS[network](1)
    before = clone_tensors(model.state_dict())
    learned = over(model, kind)
    recipe = Recipe(1, 0.1, 20, optimizer, 0.0 if optimizer == "adamw" else 0.5, weight_decay=1e-3)
    scores = clone_tensors(learned.trainable_tensors())
    train(model, small_data, recipe, constraint=learned, seed=3)
    assert any(not torch.equal(scores[n], t) for n, t in learned.trainable_tensors().items())
    assert learned.verify() == 0
    for name, tensor in model.state_dict().items():
        if name in learned.layers:
            layer = learned.layers[name]
            assert torch.equal(learned.weights[name], before[name])
            assert torch.equal(tensor, before[name] * layer.factors)
            sizes = layer.factors[layer.factors != 0].abs().unique()
            assert len(sizes) <= 1
            assert not torch.signbit(tensor[tensor == 0]).any()
        elif "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, before[name])


@every_kind
def test_verify_counts_changed_weights(kind):
    model = tiny_networks.mlp(0)
    learned = over(model, kind)
    learned.apply()
    assert learned.verify() == 0
    with torch.no_grad():
        model[1].weight[0, :3] += 0.001
    assert learned.verify() == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@every_kind
def test_mask_is_learned_over_weights_of_other_types(kind, dtype):
    """The masks are those of the same weights in float32, and scores have at least its precision."""
    model = tiny_networks.mlp(0).to(dtype)
    learned, reference = over(model, kind), over(tiny_networks.mlp(0), kind)
    for each in (learned, reference):
        spread(each)
        each.apply()
    assert learned.verify() == 0
    model(torch.randn(4, 64, dtype=dtype)).square().sum().backward()
    learned.before_optimizer_step()
    for name, scores in learned.trainable_tensors().items():
        assert scores.dtype == torch.promote_types(dtype, torch.float32)
        assert scores.grad.isfinite().all()
        mask, expected = (each.layers[name].factors != 0 for each in (learned, reference))
        assert torch.equal(mask, expected)
    learned.apply_most_likely_mask()


@pytest.mark.parametrize("weights", ["initial", "signed_constant", "signed_glorot"])
def test_invariants_hold_over_a_network_in_bfloat16(weights):
    baseline = replace(DENSE, model=lambda seed: tiny_networks.mlp(seed).bfloat16())
    dense = tickets.run(baseline)
    spec = replace(SPEC, baseline=baseline, weights=weights)
    (row,) = tickets.run(spec, dense).rows()
    assert row["invariants"]["passed"]


def test_buffers_that_a_forward_pass_changes_violate_no_invariant():
    def make_network(seed):
        network = tiny_networks.mlp(seed)
        network[1] = nn.utils.parametrizations.spectral_norm(network[1])
        return network

    baseline = replace(DENSE, model=make_network)
    (row,) = tickets.run(replace(SPEC, baseline=baseline), tickets.run(baseline)).rows()
    assert row["invariants"]["passed"]


CONVERSIONS = {
    "double": lambda model: model.double(),
    "half": lambda model: model.half(),
    "assign": lambda model: model.load_state_dict(
        {name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True
    ),
    "assign with another layout": lambda model: model.load_state_dict(
        {name: tensor.t().contiguous().t() for name, tensor in model.state_dict().items()}, assign=True
    ),
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
@every_kind
def test_constraint_holds_after_the_model_is_converted(kind, convert):
    """The storage of the parameters is replaced; weights, gradients and violations are those of the new one."""
    models = tiny_networks.mlp(0), tiny_networks.mlp(0)
    constraint, reference = (over(model, kind) for model in models)
    for learned in (constraint, reference):
        spread(learned)
        learned.apply()
    convert(models[0])
    for learned in (constraint, reference):
        learned.apply()
    assert constraint.verify() == 0
    for name, weight in reference.weights.items():
        expected, converted = models[1].get_parameter(name), models[0].get_parameter(name)
        assert torch.equal(converted, expected.to(converted.dtype))
        expected.grad, converted.grad = torch.ones_like(weight), torch.ones_like(converted)
    for learned in (constraint, reference):
        learned.before_optimizer_step()
    for name, scores in constraint.trainable_tensors().items():
        assert torch.allclose(scores.grad, reference.trainable_tensors()[name].grad, rtol=1e-2, atol=1e-3)
    with torch.no_grad():
        models[0][1].weight[0, :3] += 1
    assert constraint.verify() == 3
    constraint.apply_most_likely_mask()
    reference.apply_most_likely_mask()
    for name in reference.weights:
        converted = models[0].get_parameter(name)
        assert torch.equal(converted, models[1].get_parameter(name).to(converted.dtype))


@every_kind
def test_channels_last_layout_is_kept(kind, small_data):
    """A channels-last convolution keeps its layout, and learns."""
    model = tiny_networks.convolved(0)
    learned = over(model, kind)
    train(model, small_data, RECIPE, constraint=learned)
    weight = model[0].weight
    assert weight.stride() == learned.layers["0.weight"].scores.stride()
    assert weight.is_contiguous(memory_format=torch.channels_last)


@every_kind
def test_mask_learning_raises_accuracy(kind, digits):
    """Eight classes of ten in a minute fraction: far above chance, and above the untrained network."""
    model = tiny_networks.mlp(0)
    untrained = evaluate(model, digits.validation).accuracy
    learned = over(model, kind, weights="signed_kaiming")
    train(model, digits, Recipe(8, 0.1 if kind.random else 0.01, 20), constraint=learned)
    learned.apply_most_likely_mask()
    assert evaluate(model, digits.validation).accuracy > max(untrained, 10) + 30


# --- resume


@every_kind
@pytest.mark.parametrize("network", ["mlp", "normed"])
def test_resumed_training_equals_uninterrupted_training(kind, network, small_data, tmp_path):
    """Killed by an exception after the checkpoint of the first epoch, in the middle of what comes next."""

    class Killed(Exception):
        pass

    def kill(epoch):
        if epoch.epoch == 2:
            raise Killed

    recipe = RECIPE.replace(epochs=4)
    straight = NETWORKS[network](2)
    uninterrupted = over(straight, kind)
    train(straight, small_data, recipe, constraint=uninterrupted, seed=1)
    path = tmp_path / "checkpoint"
    first = NETWORKS[network](2)
    with pytest.raises(Killed):
        train(first, small_data, recipe, constraint=over(first, kind), seed=1, checkpoint=path, report=kill)
    again = NETWORKS[network](2)
    resumed = over(again, kind)
    train(again, small_data, recipe, constraint=resumed, seed=1, checkpoint=path)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert all(
        torch.equal(uninterrupted.state_dict()[key], tensor) for key, tensor in resumed.state_dict().items()
    )
    uninterrupted.apply_sample(0)
    resumed.apply_sample(0)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in straight.state_dict().items())


def test_checkpoint_over_other_weights_is_refused():
    constraint, other = over(tiny_networks.mlp(0), Bernoulli()), over(tiny_networks.mlp(1), Bernoulli())
    with pytest.raises(CheckpointError, match="other weights"):
        constraint.load_state_dict(other.state_dict())
    with pytest.raises(CheckpointError):
        constraint.load_state_dict({})


# --- weights


def test_initial_and_signed_constant_weights():
    first = clone_tensors(prunable_weights(tiny_networks.mlp(0)))
    for name, values in WEIGHT_INITS["signed_constant"](first, 2.0, 0).values.items():
        assert torch.equal(values.sign(), first[name].sign())
        assert torch.allclose(values.abs(), 2 * population_std(first[name]))
        assert len(values.abs().unique()) == 1
    kept_weights = WEIGHT_INITS["initial"](first, 1.0, 0).values
    assert all(torch.equal(kept_weights[name], weight) for name, weight in first.items())
    assert all(kept_weights[name].data_ptr() != weight.data_ptr() for name, weight in first.items())


# --- runs

DENSE = BaselineSpec(
    "tests.helpers.tiny_networks:mlp", "digits", Recipe(1, 0.01, 20), examples=200, eval_every=5
)
SPEC = LearnedSupermaskSpec(DENSE, recipe=RECIPE, samples=3)


def done(spec, *needed):
    """Carry out a run; returns its directory and its summary."""
    directory = tickets.new_directory()
    return directory, tickets.run_with_summary(spec, directory, *needed)


@pytest.fixture(scope="module")
def dense():
    return done(DENSE)[0]


@pytest.mark.parametrize("weights", WEIGHT_INITS)
@every_kind
def test_run_of_every_kind_over_all_weights(kind, weights, dense):
    spec = replace(SPEC, mask=kind, weights=weights, multiplier=1.5)
    directory, summary = done(spec, dense)
    (row,) = directory.rows()
    assert row == summary
    assert row["invariants"]["passed"]
    assert row["invariants"]["evaluations"] == len(directory.curve()) == 5
    masks = directory.load_masks(masks_name(1))
    assert row["most_likely_density"] == mask_density(masks)
    model, generated, factors = load_trained_network(spec.baseline, directory)
    assert evaluate(model, DENSE.load_data().test).accuracy == row["most_likely_final_test_accuracy"]
    assert set(generated) == (set() if weights in ("initial", "signed_constant") else set(masks))
    for name, how in generated.items():
        values = torch.from_numpy(how.values(masks[name].shape)) * factors[name]
        state = model.state_dict()[name]
        assert torch.equal(state.abs(), (values * masks[name]).abs())
    if not kind.random:
        assert row["final_test_accuracy"] == row["most_likely_final_test_accuracy"]
        assert row["sample_spread"] == 0
        assert row["density"] == row["most_likely_density"]


def test_density_is_that_of_the_samples(dense):
    """Far from 1/2 the most likely mask is a different network: it keeps nearly all weights, samples keep 85 %."""
    row = done(replace(SPEC, mask=Bernoulli(start=0.85)), dense)[1]
    assert row["density"] == pytest.approx(0.85, abs=0.05)
    assert row["most_likely_density"] > 0.95


def test_empty_layers_are_warned_of(dense):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EmptyLayerWarning)
        done(replace(SPEC, mask=Signed(threshold=5.0)), dense)
    messages = [str(warning.message) for warning in caught]
    assert all(
        name in message
        for name, message in zip(prunable_weights(DENSE.make_network()), messages, strict=True)
    )


def test_runs_are_reproducible_and_replicates_differ(dense):
    first, again = (done(SPEC, dense)[0] for _ in range(2))
    assert all(
        torch.equal(t, again.load_tensors("scores")[n]) for n, t in first.load_tensors("scores").items()
    )
    other = replace(SPEC, baseline=replace(DENSE, replicate=1))
    elsewhere = done(other, done(other.baseline)[0])[0]
    assert not torch.equal(
        elsewhere.load_tensors("scores")["1.weight"], first.load_tensors("scores")["1.weight"]
    )
    names = {run_id(replace(SPEC, mask=kind)) for kind in KINDS.values()}
    assert len(names) == len(KINDS)


def test_invariants_fail_if_fixed_weights_change(dense, monkeypatch):
    class Leaking(SupermaskConstraint):
        def apply(self):
            super().apply()
            for weight in self.weights.values():
                weight += 1e-6

    monkeypatch.setattr("prunus.tickets.supermask.learned_supermask.SupermaskConstraint", Leaking)
    with pytest.warns(InvariantWarning, match="as at the start"):
        directory, _ = done(SPEC, dense)
    assert not directory.rows()[0]["invariants"]["passed"]


def test_ticket_uses_a_learned_mask(dense):
    learned, _ = done(SPEC, dense)
    ticket = TicketSpec(DENSE, rounds=1, masks_from=SPEC)
    assert ticket.dependencies() == {"baseline": DENSE, "masks": SPEC}
    directory, row = done(ticket, dense, learned)
    assert row["invariants"]["passed"]
    masks = learned.load_masks(masks_name(1))
    assert all(torch.equal(mask, masks[name]) for name, mask in directory.load_masks(masks_name(1)).items())
    final = directory.load_tensors("final")
    assert all(not final[name][~mask].any() for name, mask in masks.items())
    with pytest.raises(SpecError, match="levels that the source of the masks has"):
        replace(ticket, rounds=2).check()


@pytest.mark.parametrize("weights", ["initial", "signed_constant", "signed_glorot"])
def test_criterion_masks_are_those_of_the_ticket(weights, dense):
    ticket = TicketSpec(
        DENSE,
        "large_final_same_sign",
        schedule="one_shot",
        rounds=3,
        pruning_rates=PruningRates(0.4, 0.4, 0.2),
    )
    directory, best = done(CriterionSupermaskSpec(ticket, weights), dense)
    trained, _ = done(ticket, dense)
    assert [row["level"] for row in directory.rows()] == [0, 1, 2, 3]
    assert best["final_validation_accuracy"] == max(
        row["final_validation_accuracy"] for row in directory.rows()
    )
    model, first = DENSE.make_network(), load_saved_state(dense, 0).model
    values = CriterionSupermaskSpec(ticket, weights)
    for row in directory.rows()[1:]:
        assert row["invariants"]["passed"]
        masks = trained.load_masks(masks_name(row["level"]))
        assert row["density"] == mask_density(masks)
        if weights == "initial":
            masked = {
                name: tensor * masks[name] if name in masks else tensor for name, tensor in first.items()
            }
            model.load_state_dict(masked)
            assert evaluate(model, DENSE.load_data().test).accuracy == row["final_test_accuracy"]
    with (
        patch("prunus.tickets.supermask.criterion_supermask.tensors_equal", return_value=False),
        pytest.warns(InvariantWarning, match="biases and buffers are as initialized"),
    ):
        failed, _ = done(CriterionSupermaskSpec(ticket, weights), dense)
    assert not any(row["invariants"]["passed"] for row in failed.rows())
    iterative = replace(ticket, schedule="iterative")
    assert values.dependencies() == {"baseline": DENSE}
    assert CriterionSupermaskSpec(iterative).dependencies() == {"baseline": DENSE, "ticket": iterative}
    rows = done(CriterionSupermaskSpec(iterative, weights), dense, done(iterative, dense)[0])[0].rows()
    assert [row["density"] for row in rows] == [row["density"] for row in directory.rows()]


REGRESSION = BaselineSpec(
    "tests.helpers.tiny_networks:regressor", "tests.helpers.tiny_networks:sums", Recipe(1, 0.01, 50), eval_every=5,
    loss="squared_error",
)  # fmt: skip


@every_kind
def test_mask_over_a_regression_is_scored_by_its_loss(kind):
    spec = LearnedSupermaskSpec(REGRESSION, mask=kind, recipe=RECIPE, samples=3)
    dense = done(REGRESSION)[0]
    directory, row = done(spec, dense)
    assert row["invariants"]["passed"]
    assert not any("accuracy" in key for key in row)
    assert (row["sample_spread"] > 0) == kind.random
    model, *_ = load_trained_network(REGRESSION, directory)
    expected = evaluate(model, REGRESSION.load_data().test, loss="squared_error").loss
    assert row["most_likely_final_test_loss"] == expected
    assert spec.pace() > 0
    ticket = TicketSpec(REGRESSION, "large_final", schedule="one_shot", rounds=2)
    directory, best = done(CriterionSupermaskSpec(ticket), dense)
    assert best["final_validation_loss"] == min(row["final_validation_loss"] for row in directory.rows())


def test_forward_of_the_baseline_is_used_in_every_score(dense):
    calls = []

    def forward(model, batch):
        calls.append(len(batch[0]))
        return -model(batch[0])

    spec = replace(SPEC, baseline=replace(DENSE, forward=forward))
    assert spec.pace() > 0
    assert calls
    data, model = DENSE.load_data(), DENSE.make_network()
    scores = final_scores(model, data, spec.baseline.task)
    assert scores["final_test_accuracy"] == evaluate(model, data.test, forward=forward).accuracy
    assert scores["final_test_accuracy"] != final_scores(model, data, {})["final_test_accuracy"]


# --- bad inputs


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        (replace(SPEC, weights="glorott"), UnknownNameError, "glorot"),
        (replace(SPEC, mask=Bernoulli(start=0.0)), SpecError, "starting probability"),
        (replace(SPEC, mask=Bernoulli(start=1.0)), SpecError, "starting probability"),
        (replace(SPEC, mask=Bernoulli(start=math.nan)), SpecError, "starting probability"),
        (replace(SPEC, mask=EdgePopup(density=0.0)), DensityError, "above 0"),
        (replace(SPEC, mask=EdgePopup(density=1.5)), DensityError, "at most 1"),
        (replace(SPEC, mask=EdgePopup(density=0.002)), DensityError, "one of the 160 weights"),
        (replace(SPEC, multiplier=math.inf), SpecError, "multiplier"),
        (replace(SPEC, mask=Signed(threshold=-0.1)), SpecError, "threshold"),
        (replace(SPEC, mask=Signed(), scaled_fan=True), SpecError, "no density"),
        (replace(SPEC, multiplier=0.0), SpecError, "multiplier"),
        (replace(SPEC, samples=0), SpecError, "samples"),
        (replace(SPEC, recipe=RECIPE.replace(epochs=0)), SpecError, "epochs"),
        (replace(SPEC, recipe=RECIPE.replace(batch_size=0)), SpecError, "batch_size"),
        (replace(SPEC, recipe=RECIPE.replace(patience=3)), SpecError, "patience"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_invalid_settings_are_refused(spec, error, says, dense):
    with pytest.raises(error, match=says):
        done(spec, dense)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"weights": "glorott"}, UnknownNameError, "glorot"),
        ({"multiplier": math.nan}, SpecError, "multiplier"),
        ({"ticket": TicketSpec(DENSE, schedule="cubic")}, SpecError, "schedule"),
    ],
)
def test_invalid_settings_of_criterion_masks_are_refused_before_any_run(changes, error, says):
    with pytest.raises(error, match=says):
        CriterionSupermaskSpec(**{"ticket": TicketSpec(DENSE, schedule="one_shot"), **changes}).cost()


def test_mask_over_unknown_parameters_is_refused():
    with pytest.raises(ModelError, match="nothing"):
        SupermaskConstraint(nn.Linear(2, 2), {"nothing": torch.ones(2, 2)}, Bernoulli(), 0)
    with pytest.raises(ModelError, match="shape"):
        SupermaskConstraint(nn.Linear(2, 2), {"weight": torch.ones(2, 3)}, Bernoulli(), 0)


@pytest.mark.parametrize(
    ("cut", "dense"),
    [
        (lambda big: big[:, ::2], False),
        (lambda big: big[::2], False),
        (lambda big: big[:, :3], False),
        (lambda big: big[:1].expand(4, 6), False),
        (lambda big: big.as_strided((4, 6), (1, 1)), False),
        (lambda big: big[1:3], True),
        (lambda big: big.T, True),
        (lambda big: big[:1, 1:5], True),
        (lambda big: big[:0, ::2], True),
    ],
    ids=["columns", "rows", "left", "repeated", "overlapping", "inner", "turned", "one row", "none"],
)
@every_kind
def test_mask_changes_only_its_parameter(kind, cut, dense):
    """A parameter that is part of a larger tensor: refused by name, or learned with the rest untouched."""
    big = torch.arange(1.0, 25.0).view(4, 6)
    linear = nn.Linear(1, 1)
    linear.weight = nn.Parameter(cut(big))
    weights = {"weight": linear.weight.detach().clone()}
    if not dense:
        with pytest.raises(ModelError, match=r"weight .* gaps or overlaps"):
            SupermaskConstraint(linear, weights, kind, 0)
        assert torch.equal(big, torch.arange(1.0, 25.0).view(4, 6))
        return
    learned = SupermaskConstraint(linear, weights, kind, 0)
    learned.apply()
    learned.apply_most_likely_mask()
    with torch.no_grad():
        linear.weight.copy_(weights["weight"])
    assert torch.equal(big, torch.arange(1.0, 25.0).view(4, 6))
