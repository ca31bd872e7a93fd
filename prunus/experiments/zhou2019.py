"""Zhou, Lan, Liu, Yosinski 2019, "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask", sections 2 to 4.

The iterative experiments carry their actions on from round to round, as the paper does; the others prune the dense
network in one shot, and share its training. Section 5 is in `zhou2019_supermasks.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns
from prunus.experiments.presets import for_replicate, network
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


def _claim(text: str, curve: str, against: str, expected: str, source: str, margin: float = 0.0) -> Claim:
    return Claim(text, "stop_test_accuracy", curve, against, expected, source, at=PRUNED, margin=margin)  # type: ignore[arg-type]


CRITERIA_CLAIMS = (
    *(
        _claim(f"{name} is less accurate than large_final", name, "large_final", "lower", "Figures 2 and 3")
        for name in ("small_final", "random", "small_init_small_final")
    ),
    _claim(
        "magnitude_increase is as accurate as large_final, within 0.5 pp", "magnitude_increase", "large_final",
        "equal", "Figures 2 and 3", 0.5,
    ),
)  # fmt: skip
ZEROS_CLAIMS = (
    _claim(
        "Freezing pruned weights at their initial values is worse than at zero", "freeze_init", "zero", "lower",
        "Section 4",
    ),
    _claim(
        "Zero only for weights that moved toward zero (variant 1) is as accurate as zero, within 0.5 pp",
        "freeze_init_zero", "zero", "equal", "Section 4", 0.5,
    ),
    _claim(
        "The reversed control is worse than variant 1", "freeze_init_zero_reversed", "freeze_init_zero", "lower",
        "Section 4",
    ),
    _claim(
        "The reshuffled control is worse than variant 1", "freeze_init_zero_reshuffled", "freeze_init_zero",
        "lower", "Section 4",
    ),
)  # fmt: skip
SIGNS_CLAIMS = (
    *(
        _claim(f"{name}, which loses the signs, is less accurate than rewinding", name, "rewind", "lower", "Section 3")
        for name in ("permute", "reshuffle", "random_signed_constant")
    ),
    *(
        _claim(
            f"{name}, which keeps the signs, is as accurate as rewinding, within 0.5 pp", name, "rewind", "equal",
            "Section 3", 0.5,
        )
        for name in ("signed_permute", "signed_reshuffle", "signed_constant")
    ),
)  # fmt: skip


def one_curve_per_value(
    setting: str, values: Sequence[str], *, iterative: bool
) -> Callable[[TicketSpec, str, Sequence[int]], LabeledRuns]:
    """One curve per value of a setting; `--set criterion=mine.scores:smallest` adds one more."""

    def runs(template: TicketSpec, size: str, replicates: Sequence[int]) -> LabeledRuns:
        if not iterative:
            few = tuple(level for level in LEVELS if level <= template.rounds) or (template.rounds,)
            template = replace(template, schedule="one_shot", levels=() if size == "full" else few)
        return [
            ({"curve": value, "replicate": replicate}, for_replicate(template, replicate, **{setting: value}))
            for replicate in replicates
            for value in dict.fromkeys((*values, getattr(template, setting)))
        ]

    return runs


def _experiment(
    name: str, place: str, title: str, question: str, setting: str, values: Sequence[str],
    claims: Sequence[Claim], *, iterative: bool,
) -> Experiment:  # fmt: skip
    schedule = "iterative" if iterative else "one-shot"
    return Experiment(
        name=f"zhou2019.{name}{'_iterative' if iterative else ''}",
        paper=PAPER,
        place=place,
        title=f"{title}, {schedule}",
        question=question,
        template=lambda of, size: network(of, size, epochs=5, rounds=12 if iterative else 15),
        runs=one_curve_per_value(setting, values, iterative=iterative),
        figures=(
            FigureSpec(
                "accuracy", "stop_test_accuracy", "test accuracy at the early-stopping iteration (%)", title
            ),
        ),
        claims=claims,
        differences=() if iterative else ("The masks are made in one shot; the paper prunes iteratively.",),
        against=values[0],
        metrics=("stop_test_accuracy", "final_test_accuracy", "stop_step"),
        replicates=(1, 3, 5) if iterative else (1, 5, 5),
    )  # fmt: skip


criteria, criteria_iterative = (
    _experiment(
        "criteria", "Figures 2 and 3", "Mask criteria compared", "Which criterion selects the best masks?",
        "criterion", CRITERIA, CRITERIA_CLAIMS, iterative=iterative,
    )
    for iterative in (False, True)
)  # fmt: skip
zeros, zeros_iterative = (
    _experiment(
        "zeros", "Section 4", "Mask-0 actions compared", "Which values should pruned weights be set to?",
        "mask0", MASK0_ACTIONS, ZEROS_CLAIMS, iterative=iterative,
    )
    for iterative in (False, True)
)  # fmt: skip
signs, signs_iterative = (
    _experiment(
        "signs", "Section 3", "Mask-1 actions compared", "Which property of the initial weights matters?",
        "mask1", MASK1_ACTIONS, SIGNS_CLAIMS, iterative=iterative,
    )
    for iterative in (False, True)
)  # fmt: skip
