"""Dead neurons: reported exactly, removed without changing the function."""

import pytest
import torch
from torch import nn

from prunus import models
from prunus.errors import ModelError
from prunus.masks import apply_masks
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.structured.dead_neurons import dead_neurons, remove_dead_neurons, unchecked_layers


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def kill(
    model: nn.Module, rows: dict[str, list[int]], columns: dict[str, list[int]]
) -> dict[str, torch.Tensor]:
    """Masks that cut every input of some neurons and every output of others, and random weights besides."""
    generator = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(w.shape, generator=generator) < 0.6 for n, w in prunable_weights(model).items()}
    for name, places in rows.items():
        masks[name][places] = False
    for name, places in columns.items():
        masks[name][:, places] = False
    for parameter in model.parameters():  # biases away from zero, so that a constant matters
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.load_state_dict(apply_masks(dict(model.state_dict()), masks))
    return masks


class Normed(nn.Module):
    """A padded convolution after BatchNorm: a constant cannot move past it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.norm(self.a(x)))))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


CASES = {
    "lenet-300-100": (
        models.lenet_300_100,
        (1, 28, 28),
        {"fc1.weight": [3, 7]},
        {"fc2.weight": [5, 7], "fc3.weight": [1]},
    ),
    "lenet-5": (
        models.lenet_5,
        (1, 28, 28),
        {"conv1.weight": [2], "conv2.weight": [4]},
        {"fc2.weight": [0, 9], "conv2.weight": [6]},
    ),
    "conv-2": (models.MODELS["conv-2"], (3, 32, 32), {"fc1.weight": [0]}, {"convolutions.1.weight": [5]}),
    "normed": (Normed, (3, 9, 9), {"a.weight": [0]}, {"b.weight": [2], "head.weight": [1]}),
}


@pytest.mark.parametrize("case", CASES)
def test_removal_changes_shapes_and_not_the_function(case: str) -> None:
    build, shape, rows, columns = CASES[case]
    model = build().eval()
    masks = kill(model, rows, columns)
    inputs = torch.randn(16, *shape, generator=torch.Generator().manual_seed(1))
    before = model(inputs)
    smaller, left, removed = remove_dead_neurons(model, masks, inputs)
    assert torch.allclose(smaller(inputs), before, atol=1e-5)
    assert removed
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    for name, mask in left.items():
        assert mask.shape == smaller.get_parameter(name).shape


def test_report_lists_exactly_the_dead_neurons() -> None:
    model = models.lenet_300_100()
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable_weights(model).items()}
    masks["fc1.weight"][[3, 7]] = False
    masks["fc2.weight"][:, 5] = False
    first, second = dead_neurons(model, masks, torch.zeros(1, 1, 28, 28))
    assert (first.layer, first.num_neurons, first.no_inputs, first.no_outputs) == ("fc1", 300, (3, 7), (5,))
    assert (second.layer, second.no_inputs, second.no_outputs) == ("fc2", (), ())


def test_removal_is_repeated_until_no_neuron_is_dead() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable_weights(model).items()}
    masks["4.weight"][:, 1] = False  # neuron 1 of layer 2 is read by nobody,
    masks["2.weight"][[0, 2], 0] = False  # and it alone reads neuron 0 of layer 0
    smaller, left, _ = remove_dead_neurons(model, masks, torch.randn(1, 4))
    assert [tuple(mask.shape) for mask in left.values()] == [(2, 4), (2, 2), (2, 2)]
    assert all(not d.no_inputs and not d.no_outputs for d in dead_neurons(smaller, left, torch.zeros(1, 4)))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_num_features_of_a_norm_is_that_of_the_remaining_channels(affine: bool, track: bool) -> None:
    def norm(channels: int) -> nn.BatchNorm1d:
        return nn.BatchNorm1d(channels, affine=affine, track_running_stats=track)

    layers = (nn.Linear(4, 3), norm(3), nn.ReLU(), nn.Linear(3, 3), norm(3), nn.Linear(3, 2))
    # Batch statistics of a constant neuron divide its rounding by the root of eps: in float32 that is seen.
    model = nn.Sequential(*layers).double().eval()
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable_weights(model).items()}
    masks["5.weight"][:, 1] = False  # neuron 1 of layer 3 is read by nobody,
    masks["3.weight"][[0, 2], 0] = False  # and it alone reads neuron 0 of layer 0;
    masks["3.weight"][0] = False  # neuron 0 of layer 3 is constant
    model.load_state_dict(apply_masks(dict(model.state_dict()), masks))
    inputs = torch.randn(8, 4, dtype=torch.float64)
    smaller, left, _ = remove_dead_neurons(model, masks, inputs)
    if affine or track:  # otherwise nothing in the module has this length
        assert (repr(smaller[1]), repr(smaller[4])) == (repr(norm(2)), repr(norm(1)))
    assert torch.allclose(smaller(inputs), model(inputs), atol=1e-5)
    assert [(dead.layer, dead.num_neurons) for dead in dead_neurons(smaller, left, inputs)] == [("0", 2)]


class Joined(nn.Module):
    """Two layers whose outputs are added, and a third whose outputs are concatenated with theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(7, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.a(x))
        return self.d(torch.cat([first + torch.tanh(self.b(first)), torch.sigmoid(self.c(x))], 1))


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ({"a.weight": [1], "b.weight": [1, 2]}, {}, [("a", (1,), ())]),
        ({}, {"b.weight": [3], "d.weight": [0, 3]}, [("a", (), (3,))]),
        ({"c.weight": [0]}, {"d.weight": [5]}, [("c", (0,), (1,))]),
    ],
    ids=["added without inputs", "added without outputs", "concatenated"],
)
def test_neurons_of_layers_that_are_joined_are_dead_together(rows, columns, expected) -> None:
    model = Joined()
    masks = kill(model, rows, columns)
    if "a.weight" not in rows:
        masks["a.weight"][:, 0] = True
    inputs = torch.randn(5, 4)
    model.load_state_dict(apply_masks(dict(model.state_dict()), masks))
    smaller, _, removed = remove_dead_neurons(model, masks, inputs)
    assert torch.allclose(smaller(inputs), model(inputs), atol=1e-5)
    assert [(dead.layer, dead.no_inputs, dead.no_outputs) for dead in removed] == expected


