"""The MONK's problems: 432 robots with six attributes, and a rule per problem that says which are positive; generated.

    monks-1    head = body, or jacket is red                                     124 training examples
    monks-2    exactly two of the six attributes have their first value          169
    monks-3    jacket green and sword held, or jacket not blue and body not octagon    122, of which 6 mislabeled

Attributes a1..a6 (head, body, smiling, holding, jacket, tie) have 3, 3, 2, 3, 4, 2 values; as 17 inputs, one-hot 0/1.

Source: Thrun et al. 1991, "The MONK's Problems - A Performance Comparison of Different Learning Algorithms".
Differences from the paper: the training examples are drawn by the seed, in the published numbers, and are not the
original list; the mislabeled 5 % of monks-3 too. As published, the test split is all 432 examples, including the
training examples. The paper has no validation split: here it is 100 of the examples that are not used for training,
correctly labeled, which are in the test split too; results that were chosen by them must not be called unseen.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from prunus.seeds import make_generator
from prunus.types import Dataset, Split

VALUES = (3, 3, 2, 3, 4, 2)
"""The number of values of each attribute."""
NUM_TRAIN = {1: 124, 2: 169, 3: 122}
NUM_VALIDATION = 100
NOISE = 0.05
"""The fraction of the training examples of monks-3 with the wrong label."""


def robots() -> Tensor:
    """All 432 robots in lexical order, int64 [432, 6], values from 1.

    >>> robots()[[0, -1]].tolist()
    [[1, 1, 1, 1, 1, 1], [3, 3, 2, 3, 4, 2]]
    """
    return torch.tensor(list(product(*(range(1, top + 1) for top in VALUES))))


def rule(problem: int, attributes: Tensor) -> Tensor:
    """Which robots a problem calls positive.

    Args:
        problem: 1, 2 or 3.
        attributes: int64 [N, 6], values from 1.

    Returns:
        bool [N].

    Example:
        >>> [int(rule(problem, robots()).sum()) for problem in (1, 2, 3)]
        [216, 142, 228]
    """
    head, body, _, holding, jacket, _ = attributes.unbind(1)
    if problem == 1:
        return (head == body) | (jacket == 1)
    if problem == 2:
        return (attributes == 1).sum(1) == 2
    return ((jacket == 3) & (holding == 1)) | ((jacket != 4) & (body != 3))


def one_hot(attributes: Tensor) -> Tensor:
    """The 17 inputs, float32 [N, 17]: attribute after attribute, value after value."""
    columns = [
        attributes[:, index] == value for index, top in enumerate(VALUES) for value in range(1, top + 1)
    ]
    return torch.stack(columns, 1).to(torch.float32)


def loader(problem: int) -> Callable[..., Dataset]:
    """The function (root, seed, download) -> Dataset of problem 1, 2 or 3."""

    def load(root: str | Path | None = None, seed: int = 0, download: bool = True) -> Dataset:
        attributes = robots()
        inputs, labels = one_hot(attributes), rule(problem, attributes).to(torch.int64)
        order = torch.randperm(len(labels), generator=make_generator(seed, "monks", problem))
        size = NUM_TRAIN[problem]
        train, validation = order[:size].sort().values, order[size : size + NUM_VALIDATION].sort().values
        noisy = labels[train]
        if problem == 3:
            noise = torch.randperm(size, generator=make_generator(seed, "monks", "noise"))
            mislabeled = noise[: round(NOISE * size)]
            noisy[mislabeled] = 1 - noisy[mislabeled]
        return Dataset(
            f"monks-{problem}",
            Split(inputs[train], noisy),
            Split(inputs[validation], labels[validation]),
            Split(inputs, labels),
            ("no", "yes"),
            f"generated from the rule; {size} training examples drawn by seed {seed}, not the original list",
        )

    load.__doc__ = f"MONK's problem {problem}: 432 robots with six attributes and a rule; generated."
    return load
