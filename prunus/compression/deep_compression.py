"""Deep Compression: prune → quantize by k-means and fine-tune the centroids → entropy-code → one file.

Source: Han, Mao & Dally 2016, sections 2 to 4. Differences from the paper: a range coder besides Huffman coding,
smaller parameters in half precision, and several rounds of pruning.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import nn

from prunus.compression.checks import PRUNED_ENCODING, bits_by_name, check_inputs, stage_encodings
from prunus.compression.container import EncodedState, EncodingConfig, encode_tensors, load
from prunus.compression.container.file_format import as_bytes
from prunus.compression.density_plan import DensityPlan, plan_densities
from prunus.compression.presets import COMPRESSION_RECIPES, CompressionRecipe
from prunus.compression.quantization import CodebookConstraint, quantize_weights
from prunus.compression.result import Compressed, Stage
from prunus.compression.save import clear_negative_zeros, file_metadata, recipe_metadata
from prunus.errors import CorruptFileError
from prunus.files import write_atomic
from prunus.pruning.masks import check_finite
from prunus.pruning.prunable import layer_kinds, skipped_parameters
from prunus.pruning.pruners import get_criterion
from prunus.pruning.retrain import PruningRound, prune_and_retrain
from prunus.pruning.scopes import parse_scope
from prunus.pruning.weights import copied, set_weights
from prunus.registry import lookup
from prunus.seeds import derive_seed
from prunus.training import EpochMetrics, Recipe, evaluate, train
from prunus.training.checkpoint import check_writable
from prunus.training.checks import check_tensor_state
from prunus.types import Dataset, Params, Progress

Report = Callable[[str, EpochMetrics], None]
"""Called after each epoch with the name of the stage."""

STAGES = ("dense", "pruned", "quantized", "huffman", "range")
"""Float32, P, P+Q, P+Q+H, and P+Q with the range coder instead of Huffman coding."""


def compress(
    model: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    data: Dataset,
    preset: str | CompressionRecipe = "default",
    train_first: bool = False,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Compress a copy of `model` by Deep Compression and write it to `path`; `model` is not modified.

    What is not compressed:

    - Weights that are exactly zero at the start count as pruned and stay zero. Densities are fractions of all weights,
      so a density above that of the model prunes nothing (NoEffectWarning).
    - Parameters with `requires_grad=False` and all buffers are left exactly as they are. Frozen weights that the
      patterns select are left out with a warning (NoEffectWarning).
    - Parameters that an `exclude` pattern matches, and weights that `include` does not match, are trained, but neither
      pruned nor rounded. Other parameters, such as biases, are rounded to half precision if the recipe says so.

    A layer that loses all of its weights (EmptyLayerWarning) is stored as zeros.

    Args:
        model: Any module whose forward pass takes a batch of `data` and returns logits [B, C]. The weights to
            compress are float32.
        path: The file to write; it is loaded back and compared bit for bit. None writes no file.
        data: The training split trains, the validation split is evaluated after each stage; the test split is unused.
        preset: A recipe, or its key in `COMPRESSION_RECIPES`.
        train_first: Train the model by the recipe first; otherwise it is given trained.
        include: Shell patterns over the names of the weights to prune.
        exclude: Shell patterns over the names of the weights to leave out.
        seed: Seed of ties, batch order, dropout and codebooks.
        checkpoints: Directory of checkpoints, from which an interrupted call resumes bit-identically.
        report: Called after each epoch.
        progress: Called after every batch of a training, as by `train`; with a total of 0 before the other steps.

    Returns:
        The compressed copy with its masks, quantized tensors and the measurements of each stage.

    Raises:
        NoPrunableWeightsError, TiedWeightsError, ModelError: The model cannot be compressed, or its weights are not
            float32.
        NonFiniteError: A tensor of the model holds NaN or infinity.
        DensityError: The scope cannot give the densities of the recipe.
        QuantizationError: The bits of the recipe are out of range or missing, or a name is not to be quantized.
        UnknownNameError, SpecError: The recipe names what is in no table, or a number of it is out of range.
        ContainerError: The model holds what no file may hold, or the file does not give it back.
        OutputError: The file cannot be written.
        TrainingError: Training diverged, or a checkpoint is of another run.

    All errors but those of training and of writing are raised before any work.
    """
    recipe = (
        preset if isinstance(preset, CompressionRecipe) else lookup("recipe", COMPRESSION_RECIPES, preset)
    )
    check_tensor_state(model)
    modes = {name: module.training for name, module in model.named_modules()}
    dense_model, model = model, copied(model)
    weights = check_inputs(model, data, recipe, include, exclude)
    folder = None if checkpoints is None else Path(checkpoints)
    if folder is not None:
        check_writable(folder / "finetune.safetensors")
    run = _Run(model, data, recipe, seed, folder, report, progress)
    if train_first:
        run.train(recipe.dense, "dense")
        check_finite({n: t for n, t in model.state_dict().items() if t.is_floating_point()}, "The tensor")
        dense_model = copied(model)
    plan = plan_densities(recipe, weights)
    dense_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    stages = [run.measure("dense", weights, dense_bytes)]

    rounds = prune_with_recipe(
        recipe,
        model,
        weights,
        data,
        plan,
        seed=seed,
        checkpoints=folder,
        report=run.report_of("pruned"),
        progress=progress,
    )
    # A remaining weight that retraining left at exactly zero is stored as a pruned one.
    masks = {name: mask & (weights[name].detach() != 0) for name, mask in rounds[-1].masks.items()}
    (pruned,) = run.encode([PRUNED_ENCODING])
    stages.append(run.measure("pruned", weights, len(pruned.to_bytes())))

    run.announce("quantizing the weights")
    bits = bits_by_name(model, list(masks), recipe.bits)
    constraint = CodebookConstraint(model, quantize_weights(weights, masks, bits, recipe.kmeans_init, seed))
    finetuned = run.train(recipe.finetune, "finetune", stage="quantized", constraint=constraint)
    quantized = constraint.result()
    set_weights(model, {name: tensor.dense() for name, tensor in quantized.items()})
    if recipe.half_precision_biases:
        set_weights(model, _rounded_to_half(model, _names_to_round(model, weights, exclude)))

    run.announce("encoding the weights")
    measured = run.measure("quantized", weights, 0)  # one network in three encodings
    encodings = stage_encodings(recipe)
    encoded = dict(zip(encodings, run.encode(list(encodings.values())), strict=True))
    stages += [replace(measured, name=name, bytes=len(e.to_bytes())) for name, e in encoded.items()]
    model.zero_grad()
    for name, module in model.named_modules():
        module.training = modes.get(name, module.training)
    (stage,) = (name for name, encoding in encodings.items() if encoding == recipe.encoding)
    content = run.file_content(encoded[stage])
    if path is not None:
        run.announce("writing the file")
        write_atomic(path, content)
        _check_loads_back(path, model)
    return Compressed(
        model=model,
        masks=masks,
        quantized=quantized,
        stages=stages,
        epochs=[("pruned", e) for r in rounds for e in r.epochs] + [("quantized", e) for e in finetuned],
        recipe=recipe,
        seed=seed,
        skipped=skipped_parameters(model, include, exclude, pruned=masks),
        dense_model=dense_model,
        file_bytes=len(content),
        metadata_bytes=len(content) - len(encoded[stage].to_bytes()),
    )


