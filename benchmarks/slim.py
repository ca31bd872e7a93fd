"""ResNet-20 on CIFAR-10 images with half of its MACs, compared with Torch-Pruning: accuracy after short training.

The trained weights are those of `resnet20-cifar10-jpeg.safetensors` in the data root. Every smaller network is trained
for one epoch on the same 5,000 images in three orders, and evaluated on the same 5,000 test images. Torch-Pruning
raises an error for the zero-padded shortcuts, so that it prunes what they do not reach: the first convolution of each
block.
"""

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import prunus
from benchmarks.timing import table
from prunus.data import data_root
from prunus.models import MODELS
from prunus.models.loading import load_weights

MACS = 0.5
SEEDS = (0, 1, 2, 3, 4)
NUM_EXAMPLES = 5_000
BATCH = 50
X = torch.zeros(1, 3, 32, 32)
FIRST: dict[str, Any] = {"exclude": ["conv1"], "macs": 0.4687}
"""The first convolutions of the blocks alone, with the MACs of Torch-Pruning's network."""

OURS: dict[str, dict[str, Any]] = {
    "l2": {"criterion": "l2"},
    "l2, refit": {"criterion": "l2", "refit": True},
    "lasso": {"criterion": "lasso"},
    "lasso, refit": {"criterion": "lasso", "refit": True},
    "l2, first convolutions": {"criterion": "l2", **FIRST},
    "l2, refit, first convolutions": {"criterion": "l2", "refit": True, **FIRST},
    "lasso, refit, first convolutions": {"criterion": "lasso", "refit": True, **FIRST},
}


def torch_pruning_l2(model: nn.Module) -> None:
    """Prune the first convolution of each block by the group norm, to the lowest ratio that keeps the MACs."""
    import torch_pruning as tp

    dense = prunus.count_macs(model, X)
    ignored = [
        m for name, m in model.named_modules() if name in ("conv1", "linear") or name.endswith("conv2")
    ]
    for percent in range(30, 80):
        tried = copy.deepcopy(model)
        ignored_copies = [
            dict(tried.named_modules())[name]
            for name, m in model.named_modules()
            if any(m is i for i in ignored)
        ]
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        tp.pruner.BasePruner(
            tried, X, importance=importance, pruning_ratio=percent / 100, ignored_layers=ignored_copies
        ).step()  # fmt: skip
        if prunus.count_macs(tried, X) <= MACS * dense:
            model.__dict__.update(tried.__dict__)
            return


def train(model: nn.Module, data: Any, seed: int) -> nn.Module:
    """Train for one epoch, in place."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    order = torch.randperm(NUM_EXAMPLES, generator=torch.Generator().manual_seed(seed))
    steps = NUM_EXAMPLES // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for batch in order.split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(data.train.inputs[batch]), data.train.labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, split: Any) -> float:
    """In percent, on the first images of a split."""
    model.eval()
    inputs, labels = split.inputs[:NUM_EXAMPLES], split.labels[:NUM_EXAMPLES]
    correct = [
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(inputs.split(500), labels.split(500), strict=True)
    ]
    return 100 * sum(correct) / len(labels)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def run() -> str:
    """A row for each criterion, and one for Torch-Pruning."""
    data = prunus.load_data("cifar-10")
    dense = MODELS["resnet-20"]()
    load_weights(dense, data_root() / "resnet20-cifar10-jpeg.safetensors")
    calibration = data.train.inputs[:512], data.train.labels[:512]
    methods: dict[str, Callable[[nn.Module], object]] = {
        name: lambda model, options=options: prunus.slim(
            model, X, **{"macs": MACS, "calibration": calibration, **options}
        ).apply()
        for name, options in OURS.items()
    }
    methods["Torch-Pruning, group L2"] = torch_pruning_l2
    dense_accuracies = [f"{accuracy(dense, split):.2f}" for split in (data.validation, data.test)]
    rows = [["dense", f"{prunus.count_macs(dense, X):,}", "269,722", "", *dense_accuracies]]
    for name, method in methods.items():
        model = copy.deepcopy(dense)
        method(model)
        before = accuracy(model, data.test)
        networks = [train(copy.deepcopy(model), data, seed) for seed in SEEDS]
        values = [
            [accuracy(network, split) for network in networks] for split in (data.validation, data.test)
        ]
        parameters = sum(p.numel() for p in model.parameters())
        macs = prunus.count_macs(model, X)
        rows.append([name, f"{macs:,}", f"{parameters:,}", f"{before:.2f}", *map(spread, values)])
        print(rows[-1], flush=True)
    header = ["criterion", "MACs", "parameters", "test at once"]
    return table(
        [*header, *(f"{split} after one epoch, n = {len(SEEDS)}" for split in ("validation", "test"))], rows
    )
