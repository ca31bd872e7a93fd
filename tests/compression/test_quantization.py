"""Properties of k-means, of quantized weights and of centroid fine-tuning."""

import copy
from fractions import Fraction

import kmeans1d
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from prunus.compression.quantization import CodebookConstraint, centroid_gradient, quantize_weights
from prunus.compression.quantization.kmeans import SortedValues, borders, cluster, lloyd, nearest, wcss
from prunus.compression.quantization.kmeans_init import KMEANS_INITS
from prunus.errors import (
    CheckpointError,
    DivergenceError,
    ModelError,
    NoEffectWarning,
    NonFiniteError,
    QuantizationError,
    UnknownNameError,
    UnusedCentroidsWarning,
)
from prunus.masks import apply_masks
from prunus.pruning.criteria.weights import magnitude
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import Layer
from prunus.pruning.statistics import Statistics
from prunus.training import Recipe, train
from prunus.training.trainer import Trainer

each_start = pytest.mark.parametrize("start", KMEANS_INITS.values(), ids=KMEANS_INITS)


def weights(seed: int, n: int = 2000) -> np.ndarray:
    return np.random.default_rng(seed).laplace(size=n).astype(np.float32)


@each_start
@pytest.mark.parametrize("k", [1, 2, 5, 32, 256])
def test_kmeans_inits_return_k_ascending_numbers_in_range(start, k):
    numbers = SortedValues.of(weights(0))
    centroids = start(numbers, k, np.random.default_rng(0))
    assert len(centroids) == k
    assert np.all(np.diff(centroids) >= 0)
    assert numbers.values[0] <= centroids[0]
    assert centroids[-1] <= numbers.values[-1]


@each_start
@given(seed=st.integers(0, 1000), k=st.integers(1, 40))
def test_lloyd_decreases_wcss_and_ends_at_a_fixed_point(start, seed, k):
    values = weights(seed, 300)
    numbers = SortedValues.of(values)
    begin = np.sort(start(numbers, k, np.random.default_rng(seed)))
    end = lloyd(numbers, begin)
    assert wcss(values, end) <= wcss(values, begin) * (1 + 1e-9)
    assert np.array_equal(lloyd(numbers, end), end)


@given(seed=st.integers(0, 1000), k=st.integers(1, 12))
def test_lloyd_iteration_equals_the_textbook_iteration(seed, k):
    """Means of the points nearest to each centroid, computed with every distance."""
    values = weights(seed, 100)
    begin = np.sort(np.random.default_rng(seed).normal(size=k))
    closest = np.abs(values[:, None].astype(np.float64) - begin).argmin(1)
    expected = [
        values[closest == j].mean(dtype=np.float64) if (closest == j).any() else begin[j] for j in range(k)
    ]
    assert np.allclose(lloyd(SortedValues.of(values), begin, max_iterations=1), expected)


def test_borders_equal_values_computed_by_hand():
    values = np.array([-2, -1, 0, 1, 5], dtype=np.float32)
    assert borders(values, np.array([-1.5, 0.5, 5.0])).tolist() == [0, 2, 4, 5]


@given(seed=st.integers(0, 1000), k=st.integers(1, 20))
def test_optimal_init_has_the_smallest_wcss(seed, k):
    values = weights(seed, 300)
    numbers = SortedValues.of(values)
    generator = np.random.default_rng(seed)
    best = wcss(values, lloyd(numbers, KMEANS_INITS["optimal"](numbers, k, generator)))
    for start in KMEANS_INITS.values():
        assert best <= wcss(values, lloyd(numbers, start(numbers, k, generator))) * (1 + 1e-6)


def pruned(mlp):
    masks = Layer().select(magnitude(Statistics(prunable_weights(mlp))), 0.4)
    mlp.load_state_dict(apply_masks(dict(mlp.state_dict()), masks))
    return masks


@each_start
@pytest.mark.parametrize("bits", [1, 3, 6, 8])
def test_quantize_weights_keeps_zeros_and_limits_distinct_values(start, bits, mlp, recwarn):
    masks = pruned(mlp)
    name = next(key for key, value in KMEANS_INITS.items() if value is start)
    for key, shared in quantize_weights(prunable_weights(mlp), masks, bits, name).items():
        dense = shared.dense()
        assert torch.equal(dense != 0, masks[key])
        assert len(dense[masks[key]].unique()) <= 2**bits
        assert not torch.signbit(dense[~masks[key]]).any()
        assert torch.equal(shared.codebook, shared.codebook.sort().values)
        assert len(shared.codes.unique()) == len(shared.codebook)


