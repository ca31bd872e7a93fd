"""The MONK's problems against their rules, stated here a second time in words of their own."""

from collections import Counter

import pytest
import torch

from prunus.data import load
from prunus.data.monks import NOISE, TRAIN, VALUES, one_hot, robots, rule

each_problem = pytest.mark.parametrize("problem", [1, 2, 3])
COLUMNS = [(place, value) for place, top in enumerate(VALUES) for value in range(top)]


def positive(problem: int, row: tuple[int, ...]) -> bool:
    """The rules by the names of things."""
    head, body, smiling, holding, jacket, tie = row
    shape, red, first = (
        {1: "round", 2: "square", 3: "octagon"},
        1,
        (head, body, smiling, holding, jacket, tie),
    )
    if problem == 1:
        return shape[head] == shape[body] or jacket == red
    if problem == 2:
        return Counter(first)[1] == 2
    color, held = {1: "red", 2: "yellow", 3: "green", 4: "blue"}[jacket], {1: "sword"}.get(holding)
    green_sword = color == "green" and held == "sword"
    return green_sword or not (color == "blue" or shape[body] == "octagon")


def decoded(inputs: torch.Tensor) -> list[tuple[int, ...]]:
    """The attributes of one-hot rows, by the column that is one."""
    rows = []
    for row in inputs:
        ones = [COLUMNS[place] for place in row.nonzero().flatten().tolist()]
        assert [place for place, _ in ones] == list(range(6))
        rows.append(tuple(value + 1 for _, value in ones))
    return rows


def test_432_robots_each_once():
    assert robots().shape == (432, 6)
    assert len(set(map(tuple, robots().tolist()))) == 432
    assert decoded(one_hot(robots())) == [tuple(row) for row in robots().tolist()]
    assert one_hot(robots()).shape == (432, 17)


@each_problem
@pytest.mark.parametrize("seed", [0, 7])
def test_the_rules_decide_every_label_but_the_noise(problem, seed):
    data = load(f"monks-{problem}", seed=seed)
    assert len(data.test) == 432
    assert len(data.train) == TRAIN[problem] == {1: 124, 2: 169, 3: 122}[problem]
    assert int(data.test.labels.sum()) == {1: 216, 2: 142, 3: 228}[problem]
    wrong = {
        part: sum(
            positive(problem, row) != bool(label)
            for row, label in zip(decoded(split.inputs), split.labels, strict=True)
        )
        for part, split in (("train", data.train), ("validation", data.validation), ("test", data.test))
    }
    assert wrong == {"train": 6 if problem == 3 else 0, "validation": 0, "test": 0}
    assert round(NOISE * 122) == 6
    assert data.class_names == ("no", "yes")
    assert "not the original list" in data.provenance


@each_problem
def test_training_and_validation_share_no_robot(problem):
    data = load(f"monks-{problem}")
    train, validation, test = (decoded(s.inputs) for s in (data.train, data.validation, data.test))
    assert len(set(train)) == len(train)
    assert not set(train) & set(validation)
    assert set(train) | set(validation) < set(test)


@each_problem
def test_the_seed_draws_the_subset_and_nothing_else(problem):
    one, same, other = (load(f"monks-{problem}", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.train.inputs, same.train.inputs)
    assert torch.equal(one.train.labels, same.train.labels)
    assert not torch.equal(one.train.inputs, other.train.inputs)
    assert torch.equal(one.test.inputs, other.test.inputs)
    assert torch.equal(one.test.labels, rule(problem, robots()).long())
