"""A step of learning a mask compared with a dense step, and with masks learned through autograd: LeNet-300-100.

"autograd" is the way of the public implementations, written here as they describe it: every layer's mask is part of
its forward pass, with `torch.rand_like`, straight-through functions, and for edge-popup a full sort.
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import interleaved, table
from prunus.models import MODELS
from prunus.pruning.prunable import prunable_weights
from prunus.tickets.supermask import Bernoulli, EdgePopup, Signed, SupermaskConstraint, SupermaskType
from prunus.training import Recipe
from prunus.training.constraint import NoConstraint
from prunus.training.trainer import Trainer

RECIPE = Recipe(epochs=1, learning_rate=0.1, batch_size=60, optimizer="sgd", momentum=0.9)
KINDS: dict[str, SupermaskType] = {
    "Bernoulli": Bernoulli(),
    "Bernoulli, rescaled": Bernoulli(rescale=True),
    "edge-popup": EdgePopup(density=0.5),
    "signed": Signed(),
}


class Sample(torch.autograd.Function):
    """A Bernoulli sample, straight through."""

    @staticmethod
    def forward(ctx: object, chances: Tensor) -> Tensor:  # type: ignore[override]
        return (torch.rand_like(chances) < chances).float()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Top(torch.autograd.Function):
    """The higher half, by a full sort, straight through."""

    @staticmethod
    def forward(ctx: object, sizes: Tensor) -> Tensor:  # type: ignore[override]
        order = sizes.flatten().sort().indices
        mask = torch.ones(sizes.numel())
        mask[order[: sizes.numel() // 2]] = 0
        return mask.view(sizes.shape)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Masked(nn.Linear):
    """A linear layer whose mask is in its forward pass."""

    def __init__(self, like: nn.Linear, kind: str) -> None:
        super().__init__(like.in_features, like.out_features)
        self.kind = kind
        bound = 1 / sqrt(like.in_features)
        self.scores = nn.Parameter(torch.empty_like(self.weight).uniform_(-bound, bound))
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        top = self.kind == "edge-popup"
        mask = Top.apply(self.scores.abs()) if top else Sample.apply(torch.sigmoid(self.scores))  # type: ignore[no-untyped-call]
        if self.kind.endswith("rescaled"):
            mask = mask * (mask.numel() / mask.sum())
        return F.linear(x, self.weight * mask, self.bias)


def autograd(kind: str) -> Trainer:
    """The network with masked layers, trained as any."""
    model = MODELS["lenet-300-100"]()
    for name in ("fc1", "fc2", "fc3"):
        setattr(model, name, Masked(getattr(model, name), kind))
    return Trainer(model, RECIPE, NoConstraint(model))


def learned(kind: SupermaskType) -> Trainer:
    """The network under a constraint."""
    model = MODELS["lenet-300-100"]()
    weights = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
    constraint = SupermaskConstraint(model, weights, kind, seed=0)
    constraint.apply()
    return Trainer(model, RECIPE, constraint)


def run(rounds: int = 15, steps: int = 30) -> str:
    inputs, labels = torch.randn(60, 1, 28, 28), torch.randint(0, 10, (60,))
    dense = MODELS["lenet-300-100"]()
    trainings = {"dense": Trainer(dense, RECIPE, NoConstraint(dense))}
    for name, kind in KINDS.items():
        trainings[name] = learned(kind)
        if name != "signed":
            trainings[f"{name}, autograd"] = autograd(name)
    repeated = {
        name: lambda training=training: [training.step(inputs, labels) for _ in range(steps)]
        for name, training in trainings.items()
    }
    timed = interleaved(repeated, rounds=rounds)
    rows = [
        [name, f"{timed.median(name) * 1000 / steps:.2f}", timed.ratio(name, "dense")] for name in trainings
    ]
    return table(
        [
            f"LeNet-300-100, batch 60, SGD, one thread, n = {rounds} x {steps} steps",
            "CPU ms a step",
            "ratio (quartiles)",
        ],
        rows,
    )
