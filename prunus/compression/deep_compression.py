"""Deep Compression: prune → quantize by k-means and fine-tune the centroids → entropy-code → one file.

Source: Han, Mao & Dally 2016, sections 2 to 4. Differences from the paper: a range coder besides Huffman coding,
smaller parameters in half precision, and several rounds of pruning.
"""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.compression.accuracy_budget import BITS, DENSITIES, Trial, find_smallest
from prunus.compression.checks import (
    PRUNED_ENCODING,
    check_compressible,
    check_finite_state,
    check_options,
    stage_encodings,
)
from prunus.compression.container import load
from prunus.compression.container.file_format import as_bytes
from prunus.compression.density_plan import DensityPlan, plan_densities
from prunus.compression.half_precision import round_to_half
from prunus.compression.presets import CompressionRecipe, compression_recipe
from prunus.compression.result import Compressed, Stage
from prunus.compression.save import clear_negative_zeros
from prunus.compression.stages import CompressionRun, StageReport
from prunus.compression.without_training import CalibratedLayers
from prunus.errors import CorruptFileError, NoEffectWarning, SpecError
from prunus.files import check_writable, write_atomic
from prunus.models.checkpoints import stored_bytes
from prunus.modules import check_initialized, copied, uncompiled
from prunus.pruning.prunable import skipped_parameters
from prunus.registry import check_callbacks
from prunus.training.checkpoint import check_checkpoint_writable
from prunus.training.evaluation_totals import MetricFunction, score_drop
from prunus.training.fit import Fit, check_fit
from prunus.training.losses import Loss, LossFunction
from prunus.training.outputs import Forward
from prunus.training.sparse.backend import check_backend
from prunus.types import Dataset, Progress


