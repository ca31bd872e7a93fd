"""Deep Compression (Han et al. 2016): prune, share, code.

The three stages are calls of the rooms that own them; what is written here is their order, and the record that
is kept of each: how many weights are left, how many bytes the file would take, what the validation split says.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prunus.compression.container import EncodingConfig, pack
from prunus.compression.density_checks import check_densities_nonempty
from prunus.compression.quantization import CodebookConstraint, CodebookTensor, quantize_weights
from prunus.compression.quantization.codebook import bits_of_each, check_float32, check_start
from prunus.compression.recipes import CompressionRecipe
from prunus.data.validation import check_dataset
from prunus.errors import DensityError, NoEffectWarning, NoPrunableWeightsError, QuantizationError
from prunus.masks import all_kept, mask_density
from prunus.pruning.masks import check_finite, densities_by_name
from prunus.pruning.prunable import layer_kinds, prunable_weights, skipped_parameters
from prunus.pruning.pruners import get_criterion
from prunus.pruning.retrain import PruningRound, prune_and_retrain
from prunus.pruning.schedules import SCHEDULES
from prunus.pruning.scopes import check_densities_reachable, get_scope, parse_n_m
from prunus.pruning.weights import copied, set_weights
from prunus.registry import lookup
from prunus.seeds import derive_seed
from prunus.training import EpochMetrics, Evaluation, evaluate, train
from prunus.training.checkpoint import check_writable
from prunus.training.checks import check_tensor_state, check_trainable
from prunus.training.recipe import check_recipe
from prunus.types import Dataset, Density, MaskDict, Params, Progress, numel_by_name

Report = Callable[[str, EpochMetrics], None]
"""Called with the stage's name after each epoch."""

STAGES = ("dense", "pruned", "shared", "huffman", "range")
"""Float32 · P · P+Q · P+Q+H · P+Q with the range coder in Huffman's place."""

CODED = {"shared": "bitpack", "huffman": "huffman", "range": "range"}
"""The codec of each of the stages after pruning."""

PRUNED = EncodingConfig(codec="bitpack", share=False)
"""How the pruned network is coded."""

KINDS = ("conv", "linear")
"""The kinds of layers that bits may be given for."""

