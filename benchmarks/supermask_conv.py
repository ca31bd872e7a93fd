"""Masks found and learned over the signed constants of Conv-2, 4 and 6 on CIFAR-10: a schedule that a CPU can take.

15,000 training pictures, 4 epochs: 3,000 steps of Adam at 0.1 for the logits, which start at 0.85, and 1,000 of the
published Adam for the trained network, from which the found masks come (large_final_same_sign, the density chosen on
the validation split).
"""

import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from typing import Any

from benchmarks.timing import spread, table
from prunus.experiments.networks import network
from prunus.experiments.supermasks import CONV_ADAM, CONV_START, LEVELS, SIGN, WEIGHTS, best_levels
from prunus.runs.execute import execute
from prunus.runs.spec import identity
from prunus.runs.store import Store
from prunus.tickets.supermask import Bernoulli
from prunus.tickets.supermask.found import Found
from prunus.tickets.supermask.spec import Supermask
from prunus.tickets.ticket import Ticket

NETWORKS = ("conv-2", "conv-4", "conv-6")
EXAMPLES, EPOCHS, SAMPLES = 15_000, 4, 3
CURVES = ("trained", "found", "learned", "learned + DWR")


def specs(name: str, replicate: int) -> dict[str, Any]:
    ticket = network(name, "default", EPOCHS, rounds=15)
    dense = replace(ticket.dense, examples=EXAMPLES, every=250, replicate=replicate)
    one_shot = Ticket(
        dense, "large_final_same_sign", rates=ticket.rates, rounds=15, schedule="one_shot", levels=LEVELS
    )
    learned = Supermask(dense, recipe=CONV_ADAM.but(epochs=EPOCHS), samples=SAMPLES, weights=WEIGHTS[SIGN])
    return {
        "trained": dense,
        "found": Found(one_shot, WEIGHTS[SIGN]),
        "learned": replace(learned, mask=Bernoulli(CONV_START)),
        "learned + DWR": replace(learned, mask=Bernoulli(CONV_START, rescale=True)),
    }


def run(replicates: int = 1, folder: str | None = None) -> str:
    """Everything is kept in `folder`, so that a run cut short goes on."""
    store = Store(folder or tempfile.mkdtemp(prefix="prunus-supermasks-"))
    rows = []
    for name in NETWORKS:
        found: dict[str, list[float]] = defaultdict(list)
        for replicate in range(replicates):
            wanted = specs(name, replicate)
            execute(
                list(wanted.values()),
                store,
                engine="inline",
                workers=1,
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )
            for curve, spec in wanted.items():
                levels = store.folder(identity(spec)).rows()
                labelled = [
                    {**row, "run": "", "curve": curve} for row in levels if row["level"] or curve == "trained"
                ]
                found[curve].append(best_levels(labelled)[0]["final_test_accuracy"])
        rows.append([name, "10.0", *(spread(found[curve]) for curve in CURVES)])
    note = f"test accuracy in %, n = {replicates}; a sampled mask is the mean of {SAMPLES} draws."
    return f"{table(['network', 'chance', *CURVES], rows)}\n\n{note}"