def test_quantize_weights_assigns_the_nearest_centroid(mlp):
    masks = pruned(mlp)
    for name, shared in quantize_weights(prunable_weights(mlp), masks, 3).items():
        weights = mlp.get_parameter(name).detach()[masks[name]]
        distances = (weights[:, None] - shared.codebook).abs()
        assert torch.allclose(
            distances.min(1).values, distances.gather(1, shared.codes[:, None])[:, 0], atol=1e-7
        )


def test_quantize_weights_accepts_bits_by_name_and_a_seed(mlp):
    masks = pruned(mlp)
    bits = {"1.weight": 2, "4.weight": 3, "6.weight": 4}
    first, again, other = (
        quantize_weights(prunable_weights(mlp), masks, bits, "random", seed) for seed in (1, 1, 2)
    )
    assert [len(s.codebook) for s in first.values()] == [4, 8, 16]
    assert all(torch.equal(first[n].codebook, again[n].codebook) for n in first)
    assert any(not torch.equal(first[n].codebook, other[n].codebook) for n in first)


def test_quantize_weights_warns_and_is_exact_with_fewer_values_than_centroids():
    params = {"a": torch.tensor([0.5, 0.5, -1.25, 0.0])}
    with pytest.warns(
        NoEffectWarning, match="'a' has 2 distinct nonzero values, which 32 centroids represent exactly"
    ):
        shared = quantize_weights(params, {"a": torch.tensor([True, True, True, False])}, 5)["a"]
    assert torch.equal(shared.dense(), params["a"])


def test_quantize_weights_accepts_one_weight():
    with pytest.warns(NoEffectWarning, match="1 distinct"):
        assert (
            quantize_weights({"a": torch.tensor([[3.0]])}, {"a": torch.tensor([[True]])}, 1)["a"]
            .dense()
            .item()
            == 3.0
        )


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_quantize_weights_raises_for_bits_out_of_range(bits):
    with pytest.raises(QuantizationError, match="1 to 8"):
        quantize_weights({"a": torch.randn(9)}, {"a": torch.ones(9, dtype=torch.bool)}, bits)


def test_quantize_weights_raises_for_nan_and_unknown_init():
    some = {"a": torch.randn(500)}, {"a": torch.ones(500, dtype=torch.bool)}
    with pytest.raises(NonFiniteError, match="'a' cannot be quantized"):
        quantize_weights({"a": some[0]["a"] / 0}, some[1], 2)
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        quantize_weights(*some, 2, "liner")


def all_kept(weights) -> tuple[dict, dict]:
    """`weights` as the parameter "a", and a mask that keeps all of it."""
    tensor = torch.as_tensor(np.asarray(weights, np.float32))
    return {"a": tensor}, {"a": torch.ones_like(tensor, dtype=torch.bool)}


def with_outlier(size: float, n: int = 2_000) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    values[0] = size
    return values


def heavy_tailed(n: int = 2_000) -> np.ndarray:
    return np.random.default_rng(0).standard_cauchy(n).astype(np.float32)


@each_start
@pytest.mark.parametrize("values", [with_outlier(20), with_outlier(1e30), heavy_tailed()])
@pytest.mark.parametrize("bits", [3, 5, 8])
def test_quantize_weights_uses_all_centroids_with_outliers(start, values, bits):
    name = next(key for key, value in KMEANS_INITS.items() if value is start)
    shared = quantize_weights(*all_kept(values), bits, name)["a"]
    assert len(shared.codebook) == len(shared.codes.unique()) == 2**bits
    if name in ("linear", "optimal"):  # the others give no centroid to the outlier
        best = wcss(
            values, lloyd(SortedValues.of(values), np.sort(kmeans1d.cluster(values, 2**bits).centroids))
        )
        assert wcss(values, shared.codebook.double().numpy()) <= 1.6 * best


