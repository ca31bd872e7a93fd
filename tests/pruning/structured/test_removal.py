"""Removal: everything of a channel goes along, all or nothing, and the smaller model is an ordinary module."""

import copy

import pytest
import torch
from coupled_blocks import BLOCKS, TOKENS, conv, make
from tiny_networks import TiedEmbedding
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.errors import CorruptFileError, DensityError, ModelError, ModelMismatchError
from prunus.masks import Masks
from prunus.pruning.structured.budgets import channels_to_keep

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = conv(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.first, self.second, self.head = conv(8, 16, 3), conv(16, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.second(F.relu(self.first(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Residual()


def train_step(model, optimizer, x=X):
    loss = model(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01, amsgrad=True),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_steps_every_parameter_after_removal(model, name):
    """Torch-Pruning keeps 1 of 8 parameters alive; here the parameters are the same objects with smaller data."""
    optimizer = OPTIMIZERS[name](model.parameters())
    loss = train_step(
        model, optimizer
    )  # its graph is alive: it holds the nodes that accumulate the gradients
    before = dict(model.named_parameters())
    prunus.slim(model, X, density=0.5).apply(optimizer)
    assert all(parameter is before[key] for key, parameter in model.named_parameters())
    values = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    for parameter in model.parameters():
        for state in optimizer.state[parameter].values():
            assert state.numel() == 1 or all(
                s in (1, p) for s, p in zip(state.shape, parameter.shape, strict=True)
            )
    train_step(model, optimizer)
    assert loss.isfinite()
    changed = [key for key, parameter in model.named_parameters() if not torch.equal(parameter, values[key])]
    assert changed == list(values)


def test_gradients_momentum_masks_and_buffers_are_those_of_the_kept_channels(model):
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks = Masks(model, {"second.weight": torch.rand(8, 16, 3, 3) > 0.5}).attach(optimizer)
    train_step(model, optimizer)
    weight = model.second.weight
    old = {
        "grad": weight.grad.clone(),
        "momentum": optimizer.state[weight]["momentum_buffer"].clone(),
        "mask": masks["second.weight"],
        "variance": model.norm.running_var.clone(),
    }
    plan = prunus.slim(model, X, density=0.5)
    plan.apply(optimizer, masks)
    rows = [i for i in range(8) if i not in plan.removed["stem.weight"]]
    columns = [i for i in range(16) if i not in plan.removed["first.weight"]]
    assert torch.equal(weight.grad, old["grad"][rows][:, columns])
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], old["momentum"][rows][:, columns])
    assert torch.equal(masks["second.weight"], old["mask"][rows][:, columns])
    assert torch.equal(model.norm.running_var, old["variance"][rows])
    train_step(model, optimizer)
    assert masks.verify() == 0


def test_modes_frozen_flags_and_attributes_are_carried_along(model):
    model.train()
    model.norm.eval()
    model.first.requires_grad_(False)
    plan = prunus.slim(model, X, density=0.5)
    assert model.training
    assert plan.apply() is model
    assert model.training
    assert not model.norm.training
    assert [p.requires_grad for p in model.first.parameters()] == [False, False]
    assert (model.stem.out_channels, model.norm.num_features, model.second.in_channels) == (4, 4, 8)
    assert model.head.in_features == 4


def test_every_layer_of_a_tied_weight_has_its_sizes():
    model, tokens = TiedEmbedding(), torch.arange(6).reshape(2, 3)
    prunus.slim(model, tokens, density=0.5).apply()
    assert model.embed.embedding_dim == model.decode.in_features == model.decode.weight.shape[1] == 4


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
def test_smaller_model_can_be_copied_exported_and_scripted(model):
    prunus.slim(model, X, density=0.5).apply()
    model.eval()
    expected = model(X)
    assert torch.equal(copy.deepcopy(model)(X), expected)
    assert torch.equal(torch.export.export(model, (X,)).module()(X), expected)
    torch.testing.assert_close(torch.jit.trace(model, X)(X), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_file_of_the_smaller_model_gives_the_same_outputs(model, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    prunus.slim(model, X, density=0.5).apply()
    torch.onnx.export(model.eval(), (X,), tmp_path / "model.onnx", dynamo=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(X))


def test_kept_channels_have_the_largest_norms_and_the_counts_are_rounded(model):
    norms = sum(
        tensor.detach().square().sum(dims)
        for tensor, dims in ((model.first.weight, (1, 2, 3)), (model.second.weight, (0, 2, 3)))
    )
    norms = norms + model.first.bias.detach().square()
    plan = prunus.slim(model, X, density=0.4, round_to=4, min_channels=3)
    assert sorted(plan.removed["first.weight"]) == sorted(norms.argsort()[:8].tolist())
    assert len(plan.removed["stem.weight"]) == 4
    assert channels_to_keep(8, 0.01, round_to=3, min_channels=4) == 6


def test_excluded_layers_are_left_alone(model):
    plan = prunus.slim(model, X, density=0.5, exclude=["norm"])
    assert plan.removed.keys() == {"first.weight"}
    with pytest.raises(ModelError, match=r"Expected a group of channels .* got none"):
        prunus.slim(model, X, density=0.5, exclude=["second"])


def test_removal_can_be_repeated(model):
    for _ in range(2):
        prunus.slim(model, X, density=0.5).apply()
    assert (model.first.out_channels, model.stem.out_channels) == (4, 2)


def test_multihead_attention_with_fewer_heads_computes_masks_as_before():
    torch.manual_seed(0)
    full = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    smaller = make("MultiheadAttention")
    smaller.attention = copy.deepcopy(full)
    plan = prunus.slim(smaller, TOKENS, density=0.5, exclude=["first", "attention.out_proj.bias"])
    removed = plan.removed["attention.in_proj_weight"]
    plan.apply()
    smaller.eval()
    with torch.no_grad():
        full.out_proj.weight.view(16, 4, 4)[:, removed] = 0
    padding, causal = torch.zeros(2, 6, dtype=torch.bool), nn.Transformer.generate_square_subsequent_mask(6)
    padding[1, 4:] = True
    for arguments in ({}, {"attn_mask": causal}, {"key_padding_mask": padding}, {"need_weights": False}):
        expected, _ = full(TOKENS, TOKENS, TOKENS, **arguments)
        output, weights = smaller.attention(TOKENS, TOKENS, TOKENS, **arguments)
        torch.testing.assert_close(output, expected)
    assert weights is None
    assert smaller.attention(TOKENS[0], TOKENS[0], TOKENS[0])[1].shape == (6, 6)


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["SqueezeExcite", "Lstm", "FusedProjection", "MultiheadAttention", "Buffers"]
)
def test_file_makes_the_original_module_as_small(name, tmp_path):
    model, original = make(name), BLOCKS[name].network()
    for _ in range(2):
        prunus.slim(model, BLOCKS[name].inputs, density=0.75).apply()
    prunus.save(model, tmp_path / "slim.prunus")
    loaded = prunus.load(tmp_path / "slim.prunus", into=original.eval())
    assert loaded is original
    expected, actual = model.eval()(BLOCKS[name].inputs), loaded(BLOCKS[name].inputs)
    assert torch.equal(actual[0], expected[0])
    prunus.load(tmp_path / "slim.prunus", into=loaded)  # a module that is as small already
    assert loaded.edited_attributes == model.edited_attributes


def test_file_of_a_built_in_model_names_it(tmp_path):
    model = prunus.models.lenet_5(seed=0)
    x = torch.randn(2, 1, 28, 28)
    prunus.slim(model, x, density=0.5).apply()
    prunus.save(model, tmp_path / "lenet.prunus")
    assert torch.equal(prunus.load(tmp_path / "lenet.prunus")(x), model.eval()(x))


def test_file_for_another_model_changes_nothing(model, tmp_path):
    prunus.slim(model, X, density=0.5).apply()
    prunus.save(model, tmp_path / "slim.prunus")
    other = Residual()
    other.first = conv(8, 6, 3)  # smaller than in the file
    shapes = [p.shape for p in other.parameters()]
    with pytest.raises(ModelMismatchError, match=r"first|second"):
        prunus.load(tmp_path / "slim.prunus", into=other)
    assert [p.shape for p in other.parameters()] == shapes


@pytest.mark.parametrize(
    ("edits", "error"),
    [
        ([], CorruptFileError),
        ({"stem": 3}, CorruptFileError),
        ({"stem": {"out_channels": -1}}, CorruptFileError),
        ({"stem": {"out_channels": True}}, CorruptFileError),
        ({"stem": {"forward": 3}}, ModelMismatchError),
        ({"stem": {"training": 1}}, ModelMismatchError),
        ({"stem": {"out_channels": 9}}, ModelMismatchError),
        ({"nothing": {"out_channels": 3}}, ModelMismatchError),
        ({"stem": {"weight": {"0": [9]}}}, ModelMismatchError),
        ({"stem": {"weight": {"7": [0]}}}, ModelMismatchError),
        ({"stem": {"weight": {"9" * 5000: [0]}}}, CorruptFileError),
    ],
)
def test_hostile_edits_are_refused(model, tmp_path, edits, error):
    model.edited_attributes = edits
    prunus.save(model, tmp_path / "slim.prunus")
    other = Residual()
    with pytest.raises(error):
        prunus.load(tmp_path / "slim.prunus", into=other)
    assert other.stem.out_channels == 8


# --- rewriting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["LiteralHeads", "LiteralConstant", "HalfSlices", "LiteralMaxout", "ZeroPaddedShortcut"]
)
def test_exported_graph_is_rewritten_where_sizes_are_literals(name):
    model, x = make(name).eval(), BLOCKS[name].inputs
    expected, size = model(x), sum(p.numel() for p in model.parameters())
    rewritten = prunus.slim(model, x, density=0.5, rewrite=True, verify="groups").apply()
    assert torch.equal(model(x), expected)
    assert sum(p.numel() for p in rewritten.parameters()) < 0.7 * size
    assert rewritten.state_dict().keys() == model.state_dict().keys()
    for size in (
        (1, len(x) + 2) if name != "HalfSlices" else ()
    ):  # other batches have slices of their own there
        assert len(rewritten(x[torch.arange(size) % len(x)])) == size
    optimizer = OPTIMIZERS["sgd"](rewritten.parameters())
    before = train_step(rewritten, optimizer, x)
    assert train_step(rewritten, optimizer, x) < before
    with pytest.raises(ModelError, match="no optimizer"):
        prunus.slim(model, x, density=0.5, rewrite=True).apply(optimizer)


class SizedBatch(nn.Module):
    """The code depends on the size of the batch."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.q, self.o = kind, nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.q(x).view(x.shape[0], 2, 4)
        if self.kind == "literal":
            x = x.view(4, 8).view(4, 2, 4)
        if self.kind == "branch" and x.shape[0] == 1:
            x = x * 2
        if self.kind == "limit" and x.shape[0] > 10:
            x = x * 2
        return self.o(x.relu().flatten(1))


@pytest.mark.parametrize("kind", ["literal", "branch", "limit"])
def test_rewritten_graph_takes_the_batch_of_the_example_inputs_where_others_are_different(kind):
    torch.manual_seed(0)
    model, x = SizedBatch(kind).eval(), torch.randn(4, 6)
    rewritten = prunus.slim(model, x, density=0.5, rewrite=True).apply()
    assert rewritten(x).shape == (4, 3)
    with pytest.raises((RuntimeError, AssertionError)):
        rewritten(torch.randn(12, 6) if kind == "limit" else x[:1])


# --- bad input --------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 4), nn.Linear(4, 2)

    def forward(self, x):
        if x.sum() > 0:
            x = x + 1
        return self.second(self.first(x))


def test_model_that_cannot_be_exported_is_refused_with_its_line():
    with pytest.raises(
        ModelError, match=r"Branches cannot be exported .* at test_removal.py:\d+ .*control flow"
    ):
        prunus.slim(Branches(), TOKENS, density=0.5)


BAD_INPUT = {
    "a wrong shape": (Residual, {"example_inputs": torch.zeros(1, 4, 8, 8)}, "does not take example inputs"),
    "not a module": (lambda: 3, {}, "Expected a torch.nn.Module"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 1)), {}, "lazy"),
    "no group": (lambda: conv(3, 4), {}, "Expected a group of channels"),
    "an unknown name": (Residual, {"exclude": ["stm"]}, "to exclude, got 'stm'"),
    "an unknown verification": (Residual, {"verify": "all"}, "'groups', got 'all'"),
    "complex": (
        lambda: conv(3, 4).to(torch.complex64), {"example_inputs": X.to(torch.complex64)}, "complex64 parameters"),
    "no example": (Residual, {"example_inputs": X[:0]}, r"got tensors of shapes \[\(0, 5\)\].* at least one example"),
    "two devices": (
        lambda: nn.Sequential(conv(3, 4), conv(4, 2).to("meta")), {}, "meta device"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_refused(name):
    make_model, arguments, message = BAD_INPUT[name]
    with pytest.raises(ModelError, match=message):
        prunus.slim(make_model(), **{"example_inputs": X, "density": 0.5, **arguments})


@pytest.mark.parametrize("density", [0.0, 1.5, float("nan")])
def test_density_out_of_range_is_refused(model, density):
    with pytest.raises(DensityError, match="Expected a density"):
        prunus.slim(model, X, density=density)


def test_errors_leave_the_model_as_it_was(model):
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train_step(model, optimizer)
    optimizer.state[model.second.weight]["odd"] = torch.zeros(5)
    plan, state = prunus.slim(model, X, density=0.5), copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="state 'odd' of SGD"):
        plan.apply(optimizer)
    with pytest.raises(ModelError, match=r"Expected a torch.optim.Optimizer"):
        plan.apply(3)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    plan.apply()
    with pytest.raises(ModelError, match="make a new plan"):
        plan.apply()


def test_group_that_would_vanish_is_refused(model):
    plan = prunus.slim(model, X, density=0.5)
    plan.removed["first.weight"] = list(range(16))
    with pytest.raises(ModelError, match="all 16 would be removed"):
        plan.apply()
    assert model.first.out_channels == 16


class DependsOnWeights(nn.Module):
    """Its forward reads a weight in a way that no graph shows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.second(F.relu(self.first(x))) * len(self.first.weight)


class Auxiliary(nn.Module):
    """Has a second head in training mode, as Inception has."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.second_head = nn.Linear(16, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        x = F.relu(self.first(x))
        return (self.head(x), self.second_head(x)) if self.training else self.head(x)


def test_a_layer_of_training_mode_alone_is_named():
    model = Auxiliary()
    with pytest.raises(
        ModelError, match=r"in training mode .* 'second_head.weight' is not used in evaluation"
    ):
        prunus.slim(model, TOKENS, density=0.5).apply()
    assert model.first.out_features == 8
    with pytest.raises(ModelError, match=r"the first 'first.weight' because it is excluded"):
        prunus.slim(model, TOKENS, density=0.5, exclude=["first"])


def test_verification_finds_a_dependency_that_the_graph_does_not_show():
    model = DependsOnWeights()
    for verify in (True, "groups"):
        with pytest.raises(ModelError, match=r"Expected the same outputs .* first.weight removed"):
            prunus.slim(model, TOKENS, density=0.5, verify=verify).apply()
    assert model.first.out_features == 8
    prunus.slim(model, TOKENS, density=0.5, verify=False).apply()
