"""Zhou, Lan, Liu, Yosinski 2019, "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask".

    criteria, criteria_iterative   Figures 2 and 3: mask criteria
    zeros, zeros_iterative         section 4: mask-0 actions; freeze at the initial value, zero, variants and controls
    signs, signs_iterative         section 3: mask-1 actions; what of the initial weights matters
    supermasks, found              section 5: masks over weights that are not trained; in `supermasks.py`

`--set network=conv-2` (conv-4, conv-6) runs them on CIFAR-10. The iterative versions carry their actions on from round
to round, as the paper does; the others prune the dense network in one shot, and share its training.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from prunus.experiments import zhou2019_supermasks
from prunus.experiments.stored_experiment import Entries, Panel, StoredExperiment
from prunus.experiments.ticket_presets import for_replicate, network
from prunus.tickets.ticket import TicketSpec

CRITERIA = (
    "large_final", "small_final", "random", "large_init", "small_init", "large_init_large_final",
    "small_init_small_final", "magnitude_increase", "movement", "large_final_same_sign", "large_final_diff_sign",
)  # fmt: skip
ZEROS = (
    "zero", "freeze_init", "freeze_init_zero", "freeze_init_zero_all", "freeze_init_zero_reshuffled",
    "freeze_init_zero_reversed",
)  # fmt: skip
SIGNS = (
    "rewind", "permute", "reshuffle", "random_signed_constant", "signed_permute", "signed_reshuffle",
    "signed_constant",
)  # fmt: skip
LEVELS = (5, 10, 15)
"""One-shot levels of the default size: densities 0.33, 0.11 and 0.04."""

STOPPED = Panel(
    "accuracy", "stop_test_accuracy", "test accuracy at the early-stopping iteration (%)", "Accuracy"
)


def _one_shot(setting: str, values: Sequence[str]) -> Callable[[TicketSpec, str, Sequence[int]], Entries]:
    def wanted(template: TicketSpec, size: str, replicates: Sequence[int]) -> Entries:
        levels = (
            ()
            if size == "full"
            else tuple(level for level in LEVELS if level <= template.rounds) or (template.rounds,)
        )
        single = replace(template, schedule="one_shot", levels=levels)
        return _each(setting, values, single, replicates)

    return wanted


def _iterative(setting: str, values: Sequence[str]) -> Callable[[TicketSpec, str, Sequence[int]], Entries]:
    def wanted(template: TicketSpec, size: str, replicates: Sequence[int]) -> Entries:
        return _each(setting, values, template, replicates)

    return wanted


def _each(setting: str, values: Sequence[str], template: TicketSpec, replicates: Sequence[int]) -> Entries:
    """A curve a value; `--set criterion=mine.scores:smallest` is one more."""
    return [
        ({"curve": value, "replicate": replicate}, for_replicate(template, replicate, **{setting: value}))
        for replicate in replicates
        for value in dict.fromkeys((*values, getattr(template, setting)))
    ]


def _part(
    name: str, about: str, setting: str, values: Sequence[str], what: str, iterative: bool
) -> StoredExperiment:
    return StoredExperiment(
        f"zhou2019.{name}{'_iterative' if iterative else ''}",
        f"{about}, {'iterative' if iterative else 'one-shot'}.",
        template=lambda of, size: network(of, size, epochs=5, rounds=12 if iterative else 15),
        wanted=(_iterative if iterative else _one_shot)(setting, values),
        panels=(replace(STOPPED, title=what),),
        against=values[0],
        metrics=("stop_test_accuracy", "final_test_accuracy", "stop_step"),
        replicates=(1, 3, 5) if iterative else (1, 5, 5),
    )


CHOICES = tuple(
    _part(name, about, setting, values, what, iterative)
    for name, about, setting, values, what in (
        ("criteria", "Figures 2 and 3: mask criteria compared", "criterion", CRITERIA, "Mask criteria"),
        ("zeros", "Section 4: mask-0 actions compared", "mask0", ZEROS, "Mask-0 actions"),
        ("signs", "Section 3: mask-1 actions compared", "mask1", SIGNS, "Mask-1 actions"),
    )
    for iterative in (False, True)
)
PARTS = (*CHOICES, *zhou2019_supermasks.PARTS)
