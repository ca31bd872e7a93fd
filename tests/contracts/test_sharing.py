"""Laws of weight sharing: Lloyd only improves, the optimum is one, zero stays zero, gradients are sums."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from prunus.compression.sharing import Tied, centroid_gradient, share
from prunus.compression.sharing.kmeans import Sorted, borders, lloyd, nearest, wcss
from prunus.compression.sharing.starts import STARTS
from prunus.errors import CheckpointError, NoEffectWarning, NotFiniteError, SharingError, UnknownNameError
from prunus.nouns import Evidence
from prunus.pruning.criteria import magnitude
from prunus.pruning.masks import apply_masks
from prunus.pruning.prunable import prunable
from prunus.pruning.scopes import layer
from prunus.training import Recipe, train
from prunus.training.loop import Training

each_start = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)


def weights(seed: int, n: int = 2000) -> np.ndarray:
    return np.random.default_rng(seed).laplace(size=n).astype(np.float32)


@each_start
@pytest.mark.parametrize("k", [1, 2, 5, 32, 256])
def test_a_start_is_k_ascending_numbers_in_the_range(start, k):
    numbers = Sorted.of(weights(0))
    centroids = start(numbers, k, np.random.default_rng(0))
    assert len(centroids) == k
    assert np.all(np.diff(centroids) >= 0)
    assert numbers.values[0] <= centroids[0]
    assert centroids[-1] <= numbers.values[-1]


@each_start
@given(seed=st.integers(0, 1000), k=st.integers(1, 40))
def test_lloyd_never_makes_it_worse_and_ends_at_a_fixed_point(start, seed, k):
    values = weights(seed, 300)
    numbers = Sorted.of(values)
    begin = np.sort(start(numbers, k, np.random.default_rng(seed)))
    end = lloyd(numbers, begin)
    assert wcss(values, end) <= wcss(values, begin) * (1 + 1e-9)
    assert np.array_equal(lloyd(numbers, end), end)


@given(seed=st.integers(0, 1000), k=st.integers(1, 12))
def test_a_pass_agrees_with_the_textbook(seed, k):
    """Means of the points nearest to each centroid, computed with every distance."""
    values = weights(seed, 100)
    begin = np.sort(np.random.default_rng(seed).normal(size=k))
    closest = np.abs(values[:, None].astype(np.float64) - begin).argmin(1)
    expected = [
        values[closest == j].mean(dtype=np.float64) if (closest == j).any() else begin[j] for j in range(k)
    ]
    assert np.allclose(lloyd(Sorted.of(values), begin, passes=1), expected)


def test_borders_by_hand():
    values = np.array([-2, -1, 0, 1, 5], dtype=np.float32)
    assert borders(values, np.array([-1.5, 0.5, 5.0])).tolist() == [0, 2, 4, 5]


@given(seed=st.integers(0, 1000), k=st.integers(1, 20))
def test_no_start_is_better_than_the_optimum(seed, k):
    values = weights(seed, 300)
    numbers = Sorted.of(values)
    generator = np.random.default_rng(seed)
    best = wcss(values, lloyd(numbers, STARTS["optimal"](numbers, k, generator)))
    for start in STARTS.values():
        assert best <= wcss(values, lloyd(numbers, start(numbers, k, generator))) * (1 + 1e-6)


def pruned(mlp):
    masks = layer(magnitude(Evidence(prunable(mlp))), 0.4)
    mlp.load_state_dict(apply_masks(dict(mlp.state_dict()), masks))
    return masks


@each_start
@pytest.mark.parametrize("bits", [1, 3, 6, 8])
def test_zero_stays_zero_and_the_rest_has_few_values(start, bits, mlp, recwarn):
    masks = pruned(mlp)
    name = next(key for key, value in STARTS.items() if value is start)
    for key, shared in share(prunable(mlp), masks, bits, name).items():
        dense = shared.dense()
        assert torch.equal(dense != 0, masks[key])
        assert len(dense[masks[key]].unique()) <= 2**bits
        assert not torch.signbit(dense[~masks[key]]).any()
        assert torch.equal(shared.codebook, shared.codebook.sort().values)
        assert len(shared.codes.unique()) == len(shared.codebook)


def test_every_weight_goes_to_its_nearest_centroid(mlp):
    masks = pruned(mlp)
    for name, shared in share(prunable(mlp), masks, 3).items():
        kept = mlp.get_parameter(name).detach()[masks[name]]
        distances = (kept[:, None] - shared.codebook).abs()
        assert torch.allclose(
            distances.min(1).values, distances.gather(1, shared.codes[:, None])[:, 0], atol=1e-7
        )


def test_bits_a_name_and_a_seed_for_the_random_start(mlp):
    masks = pruned(mlp)
    bits = {"1.weight": 2, "4.weight": 3, "6.weight": 4}
    one, again, other = (share(prunable(mlp), masks, bits, "random", seed) for seed in (1, 1, 2))
    assert [len(s.codebook) for s in one.values()] == [4, 8, 16]
    assert all(torch.equal(one[n].codebook, again[n].codebook) for n in one)
    assert any(not torch.equal(one[n].codebook, other[n].codebook) for n in one)


def test_fewer_values_than_centroids_are_kept_exactly_and_said():
    params = {"a": torch.tensor([0.5, 0.5, -1.25, 0.0])}
    with pytest.warns(NoEffectWarning, match="'a' has 2 distinct values, which 5 bits hold exactly"):
        shared = share(params, {"a": torch.tensor([True, True, True, False])}, 5)["a"]
    assert torch.equal(shared.dense(), params["a"])


def test_a_layer_of_one_weight():
    with pytest.warns(NoEffectWarning, match="1 distinct"):
        assert (
            share({"a": torch.tensor([[3.0]])}, {"a": torch.tensor([[True]])}, 1)["a"].dense().item() == 3.0
        )


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(SharingError, match="1 to 8"):
        share({"a": torch.randn(9)}, {"a": torch.ones(9, dtype=torch.bool)}, bits)


def test_nothing_to_share_nan_and_an_unknown_start_are_named():
    some = {"a": torch.randn(500)}, {"a": torch.ones(500, dtype=torch.bool)}
    with pytest.raises(SharingError, match="'a' has no weight left"):
        share({"a": torch.randn(3)}, {"a": torch.zeros(3, dtype=torch.bool)}, 2)
    with pytest.raises(NotFiniteError, match="'a' cannot be shared"):
        share({"a": some[0]["a"] / 0}, some[1], 2)
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        share(*some, 2, "liner")


# The gradient of a centroid, three ways.


def shared_mlp(mlp, bits=2):
    model = copy.deepcopy(mlp).double().eval()
    masks = layer(magnitude(Evidence(prunable(mlp))), 0.4)
    shared = share(prunable(mlp), masks, bits)
    shared = {n: copy.copy(s) for n, s in shared.items()}
    for s in shared.values():
        object.__setattr__(s, "codebook", s.codebook.double())
    return model, shared


def loss_at(model, shared, books, data):
    values = {n: torch.zeros(s.shape.numel(), dtype=torch.float64) for n, s in shared.items()}
    dense = {
        n: v.index_put((shared[n].places,), books[n][shared[n].codes]).reshape(shared[n].shape)
        for n, v in values.items()
    }
    outputs = torch.func.functional_call(model, dense, (data.inputs[:50].double(),))
    return F.cross_entropy(outputs, data.labels[:50])


def test_the_gradient_of_a_centroid_is_autograds_through_the_index(mlp, few):
    model, shared = shared_mlp(mlp)
    books = {n: s.codebook.clone().requires_grad_() for n, s in shared.items()}
    expected = torch.autograd.grad(loss_at(model, shared, books, few.train), list(books.values()))
    constraint = Tied(model, shared)
    constraint.hold()
    F.cross_entropy(model(few.train.inputs[:50].double()), few.train.labels[:50]).backward()
    constraint.before_step()
    for (name, book), gradient in zip(constraint.codebooks.items(), expected, strict=True):
        assert torch.allclose(book.grad, gradient, rtol=1e-10), name


def test_the_gradient_of_a_centroid_is_the_finite_difference(mlp, few):
    model, shared = shared_mlp(mlp)
    constraint = Tied(model, shared)
    constraint.hold()
    F.cross_entropy(model(few.train.inputs[:50].double()), few.train.labels[:50]).backward()
    constraint.before_step()
    step = 1e-6
    for name in shared:
        for k in range(len(shared[name].codebook)):
            ends = []
            for sign in (1, -1):
                books = {n: s.codebook.clone() for n, s in shared.items()}
                books[name][k] += sign * step
                ends.append(loss_at(model, shared, books, few.train).item())
            found = float(constraint.codebooks[name].grad[k])
            assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-8)


def test_the_gradient_of_a_centroid_by_hand():
    with pytest.warns(NoEffectWarning):
        shared = share(
            {"a": torch.tensor([1.0, 0.0, 2.0, 1.0])}, {"a": torch.tensor([True, False, True, True])}, 1
        )
    gradient = torch.tensor([10.0, 20.0, 40.0, 80.0])
    assert centroid_gradient(gradient, shared["a"]).tolist() == [90.0, 40.0]


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_shared_weights_stay_shared_and_zeros_zero_after_every_step(optimiser, mlp, few):
    masks = pruned(mlp)
    constraint = Tied(mlp, share(prunable(mlp), masks, 3))
    run = Training(mlp, Recipe(1, 0.05, 32, optimiser=optimiser, momentum=0.9, weight_decay=0.1), constraint)
    constraint.hold()
    bias = mlp[1].bias.detach().clone()
    before = {n: book.detach().clone() for n, book in constraint.codebooks.items()}
    for _ in range(5):
        run.step(few.train.inputs, few.train.labels)
        for name, shared in constraint.result().items():
            assert torch.equal(mlp.get_parameter(name), shared.dense())
            assert torch.equal(mlp.get_parameter(name) != 0, masks[name])
    assert all((before[n] != book).any() for n, book in constraint.codebooks.items())
    assert (bias != mlp[1].bias).any()


def test_fine_tuning_lowers_the_loss_and_resumes_exactly(mlp, few, tmp_path):
    masks, recipe, path = pruned(mlp), Recipe(4, 0.003, 16), tmp_path / "c.safetensors"
    shared = share(prunable(mlp), masks, 2)
    whole, parts = copy.deepcopy(mlp), copy.deepcopy(mlp)
    epochs = train(whole, few, recipe, constraint=Tied(whole, shared))
    assert epochs[-1].training_loss < epochs[0].training_loss

    def kill(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parts, few, recipe, constraint=Tied(parts, shared), checkpoint=path, report=kill)
    fresh = copy.deepcopy(mlp)
    assert train(fresh, few, recipe, constraint=Tied(fresh, shared), checkpoint=path) == epochs
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True))
    fresh = copy.deepcopy(mlp)
    with pytest.raises(CheckpointError, match=r"\(its constraint \(masks"):
        train(fresh, few, recipe, constraint=Tied(fresh, share(prunable(mlp), masks, 3)), checkpoint=path)


def test_nearest_breaks_ties_upwards():
    assert nearest(np.array([0.5], dtype=np.float32), np.array([0.0, 1.0])).tolist() == [1]


def test_with_patience_the_codebooks_go_back_to_the_best_epoch_too(mlp, few):
    constraint = Tied(mlp, share(prunable(mlp), pruned(mlp), 3))
    epochs = train(mlp, few, Recipe(60, 0.1, 16, patience=3), constraint=constraint)
    assert epochs[-1].validation_loss > min(epoch.validation_loss for epoch in epochs)
    for name, shared in constraint.result().items():
        assert torch.equal(shared.dense(), mlp.get_parameter(name))
