"""Examples of any form as one batch: nested tuples, lists and dicts of tensors, with the examples along dimension 0.

    calibration                              batch                        called without `forward`
    tensor [N, ...]                          tensor                       model(inputs)
    Split, Dataset, (inputs, labels)         (inputs, labels)             model(inputs)
    dict of tensors                          dict                         model(**arguments), 'labels' are the labels
    DataLoader, other iterable of these      as it yields them            likewise

Other batches, such as tuples of three tensors, need a `forward`. Whoever cuts examples into batches calls
`Examples.batches`; whoever calls the model on a batch calls `training.outputs.call_model`.
"""

import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus.data.image_folder import ImageFiles
from prunus.data.validation import unusual_storage
from prunus.errors import PrunusError, StatisticsError, reason_of
from prunus.seeds import make_generator
from prunus.types import Dataset, Split

Batch = Any
"""Nested tuples, lists and dicts of tensors; other values in it belong to every example alike."""
DEFAULT_NUM_EXAMPLES = 1024
"""How many examples of an iterable are used at most."""


@dataclass(frozen=True)
class Examples:
    """Examples that are resident as one batch.

    Args:
        batch: Tensors [N, ...] with one N, nested as a forward pass takes them.

    Raises:
        StatisticsError: There is no tensor or no example, or the tensors differ in N or are not dense.

    >>> examples = Examples((torch.zeros(5, 2), torch.tensor([0, 1, 0, 1, 0])))
    >>> len(examples), [len(labels) for _, labels in examples.batches(2)]
    (5, [2, 2, 1])
    """

    batch: Batch

    def __post_init__(self) -> None:
        tensors = list(iter_tensors(self.batch))
        if not tensors:
            raise StatisticsError(
                f"Expected examples as a tensor [N, ...], or a tuple or dict of tensors, got a "
                f"{type(self.batch).__name__} without any; pass the examples as tensors."
            )
        for tensor in tensors:
            kind = unusual_storage(tensor)
            if kind is not None:
                raise StatisticsError(
                    f"Expected examples as a dense tensor with values, got a {kind} tensor; convert it "
                    "first, for example with tensor.to_dense()."
                )
        if not all(tensor.dim() for tensor in tensors) or len({len(tensor) for tensor in tensors}) > 1:
            raise StatisticsError(
                "Expected inputs and labels with one entry per example along dimension 0, got shapes "
                f"{describe_batch(self.batch)}; pass as many of each, or add a dimension for the examples."
            )
        if not all(tensor.numel() for tensor in tensors):
            raise StatisticsError(f"Expected at least one example, got shapes {describe_batch(self.batch)}.")

    def __len__(self) -> int:
        return len(next(iter_tensors(self.batch)))

    @property
    def inputs(self) -> Batch:
        """What `model` is called with where there is no `forward`."""
        return inputs_of(self.batch)

    @property
    def labels(self) -> Tensor | None:
        """The labels, where there are some."""
        return labels_of(self.batch)

    def take(self, selection: slice | Tensor) -> "Examples":
        """Some of the examples.

        Args:
            selection: A slice, indices, or a mask.

        Returns:
            Examples of the same form.
        """
        if isinstance(selection, slice):
            return Examples(map_tensors(lambda t: t[selection], self.batch))
        return Examples(map_tensors(lambda t: t[selection.to(t.device)], self.batch))

    def batches(self, batch_size: int) -> list[Batch]:
        """All examples in batches of `batch_size`, the last may be smaller; views."""
        return [self.take(slice(i, i + batch_size)).batch for i in range(0, len(self), batch_size)]

    def equal_batches(self, batch_size: int) -> list[Batch]:
        """All examples in as few batches of at most `batch_size` as possible, which differ by one example at most."""
        parts = torch.arange(len(self)).tensor_split(math.ceil(len(self) / batch_size))
        return [self.take(slice(int(part[0]), int(part[-1]) + 1)).batch for part in parts]

    def to(self, dtype: torch.dtype) -> "Examples":
        """The same with all floating-point tensors in `dtype`."""
        return Examples(map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, self.batch))


Calibration = Examples | Dataset | Split | Tensor | tuple[Any, ...] | Mapping[str, Any] | Iterable[Any]


def as_examples(data: Calibration, num_examples: int = DEFAULT_NUM_EXAMPLES) -> Examples:
    """Examples from any form of data.

    Args:
        data: All examples at once (a Dataset, of which the training split is used, a Split, a tensor, a tuple or a
            dict), or any other iterable of batches, such as a DataLoader.
        num_examples: How many examples are read from an iterable or from files, at most; other data are used
            completely.

    Returns:
        The examples.

    Raises:
        StatisticsError: It is none of these, yields nothing, yields batches that differ in shape, or has no example.

    >>> len(as_examples([torch.zeros(3, 2), torch.zeros(2, 2)]))
    5
    """
    if isinstance(data, Examples):
        return data
    if isinstance(data, Dataset):
        data = data.train
    if isinstance(data, ImageFiles):
        data = data.take(num_examples)
    if isinstance(data, Split):
        pair = data.inputs, data.labels  # the images of ImageFiles are read here
        for what, part in zip(("inputs", "labels"), pair, strict=True):
            if not isinstance(part, Tensor):
                raise StatisticsError(
                    f"Expected calibration {what} as a tensor, got a {type(part).__name__}."
                )
        data = pair
    if isinstance(data, Tensor | tuple | Mapping):
        return Examples(map_tensors(lambda tensor: tensor, data))
    if not isinstance(data, Iterable) or isinstance(data, str):
        raise StatisticsError(
            f"Expected examples as a Dataset, a Split, a tensor, a tuple or dict of tensors, or an iterable "
            f"of these such as a DataLoader, got a {type(data).__name__}; pass one of them."
        )
    return Examples(_concatenate(_first_batches(data, num_examples))).take(slice(num_examples))


