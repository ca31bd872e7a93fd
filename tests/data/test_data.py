"""Data sets: official content, splits, batches, IDX files, pickles, and data sets of users."""

import dataclasses
import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import prunus.data
from prunus.data import (
    DATASETS,
    batch_indices,
    cifar10,
    data_root,
    digits,
    idx,
    iter_batches,
    mnist,
)
from prunus.data.preprocessing import split_indices
from prunus.data.safe_pickle import load_arrays
from prunus.errors import DataError
from prunus.types import Dataset, Split

SHAPES = {
    "mnist": ((1, 28, 28), (55_000, 5_000, 10_000)),
    "fashion-mnist": ((1, 28, 28), (55_000, 5_000, 10_000)),
    "cifar-10": ((3, 32, 32), (45_000, 5_000, 10_000)),
    "digits": ((1, 8, 8), (1_297, 200, 300)),
}
SCALES = {
    "mnist": (255, [mnist.MNIST.mean], [mnist.MNIST.std]),
    "fashion-mnist": (255, [mnist.FASHION_MNIST.mean], [mnist.FASHION_MNIST.std]),
    "cifar-10": (255, cifar10.MEAN, cifar10.STD),
    "digits": (digits.TOP, [digits.MEAN], [digits.STD]),
}


def official(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, training labels, test images and test labels: the bytes of the files."""
    if name == "digits":
        with np.load(Path(digits.__file__).with_name("digits.npz")) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        return images[:-300], labels[:-300], images[-300:], labels[-300:]
    if name == "cifar-10":
        folder = data_root() / "cifar-10-batches-bin"
        files = [folder / f"data_batch_{number}.bin" for number in range(1, 6)]
        train = np.concatenate([np.fromfile(file, np.uint8) for file in files]).reshape(-1, 3073)
        test = np.fromfile(folder / "test_batch.bin", np.uint8).reshape(-1, 3073)
        return train[:, 1:], train[:, 0], test[:, 1:], test[:, 0]
    folder = data_root() / name
    contents = []
    for file, header in [
        ("train-images-idx3", 16),
        ("train-labels-idx1", 8),
        ("t10k-images-idx3", 16),
        ("t10k-labels-idx1", 8),
    ]:
        plain, packed = folder / f"{file}-ubyte", folder / f"{file}-ubyte.gz"
        content = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
        contents.append(np.frombuffer(content, np.uint8, offset=header))
    return contents[0], contents[1], contents[2], contents[3]


@pytest.fixture(scope="module", params=SHAPES)
def dataset(request: pytest.FixtureRequest) -> Dataset:
    """Every data set of images; one that is missing and cannot be downloaded is skipped by name."""
    try:
        return prunus.data.load_data(request.param)
    except DataError as error:
        if request.param in ("mnist", "digits"):
            raise
        pytest.skip(str(error))


def bytes_of(name: str, inputs: torch.Tensor) -> np.ndarray:
    """The pixels that `inputs` were made from."""
    top, mean, std = SCALES[name]
    shift, scale = (torch.tensor(value).view(1, -1, 1, 1) for value in (mean, std))
    return torch.cat(
        [((part * scale + shift) * top).round().to(torch.uint8) for part in inputs.split(1000)]
    ).numpy()


def test_splits_have_the_published_shapes_and_sizes(dataset: Dataset) -> None:
    shape, lengths = SHAPES[dataset.name]
    for split, length in zip((dataset.train, dataset.validation, dataset.test), lengths, strict=True):
        assert split.inputs.shape == (length, *shape)
        assert split.labels.shape == (length,)
        assert split.inputs.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert split.labels.unique().tolist() == list(range(len(dataset.class_names)))
    assert len(set(dataset.class_names)) == 10
    assert dataset.provenance


def test_splits_contain_each_official_example_once(dataset: Dataset) -> None:
    images, labels, test_images, test_labels = official(dataset.name)
    images = images.reshape(len(labels), *dataset.train.inputs.shape[1:])
    train, validation = split_indices(len(labels), len(dataset.validation), seed=0)
    for split, indices in ((dataset.train, train), (dataset.validation, validation)):
        assert np.array_equal(bytes_of(dataset.name, split.inputs), images[indices.numpy()])
        assert np.array_equal(split.labels.numpy(), labels[indices.numpy()])
    assert np.array_equal(bytes_of(dataset.name, dataset.test.inputs).ravel(), test_images.ravel())
    assert np.array_equal(dataset.test.labels.numpy(), test_labels)


def test_inputs_are_standardized(dataset: Dataset) -> None:
    inputs = dataset.train.inputs.transpose(0, 1).flatten(1)
    assert inputs.mean(1).abs().max() < 0.01
    assert (inputs.std(1) - 1).abs().max() < 0.01


def test_every_data_set_has_an_entry_in_these_tests() -> None:
    """Data sets of images here, generated ones in test_monks.py."""
    assert set(SHAPES) == set(SCALES) == {name for name in DATASETS if not name.startswith("monks-")}


def test_seed_changes_only_the_validation_split() -> None:
    first, again, other = (prunus.data.load_data("digits", seed=seed) for seed in (0, 0, 1))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part).inputs, getattr(again, part).inputs)
        assert torch.equal(getattr(first, part).labels, getattr(again, part).labels)
    assert not torch.equal(first.validation.inputs, other.validation.inputs)
    assert torch.equal(first.test.inputs, other.test.inputs)


@given(n=st.integers(2, 500), fraction=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_split_indices_cover_each_example_once(n: int, fraction: float, seed: int) -> None:
    validation = min(max(1, int(fraction * n)), n - 1)
    parts = split_indices(n, validation, seed)
    assert len(parts[1]) == validation
    assert torch.cat(parts).sort().values.equal(torch.arange(n))
    assert all(part.equal(part.sort().values) for part in parts)


@given(
    n=st.integers(1, 300), size=st.integers(1, 320), seed=st.integers(0, 2**31), epoch=st.integers(0, 1000)
)
def test_batches_of_an_epoch_are_a_permutation(n: int, size: int, seed: int, epoch: int) -> None:
    pieces = batch_indices(n, size, seed, epoch)
    assert torch.cat(pieces).sort().values.equal(torch.arange(n))
    assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    assert 1 <= len(pieces[-1]) <= size
    assert all(a.equal(b) for a, b in zip(pieces, batch_indices(n, size, seed, epoch), strict=True))


def test_batch_order_differs_between_epochs_and_seeds() -> None:
    orders = {
        tuple(batch_indices(100, 100, seed, epoch)[0].tolist()) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


def test_iter_batches_copies_the_rows_of_batch_indices() -> None:
    split = Split(torch.arange(21.0).reshape(7, 3), torch.arange(7))
    before = split.inputs.clone()
    for (inputs, labels), indices in zip(
        iter_batches(split, 3, 0, 2), batch_indices(7, 3, 0, 2), strict=True
    ):
        assert labels.equal(indices)
        assert inputs.equal(before[indices])
        inputs.zero_()
    assert split.inputs.equal(before)


ARRAYS = st.sampled_from([np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6))
)


@given(ARRAYS)
def test_idx_round_trip(array: np.ndarray) -> None:
    back = idx.parse(idx.encode(array))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_idx_encode_writes_the_documented_bytes() -> None:
    array = np.array([[1, -2, 3]], np.int16)
    assert idx.encode(array).hex() == "00000b02" + "00000001" + "00000003" + "0001" + "fffe" + "0003"


def test_idx_write_gives_equal_arrays_and_reproducible_bytes(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    for name in ("a", "a.gz", "b.gz"):
        idx.write(tmp_path / name, array)
        assert np.array_equal(idx.read(tmp_path / name), array)
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == (tmp_path / "a").read_bytes()
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert (tmp_path / "a.gz").read_bytes()[3:8] == bytes(5), "neither a name nor a time"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.gz", "b.gz"]


def test_mnist_loads_from_plain_files(tmp_path: Path) -> None:
    packed = prunus.data.load_data("mnist")
    (tmp_path / "mnist").mkdir()
    for path in (data_root() / "mnist").iterdir():
        if path.suffix == ".gz":
            (tmp_path / "mnist" / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    plain = prunus.data.load_data("mnist", root=tmp_path, download=False)
    assert plain.validation.inputs.equal(packed.validation.inputs)
    assert plain.train.labels.equal(packed.train.labels)


def test_data_root_prefers_argument_to_variable_to_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_DATA", "/from/variable")
    assert data_root("/from/argument") == Path("/from/argument")
    assert data_root() == Path("/from/variable")
    monkeypatch.delenv("PRUNUS_DATA")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data_root() == Path("/home/someone/.cache/prunus")


def records(seed: int = 0) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (10_000, 3072), np.uint8), rng.integers(0, 10, 10_000).tolist()


def python2(data: np.ndarray, labels: list[int]) -> bytes:
    """The pickle that Python 2 writes of {"data": data, "labels": labels}: its strings are bytes."""
    return b"".join(
        [
            b"\x80\x02}q\x00(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01M\x10\x27M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN",
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
            + data.nbytes.to_bytes(4, "little")
            + data.tobytes(),
            b"tbU\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.",
        ]
    )


@pytest.mark.parametrize("keys", [str, str.encode])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_load_arrays_equals_numpy(protocol: int, keys: type) -> None:
    arrays = [np.arange(6).reshape(2, 3).astype(dtype) for dtype in ("u1", "<i8", ">i2", "<f4", "?")]
    content = {keys("data"): [*arrays, np.asfortranarray(arrays[0])], keys("labels"): (1, 2.5, None)}
    back = load_arrays(pickle.dumps(content, protocol), "a test")
    for result, array in zip(back[keys("data")], content[keys("data")], strict=True):
        assert result.dtype == array.dtype
        assert np.array_equal(result, array)
    assert back[keys("labels")] == (1, 2.5, None)


def test_cifar_python_layout_equals_binary_layout(tmp_path: Path) -> None:
    data, labels = records()
    binary = np.column_stack([np.array(labels, np.uint8), data])
    binary.tofile(tmp_path / "binary")
    expected = cifar10.read_binary(tmp_path / "binary")
    content = {"data": data, "labels": labels, "filenames": ["a.png"]}
    latin1 = pickle.dumps(content, 2)
    as_bytes = pickle.dumps({key.encode(): value for key, value in content.items()}, 2)
    for pickled in (latin1, as_bytes, python2(data, labels)):
        (tmp_path / "python").write_bytes(pickled)
        for result, array in zip(cifar10.read_python(tmp_path / "python"), expected, strict=True):
            assert np.array_equal(result, array)


def test_cifar_provenance_is_unverified_for_the_python_layout(tmp_path: Path) -> None:
    data, labels = records()
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(python2(data, labels))
    for name in ("data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / name).symlink_to("data_batch_1")
    dataset = prunus.data.load_data("cifar-10", root=tmp_path, download=False)
    assert np.array_equal(bytes_of("cifar-10", dataset.test.inputs).reshape(-1, 3072), data)
    assert len(dataset.train) == 45_000
    assert "not verified" in dataset.provenance


USER_MODULE = """
import torch
from prunus.types import Dataset, Split

def four():
    split = Split(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))
    return Dataset("four", split, split, split, ("no", "yes"))

text = "not a function"
"""


def test_load_calls_a_user_function_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_data_of_a_user.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    dataset = prunus.data.load_data("own_data_of_a_user:four")
    assert dataset.name == "four"
    assert dataclasses.astuple(dataset)[-2] == ("no", "yes")
