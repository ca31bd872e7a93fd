"""`prunus.prune` and `prunus.sensitivity` with any network, loss and data loader."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import prunus
from prunus.errors import DataError, DensityError, ModelError, NonFiniteError, PrunusError, StatisticsError
from prunus.pruning.obs.fisher import empirical_fisher
from prunus.pruning.obs.objective import make_objective
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.statistics import collect
from prunus.types import Split

METHODS = ("magnitude", "snip", "grasp", "synflow", "obs", "sparse_gpt", "fisher")


pytestmark = [
    pytest.mark.filterwarnings("ignore::prunus.errors.UpdateRejectedWarning"),
    pytest.mark.filterwarnings("ignore::prunus.errors.NotPrunedWarning"),
    pytest.mark.filterwarnings("ignore::prunus.errors.EmptyLayerWarning"),
]


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def classes(*shape):
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(1))


def ignored(labels):
    labels.view(-1)[::3] = -100
    return labels


class Segmenter(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))


class Tokens(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))


class Regression(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))


def model_of(kind):
    torch.manual_seed(0)
    return kind().eval()


TASKS = {
    Segmenter: (draw(20, 3, 4, 4), ignored(classes(20, 4, 4)), lambda o, y: F.cross_entropy(o, y)),
    Tokens: (
        classes(20, 7),
        ignored(classes(20, 7)),
        lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten()),
    ),
    Regression: (draw(20, 5), draw(20, 2), lambda o, y: (o - y).square().sum(1).mean() / 2),
}


@pytest.mark.parametrize("kind", TASKS)
def test_gradients_are_those_of_the_task(kind):
    model, (x, y, loss) = model_of(kind), TASKS[kind]
    named = "squared_error" if kind is Regression else None
    weights = prunable_weights(model)
    loss(model(x), y).backward()
    loader = DataLoader(TensorDataset(x, y), batch_size=6)
    functions = {"loss": lambda output, batch: loss(output, batch[1])}
    for options in ({"loss": named}, functions):
        collected = collect(model, weights, {"gradients"}, loader, **options).gradients
        for name, gradient in collected.items():
            torch.testing.assert_close(gradient, model.get_parameter(name).grad)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", TASKS)
def test_a_loader_prunes_as_the_same_examples_at_once(kind, method):
    x, y, _ = TASKS[kind]
    loss = "squared_error" if kind is Regression and method in ("snip", "grasp", "fisher") else None
    examples = [(x[i], y[i]) for i in range(len(x))]
    batch_size, forms = 6, []
    forms.append([(x[:9], y[:9]), (x[9:], y[9:])])
    forms.append(DataLoader(examples, batch_size=batch_size))
    results = []
    for data in forms:
        model = model_of(kind)
        pruned = prunus.prune(model, 0.5, criterion=method, calibration=data, loss=loss)
        results.append(model)
        assert pruned.density == pytest.approx(0.5, abs=0.02)
    for a, b in zip(*(model.parameters() for model in results), strict=True):
        assert torch.equal(a, b)


def test_forward_and_loss_see_the_batch_as_the_loader_makes_it():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x, scale):
            return {"scores": self.layer(x) * scale}, None

    x, scale, y = draw(12, 4), draw(12, 1), classes(12) % 3
    data = [{"x": x[i : i + 5], "more": [scale[i : i + 5]], "y": y[i : i + 5]} for i in (0, 5, 10)]
    torch.manual_seed(0)
    model, calls = Takes(), []

    def forward(model, batch):
        calls.append(sorted(batch))
        return model(batch["x"], batch["more"][0])[0]["scores"]

    options = {"forward": forward, "loss": lambda output, batch: F.cross_entropy(output, batch["y"])}
    weight = model.layer.weight.detach().clone()
    F.cross_entropy(model.layer(x) * scale, y).backward()
    prunus.prune(model, 0.5, criterion="snip", calibration=data, **options)
    assert {tuple(call) for call in calls} == {("more", "x", "y")}
    largest = (weight * model.layer.weight.grad).abs().flatten().topk(6).indices
    assert torch.equal(model.layer.weight.flatten().nonzero().flatten(), largest.sort().values)
    for method in ("obs", "fisher", "sparse_gpt"):
        used = options if method == "fisher" else {"forward": forward}
        assert prunus.prune(Takes(), 0.5, criterion=method, calibration=data, **used).density == 0.5


def test_models_of_transformers_are_pruned_from_a_loader_of_dicts():
    """The loss is the model's own, which shifts the labels of a causal language model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    dense = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 20, (12, 6))
    loader = DataLoader([{"input_ids": i, "labels": i} for i in ids], batch_size=5)
    weights = prunable_weights(dense)
    dense(input_ids=ids, labels=ids).loss.backward()
    collected = collect(dense, weights, {"gradients"}, loader).gradients
    for name, gradient in collected.items():
        torch.testing.assert_close(gradient, dense.get_parameter(name).grad)
    for method in ("grasp", "fisher", "sparse_gpt"):
        model = copy.deepcopy(dense)
        report = prunus.prune(model, 0.5, criterion=method, scope="2:4", calibration=loader).report
        assert report.density == 0.5
        assert all(row.error_updated > 0 for row in report.rows if "lm_head" not in row.name)


