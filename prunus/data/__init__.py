"""Data sets, each resident as one tensor a split.

A data set is a function (root, device, seed, download) -> Dataset, one file each, in DATASETS.
"""

from collections.abc import Callable
from pathlib import Path

from prunus.data import cifar10, digits, fashion_mnist, mnist, monks
from prunus.data.batches import batch_indices, iter_batches
from prunus.data.paths import data_root
from prunus.data.validation import check_dataset
from prunus.errors import DataError
from prunus.registry import import_object, lookup
from prunus.types import Dataset

__all__ = ["DATASETS", "batch_indices", "data_root", "iter_batches", "load"]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "mnist": mnist.load,
    "fashion-mnist": fashion_mnist.load,
    "cifar-10": cifar10.load,
    "digits": digits.load,
    "monks-1": monks.loader(1),
    "monks-2": monks.loader(2),
    "monks-3": monks.loader(3),
}


def load(
    name: str, *, root: str | Path | None = None, device: str = "cpu", seed: int = 0, download: bool = True
) -> Dataset:
    """The data set `name`: one of DATASETS, or "package.module:function", yours, that returns a Dataset.

    `root` is the data root (see `data_root`), `seed` draws the validation split, and what is missing is
    fetched if `download`. Your own function is called without arguments: of these, only `device` applies.

    Raises UnknownNameError if there is no such data set, DataError if it cannot be had or is not sound.

    >>> load("digits").provenance
    "embedded copy of UCI's optical digits, test file"
    """
    if ":" not in name:
        found = lookup("data set", DATASETS, name)
        data = found(root=root, device=device, seed=seed, download=download)
        check_dataset(data)
        return data
    own = import_object(name)()
    if not isinstance(own, Dataset):
        raise DataError(f"{name} was to return a prunus Dataset and returned a {type(own).__name__}.")
    check_dataset(own)
    return own.to(device)
