"""Tiny networks, and criteria and actions of a user, valid and faulty ones."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus import Dataset, Split
from prunus.errors import StatisticsError
from prunus.pruning.statistics import criterion
from prunus.seeds import derive_seed, make_generator
from prunus.tickets.actions import Mask0Action, Mask1Action
from prunus.tickets.mask0_actions import MASK0_ACTIONS
from prunus.tickets.mask1_actions import MASK1_ACTIONS

rewind, zero = MASK1_ACTIONS["rewind"], MASK0_ACTIONS["zero"]


def randomize_parameters(model: nn.Module, seed: int) -> nn.Module:
    """Set all parameters to random values, biases and those of BatchNorm too, so that none is zero or one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.5 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.normal_(0, scale, generator=make_generator(seed, name))
            if parameter.dim() == 1 and "weight" in name:
                parameter.add_(1)
    return model


def mlp(seed: int) -> nn.Module:
    """64-24-16-10."""
    layers = nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)
    return randomize_parameters(nn.Sequential(nn.Flatten(), *layers), seed)


def regressor(seed: int) -> nn.Module:
    """16-12-4, for `sums`."""
    return randomize_parameters(nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4)), seed)


def sums() -> Dataset:
    """A regression: the sums of four inputs each."""
    inputs = torch.randn(150, 16, generator=torch.Generator().manual_seed(0))
    split = Split(inputs, inputs.reshape(150, 4, 4).sum(2))
    return Dataset("sums", split, split.take(60), split.take(80), ())