def compress(
    model: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    data: Dataset,
    preset: str | CompressionRecipe | None = None,
    train: bool = True,
    train_first: bool = False,
    recalibrate: bool = False,
    max_accuracy_drop: float | None = None,
    fit: Fit | None = None,
    forward: Forward | None = None,
    loss: str | Loss | LossFunction | None = None,
    metric: MetricFunction | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    report: StageReport | None = None,
    progress: Progress | None = None,
    backend: str = "auto",
    **settings: Any,
) -> Compressed:
    """Compress a copy of `model` by Deep Compression and write it to `path`; `model` is not modified.

    Without training, weights are pruned and quantized so that the outputs of the layers change little on calibration
    examples of the training split; see `without_training`. Layers whose weight is computed by a parametrization are
    refused then.

    What is not compressed:

    - Weights that are exactly zero at the start count as pruned and stay zero. Densities are fractions of all weights,
      so a density above that of the model prunes nothing (NoEffectWarning).
    - Parameters with `requires_grad=False` and buffers are left exactly as they are. Frozen weights that the patterns
      select are left out with a warning (NoEffectWarning).
    - Parameters that an `exclude` pattern matches, and weights that `include` does not match, are trained, but neither
      pruned nor rounded. Other parameters, such as biases, and the statistics of BatchNorm layers whose parameters are
      trainable, are rounded to half precision if the recipe says so.

    A layer that loses all of its weights (EmptyLayerWarning) is stored as zeros.

    Args:
        model: Any module, as for `train` and `evaluate`. Weights in half precision are trained in float32, and
            rounded after each stage; all weights are quantized as float32.
        path: The file to write; it is loaded back and compared bit for bit. None writes no file.
        data: The training split trains or calibrates, the validation split is evaluated after each stage; the test
            split is unused.
        preset: A recipe, or its key in `COMPRESSION_RECIPES`; None: "default", and "without-training" if nothing is
            trained.
        train: Whether to retrain pruned weights and train centroids. False: the given weights are pruned and quantized.
        train_first: Whether to train the model by the recipe first; otherwise its weights must be trained already.
        recalibrate: Whether to estimate the statistics of BatchNorm layers again after pruning and after quantizing.
        max_accuracy_drop: Find the density, and the bits unless they are a setting, of the smallest file that loses at
            most this many percentage points of validation accuracy, or units of `metric`, in about nine trials.
        fit: A function (model, masks) that trains the model in place of the recipes of the preset, after each round of
            pruning, once for the centroids, and first if `train_first`; it calls `masks.attach(optimizer)`.
        forward: (model, (inputs, labels)) -> outputs, as for `train` and `evaluate`.
        loss: The loss of training, of the validation split and of methods that differentiate one, as for `train`.
        metric: (outputs, batch) -> the mean of a metric, higher is better, for tasks without classes.
        include: Shell patterns over the names of the weights to prune.
        exclude: Shell patterns over the names of the weights to leave out.
        seed: Seed of ties, batch order, dropout, codebooks and calibration examples.
        checkpoints: Directory of checkpoints, from which an interrupted call resumes bit-identically.
        report: Called after each epoch of a recipe.
        progress: Called after every batch of a training, as by `train`; with a total of 0 before the other steps.
        backend: What retrains pruned networks, as for `prunus.train`; "sparse" applies to retraining only, and not to
            `fit`.
        settings: Settings of the recipe to change, such as density=0.3, bits=4 or criterion="obs"; see
            `change_recipe`.

    Returns:
        The compressed copy with its masks, quantized tensors and the measurements of each stage.

    Raises:
        NoPrunableWeightsError, TiedWeightsError, ModelError: The model cannot be compressed.
        NonFiniteError: A parameter of the model holds NaN or infinity, also after `fit`.
        DensityError: The scope cannot reach the densities of the recipe.
        QuantizationError: The bits of the recipe are out of range or missing, or a name is not to be quantized.
        UnknownNameError, SpecError: A name is unknown, a number is out of range, or an option has no effect.
        ContainerError: The model holds a tensor that no file may hold, or the file does not load back bit for bit.
        OutputError: The file cannot be written.
        TrainingError: Training diverged, a checkpoint is of another run, or `fit` changed a pruned weight.
        AccuracyError: No settings that were tried lose at most `max_accuracy_drop` points.

    All errors but those of training, of writing and of accuracy are raised before any work.
    """
    check_backend(backend)
    check_callbacks(report=report, progress=progress)
    recipe = compression_recipe(preset, train=train, **settings)
    retrained_by = backend if backend == "sparse" else None
    check_options(
        recipe, settings,
        train=train, max_accuracy_drop=max_accuracy_drop, has_metric=metric is not None,
        training={
            "train_first": train_first or None, "checkpoints": checkpoints, "fit": fit, "backend": retrained_by
        },
    )  # fmt: skip
    model = uncompiled(model)
    check_initialized(model)
    copy = copied(model)
    task = {"forward": forward, "loss": loss, "metric": metric}
    trains_by_recipe = train and fit is None
    calibrates = not train or max_accuracy_drop is not None
    weights = check_compressible(
        copy, data, recipe, include, exclude,
        trains_by_recipe=trains_by_recipe, calibrates=calibrates, task=task,
    )  # fmt: skip
    folder = None if checkpoints is None else Path(checkpoints)
    check_fit(fit, checkpoints=checkpoints, report=report)
    if folder is not None:
        check_checkpoint_writable(folder / "finetune.safetensors")
    if path is not None:
        check_writable(path, force=True)
    run = CompressionRun(
        copy, weights, data, recipe, seed, folder, report, progress, fit, backend,
        recalibrate=recalibrate, task=task,
    )  # fmt: skip
    dense_model = run.train_dense() if train_first else model
    plan = plan_densities(recipe, run.weights)
    dense = run.measure("dense", stored_bytes(copy.state_dict()))
    score = dense.validation.accuracy if metric is None else dense.validation.metric
    if max_accuracy_drop is not None and not math.isfinite(score or 0):
        raise SpecError(
            f"Expected a finite metric of the dense model with max_accuracy_drop, got {score}; pass metric=lambda "
            "outputs, batch: ..., for which higher is better, if the labels are not classes."
        )
    layers = run.calibrate() if calibrates else None
    run = replace(run, layers=None if train else layers)
    skipped = skipped_parameters(copy, include, exclude, pruned=weights)
    steps = partial(_compress, dense=dense, dense_model=dense_model, exclude=exclude, skipped=skipped)
    if layers is None or max_accuracy_drop is None:
        result, content = steps(run, plan)
    else:
        bits = BITS if settings.get("bits") is None else None
        result, content = _search(run, layers, steps, max_accuracy_drop, bits)
    result.model.zero_grad()
    if path is not None:
        run.announce("writing the file")
        write_atomic(path, content)
        _check_loads_back(path, result.model)
    return result