def test_cluster_decreases_wcss_and_ends_at_a_fixed_point():
    for k in (8, 32, 256):
        numbers = SortedValues.of(with_outlier(1000))
        start = KMEANS_INITS["linear"](numbers, k, np.random.default_rng(0))
        without, moved = lloyd(numbers, start), cluster(numbers, start, k)
        assert (np.diff(borders(numbers.values, without)) == 0).sum() > k // 4
        assert wcss(numbers.values, moved) < 0.5 * wcss(numbers.values, without)
        assert np.array_equal(lloyd(numbers, moved), moved)


def test_cluster_does_not_move_used_centroids():
    numbers = SortedValues.of(weights(0))
    start = KMEANS_INITS["density"](numbers, 16, np.random.default_rng(0))
    assert np.array_equal(cluster(numbers, start, 16), lloyd(numbers, start))


def neighbors(start: float, n: int) -> np.ndarray:
    """n float32 numbers of which each is the next one after the one before."""
    first = np.float32(start).view(np.uint32)
    return (first + np.arange(n, dtype=np.uint32)).view(np.float32)


FEW_VALUES = {
    "neighbors of 1": neighbors(1.0, 32),
    "neighbors of -3e38": neighbors(-3e38, 32),
    "subnormal numbers": neighbors(1e-45, 32),
    "the smallest and the largest": np.array([-3.4e38, -1e-45, 1e-45, 3.4e38], np.float32),
    "small ones among many large ones": np.concatenate([-np.ones(100), neighbors(1e-20, 30), np.ones(100)]),
}


@pytest.mark.parametrize("values", FEW_VALUES.values(), ids=FEW_VALUES)
def test_quantize_weights_keeps_few_distinct_values_bit_for_bit(values):
    params, masks = all_kept(np.random.default_rng(0).permutation(np.repeat(values, 3)))
    with pytest.warns(NoEffectWarning):
        shared = quantize_weights(params, masks, 5)["a"]
    assert torch.equal(shared.dense().view(torch.int32), params["a"].view(torch.int32))


def test_nearest_equals_exact_arithmetic():
    values = np.concatenate([neighbors(1.0, 9), neighbors(1e-45, 9)])
    centroids = np.sort(
        np.concatenate([values[::2].astype(np.float64), [np.mean(values[:2], dtype=np.float64)]])
    )
    exact = [Fraction(float(c)) for c in centroids]
    for value, code in zip(values, nearest(values, centroids), strict=True):
        distances = [abs(Fraction(float(value)) - c) for c in exact]
        assert distances[code] == min(distances)


def test_quantize_weights_changes_one_of_n_plus_1_neighboring_floats():
    params, masks = all_kept(neighbors(1.0, 33))
    shared = quantize_weights(params, masks, 5, "optimal")["a"]
    assert len(shared.codebook.unique()) == len(shared.codes.unique()) == 32
    assert int((shared.dense() != params["a"]).sum()) == 1


def test_quantize_weights_warns_of_unused_centroids(monkeypatch):
    monkeypatch.setattr("prunus.compression.quantization.kmeans.MAX_MOVES", 0)
    params, masks = all_kept(with_outlier(20))
    with pytest.warns(
        UnusedCentroidsWarning, match=r"'a' has \d+ distinct nonzero values, for which \d+ of 32"
    ) as caught:
        shared = quantize_weights(params, masks, 5)["a"]
    used = len(shared.codes.unique())
    assert f"which {used} of 32 centroids" in str(caught[0].message)
    assert used == len(shared.codebook) < 20


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_quantize_weights_keeps_zeros_that_the_mask_keeps(zero):
    values = weights(0, 500)
    values[::3] = zero
    shared = quantize_weights(*all_kept(values), 3)["a"]
    assert not shared.dense()[::3].view(torch.int32).any()  # +0.0, bit for bit
    assert torch.equal(shared.indices, torch.from_numpy(np.flatnonzero(values)))
    assert not (shared.codebook == 0).any()


def test_quantize_weights_accepts_empty_tensors_and_trains_them(small_digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    masks["3.weight"] &= False
    constraint = CodebookConstraint(model, quantize_weights(prunable_weights(model), masks, 2))
    before = model[3].bias.detach().clone()
    train(model, small_digits, Recipe(1, 0.01, 32), constraint=constraint)
    shared = constraint.result()["3.weight"]
    assert len(shared.codebook) == len(shared.codes) == 0
    assert not shared.dense().any()
    assert shared.dense().shape == model[3].weight.shape
    assert not torch.equal(before, model[3].bias)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8])
