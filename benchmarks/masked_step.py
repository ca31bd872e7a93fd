"""A masked training step compared with a dense one, at density 0.1.

In the training loop of prunus (LeNet-300-100), and in a loop of one's own to whose optimizer the masks are attached.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.timing import interleaved, table
from prunus.masks import Masks
from prunus.models import MODELS
from prunus.training import RECIPES, NoConstraint
from prunus.training.trainer import Trainer

DENSITY = 0.1


def run() -> str:
    """Print CPU milliseconds per step, and the ratio to a dense step of the same loop."""
    mnist = torch.randn(60, 1, 28, 28), torch.randint(0, 10, (60,))
    cifar = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
    lenet, resnet = MODELS["lenet-300-100"], MODELS["resnet-20"]
    return "\n\n".join(
        (
            _table(
                "LeNet-300-100, batch 60, Adam, in prunus' loop",
                [_trainer(m, *mnist) for m in (0, 1)],
                300,
                10,
            ),
            _table(
                "LeNet-300-100, batch 60, Adam, in a training loop of the user",
                _own_loops(lenet, *mnist),
                300,
                10,
            ),
            _table(
                "ResNet-20, batch 32, Adam, in a training loop of the user", _own_loops(resnet, *cifar), 30, 1
            ),
        )
    )


def _masks(model: nn.Module) -> Masks:
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    return Masks(model, {name: torch.rand(weight.shape) < DENSITY for name, weight in weights.items()})


def _trainer(is_masked: int, inputs: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    model = MODELS["lenet-300-100"]()
    constraint = _masks(model) if is_masked else NoConstraint(model)
    trainer = Trainer(model, RECIPES["lenet-300-100"], constraint)
    return lambda: trainer.step(inputs, labels)


def _own_loops(
    make_model: Callable[[], nn.Module], inputs: torch.Tensor, labels: torch.Tensor
) -> list[Callable[[], object]]:
    def own_loop(is_masked: bool) -> Callable[[], object]:
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3, fused=True)
        if is_masked:
            _masks(model).attach(optimizer)

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

        return step

    return [own_loop(False), own_loop(True)]


def _table(title: str, steps: list[Callable[[], object]], rounds: int, num_steps: int) -> str:
    def repeated(step: Callable[[], object]) -> Callable[[], object]:
        return lambda: [step() for _ in range(num_steps)]

    timed = interleaved(dict(zip(("dense", "masked"), map(repeated, steps), strict=True)), rounds=rounds)
    rows = [
        [name, f"{timed.median(name) * 1000 / num_steps:.3f}", timed.ratio(name, "dense")]
        for name in ("dense", "masked")
    ]
    header = f"{title}, density {DENSITY}, one thread, n = {rounds} x {num_steps} steps"
    return table([header, "CPU ms per step", "ratio to dense (quartiles)"], rows)
