"""Every experiment at its smoke size, on real data: it runs, writes numbers with evidence, and draws."""

import json

import pytest

from prunus.experiments import EXPERIMENTS, PARTS, STORED_EXPERIMENTS, parts_of
from prunus.runs.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for all ticket experiments, which share what they can."""
    return tmp_path_factory.mktemp("laboratory") / "store"


@pytest.mark.parametrize("name", PARTS)
def test_smoke(name, tmp_path, store):
    said: list[str] = []
    more = {"store": store} if name in STORED_EXPERIMENTS else {}
    result = EXPERIMENTS[name]("smoke", tmp_path, seed=1, report=said.append, **more)
    assert said
    assert result.rows
    assert all(path.exists() and path.stat().st_size for path in result.files)
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["evidence"]["seeds"] == [1]
    assert record["evidence"]["torch"]
    assert record["rows"] == list(result.rows)
    assert result.table.count("\n") > len(result.rows)
    if name in STORED_EXPERIMENTS:
        check_in_the_store(name, result, Store(store), tmp_path / "drawn")


def check_in_the_store(name, result, store, folder):
    """Every run is there, with receipts that hold, and the store alone gives the result again."""
    (request,) = (request for request in store.requests() if request.experiment == name)
    runs = {run.id: run for run in store.runs()}
    assert request.entries
    assert {runs[entry.id].status for entry in request.entries} == {"done"}
    assert {run.invariants for run in runs.values()} <= {"passed", None}
    drawn = STORED_EXPERIMENTS[name].figure(store, folder)
    assert drawn.rows == result.rows
    for file in drawn.files:
        if file.suffix == ".csv":
            assert file.read_bytes() == (folder.parent / file.name).read_bytes()


def test_a_paper_is_all_its_parts(tmp_path):
    result = EXPERIMENTS["han2015"]("smoke", tmp_path)
    assert {row["part"] for row in result.rows} == {"han2015.tradeoff", "han2015.tables"}
    assert len(result.files) == len(set(result.files)) == 8
    for part in ("han2015.tradeoff", "han2015.tables"):
        assert f"## {part}" in result.table


def test_every_part_belongs_to_a_paper():
    papers = {name.split(".")[0] for name in PARTS if "." in name}
    assert papers == set(EXPERIMENTS) - set(PARTS)
    assert set(PARTS) - {part for paper in papers for part in parts_of(paper)} == {"one_shot"}
