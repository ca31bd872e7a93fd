"""Deep Compression: prune → quantize by k-means and fine-tune the centroids → entropy-code → one file.

Source: Han, Mao & Dally 2016, sections 2 to 4. Differences from the paper: a range coder besides Huffman coding,
smaller parameters in half precision, and several rounds of pruning.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.compression.checks import PRUNED_ENCODING, check_compressible, stage_encodings
from prunus.compression.container import load
from prunus.compression.container.file_format import as_bytes
from prunus.compression.density_plan import plan_densities
from prunus.compression.half_precision import round_to_half
from prunus.compression.presets import COMPRESSION_RECIPES, CompressionRecipe
from prunus.compression.result import Compressed
from prunus.compression.save import clear_negative_zeros
from prunus.compression.stages import CompressionRun, StageReport
from prunus.errors import CorruptFileError
from prunus.files import check_writable, write_atomic
from prunus.models.checkpoints import stored_bytes
from prunus.modules import check_initialized
from prunus.pruning.prunable import skipped_parameters
from prunus.pruning.weights import copied, set_weights
from prunus.registry import lookup
from prunus.training.checkpoint import check_checkpoint_writable
from prunus.training.fit import Fit, check_fit
from prunus.training.sparse.backend import check_backend
from prunus.types import Dataset, Progress


def compress(
    model: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    data: Dataset,
    preset: str | CompressionRecipe = "default",
    train_first: bool = False,
    fit: Fit | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    report: StageReport | None = None,
    progress: Progress | None = None,
    backend: str = "auto",
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
        fit: A function (model, masks) that trains the model in place of the recipes of the preset, after each round of
            pruning and once for the centroids; it calls `masks.attach(optimizer)`.
        include: Shell patterns over the names of the weights to prune.
        exclude: Shell patterns over the names of the weights to leave out.
        seed: Seed of ties, batch order, dropout and codebooks.
        checkpoints: Directory of checkpoints, from which an interrupted call resumes bit-identically.
        report: Called after each epoch.
        progress: Called after every batch of a training, as by `train`; with a total of 0 before the other steps.
        backend: What retrains pruned networks, as for `prunus.train`; "sparse" holds for retraining alone.

    Returns:
        The compressed copy with its masks, quantized tensors and the measurements of each stage.

    Raises:
        NoPrunableWeightsError, TiedWeightsError, ModelError: The model cannot be compressed, or its weights are not
            float32.
        NonFiniteError: A tensor of the model holds NaN or infinity.
        DensityError: The scope cannot give the densities of the recipe.
        QuantizationError: The bits of the recipe are out of range or missing, or a name is not to be quantized.
        UnknownNameError, SpecError: A name in the recipe is unknown, a number is out of range, or checkpoints are given
            with `fit`.
        ContainerError: The model holds a tensor that no file may hold, or the file does not load back bit for bit.
        OutputError: The file cannot be written.
        TrainingError: Training diverged, a checkpoint is of another run, or `fit` changed a pruned weight.

    All errors but those of training and of writing are raised before any work.
    """
    recipe = preset
    if not isinstance(recipe, CompressionRecipe):
        recipe = lookup("recipe", COMPRESSION_RECIPES, recipe)
    check_backend(backend)
    check_initialized(model)
    copy = copied(model)
    weights = check_compressible(copy, data, recipe, include, exclude, trains_by_recipe=fit is None)
    folder = None if checkpoints is None else Path(checkpoints)
    check_fit(fit, checkpoints)
    _check_outputs(path, folder)
    run = CompressionRun(copy, weights, data, recipe, seed, folder, report, progress, fit, backend)

    dense_model = run.train_dense() if train_first else model
    plan = plan_densities(recipe, weights)
    stages = [run.measure("dense", stored_bytes(copy.state_dict()))]

    masks, pruning_epochs = run.prune(plan)
    (pruned,) = run.encode([PRUNED_ENCODING])
    stages.append(run.measure("pruned", len(pruned.to_bytes())))

    quantized, finetuning_epochs = run.quantize(masks)
    set_weights(copy, {name: tensor.dense() for name, tensor in quantized.items()})
    if recipe.half_precision_biases:
        set_weights(copy, round_to_half(copy, weights, exclude))

    run.announce("encoding the weights")
    encodings = stage_encodings(recipe)
    encoded = dict(zip(encodings, run.encode(list(encodings.values())), strict=True))
    measured = run.measure("quantized", 0)  # one network in three encodings
    stages += [replace(measured, name=name, bytes=len(e.to_bytes())) for name, e in encoded.items()]
    _restore_modes(copy, model)

    state = next(encoded[name] for name, encoding in encodings.items() if encoding == recipe.encoding)
    content = run.file_content(state)
    if path is not None:
        run.announce("writing the file")
        write_atomic(path, content)
        _check_loads_back(path, copy)
    return Compressed(
        model=copy,
        dense_model=dense_model,
        masks=masks,
        quantized=quantized,
        stages=stages,
        epochs=[("pruned", e) for e in pruning_epochs] + [("quantized", e) for e in finetuning_epochs],
        recipe=recipe,
        seed=seed,
        file_bytes=len(content),
        metadata_bytes=len(content) - len(state.to_bytes()),
        skipped=skipped_parameters(copy, include, exclude, pruned=masks),
    )


def _check_outputs(path: str | os.PathLike[str] | None, checkpoints: Path | None) -> None:
    """Check before the work that the file and the checkpoints can be written."""
    if checkpoints is not None:
        check_checkpoint_writable(checkpoints / "finetune.safetensors")
    if path is not None:
        check_writable(path, force=True)


def _restore_modes(copy: nn.Module, model: nn.Module) -> None:
    """Give the modules of `copy` the modes of those of `model`, and no gradients."""
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in copy.named_modules():
        module.training = modes.get(name, module.training)
    copy.zero_grad()


def _check_loads_back(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Load the file and compare it with `model` bit for bit."""
    into = None if hasattr(model, "built_in") else copied(model)
    state = load(path, into).state_dict()
    for name, tensor in clear_negative_zeros(model.state_dict())[0].items():
        if isinstance(tensor, Tensor) and not torch.equal(as_bytes(tensor), as_bytes(state[name])):
            raise CorruptFileError(
                f"Expected {os.fspath(path)} to hold {name} bit for bit, got other values; check the disk."
            )
