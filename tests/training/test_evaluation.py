"""`evaluate` of language models, segmentation and regression, from any data: one loss and accuracy per label."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from prunus.errors import DataError, ModelError, StatisticsError, UnknownNameError
from prunus.training import evaluate
from prunus.types import Split


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def labels(*shape, classes=5, ignored=0.3):
    g = torch.Generator().manual_seed(1)
    values = torch.randint(0, classes, shape, generator=g)
    return values.masked_fill(torch.rand(shape, generator=g) < ignored, -100)


@pytest.mark.parametrize(
    ("logits", "classes"), [((7, 6, 5), 2), ((7, 5, 6), 1), ((7, 5, 3, 4), 1), ((7, 5, 5, 5), 1)]
)
def test_every_label_counts_once_whatever_the_batches(logits, classes):
    """[N, T, C], [N, C, T] and [N, C, H, W], with ignored labels."""
    outputs = draw(*logits)
    targets = labels(*(size for dim, size in enumerate(logits) if dim != classes))
    rows, flat = outputs.movedim(classes, -1).reshape(-1, 5), targets.flatten()
    counts = flat != -100
    for data in (
        Split(outputs, targets),
        DataLoader(TensorDataset(outputs, targets), batch_size=3),
        [(outputs[:1], targets[:1]), (outputs[1:], targets[1:])],
    ):
        result = evaluate(nn.Identity(), data, **({"batch_size": 2} if isinstance(data, Split) else {}))
        assert result.n == int(counts.sum())
        assert result.loss == pytest.approx(float(F.cross_entropy(rows[counts], flat[counts])), rel=1e-5)
        assert result.accuracy == pytest.approx(100 * float((rows.argmax(1) == flat)[counts].double().mean()))


def test_regression_has_a_loss_or_a_metric_and_no_accuracy():
    x = draw(50, 4)
    targets = x.sum(1, keepdim=True)
    model = nn.Linear(4, 1)
    squares = (model(x) - targets).square().detach()
    result = evaluate(
        model,
        Split(x, targets),
        7,
        loss="squared_error",
        metric=lambda output, batch: (output - batch[1]).abs(),
    )
    assert result.loss == pytest.approx(float(squares.mean()) / 2, rel=1e-5)
    assert result.metric == pytest.approx(float(squares.sqrt().mean()), rel=1e-5)
    assert math.isnan(result.accuracy)
    assert result.n == 50
    with pytest.raises(DataError, match="class indices"):  # case a03
        evaluate(model, Split(x, targets))
    mean_squares = evaluate(model, Split(x, targets), loss=lambda output, batch: F.mse_loss(output, batch[1]))
    assert mean_squares.loss == pytest.approx(2 * result.loss, rel=1e-5)


def test_outputs_of_a_causal_language_model_are_compared_with_the_next_token():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 20, (12, 6))
    targets = ids.masked_fill(torch.rand(ids.shape) < 0.2, -100)
    loader = DataLoader(
        [{"input_ids": i, "labels": t} for i, t in zip(ids, targets, strict=True)], batch_size=5
    )
    with torch.no_grad():
        rows, flat = model(ids).logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
    result = evaluate(model, loader)
    assert result.n == int((flat != -100).sum())
    assert result.loss == pytest.approx(float(F.cross_entropy(rows, flat)), rel=1e-5)
    assert result.accuracy == pytest.approx(100 * float((rows.argmax(1) == flat).sum()) / result.n)
    masked = evaluate(
        model, loader, forward=lambda m, batch: m(batch["input_ids"]).logits
    )  # no shift of its own
    assert masked.n == int((targets != -100).sum())


def test_a_batch_of_a_language_model_whose_labels_are_all_ignored_does_not_count():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(0, 20, (2, 6))
    none = torch.full_like(ids, -100)
    only_first = torch.cat([ids[:, :1], none[:, 1:]], 1)  # it is the next token of none
    batch, *others = ({"input_ids": ids, "labels": targets} for targets in (ids, none, only_first))
    expected = evaluate(model, [batch])
    assert expected.n == 10
    for other in others:
        assert evaluate(model, [batch, other]) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_float_types_take_float32_data(dtype, small_data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    expected = evaluate(model, small_data.test)
    result = evaluate(model.to(dtype), small_data.test)
    assert result.loss == pytest.approx(expected.loss, rel=1e-2)
    assert result.n == expected.n


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loss_by_name_is_added_up_in_single_precision(dtype):
    """The sum of 20,000 losses is beyond float16, and has three digits in bfloat16."""
    logits = (100 * draw(20_000, 5)).to(dtype)
    split = Split(logits, labels(20_000))
    results = [evaluate(nn.Identity(), split, 20_000, loss=loss).loss for loss in ("cross_entropy", None)]
    assert results[0] == pytest.approx(results[1], rel=1e-5)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_labels_of_a_dict_are_not_passed_to_a_wrapped_model_that_does_not_take_them(wrap):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 5)

        def forward(self, inputs):
            return self.layer(inputs)

    model, batch = Model(), {"inputs": draw(6, 4), "labels": labels(6)}
    assert evaluate(wrap(model), [batch]) == evaluate(model, [batch])


def test_calls_see_the_batch_as_the_loader_makes_it():
    seen = []

    def forward(model, batch):
        seen.append(set(batch))
        return model(batch["a"] + batch["b"])

    data = [
        {"a": draw(3, 2), "b": draw(3, 2), "labels": torch.tensor([0, 1, 1])},
        {"a": draw(1, 2), "b": draw(1, 2), "labels": torch.tensor([0])},
    ]
    result = evaluate(nn.Identity(), data, forward=forward, metric=lambda output, batch: len(batch["labels"]))
    assert seen == [{"a", "b", "labels"}] * 2
    assert result.metric == (3 * 3 + 1) / 4
    assert result.n == 4


X = draw(6, 3)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([], {}, DataError, "at least one batch to evaluate on"),
        ((X, labels(6, ignored=2.0)), {}, DataError, "at least one label that is not -100"),
        ((X.numpy(), X.numpy()), {}, DataError, "Expected examples as a tensor"),
        ((X[:0], X[:0]), {}, DataError, "Expected at least one example, got"),
        (X, {}, StatisticsError, "Expected labels for the loss 'cross_entropy', got a batch without"),
        ((X, labels(6, 2, classes=3)), {}, ModelError, r"got outputs \[6, 3\] and labels \[6, 2\]"),
        ((X, labels(6, classes=9)), {}, ModelError, "C at least"),
        (
            (X, X),
            {"loss": lambda output, batch: output},
            StatisticsError,
            r"scalar tensor.*got shape \(6, 3\)",
        ),
        (
            (X, X),
            {"loss": lambda output, batch: batch["y"]},
            StatisticsError,
            r"loss\(outputs, batch\) failed",
        ),
        ((X, X), {"metric": lambda output, batch: "good"}, DataError, "returned no number"),
        ((X, X), {"loss": "mse"}, UnknownNameError, "Unknown loss 'mse'"),
        ((X, X[:, :1]), {"loss": "squared_error"}, StatisticsError, r"outputs \[6, 3\] and labels \[6, 1\]"),
        ((X, X, X), {}, StatisticsError, "pass forward=lambda"),
        ((X, X), {"forward": lambda model, batch: None}, StatisticsError, "int64 labels|to return a tensor"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(data, options, error, message):
    if "forward" in options:
        error, data = ModelError, (X, labels(6, classes=3))
    with pytest.raises(error, match=message):
        evaluate(nn.Identity(), data, **options)


class Noise(nn.Module):
    """A parametrization that draws random numbers in training mode."""

    def forward(self, weight):
        return weight + torch.rand(()) if self.training else weight


@pytest.mark.parametrize(
    "parametrized",
    [
        lambda layer: nn.utils.parametrizations.spectral_norm(layer),
        lambda layer: nn.utils.parametrize.register_parametrization(layer, "weight", Noise()),
    ],
    ids=["spectral_norm", "noise"],
)
def test_evaluation_changes_neither_buffers_nor_the_random_generator(parametrized):
    model = nn.Sequential(parametrized(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 3)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    evaluate(model, Split(draw(40, 8), torch.arange(40) % 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_forward_of_a_single_precision_model_gets_inputs_in_half_precision_as_single(dtype):
    model, inputs, labels = nn.Linear(8, 3), draw(40, 8).to(dtype), torch.arange(40) % 3
    with_forward = evaluate(model, (inputs, labels), forward=lambda network, batch: network(batch[0]))
    assert with_forward == evaluate(model, (inputs, labels))
    half = nn.Linear(8, 3).to(dtype)
    evaluate(half, (inputs, labels), forward=lambda network, batch: network(batch[0]))
    seen = []
    targets = draw(40, 3).to(dtype)
    evaluate(
        model,
        (inputs, targets),
        forward=lambda network, batch: seen.append(batch[1].dtype) or network(batch[0]),
        loss="squared_error",
    )
    assert set(seen) == {dtype}
