"""A learned supermask as data: which weights stay fixed, which kind of mask is learned over them, and how.

Source: Zhou et al. 2019, section 5; Ramanujan et al. 2020; Koster et al. 2022. `prunus.tickets.supermask.kinds` says
which rule is from which paper.
"""

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from math import isnan, sqrt
from statistics import mean, stdev
from typing import Any, ClassVar

import torch
from torch import nn

from prunus.errors import SpecError
from prunus.masks import mask_density
from prunus.models.safetensors_file import tied_names
from prunus.pruning.density import num_to_keep
from prunus.pruning.masks import warn_if_empty
from prunus.pruning.prunable import prunable_weights
from prunus.registry import lookup
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed
from prunus.tickets.baseline import (
    Baseline,
    BaselineRun,
    BaselineSpec,
    Needed,
    StepReport,
    check_full_training,
    checkpoint_name,
    masks_name,
)
from prunus.tickets.invariants import EXACT_COUNTS, InvariantReport, count_kept
from prunus.tickets.monitor import TrainingMonitor, tensors_equal
from prunus.tickets.supermask.constraint import SupermaskConstraint, masks_of_factors
from prunus.tickets.supermask.kinds import Bernoulli, EdgePopup, Signed
from prunus.tickets.supermask.weights import WEIGHT_INITS, FrozenWeights, check_fixed_weights
from prunus.training import Recipe, evaluate
from prunus.training.state import clone_tensors
from prunus.training.trainer import steps_per_epoch
from prunus.types import Dataset, Params

LEVEL = 1
"""The one level of a learned supermask."""

PUBLISHED = Recipe(
    epochs=2000,
    learning_rate=100.0,
    batch_size=250,
    optimizer="sgd",
    momentum=0.9,
    source="Zhou et al. 2019, their code's command for the fully connected network; the others' are not given",
)


@dataclass(frozen=True)
class LearnedSupermaskSpec(BaselineRun):
    """A mask learned over the untrained network of a baseline; the weights are never trained."""

    kind: ClassVar[str] = "supermask"
    procedure: ClassVar[str] = "prunus.tickets.supermask.learned_supermask:learn_supermask"

    baseline: BaselineSpec = field(default_factory=BaselineSpec)
    """Gives the network, its initialization, the data and their order."""
    mask: Bernoulli | EdgePopup | Signed = field(default_factory=Bernoulli)
    weights: str = "initial"
    """A key of WEIGHT_INITS."""
    multiplier: float = 1.0
    """Factor of the weights, above 0."""
    scaled_fan: bool = False
    """Whether weights are multiplied by 1 / sqrt(density at the start) as well (Ramanujan et al. 2020)."""
    recipe: Recipe = PUBLISHED
    """How the scores are trained."""
    samples: int = 10
    """Number of masks drawn for the final score, for kinds that draw masks."""

    def cost(self) -> tuple[str, float]:
        """Return the unit, and the number of training steps. Raises as `check` does."""
        self.check()
        unit = f"{self.baseline.model}/{self.recipe.batch_size}/{self.device}/{self.mask.kind}"
        return unit, float(self.recipe.epochs * steps_per_epoch(self.recipe, self.baseline.load_data().train))

    def pace(self) -> float:
        """Measure the seconds of one training step on this machine."""
        model = self.baseline.make_network()
        constraint = self.make_constraint(model, self.fixed_weights(clone_tensors(prunable_weights(model))))
        constraint.apply()
        return self.baseline.time_step(model, self.recipe, constraint)

    @property
    def trained_levels(self) -> tuple[int, ...]:
        """The one level."""
        return (LEVEL,)

    @property
    def changes_signs(self) -> bool:
        """Whether the weights under the mask have other signs than the network's initialization."""
        return self.weights not in ("initial", "signed_constant") or isinstance(self.mask, Signed)

    def fixed_weights(self, initial: Params) -> FrozenWeights:
        """Make the weights under the mask from initial weights, or from seeds and the shapes of `initial` only."""
        multiplier = self.multiplier
        if self.scaled_fan and self.mask.density is not None:
            multiplier /= sqrt(self.mask.density)
        seed = derive_seed(self.baseline.replicate, "supermask-weights")
        return lookup("kind of weights", WEIGHT_INITS, self.weights)(initial, multiplier, seed)

    def make_constraint(self, model: nn.Module, fixed: FrozenWeights) -> SupermaskConstraint:
        """Make the mask over a network, before its first draw.

        Args:
            model: The network, whose prunable weights are replaced when the constraint is applied.
            fixed: The weights under the mask, as `fixed_weights` made them.

        Returns:
            The constraint, with initial scores that depend on the replicate.

        Raises:
            ModelError: A weight has no parameter of its name and shape, or a mask cannot be learned over the parameter.
        """
        seed = derive_seed(self.baseline.replicate, "supermask")
        return SupermaskConstraint(model, fixed.values, self.mask, seed)

    def check(self) -> None:
        """Validate the settings. Raises SpecError, DensityError or UnknownNameError."""
        self.baseline.check_trained_by_recipe()
        check_full_training(self.recipe, "a mask is scored at the end", samples=self.samples)
        check_fixed_weights(self.weights, self.multiplier)
        self.mask.check()
        if self.scaled_fan and self.mask.density is None:
            raise SpecError(
                f"Expected a kind of mask with a known density for scaled_fan, got {self.mask.kind}, which has no "
                "density before it is learned."
            )