def prune_with_recipe(
    recipe: CompressionRecipe,
    model: nn.Module,
    weights: Params,
    data: Dataset,
    plan: DensityPlan | None = None,
    *,
    seed: int = 0,
    checkpoints: Path | None = None,
    report: Callable[[EpochMetrics], None] | None = None,
    progress: Progress | None = None,
) -> list[PruningRound]:
    """Prune `model` in place by the schedule of `recipe`, retraining after each round: the first stage.

    Args:
        recipe: Criterion, scope, schedule and the recipes of retraining.
        model: A trained module.
        weights: The weights of `model` to prune, by name.
        data: The data to retrain on.
        plan: The densities of the rounds, by default those of `plan_densities`.
        seed: Seed of ties, batch order and dropout.
        checkpoints: Directory of checkpoints, from which an interrupted call resumes.
        report: Called after each epoch.
        progress: Called after every batch.

    Returns:
        The masks and the epochs of each round.

    Raises:
        PrunusError: See `prune_and_retrain`.
    """
    plan = plan or plan_densities(recipe, weights)
    return prune_and_retrain(
        model,
        weights,
        data,
        plan.densities,
        [recipe.retrain] * (len(plan.densities) - 1) + [recipe.final_retrain],
        criterion=get_criterion(recipe.criterion, recipe.scope),
        scope=parse_scope(recipe.scope),
        within=plan.within,
        seed=seed,
        checkpoints=checkpoints,
        report=report,
        progress=progress,
    )


