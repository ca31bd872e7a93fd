"""The MONK's problems against their rules, written here a second time, by the names of the values."""

from collections import Counter

import pytest
import torch

from prunus.data import load_data
from prunus.data.monks import NOISE, NUM_TRAIN, VALUES, one_hot, robots, rule

each_problem = pytest.mark.parametrize("problem", [1, 2, 3])
COLUMNS = [(column, value) for column, top in enumerate(VALUES) for value in range(top)]


def positive(problem: int, row: tuple[int, ...]) -> bool:
    """The rules, by the names of the values."""
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
    """The attributes of one-hot rows, by the column that is first."""
    rows = []
    for row in inputs:
        ones = [COLUMNS[column] for column in row.nonzero().flatten().tolist()]
        assert [column for column, _ in ones] == list(range(6))
        rows.append(tuple(value + 1 for _, value in ones))
    return rows


def test_robots_are_432_and_distinct():
    assert robots().shape == (432, 6)
    assert len(set(map(tuple, robots().tolist()))) == 432
    assert decoded(one_hot(robots())) == [tuple(row) for row in robots().tolist()]
    assert one_hot(robots()).shape == (432, 17)


@each_problem
@pytest.mark.parametrize("seed", [0, 7])
def test_labels_follow_the_rule_except_for_the_noise(problem, seed):
    data = load_data(f"monks-{problem}", seed=seed)
    assert len(data.test) == 432
    assert len(data.train) == NUM_TRAIN[problem] == {1: 124, 2: 169, 3: 122}[problem]
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
def test_training_and_validation_splits_are_disjoint(problem):
    data = load_data(f"monks-{problem}")
    train, validation, test = (decoded(s.inputs) for s in (data.train, data.validation, data.test))
    assert len(set(train)) == len(train)
    assert not set(train) & set(validation)
    assert set(train) | set(validation) < set(test)


@each_problem
def test_seed_changes_only_the_training_examples(problem):
    first, same, other = (load_data(f"monks-{problem}", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train.inputs, same.train.inputs)
    assert torch.equal(first.train.labels, same.train.labels)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert torch.equal(first.test.inputs, other.test.inputs)
    assert torch.equal(first.test.labels, rule(problem, robots()).long())
