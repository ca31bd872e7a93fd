"""Deep Compression (Han et al. 2016): prune, share, code.

The three stages are calls of the rooms that own them; what is written here is their order, and the record that
is kept of each: how many weights are left, how many bytes the file would take, what the validation split says.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prunus.compression.container import Coding, pack
from prunus.compression.counts import check_counts
from prunus.compression.recipes import CompressionRecipe
from prunus.compression.sharing import Shared, Tied, share
from prunus.errors import SharingError
from prunus.nouns import Dataset, Density, Masks, Params
from prunus.pruning.masks import check_finite
from prunus.pruning.prunable import layer_kinds, prunable, skipped_parameters
from prunus.pruning.pruners import criterion_named
from prunus.pruning.retrain import Round, prune_and_retrain
from prunus.pruning.schedules import SCHEDULES
from prunus.pruning.scopes import rehearse, scope_named
from prunus.pruning.weights import put
from prunus.seeds import derive
from prunus.tables import look_up
from prunus.training import Epoch, Evaluation, evaluate, train

Report = Callable[[str, Epoch], None]
"""Called with the stage's name after each epoch."""

STAGES = ("dense", "pruned", "shared", "huffman", "range")
"""Float32 · P · P+Q · P+Q+H · P+Q with the range coder in Huffman's place."""


@dataclass(frozen=True)
class Stage:
    """What a stage left: a network, the bytes it takes, and what the validation split says of it."""

    name: str
    bytes: int
    kept: int
    """Prunable weights that are not pruned."""
    validation: Evaluation
    histograms: Mapping[str, tuple[list[float], list[int]]]
    """Edges and counts of the kept weights, by tensor."""


@dataclass(frozen=True)
class Compressed:
    """A compressed network and how it came to be."""

    model: nn.Module
    masks: Masks
    shared: Mapping[str, Shared]
    stages: Sequence[Stage]
    epochs: Sequence[tuple[str, Epoch]]
    recipe: CompressionRecipe
    seed: int
    skipped: Mapping[str, str] = field(default_factory=dict)
    """The parameters that were not pruned, and why."""

    @property
    def density(self) -> float:
        """The share of prunable weights kept."""
        return self.stages[-1].kept / sum(mask.numel() for mask in self.masks.values())


def deep_compress(
    model: nn.Module,
    data: Dataset,
    recipe: CompressionRecipe,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    checkpoints: Path | None = None,
    report: Report | None = None,
) -> Compressed:
    """Prune, share and code a trained `model`; the model given is left as it is.

    Args:
        model: trained; any module whose forward takes a batch of `data` and returns logits [B, C].
        data: the training split retrains, the validation split reports; the test split is not looked at.
        recipe: what to do (`prunus.compression.recipes`).
        include, exclude: shell patterns over the names of the weights to prune.
        seed: of ties, batch order, dropout, codebooks.
        checkpoints: a folder; a call killed there and made again goes on, to the same bits.
        report: called after each epoch.

    Raises NothingPrunableError, TiedWeightsError, NotFiniteError, DensityError, SharingError, TrainingError.
    """
    model = copy.deepcopy(model)
    check_finite({n: t for n, t in model.state_dict().items() if t.is_floating_point()}, "The tensor")
    weights = prunable(model, include, exclude)
    reachable(recipe, weights)
    stages = [_stage("dense", model, data, list(weights), _float_bytes(model.state_dict()))]

    rounds = prune_as(
        recipe, model, weights, data, seed=seed, checkpoints=checkpoints, report=_as("pruned", report)
    )
    masks = rounds[-1].masks
    raw = Coding(codec="bitpack", share=False)
    stages.append(_stage("pruned", model, data, list(weights), _packed(model, raw)))

    tied = Tied(
        model, share(weights, masks, bits_by_name(model, list(masks), recipe.bits), recipe.start, seed)
    )
    finetuned = train(
        model,
        data,
        recipe.finetune,
        constraint=tied,
        seed=derive(seed, "finetune"),
        checkpoint=checkpoints / "finetune.safetensors" if checkpoints else None,
        report=_as("shared", report),
    )
    shared = tied.result()
    put(
        model,
        {
            **{name: s.dense() for name, s in shared.items()},
            **(_halved(model, shared) if recipe.half else {}),
        },
    )
    coded = _stage("shared", model, data, list(weights), 0)  # one network, in three codings
    for name, codec in (("shared", "bitpack"), ("huffman", "huffman"), ("range", "range")):
        size = _packed(model, replace(recipe.coding, codec=codec))
        stages.append(replace(coded, name=name, bytes=size))
    epochs = [("pruned", e) for r in rounds for e in r.epochs] + [("shared", e) for e in finetuned]
    skipped = skipped_parameters(model, include, exclude, pruned=masks)
    return Compressed(model, masks, shared, stages, epochs, recipe, seed, skipped)


