"""A supermask as a spec: which weights are kept frozen, which kind of mask is learned over them, and how.

Source: Zhou et al. 2019, section 5; Ramanujan et al. 2020; Koster et al. 2022. The kinds' cards say what is whose.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from math import inf, sqrt
from statistics import mean, stdev
from typing import Any, ClassVar

from torch import nn

from prunus.errors import ReceiptWarning, SpecError
from prunus.nouns import Dataset, Params, density_of
from prunus.pruning.masks import count, warn_if_emptied
from prunus.pruning.prunable import prunable
from prunus.seeds import derive
from prunus.tables import look_up
from prunus.tickets.dense import Dense, StepReport, curve_rows, pace, state_on, training_name
from prunus.tickets.invariants import Receipt, count_kept
from prunus.tickets.procedure import mask_name
from prunus.tickets.shelf import Shelf
from prunus.tickets.supermask.bernoulli import Bernoulli
from prunus.tickets.supermask.edge_popup import EdgePopup
from prunus.tickets.supermask.learned import Learned, masks_of
from prunus.tickets.supermask.signed import Signed
from prunus.tickets.supermask.weights import WEIGHTS, Frozen
from prunus.tickets.watch import Watch, same
from prunus.training import Recipe, evaluate
from prunus.training.loop import Training, steps_per_epoch
from prunus.training.state import copies

LEVEL = 1
"""A supermask has one level."""

PUBLISHED = Recipe(
    epochs=2000,
    learning_rate=100.0,
    batch_size=250,
    optimiser="sgd",
    momentum=0.9,
    source="Zhou et al. 2019, their code's command for the fully connected network; the others' are not given",
)


@dataclass(frozen=True)
class Supermask:
    """A mask learned over the untrained network of a dense training; its weights are never trained."""

    kind: ClassVar[str] = "supermask"
    source: ClassVar[None] = None
    """No criterion and no rates made its masks."""

    dense: Dense = field(default_factory=Dense)
    """Gives the network, its initialisation, the data and their order."""
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

    def needs(self) -> tuple[Dense]:
        """The dense training, for its initialisation and to be compared with."""
        return (self.dense,)

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
        learned = self.constraint(model, self.frozen(copies(prunable(model))))
        learned.hold()
        return pace(Training(model, self.recipe, learned), self.dense.dataset())

    def frozen(self, first: Params) -> Frozen:
        """The weights under the mask, made of the initial ones, or of seeds and the shapes of `first` alone."""
        multiplier = self.multiplier
        if self.scaled_fan and self.mask.density is not None:
            multiplier /= sqrt(self.mask.density)
        seed = derive(self.dense.replicate, "supermask-weights")
        return look_up("kind of weights", WEIGHTS, self.weights)(first, multiplier, seed)

    def constraint(self, model: nn.Module, frozen: Frozen) -> Learned:
        """The mask over `model`, before its first draw."""
        return Learned(model, frozen.values, self.mask, derive(self.dense.replicate, "supermask"))

    def run(
        self, shelf: Shelf, needed: Sequence[Shelf], report_steps: StepReport | None = None
    ) -> dict[str, Any]:
        """Train the scores; keep them, the most likely mask, and the network under it."""
        self._check()
        if not shelf.rows():
            began, model, data = time.perf_counter(), self.dense.network(), self.dense.dataset()
            first = state_on(needed[0], "state-0").model
            model.load_state_dict(first)
            frozen = self.frozen(copies(prunable(model)))
            learned = self.constraint(model, frozen)
            watch = self.dense.train(
                model, shelf, LEVEL, constraint=learned, recipe=self.recipe, report_steps=report_steps
            )
            sampled = self._sampled(learned, model, data)
            factors = learned.put_likely()
            masks = masks_of(factors)
            warn_if_emptied(masks)
            checks = self._checks(frozen, learned, model, first, factors)
            row = {
                "level": LEVEL,
                "steps": watch.curve[-1].step,
                **sampled,
                "likely_density": density_of(masks),
                **{f"likely_{key}": value for key, value in _accuracies(model, data).items()},
                "seconds": round(time.perf_counter() - began, 2),
                "receipt": _receipt(checks, watch).to_json(),
            }
            shelf.put("scores", {name: layer.scores.detach() for name, layer in learned.layers.items()})
            shelf.put_masks(mask_name(LEVEL), masks)
            generated = {name: list(astuple(how)) for name, how in frozen.generated.items()}
            sizes = {name: factor.abs().amax().view(1) for name, factor in factors.items()}
            shelf.put("factors", sizes, {"generated": generated})
            shelf.put("final", model.state_dict())
            shelf.append_curve(curve_rows(LEVEL, watch))
            shelf.append(row)
        shelf.drop(training_name(LEVEL))
        return dict(shelf.rows()[0])

    def _sampled(self, learned: Learned, model: nn.Module, data: Dataset) -> dict[str, Any]:
        """The final score: the mean over fresh samples, with their spread and their mean density."""
        found, densities = [], []
        for number in range(self.samples if self.mask.random else 1):
            learned.sample(number)
            found.append(_accuracies(model, data))
            factors = {name: layer.factors for name, layer in learned.layers.items()}
            densities.append(density_of(masks_of(factors)))
        means: dict[str, Any] = {key: mean(one[key] for one in found) for key in found[0]}
        spread = [one["final_test_accuracy"] for one in found]
        return {
            **means,
            "sample_spread": stdev(spread) if len(spread) > 1 else 0.0,
            "density": mean(densities),
        }

    def _checks(
        self, frozen: Frozen, learned: Learned, model: nn.Module, first: Params, factors: Params
    ) -> dict[str, bool]:
        """What must hold after the training, the model being under its most likely mask."""
        names, state = learned.weights, model.state_dict()
        drawn = self.frozen({name: first[name].to(self.device) for name in names}).values
        still = {name: tensor for name, tensor in state.items() if name not in {*names, *_moving(model)}}
        kept = {name: factor[factor != 0].abs() for name, factor in factors.items()}
        checks = {
            "the weights under the mask are as they were drawn": same(learned.weights, drawn),
            "what is not masked is as it was initialised": same(
                still, {name: first[name].to(self.device) for name in still}
            ),
            "a layer has one factor": all(bool((size == size[:1]).all()) for size in kept.values()),
            "what is evaluated is weight x mask x factor": all(
                bool((state[name] == drawn[name] * factor).all()) for name, factor in factors.items()
            ),
        }
        if isinstance(self.mask, EdgePopup):
            wanted = {name: count(self.mask.density, weight.numel()) for name, weight in names.items()}
            checks["every layer keeps exactly its count"] = count_kept(masks_of(factors), wanted) == wanted
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
        look_up("kind of weights", WEIGHTS, self.weights)


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


def _receipt(checks: Mapping[str, bool], watch: Watch) -> Receipt:
    seen = {
        "weights are zero or weight x factor at every evaluation": watch.violations == 0,
        "training starts at its first step": watch.start is not None and watch.start.step == 0,
    }
    found = Receipt({**checks, **seen}, len(watch.curve))
    if not found.passed:
        warnings.warn(f"The receipt fails: {'; '.join(found.failed)}.", ReceiptWarning, stacklevel=2)
    return found