REHEARSED_WHOLE = 10_000_000
REHEARSED = 1_000
"""A model of up to so many entries is written once before the work; of a larger one, so many entries a tensor."""


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
    masks: MaskDict
    shared: Mapping[str, CodebookTensor]
    stages: Sequence[Stage]
    epochs: Sequence[tuple[str, EpochMetrics]]
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
    checkpoints: str | os.PathLike[str] | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Prune, share and code a trained `model`; the model given is left as it is, and its copy keeps its modes.

    What is not compressed:

    - Weights that are exactly zero at the start count as pruned and stay zero. Densities are fractions of all weights,
      so that a density above that of the model prunes nothing (NoEffectWarning).
    - Parameters with `requires_grad=False` and all buffers are left exactly as they are. Frozen weights that the
      patterns would prune are left out with a warning (NoEffectWarning).
    - Parameters that an `exclude` pattern matches, and weights that `include` leaves out, are trained, but neither
      pruned nor rounded. Other parameters, such as biases, are rounded to half precision where the recipe says so.

    A layer that loses all of its weights (EmptyLayerWarning) is stored as zeros.

    Args:
        model: Trained; any module whose forward pass takes a batch of `data` and returns logits [B, C]. The weights to
            compress are float32.
        data: The training split retrains, the validation split reports; the test split is not used.
        recipe: What to do (`prunus.compression.recipes`).
        include: Shell patterns over the names of the weights to prune.
        exclude: Shell patterns over the names of the weights to leave out.
        seed: Seed of ties, batch order, dropout and codebooks.
        checkpoints: Directory of checkpoints; a call killed there and made again goes on, to the same bits.
        report: Called after each epoch.
        progress: Called after every batch of a training, as by `train`; with a total of 0 before the other stages.

    Returns:
        The compressed copy with its masks, shared tensors and the record of each stage.

    Raises:
        NoPrunableWeightsError, TiedWeightsError, ModelError: The model cannot be compressed; its weights are not float32.
        NonFiniteError: A tensor of the model holds NaN or infinity.
        DensityError: The scope cannot give the densities of the recipe.
        QuantizationError: The bits of the recipe are out of range, missing, or of a name that is not to be shared.
        UnknownNameError, SpecError: The recipe names what is in no table, or a number of it is out of range.
        ContainerError: The model holds what no file holds.
        TrainingError: Training diverged, or a checkpoint is of another run.

    All errors but those of training are raised before any work.
    """
    check_tensor_state(model)
    modes = {name: module.training for name, module in model.named_modules()}
    model = copied(model)
    weights = check_inputs(model, data, recipe, include, exclude)
    densities, within = _plan_rounds(recipe, weights, warn=True)
    folder = None if checkpoints is None else Path(checkpoints)
    if folder is not None:
        check_writable(folder / "finetune.safetensors")
    stages = [_stage("dense", model, data, list(weights), _float_bytes(model.state_dict()))]

    rounds = _prune(
        recipe,
        model,
        weights,
        data,
        densities,
        within,
        seed=seed,
        checkpoints=folder,
        report=_as("pruned", report),
        progress=progress,
    )
    # A kept weight that retraining left at exactly zero is stored as a pruned one.
    masks = {name: mask & (weights[name].detach() != 0) for name, mask in rounds[-1].masks.items()}
    stages.append(_stage("pruned", model, data, list(weights), _packed(model, PRUNED)))

    if progress is not None:
        progress("sharing the weights", 0, 0)
    tied = CodebookConstraint(
        model,
        quantize_weights(weights, masks, bits_by_name(model, list(masks), recipe.bits), recipe.start, seed),
    )
    finetuned = train(
        model,
        data,
        recipe.finetune,
        constraint=tied,
        seed=derive_seed(seed, "finetune"),
        checkpoint=folder / "finetune.safetensors" if folder else None,
        report=_as("shared", report),
        progress=progress,
    )
    if progress is not None:
        progress("coding the weights", 0, 0)
    shared = tied.result()
    set_weights(model, {name: s.dense() for name, s in shared.items()})
    if recipe.half:
        set_weights(model, _halved(model, _rounded_names(model, weights, exclude)))
    coded = _stage("shared", model, data, list(weights), 0)  # one network, in three codings
    for name, codec in CODED.items():
        size = _packed(model, replace(recipe.coding, codec=codec))
        stages.append(replace(coded, name=name, bytes=size))
    model.zero_grad()
    for name, module in model.named_modules():
        module.training = modes.get(name, module.training)
    epochs = [("pruned", e) for r in rounds for e in r.epochs] + [("shared", e) for e in finetuned]
    skipped = skipped_parameters(model, include, exclude, pruned=masks)
    return Compressed(model, masks, shared, stages, epochs, recipe, seed, skipped)


def check_inputs(
    model: nn.Module,
    data: Dataset,
    recipe: CompressionRecipe,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Params:
    """Return the weights of `model` to compress, by name; raise before any work what would be raised later.

    Nothing is changed. The last steps are rehearsed: each tensor, or a sample of it, is shared and written. What the
    zeros of a trained model forbid is raised by `deep_compress` alone, so that a model may be checked before training.

    Raises what `deep_compress` raises, except errors of training.
    """
    check_tensor_state(model)
    weights = weights_to_compress(model, include, exclude)
    check_float32(weights)
    check_finite({n: t for n, t in model.state_dict().items() if t.is_floating_point()}, "The tensor")
    for training in (recipe.retrain, recipe.settle, recipe.finetune):
        check_recipe(training)
    get_criterion(recipe.criterion, recipe.scope)
    check_start(recipe.start)
    bits = bits_of_each(bits_by_name(model, list(weights), recipe.bits), list(weights))
    planned_densities(recipe, weights)
    _rehearse_end(model, recipe, weights, bits)
    check_dataset(data, ("train", "validation"))
    for training in (recipe.retrain, recipe.settle, recipe.finetune):
        check_trainable(model, data, training)
    return weights


def weights_to_compress(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> Params:
    """Return the weights that may be pruned and that require a gradient, by name.

    Frozen weights are left out with a NoEffectWarning.

    Raises:
        NoPrunableWeightsError: The patterns leave no weight, or all of them are frozen.
        TiedWeightsError, ModelError: As `prunable`.
    """
    weights = prunable_weights(model, include, exclude)
    frozen = [name for name, weight in weights.items() if not weight.requires_grad]
    if len(frozen) == len(weights):
        raise NoPrunableWeightsError(
            f"Expected a weight to compress that is not frozen, but none has requires_grad = True, {frozen}; call "
            "model.requires_grad_(True) to compress them."
        )
    if frozen:
        warnings.warn(
            f"{frozen} have requires_grad=False and are left as they are, neither pruned nor shared.",
            NoEffectWarning,
            stacklevel=4,
        )
    return {name: weight for name, weight in weights.items() if name not in frozen}


def bits_by_name(model: nn.Module, names: Sequence[str], bits: int | Mapping[str, int]) -> dict[str, int]:
    """The bits of each tensor: by its own name, else by the kind of its layer ("conv", "linear").

    >>> bits_by_name(nn.Sequential(nn.Linear(2, 2)), ["0.weight"], {"conv": 8, "linear": 5})
    {'0.weight': 5}
    """
    if not isinstance(bits, Mapping):
        return dict.fromkeys(names, bits)
    kinds = layer_kinds(model)
    unknown = sorted(str(key) for key in bits if key not in names and key not in KINDS)
    if unknown:
        raise QuantizationError(
            f"Expected bits by kind of layer ({', '.join(KINDS)}) or by name of a weight to share, {list(names)}, got "
            f"bits for {unknown}; correct or remove these keys."
        )
    missing = [name for name in names if name not in bits and kinds[name] not in bits]
    if missing:
        raise QuantizationError(
            f"No bits are given for {missing[0]!r}, a {kinds[missing[0]]} weight; given: {dict(bits)}."
        )
    return {name: bits[name if name in bits else kinds[name]] for name in names}


def planned_densities(recipe: CompressionRecipe, weights: Params) -> list[Density]:
    """The densities that the recipe passes through, all of which its scope can give: known before any work.

    Raises DensityError where one cannot be, or keeps nothing of a tensor; UnknownNameError.
    """
    scope = get_scope(recipe.scope)  # refuses what is no scope, of which no holes can be counted
    check_densities_nonempty(recipe.density, recipe.scope, weights)
    densities = lookup("schedule", SCHEDULES, recipe.schedule)(recipe.density, recipe.rounds)
    check_densities_reachable(scope, weights, densities)
    return densities


def prune_with_recipe(
    recipe: CompressionRecipe,
    model: nn.Module,
    weights: Params,
    data: Dataset,
    *,
    seed: int = 0,
    checkpoints: Path | None = None,
    report: Callable[[EpochMetrics], None] | None = None,
    progress: Progress | None = None,
) -> list[PruningRound]:
    """The first stage: prune `model` in place along the recipe's schedule, retraining after each round.

    Weights that are zero at the start count as pruned and stay zero.
    """
    densities, within = _plan_rounds(recipe, weights)
    return _prune(
        recipe,
        model,
        weights,
        data,
        densities,
        within,
        seed=seed,
        checkpoints=checkpoints,
        report=report,
        progress=progress,
    )


def _prune(
    recipe: CompressionRecipe,
    model: nn.Module,
    weights: Params,
    data: Dataset,
    densities: Sequence[Density],
    within: MaskDict | None,
    *,
    seed: int,
    checkpoints: Path | None,
    report: Callable[[EpochMetrics], None] | None,
    progress: Progress | None,
) -> list[PruningRound]:
    return prune_and_retrain(
        model,
        weights,
        data,
        densities,
        [recipe.retrain] * (len(densities) - 1) + [recipe.settle],
        criterion=get_criterion(recipe.criterion, recipe.scope),
        scope=get_scope(recipe.scope),
        within=within,
        seed=seed,
        checkpoints=checkpoints,
        report=report,
        progress=progress,
    )


def _as(stage: str, report: Report | None) -> Callable[[EpochMetrics], None] | None:
    """The caller's report, told the stage."""
    return None if report is None else lambda epoch: report(stage, epoch)