def learn_supermask(
    spec: LearnedSupermaskSpec,
    directory: RunDirectory,
    needed: Needed,
    report_steps: StepReport | None = None,
) -> Row:
    """Train the scores of a mask; save them, the most likely mask, and the network (Zhou et al. 2019, section 5).

    Args:
        spec: The settings.
        directory: Where results and checkpoints are written; a repeated call continues from there.
        needed: The directory of the finished "baseline".
        report_steps: Called with the number of training steps since the last call.

    Returns:
        The row of the training: the score over samples, and of the most likely mask, with the invariants.

    Raises:
        SpecError: If settings are out of range.
    """
    spec.check()
    if not directory.rows():
        started, model, data = time.perf_counter(), spec.baseline.make_network(), spec.baseline.load_data()
        initial = Baseline.load(needed["baseline"]).initial
        model.load_state_dict(initial)
        fixed = spec.fixed_weights(clone_tensors(prunable_weights(model)))
        constraint = spec.make_constraint(model, fixed)
        monitor = spec.baseline.train(
            model, directory, LEVEL, constraint=constraint, recipe=spec.recipe, report_steps=report_steps
        )
        sampled = _score_samples(spec, constraint, model, data)
        factors = constraint.apply_most_likely_mask()
        masks = masks_of_factors(factors)
        warn_if_empty(masks)
        metrics = {"density": mask_density(masks), **final_scores(model, data, spec.baseline.task)}
        row = {
            "level": LEVEL,
            "steps": monitor.curve[-1].step,
            **sampled,
            **{f"most_likely_{key}": value for key, value in metrics.items()},
            "invariants": _check_learned(spec, constraint, model, initial, factors, monitor).to_json(),
            "seconds": round(time.perf_counter() - started, 2),
        }
        scores = {name: layer.scores.detach() for name, layer in constraint.layers.items()}
        directory.save_tensors("scores", scores)
        directory.save_masks(masks_name(LEVEL), masks)
        layer_factors = {name: factor.abs().amax().view(1) for name, factor in factors.items()}
        generated = {name: list(astuple(tensor)) for name, tensor in fixed.seeded.items()}
        directory.save_tensors("factors", layer_factors, {"generated": generated})
        directory.save_tensors("final", model.state_dict())
        directory.append_curve(monitor.curve_rows(LEVEL))
        directory.append_row(row)
    directory.remove(checkpoint_name(LEVEL))
    return dict(directory.rows()[0])