class ByValue(nn.Module):
    """Its forward depends on values, which `vmap` cannot follow."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) if float(x.sum()) < 1e9 else self.layer(-x)


def test_fisher_of_a_forward_that_depends_on_values():
    x, y = draw(9, 5), classes(9)
    layer = nn.Linear(5, 4)
    plain = make_objective(layer, {"weight": layer.weight.detach()}, x, y)
    other = make_objective(ByValue(layer), {"layer.weight": layer.weight.detach()}, x, y)
    torch.testing.assert_close(
        empirical_fisher(plain, 5, 4)["weight"], empirical_fisher(other, 5, 4)["layer.weight"]
    )
    with pytest.raises(ModelError, match="cannot be differentiated for several examples at once"):
        prunus.prune(ByValue(layer), 0.5, criterion="full_obs", calibration=(x, y))


class Converting(nn.Module):
    """Converts its inputs to the dtype of its weights when it was made, as wrappers do."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype)

    def forward(self, x):
        return self.layers(x.to(self.dtype)).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", [*METHODS, "obd", "full_obs"])
def test_weights_keep_their_dtype_and_statistics_are_precise(method, dtype):
    x, y = draw(40, 5), classes(40)
    torch.manual_seed(0)
    options = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
    single = copy.deepcopy(options).float()
    results = [prunus.prune(model, 0.5, criterion=method, calibration=(x, y)) for model in (options, single)]
    assert all(parameter.dtype == dtype for parameter in options.parameters())
    for name, mask in results[0].masks.items():
        assert not options.get_parameter(name)[~mask].any()
        if dtype != torch.float64 and method in ("snip", "grasp", "fisher", "obd", "full_obs"):
            assert torch.equal(mask, results[1].masks[name])  # 16 bits would decide otherwise
    if method not in ("obd", "synflow"):  # which follow the operations, or use float64
        torch.manual_seed(0)
        model = Converting(dtype)
        prunus.prune(model, 0.5, criterion=method, calibration=(x, y))
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_sensitivity_takes_the_same_data_loss_forward_and_metric():
    model = model_of(Tokens)
    x, y, loss = TASKS[Tokens]
    loader = DataLoader(TensorDataset(x, y), batch_size=6)
    options = {"densities": (1.0, 0.5), "criterion": "snip", "calibration": loader}
    before = copy.deepcopy(model.state_dict())
    curves = prunus.sensitivity(model, loader, **options)
    assert set(curves) == {"1.weight", "3.weight"}
    point = curves["1.weight"][0]
    assert point.loss == pytest.approx(float(loss(model(x), y).detach()), rel=1e-5)
    assert 0 < point.accuracy < 100
    functions = {"forward": lambda m, batch: m(batch[0]), "loss": lambda o, batch: loss(o, batch[1])}
    metric = lambda output, batch: -output.square().mean()  # noqa: E731
    with_metric = prunus.sensitivity(model, loader, **options, **functions, metric=metric)
    assert with_metric["1.weight"][1].loss == pytest.approx(curves["1.weight"][1].loss, rel=1e-5)
    assert prunus.choose_densities(with_metric, 100.0) == {"1.weight": 0.5, "3.weight": 0.5}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    regression = model_of(Regression)
    x, y, _ = TASKS[Regression]
    with pytest.raises(DataError, match="class indices"):  # case a03
        prunus.sensitivity(regression, Split(x, y))
    curves = prunus.sensitivity(regression, (x, y), loss="squared_error", densities=(1.0, 0.5))
    with pytest.raises(DensityError, match="curves of the loss alone"):
        prunus.choose_densities(curves, 1.0)