def _stage(name: str, model: nn.Module, data: Dataset, names: Sequence[str], size: int) -> Stage:
    state = model.state_dict()
    kept = {n: state[n][state[n] != 0].cpu().numpy() for n in names}
    histograms = {}
    for tensor, values in kept.items():
        # In float64, where the range of neighboring floats can be cut into bins.
        counts, edges = np.histogram(values.astype(np.float64), bins=101)
        histograms[tensor] = (edges.tolist(), counts.tolist())
    return Stage(name, size, sum(map(len, kept.values())), evaluate(model, data.validation), histograms)


def _float_bytes(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _packed(model: nn.Module, coding: EncodingConfig) -> int:
    return len(pack(model.state_dict(), coding=coding))


def _rounded_names(model: nn.Module, weights: Params, exclude: Sequence[str]) -> list[str]:
    """The parameters that are rounded to half precision: trainable, not shared, and not left out by a pattern.

    A tied parameter is left out where one of its names is.
    """
    left_out = layer_kinds(model).keys() - weights.keys()
    exact = {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in left_out or any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in weights and id(parameter) not in exact
    ]


def _halved(model: nn.Module, names: Sequence[str]) -> Params:
    """The float32 parameters of these names, rounded to half precision where its range holds them."""
    limit = torch.finfo(torch.float16).max
    rest = {name: model.get_parameter(name).detach() for name in names}
    return {
        name: p.half().float() + 0.0  # -0.0, to which small negative numbers are rounded, becomes 0.0
        for name, p in rest.items()
        if p.dtype == torch.float32 and p.numel() and float(p.abs().max()) <= limit
    }


def _plan_rounds(
    recipe: CompressionRecipe, weights: Params, warn: bool = False
) -> tuple[list[Density], MaskDict | None]:
    """The density of each round, and the masks of the weights that are not zero; None where no weight is.

    Densities above what the zeros leave are lowered to it. Raises DensityError where the scope cannot prune within
    these masks: of N:M and blocks, a pattern must fit into them.
    """
    densities = lookup("schedule", SCHEDULES, recipe.schedule)(recipe.density, recipe.rounds)
    masks = {name: weight.detach() != 0 for name, weight in weights.items()}
    if all(bool(mask.all()) for mask in masks.values()):
        return densities, None
    lowered = densities
    if parse_n_m(recipe.scope) is None:
        lowered = [_at_most(density, recipe.scope, masks) for density in densities]
    try:
        check_densities_reachable(get_scope(recipe.scope), weights, lowered, masks)
    except DensityError as error:
        raise DensityError(
            f"{error} Weights that are zero at the start count as pruned: exclude these layers, or prune with scope "
            "'layer'."
        ) from error
    if warn:
        _warn_if_lowered(densities[-1], recipe.scope, masks)
    return lowered, masks


def _warn_if_lowered(density: Density, scope: str, masks: MaskDict) -> None:
    """Warn where more weights would be kept than are not zero. (Of layers without any, the scope warns.)"""
    if scope == "global" and not isinstance(density, Mapping):
        parts = {"all layers together": (density, masks)}
    else:
        asked = densities_by_name(density, list(masks))
        parts = {repr(name): (asked[name], {name: mask}) for name, mask in masks.items()}
    own = {what: mask_density(part) for what, (_, part) in parts.items()}
    above = [what for what, (share, _) in parts.items() if 0 < own[what] < share]
    if above:
        left = ", ".join(f"{own[what]:.4g} of {what}" for what in above)
        warnings.warn(
            f"Zeros that the model has already stay zero: they leave {left}, which is less than the density that was "
            "asked for, so that nothing more is pruned there.",
            NoEffectWarning,
            stacklevel=4,
        )


def _at_most(density: Density, scope: str, masks: MaskDict) -> Density:
    """`density`, or what the masks keep where that is less."""
    if scope == "global" and not isinstance(density, Mapping):
        return min(density, mask_density(masks))
    asked = densities_by_name(density, list(masks))
    lowered = {
        # A density is above 0; a quarter of a weight is none.
        name: min(asked[name], mask_density({name: mask}) or 0.25 / mask.numel())
        for name, mask in masks.items()
    }
    return density if lowered == asked else lowered


def _rehearse_end(
    model: nn.Module, recipe: CompressionRecipe, weights: Params, bits: Mapping[str, int]
) -> None:
    """Share and write the tensors of `model` as they are, or samples of them, so that errors come before the work."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    size = REHEARSED if sum(numel_by_name(state).values()) > REHEARSED_WHOLE else None
    for name, tensor in state.items():
        if size is not None and tensor.layout == torch.strided and not tensor.is_quantized:
            state[name] = tensor.flatten()[:size]
    samples = {name: weight.detach().flatten()[:REHEARSED] for name, weight in weights.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is said of samples means nothing
        quantize_weights(samples, all_kept(samples), bits, recipe.start)
    for coding in (PRUNED, *(replace(recipe.coding, codec=codec) for codec in CODED.values())):
        pack(state, coding=coding)
