"""What a user of tickets brings: small networks, a criterion, actions; sound ones and broken ones."""

from pathlib import Path

import torch
from torch import nn

from prunus.errors import StatisticsError
from prunus.pruning.statistics import criterion
from prunus.seeds import derive_seed, make_generator
from prunus.tickets.actions import Mask0Action, Mask1Action
from prunus.tickets.mask0.zero import zero
from prunus.tickets.mask1.rewind import rewind


def drawn(model: nn.Module, seed: int) -> nn.Module:
    """`model` with all of its parameters drawn, biases and BatchNorm's too, so that none is zero or one."""
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
    return drawn(nn.Sequential(nn.Flatten(), *layers), seed)


def normed(seed: int) -> nn.Module:
    """64-16-10 with BatchNorm between."""
    layers = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    return drawn(nn.Sequential(nn.Flatten(), *layers), seed)


def dropping(seed: int) -> nn.Module:
    """64-16-10 with dropout between."""
    layers = nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10)
    return drawn(nn.Sequential(nn.Flatten(), *layers), seed)


def convolved(seed: int) -> nn.Module:
    """Two convolutions and a linear layer, channels-last."""
    layers = nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(16, 10)
    return drawn(nn.Sequential(*layers).to(memory_format=torch.channels_last), seed)


class Residual(nn.Module):
    """Linear layers, one with a bridge over it: more than its layers one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.over, self.last = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = self.first(x.flatten(1)).relu()
        return self.last(x + self.over(x).relu())


def residual(seed: int) -> nn.Module:
    """64-16-16-10 with a bridge."""
    return drawn(Residual(), seed)


def by_column(evidence):
    """A criterion of one's own: weights of later inputs are better."""
    return {
        name: torch.arange(weight.shape[1]).expand(weight.shape).float() + 0 * weight
        for name, weight in evidence.weights.items()
    }


def _half(past, masks, seed):
    return {name: weight / 2 for name, weight in past.original.items()}


def _is_half(past, masks, start):
    return {
        "kept weights are half of what they were": all(
            torch.equal(start[name][mask], past.original[name][mask] / 2) for name, mask in masks.items()
        )
    }


half = Mask1Action(_half, _is_half)
"""A mask-1 action of one's own."""


def _ones(past, masks, kept, seed):
    return {name: torch.where(mask, kept[name], 0.01) for name, mask in masks.items()}


def _are_ones(past, masks, kept, start):
    return {
        "pruned weights are 0.01": all(
            bool((start[name][~mask] == torch.tensor(0.01)).all()) for name, mask in masks.items()
        )
    }


hundredth = Mask0Action(_ones, _are_ones)
"""A mask-0 action of one's own."""

not_rewound = Mask1Action(
    lambda past, masks, seed: {name: weight.clone() for name, weight in past.final.items()}, rewind.claims
)
"""Broken: says it rewinds, and goes on from where the last training ended."""


def _one_off(past, masks, seed):
    values = rewind.values(past, masks, seed)
    name = next(iter(values))
    values[name][masks[name]] = values[name][masks[name]].roll(1)
    return values


shifted = Mask1Action(_one_off, rewind.claims)
"""Broken: every value is right, and in one layer in the wrong place."""

not_zero = Mask0Action(_ones, zero.claims)
"""Broken: says pruned weights are zero, and sets them to something."""


def _touched(past, masks, kept, seed):
    start = zero.values(past, masks, kept, seed)
    return {name: weight * 1.0001 for name, weight in start.items()}


meddling = Mask0Action(_touched, zero.claims)
"""Broken: changes kept weights by a ten-thousandth."""


def _doubled(past, masks, seed):
    for moment in (past.original, past.rewind, past.start, past.final):
        for weight in moment.values():
            weight.mul_(2)
    for mask in masks.values():
        mask.logical_not_()
    return {name: weight.clone() for name, weight in past.rewind.items()}


mutating = Mask1Action(_doubled, rewind.claims)
"""Broken: what it is given it doubles, then says that it rewinds to it."""


def drifting(evidence):
    """Broken: large final, and what it is given it makes larger."""
    for moment in (evidence.weights, evidence.initial):
        for weight in moment.values():
            weight.mul_(2)
    for mask in evidence.masks.values():
        mask.fill_(False)
    return {name: weight.abs() for name, weight in evidence.weights.items()}


COLLECTED: list[dict[str, torch.Tensor]] = []
"""The gradients that `recording` was given, one entry per round."""


@criterion(requires={"gradients"}, defined_at="initialization")
def recording(stats):
    """A criterion that records the gradients at the weights before training."""
    COLLECTED.append(stats.gradients)
    return {name: weight.abs() for name, weight in stats.weights.items()}


function = _half
"""A function, which is no action."""


def failing(evidence):
    """A criterion that refuses the second round while there is a file FAILING in the current folder."""
    if (
        evidence.masks
        and not all(bool(mask.all()) for mask in evidence.masks.values())
        and Path("FAILING").exists()
    ):
        raise StatisticsError("Asked to fail in the second round.")
    return {name: weight.abs() for name, weight in evidence.weights.items()}


def raising(evidence):
    """A criterion with a fault in it."""
    raise ValueError("a fault")


def wild(seed: int) -> nn.Module:
    """`mlp`; of the second replicate with weights so large that it diverges."""
    model = mlp(seed)
    if seed == derive_seed(1, "model"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1e30)
    return model
