"""The networks of the ticket experiments with their published settings, and what a size makes of them.

Source: Frankle & Carbin 2019, Figure 2; Zhou et al. 2019, supplementary material S1. Both use Glorot's Gaussian, Adam,
batches of 60, an evaluation every 100 iterations, and 5,000 examples for validation.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunus.registry import lookup
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.ticket import PruningRates, TicketSpec
from prunus.training import RECIPES


def _network(model: str, data: str, rates: PruningRates) -> TicketSpec:
    return TicketSpec(BaselineSpec(model, data, RECIPES[model], backend="auto"), pruning_rates=rates)


NETWORKS: Mapping[str, TicketSpec] = {
    "lenet": _network("lenet-300-100", "mnist", PruningRates(linear=0.2, output=0.1)),
    "conv-2": _network("conv-2", "cifar-10", PruningRates(linear=0.2, conv=0.1, output=0.1)),
    "conv-4": _network("conv-4", "cifar-10", PruningRates(linear=0.2, conv=0.1, output=0.1)),
    "conv-6": _network("conv-6", "cifar-10", PruningRates(linear=0.2, conv=0.15, output=0.1)),
}
"""A ticket of each network, with the layer rates of the papers: half the rate for the output layer."""

SMOKE = {"lenet": (3000, 10), "conv-2": (120, 1), "conv-4": (120, 1), "conv-6": (120, 1)}
"""Training examples, and steps between evaluations, of the smoke size."""


def ticket_of_size(name: str, size: str, epochs: int | None = None, rounds: int | None = None) -> TicketSpec:
    """Return the ticket of a network at a size.

    Args:
        name: A key of NETWORKS.
        size: "full" for the published length and 24 rounds, "smoke" for a tiny run, "default".
        epochs: Epochs of the default size; None for the published number.
        rounds: Rounds of the default size; None for 24.

    Returns:
        The ticket with the settings of that size.

    Raises:
        UnknownNameError: NETWORKS has no such name.
    """
    ticket = lookup("network", NETWORKS, name)
    if size == "full":
        return ticket
    if size == "smoke":
        examples, eval_every = SMOKE[name]
        small = with_baseline(with_recipe(ticket, epochs=1), examples=examples, eval_every=eval_every)
        return replace(small, rounds=3, num_scoring_examples=20)
    default_size = with_recipe(ticket, epochs=epochs or ticket.baseline.recipe.epochs)
    return replace(default_size, rounds=rounds or ticket.rounds)


def with_baseline(ticket: TicketSpec, **changes: Any) -> TicketSpec:
    """Return the ticket with some settings of its baseline changed."""
    return replace(ticket, baseline=replace(ticket.baseline, **changes))


def with_recipe(ticket: TicketSpec, **changes: Any) -> TicketSpec:
    """Return the ticket with some settings of its baseline's recipe changed."""
    return with_baseline(ticket, recipe=ticket.baseline.recipe.replace(**changes))
