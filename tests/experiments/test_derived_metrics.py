"""Metrics that experiments derive from the rows of several runs, on rows whose values are checked by eye."""

import pytest

from prunus.experiments.frankle2019 import (
    BEFORE_DENSE,
    BEFORE_NEW,
    BEST_BEFORE_DENSE,
    REINITIALIZED,
    TICKET,
    with_speedups,
)
from prunus.experiments.han2015 import WITHOUT_LOSS, with_error_increase, with_sparsity_without_loss


def test_speedups_divide_the_iterations_of_other_networks_by_those_of_the_ticket():
    steps = {(TICKET, 0): [800], (TICKET, 1): [400], (TICKET, 2): [500], (REINITIALIZED, 2): [900, 1100]}
    rows = [
        {
            "curve": curve,
            "replicate": replicate,
            "level": level,
            "draw": draw,
            "stop_step": step * (replicate + 1),
        }
        for replicate in (0, 1)
        for (curve, level), of_draws in steps.items()
        for draw, step in enumerate(of_draws)
    ]
    for row in with_speedups(rows):
        added = {key: row[key] for key in (BEFORE_DENSE, BEFORE_NEW, BEST_BEFORE_DENSE) if key in row}
        assert added == {
            (TICKET, 0): {BEST_BEFORE_DENSE: 2.0},
            (TICKET, 1): {BEFORE_DENSE: 2.0},
            (TICKET, 2): {BEFORE_DENSE: 1.6, BEFORE_NEW: 2.0},
        }.get((row["curve"], row["level"]), {})


@pytest.mark.parametrize(
    ("lost", "highest"), [([0.1, 0.2, 0.3], 80.0), ([0.1, 0.3, 0.2], 50.0), ([0.3, 0.0, 0.0], 0.0)]
)
def test_sparsity_without_loss_ends_at_the_first_network_that_loses_more(lost, highest):
    rows = [
        {"curve": "L2", "replicate": 4, "pruned %": sparsity, "accuracy lost": value}
        for sparsity, value in zip((50.0, 80.0, 90.0), lost, strict=True)
    ]
    *unchanged, added = with_sparsity_without_loss(rows[::-1])
    assert unchanged == rows[::-1]
    assert added == {"curve": "L2", "replicate": 4, WITHOUT_LOSS: highest}


def test_error_increase_is_added_to_whole_networks_only():
    rows = [{"layer": "fc1"}, {"layer": "total", "test error": 1.75, "dense error": 1.5}]
    assert with_error_increase(rows) == [rows[0], {**rows[1], "error increase": 0.25}]
