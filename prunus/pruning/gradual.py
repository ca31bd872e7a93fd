"""Gradual pruning: prune a model in rounds while it trains, in any training loop."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import CheckpointError, SpecError, StatisticsError
from prunus.masks import Masks, all_kept
from prunus.modules import uncompiled
from prunus.pruning.methods import pruning_method
from prunus.pruning.prune import check_prune, check_prune_options, prune
from prunus.pruning.schedules import Schedule, densities_of
from prunus.pruning.scopes import parse_scope, shapes_of
from prunus.pruning.selection import select_weights
from prunus.registry import check_callbacks
from prunus.seeds import derive_seed
from prunus.training.state import add_prefix, strip_prefix
from prunus.types import Density, Params


class GradualPruning:
    """Prunes a model by a schedule: round k after `begin + k * every` steps, for k = 1 to `rounds`.

    The masks of each round are nested in those of the round before, and attached to the optimizer.

    Source: Zhu & Gupta 2017, eq. 1 ("cubic", where `begin` is t₀, `rounds` is n and `every` is Δt); Han et al. 2015,
    section 3.4 ("iterative": every round prunes the same fraction of the remaining weights).

    Example:
        >>> model = nn.Linear(8, 8)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> pruning = GradualPruning("cubic", model, 0.25, optimizer, rounds=3, every=2)
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     if pruning.step():
        ...         print(pruning.num_steps, pruning.density)
        2 0.46875
        4 0.28125
        6 0.25
    """

    def __init__(
        self,
        schedule: str | Schedule,
        model: nn.Module,
        density: Density,
        optimizer: torch.optim.Optimizer,
        *,
        rounds: int,
        every: int,
        begin: int = 0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Check the settings; nothing is pruned before `step`.

        Args:
            schedule: A key of SCHEDULES ("cubic", "iterative"), or a function (density, rounds) -> densities.
            model: Any module.
            density: The fraction of weights to keep after the last round, in (0, 1]; one, or one per name.
            optimizer: The optimizer that trains the model; it may have been made before or after.
            rounds: The number of rounds, at least 1.
            every: The number of steps from one round to the next, at least 1.
            begin: The number of steps before the first of these intervals, at least 0.
            seed: Seed of random criteria, ties and examples; each round has its own.
            options: Arguments of `prunus.prune`: criterion, scope, calibration, include, exclude, and so on.

        Raises:
            DensityError: The scope cannot reach one of the densities, or the number of rounds is below 1.
            UnknownNameError: No schedule or scope has that name.
            ModelError: The model has no weights to prune, or the optimizer steps none of them.
            StatisticsError: The method or an option needs calibration examples and there are none, or can read them
                once only; or a loss would have no effect.
            SpecError: A number of steps is out of range, an option is not an argument of `prunus.prune`, or `progress`
                is not a function.
        """
        for name, value, low in (("every", every, 1), ("begin", begin, 0)):
            if not isinstance(value, int | np.integer) or value < low:
                raise SpecError(f"Expected {name} to be an integer of at least {low}, got {value!r}.")
        if unknown := sorted(options.keys() - inspect.signature(prune).parameters.keys()):
            raise SpecError(f"Expected options of prunus.prune, got {', '.join(unknown)}; correct the names.")
        if "within" in options:
            raise SpecError("Expected no within, as each round prunes within the masks of the one before.")
        self.densities = densities_of(schedule, density, rounds)
        """The density after each round."""
        model = uncompiled(model)
        method = pruning_method(options.get("criterion", "magnitude"))
        scope = parse_scope(options.get("scope", "layer"))
        patterns = {name: options[name] for name in ("include", "exclude", "strict") if name in options}
        selection = select_weights(model, method, scope, **patterns)
        scope.check(shapes_of(selection.weights), self.densities)
        check_prune(method, selection, self.densities[-1], scope, options.get("densities"))
        calibration = options.get("calibration")
        names = ("calibration", "loss", "densities", "refit", "recalibrate", "forward")
        check_prune_options(method, **{name: options[name] for name in names if name in options})
        check_callbacks(progress=options.get("progress"))
        if rounds > 1 and isinstance(calibration, Iterator):
            raise StatisticsError(
                f"Expected calibration examples that can be read once per round, such as a DataLoader or a list, got a "
                f"{type(calibration).__name__}."
            )
        self.model, self.optimizer, self._names = model, optimizer, list(selection.weights)
        self._check_optimizer()
        self.every, self.begin, self.seed, self.options = every, begin, seed, options
        self.num_steps = 0
        """The number of calls of `step`."""
        self.masks: Masks | None = None
        """The masks of the last round; None before the first."""

    @property
    def density(self) -> float:
        """The density of the model now; 1 before the first round."""
        return 1.0 if self.masks is None else self.masks.density

    @property
    def is_finished(self) -> bool:
        """Whether all rounds are done."""
        return self.num_steps >= self.begin + self.every * len(self.densities)

    def step(self) -> bool:
        """Call it after every step of the optimizer; it prunes after the steps of the schedule.

        Returns:
            Whether the model was pruned now.

        Raises:
            PrunusError: See `prunus.prune`; the model and its masks are as they were.
        """
        number, rest = divmod(self.num_steps + 1 - self.begin, self.every)
        is_due = rest == 0 and 1 <= number <= len(self.densities)
        if is_due:
            self._check_optimizer()
            pruned = prune(
                self.model, self.densities[number - 1],
                within=None if self.masks is None else dict(self.masks),
                seed=derive_seed(self.seed, "round", number), **self.options,
            )  # fmt: skip
            self._attach(pruned.masks)
        self.num_steps += 1
        return is_due

    def _check_optimizer(self) -> None:
        """Raise ModelError where masks of the model cannot be attached to the optimizer."""
        weights: Params = {name: self.model.get_parameter(name) for name in self._names}
        Masks(self.model, all_kept(weights)).attach(self.optimizer).detach()

    def state_dict(self) -> dict[str, Tensor]:
        """The number of steps and the masks, one bit per weight, for a checkpoint of your own."""
        masks = {} if self.masks is None else self.masks.state_dict()
        return {"num_steps": torch.tensor(self.num_steps), **add_prefix("masks/", masks)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned; the masks are applied and attached to the optimizer.

        Raises:
            CheckpointError: `state` is not of gradual pruning.
            ModelError: The masks are of another model.
        """
        if "num_steps" not in state:
            raise CheckpointError(
                f"Expected the state of GradualPruning, with 'num_steps', got {sorted(state)}; pass what state_dict "
                "returned."
            )
        masks = strip_prefix("masks/", state)
        if masks:
            self._attach(Masks.from_state_dict(self.model, masks))
        elif self.masks is not None:
            self.masks.detach()
            self.masks = None
        self.num_steps = int(state["num_steps"])

    def _attach(self, masks: Masks) -> None:
        """Put new masks in the place of the last ones."""
        masks.attach(self.optimizer)
        if self.masks is not None:
            self.masks.detach()
        self.masks = masks