def _compress(
    run: CompressionRun,
    plan: DensityPlan,
    *,
    dense: Stage,
    dense_model: nn.Module,
    exclude: Sequence[str],
    skipped: Mapping[str, str],
) -> tuple[Compressed, bytes]:
    """Compress the model of `run` in place, and return it with the content of its file."""
    masks, pruning_epochs = run.prune(plan)
    (pruned,) = run.encode([PRUNED_ENCODING])
    stages = [dense, run.measure("pruned", len(pruned.to_bytes()))]

    quantized, finetuning_epochs = run.quantize(masks)
    check_finite_state(run.model)  # `fit` is a function of the user
    if run.recipe.half_precision_biases:
        round_to_half(run.model, run.weights, exclude)

    run.announce("encoding the weights")
    encodings = stage_encodings(run.recipe)
    encoded = dict(zip(encodings, run.encode(list(encodings.values())), strict=True))
    measured = run.measure("quantized", 0)  # one network in three encodings
    stages += [replace(measured, name=name, bytes=len(e.to_bytes())) for name, e in encoded.items()]

    state = next(encoded[name] for name, encoding in encodings.items() if encoding == run.recipe.encoding)
    content = run.file_content(state)
    result = Compressed(
        model=run.model,
        dense_model=dense_model,
        masks=masks,
        quantized=quantized,
        stages=stages,
        epochs=[("pruned", e) for e in pruning_epochs] + [("quantized", e) for e in finetuning_epochs],
        recipe=run.recipe,
        seed=run.seed,
        file_bytes=len(content),
        metadata_bytes=len(content) - len(state.to_bytes()),
        skipped=skipped,
        is_trained=run.layers is None,
    )
    return result, content


def _search(
    run: CompressionRun,
    layers: CalibratedLayers,
    steps: Callable[[CompressionRun, DensityPlan], tuple[Compressed, bytes]],
    max_drop: float,
    bits: Sequence[int] | None,
) -> tuple[Compressed, bytes]:
    """The smallest file that loses at most `max_drop` points, of densities divided over the layers by their errors."""
    densities = layers.allocations(DENSITIES)
    best: tuple[Compressed, bytes] | None = None

    def attempt(density: float, number: int | None) -> Trial:
        nonlocal best
        run.announce(f"density {density:g}" + (f", {number} bits" if number else ""))
        recipe = run.recipe.replace(density=density, scope="layer", bits=number or run.recipe.bits)
        model = copied(run.model)
        folder = run.checkpoints and run.checkpoints / f"density-{density:g}-bits-{number or 'recipe'}"
        copy = replace(run, model=model, recipe=recipe, checkpoints=folder)
        with warnings.catch_warnings():
            # Some bits may represent all weights of a layer.
            warnings.simplefilter("ignore", NoEffectWarning)
            done = steps(copy, plan_densities(recipe.replace(density=densities[density]), copy.weights))
        before, *_, after = (stage.validation for stage in done[0].stages)
        drop = score_drop(before.accuracy, after.accuracy)
        if before.metric is not None and after.metric is not None:
            drop = score_drop(before.metric, after.metric)
        if drop <= max_drop and (best is None or len(done[1]) < len(best[1])):
            best = done
        return Trial(density, number, drop, len(done[1]))

    trials = find_smallest(attempt, list(densities), bits or [None], max_drop)
    assert best is not None
    return replace(best[0], trials=trials), best[1]


def _check_loads_back(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Load the file and compare it with `model` bit for bit."""
    into = None if hasattr(model, "built_in") else copied(model)
    state = load(path, into).state_dict()
    for name, tensor in clear_negative_zeros(model.state_dict())[0].items():
        if isinstance(tensor, Tensor) and not torch.equal(as_bytes(tensor), as_bytes(state[name])):
            raise CorruptFileError(
                f"Expected {os.fspath(path)} to hold {name} bit for bit, got other values; check the disk."
            )