def absolute_error(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A loss for `sums`."""
    return nn.functional.l1_loss(outputs, batch[1])


def lenet(seed: int) -> nn.Module:
    """64-24-16-10, with the names of the layers of LeNet-300-100."""
    layers = {"flatten": nn.Flatten(), "fc1": nn.Linear(64, 24), "relu1": nn.ReLU(), "fc2": nn.Linear(24, 16)}
    layers |= {"relu2": nn.ReLU(), "fc3": nn.Linear(16, 10)}
    return randomize_parameters(nn.Sequential(OrderedDict(layers)), seed)


def normed(seed: int) -> nn.Module:
    """64-16-10 with BatchNorm between."""
    layers = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    return randomize_parameters(nn.Sequential(nn.Flatten(), *layers), seed)


def dropping(seed: int) -> nn.Module:
    """64-16-10 with dropout between."""
    layers = nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10)
    return randomize_parameters(nn.Sequential(nn.Flatten(), *layers), seed)


def convolved(seed: int) -> nn.Module:
    """Two convolutions and a linear layer, channels-last."""
    layers = nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(16, 10)
    return randomize_parameters(nn.Sequential(*layers).to(memory_format=torch.channels_last), seed)


def normed_convolutions(seed: int) -> nn.Module:
    """Two convolutions with BatchNorm, and a linear layer."""
    layers = nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 2), nn.BatchNorm2d(8)
    return randomize_parameters(nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)), seed)


class Residual(nn.Module):
    """Linear layers, one with a skip connection, so that the network is not a chain of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.over, self.last = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = self.first(x.flatten(1)).relu()
        return self.last(x + self.over(x).relu())


def residual(seed: int) -> nn.Module:
    """64-16-16-10 with a skip connection."""
    return randomize_parameters(Residual(), seed)


class ConvolutionBlock(nn.Module):
    """relu(x + convolution(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.convolution(x))


def residual_blocks(seed: int) -> nn.Module:
    """Three residual blocks of convolutions."""
    layers = nn.Conv2d(1, 4, 3, stride=2), *(ConvolutionBlock() for _ in range(3)), nn.Flatten()
    return randomize_parameters(nn.Sequential(*layers, nn.Linear(36, 10)), seed)


class Tied(nn.Module):
    """64-24-64-10, whose second weight is the transposed first one's twin: a decoder tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(24, 64), nn.Linear(64, 24), nn.Linear(64, 24)
        self.again, self.out = nn.Linear(24, 64), nn.Linear(64, 24)
        self.out.weight = self.head.weight = self.embed.weight

    def forward(self, x):
        x = torch.relu(self.hidden(x.flatten(1)))
        return self.out(torch.relu(self.again(torch.relu(self.head(torch.relu(self.again(x)))))))[:, :10]


def tied(seed: int) -> nn.Module:
    """Two linear layers and an embedding that are one weight."""
    return randomize_parameters(Tied(), seed)


def largest_filters(statistics):
    """Minus the magnitude, so that the filters of the largest norm are removed."""
    return {name: -weight.square() for name, weight in statistics.weights.items()}


def by_column(statistics):
    """A user's criterion: weights of later inputs have higher scores."""
    return {
        name: torch.arange(weight.shape[1]).expand(weight.shape).float() + 0 * weight
        for name, weight in statistics.weights.items()
    }


def _half(history, masks, seed):
    return {name: weight / 2 for name, weight in history.initial.items()}


def _is_half(history, masks, start):
    return {
        "kept weights are half of what they were": all(
            torch.equal(start[name][mask], history.initial[name][mask] / 2) for name, mask in masks.items()
        )
    }


half = Mask1Action(_half, _is_half)
"""A user's mask-1 action."""


def _hundredths(history, masks, kept_weights, seed):
    return {name: torch.where(mask, kept_weights[name], 0.01) for name, mask in masks.items()}


def _are_hundredths(history, masks, kept_weights, start):
    return {
        "pruned weights are 0.01": all(
            bool((start[name][~mask] == torch.tensor(0.01)).all()) for name, mask in masks.items()
        )
    }


hundredth = Mask0Action(_hundredths, _are_hundredths)
"""A user's mask-0 action."""

not_rewound = Mask1Action(
    lambda history, masks, seed: {name: weight.clone() for name, weight in history.final.items()},
    rewind.invariants,
)
"""Broken: claims to rewind, and continues from the end of the last training."""


def _one_off(history, masks, seed):
    values = rewind.values(history, masks, seed)
    name = next(iter(values))
    values[name][masks[name]] = values[name][masks[name]].roll(1)
    return values


shifted = Mask1Action(_one_off, rewind.invariants)
"""Broken: every value is correct, but those of one layer are at the wrong positions."""

not_zero = Mask0Action(_hundredths, zero.invariants)
"""Broken: claims that pruned weights are zero, and sets them to 0.01."""


def _touched(history, masks, kept_weights, seed):
    start = zero.values(history, masks, kept_weights, seed)
    return {name: weight * 1.0001 for name, weight in start.items()}


meddling = Mask0Action(_touched, zero.invariants)
"""Broken: changes kept weights by a ten-thousandth."""


def _doubled(history, masks, seed):
    for moment in (history.initial, history.rewind, history.start, history.final):
        for weight in moment.values():
            weight.mul_(2)
    for mask in masks.values():
        mask.logical_not_()
    return {name: weight.clone() for name, weight in history.rewind.items()}


mutating = Mask1Action(_doubled, rewind.invariants)
"""Broken: doubles its arguments in place, then claims to rewind to them."""


def drifting(statistics):
    """Broken: large final, which doubles its arguments in place and clears the masks."""
    for moment in (statistics.weights, statistics.initial):
        for weight in moment.values():
            weight.mul_(2)
    for mask in statistics.masks.values():
        mask.fill_(False)
    return {name: weight.abs() for name, weight in statistics.weights.items()}


GRADIENTS: list[dict[str, torch.Tensor]] = []
"""The gradients that `recording_gradients` was given, round after round."""


@criterion(requires={"gradients"}, defined_at="initialization")
def recording_gradients(statistics):
    """A criterion that records its gradients; its scores are magnitudes."""
    GRADIENTS.append({name: gradient.clone() for name, gradient in statistics.gradients.items()})
    return {name: weight.abs() for name, weight in statistics.weights.items()}


function = _half
"""A function, which is not an action."""


def failing(statistics):
    """A criterion that refuses the second round while there is a file FAILING in the current folder."""
    if (
        statistics.masks
        and not all(bool(mask.all()) for mask in statistics.masks.values())
        and Path("FAILING").exists()
    ):
        raise StatisticsError("Asked to fail in the second round.")
    return {name: weight.abs() for name, weight in statistics.weights.items()}


def raising(statistics):
    """A criterion that raises an unexpected error."""
    raise ValueError("a fault")


def wild(seed: int) -> nn.Module:
    """`mlp`; of the second replicate with weights so large that it diverges."""
    model = mlp(seed)
    if seed == derive_seed(1, "model"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1e30)
    return model


class TiedEmbedding(nn.Module):
    """Tokens to logits by the weights of the embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.decode = nn.Linear(8, 10, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, tokens):
        return self.decode(self.hidden(self.embed(tokens)).relu())
