"""ResNet-50 with half of its channels, compared with Torch-Pruning: CPU seconds of a forward pass."""

import copy

import torch
from torch import nn

import prunus
from benchmarks.timing import interleaved, table
from prunus.models import MODELS
from prunus.training.modes import eval_mode

ROUNDS = {1: 9, 32: 3}
"""Rounds for each batch size."""
IMAGES = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def torch_pruning(model: nn.Module) -> nn.Module:
    """Half of the channels of every group by the group norm; the classes remain."""
    import torch_pruning as tp

    tp.pruner.MagnitudePruner(
        model, IMAGES[:1], importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5,
        ignored_layers=[model.fc],
    ).step()  # fmt: skip
    return model


def run() -> str:
    """A row for each batch size."""
    dense = MODELS["resnet-50"]()
    theirs = torch_pruning(copy.deepcopy(dense))
    macs = {"dense": prunus.count_macs(dense, IMAGES[:1]), "theirs": prunus.count_macs(theirs, IMAGES[:1])}
    ours = prunus.slim(copy.deepcopy(dense), IMAGES[:1], macs=macs["theirs"]).apply()
    macs["ours"] = prunus.count_macs(ours, IMAGES[:1])
    networks = {"dense": dense, "ours": ours, "theirs": theirs}
    rows: list[list[object]] = []
    for size, rounds in ROUNDS.items():
        with eval_mode(nn.ModuleList(networks.values())), torch.no_grad():
            timed = interleaved(
                {
                    name: lambda network=network, size=size: network(IMAGES[:size])
                    for name, network in networks.items()
                },
                rounds,
            )
        faster = [timed.ratio("dense", to=name) for name in ("ours", "theirs")]
        rows.append([size, f"{timed.median('dense'):.3f}", *faster, timed.ratio("theirs", to="ours")])
    shares = [f"{macs[name] / macs['dense']:.2%} of the MACs" for name in ("ours", "theirs")]
    header = [
        "batch",
        "dense, CPU s",
        f"prunus, {shares[0]}: × as fast",
        f"Torch-Pruning, {shares[1]}: × as fast",
    ]
    return table([*header, "prunus against Torch-Pruning (quartiles)"], rows)
