"""The files of a run: rows, tensors and masks are read as they were written, or not at all."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import pytest
import torch
from specs import Baseline, Ticket

from prunus.errors import NonFiniteError, StoreError
from prunus.runs.directory import RunDirectory
from prunus.runs.store import Store
from prunus.seeds import make_generator


@pytest.fixture
def directory(tmp_path):
    return RunDirectory(tmp_path)


def test_rows_drop_a_partial_last_line(directory):
    rows = [{"level": 0, "a": "ü\n"}, {"level": 1, "b": [1.5]}, {"level": 2}]
    ends = []
    for row in rows:
        directory.append_row(row)
        ends.append((directory.path / "rows.jsonl").stat().st_size)
    content = (directory.path / "rows.jsonl").read_bytes()
    for cut in range(len(content)):
        (directory.path / "rows.jsonl").write_bytes(content[:cut])
        num_complete = sum(end <= cut for end in ends)
        assert directory.rows() == rows[:num_complete]
        if cut % 5 == 0:
            directory.append_row({"level": 9})
            assert directory.rows() == [*rows[:num_complete], {"level": 9}]
    (directory.path / "rows.jsonl").write_bytes(content + bytes(40) + b"\n")
    assert directory.rows() == rows
    (directory.path / "rows.jsonl").write_bytes(b"{\n" + content)
    with pytest.raises(StoreError, match="line 1 does not have the digest"):
        directory.rows()


def test_append_row_replaces_the_row_of_the_same_level(directory):
    for level, value in ((0, "a"), (1, "b"), (2, "c"), (1, "d")):
        directory.append_row({"level": level, "value": value})
    assert [row["value"] for row in directory.rows()] == ["a", "d", "c"]
    for half in (3, 6):
        directory.append_curve({"level": 1, "step": step, "loss": step / half} for step in range(half))
    assert [row["loss"] for row in directory.curve()] == [step / 6 for step in range(6)]
    directory.append_curve([{"free": 1}, {"free": 1}])
    assert len(directory.curve()) == 8
    directory.append_rows([{"level": 5, "value": value} for value in ("e", "f")])
    assert [row["value"] for row in directory.rows()] == ["a", "d", "c", "f"]


def test_append_row_refuses_values_that_are_not_plain_or_finite(directory):
    directory.append_row({"level": 0})
    for value, error in ((float("nan"), NonFiniteError), (torch.ones(1), StoreError)):
        with pytest.raises(error, match=r"rows\.jsonl"):
            directory.append_row({"level": 1, "loss": value})
    assert directory.rows() == [{"level": 0}]


def test_load_tensors_returns_the_same_bits_in_the_same_order(directory):
    base = torch.randn(4, 6, generator=make_generator(0, "w"))
    tensors = {
        "z": base,
        "half": base[:, ::2].half(),
        "turned": base.T,
        "scalar": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "special": torch.tensor([-0.0, float("nan"), float("inf")]),
        "a": torch.ones(3, dtype=torch.bool),
    }
    directory.save_tensors("start", tensors, {"step": 3})
    back = directory.load_tensors("start")
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert back[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    assert directory.load_metadata("start") == {"step": 3}
    directory.save_tensors("start", {"b": base})
    assert (list(directory.load_tensors("start")), directory.load_metadata("start")) == (["b"], {})
    assert directory.has("start")
    directory.remove("start")
    directory.remove("start")
    assert not directory.has("start")
    assert [path.name for path in directory.path.iterdir()] == []
    with pytest.raises(StoreError, match="has no tensors called 'start'"):
        directory.load_tensors("start")


def test_load_masks_returns_the_masks_from_one_bit_per_weight(directory):
    shapes = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
    draw = make_generator(0, "masks")
    masks = {name: torch.rand(shape, generator=draw) < 0.2 for name, shape in shapes.items()}
    directory.save_masks("level-3", masks)
    size = (directory.path / "level-3.safetensors").stat().st_size
    weights = sum(mask.numel() for mask in masks.values())
    assert weights == 266_200
    assert weights / 8 <= size <= 1.01 * weights / 8
    back = directory.load_masks("level-3")
    assert list(back) == list(masks)
    assert all(
        torch.equal(back[name], mask) and back[name].dtype == torch.bool for name, mask in masks.items()
    )
    directory.save_masks(
        "odd", {"a": torch.ones(3, dtype=torch.bool), "b": torch.zeros(()), "c": torch.ones(2, 5)}
    )
    assert {name: mask.tolist() for name, mask in directory.load_masks("odd").items()} == {
        "a": [True] * 3,
        "b": False,
        "c": [[True] * 5] * 2,
    }
    directory.save_tensors("weights", {"a": torch.ones(2)})
    for wrong, name in ((directory.load_tensors, "odd"), (directory.load_masks, "weights")):
        with pytest.raises(StoreError, match="holds"):
            wrong(name)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
def test_save_tensors_refuses_names_that_are_not_file_names(directory, name):
    with pytest.raises(StoreError, match="Expected a name of letters"):
        directory.save_tensors(name, {"a": torch.ones(1)})


@pytest.fixture
def done(tmp_path):
    """The directory of a finished run with a file of each kind."""
    store = Store(tmp_path / "store")
    directory = store.open(Baseline(), "test")
    directory.append_row({"level": 0, "accuracy": 97.25})
    directory.append_row({"level": 1, "accuracy": 98.5})
    directory.append_curve([{"level": 0, "step": 3, "loss": 0.5}])
    directory.save_tensors("final", {"w": torch.ones(5)}, {"step": 3})
    directory.save_masks("masks", {"w": torch.ones(5) > 0})
    store.finish(directory, {"accuracy": 98.5})
    return store.directory(directory.id)


READS = {
    "run.json": lambda directory: directory.record(),
    "rows.jsonl": lambda directory: directory.rows(),
    "curve.jsonl": lambda directory: directory.curve(),
    "final.safetensors": lambda directory: (
        directory.load_tensors("final"),
        directory.load_metadata("final"),
    ),
    "masks.safetensors": lambda directory: directory.load_masks("masks"),
}


@pytest.mark.parametrize("name", READS)
def test_every_flipped_bit_of_a_finished_run_is_an_error_that_names_the_file(name, done):
    path = done.path / name
    content = path.read_bytes()
    READS[name](done)
    for position in range(0, len(content), 1 if len(content) < 600 else 3):
        for bit in (0, 5, 7) if position % 2 else (1, 3, 6):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(StoreError, match=name) as error:
                READS[name](done)
            assert f"prunus runs rm {done.id} --store" in str(error.value)
    path.write_bytes(content)
    READS[name](done)


@pytest.mark.parametrize("name", READS)
def test_a_file_that_is_cut_short_or_missing_is_an_error(name, done):
    path = done.path / name
    content = path.read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(StoreError, match=name):
            READS[name](done)
    path.unlink()
    assert done.has("final")
    with pytest.raises(StoreError, match=name):
        READS[name](done)


def test_check_input_compares_data_with_the_earlier_attempts(tmp_path):
    store = Store(tmp_path)
    directory = store.open(Baseline(), "test")
    data = {"train": torch.arange(6.0).reshape(2, 3)}
    directory.check_input("mine:data", data)
    store.fail(directory, "stop")
    again = store.open(Baseline(), "test")
    again.check_input("mine:data", data)
    for other in ({"train": torch.arange(6.0)}, {"train": data["train"].double()}, {"train": -data["train"]}):
        with pytest.raises(StoreError, match="mine:data gives other data than the run dense-"):
            again.check_input("mine:data", other)
    store.finish(again, {})
    ticket = store.open(Ticket(), "test")
    with pytest.raises(StoreError, match=f"than the run {again.id} was computed with"):
        ticket.check_input("mine:data", {"train": torch.ones(2)})
    ticket.check_input("mine:data", data)