def test_quantize_weights_raises_for_numbers_that_are_not_floating_point(dtype):
    with pytest.raises(ModelError, match=rf"Expected floating-point weights to quantize, got 'a' of {dtype}"):
        quantize_weights({"a": torch.ones(9, dtype=dtype)}, {"a": torch.ones(9, dtype=torch.bool)}, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_float_types_are_quantized_as_float32(dtype):
    weight = torch.randn(99, generator=torch.Generator().manual_seed(0)).to(dtype)
    masks = {"a": torch.ones(99, dtype=torch.bool)}
    quantized, expected = (quantize_weights({"a": w}, masks, 2)["a"] for w in (weight, weight.float()))
    assert quantized.codebook.dtype == torch.float32
    assert torch.equal(quantized.dense(), expected.dense())


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"b": 2}, r"\['a'\] missing"),
        ({"a": 2, "b": 2}, r"\['b'\] not to be quantized"),
        ({"a": 9}, "1 to 8 bits for 'a', as an integer, got 9"),
        (2.0, "as an integer, got 2.0"),
        (True, "as an integer, got True"),
        ("2", "as an integer, got '2'"),
    ],
)
def test_quantize_weights_raises_for_bits_of_other_names(bits, message):
    with pytest.raises(QuantizationError, match=message):
        quantize_weights(*all_kept(weights(0)), bits)


def test_quantize_weights_raises_for_masks_of_other_shapes():
    with pytest.raises(ModelError, match="'a' has shape"):
        quantize_weights({"a": torch.ones(9)}, {"a": torch.ones(8, dtype=torch.bool)}, 2)


def test_codebook_constraint_raises_for_nonfinite_centroids(mlp):
    constraint = CodebookConstraint(mlp, quantize_weights(prunable_weights(mlp), pruned(mlp), 3))
    with torch.no_grad():
        constraint.codebooks["4.weight"][2] = float("nan")
    constraint.apply()
    with pytest.raises(DivergenceError, match=r"centroids of '4\.weight' after training, got 1 of 8"):
        constraint.finalize()


def test_codebook_constraint_raises_for_a_checkpoint_of_other_masks():
    """With the same number of kept weights and the same codes."""
    model = nn.Linear(4, 1, bias=False)
    places = ([True, True, False, False], [False, False, True, True])
    with pytest.warns(NoEffectWarning):
        first, other = (
            CodebookConstraint(
                model,
                quantize_weights(
                    {"weight": torch.tensor([[1.0, 2.0, 1.0, 2.0]])}, {"weight": torch.tensor([p])}, 1
                ),
            )
            for p in places
        )
    other.load_state_dict(other.state_dict())
    with pytest.raises(CheckpointError, match="codes and masks of this training, got one with others"):
        other.load_state_dict(first.state_dict())


# The gradient of a centroid, three ways.


def shared_mlp(mlp, bits=2):
    model = copy.deepcopy(mlp).double().eval()
    masks = Layer().select(magnitude(Statistics(prunable_weights(mlp))), 0.4)
    shared = quantize_weights(prunable_weights(mlp), masks, bits)
    shared = {n: copy.copy(s) for n, s in shared.items()}
    for s in shared.values():
        object.__setattr__(s, "codebook", s.codebook.double())
    return model, shared


def loss_at(model, shared, books, data):
    values = {n: torch.zeros(s.shape.numel(), dtype=torch.float64) for n, s in shared.items()}
    dense = {
        n: v.index_put((shared[n].indices,), books[n][shared[n].codes]).reshape(shared[n].shape)
        for n, v in values.items()
    }
    outputs = torch.func.functional_call(model, dense, (data.inputs[:50].double(),))
    return F.cross_entropy(outputs, data.labels[:50])


def test_centroid_gradient_equals_autograd(mlp, small_digits):
    model, shared = shared_mlp(mlp)
    books = {n: s.codebook.clone().requires_grad_() for n, s in shared.items()}
    expected = torch.autograd.grad(loss_at(model, shared, books, small_digits.train), list(books.values()))
    constraint = CodebookConstraint(model, shared)
    constraint.apply()
    F.cross_entropy(model(small_digits.train.inputs[:50].double()), small_digits.train.labels[:50]).backward()
    constraint.before_optimizer_step()
    for (name, book), gradient in zip(constraint.codebooks.items(), expected, strict=True):
        assert torch.allclose(book.grad, gradient, rtol=1e-10), name


