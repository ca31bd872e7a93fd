"""Properties of every schedule: it ends at the target to the bit, never rises, and follows its closed formula."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.errors import DensityError
from prunus.pruning.schedules import SCHEDULES, cubic, iterative, layer_by_layer, one_shot

TARGET = {"a": 0.07, "b": 0.5, "c": 1.0}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@each_schedule
def test_schedules_end_at_the_target_and_never_rise(schedule):
    steps = schedule(TARGET, 3)
    assert len(steps) == 3
    assert steps[-1] == TARGET
    for name in TARGET:
        falling = [step[name] for step in steps]
        assert falling == sorted(falling, reverse=True)


@given(density=st.floats(0.001, 1.0), rounds=st.integers(1, 30))
def test_schedules_equal_their_closed_formulas(density, rounds):
    for t, actual in enumerate(iterative(density, rounds), start=1):
        assert actual == pytest.approx(density ** (t / rounds))
    for t, actual in enumerate(cubic(density, rounds), start=1):
        assert 1 - actual == pytest.approx((1 - density) * (1 - (1 - t / rounds) ** 3))
    assert one_shot(density, rounds) == [density] * rounds


def test_iterative_prunes_the_same_fraction_of_the_remaining_weights_each_round():
    steps = [1.0, *iterative(0.02, 7)]
    assert [b / a for a, b in pairwise(steps)] == pytest.approx([0.02 ** (1 / 7)] * 7)


def test_layer_by_layer_prunes_one_layer_per_round():
    assert [sum(v < 1 for v in s.values()) for s in layer_by_layer({"a": 0.1, "b": 0.1})] == [1, 2]


@pytest.mark.parametrize("bad", [0.0, 1.5, {"a": 0.0}])
@each_schedule
def test_density_out_of_range_is_refused(schedule, bad):
    with pytest.raises(DensityError):
        schedule(bad, 1)


@pytest.mark.parametrize("schedule", [one_shot, iterative, cubic])
def test_no_rounds_are_refused(schedule):
    with pytest.raises(DensityError, match="got '3' rounds"):
        cubic(0.5, "3")
    with pytest.raises(DensityError, match="0 rounds"):
        schedule(0.5, 0)
