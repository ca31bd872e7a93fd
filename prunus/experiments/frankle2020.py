"""Frankle, Dziugaite, Roy, Carbin 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis"."""

from dataclasses import replace
from functools import partial

from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns, labeled
from prunus.experiments.presets import ticket_of_size, with_baseline
from prunus.tickets.instability import STABLE_BELOW, InstabilitySpec
from prunus.tickets.ticket import TicketSpec

PAPER = 'Frankle, Dziugaite, Roy, Carbin 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis"'
SOURCE = "Frankle et al. 2020"
OTHER_NETWORKS = (
    "The paper's networks are ResNet-20, VGG-16 and larger; here they are Lenet on MNIST or, with --set network=conv-2 "
    "(conv-4, conv-6), those on CIFAR-10.",
    "Pruning rates are those of each layer; the paper ranks all weights together.",
)
REWIND_FRACTIONS = (0.0, 0.005, 0.02, 0.1, 0.25)
"""Points of the training to rewind to, as fractions of its length."""
REWIND_TO_0, DENSE, TICKET = "rewind to step 0", "dense", "winning ticket"


def _with_checkpoints(template: TicketSpec, size: str) -> tuple[TicketSpec, list[int]]:
    """The ticket whose baseline keeps the states to rewind to, and their steps."""
    fractions = REWIND_FRACTIONS[:3] if size == "smoke" else REWIND_FRACTIONS
    total = template.baseline.total_steps()
    steps = list(dict.fromkeys(round(fraction * total) for fraction in fractions))
    return with_baseline(template, checkpoint_steps=tuple(steps[1:])), steps


def rewound_tickets(template: TicketSpec, size: str) -> LabeledRuns:
    """Tickets that differ in the step they rewind to, and newly drawn weights under the masks of the first.

    Args:
        template: The ticket of one network, with the settings of the size and those that the user changed.
        size: "smoke", "default" or "full": the smoke size has the first three of REWIND_FRACTIONS, the others all.

    Returns:
        One run per step to rewind to, in rising order, and one with newly drawn weights. Fractions that round to one
        step give one run.
    """
    first, steps = _with_checkpoints(template, size)
    tickets = {f"rewind to step {step}": replace(first, rewind_step=step) for step in steps}
    return labeled(
        {**tickets, "random reinitialization": replace(first, mask1="reinitialize", masks_from=first)}
    )


def pairs_of_copies(template: TicketSpec, size: str) -> LabeledRuns:
    """Two copies from each step, dense and under the masks of a ticket rewound to that step.

    Args:
        template: The ticket of one network, with the settings of the size and those that the user changed.
        size: "smoke", "default" or "full": the smoke size has the first three of REWIND_FRACTIONS, the others all.

    Returns:
        Two runs per step, of the curves DENSE and TICKET. The label has the step at which the copies part in "parting",
        and as text in "from". The ticket is that of level 7, or of the last level where it has fewer.
    """
    template, steps = _with_checkpoints(template, size)
    level, runs = min(template.rounds, 7), []
    for step in steps:
        dense = InstabilitySpec(template.baseline, step)
        ticket = replace(template, rewind_step=step, rounds=level)
        for curve, spec in ((DENSE, dense), (TICKET, replace(dense, ticket=ticket, level=level))):
            runs.append(({"curve": curve, "parting": step, "from": f"step {step}"}, spec))
    return runs


def dense_copies(template: TicketSpec, size: str) -> LabeledRuns:
    """The pairs of copies of the dense network.

    Args:
        template: The ticket of one network, with the settings of the size and those that the user changed.
        size: "smoke", "default" or "full": the smoke size has the first three of REWIND_FRACTIONS, the others all.

    Returns:
        One run per step, labeled as by `pairs_of_copies`.
    """
    return [run for run in pairs_of_copies(template, size) if run[0]["curve"] == DENSE]


rewinding = Experiment(
    name="frankle2020.rewinding",
    paper=PAPER,
    title="Tickets rewound to step k and tickets rewound to step 0",
    question="Are tickets that rewind to an early step better than those that rewind to the initialization?",
    template=partial(ticket_of_size, epochs=10, rounds=12),
    runs=rewound_tickets,
    figures=(
        FigureSpec(
            "accuracy", "final_test_accuracy", "test accuracy at the end of training (%)", "Step to rewind to"
        ),
    ),
    claims=(
        Claim(
            "On LeNet, tickets that rewind to step 0 are more accurate than their masks with newly drawn weights",
            REWIND_TO_0, "higher", "random reinitialization", "final_test_accuracy", SOURCE,
            at={"level": (3, 7, 11, 12)},
        ),
    ),
    differences=OTHER_NETWORKS,
    against=REWIND_TO_0,
    metrics=("final_test_accuracy", "stop_test_accuracy", "stop_step"),
    replicates=(1, 3, 5),
)  # fmt: skip

instability = Experiment(
    name="frankle2020.instability",
    paper=PAPER,
    title="The error barrier between two copies, against the step at which they part",
    question="From which step of training on do two copies, trained on data in different orders, end in linearly "
    "connected minima?",
    template=partial(ticket_of_size, epochs=10, rounds=7),
    runs=pairs_of_copies,
    figures=(
        FigureSpec(
            "barrier", "barrier", "error barrier (pp); stable below 2", "Two copies in different orders of data",
            x="parting", x_label="step at which the copies part",
        ),
    ),
    claims=tuple(
        Claim(
            f"LeNet is stable at initialization: the barrier of {name} is below {STABLE_BELOW:g} pp", curve, "lower",
            STABLE_BELOW, "barrier", SOURCE, at={"parting": (0,)}, published="below 2 pp (second-hand)",
        )
        for curve, name in ((DENSE, "the dense network"), (TICKET, "the winning ticket"))
    ),
    differences=OTHER_NETWORKS,
    metrics=("barrier",),
    replicates=(1, 3, 3),
)  # fmt: skip

interpolation = replace(
    instability,
    name="frankle2020.interpolation",
    title="The error on the line between two copies of the dense network, 30 points",
    question="How does the error change on the line between two copies of the dense network?",
    runs=dense_copies,
    figures=(
        FigureSpec(
            "line", "test_error", "test error (%)", "On the line between two copies", x="alpha",
            x_label="α, from one copy to the other", curves="from",
        ),
    ),
    claims=instability.claims[:1],
)  # fmt: skip
