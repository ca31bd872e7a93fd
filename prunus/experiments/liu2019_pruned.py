"""Networks from which channels are removed, fine-tuned, rewound or trained from scratch, for Liu et al. 2019."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from prunus.errors import DensityError, SpecError
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.liu2019_methods import PenalizedNetwork, find_method
from prunus.experiments.trained_networks import TrainedNetwork, evaluate_test
from prunus.models.initialization import kaiming_normal
from prunus.modules import copied
from prunus.pruning.structured.analysis import analyze
from prunus.pruning.structured.blocks import remove_blocks
from prunus.pruning.structured.macs import count_macs
from prunus.pruning.structured.plan import SlimPlan
from prunus.pruning.structured.slim import slim
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.seeds import derive_seed
from prunus.training import Recipe, train
from prunus.types import Dataset

Removal = Callable[[nn.Module], nn.Module]
UNPRUNED, FINE_TUNED, SCRATCH_E, SCRATCH_B = "unpruned", "fine-tuned", "Scratch-E", "Scratch-B"
TICKET = "winning ticket"


@dataclass(frozen=True)
class PrunedNetwork(TrainedNetwork):
    """The settings of one pruned network: the large network, how channels are removed, how it is trained afterwards."""

    kind: ClassVar[str] = "pruned-network"

    methods: tuple[str, ...] = ()
    """The methods of a table, each with runs of its own; empty in a run."""
    method: str = "l1"
    """A method, as `find_method` takes it."""
    macs: float = 0.5
    """The fraction of the multiply-accumulates to keep."""
    arm: str = FINE_TUNED
    """FINE_TUNED, SCRATCH_E, SCRATCH_B or TICKET."""
    finetune: Recipe = field(default_factory=lambda: Recipe(40, 1e-3, 64))
    """How the arm FINE_TUNED is trained; the others are trained by `recipe`."""
    penalty: float = 1e-4
    """Strength of the penalty in the training of the large network, where the method has one."""
    calibration_examples: int = 256
    """Training images for the methods that measure the inputs of layers."""
    removal_rounds: int = 1
    """Rounds in which channels are removed; between two rounds, what remains is trained from its first weights."""

    @property
    def large(self) -> TrainedNetwork:
        """The network before pruning."""
        settings = self.recipe, self.model, self.data, self.examples
        penalized = find_method(self.method).penalized
        return (
            PenalizedNetwork(*settings, penalized, self.penalty) if penalized else TrainedNetwork(*settings)
        )

    def run(self) -> FunctionRun:
        """Return the run that trains it, which reads that of the large network.

        Raises:
            UnknownNameError: There is no such method.
            SpecError: The arm is none of the four, the fraction of multiply-accumulates is not in (0, 1], or there are
                several rounds of a method that only the training of the large network can follow.
        """
        if self.arm not in (FINE_TUNED, SCRATCH_E, SCRATCH_B, TICKET):
            arms = f"{FINE_TUNED}, {SCRATCH_E}, {SCRATCH_B} or {TICKET}"
            raise SpecError(f"Expected {arms} as arm, got {self.arm!r}.")
        if not 0 < self.macs <= 1:
            raise SpecError(f"Expected macs above 0 and at most 1, a fraction to keep, got {self.macs}.")
        if self.removal_rounds != 1 and find_method(self.method).penalized:
            raise SpecError(
                f"Expected removal_rounds=1 for the method {self.method}, whose penalty is part of the training of the "
                f"large network only, got {self.removal_rounds}."
            )
        return FunctionRun.of(train_pruned_network, self, inputs=(self.large.run(),))


def train_pruned_network(settings: PrunedNetwork, replicate: int, large: RunDirectory) -> list[Row]:
    """Remove a structure from a trained network, and train the small network from the weights of the arm.

    Between two rounds of removal, the network is rewound to its first weights and trained, whatever the arm, so that
    all arms have the same structure.

    Args:
        settings: The networks, the method and the arm.
        replicate: Number of the replicate, from which the seeds are derived.
        large: The finished run of the large network.

    Returns:
        One row: "test accuracy" in percent, its "change" from that of the large network in percentage points, the
        "MACs %" and "parameters %" that are kept, and the "epochs" of the training.

    Raises:
        UnknownNameError: There is no such method.
        DensityError: The fraction of multiply-accumulates cannot be reached.
    """
    data, trained, row = settings.dataset(), settings.load(large), large.rows()[0]
    sizes = _sizes(trained, data)
    removals: list[Removal] = []
    for _ in range(settings.removal_rounds):
        if removals:
            trained = starting_network(replace(settings, arm=TICKET), trained, removals, replicate)
            train(trained, data, settings.recipe, seed=derive_seed(replicate, "small"), backend="dense")
        removals.append(removal_of(settings, trained, data, row.get("factors", {}), replicate))
    small = starting_network(settings, trained, removals, replicate)
    remaining = [after / before for after, before in zip(_sizes(small, data), sizes, strict=True)]
    recipe = recipe_of(settings, remaining[0])
    train(small, data, recipe, seed=derive_seed(replicate, "small"), backend="dense")
    accuracy = evaluate_test(small, data).accuracy
    percent = dict(zip(("MACs %", "parameters %"), [100 * fraction for fraction in remaining], strict=True))
    change = accuracy - row["test accuracy"]
    return [{"test accuracy": accuracy, "change": change, **percent, "epochs": recipe.epochs}]


def removal_of(
    settings: PrunedNetwork, trained: nn.Module, data: Dataset, factors: Mapping[str, float], replicate: int
) -> Removal:
    """Choose the structure that the method of the settings removes in one round.

    Args:
        settings: The method, the fraction of multiply-accumulates and the number of rounds, in each of which the same
            fraction of what remains is kept.
        trained: The network after its training; not changed.
        data: The data set, of whose training split the calibration examples are taken.
        factors: The factors of residual blocks, for the method that removes blocks.
        replicate: Number of the replicate, the seed of ties.

    Returns:
        A function that removes the structure from a network of this architecture, in place, and returns it.

    Raises:
        UnknownNameError: There is no such method.
        DensityError: The fraction cannot be reached.
    """
    method, images = find_method(settings.method), data.train.inputs[:2]
    if method.penalized == "blocks":
        blocks = _smallest_blocks(settings, trained, images, factors)
        return lambda network: remove_blocks(network, images, blocks)
    examples = data.train.take(settings.calibration_examples) if method.is_calibrated else None
    plan = slim(
        trained, images, macs=settings.macs ** (1 / settings.removal_rounds), criterion=method.criterion,
        scope=method.scope, calibration=examples, seed=replicate, verify=False, refit=method.refits,
    )  # fmt: skip

    def remove(network: nn.Module) -> nn.Module:
        if network is trained:  # with refitted weights
            return plan.apply()
        return SlimPlan(network, analyze(network, images), plan.removed, verify=False).apply()

    return remove


def _smallest_blocks(
    settings: PrunedNetwork, trained: nn.Module, images: Tensor, factors: Mapping[str, float]
) -> list[str]:
    """The blocks with the smallest factors, as many as must be removed to keep the multiply-accumulates."""
    names = sorted(factors, key=lambda name: abs(factors[name]))
    limit = settings.macs * count_macs(trained, images)
    for number in range(1, len(names) + 1):
        if count_macs(remove_blocks(copied(trained), images, names[:number]), images) <= limit:
            return names[:number]
    raise DensityError(
        f"Expected to keep {settings.macs:g} of the multiply-accumulates by removing residual blocks, but all "
        f"{len(names)} have fewer; keep more."
    )


def starting_network(
    settings: PrunedNetwork, trained: nn.Module, removals: Sequence[Removal], replicate: int
) -> nn.Module:
    """Return the small network with the weights that its training starts from.

    Args:
        settings: The arm: FINE_TUNED keeps trained weights, TICKET the weights that these were trained from, and the
            others draw all weights for the small network.
        trained: The network from which the last round removes channels, trained; the arm TICKET does not change it.
        removals: Remove the structure of each round so far.
        replicate: Number of the replicate.

    Returns:
        The small network.
    """
    if settings.arm == TICKET:
        small = settings.network(derive_seed(replicate, "model"))
        for remove in removals:
            small = remove(small)
        return small
    small = removals[-1](trained)
    if settings.arm != FINE_TUNED:
        with torch.no_grad():
            kaiming_normal(small, derive_seed(replicate, "scratch"))
        for module in small.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_parameters()
    return small


def recipe_of(settings: PrunedNetwork, kept_macs: float) -> Recipe:
    """Return the recipe of an arm: SCRATCH_B has as many multiply-accumulates as the training of the large network.

    Args:
        settings: The recipes and the arm.
        kept_macs: The multiply-accumulates of the small network as a fraction of those of the large one.

    Returns:
        The recipe, whose schedule covers all of its epochs.

    >>> settings = PrunedNetwork(Recipe(160, 0.1, 64), arm=SCRATCH_B)
    >>> recipe_of(settings, 0.4).epochs
    400
    """
    if settings.arm == FINE_TUNED:
        return settings.finetune
    budget = 1 / kept_macs if settings.arm == SCRATCH_B else 1
    return settings.recipe.replace(epochs=round(settings.recipe.epochs * budget))


def _sizes(network: nn.Module, data: Dataset) -> tuple[int, int]:
    """Multiply-accumulates for one image, and parameters."""
    return count_macs(network, data.train.inputs[:1]), sum(p.numel() for p in network.parameters())
