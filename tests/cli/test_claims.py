"""`prunus claims` prints the list of claims as a table or as JSON."""

import json

import pytest

from prunus.experiments import claim_list
from prunus.experiments.statements import STATEMENTS
from prunus.runs.store import Store

KEYS = {
    *("id", "claim", "verdict", "n", "published", "measured", "interval", "command"),
    *(
        "statement",
        "experiment",
        "metric",
        "measured_text",
        "effect",
        "default_size",
        "note",
        "at",
        "p",
        "shown_from",
    ),
}
"""Those that docs/experiments.md documents."""


@pytest.fixture
def first_statement(monkeypatch):
    """Only the first statement of the list."""
    monkeypatch.setattr(claim_list, "STATEMENTS", STATEMENTS[:1])


def test_claims_without_runs_have_no_verdict(run_cli, first_statement, tmp_path):
    Store(tmp_path / "a store")
    (first, *others) = json.loads(run_cli("claims", "--store", tmp_path / "a store", "--json").out)
    assert all(claim.keys() == KEYS for claim in (first, *others))
    assert {key: first[key] for key in ("id", "verdict", "n", "measured", "interval")} == {
        "id": "1a",
        "verdict": None,
        "n": 0,
        "measured": None,
        "interval": None,
    }
    assert first["command"] == f"prunus run han2015.tradeoff --store '{tmp_path / 'a store'}'"
    assert [other["id"] for other in others] == ["1b", "1c", "1d", "1e", "1f", "1g"]
    table = run_cli("claims", "--store", tmp_path / "a store").out
    assert table.count("the runs are missing") == 7


def test_claims_of_a_missing_store_are_refused(run_cli, first_statement, tmp_path):
    error = run_cli("claims", "--store", tmp_path / "other", code=8).err
    assert "There is no store of runs at" in error
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    assert "There is no store of runs at" in run_cli("claims", "--store", file, code=8).err