def sample_examples(data: Calibration, num_examples: int, seed: int) -> Examples:
    """Some examples in random order, or all where there are no more; those of an iterable in its own order.

    Args:
        data: Examples in any form.
        num_examples: At least 1.
        seed: Seed of the choice and its order; unused for an iterable, which may shuffle itself.

    Returns:
        At most `num_examples` examples.

    Raises:
        StatisticsError: As `as_examples`, or a number below 1.
    """
    if num_examples < 1:
        raise StatisticsError(f"Expected at least one calibration example to choose, got {num_examples}.")
    if isinstance(data, Dataset):
        data = data.train
    if isinstance(data, ImageFiles):
        order = torch.randperm(len(data), generator=make_generator(seed, "calibration"))[:num_examples]
        return as_examples(data.select(order), num_examples)
    examples = as_examples(data, num_examples)
    if not isinstance(data, Examples | Split | Tensor | tuple | Mapping):
        return examples
    order = torch.randperm(len(examples), generator=make_generator(seed, "calibration"))[:num_examples]
    return examples.take(order)


def inputs_of(batch: Batch) -> Batch:
    """What a model is called with where there is no `forward`: a tensor, or a dict of arguments.

    Args:
        batch: A tensor, a dict, or one of these alone or with labels in a tuple or list.

    Returns:
        The inputs.

    Raises:
        StatisticsError: The batch has another form.
    """
    if isinstance(batch, tuple | list) and 1 <= len(batch) <= 2:
        batch = batch[0]
    if isinstance(batch, Tensor | Mapping):
        return batch
    raise StatisticsError(
        "Expected batches that are a tensor, a dict of arguments, or a pair of inputs and labels, got "
        f"{describe_batch(batch)}; pass forward=lambda model, batch: ..."
    )


def labels_of(batch: Batch) -> Tensor | None:
    """The labels in a batch: the second of a pair, or the entry 'labels' of a dict; None where there are none."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(batch, tuple | list) and len(batch) == 2:
        labels = batch[1]
    return labels if isinstance(labels, Tensor) else None


def iter_tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in a value, also those in mappings, tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from iter_tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from iter_tensors(part)


def map_tensors(function: Callable[[Tensor], Any], batch: Batch) -> Batch:
    """A batch of the same form with `function` of each tensor; mappings become dicts.

    Args:
        function: Returns a tensor, or anything.
        batch: Nested tuples, lists and mappings; values that are not tensors stay as they are.

    Returns:
        The new batch.

    >>> map_tensors(lambda tensor: tensor + 1, {"x": torch.zeros(1), "return_dict": True})
    {'x': tensor([1.]), 'return_dict': True}
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(function, value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [map_tensors(function, value) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def replace_tensors(batch: Batch, tensors: Iterable[Tensor]) -> Batch:
    """A batch of the same form with other tensors.

    Args:
        batch: The form.
        tensors: As many tensors, in the order of `iter_tensors`.

    Returns:
        The new batch.
    """
    remaining = iter(tensors)
    return map_tensors(lambda _: next(remaining), batch)


def describe_batch(batch: Batch) -> str:
    """The shapes of the tensors of a batch, for errors.

    >>> describe_batch((torch.zeros(3, 2), torch.zeros(3)))
    '((3, 2), (3,))'
    """
    return reprlib.repr(map_tensors(lambda tensor: tuple(tensor.shape), batch))


def _first_batches(data: Iterable[Any], num_examples: int) -> list[Batch]:
    """The first batches of an iterable, until they have `num_examples` examples."""
    batches: list[Batch] = []
    count = 0
    try:
        for batch in data:
            batches.append(Examples(map_tensors(lambda tensor: tensor, batch)).batch)
            count += len(next(iter_tensors(batches[-1])))
            if count >= num_examples:
                break
    except PrunusError:
        raise
    except Exception as error:  # a user's loader may fail in any way
        raise StatisticsError(
            f"The iterable of calibration batches ({type(data).__name__}) failed: {reason_of(error)}"
        ) from error
    if not batches:
        raise StatisticsError(
            f"Expected at least one calibration example, but the {type(data).__name__} yields no batch; an iterator "
            "can be read only once."
        )
    return batches


def _concatenate(batches: list[Batch]) -> Batch:
    forms = [repr(map_tensors(lambda t: (tuple(t.shape[1:]), t.dtype), batch)) for batch in batches]
    for form in forms:
        if form != forms[0]:
            raise StatisticsError(
                "Expected calibration batches whose examples have one shape and dtype, and whose other values are "
                f"equal, got {forms[0]} and {form}; pad or crop the examples to one shape, and leave out values that "
                "differ, such as texts."
            )
    parts = zip(*(iter_tensors(batch) for batch in batches), strict=True)
    return replace_tensors(batches[0], [torch.cat(tensors) for tensors in parts])