def final_scores(model: nn.Module, data: Dataset, task: Mapping[str, Any]) -> dict[str, float]:
    """Evaluate a model on the validation and test splits, with the names of the row's metrics.

    Args:
        model: The network; the modes of its modules are restored afterwards.
        data: The data set.
        task: The arguments forward and loss of `evaluate`; empty for a classifier of labels.

    Returns:
        The accuracies in percent under "final_validation_accuracy" and "final_test_accuracy", unless labels are no
        classes; with a task also "final_validation_loss" and "final_test_loss".
    """
    splits = {"validation": data.validation, "test": data.test}
    evaluations = {name: evaluate(model, split, backend="dense", **task) for name, split in splits.items()}
    scores = {
        f"final_{name}_accuracy": e.accuracy for name, e in evaluations.items() if not isnan(e.accuracy)
    }
    return scores | {f"final_{name}_loss": e.loss for name, e in evaluations.items() if task}


def _score_samples(
    spec: LearnedSupermaskSpec, constraint: SupermaskConstraint, model: nn.Module, data: Dataset
) -> Row:
    """Return the mean scores over newly drawn masks, and their mean density.

    "sample_spread" is the standard deviation of the test accuracy, or of the test loss where there is no accuracy.
    """
    scores, densities = [], []
    for index in range(spec.samples if spec.mask.random else 1):
        constraint.apply_sample(index)
        scores.append(final_scores(model, data, spec.baseline.task))
        factors = {name: layer.factors for name, layer in constraint.layers.items()}
        densities.append(mask_density(masks_of_factors(factors)))
    metric = "final_test_accuracy" if "final_test_accuracy" in scores[0] else "final_test_loss"
    test = [sample[metric] for sample in scores]
    return {
        **{key: mean(sample[key] for sample in scores) for key in scores[0]},
        "sample_spread": stdev(test) if len(test) > 1 else 0.0,
        "density": mean(densities),
    }


def _check_learned(
    spec: LearnedSupermaskSpec,
    constraint: SupermaskConstraint,
    model: nn.Module,
    initial: Params,
    factors: Params,
    monitor: TrainingMonitor,
) -> InvariantReport:
    """Check what must hold after the training, while the model is under its most likely mask."""
    weights, state = constraint.weights, model.state_dict()
    initial = {name: tensor.to(state[name]) for name, tensor in initial.items()}
    made = spec.fixed_weights({name: initial[name] for name in weights}).values
    fixed = {name: value.to(weights[name].dtype) for name, value in made.items()}
    buffers = {name for name, _ in model.named_buffers()}  # a forward pass may change them, as in BatchNorm
    others = state.keys() - weights.keys() - tied_names(state).keys() - buffers
    nonzero = {name: factor[factor != 0].abs() for name, factor in factors.items()}
    are_initial = [torch.equal(state[name], initial[name]) for name in others]
    products = {name: (fixed[name] * factor).to(state[name].dtype) for name, factor in factors.items()}
    are_products = [bool((state[name] == product).all()) for name, product in products.items()]
    checks = {
        "the weights under the mask are as at the start": tensors_equal(weights, fixed),
        "all other tensors are as initialized": all(are_initial),
        "each layer has one factor": all(bool((factor == factor[:1]).all()) for factor in nonzero.values()),
        "the evaluated weights are weight x mask x factor": all(are_products),
        "weights are zero or weight x factor at every evaluation": monitor.violations == 0,
        "training starts at step 0": monitor.start is not None and monitor.start.step == 0,
    }
    if isinstance(spec.mask, EdgePopup):
        counts = {name: num_to_keep(spec.mask.density, weight.numel()) for name, weight in weights.items()}
        checks[EXACT_COUNTS] = count_kept(masks_of_factors(factors)) == counts
    return InvariantReport(checks, len(monitor.curve)).warn_if_failed()
