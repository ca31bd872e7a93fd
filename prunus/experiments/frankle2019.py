"""Frankle & Carbin 2019, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks".

    lenet           Figures 1, 3, 4: when Lenet stops and how well it does, ticket against random reinitialization
    conv            Figures 1, 5: the same for Conv-2, Conv-4 and Conv-6 on CIFAR-10
    curves          Figure 3: test accuracy over training at several densities
    one_shot        Figure 4: one-shot against iterative pruning
    learning_rates  Appendix G: other learning rates, with Adam
    optimizers      Appendix G: SGD and momentum in place of Adam

Where we depart: the random reinitialization is drawn anew once a ticket (three times for "full", as in the paper).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prunus.experiments.stored_experiment import Entries, Panel, StoredExperiment
from prunus.experiments.ticket_presets import for_replicate, network
from prunus.tickets.ticket import TicketSpec

TICKET, REINITIALIZED, ONE_SHOT = "winning ticket", "random reinitialization", "one-shot ticket"

STOP = Panel("stop", "stop_step", "early-stopping iteration (lowest validation loss)", "When training stops")
ACCURACY = Panel(
    "accuracy",
    "stop_test_accuracy",
    "test accuracy at the early-stopping iteration (%)",
    "Accuracy where training stops",
)
END = Panel(
    "end",
    "final_test_accuracy",
    "test accuracy at the end of training (%)",
    "Accuracy at the end of training",
)


def _levels(ticket: TicketSpec, wanted: Sequence[int]) -> tuple[int, ...]:
    return tuple(level for level in wanted if level <= ticket.rounds) or (ticket.rounds,)


def _tickets(template: TicketSpec, size: str, replicates: Sequence[int]) -> Entries:
    """The winning ticket of every level, and random weights under its masks."""
    levels = () if size == "full" else _levels(template, (2, 4, 7, 11, 15))
    draws = (0, 1, 2) if size == "full" else (0,)
    found: Entries = []
    for replicate in replicates:
        ticket = for_replicate(template, replicate)
        found.append(({"curve": TICKET, "replicate": replicate}, ticket))
        for draw in draws:
            control = replace(ticket, mask1="reinitialize", masks_from=ticket, levels=levels, redraw=draw)
            found.append(({"curve": REINITIALIZED, "replicate": replicate, "draw": draw}, control))
    return found


def _curves(template: TicketSpec, size: str, replicates: Sequence[int]) -> Entries:
    """The winning ticket with the test split evaluated along the way."""
    found: Entries = []
    for replicate in replicates:
        ticket = for_replicate(template, replicate)
        ticket = replace(ticket, baseline=replace(ticket.baseline, test_curve=True))
        found.append(({"curve": TICKET, "replicate": replicate}, ticket))
    return found


def _one_shot(template: TicketSpec, size: str, replicates: Sequence[int]) -> Entries:
    """Iterative and one-shot tickets, each with random weights under its masks."""
    levels = () if size == "full" else _levels(template, (2, 4, 7, 11, 15))
    found: Entries = []
    for replicate in replicates:
        ticket = for_replicate(template, replicate)
        single = replace(ticket, schedule="one_shot", levels=levels)
        control = replace(single, mask1="reinitialize", masks_from=single)
        found += [
            ({"curve": "iterative ticket", "replicate": replicate}, ticket),
            ({"curve": ONE_SHOT, "replicate": replicate}, single),
            ({"curve": "one-shot, random reinitialization", "replicate": replicate}, control),
        ]
    return found


def _sweep(values: Sequence[tuple[str, dict[str, Any]]]) -> Any:
    """The winning ticket under recipes that differ in some settings; a curve each."""

    def wanted(template: TicketSpec, size: str, replicates: Sequence[int]) -> Entries:
        chosen = values if size != "smoke" else values[:2]
        found: Entries = []
        for replicate in replicates:
            for name, settings in chosen:
                ticket = for_replicate(template, replicate)
                dense = replace(ticket.baseline, recipe=ticket.baseline.recipe.replace(**settings))
                found.append(({"curve": name, "replicate": replicate}, replace(ticket, baseline=dense)))
        return found

    return wanted


LEARNING_RATES = [
    (f"Adam {rate:g}", {"learning_rate": rate}) for rate in (2e-4, 4e-4, 8e-4, 1.2e-3, 1.6e-3, 2.4e-3)
]
OPTIMIZERS = [
    ("Adam 0.0012", {}),
    ("SGD 0.1", {"optimizer": "sgd", "learning_rate": 0.1}),
    ("SGD 0.05, momentum 0.9", {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9}),
]

lenet = StoredExperiment(
    "frankle2019.lenet",
    "Figures 1, 3, 4: when Lenet stops and how well it does, winning ticket against random reinitialization.",
    template=lambda name, size: network(name, size, epochs=20, rounds=15),
    wanted=_tickets,
    panels=(STOP, ACCURACY, END),
    against=TICKET,
    said=("stop_step", "stop_test_accuracy"),
)

conv = StoredExperiment(
    "frankle2019.conv",
    "Figures 1, 5: the same for Conv-2, Conv-4 and Conv-6 on CIFAR-10.",
    template=lambda name, size: network(name, size, epochs=6, rounds=7),
    wanted=_tickets,
    panels=(STOP, ACCURACY, END),
    networks=("conv-2", "conv-4", "conv-6"),
    against=TICKET,
    said=("stop_step", "stop_test_accuracy"),
    replicates=(1, 2, 5),
)

FIGURE_3 = (0, 3, 7, 12, 15, 18)
"""The levels of the figure: densities 1, 0.51, 0.21, 0.07, 0.04 and 0.02."""

curves = StoredExperiment(
    "frankle2019.curves",
    "Figure 3: test accuracy over training, a curve a density.",
    template=lambda name, size: network(name, size, epochs=10, rounds=15),
    wanted=_curves,
    panels=(
        Panel(
            "training", "test_accuracy", "test accuracy (%)", "Winning tickets in training", x="step",
            x_label="training iterations", x_log=False, invert_x=False, source="curves", lines="density %",
            drawn=lambda row: row["level"] in FIGURE_3 and row["step"] > 0,
        ),
    ),
    replicates=(1, 3, 5),
)  # fmt: skip

one_shot = StoredExperiment(
    "frankle2019.one_shot",
    "Figure 4: one-shot against iterative pruning.",
    template=lambda name, size: network(name, size, epochs=20, rounds=15),
    wanted=_one_shot,
    panels=(STOP, ACCURACY, END),
    against="iterative ticket",
)

learning_rates = StoredExperiment(
    "frankle2019.learning_rates",
    "Appendix G: winning tickets at other learning rates of Adam.",
    template=lambda name, size: network(name, size, epochs=10, rounds=11),
    wanted=_sweep(LEARNING_RATES),
    panels=(STOP, ACCURACY),
    replicates=(1, 3, 3),
)

optimizers = StoredExperiment(
    "frankle2019.optimizers",
    "Appendix G: winning tickets with SGD and with momentum.",
    template=lambda name, size: network(name, size, epochs=15, rounds=11),
    wanted=_sweep(OPTIMIZERS),
    panels=(STOP, ACCURACY),
    replicates=(1, 3, 3),
)

PARTS = (lenet, conv, curves, one_shot, learning_rates, optimizers)
