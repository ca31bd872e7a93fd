"""Every experiment at its smoke size, on real data: it runs, writes numbers with evidence, and draws."""

import json

import pytest

from prunus.experiments import EXPERIMENTS

pytestmark = pytest.mark.slow


PARTS = [name for name in EXPERIMENTS if "." in name]


@pytest.mark.parametrize("name", PARTS)
def test_smoke(name, tmp_path):
    said: list[str] = []
    result = EXPERIMENTS[name]("smoke", tmp_path, seed=1, report=said.append)
    assert said
    assert result.rows
    assert all(path.exists() and path.stat().st_size for path in result.files)
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["evidence"]["seeds"] == [1]
    assert record["evidence"]["torch"]
    assert record["rows"] == list(result.rows)
    assert result.table.count("\n") > len(result.rows)


def test_a_paper_is_all_its_parts(tmp_path):
    result = EXPERIMENTS["han2015"]("smoke", tmp_path)
    assert {row["part"] for row in result.rows} == {"han2015.tradeoff", "han2015.tables"}
    assert len(result.files) == len(set(result.files)) == 8
    for part in ("han2015.tradeoff", "han2015.tables"):
        assert f"## {part}" in result.table


def test_every_part_belongs_to_a_paper():
    assert {name.split(".")[0] for name in PARTS} == set(EXPERIMENTS) - set(PARTS)