def test_centroid_gradient_equals_finite_difference(mlp, small_digits):
    model, shared = shared_mlp(mlp)
    constraint = CodebookConstraint(model, shared)
    constraint.apply()
    F.cross_entropy(model(small_digits.train.inputs[:50].double()), small_digits.train.labels[:50]).backward()
    constraint.before_optimizer_step()
    step = 1e-6
    for name in shared:
        for k in range(len(shared[name].codebook)):
            ends = []
            for sign in (1, -1):
                books = {n: s.codebook.clone() for n, s in shared.items()}
                books[name][k] += sign * step
                ends.append(loss_at(model, shared, books, small_digits.train).item())
            actual = float(constraint.codebooks[name].grad[k])
            assert actual == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-8)


def test_centroid_gradient_equals_values_computed_by_hand():
    with pytest.warns(NoEffectWarning):
        shared = quantize_weights(
            {"a": torch.tensor([1.0, 0.0, 2.0, 1.0])}, {"a": torch.tensor([True, False, True, True])}, 1
        )
    gradient = torch.tensor([10.0, 20.0, 40.0, 80.0])
    assert centroid_gradient(gradient, shared["a"]).tolist() == [90.0, 40.0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_codebook_constraint_holds_after_every_step(optimizer, mlp, small_digits):
    masks = pruned(mlp)
    constraint = CodebookConstraint(mlp, quantize_weights(prunable_weights(mlp), masks, 3))
    run = Trainer(mlp, Recipe(1, 0.05, 32, optimizer=optimizer, momentum=0.9, weight_decay=0.1), constraint)
    constraint.apply()
    bias = mlp[1].bias.detach().clone()
    before = {n: book.detach().clone() for n, book in constraint.codebooks.items()}
    for _ in range(5):
        run.step(small_digits.train.inputs, small_digits.train.labels)
        for name, shared in constraint.result().items():
            assert torch.equal(mlp.get_parameter(name), shared.dense())
            assert torch.equal(mlp.get_parameter(name) != 0, masks[name])
    assert all((before[n] != book).any() for n, book in constraint.codebooks.items())
    assert (bias != mlp[1].bias).any()


def test_finetuning_lowers_the_loss_and_resumes_bit_identically(mlp, small_digits, tmp_path):
    masks, recipe, path = pruned(mlp), Recipe(4, 0.003, 16), tmp_path / "c.safetensors"
    shared = quantize_weights(prunable_weights(mlp), masks, 2)
    uninterrupted, interrupted = copy.deepcopy(mlp), copy.deepcopy(mlp)
    epochs = train(uninterrupted, small_digits, recipe, constraint=CodebookConstraint(uninterrupted, shared))
    assert epochs[-1].training_loss < epochs[0].training_loss

    def kill(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            interrupted,
            small_digits,
            recipe,
            constraint=CodebookConstraint(interrupted, shared),
            checkpoint=path,
            report=kill,
        )
    fresh = copy.deepcopy(mlp)
    assert (
        train(fresh, small_digits, recipe, constraint=CodebookConstraint(fresh, shared), checkpoint=path)
        == epochs
    )
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), fresh.parameters(), strict=True))
    fresh = copy.deepcopy(mlp)
    with pytest.raises(CheckpointError, match=r"\(its constraint \(masks"):
        train(
            fresh,
            small_digits,
            recipe,
            constraint=CodebookConstraint(fresh, quantize_weights(prunable_weights(mlp), masks, 3)),
            checkpoint=path,
        )


def test_nearest_breaks_ties_upwards():
    assert nearest(np.array([0.5], dtype=np.float32), np.array([0.0, 1.0])).tolist() == [1]


def test_early_stopping_restores_codebooks_of_the_best_epoch(mlp, small_digits):
    constraint = CodebookConstraint(mlp, quantize_weights(prunable_weights(mlp), pruned(mlp), 3))
    epochs = train(mlp, small_digits, Recipe(60, 0.1, 16, patience=3), constraint=constraint)
    assert epochs[-1].validation_loss > min(epoch.validation_loss for epoch in epochs)
    for name, shared in constraint.result().items():
        assert torch.equal(shared.dense(), mlp.get_parameter(name))
