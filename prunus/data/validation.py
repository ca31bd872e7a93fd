"""Check data sets before any work is done with them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.data.image_folder import ImageFiles
from prunus.errors import DataError
from prunus.types import IGNORE_INDEX, Dataset, Split

SPLITS = ("train", "validation", "test")


def check_dataset(data: Dataset, splits: Sequence[str] = SPLITS) -> None:
    """Check that the named splits of `data` can train and evaluate a network.

    Every split must satisfy `check_split`; with class names, its labels must be indices of them. All splits must have
    inputs of one shape and one dtype on one device, and labels likewise.

    Args:
        data: The data set to check.
        splits: The names of the splits to check.

    Raises:
        DataError: It is no Dataset, has an unsuitable name or class names, or a split is unsuitable.
    """
    if not isinstance(data, Dataset):
        raise DataError(
            f"Expected a prunus.Dataset, got a {type(data).__name__}; make one with prunus.load_data(name) or "
            "prunus.Dataset(...)."
        )
    if not isinstance(data.name, str) or not data.name.isprintable():
        raise DataError(
            f"Expected the name of a data set to be text that can be printed, got {data.name!r}; choose another `name`."
        )
    class_names: object = data.class_names
    if isinstance(class_names, str) or not hasattr(class_names, "__len__"):
        raise DataError(
            f"Expected the class names of {data.name} as a tuple of texts, got {class_names!r}; use () where labels "
            "are not classes."
        )
    num_classes = len(data.class_names)
    for name in splits:
        split, what = getattr(data, name), f"the {name} split of {data.name}"
        check_split(split, what, num_classes or None, any_labels=not num_classes)
    for part in ("inputs", "labels"):
        tensors = [getattr(getattr(data, name).take(1), part) for name in splits]
        kinds = {f"{list(t.shape[1:])} {t.dtype} on {t.device}" for t in tensors}
        if len(kinds) > 1:
            raise DataError(
                f"Expected the splits of {data.name} to have {part} of one shape and dtype on one device, got "
                f"{' and '.join(sorted(kinds))}."
            )


def check_split(
    split: Split, name: str = "the split", num_classes: int | None = None, *, any_labels: bool = False
) -> None:
    """Check that a network can be trained and evaluated on the examples of `split`.

    Args:
        split: Inputs [N, ...] of a real dtype, finite; labels [N, ...] int64, each a class index from 0 or
            `IGNORE_INDEX`. At least one label must be a class index.
        name: The name of the split in errors.
        num_classes: Labels must be below it. Defaults to no upper bound.
        any_labels: Whether labels may be of other dtypes, as the targets of a regression are.

    Raises:
        DataError: The split does not satisfy this.
    """
    if isinstance(split, ImageFiles):
        _check_labels(split.labels, name, num_classes)
        return
    inputs, labels = getattr(split, "inputs", None), getattr(split, "labels", None)
    if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor):
        parts = (inputs, labels) if isinstance(split, Split) else (split,)
        got = ", ".join(type(part).__name__ for part in parts)
        is_dataset = isinstance(split, Dataset)
        advice = "pass one of its splits, such as data.test" if is_dataset else "convert with torch.as_tensor"
        raise DataError(f"Expected {name} to be a prunus.Split of two tensors, got {got}; {advice}.")
    for part, tensor in (("inputs", inputs), ("labels", labels)):
        kind = unusual_storage(tensor)
        if kind is not None:
            raise DataError(
                f"Expected the {part} of {name} to be a dense tensor with values, got a {kind} tensor; convert it "
                "first, for example with tensor.to_dense()."
            )
    if labels.dtype != torch.int64 and not any_labels:
        advice = "use labels.long()"
        if labels.is_floating_point():
            advice = "pass a loss for other targets, and a Dataset without class_names"
        raise DataError(
            f"Expected the labels of {name} to be class indices of torch.int64, got {labels.dtype} "
            f"{list(labels.shape)}; {advice}."
        )
    if labels.ndim < 1 or inputs.ndim < 2 or len(inputs) != len(labels):
        raise DataError(
            f"Expected {name} to have inputs [N, ...] with labels [N], got inputs {list(inputs.shape)} with labels "
            f"{list(labels.shape)}."
        )
    if inputs.device != labels.device:
        raise DataError(
            f"Expected inputs and labels of {name} on one device, got {inputs.device} and {labels.device}; move them "
            "with split.to(device)."
        )
    if not inputs.numel():
        raise DataError(
            f"Expected {name} to have at least one example, but it is empty: {list(inputs.shape)}."
        )
    if labels.dtype == torch.int64:
        _check_labels(labels, name, num_classes)
    _check_inputs(inputs, name)


def count_classes(data: Dataset) -> int:
    """The least number of classes: of class names, else of the labels that occur; 0 if labels are not indices."""
    labels = [split.labels for split in (data.train, data.validation) if split.labels.dtype == torch.int64]
    return len(data.class_names) or max((int(tensor.max()) + 1 for tensor in labels), default=0)


def count_labeled(labels: Tensor) -> int:
    """The number of labels that are class indices; of examples where labels are something else.

    >>> count_labeled(torch.tensor([0, IGNORE_INDEX, 2]))
    2
    """
    if labels.dtype != torch.int64:
        return len(labels)
    return int(torch.count_nonzero(labels != IGNORE_INDEX))


def unusual_storage(tensor: Tensor) -> str | None:
    """The kind of storage of a tensor that is not a dense array of values; None for a dense one.

    >>> unusual_storage(torch.eye(2).to_sparse()), unusual_storage(torch.eye(2, device="meta"))
    ('torch.sparse_coo', 'meta')
    """
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return str(tensor.layout)
    if tensor.is_quantized:
        return "quantized"
    return "meta" if tensor.is_meta else None


def count_not_finite(tensor: Tensor) -> int:
    """The number of entries that are NaN or infinite.

    >>> count_not_finite(torch.tensor([1.0, float("nan"), float("-inf")]))
    2
    """
    # A sum is not finite as soon as one entry is not, and costs a tenth of isfinite().all().
    if not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor.sum())):
        return 0
    return int(torch.count_nonzero(~torch.isfinite(tensor)))


def _check_labels(labels: Tensor, name: str, num_classes: int | None) -> None:
    low, high = (int(value) for value in labels.aminmax())
    if low == high == IGNORE_INDEX:
        raise DataError(
            f"Expected at least one label of {name} to be a class index, but all {labels.numel()} are {IGNORE_INDEX}, "
            "which marks examples to ignore."
        )
    if low < 0:
        low = int(labels[labels != IGNORE_INDEX].min())
    if low < 0 or (num_classes is not None and high >= num_classes):
        allowed = "0 or more" if num_classes is None else f"0..{num_classes - 1}"
        raise DataError(
            f"Expected the labels of {name} to be {allowed}, or {IGNORE_INDEX} for examples to ignore, got "
            f"{low}..{high}."
        )


def _check_inputs(inputs: Tensor, name: str) -> None:
    if inputs.is_complex():
        raise DataError(
            f"Expected the inputs of {name} to be real numbers, got {inputs.dtype}; convert with torch.view_as_real."
        )
    bad = count_not_finite(inputs)
    if bad:
        raise DataError(
            f"Expected the inputs of {name} to be finite, but {bad} of {inputs.numel()} entries are NaN or infinite; "
            "remove or replace these examples."
        )
