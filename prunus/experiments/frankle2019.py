"""Frankle & Carbin 2019, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks"."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns
from prunus.experiments.presets import for_replicate, network
from prunus.tickets.ticket import TicketSpec

PAPER = 'Frankle & Carbin 2019, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks"'
TICKET, REINITIALIZED, ONE_SHOT = "winning ticket", "random reinitialization", "one-shot ticket"
ITERATIVE, ONE_SHOT_REINITIALIZED = "iterative ticket", "one-shot, random reinitialization"

STOP = FigureSpec(
    "stop", "stop_step", "early-stopping iteration (lowest validation loss)", "When training stops"
)
ACCURACY = FigureSpec(
    "accuracy",
    "stop_test_accuracy",
    "test accuracy at the early-stopping iteration (%)",
    "Accuracy where training stops",
)
END = FigureSpec(
    "end",
    "final_test_accuracy",
    "test accuracy at the end of training (%)",
    "Accuracy at the end of training",
)
LEVELS = (2, 4, 7, 11, 15)
"""Levels of the control runs of the default size."""
FIGURE_3 = (0, 3, 7, 12, 15, 18)
"""The levels of Figure 3: densities 1, 0.51, 0.21, 0.07, 0.04 and 0.02."""
PRUNED = {"level": (7, 11, 15)}
"""The levels on which claims are tested: densities 0.21, 0.09 and 0.04 of Lenet."""

LEARNING_RATES = [
    (f"Adam {rate:g}", {"learning_rate": rate}) for rate in (2e-4, 4e-4, 8e-4, 1.2e-3, 1.6e-3, 2.4e-3)
]
OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("Adam 0.0012", {}),
    ("SGD 0.1", {"optimizer": "sgd", "learning_rate": 0.1}),
    ("SGD 0.05, momentum 0.9", {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9}),
]


def _control_levels(ticket: TicketSpec, size: str) -> tuple[int, ...]:
    """The levels of control runs: all of the full size, else a few."""
    if size == "full":
        return ()
    return tuple(level for level in LEVELS if level <= ticket.rounds) or (ticket.rounds,)


def winning_and_reinitialized(template: TicketSpec, size: str, replicates: Sequence[int]) -> LabeledRuns:
    """The winning ticket of every level, and newly drawn weights under its masks."""
    levels, draws = _control_levels(template, size), range(3 if size == "full" else 1)
    runs: LabeledRuns = []
    for replicate in replicates:
        ticket = for_replicate(template, replicate)
        runs.append(({"curve": TICKET, "replicate": replicate}, ticket))
        for draw in draws:
            control = replace(ticket, mask1="reinitialize", masks_from=ticket, levels=levels, redraw=draw)
            runs.append(({"curve": REINITIALIZED, "replicate": replicate, "draw": draw}, control))
    return runs


def tickets_with_test_curve(template: TicketSpec, size: str, replicates: Sequence[int]) -> LabeledRuns:
    """The winning ticket, with evaluations of the test split during training."""
    return [
        (
            {"curve": TICKET, "replicate": replicate},
            replace(ticket, baseline=replace(ticket.baseline, test_curve=True)),
        )
        for replicate in replicates
        for ticket in [for_replicate(template, replicate)]
    ]


def iterative_and_one_shot(template: TicketSpec, size: str, replicates: Sequence[int]) -> LabeledRuns:
    """Iterative and one-shot tickets, and newly drawn weights under the one-shot masks."""
    levels = _control_levels(template, size)
    runs: LabeledRuns = []
    for replicate in replicates:
        ticket = for_replicate(template, replicate)
        single = replace(ticket, schedule="one_shot", levels=levels)
        control = replace(single, mask1="reinitialize", masks_from=single)
        for curve, spec in ((ITERATIVE, ticket), (ONE_SHOT, single), (ONE_SHOT_REINITIALIZED, control)):
            runs.append(({"curve": curve, "replicate": replicate}, spec))
    return runs


def one_curve_per_recipe(
    recipes: Sequence[tuple[str, dict[str, Any]]],
) -> Callable[[TicketSpec, str, Sequence[int]], LabeledRuns]:
    """The winning ticket under recipes that differ in some settings."""

    def runs(template: TicketSpec, size: str, replicates: Sequence[int]) -> LabeledRuns:
        return [
            (
                {"curve": name, "replicate": replicate},
                replace(
                    ticket,
                    baseline=replace(ticket.baseline, recipe=ticket.baseline.recipe.replace(**settings)),
                ),
            )
            for replicate in replicates
            for ticket in [for_replicate(template, replicate)]
            for name, settings in (recipes[:2] if size == "smoke" else recipes)
        ]

    return runs


def _faster_and_better(better_than_dense: str) -> tuple[Claim, ...]:
    """The claims on winning tickets, reinitialized ones and the dense network."""
    return (
        Claim(
            "Winning tickets are more accurate at the early-stopping iteration than the same masks with newly drawn "
            "weights",
            "stop_test_accuracy", TICKET, REINITIALIZED, "higher", "Figures 3 to 5", at=PRUNED,
        ),
        Claim(
            "Winning tickets reach the early-stopping iteration before the same masks with newly drawn weights",
            "stop_step", TICKET, REINITIALIZED, "lower", "Figures 3 to 5", at=PRUNED,
        ),
        Claim(
            "Winning tickets are more accurate than the dense network", "stop_test_accuracy", TICKET, TICKET,
            "higher", better_than_dense, at={"level": (4, 7)}, against_at={"level": (0,)},
        ),
        Claim(
            "Winning tickets stop before the dense network", "stop_step", TICKET, TICKET, "lower",
            better_than_dense, at={"level": (7,)}, against_at={"level": (0,)},
        ),
    )  # fmt: skip


ONE_DRAW = "The default size draws new weights once per ticket; the full size draws them three times, as in the paper."

lenet = Experiment(
    name="frankle2019.lenet",
    paper=PAPER,
    place="Figures 1, 3, 4",
    title="When Lenet stops and how accurate it is, winning ticket and random reinitialization",
    question="Does a winning ticket train faster and better than the same mask with newly drawn weights?",
    template=lambda name, size: network(name, size, epochs=20, rounds=15),
    runs=winning_and_reinitialized,
    figures=(STOP, ACCURACY, END),
    claims=_faster_and_better("Section 2"),
    differences=(ONE_DRAW,),
    against=TICKET,
    described=("stop_step", "stop_test_accuracy"),
)

conv = replace(
    lenet,
    name="frankle2019.conv",
    place="Figures 1, 5",
    title="The same for Conv-2, Conv-4 and Conv-6 on CIFAR-10",
    question="Do convolutional networks on CIFAR-10 contain winning tickets?",
    template=lambda name, size: network(name, size, epochs=6, rounds=7),
    claims=_faster_and_better("Figure 5"),
    networks=("conv-2", "conv-4", "conv-6"),
    replicates=(1, 2, 5),
)

curves = Experiment(
    name="frankle2019.curves",
    paper=PAPER,
    place="Figure 3",
    title="Test accuracy during training, one curve per density",
    question="How does the test accuracy of winning tickets develop during training at different densities?",
    template=lambda name, size: network(name, size, epochs=10, rounds=15),
    runs=tickets_with_test_curve,
    figures=(
        FigureSpec(
            "training", "test_accuracy", "test accuracy (%)", "Winning tickets during training", x="step",
            x_label="training iterations", x_log=False, invert_x=False, source="curves", curves="density %",
            select=lambda rows: [row for row in rows if row["level"] in FIGURE_3 and row["step"] > 0],
        ),
    ),
    claims=(
        Claim(
            "The winning ticket with 21 % of the weights is more accurate than the dense network",
            "stop_test_accuracy", TICKET, TICKET, "higher", "Figure 3", at={"level": (7,)},
            against_at={"level": (0,)},
        ),
    ),
    replicates=(1, 3, 5),
)  # fmt: skip

one_shot = Experiment(
    name="frankle2019.one_shot",
    paper=PAPER,
    place="Figure 4",
    title="One-shot and iterative pruning",
    question="Does one-shot pruning find winning tickets as good as iterative pruning does?",
    template=lambda name, size: network(name, size, epochs=20, rounds=15),
    runs=iterative_and_one_shot,
    figures=(STOP, ACCURACY, END),
    claims=(
        Claim(
            "Iterative tickets are more accurate than one-shot tickets of the same density",
            "stop_test_accuracy", ITERATIVE, ONE_SHOT, "higher", "Figure 4", at=PRUNED,
        ),
        Claim(
            "One-shot tickets are more accurate than their masks with newly drawn weights",
            "stop_test_accuracy", ONE_SHOT, ONE_SHOT_REINITIALIZED, "higher", "Figure 4", at=PRUNED,
        ),
    ),
    against=ITERATIVE,
)  # fmt: skip


def _each_beats_the_dense_network(names: Sequence[str]) -> tuple[Claim, ...]:
    """One claim per curve: its winning ticket is more accurate than its dense network."""
    return tuple(
        Claim(
            f"{name}: the winning ticket is more accurate than the dense network",
            "stop_test_accuracy", name, name, "higher", "Appendix G", at={"level": (4, 7)},
            against_at={"level": (0,)},
        )
        for name in names
    )  # fmt: skip


learning_rates = Experiment(
    name="frankle2019.learning_rates",
    paper=PAPER,
    place="Appendix G",
    title="Winning tickets at other learning rates of Adam",
    question="At which learning rates of Adam are there winning tickets?",
    template=lambda name, size: network(name, size, epochs=10, rounds=11),
    runs=one_curve_per_recipe(LEARNING_RATES),
    figures=(STOP, ACCURACY),
    claims=_each_beats_the_dense_network([name for name, _ in LEARNING_RATES]),
    replicates=(1, 3, 3),
)

optimizers = replace(
    learning_rates,
    name="frankle2019.optimizers",
    title="Winning tickets with SGD and with momentum",
    question="Are there winning tickets with SGD and with momentum, as there are with Adam?",
    template=lambda name, size: network(name, size, epochs=15, rounds=11),
    runs=one_curve_per_recipe(OPTIMIZERS),
    claims=_each_beats_the_dense_network([name for name, _ in OPTIMIZERS]),
)
