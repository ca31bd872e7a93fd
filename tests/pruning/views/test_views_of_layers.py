"""A view computes what the model computes, its weights are those of the model, and methods see inputs and rows."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import prunus
from prunus.pruning.matrix import im2col_batches, to_matrix
from prunus.pruning.obs.hessian import layer_hessians
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.views import layer_view, why_no_layer_inputs


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def packed(width):
    return pack_padded_sequence(draw(6, 3, width), [3, 6, 2], enforce_sorted=False)


def tensors(output):
    if isinstance(output, PackedSequence):
        return [output.data]
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for part in output if part is not None for tensor in tensors(part)]


PADDING = torch.tensor([[False, False, True, False]] * 3)
CASES = {
    **{
        f"{kind.__name__} {name}": (lambda kind=kind, make=make: make(kind))
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
        for name, make in {
            "two layers": lambda kind: (kind(5, 7, 2, bidirectional=True), draw(4, 3, 5)),
            "batch first": lambda kind: (kind(5, 7, bias=False, batch_first=True), draw(4, 3, 5)),
            "no batch": lambda kind: (kind(5, 7), draw(4, 5)),
            "packed": lambda kind: (kind(5, 7, 2, bidirectional=True), packed(5)),
            "states": lambda kind: (
                kind(5, 7), packed(5), (draw(1, 3, 7), draw(1, 3, 7)) if kind is nn.LSTM else draw(1, 3, 7)
            ),
        }.items()
    },
    "LSTMCell": lambda: (nn.LSTMCell(5, 7), draw(3, 5)),
    "GRUCell": lambda: (nn.GRUCell(5, 7), draw(3, 5), draw(3, 7)),
    "RNNCell": lambda: (nn.RNNCell(5, 7, nonlinearity="relu"), draw(5)),
    "self-attention": lambda: (nn.MultiheadAttention(8, 2), *[draw(4, 3, 8)] * 3, PADDING),
    "cross-attention": lambda: (
        nn.MultiheadAttention(8, 2, batch_first=True), draw(3, 2, 8), draw(3, 4, 8), draw(3, 4, 8), PADDING
    ),
    "attention of other widths": lambda: (
        nn.MultiheadAttention(8, 2, kdim=3, vdim=5, add_bias_kv=True, add_zero_attn=True),
        draw(3, 4, 8), draw(6, 4, 3), draw(6, 4, 5),
    ),
    "attention without a batch": lambda: (nn.MultiheadAttention(8, 2, bias=False), draw(3, 8), *[draw(6, 8)] * 2),
    "encoder": lambda: (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), draw(3, 4, 8)
    ),
    "transformer": lambda: (nn.Transformer(8, 2, 1, 1, 16), draw(4, 5, 8), draw(3, 5, 8)),
    "ConvTranspose1d": lambda: (nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2), draw(2, 4, 5)),
    "ConvTranspose2d": lambda: (nn.ConvTranspose2d(4, 6, (2, 3), 3, dilation=2), draw(2, 4, 5, 4)),
    "ConvTranspose2d to a size": lambda: (nn.ConvTranspose2d(4, 6, 2, 3), draw(2, 4, 5, 5), (16, 15)),
    "ConvTranspose3d": lambda: (nn.ConvTranspose3d(4, 6, 2, padding=2), draw(2, 4, 5, 5, 5)),
    "weight_norm": lambda: (parametrizations.weight_norm(nn.ConvTranspose1d(4, 6, 3)), draw(2, 4, 5)),
    "weight_norm of an LSTM": lambda: (
        parametrizations.weight_norm(nn.LSTM(5, 7), "weight_hh_l0"), draw(4, 3, 5)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_view_computes_the_outputs_of_the_model(case):
    torch.manual_seed(0)
    model, *inputs = CASES[case]()
    model = model.double().eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = prunable_weights(model)
    assert not why_no_layer_inputs(model, weights)
    view = layer_view(model, weights)
    assert view.model is not model
    for expected, output in zip(tensors(model(*inputs)), tensors(view.model(*inputs)), strict=True):
        torch.testing.assert_close(output, expected)
    for name, weight in view.weights(weights).items():
        torch.testing.assert_close(view.model.get_parameter(name), weight)
        assert isinstance(
            view.model.get_submodule(name.rpartition(".")[0]), nn.Linear | nn.modules.conv._ConvNd
        )
    for name, weight in weights.items():
        assert torch.equal(view.viewed[name].from_view(view.viewed[name].to_view(weight)), weight)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_blocks_of_a_transformer_share_one_identity():
    """The attention of a view multiplies with an identity, which no block needs for itself alone."""
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3)]
    model = nn.Sequential(*layers).eval()
    view = layer_view(model, prunable_weights(model))
    of_model = {p.data_ptr() for p in model.parameters()}
    added = {p.data_ptr(): p for p in view.model.parameters() if p.data_ptr() not in of_model}
    assert [p.tolist() for p in added.values()] == [torch.eye(8).tolist()]
    other = layer_view(model, prunable_weights(model)).model
    for parameter in added.values():
        parameter.data = parameter.data.double()  # as `view.model.double()` does
    assert other(torch.rand(2, 3, 8)).dtype == torch.float32


def test_columns_of_an_lstm_are_inputs_and_previous_outputs():
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 4).double(), draw(6, 5, 3)
    view = layer_view(model, prunable_weights(model))
    hessians = layer_hessians(view.model, view.weights(prunable_weights(model)), x)
    outputs = torch.cat([torch.zeros(1, 5, 4, dtype=torch.float64), model(x)[0][:-1].detach()]).flatten(0, 1)
    for name, vectors in (("weight_ih_l0", x.flatten(0, 1)), ("weight_hh_l0", outputs)):
        expected = 2 / len(x) * vectors.T @ vectors
        torch.testing.assert_close(hessians[f"{name}.weight"].hessian[0], expected)


def test_queries_keys_and_values_have_their_own_hessians():
    torch.manual_seed(0)

    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x[:, :2], x[:, 2:], 2 * x[:, 2:])[0]

    model, x = Cross().double(), draw(6, 5, 4)
    view = layer_view(model, prunable_weights(model))
    hessian = layer_hessians(view.model, view.weights(prunable_weights(model)), x)
    groups = hessian["attention.in_proj_weight.weight"].hessian
    for group, vectors in zip(groups, (x[:, :2], x[:, 2:], 2 * x[:, 2:]), strict=True):
        torch.testing.assert_close(group, 2 / 6 * vectors.flatten(0, 1).T @ vectors.flatten(0, 1))


@pytest.mark.parametrize("criterion", ["magnitude", "obs", "sparse_gpt"])
def test_patterns_run_along_the_inputs_of_transposed_weights(criterion):
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    model = nn.Sequential(pytorch_utils.Conv1D(6, 8), nn.Unflatten(1, (1, 6)), nn.ConvTranspose1d(1, 3, 2))
    model[2] = nn.ConvTranspose1d(1, 3, 2)
    data = torch.randn(60, 8), torch.zeros(60, 2, 7, dtype=torch.int64)[:, 0, 0]
    with pytest.warns(
        prunus.errors.NotPrunedWarning, match=r"2\.weight \(the pattern 2:4 does not fit 1 inputs"
    ):
        pruned = prunus.prune(model, 0.5, criterion=criterion, scope="2:4", calibration=data)
    mask = pruned.masks["0.weight"]  # [I, O]
    assert mask.shape == (8, 6)
    assert (mask.unflatten(0, (2, 4)).sum(1) == 2).all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(4, 6, (2, 3, 1), (1, 2, 1), (1, 0, 2), (2, 1, 1), groups=2, bias=False),
        nn.Conv1d(4, 6, 3, 2, 1, groups=2, bias=False),
    ],
)
def test_unfolded_inputs_times_the_matrix_are_the_output(layer):
    torch.manual_seed(0)
    layer, x = layer.double(), draw(2, 4, *(6, 7, 5)[: layer.weight.dim() - 2])
    vectors = torch.cat(list(im2col_batches(layer, x)), 1)
    rows = to_matrix(layer.weight.detach()).reshape(2, 3, -1)
    product = torch.bmm(vectors, rows.mT).permute(1, 0, 2).reshape(2, -1, 6).mT
    torch.testing.assert_close(product.reshape(layer(x).shape), layer(x).detach())


def test_layers_whose_output_error_is_unknown_are_named():
    model = nn.Sequential(nn.Bilinear(2, 2, 2), nn.Linear(2, 2), nn.Linear(2, 2), nn.Embedding(2, 2))
    model[2].weight = model[1].weight
    model.append(parametrizations.spectral_norm(nn.Linear(2, 2)))
    names = ["0.weight", "1.weight", "3.weight", "4.parametrizations.weight.original"]
    assert why_no_layer_inputs(model, names) == {
        "0.weight": "the output error of Bilinear is not known",
        "1.weight": "its tensor is used by several layers, whose output errors differ",
        "3.weight": "the output error of Embedding is not known",
        "4.parametrizations.weight.original": "the parametrization SpectralNorm scales the weight after the update",
    }


class Doubling:
    """A pre-hook of a user that has a name, as those of torch that compute a weight."""

    name = "weight"

    def __call__(self, module, arguments):
        return (2 * arguments[0],)


def test_hooks_of_a_user_stay_where_weights_are_computed_by_hooks():
    model, x = prune.random_unstructured(nn.Linear(4, 3).double(), "weight", 0.5), draw(5, 4)
    model.register_forward_pre_hook(Doubling())
    view = layer_view(model, ["weight_orig"])
    assert torch.equal(view.model(x), model(x))
    assert isinstance(view.model.weight, nn.Parameter)
