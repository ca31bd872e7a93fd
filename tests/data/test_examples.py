"""Examples of any form become one batch, from which every method takes batches of the same form."""

from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from prunus.data.examples import Examples, as_examples, inputs_of, labels_of, map_tensors, sample_examples
from prunus.errors import StatisticsError
from prunus.types import Dataset, Split

X, Y = torch.arange(20.0).reshape(10, 2), torch.arange(10)
Pair = namedtuple("Pair", ["x", "y"])


def equal(batch, other):
    return repr(map_tensors(lambda t: t.tolist(), batch)) == repr(map_tensors(lambda t: t.tolist(), other))


def test_every_form_gives_the_same_examples():
    split = Split(X, Y)
    forms = [
        split,
        Dataset("d", split, split.take(2), split.take(2), ("a",)),
        (X, Y),
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        (pair for pair in [(X[:9], Y[:9]), (X[9:], Y[9:])]),
    ]
    for form in forms:
        assert equal(as_examples(form).batch, (X, Y))
    loaded = as_examples(DataLoader(TensorDataset(X, Y), batch_size=3))
    assert equal(loaded.batch, [X, Y])  # as the loader makes its batches
    assert torch.equal(inputs_of(loaded.batch), X)
    assert torch.equal(labels_of(loaded.batch), Y)


@pytest.mark.parametrize(
    "batch", [X, (X,), {"x": X, "labels": Y, "return_dict": True}, Pair(X, Y), (X, {"mask": [Y, Y]})]
)
def test_batches_keep_the_form_and_the_order(batch):
    examples = Examples(batch)
    cut = examples.batches(4)
    assert [len(Examples(part)) for part in cut] == [4, 4, 2]
    assert [len(Examples(part)) for part in examples.equal_batches(4)] == [4, 3, 3]
    assert all(type(part) is type(batch) for part in cut)
    assert equal(as_examples(cut).batch, batch)
    assert equal(examples.take(torch.tensor([9, 0])).batch, map_tensors(lambda t: t[[9, 0]], batch))
    assert examples.to(torch.float64).batch is not batch


def test_mapping_of_another_library_is_read_as_a_dict():
    transformers = pytest.importorskip("transformers")
    batch = transformers.BatchEncoding({"input_ids": Y, "labels": Y})
    assert equal(as_examples([batch, batch]).batch, {"input_ids": Y.repeat(2), "labels": Y.repeat(2)})


def test_an_iterable_is_read_only_as_far_as_needed():
    count = 0

    def endless():
        nonlocal count
        while True:
            count += 1
            yield X, Y

    assert len(sample_examples(endless(), 25, seed=0)) == 25
    assert count == 3
    assert equal(sample_examples(endless(), 5, seed=0).batch, (X[:5], Y[:5]))
    order = sample_examples((X, Y), 5, seed=0).labels
    assert len(order) == 5
    assert not torch.equal(order, Y[:5])


def failing():
    yield X
    raise OSError("disk on fire")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the list yields no batch"),
        (iter(()), "yields no batch; an iterator can be read only once"),
        (
            [X, X[:, :1]],
            r"one shape and dtype, and .*, got \(\(2,\), torch.float32\) and \(\(1,\), torch.float32\); pad or crop",
        ),
        ([X, X.double()], "one shape and dtype"),
        ([{"x": X}, {"y": X}], "one shape and dtype"),
        ((X, Y[:9]), r"one entry per example along dimension 0, got shapes \(\(10, 2\), \(9,\)\)"),
        (torch.tensor(1.0), "one entry per example"),
        (X[:0], "at least one example"),
        ({"x": 1}, "got a dict without any"),
        ([1, 2], "got a int without any"),
        ("digits", "such as a DataLoader, got a str"),
        (3, "such as a DataLoader, got a int"),
        (Split([1.0], Y), "inputs as a tensor, got a list"),
        (X.to_sparse(), "a dense tensor with values, got a torch.sparse_coo tensor"),
        (failing(), r"batches \(generator\) failed: disk on fire"),
    ],
)
def test_data_that_are_no_examples_are_refused(data, message):
    with pytest.raises(StatisticsError, match=message):
        as_examples(data)


def test_a_batch_of_another_form_needs_a_forward():
    with pytest.raises(
        StatisticsError, match=r"\(\(10, 2\), \(10, 2\), \(10,\)\); pass forward=lambda model, batch"
    ):
        inputs_of((X, X, Y))
