"""A supermask as a spec: which weights are kept frozen, which kind of mask is learned over them, and how.

Source: Zhou et al. 2019, section 5; Ramanujan et al. 2020; Koster et al. 2022. The kinds' cards say what is whose.
"""

import time
import warnings
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from math import inf, sqrt
from statistics import mean, stdev
from typing import Any, ClassVar

from torch import nn

from prunus.errors import InvariantWarning, SpecError
from prunus.pruning.masks import num_to_keep, warn_if_empty
from prunus.pruning.prunable import prunable_weights
from prunus.registry import lookup
from prunus.seeds import derive_seed
from prunus.tickets.artifacts import RunArtifacts
from prunus.tickets.baseline import (
    BaselineSpec,
    StepReport,
    checkpoint_name,
    curve_rows,
    load_saved_state,
    pace,
)
from prunus.tickets.invariants import InvariantReport, count_kept
from prunus.tickets.monitor import TrainingMonitor, tensors_equal
from prunus.tickets.procedure import mask_key
from prunus.tickets.supermask.bernoulli import Bernoulli
from prunus.tickets.supermask.constraint import SupermaskConstraint, masks_from
from prunus.tickets.supermask.edge_popup import EdgePopup
from prunus.tickets.supermask.signed import Signed
from prunus.tickets.supermask.weights import WEIGHT_INITS, FrozenWeights
from prunus.training import Recipe, evaluate
from prunus.training.loop import Trainer, steps_per_epoch
from prunus.training.state import clone_tensors
from prunus.types import Dataset, Params, mask_density

LEVEL = 1
"""A supermask has one level."""

PUBLISHED = Recipe(
    epochs=2000,
    learning_rate=100.0,
    batch_size=250,
    optimizer="sgd",
    momentum=0.9,
    source="Zhou et al. 2019, their code's command for the fully connected network; the others' are not given",
)