X, Y = draw(20, 5), classes(20)


def nan_loss(output, batch):
    return output.sum() * float("nan")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration": []}, StatisticsError, "yields no batch"),
        ({"calibration": [X, X[:, :3]]}, StatisticsError, "one shape and dtype"),
        ({"calibration": [(X, X, Y)]}, StatisticsError, "pass forward=lambda"),
        (
            {"forward": lambda model, batch: None},
            ModelError,
            "to return a tensor, or an object with `logits`",
        ),
        ({"forward": lambda model, batch: (batch[0],)}, ModelError, "got a tuple; pass forward"),
        ({"forward": lambda model, batch: batch["x"]}, StatisticsError, "does not take calibration inputs"),
        ({"loss": lambda output, batch: output}, StatisticsError, "to return a scalar tensor"),
        ({"loss": lambda output, batch: 1.0}, StatisticsError, "got a float"),
        ({"loss": lambda output, batch: batch["y"]}, StatisticsError, r"loss\(outputs, batch\) failed"),
        ({"loss": nan_loss}, NonFiniteError, "Expected a finite error to differentiate, got nan"),
        ({"calibration": X}, StatisticsError, "Expected labels for the loss 'cross_entropy'"),
        ({"density": 0.01}, DensityError, "."),
        ({"within": {"0.weight": torch.ones(2, 2, dtype=torch.bool)}}, PrunusError, "."),
    ],
)
def test_prune_refuses_in_one_sentence_and_changes_nothing(options, error, message):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    before = copy.deepcopy(model.state_dict())
    arguments = {"density": 0.5, "criterion": "snip", "calibration": (X, Y), "recalibrate": True, **options}
    with pytest.raises(error, match=message) as caught:
        prunus.prune(model, **arguments)
    assert str(caught.value).count("\n") == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_report_has_a_row_per_layer_with_errors_damping_and_what_was_not_pruned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    pruned = prunus.prune(model, 0.5, criterion="obs", calibration=[X])
    assert pruned.density == pruned.report.density == 0.5
    rows = pruned.report.to_json()["layers"]
    assert [row["name"] for row in rows] == ["0.weight", "3.weight"]
    for row in rows:
        assert row["error_updated"] <= row["error_zeroed"]
        assert row["damping"] > 0
        assert row["seconds"] >= 0
        assert row["density"] == 0.5
    assert "% of all parameters" in str(pruned.report)
    assert pruned.skipped["0.bias"] in str(pruned.report)


@pytest.mark.parametrize("method", ["magnitude", "sparse_gpt", "obs"])
def test_refit_lowers_the_output_error_and_keeps_the_masks(method):
    x, y, _ = TASKS[Tokens]
    reports, models = [], []
    for refit in (False, True):
        model = model_of(Tokens)
        pruned = prunus.prune(
            model, 0.5, criterion=method, calibration=(x, y), refit=refit, include=["*", "0.weight"]
        )
        reports.append(pruned.report)
        models.append(model)
        assert ("0.weight" in pruned.masks) == (method == "magnitude")
    for before, after in zip(reports[0].rows, reports[1].rows, strict=True):
        assert after.density == before.density
        if after.error_updated is None:  # the embedding, which has no inputs to fit to
            continue
        assert after.damping > 0
        assert after.error_updated <= before.error_updated * (1 + 1e-4)
        if method == "magnitude":
            assert after.error_updated < 0.9 * after.error_zeroed
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    with pytest.raises(StatisticsError, match="examples for refit=True"):
        prunus.prune(model_of(Tokens), 0.5, refit=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_16_bit_models_are_those_of_a_float32_copy(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
    single = copy.deepcopy(model).float()
    actual, expected = (
        collect(m, prunable_weights(m), {"gradients"}, (X, Y)).gradients for m in (model, single)
    )
    assert all(torch.equal(actual[name], gradient) for name, gradient in expected.items())
