"""The stages of Deep Compression: train, prune, quantize, encode, and the measurements of each."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from prunus.compression.checks import bits_by_name, check_finite_state
from prunus.compression.container import EncodedState, EncodingConfig, encode_tensors
from prunus.compression.density_plan import DensityPlan, plan_densities
from prunus.compression.presets import CompressionRecipe
from prunus.compression.quantization import CodebookConstraint, CodebookTensor, quantize_weights
from prunus.compression.result import Stage
from prunus.compression.save import clear_negative_zeros, file_metadata, recipe_metadata
from prunus.compression.without_training import CalibratedLayers
from prunus.data.examples import Examples, sample_examples
from prunus.masks import Masks, all_kept
from prunus.modules import copied, find_parameter, unwrapped
from prunus.pruning.methods import pruning_method
from prunus.pruning.obs.hessian import DAMPING, layer_hessians
from prunus.pruning.recalibrate import recalibrate_batchnorm
from prunus.pruning.retrain import PruningRound, prune_and_retrain
from prunus.pruning.scopes import parse_scope
from prunus.pruning.views import layer_view
from prunus.pruning.weights import set_weights
from prunus.seeds import derive_seed
from prunus.training import EpochMetrics, Recipe, evaluate, train
from prunus.training.fit import Fit, train_with
from prunus.types import Dataset, MaskDict, Params, Progress

StageReport = Callable[[str, EpochMetrics], None]
"""Called after each epoch with the name of the stage."""


def prune_with_recipe(
    recipe: CompressionRecipe,
    model: nn.Module,
    weights: Params,
    data: Dataset,
    plan: DensityPlan | None = None,
    *,
    fit: Fit | None = None,
    **options: Any,
) -> list[PruningRound]:
    """Prune `model` in place by the schedule of `recipe`, retraining after each round: the first stage.

    Args:
        recipe: Criterion, scope, schedule and the recipes of retraining.
        model: A trained module.
        weights: The weights of `model` to prune, by name.
        data: The data to retrain on.
        plan: The densities of the rounds, by default those of `plan_densities`.
        fit: As for `prune_and_retrain`, in the place of the recipes of retraining.
        options: Other arguments of `prune_and_retrain`: seed, checkpoints, backend, and so on.

    Returns:
        The masks and the epochs of each round.

    Raises:
        PrunusError: See `prune_and_retrain`.
    """
    plan = plan or plan_densities(recipe, weights)
    recipes = [recipe.retrain] * (len(plan.densities) - 1) + [recipe.final_retrain]
    return prune_and_retrain(
        model, data, plan.densities, [] if fit else recipes,
        fit=fit, criterion=recipe.criterion, scope=recipe.scope, include=list(weights), within=plan.within,
        **options,
    )  # fmt: skip


@dataclass(frozen=True)
class CompressionRun:
    """The arguments and steps of one compression, which change `model`."""

    model: nn.Module
    names: Collection[str]
    """Of the weights to compress."""
    data: Dataset
    recipe: CompressionRecipe
    seed: int
    checkpoints: Path | None
    report: StageReport | None
    progress: Progress | None
    fit: Fit | None = None
    backend: str = "auto"
    layers: CalibratedLayers | None = None
    """Of the network before compression, where it is compressed without training."""
    recalibrate: bool = False
    """Whether to estimate the statistics of BatchNorm layers again after each step."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """The arguments forward, loss and metric of `evaluate`."""

    @property
    def weights(self) -> Params:
        """The weights to compress, by name, as parameters that the model has now: `fit` may replace them."""
        return {name: find_parameter(self.model, name) for name in self.names}

    @property
    def forward_and_loss(self) -> dict[str, Any]:
        """The arguments forward and loss of `train`."""
        return {name: self.task.get(name) for name in ("forward", "loss")}

    @property
    def general_backend(self) -> str:
        """The backend of what the sparse one may not be able to compute: dense weights, centroids, evaluations."""
        return "dense" if self.backend == "dense" else "auto"

    def announce(self, step: str) -> None:
        """Report the beginning of a step without measurable progress."""
        if self.progress is not None:
            self.progress(step, 0, 0)

    def report_of(self, stage: str) -> Callable[[EpochMetrics], None] | None:
        """The user's report, with the name of the stage filled in."""
        report = self.report
        return None if report is None else lambda epoch: report(stage, epoch)

    def train(
        self, recipe: Recipe, role: str, stage: str, constraint: CodebookConstraint | None = None
    ) -> list[EpochMetrics]:
        """Train the model in place.

        Args:
            recipe: The recipe of the training.
            role: The role that the seed is derived from; also the name of the checkpoint, without its suffix.
            stage: The name of the stage that the report is given.
            constraint: The shared weights, whose centroids are trained in their place; None: every weight is trained by
                itself.

        Returns:
            The metrics of each epoch.

        Raises:
            TrainingError: The training diverged, or the checkpoint is of another run.
        """
        if self.fit is not None:
            masks = Masks(self.model, all_kept(self.weights))
            train_with(self.fit, self.model, masks if constraint is None else constraint)
            return []
        return train(
            self.model,
            self.data,
            recipe,
            constraint=constraint,
            seed=derive_seed(self.seed, role),
            checkpoint=self.checkpoints / f"{role}.safetensors" if self.checkpoints else None,
            report=self.report_of(stage),
            progress=self.progress,
            backend=self.general_backend,
            **self.forward_and_loss,
        )

    def train_dense(self) -> nn.Module:
        """Train the dense network and return a copy of it."""
        self.train(self.recipe.dense, "dense", "dense")
        check_finite_state(self.model)
        return copied(self.model)

    def calibrate(self) -> CalibratedLayers:
        """Collect the Hessians of the layers of the network as it is."""
        method, scope = pruning_method(self.recipe.criterion), parse_scope(self.recipe.scope)
        model, examples = copied(self.model), self._calibration_examples()
        weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
        view = layer_view(model, weights)
        with view.names_of_model():
            hessians = layer_hessians(
                view.model, view.weights(weights), examples, damping=getattr(method, "damping", DAMPING),
                forward=self.task.get("forward"), progress=self.progress,
            )  # fmt: skip
        return CalibratedLayers(
            model,
            view,
            weights,
            examples,
            method,
            scope,
            hessians,
            self.forward_and_loss,
            self.seed,
            self.progress,
        )

    def _calibration_examples(self) -> Examples:
        num_examples = pruning_method(self.recipe.criterion).num_examples
        return sample_examples(self.data.train, num_examples, derive_seed(self.seed, "criterion", 1))

    def prune(self, plan: DensityPlan) -> tuple[MaskDict, list[EpochMetrics]]:
        """Prune, and retrain if there is training. A remaining weight of exactly zero counts as pruned."""
        if self.layers is None:
            rounds = prune_with_recipe(
                self.recipe, self.model, self.weights, self.data, plan,
                fit=self.fit, seed=self.seed, checkpoints=self.checkpoints, report=self.report_of("pruned"),
                progress=self.progress, backend=self.backend, **self.forward_and_loss,
            )  # fmt: skip
            masks, epochs = rounds[-1].masks, [epoch for round_ in rounds for epoch in round_.epochs]
        else:
            result = self.layers.prune(plan.densities[-1], plan.within)
            set_weights(self.model, result.weights)
            masks, epochs = result.masks, []
        self._recalibrate()
        return {name: mask & (self.weights[name].detach() != 0) for name, mask in masks.items()}, epochs

    def quantize(self, masks: MaskDict) -> tuple[dict[str, CodebookTensor], list[EpochMetrics]]:
        """Quantize the remaining weights: by k-means and training of the centroids, or by the output errors."""
        self.announce("quantizing the weights")
        bits, epochs = bits_by_name(self.model, list(masks), self.recipe.bits), []
        if self.layers is None:
            quantized = quantize_weights(
                self.weights, masks, bits, self.recipe.kmeans_init, self.seed,
                reserve_zero=self.recipe.reserve_zero,
            )  # fmt: skip
            constraint = CodebookConstraint(self.model, quantized)
            epochs = self.train(self.recipe.finetune, "finetune", "quantized", constraint)
            quantized = constraint.result()
        else:
            quantized = self.layers.quantize(
                self.weights, masks, bits, self.recipe.kmeans_init, reserve_zero=self.recipe.reserve_zero
            )
        set_weights(self.model, {name: tensor.dense() for name, tensor in quantized.items()})
        self._recalibrate()
        return quantized, epochs

    def _recalibrate(self) -> None:
        if self.recalibrate:
            examples, forward = self._calibration_examples(), self.task.get("forward")
            recalibrate_batchnorm(self.model, examples, forward=forward, progress=self.progress)

    def measure(self, stage: str, size: int) -> Stage:
        """Evaluate the model on the validation split, and count and bin its remaining weights.

        Args:
            stage: The name of the stage, a key of `STAGE_LABELS`.
            size: The size of the network after the stage, in bytes; see `Stage`.

        Returns:
            The measurements; histograms have 101 bins and leave out weights that are zero.
        """
        state, histograms, num_kept = self.model.state_dict(), {}, 0
        for name in self.names:
            # In float64, in which the range of neighboring floats can be divided into bins.
            values = state[name][state[name] != 0].double().cpu().numpy()
            counts, edges = np.histogram(values, bins=101)
            histograms[name] = (edges.tolist(), counts.tolist())
            num_kept += len(values)
        validation = evaluate(self.model, self.data.validation, backend=self.general_backend, **self.task)
        return Stage(stage, size, num_kept, validation, histograms)

    def encode(self, encodings: Sequence[EncodingConfig]) -> list[EncodedState]:
        """Encode the model once with each encoding, as `save` writes it."""
        return encode_tensors(clear_negative_zeros(unwrapped(self.model).state_dict())[0], encodings)

    def file_content(self, encoded: EncodedState) -> bytes:
        """The file of the encoded model, with all metadata."""
        model = unwrapped(self.model)
        num_cleared = clear_negative_zeros(model.state_dict())[1]
        metadata = {**file_metadata(num_cleared, model), **recipe_metadata(self.recipe, self.seed)}
        return encoded.to_bytes(
            model=getattr(model, "built_in", None), metadata={**metadata, "data": self.data.name}
        )