@dataclass(frozen=True)
class LearnedSupermaskSpec:
    """A mask learned over the untrained network of a dense training; its weights are never trained."""

    kind: ClassVar[str] = "supermask"
    procedure: ClassVar[str] = "prunus.tickets.supermask.learned_supermask:run_supermask"
    source: ClassVar[None] = None
    """No criterion and no rates made its masks."""

    dense: BaselineSpec = field(default_factory=BaselineSpec)
    """Gives the network, its initialization, the data and their order."""
    mask: Bernoulli | EdgePopup | Signed = field(default_factory=Bernoulli)
    weights: str = "initial"
    """A key of WEIGHTS."""
    multiplier: float = 1.0
    """Of the weights."""
    scaled_fan: bool = False
    """Multiply by 1 / sqrt(density) as well, the density being that at the start (Ramanujan et al. 2020)."""
    recipe: Recipe = PUBLISHED
    """How the scores are trained."""
    samples: int = 10
    """Masks drawn for the final score, where they are drawn."""

    @property
    def foreign(self) -> bool:
        """Whether the network's initial weights differ in sign from those under the mask."""
        return self.weights not in ("initial", "signed_constant") or isinstance(self.mask, Signed)

    def dependencies(self) -> dict[str, BaselineSpec]:
        """The dense training, for its initialization and to be compared with."""
        return {"baseline": self.dense}

    def code_references(self) -> tuple[str, ...]:
        """None of its own."""
        return ()

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.dense.device

    def trained_levels(self) -> tuple[int]:
        """The one there is."""
        return (LEVEL,)

    def cost(self) -> tuple[str, float]:
        """Steps of training the scores. Raises SpecError where the settings make none."""
        self._check()
        unit = f"{self.dense.model}/{self.recipe.batch_size}/{self.device}/{self.mask.kind}"
        return unit, float(self.recipe.epochs * steps_per_epoch(self.recipe, self.dense.dataset().train))

    def pace(self) -> float:
        """Seconds a step takes here, measured over a few of them."""
        model = self.dense.network()
        learned = self.constraint(model, self.frozen(clone_tensors(prunable_weights(model))))
        learned.apply()
        return pace(Trainer(model, self.recipe, learned), self.dense.dataset())

    def frozen(self, first: Params) -> FrozenWeights:
        """The weights under the mask, made of the initial ones, or of seeds and the shapes of `first` alone."""
        multiplier = self.multiplier
        if self.scaled_fan and self.mask.density is not None:
            multiplier /= sqrt(self.mask.density)
        seed = derive_seed(self.dense.replicate, "supermask-weights")
        return lookup("kind of weights", WEIGHT_INITS, self.weights)(first, multiplier, seed)

    def constraint(self, model: nn.Module, frozen: FrozenWeights) -> SupermaskConstraint:
        """The mask over `model`, before its first draw."""
        return SupermaskConstraint(
            model, frozen.values, self.mask, derive_seed(self.dense.replicate, "supermask")
        )

    def run(
        self, shelf: RunArtifacts, needed: Mapping[str, RunArtifacts], report_steps: StepReport | None = None
    ) -> dict[str, Any]:
        """Train the scores; keep them, the most likely mask, and the network under it."""
        self._check()
        if not shelf.rows():
            began, model, data = time.perf_counter(), self.dense.network(), self.dense.dataset()
            first = load_saved_state(needed["baseline"], "state-0").model
            model.load_state_dict(first)
            frozen = self.frozen(clone_tensors(prunable_weights(model)))
            learned = self.constraint(model, frozen)
            watch = self.dense.train(
                model, shelf, LEVEL, constraint=learned, recipe=self.recipe, report_steps=report_steps
            )
            sampled = self._sampled(learned, model, data)
            factors = learned.put_likely()
            masks = masks_from(factors)
            warn_if_empty(masks)
            checks = self._checks(frozen, learned, model, first, factors)
            row = {
                "level": LEVEL,
                "steps": watch.curve[-1].step,
                **sampled,
                "most_likely_density": mask_density(masks),
                **{f"most_likely_{key}": value for key, value in _accuracies(model, data).items()},
                "seconds": round(time.perf_counter() - began, 2),
                "invariants": _receipt(checks, watch).to_json(),
            }
            shelf.save_tensors(
                "scores", {name: layer.scores.detach() for name, layer in learned.layers.items()}
            )
            shelf.save_masks(mask_key(LEVEL), masks)
            generated = {name: list(astuple(how)) for name, how in frozen.generated.items()}
            sizes = {name: factor.abs().amax().view(1) for name, factor in factors.items()}
            shelf.save_tensors("factors", sizes, {"generated": generated})
            shelf.save_tensors("final", model.state_dict())
            shelf.append_curve(curve_rows(LEVEL, watch))
            shelf.append_row(row)
        shelf.remove(checkpoint_name(LEVEL))
        return dict(shelf.rows()[0])

    def _sampled(self, learned: SupermaskConstraint, model: nn.Module, data: Dataset) -> dict[str, Any]:
        """The final score: the mean over fresh samples, with their spread and their mean density."""
        found, densities = [], []
        for number in range(self.samples if self.mask.random else 1):
            learned.sample(number)
            found.append(_accuracies(model, data))
            factors = {name: layer.factors for name, layer in learned.layers.items()}
            densities.append(mask_density(masks_from(factors)))
        means: dict[str, Any] = {key: mean(one[key] for one in found) for key in found[0]}
        spread = [one["final_test_accuracy"] for one in found]
        return {
            **means,
            "sample_spread": stdev(spread) if len(spread) > 1 else 0.0,
            "density": mean(densities),
        }

    def _checks(
        self,
        frozen: FrozenWeights,
        learned: SupermaskConstraint,
        model: nn.Module,
        first: Params,
        factors: Params,
    ) -> dict[str, bool]:
        """What must hold after the training, the model being under its most likely mask."""
        names, state = learned.weights, model.state_dict()
        drawn = self.frozen({name: first[name].to(self.device) for name in names}).values
        still = {name: tensor for name, tensor in state.items() if name not in {*names, *_moving(model)}}
        kept = {name: factor[factor != 0].abs() for name, factor in factors.items()}
        checks = {
            "the weights under the mask are as they were drawn": tensors_equal(learned.weights, drawn),
            "what is not masked is as it was initialized": tensors_equal(
                still, {name: first[name].to(self.device) for name in still}
            ),
            "a layer has one factor": all(bool((size == size[:1]).all()) for size in kept.values()),
            "what is evaluated is weight x mask x factor": all(
                bool((state[name] == drawn[name] * factor).all()) for name, factor in factors.items()
            ),
        }
        if isinstance(self.mask, EdgePopup):
            wanted = {name: num_to_keep(self.mask.density, weight.numel()) for name, weight in names.items()}
            checks["every layer keeps exactly its count"] = count_kept(masks_from(factors), wanted) == wanted
        return checks

    def _check(self) -> None:
        for name, value in (
            ("samples", self.samples),
            ("recipe.epochs", self.recipe.epochs),
            ("recipe.batch_size", self.recipe.batch_size),
        ):
            if value < 1:
                raise SpecError(f"{name} is {value}; it must be at least 1.")
        if self.recipe.patience is not None:
            raise SpecError("A mask is scored at the end of its training: leave `recipe.patience` at none.")
        if not 0 < self.multiplier < inf:
            raise SpecError(
                f"The multiplier is {self.multiplier}; weights are multiplied by a positive, finite number."
            )
        self.mask.check()
        if self.scaled_fan and self.mask.density is None:
            raise SpecError(f"A {self.mask.kind} mask has no density before it is learned to scale a fan by.")
        lookup("kind of weights", WEIGHT_INITS, self.weights)


def run_supermask(
    spec: LearnedSupermaskSpec,
    shelf: RunArtifacts,
    needed: Mapping[str, RunArtifacts],
    report_steps: StepReport | None = None,
) -> dict[str, Any]:
    """As `LearnedSupermaskSpec.run`."""
    return spec.run(shelf, needed, report_steps)


def _accuracies(model: nn.Module, data: Dataset) -> dict[str, float]:
    return {
        "final_validation_accuracy": evaluate(model, data.validation).accuracy,
        "final_test_accuracy": evaluate(model, data.test).accuracy,
    }


def _moving(model: nn.Module) -> set[str]:
    """The buffers that training moves: running statistics of norms."""
    return {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for buffer, _ in module.named_buffers(recurse=False)
    }


def _receipt(checks: Mapping[str, bool], watch: TrainingMonitor) -> InvariantReport:
    seen = {
        "weights are zero or weight x factor at every evaluation": watch.violations == 0,
        "training starts at its first step": watch.start is not None and watch.start.step == 0,
    }
    found = InvariantReport({**checks, **seen}, len(watch.curve))
    if not found.passed:
        warnings.warn(f"The receipt fails: {'; '.join(found.failed)}.", InvariantWarning, stacklevel=2)
    return found
