"""Every experiment at its smoke size, on real data: it runs, writes numbers with evidence, and draws."""

import json

import pytest

from prunus.experiments import EXPERIMENTS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", EXPERIMENTS)
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
