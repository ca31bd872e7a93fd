"""Zhou, Lan, Liu, Yosinski 2019, "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask".

The iterative experiments carry their actions on from round to round, as the paper does; the others prune the dense
network in one shot, and share its training. Supermasks are in `zhou2019_supermasks.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns, labeled
from prunus.experiments.presets import ticket_of_size
from prunus.tickets.ticket import TicketSpec

PAPER = 'Zhou, Lan, Liu, Yosinski 2019, "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask"'
CRITERIA = (
    "large_final", "small_final", "random", "large_init", "small_init", "large_init_large_final",
    "small_init_small_final", "magnitude_increase", "movement", "large_final_same_sign", "large_final_diff_sign",
)  # fmt: skip
MASK0_ACTIONS = (
    "zero", "freeze_init", "freeze_init_zero", "freeze_init_zero_all", "freeze_init_zero_reshuffled",
    "freeze_init_zero_reversed",
)  # fmt: skip
MASK1_ACTIONS = (
    "rewind", "permute", "reshuffle", "random_signed_constant", "signed_permute", "signed_reshuffle",
    "signed_constant",
)  # fmt: skip
LEVELS = (5, 10, 15)
"""One-shot levels of the default size: densities 0.33, 0.11 and 0.04."""
PRUNED = {"level": (7, 10, 11, 12, 15)}
"""The levels on which claims are tested, as far as an experiment has them."""


_claim = partial(Claim, metric="stop_test_accuracy", source="Zhou et al. 2019", at=PRUNED)
_lower, _equal = partial(_claim, expected="lower"), partial(_claim, expected="equal", margin=0.5)
CRITERIA_CLAIMS = (
    *(
        _lower(f"{name} is less accurate than large_final", name, against="large_final")
        for name in ("small_final", "random", "small_init_small_final")
    ),
    _equal(
        "magnitude_increase is as accurate as large_final, within 0.5 pp", "magnitude_increase", against="large_final"
    ),
)  # fmt: skip
ZEROS_CLAIMS = (
    _lower("Freezing pruned weights at their initial values is worse than at zero", "freeze_init", against="zero"),
    _equal(
        "Zero only for weights that moved toward zero (variant 1) is as accurate as zero, within 0.5 pp",
        "freeze_init_zero", against="zero",
    ),
    *(
        _lower(
            f"The {control} control is worse than variant 1", f"freeze_init_zero_{control}", against="freeze_init_zero"
        )
        for control in ("reversed", "reshuffled")
    ),
)  # fmt: skip
SIGNS_CLAIMS = (
    *(
        _lower(f"{name}, which loses the signs, is less accurate than rewinding", name, against="rewind")
        for name in ("permute", "reshuffle", "random_signed_constant")
    ),
    *(
        _equal(f"{name}, which keeps the signs, is as accurate as rewinding, within 0.5 pp", name, against="rewind")
        for name in ("signed_permute", "signed_reshuffle", "signed_constant")
    ),
)  # fmt: skip


def one_curve_per_value(
    setting: str, values: Sequence[str], *, iterative: bool
) -> Callable[[TicketSpec, str], LabeledRuns]:
    """One curve per value of a setting; `--set criterion=mine.scores:smallest` adds one more.

    Args:
        setting: Name of a setting of TicketSpec, such as "criterion", "mask0" or "mask1".
        values: Names that the setting takes, in the order of the curves.
        iterative: Whether tickets are pruned iteratively, on all levels; otherwise they are pruned in one shot, on all
            levels of the full size and on LEVELS of the others.

    Returns:
        A function (template, size) -> labeled runs, as `Experiment.runs` requires. A value of the template that is not
        in `values` is added as the last curve.
    """

    def runs(template: TicketSpec, size: str) -> LabeledRuns:
        if not iterative:
            levels = tuple(level for level in LEVELS if level <= template.rounds) or (template.rounds,)
            template = replace(template, schedule="one_shot", levels=() if size == "full" else levels)
        all_values = dict.fromkeys((*values, getattr(template, setting)))
        return labeled({value: replace(template, **{setting: value}) for value in all_values})

    return runs


def _one_shot_and_iterative(
    name: str, title: str, question: str, setting: str, values: Sequence[str], claims: Sequence[Claim]
) -> tuple[Experiment, Experiment]:
    """An experiment whose masks are made in one shot, and the same with iterative pruning."""
    one_shot = Experiment(
        name=f"zhou2019.{name}",
        paper=PAPER,
        title=f"{title}, one-shot",
        question=question,
        template=partial(ticket_of_size, epochs=5, rounds=15),
        runs=one_curve_per_value(setting, values, iterative=False),
        figures=(
            FigureSpec(
                "accuracy", "stop_test_accuracy", "test accuracy at the early-stopping iteration (%)", title
            ),
        ),
        claims=claims,
        differences=("The masks are made in one shot; the paper prunes iteratively.",),
        against=values[0],
        metrics=("stop_test_accuracy", "final_test_accuracy", "stop_step"),
    )
    iterative = replace(
        one_shot,
        name=f"zhou2019.{name}_iterative",
        title=f"{title}, iterative",
        template=partial(ticket_of_size, epochs=5, rounds=12),
        runs=one_curve_per_value(setting, values, iterative=True),
        differences=(),
        replicates=(1, 3, 5),
    )
    return one_shot, iterative


criteria, criteria_iterative = _one_shot_and_iterative(
    "criteria", "Mask criteria compared", "Which criterion selects the best masks?",
    "criterion", CRITERIA, CRITERIA_CLAIMS,
)  # fmt: skip
zeros, zeros_iterative = _one_shot_and_iterative(
    "zeros", "Mask-0 actions compared", "Which values should pruned weights be set to?",
    "mask0", MASK0_ACTIONS, ZEROS_CLAIMS,
)  # fmt: skip
signs, signs_iterative = _one_shot_and_iterative(
    "signs", "Mask-1 actions compared", "Which property of the initial weights matters?",
    "mask1", MASK1_ACTIONS, SIGNS_CLAIMS,
)  # fmt: skip
