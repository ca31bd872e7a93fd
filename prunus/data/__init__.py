"""Data sets, each resident in memory as one tensor per split.

A data set is a function (root, seed, download) -> Dataset. The built-in ones are in DATASETS.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus.data import cifar10, digits, mnist, monks
from prunus.data.batches import batch_indices, iter_batches
from prunus.data.download import reporting
from prunus.data.examples import Calibration, as_examples
from prunus.data.files import data_root
from prunus.data.image_folder import load_image_folder
from prunus.data.validation import check_dataset
from prunus.errors import DataError, StatisticsError
from prunus.registry import call_user_function, check_callbacks, import_object, lookup
from prunus.types import Dataset, Progress, Split

__all__ = [
    "DATASETS",
    "batch_indices",
    "data_root",
    "iter_batches",
    "load_data",
    "load_examples",
    "present_data_sets",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "mnist": mnist.MNIST,
    "fashion-mnist": mnist.FASHION_MNIST,
    "cifar-10": cifar10.load_cifar_10,
    "digits": digits.load_digits,
    "monks-1": monks.loader(1),
    "monks-2": monks.loader(2),
    "monks-3": monks.loader(3),
}


def load_data(
    name: str | os.PathLike[str],
    *,
    root: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    download: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """Load a data set and check it.

    Args:
        name: A key of DATASETS, or "package.module:function" of a user's function that takes no arguments and returns
            a Dataset. Of the other arguments only `device` and `progress` apply to such a function. Or the path of a
            folder of images, which are read while they are used (see `prunus.data.image_folder`); `root` and `download`
            do not apply to it.
        root: The data root, where downloaded files are; see `data_root` for the default.
        device: Where the tensors are put.
        seed: Seed of the validation split.
        download: Whether missing files may be downloaded.
        progress: Called while files are downloaded.

    Returns:
        The data set; its train, validation and test splits are disjoint, except for MONK's problems.

    Raises:
        UnknownNameError: There is no such data set or function.
        DataError: The data set is missing, damaged or unsuitable, or the function fails.
        SpecError: `progress` is not a function.

    Example:
        >>> load_data("digits").provenance
        "embedded copy of UCI's optical digits, test file"
    """
    check_callbacks(progress=progress)
    name = os.fspath(name)
    with reporting(progress):
        if progress is not None:
            progress(f"loading {name}", 0, 0)
        if ":" in name:
            data = _call(name)
            if not isinstance(data, Dataset):
                raise DataError(f"Expected {name} to return a prunus.Dataset, got a {type(data).__name__}.")
        elif name and name not in DATASETS and ("/" in name or Path(name).is_dir()):
            data = load_image_folder(name, seed=seed)
        else:
            data = lookup("data set", DATASETS, name)(root=root, seed=seed, download=download)
    check_dataset(data)
    return data.to(device)


def load_examples(
    name: str, *, device: str = "cpu", seed: int = 0, progress: Progress | None = None
) -> Calibration:
    """As `load_data`, but a function of a user may return examples in any form, with labels of any task.

    Args:
        name: A key of DATASETS, or "package.module:function" of a function that takes no arguments.
        device: Where the tensors of a data set are put.
        seed: Seed of the validation split.
        progress: Called while files are downloaded.

    Returns:
        A data set, or whatever the function returns.

    Raises:
        UnknownNameError: There is no such data set or function.
        DataError: The data set is missing, damaged or unsuitable, or the function fails.
    """
    if ":" not in name:
        return load_data(name, device=device, seed=seed, progress=progress)
    data: Calibration = _call(name)
    if isinstance(data, Dataset):
        check_dataset(data)
        return data.to(device)
    if not isinstance(data, Split | Iterable) or isinstance(data, str | nn.Module):
        raise DataError(
            f"Expected {name} to return a prunus.Dataset, tensors or batches, got a {type(data).__name__}."
        )
    if isinstance(data, Split | Tensor | tuple | Mapping):
        try:
            as_examples(data)
        except StatisticsError as error:
            raise DataError(f"{name} returned no examples: {error}") from error
    return data


def present_data_sets(root: Path) -> dict[str, bool]:
    """Whether the files of each data set that can be downloaded are below `root`; no file is read.

    >>> present_data_sets(Path("no such folder"))
    {'mnist': False, 'fashion-mnist': False, 'cifar-10': False}
    """
    present = {name: not mnist.missing_files(root / name) for name in ("mnist", "fashion-mnist")}
    return {**present, "cifar-10": cifar10.is_present(root)}


def _call(reference: str) -> Any:
    return call_user_function("The function of the data set", DataError, import_object(reference))
