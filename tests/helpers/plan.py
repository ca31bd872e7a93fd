"""A small plan of runs of every kind, and a program that carries it out: `python plan.py STORE EXECUTOR EPOCHS`."""

import sys
from dataclasses import replace

from prunus.runs.executors import run_plan
from prunus.runs.store import Store
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.instability import InstabilitySpec
from prunus.tickets.ticket import TicketSpec
from prunus.training import Recipe

RECIPE = Recipe(epochs=2, learning_rate=0.01, batch_size=25, lr_schedule="linear")
DENSE = BaselineSpec("tiny_networks:mlp", "digits", RECIPE, examples=85, eval_every=3, checkpoint_steps=(5,))


def plan(epochs: int = 2) -> list:
    """For two replicates a ticket, the control under its masks, one rewound late, and two copies of the network."""
    specs: list = []
    for replicate in (0, 1):
        dense = replace(DENSE, replicate=replicate, recipe=RECIPE.replace(epochs=epochs))
        ticket = TicketSpec(dense, rounds=2)
        specs += [
            ticket,
            TicketSpec(dense, rounds=2, mask1="reinitialize", masks_from=ticket),
            TicketSpec(dense, rounds=2, mask0="freeze_init", rewind_step=5),
            InstabilitySpec(dense, 5, points=3),
        ]
    return specs


if __name__ == "__main__":
    path, executor, epochs = sys.argv[1:]
    print("ready", flush=True)
    run_plan(
        plan(int(epochs)),
        Store(path),
        executor=executor,
        workers=2,
        log=lambda line: print(line, flush=True),
    )
