"""Properties of recalibration: the statistics of all examples together, and nothing else changes."""

import copy
import math

import pytest
import torch
from torch import nn

from prunus.errors import ModelError, NoEffectWarning, NonFiniteError, StatisticsError
from prunus.pruning.recalibrate import recalibrate_batchnorm
from prunus.seeds import make_generator


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=make_generator(seed, "inputs")) + 1


def chain() -> nn.Sequential:
    """Two BatchNorms, a dropout between; parameters and statistics drawn, so that none is zero or one."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.BatchNorm1d(5, momentum=None),
    )
    stream = make_generator(0, "chain")
    for tensor in (*model.parameters(), model[1].running_mean, model[6].running_mean):
        tensor.data.normal_(0.3, 0.5, generator=stream)
    return model


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}


def close(actual: dict, other: dict) -> None:
    assert actual.keys() == other.keys()
    for name in actual:
        torch.testing.assert_close(actual[name], other[name])


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(3), (23, 3)),
        (nn.BatchNorm1d(3), (23, 3, 5)),
        (nn.BatchNorm2d(3), (23, 3, 4, 2)),
        (nn.BatchNorm3d(3), (23, 3, 2, 2, 2)),
    ],
)
@pytest.mark.parametrize("batch_size", [3, 6, 22, 23, 500])
def test_one_layer_gets_the_mean_and_variance_of_all_examples(norm, shape, batch_size):
    """However they are cut into batches: 23 is a prime."""
    inputs = draw(*shape)
    assert recalibrate_batchnorm(norm, inputs, batch_size) == 1
    by_channel = inputs.double().movedim(1, 0).flatten(1)
    mean = by_channel.sum(1) / by_channel.shape[1]
    variance = ((by_channel - mean[:, None]) ** 2).sum(1) / (by_channel.shape[1] - 1)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-6, atol=1e-6)
    assert norm.num_batches_tracked == math.ceil(23 / batch_size)


def test_statistics_equal_values_computed_by_hand():
    norm = nn.BatchNorm1d(1)
    recalibrate_batchnorm(norm, torch.tensor([[0.0], [2.0], [4.0], [10.0]]), 2)
    assert norm.running_mean.item() == 4.0
    assert norm.running_var.item() == pytest.approx((16 + 4 + 0 + 36) / 3, rel=1e-6)


def test_synchronized_norm_is_set_as_others():
    model, inputs = chain(), draw(24, 3, 4, 4)
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert recalibrate_batchnorm(model, inputs, 8) == recalibrate_batchnorm(other, inputs, 8) == 2
    close(statistics(model), statistics(other))


def test_lazy_norm_is_refused():
    with pytest.raises(ModelError, match="lazy and has no shape yet"):
        recalibrate_batchnorm(nn.LazyBatchNorm1d(), draw(8, 3))


def test_layer_that_is_far_from_zero_keeps_its_variance():
    """A mean of squares less the square of the mean would have none left in single precision."""
    norm, inputs = nn.BatchNorm1d(1), torch.arange(100.0).reshape(-1, 1)
    recalibrate_batchnorm(norm, inputs, 7)
    expected = norm.running_var.clone()
    recalibrate_batchnorm(norm, inputs + 2**20, 7)
    torch.testing.assert_close(norm.running_var, expected)


def test_second_norm_gets_inputs_that_the_first_normalized_by_the_batch():
    model = chain()
    inputs = draw(24, 3, 4, 4)
    assert recalibrate_batchnorm(model, inputs, 8) == 2
    seen = []
    for batch in inputs.split(8):
        x = model[0](batch)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + model[1].eps)
        x = x * model[1].weight[:, None, None] + model[1].bias[:, None, None]
        seen.append(model[5](x.relu().flatten(1)).detach())  # no dropout
    torch.testing.assert_close(model[6].running_mean, torch.cat(seen).mean(0))
    torch.testing.assert_close(model[6].running_var, torch.cat(seen).var(0))


def test_one_batch_gives_the_same_outputs_in_evaluation_and_in_training():
    """Up to n and n - 1."""
    model, inputs = chain(), draw(400, 3, 4, 4)
    model[3].p = 0.0
    recalibrate_batchnorm(model, inputs, 400)
    trained = copy.deepcopy(model).train()(inputs)
    torch.testing.assert_close(model.eval()(inputs), trained, rtol=0.01, atol=0.01)


def test_with_equal_batches_the_mean_is_that_of_torchs_cumulative_average():
    """And the variance is larger by what lies between the batches."""
    inputs = draw(24, 3) + torch.arange(24.0).div(8, rounding_mode="floor")[:, None]
    ours, torchs = nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=None)
    recalibrate_batchnorm(ours, inputs, 8)
    for batch in inputs.split(8):
        torchs(batch)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean)
    torch.testing.assert_close(torchs.running_var, torch.stack([b.var(0) for b in inputs.split(8)]).mean(0))
    assert (ours.running_var > torchs.running_var).all()


def test_order_of_batches_has_no_effect():
    inputs = draw(24, 3, 4, 4)
    actual = []
    for order in ([0, 1, 2], [2, 0, 1]):
        model = chain()
        recalibrate_batchnorm(model, torch.cat([inputs.split(8)[place] for place in order]), 8)
        actual.append(statistics(model))
    close(*actual)


def test_result_does_not_depend_on_earlier_statistics():
    model, inputs = chain(), draw(23, 3, 4, 4)
    recalibrate_batchnorm(model, inputs, 8)
    first = statistics(model)
    recalibrate_batchnorm(model, inputs, 8)
    again = statistics(model)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.fill_(math.nan)  # a ruined layer is mended
    recalibrate_batchnorm(model, inputs, 8)
    mended = statistics(model)
    assert all(torch.equal(first[name], mended[name]) for name in first)


def test_batches_differ_in_size_by_one_at_most():
    """23 examples in batches of at most 11 are 8, 8 and 7, not 11, 11 and 1, which alone has no variance."""
    model, sizes = chain(), []
    model[0].register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    recalibrate_batchnorm(model, draw(23, 3, 4, 4), 11)
    assert sizes == [8, 8, 7]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_parameters_modes_and_hooks_are_not_changed(training, fails):
    model = chain().train(training)
    model[1].eval()  # as one freezes it
    before = copy.deepcopy(model)
    inputs = draw(23, 3, 4, 4)
    if fails:
        with pytest.raises(StatisticsError):
            recalibrate_batchnorm(model, inputs[:, :2], 8)
        close(statistics(model), statistics(before))
    else:
        recalibrate_batchnorm(model, inputs, 8)
        assert not torch.equal(model[6].running_mean, before[6].running_mean)
    for (name, now), (_, then) in zip(model.named_modules(), before.named_modules(), strict=True):
        assert now.training == then.training, name
        assert not now._forward_pre_hooks
    for (name, now), (_, then) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(now.view(torch.int32), then.view(torch.int32)), name
        assert now.requires_grad
        assert now.grad is None
    assert [(m.momentum, m.track_running_stats) for m in (model[1], model[6])] == [(0.1, True), (None, True)]
    assert all(not buffer.requires_grad for buffer in model.buffers())
    assert not torch.is_inference(model[1].running_mean)


def test_dropout_is_off():
    model, before = chain(), torch.get_rng_state()
    recalibrate_batchnorm(model, draw(8, 3, 4, 4))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 2),
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)),
        nn.InstanceNorm1d(3, track_running_stats=True),
    ],
)
def test_model_without_running_statistics_warns(model):
    with pytest.warns(
        NoEffectWarning, match=f"Expected a BatchNorm.*{type(model).__name__} reaches"
    ) as warned:
        assert recalibrate_batchnorm(model, draw(8, 3)) == 0
    assert warned[0].filename == __file__


def test_norm_that_is_not_reached_is_not_changed_or_counted():
    model = nn.Sequential(nn.BatchNorm1d(3))
    model.aside = nn.BatchNorm1d(3)
    model.forward = lambda x: model[0](x)
    assert recalibrate_batchnorm(model, draw(8, 3)) == 1
    assert torch.equal(model.aside.running_var, torch.ones(3))
    model.forward = lambda x: x
    with pytest.warns(NoEffectWarning):
        assert recalibrate_batchnorm(model, draw(8, 3)) == 0


def test_norm_that_is_called_twice_has_the_statistics_of_both_inputs():
    norm, inputs = nn.BatchNorm1d(3, affine=False), draw(8, 3)
    model = nn.Sequential(norm, nn.Linear(3, 3), norm)
    assert recalibrate_batchnorm(model, inputs) == 1
    first = (inputs - inputs.mean(0)) / torch.sqrt(inputs.var(0, correction=0) + norm.eps)
    both = torch.cat([inputs, model[1](first).detach()])
    torch.testing.assert_close(norm.running_mean, both.mean(0))
    torch.testing.assert_close(norm.running_var, both.var(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_statistics_are_close_in_other_precisions(dtype):
    norm, inputs = nn.BatchNorm1d(3).to(dtype), draw(64, 3).to(dtype)
    recalibrate_batchnorm(norm, inputs, 9)
    assert norm.running_var.dtype == dtype
    torch.testing.assert_close(norm.running_var, inputs.double().var(0).to(dtype))


def test_double_precision_is_not_lost():
    norm, inputs = nn.BatchNorm1d(1).double(), torch.arange(100.0).double().reshape(-1, 1) + 2**30
    recalibrate_batchnorm(norm, inputs, 7)
    torch.testing.assert_close(norm.running_var, inputs.var(0))


def test_half_precision_is_rounded_once():
    """Means of 130.4 and 131.4 make 130.9, hence 131; each rounded for itself they are 130 and 131, hence 130."""
    norm = nn.BatchNorm1d(1).to(torch.bfloat16)
    parts = [130, 130, 130, 131, 131, 131, 131, 131, 132, 132]
    recalibrate_batchnorm(norm, torch.tensor(parts, dtype=torch.bfloat16).reshape(-1, 1), 5)
    assert norm.running_mean.item() == 131


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_inputs_that_are_not_finite_are_named(wrong):
    model, inputs = chain(), draw(8, 3, 4, 4)
    inputs[3, 1, 0, 0] = wrong
    before = statistics(model)
    with pytest.raises(NonFiniteError, match="'recalibration' holds 1 of 384"):
        recalibrate_batchnorm(model, inputs)
    close(statistics(model), before)


def test_norm_with_inputs_that_are_not_finite_is_named():
    model = chain()
    with torch.no_grad():
        model[5].weight[2] = 1e38
        before = statistics(model)
        with pytest.raises(NonFiniteError, match="BatchNorm '6' holds 1 of 5"):
            recalibrate_batchnorm(model, 10 * draw(8, 3, 4, 4))
    close(statistics(model), before)


@pytest.mark.parametrize(
    ("shape", "batch_size", "says"),
    [
        ((0, 3, 4, 4), 8, r"\(0, 3, 4, 4\)"),
        ((4, 3, 0, 4), 8, r"\(4, 3, 0, 4\)"),
        ((8, 3, 4, 4), 0, "got 0"),
        ((8, 3, 4, 4), -1, "got -1"),
        ((8, 3, 4, 4), 1, "more than one value per channel for BatchNorm '6'"),
        ((1, 3, 4, 4), 8, "more than one value per channel for BatchNorm '6'"),
        ((8, 5, 4, 4), 8, r"does not take calibration inputs of shape \(8, 5, 4, 4\)"),
        ((8, 3), 8, r"does not take calibration inputs of shape \(8, 3\)"),
    ],
)
def test_too_few_examples_or_another_shape_are_refused(shape, batch_size, says):
    model = chain()
    before = statistics(model)
    with pytest.raises(StatisticsError, match=says):
        recalibrate_batchnorm(model, draw(*shape), batch_size)
    close(statistics(model), before)


@pytest.mark.parametrize("words", ["", "line one\nline two"])
def test_model_whose_forward_fails_is_refused_with_the_reason(words):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            raise ValueError(words)

    with pytest.raises(StatisticsError, match=f"shape .*: {words.split(chr(10))[0] or 'ValueError'}$"):
        recalibrate_batchnorm(Broken(), draw(8, 3))
