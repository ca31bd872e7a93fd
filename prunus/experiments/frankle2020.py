"""Frankle, Dziugaite, Roy, Carbin 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis".

    rewinding      Figure 5: tickets rewound to step k against tickets rewound to step 0
    instability    Figures 2, 3, 5: the error barrier between two copies trained in different orders of data, against k
    interpolation  Figure 2: the error on the line between them, 30 points

Where we depart: the paper's networks are ResNet-20, VGG-16 and larger; here Lenet on MNIST, or with
`--set network=conv-2` (conv-4, conv-6) those on CIFAR-10. Rates are those of each layer, not global.
"""

from collections.abc import Sequence
from dataclasses import replace

from prunus.experiments.stored_experiment import Entries, Panel, StoredExperiment
from prunus.experiments.ticket_presets import for_replicate, network
from prunus.tickets.instability import InstabilitySpec
from prunus.tickets.ticket import TicketSpec

SHARES = (0.0, 0.005, 0.02, 0.1, 0.25)
"""Of the whole training, at which states are kept to rewind to."""


def _with_states(template: TicketSpec, size: str) -> tuple[TicketSpec, list[int]]:
    shares = SHARES[:3] if size == "smoke" else SHARES
    total = template.baseline.total_steps()
    steps = list(dict.fromkeys(round(share * total) for share in shares))
    return replace(template, baseline=replace(template.baseline, checkpoint_steps=tuple(steps[1:]))), steps


def _rewinding(template: TicketSpec, size: str, replicates: Sequence[int]) -> Entries:
    """Tickets that differ in the step they are rewound to, and random weights under the masks of the first."""
    template, steps = _with_states(template, size)
    found: Entries = []
    for replicate in replicates:
        for step in steps:
            ticket = for_replicate(template, replicate, rewind_step=step)
            found.append(({"curve": f"rewind to step {step}", "replicate": replicate}, ticket))
        first = for_replicate(template, replicate)
        control = replace(first, mask1="reinitialize", masks_from=first)
        found.append(({"curve": "random reinitialization", "replicate": replicate}, control))
    return found


def _copies(template: TicketSpec, size: str, replicates: Sequence[int]) -> Entries:
    """Two copies from each step, dense and under the masks of a ticket rewound to that step."""
    template, steps = _with_states(template, size)
    level = min(template.rounds, 7)
    found: Entries = []
    for replicate in replicates:
        for step in steps:
            ticket = for_replicate(template, replicate, rewind_step=step, rounds=level)
            dense = InstabilitySpec(ticket.baseline, step)
            about = {"replicate": replicate, "parting": step, "from": f"step {step}"}
            found.append(({"curve": "dense", **about}, dense))
            found.append(({"curve": "winning ticket", **about}, replace(dense, ticket=ticket, level=level)))
    return found


def _dense_copies(template: TicketSpec, size: str, replicates: Sequence[int]) -> Entries:
    return [entry for entry in _copies(template, size, replicates) if entry[0]["curve"] == "dense"]


rewinding = StoredExperiment(
    "frankle2020.rewinding",
    "Figure 5: tickets rewound to step k against tickets rewound to step 0.",
    template=lambda name, size: network(name, size, epochs=10, rounds=12),
    wanted=_rewinding,
    panels=(
        Panel(
            "accuracy",
            "final_test_accuracy",
            "test accuracy at the end of training (%)",
            "Where tickets rewind to",
        ),
    ),
    against="rewind to step 0",
    metrics=("final_test_accuracy", "stop_test_accuracy", "stop_step"),
    said=("final_test_accuracy",),
    replicates=(1, 3, 5),
)

instability = StoredExperiment(
    "frankle2020.instability",
    "Figures 3 and 5: the error barrier between two copies, against the step they part at.",
    template=lambda name, size: network(name, size, epochs=10, rounds=7),
    wanted=_copies,
    panels=(
        Panel(
            "barrier", "barrier", "error barrier (pp); stable below 2", "Two copies in different orders of data",
            x="parting", x_label="step at which the copies part", x_log=False, invert_x=False,
        ),
    ),
    metrics=("barrier",),
    replicates=(1, 3, 3),
)  # fmt: skip

interpolation = StoredExperiment(
    "frankle2020.interpolation",
    "Figure 2: the error on the line between two copies of the dense network, 30 points.",
    template=lambda name, size: network(name, size, epochs=10, rounds=7),
    wanted=_dense_copies,
    panels=(
        Panel(
            "line", "test_error", "test error (%)", "On the line between two copies", x="alpha",
            x_label="α, from one copy to the other", x_log=False, invert_x=False, lines="from",
        ),
    ),
    metrics=("barrier",),
    replicates=(1, 3, 3),
)  # fmt: skip

PARTS = (rewinding, instability, interpolation)