@dataclass(frozen=True)
class _Run:
    """A call of `compress`: what every stage of it uses."""

    model: nn.Module
    data: Dataset
    recipe: CompressionRecipe
    seed: int
    checkpoints: Path | None
    report: Report | None
    progress: Progress | None

    def announce(self, step: str) -> None:
        """Report the beginning of a step without measurable progress."""
        if self.progress is not None:
            self.progress(step, 0, 0)

    def report_of(self, stage: str) -> Callable[[EpochMetrics], None] | None:
        """The user's report, with the name of the stage filled in."""
        report = self.report
        return None if report is None else lambda epoch: report(stage, epoch)

    def train(
        self,
        recipe: Recipe,
        role: str,
        *,
        stage: str | None = None,
        constraint: CodebookConstraint | None = None,
    ) -> list[EpochMetrics]:
        """Train the model; `role` names the seed and the checkpoint."""
        return train(
            self.model,
            self.data,
            recipe,
            constraint=constraint,
            seed=derive_seed(self.seed, role),
            checkpoint=self.checkpoints / f"{role}.safetensors" if self.checkpoints else None,
            report=self.report_of(stage or role),
            progress=self.progress,
        )

    def measure(self, name: str, weights: Params, size: int) -> Stage:
        """Evaluate the model on the validation split, and count and bin its remaining weights."""
        state, histograms, num_kept = self.model.state_dict(), {}, 0
        for tensor in weights:
            values = state[tensor][state[tensor] != 0].cpu().numpy()
            # In float64, in which the range of neighboring floats can be divided into bins.
            counts, edges = np.histogram(values.astype(np.float64), bins=101)
            histograms[tensor] = (edges.tolist(), counts.tolist())
            num_kept += len(values)
        return Stage(name, size, num_kept, evaluate(self.model, self.data.validation), histograms)

    def encode(self, encodings: Sequence[EncodingConfig]) -> list[EncodedState]:
        """Encode the model once with each encoding, as `save` writes it."""
        return encode_tensors(clear_negative_zeros(self.model.state_dict())[0], encodings)

    def file_content(self, encoded: EncodedState) -> bytes:
        """The file of the encoded model, with all metadata."""
        num_cleared = clear_negative_zeros(self.model.state_dict())[1]
        metadata = {**file_metadata(num_cleared), **recipe_metadata(self.recipe, self.seed)}
        return encoded.to_bytes(
            model=getattr(self.model, "built_in", None), metadata={**metadata, "data": self.data.name}
        )


def _check_loads_back(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Load the file and compare it with `model` bit for bit."""
    into = None if hasattr(model, "built_in") else copied(model)
    state = load(path, into).state_dict()
    for name, tensor in clear_negative_zeros(model.state_dict())[0].items():
        if not torch.equal(as_bytes(tensor), as_bytes(state[name])):
            raise CorruptFileError(
                f"Expected {os.fspath(path)} to give {name} back bit for bit, got other values; check the disk."
            )


def _names_to_round(model: nn.Module, weights: Params, exclude: Sequence[str]) -> list[str]:
    """The parameters to round to half precision: trainable, not quantized, and not left out by a pattern.

    A tied parameter is left out if any of its names is.
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


def _rounded_to_half(model: nn.Module, names: Sequence[str]) -> Params:
    """The float32 parameters of these names, rounded to half precision where its range contains them."""
    limit = torch.finfo(torch.float16).max
    parameters = {name: model.get_parameter(name).detach() for name in names}
    return {
        name: p.half().float() + 0.0  # -0.0, to which small negative numbers are rounded, becomes 0.0
        for name, p in parameters.items()
        if p.dtype == torch.float32 and p.numel() and float(p.abs().max()) <= limit
    }
