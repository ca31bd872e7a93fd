"""Frankle & Carbin 2019, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks"."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

from prunus.experiments import frankle2019_networks
from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns, labeled
from prunus.experiments.presets import ticket_of_size, with_baseline, with_recipe
from prunus.runs.content import Row
from prunus.tickets.ticket import TicketSpec

PAPER = 'Frankle & Carbin 2019, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks"'
SOURCE = "Frankle & Carbin 2019"
TICKET, REINITIALIZED, ONE_SHOT = "winning ticket", "random reinitialization", "one-shot ticket"
ITERATIVE, ONE_SHOT_REINITIALIZED = "iterative ticket", "one-shot, random reinitialization"

STOP = FigureSpec(
    "stop", "stop_step", "early-stopping iteration (lowest validation loss)", "When training stops"
)
ACCURACY = FigureSpec(
    "accuracy", "stop_test_accuracy", "test accuracy at the early-stopping iteration (%)",
    "Accuracy where training stops",
)  # fmt: skip
END = FigureSpec(
    "end",
    "final_test_accuracy",
    "test accuracy at the end of training (%)",
    "Accuracy at the end of training",
)
LEVELS = (2, 4, 7, 11, 15)
"""Levels of the control runs of the default size."""
CURVE_LEVELS = (0, 3, 7, 12, 15, 18)
"""The levels whose training is shown: densities 1, 0.51, 0.21, 0.07, 0.04 and 0.02 of Lenet."""

LEARNING_RATES: Mapping[str, Mapping[str, Any]] = {
    f"Adam {rate:g}": {"learning_rate": rate} for rate in (2e-4, 4e-4, 8e-4, 1.2e-3, 1.6e-3, 2.4e-3)
}
OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "Adam 0.0012": {},
    "SGD 0.1": {"optimizer": "sgd", "learning_rate": 0.1},
    "SGD 0.05, momentum 0.9": {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9},
}


def _control_levels(ticket: TicketSpec, size: str) -> tuple[int, ...]:
    """The levels of control runs: all of the full size, else a few."""
    if size == "full":
        return ()
    return tuple(level for level in LEVELS if level <= ticket.rounds) or (ticket.rounds,)


def winning_and_reinitialized(ticket: TicketSpec, size: str) -> LabeledRuns:
    """The winning ticket of every level, and newly drawn weights under its masks.

    Args:
        ticket: The ticket of one network, with the settings of the size and those that the user changed.
        size: "smoke", "default" or "full": the full size draws weights three times for all levels, the others once for
            a few levels.

    Returns:
        The ticket, and one control run per draw, whose label has the additional key "draw".
    """
    control = replace(ticket, mask1="reinitialize", masks_from=ticket, levels=_control_levels(ticket, size))
    return [
        ({"curve": TICKET}, ticket),
        *(
            ({"curve": REINITIALIZED, "draw": draw}, replace(control, redraw=draw))
            for draw in range(3 if size == "full" else 1)
        ),
    ]


def ticket_with_test_curve(ticket: TicketSpec, size: str) -> LabeledRuns:
    """The winning ticket, with evaluations of the test split during training.

    Args:
        ticket: The ticket of one network, with the settings of the size and those that the user changed.
        size: "smoke", "default" or "full"; not used here, because the template has the settings of its size.

    Returns:
        One run, of the curve TICKET.
    """
    return labeled({TICKET: with_baseline(ticket, test_curve=True)})


def iterative_and_one_shot(ticket: TicketSpec, size: str) -> LabeledRuns:
    """Iterative and one-shot tickets, and newly drawn weights under the one-shot masks.

    Args:
        ticket: The ticket of one network, with the settings of the size and those that the user changed.
        size: "smoke", "default" or "full": the full size has one-shot tickets of all levels, the others of a few.

    Returns:
        Three runs, of the curves ITERATIVE, ONE_SHOT and ONE_SHOT_REINITIALIZED.
    """
    single = replace(ticket, schedule="one_shot", levels=_control_levels(ticket, size))
    control = replace(single, mask1="reinitialize", masks_from=single)
    return labeled({ITERATIVE: ticket, ONE_SHOT: single, ONE_SHOT_REINITIALIZED: control})


def one_curve_per_recipe(
    recipes: Mapping[str, Mapping[str, Any]],
) -> Callable[[TicketSpec, str], LabeledRuns]:
    """The winning ticket under recipes that differ in some settings; two of them in the smoke size."""
    return lambda ticket, size: labeled(
        {
            name: with_recipe(ticket, **recipes[name])
            for name in list(recipes)[: 2 if size == "smoke" else None]
        }
    )


_claim = partial(
    Claim, metric="stop_test_accuracy", source=SOURCE, at={"level": (7, 11, 15)}
)  # densities 0.21, 0.09 and 0.04 of Lenet
_better_than_dense = partial(
    _claim, expected="higher", at={"level": (4, 7)}, against_at={"level": (0,)}
)  # fmt: skip


def _claims(*published: str, effects: tuple[float | None, float | None]) -> tuple[Claim, ...]:
    """The claims on winning tickets, reinitialized ones and the dense network, with their published values.

    `effects` are the published gains in accuracy, over newly drawn weights and over the dense network.
    """
    reinitialized = "the same masks with newly drawn weights"
    accurate, early, better, earlier = published
    more, best = effects
    return (
        _claim(
            f"Winning tickets are more accurate at the early-stopping iteration than {reinitialized}",
            TICKET, "higher", REINITIALIZED, published=accurate, effect=more,
        ),
        _claim(
            f"Winning tickets reach the early-stopping iteration before {reinitialized}",
            TICKET, "lower", REINITIALIZED, metric="stop_step", published=early,
        ),
        _better_than_dense(
            "Winning tickets are more accurate than the dense network", TICKET, against=TICKET, published=better,
            effect=best,
        ),
        _claim(
            "Winning tickets stop before the dense network", TICKET, "lower", TICKET, metric="stop_step",
            at={"level": (7,)}, against_at={"level": (0,)}, published=earlier,
        ),
    )  # fmt: skip


BEFORE_DENSE, BEFORE_NEW, BEST_BEFORE_DENSE = (
    "stops earlier than dense", "stops earlier than new weights", "stops earlier than dense at best",
)  # fmt: skip
"""The metrics of `with_speedups`."""


def with_speedups(rows: Sequence[Row]) -> list[Row]:
    """Add to the rows of winning tickets how many times earlier they stop than other networks of the replicate.

    Args:
        rows: One row per curve, replicate, draw and level, with the early-stopping iteration "stop_step".

    Returns:
        The rows. Those of the curve TICKET from level 1 on also have BEFORE_DENSE, the iteration of the dense network
        divided by their own, and, where there are newly drawn weights of the level, BEFORE_NEW, the mean iteration of
        these divided by their own. That of level 0 has BEST_BEFORE_DENSE, the largest BEFORE_DENSE of all levels.
    """
    stops: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        key = row.get("group"), row["replicate"], row["curve"]
        stops.setdefault((*key, row["level"]), []).append(row["stop_step"])
    best: dict[tuple[Any, ...], float] = {}
    result = []
    for row in rows:
        of_replicate, level, stop = (row.get("group"), row["replicate"]), row["level"], row["stop_step"]
        dense, new = (stops.get((*of_replicate, *where)) for where in ((TICKET, 0), (REINITIALIZED, level)))
        speedups = {BEFORE_DENSE: dense, BEFORE_NEW: new} if row["curve"] == TICKET and level and stop else {}
        added = {name: mean(steps) / stop for name, steps in speedups.items() if steps}
        if BEFORE_DENSE in added:
            best[of_replicate] = max(added[BEFORE_DENSE], best.get(of_replicate, 0.0))
        result.append({**row, **added})
    return [
        {**row, BEST_BEFORE_DENSE: best[row.get("group"), row["replicate"]]}
        if row["curve"] == TICKET and not row["level"] and (row.get("group"), row["replicate"]) in best
        else row
        for row in result
    ]


lenet = Experiment(
    name="frankle2019.lenet",
    paper=PAPER,
    title="When Lenet stops and how accurate it is, winning ticket and random reinitialization",
    question="Does a winning ticket train faster and better than the same mask with newly drawn weights?",
    template=partial(ticket_of_size, epochs=20, rounds=15),
    runs=winning_and_reinitialized,
    figures=(STOP, ACCURACY, END),
    claims=(
        *_claims(
            "+0.5 pp at density 21 % (second-hand)", "2.51 times faster at density 21 % (second-hand)",
            "+0.3 pp at density 13.5 % (second-hand)", "38 % earlier at density 21 % (second-hand)", effects=(0.5, 0.3),
        ),
        *(
            _claim(
                f"At density 21 %, winning tickets stop at least {times:g} times as early as {other}", TICKET, "higher",
                times, metric=metric, at={"level": (7,)}, published=published,
            )
            for times, other, metric, published in (
                (2.51, "the same masks with newly drawn weights", BEFORE_NEW, "2.51 times (second-hand)"),
                (1.61, "the dense network", BEFORE_DENSE, "38 % fewer iterations, 1.61 times (second-hand)"),
            )
        ),
    ),
    differences=(
        "The default size draws new weights once per ticket; the full size draws them three times, as in the paper.",
    ),
    against=TICKET,
    described=("stop_step", "stop_test_accuracy"),
    select=with_speedups,
)  # fmt: skip

CONV_GAINS = {"conv-2": (3.4, 3.5), "conv-4": (3.5, 3.5), "conv-6": (3.3, 2.5)}
"""Published at the best density, second-hand: the gain in accuracy in percentage points, and how many times as early
winning tickets stop."""


def _conv_claims() -> Iterator[Claim]:
    """The claims of `_claims`, of which those with a published value are about one network each."""
    *beside_new, better, earlier = _claims("", "", "", "", effects=(None, None))
    yield from beside_new
    for network, (gain, _) in CONV_GAINS.items():
        published = f"+{gain:g} pp at best (second-hand)"
        yield replace(better, networks=(network,), published=published, effect=gain)
    for network, (_, times) in CONV_GAINS.items():
        published = f"{times:g} times as early at best (second-hand)"
        yield replace(earlier, networks=(network,), published=published)


CONV_EXAMPLES = 20_000
"""Training images of the default size."""


def _conv(network: str, size: str) -> TicketSpec:
    ticket = ticket_of_size(network, size, epochs=10, rounds=8)
    if size != "default":
        return ticket
    narrow = f"{frankle2019_networks.__name__}:narrow_{network.replace('-', '_')}"
    return with_baseline(ticket, model=narrow, examples=CONV_EXAMPLES)


conv = replace(
    lenet,
    name="frankle2019.conv",
    title="Winning tickets and random reinitializations of Conv-2, Conv-4 and Conv-6 on CIFAR-10",
    question="Do convolutional networks on CIFAR-10 contain winning tickets?",
    template=_conv,
    claims=(
        *_conv_claims(),
        *(
            _claim(
                f"At the best density, winning tickets stop at least {times:g} times as early as the dense network",
                TICKET, "higher", times, metric=BEST_BEFORE_DENSE, at={}, networks=names,
                published=f"{times:g} times at density {densities} % (second-hand)",
            )
            for times, names, densities in (
                (3.5, ("conv-2", "conv-4"), "8.8 and 9.2"),
                (2.5, ("conv-6",), "15.1"),
            )
        ),
    ),
    differences=(
        *lenet.differences,
        "The networks of the default size have a quarter of the channels and hidden units: the full widths take nine "
        "times as long on a CPU.",
        "The default size has 20,000 training, 5,000 validation and 6,666 of the 10,000 test images; the full size has "
        "45,000, 5,000 and 10,000.",
        "The default size has eight rounds, after which about a fifth of the weights remains; the published best "
        "densities are lower.",
    ),
    networks=("conv-2", "conv-4", "conv-6"),
    replicates=(1, 3, 5),
)  # fmt: skip

curves = replace(
    lenet,
    name="frankle2019.curves",
    title="Test accuracy during training, one curve per density",
    question="How does the test accuracy of winning tickets develop during training at different densities?",
    template=partial(ticket_of_size, epochs=10, rounds=15),
    runs=ticket_with_test_curve,
    figures=(
        FigureSpec(
            "training", "test_accuracy", "test accuracy (%)", "Winning tickets during training", x="step",
            x_label="training iterations", source="curves", curves="density %",
            select=lambda rows: [row for row in rows if row["level"] in CURVE_LEVELS and row["step"] > 0],
        ),
    ),
    claims=(
        _better_than_dense(
            "The winning ticket with 21 % of the weights is more accurate than the dense network", TICKET,
            against=TICKET, at={"level": (7,)},
        ),
    ),
    differences=(),
    against="",
    replicates=(1, 3, 5),
)  # fmt: skip

one_shot = replace(
    lenet,
    name="frankle2019.one_shot",
    title="One-shot and iterative pruning",
    question="Does one-shot pruning find winning tickets as good as iterative pruning does?",
    runs=iterative_and_one_shot,
    claims=(
        _claim(
            "Iterative tickets are more accurate than one-shot tickets of the same density",
            ITERATIVE, "higher", ONE_SHOT,
        ),
        _claim(
            "One-shot tickets are more accurate than their masks with newly drawn weights",
            ONE_SHOT, "higher", ONE_SHOT_REINITIALIZED,
        ),
    ),
    differences=(),
    against=ITERATIVE,
    described=("stop_test_accuracy",),
)  # fmt: skip


def _each_beats_the_dense_network(names: Sequence[str]) -> tuple[Claim, ...]:
    """One claim per curve: its winning ticket is more accurate than its dense network."""
    return tuple(
        _better_than_dense(
            f"{name}: the winning ticket is more accurate than the dense network", name, against=name
        )
        for name in names
    )


learning_rates = replace(
    lenet,
    name="frankle2019.learning_rates",
    title="Winning tickets at other learning rates of Adam",
    question="At which learning rates of Adam are there winning tickets?",
    template=partial(ticket_of_size, epochs=10, rounds=11),
    runs=one_curve_per_recipe(LEARNING_RATES),
    figures=(STOP, ACCURACY),
    claims=_each_beats_the_dense_network(list(LEARNING_RATES)),
    differences=(),
    against="",
    described=("stop_test_accuracy",),
    replicates=(1, 3, 3),
)

optimizers = replace(
    learning_rates,
    name="frankle2019.optimizers",
    title="Winning tickets with SGD and with momentum",
    question="Are there winning tickets with SGD and with momentum, as there are with Adam?",
    template=partial(ticket_of_size, epochs=15, rounds=11),
    runs=one_curve_per_recipe(OPTIMIZERS),
    claims=_each_beats_the_dense_network(list(OPTIMIZERS)),
)