def test_constant_neuron_before_a_padded_convolution_is_not_removed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))
    model[0].bias.data.fill_(1.0)
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable_weights(model).items()}
    masks["0.weight"][0] = False
    _, left, removed = remove_dead_neurons(model, masks, torch.randn(1, 1, 6, 6))
    assert removed == []
    assert left["0.weight"].shape[0] == 2


def test_model_that_cannot_be_traced_is_named() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"Branching cannot be exported"):
        remove_dead_neurons(Branching(), {}, torch.ones(1, 2))


def test_layer_without_connections_keeps_one_neuron():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    model[0].bias.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable_weights(model).items()}
    masks["0.weight"][:] = False
    model.load_state_dict(apply_masks(dict(model.state_dict()), masks))
    inputs = torch.randn(5, 4)
    smaller, left, _ = remove_dead_neurons(model, masks, inputs)
    assert torch.allclose(smaller(inputs), model(inputs), atol=1e-6)
    assert left["0.weight"].shape == (1, 4)


class Tokens(nn.Module):
    """[B, T, C]: the channels stand last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


class NormedTokens(Tokens):
    """BatchNorm1d of [B, T, C] normalizes the T tokens, here as many as there are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x)))


@pytest.mark.parametrize("build", [Tokens, NormedTokens])
@pytest.mark.parametrize("dead", ["inputs", "outputs"])
def test_neurons_are_removed_where_channels_are_the_last_dimension(build, dead):
    model = build().eval()
    rows, columns = ({"a.weight": [1]}, {}) if dead == "inputs" else ({}, {"b.weight": [1]})
    masks = kill(model, rows, columns)
    inputs = torch.randn(3, 4, 5)
    smaller, _, _ = remove_dead_neurons(model, masks, inputs)
    assert torch.allclose(smaller(inputs), model(inputs), atol=1e-5)


class Rows(nn.Module):
    """A Linear that reads the rows or the positions of an image: not its channels, although the sizes fit."""

    def __init__(self, flatten: bool) -> None:
        super().__init__()
        self.a, self.b, self.flatten = nn.Conv2d(1, 2, 1), nn.Linear(16 if flatten else 4, 3), flatten

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        return self.b(x.flatten(2) if self.flatten else x)


class Pooled(nn.Module):
    """MaxPool1d after a Linear pools its features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool, self.b = nn.Linear(4, 4), nn.MaxPool1d(3, 1, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.pool(self.a(x)))


class Twins(nn.Module):
    """The first layer's weight is also somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4)
        self.c.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x))) + self.c(x).sum()


class Functional(nn.Module):
    """The first layer's weight is read beside the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(nn.functional.linear(x, self.a.weight))))


class Gated(nn.Module):
    """The neurons of the first layer are multiplied with a number that depends on the example."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)) * self.gate(x))


def test_neuron_that_is_no_constant_without_inputs_is_not_removed():
    model = Gated()
    masks = kill(model, {"a.weight": [1]}, {})
    masks["b.weight"][:] = True
    inputs = torch.randn(1, 4)  # a single example, on which every neuron is a constant
    smaller, _, removed = remove_dead_neurons(model, masks, inputs)
    assert removed == []
    assert smaller.a.out_features == 4


class Positioned(nn.Module):
    """A parameter with a value for each position is added to the neurons of the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.positions = nn.Parameter(torch.linspace(-1, 1, 5).repeat(4, 1).T[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x) + self.positions[:, : x.shape[1]]))


def test_neuron_with_a_value_for_each_position_is_not_removed():
    model = Positioned()
    masks = {"a.weight": torch.tensor([[True], [False], [True], [True]]).expand(4, 3)}
    _, _, removed = remove_dead_neurons(model, masks, torch.randn(2, 1, 3))  # where there is one position
    assert removed == []


def test_units_of_a_recurrent_layer_read_each_other_and_are_not_removed():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.a, self.b = nn.LSTM(3, 4, batch_first=True), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.lstm(x)[0] + self.a(x))

    model = Recurrent()
    masks = {"b.weight": torch.tensor([[True, False, True, True]] * 2)}
    _, _, removed = remove_dead_neurons(model, masks, torch.randn(2, 5, 3))
    assert removed == []


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Rows(False), (1, 1, 4, 4)), (Rows(True), (1, 1, 4, 4)), (Pooled(), (3, 4)), (Twins(), (3, 4)),
     (Functional(), (3, 4))],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_layers_that_are_not_connected_by_channel_are_not_checked(model, shape):
    x = torch.randn(shape)
    assert dead_neurons(model, {}, x) == []
    assert "a" in unchecked_layers(model, x)