def bits_by_name(model: nn.Module, names: Sequence[str], bits: int | Mapping[str, int]) -> dict[str, int]:
    """The bits of each tensor: by its own name, else by the kind of its layer ("conv", "linear").

    >>> bits_by_name(nn.Sequential(nn.Linear(2, 2)), ["0.weight"], {"conv": 8, "linear": 5})
    {'0.weight': 5}
    """
    if isinstance(bits, int):
        return dict.fromkeys(names, bits)
    kinds = layer_kinds(model)
    missing = [name for name in names if name not in bits and kinds[name] not in bits]
    if missing:
        raise SharingError(
            f"No bits are given for {missing[0]!r}, a {kinds[missing[0]]} weight; given: {dict(bits)}."
        )
    return {name: bits.get(name, bits.get(kinds[name], 0)) for name in names}


def reachable(recipe: CompressionRecipe, weights: Params) -> list[Density]:
    """The densities that the recipe passes through, all of which its scope can give: known before any work.

    Raises DensityError where one cannot be, or keeps nothing of a tensor; UnknownNameError.
    """
    check_counts(recipe.density, recipe.scope, weights)
    densities = look_up("schedule", SCHEDULES, recipe.schedule)(recipe.density, recipe.rounds)
    rehearse(scope_named(recipe.scope), weights, densities)
    return densities


def prune_as(
    recipe: CompressionRecipe,
    model: nn.Module,
    weights: Params,
    data: Dataset,
    *,
    seed: int = 0,
    checkpoints: Path | None = None,
    report: Callable[[Epoch], None] | None = None,
) -> list[Round]:
    """The first stage: prune `model` in place along the recipe's schedule, retraining after each round."""
    densities = look_up("schedule", SCHEDULES, recipe.schedule)(recipe.density, recipe.rounds)
    return prune_and_retrain(
        model,
        weights,
        data,
        densities,
        [recipe.retrain] * (len(densities) - 1) + [recipe.settle],
        criterion=criterion_named(recipe.criterion, recipe.scope),
        scope=scope_named(recipe.scope),
        seed=seed,
        checkpoints=checkpoints,
        report=report,
    )


def _as(stage: str, report: Report | None) -> Callable[[Epoch], None] | None:
    """The caller's report, told the stage."""
    return None if report is None else lambda epoch: report(stage, epoch)


def _stage(name: str, model: nn.Module, data: Dataset, names: Sequence[str], size: int) -> Stage:
    state = model.state_dict()
    kept = {n: state[n][state[n] != 0].cpu().numpy() for n in names}
    histograms = {}
    for tensor, values in kept.items():
        counts, edges = np.histogram(values, bins=101)
        histograms[tensor] = (edges.tolist(), counts.tolist())
    return Stage(name, size, sum(map(len, kept.values())), evaluate(model, data.validation), histograms)


def _float_bytes(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _packed(model: nn.Module, coding: Coding) -> int:
    return len(pack(model.state_dict(), coding=coding))


def _halved(model: nn.Module, shared: Mapping[str, Shared]) -> Params:
    """The float32 parameters that are not shared, rounded to half precision where its range holds them."""
    limit = torch.finfo(torch.float16).max
    rest = {name: p.detach() for name, p in model.named_parameters() if name not in shared}
    return {
        name: p.half().float()
        for name, p in rest.items()
        if p.dtype == torch.float32 and p.numel() and float(p.abs().max()) <= limit
    }
