"""Requests for several networks are drawn on one page and decided together; others are not mixed with them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_experiment import ERRORS, SMALL, do
from specs import finish

from prunus.errors import SpecError
from prunus.experiments import claim_list
from prunus.experiments.claim_list import claims
from prunus.experiments.experiment import FigureSpec
from prunus.experiments.joining import join_requests, requests_to_draw
from prunus.experiments.running import draw_experiment
from prunus.experiments.statements import ALL_CLAIMS, Statement
from prunus.runs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def page_of(store: Store, size: str | None = None) -> dict:
    """The content of the page."""
    result = draw_experiment(replace(SMALL, metrics=("error",)), store, store.path.parent / "out", size=size)
    return json.loads(next(path for path in result.files if path.suffix == ".json").read_text())


def do_in_bfloat16(store: Store, network: str, until: int | None = None) -> None:
    """Record replicates 10, 11 and 12 under a request that differs in the dtype of autocast."""
    entries = SMALL.labeled_runs("default", range(10, 13), {"network": network})
    store.request(SMALL.name, "default", entries, {"autocast": "bfloat16", "network": network})
    for label, spec in entries[:until]:
        finish(store, spec, [{"error": ERRORS[label["curve"]][label["replicate"] - 10]}])


def test_networks_of_several_requests_are_on_one_page(store: Store, monkeypatch) -> None:
    do(store, network="second")
    do(store, network="first")
    content = page_of(store)
    assert [(row["group"], row["curve"], row["n"]) for row in content["table"]] == [
        ("first", "a", 3), ("first", "b", 3), ("second", "a", 3), ("second", "b", 3)
    ]  # fmt: skip
    assert content["command"] == f"prunus run test.small --store {store.path}"
    assert (content["missing"], content["evidence"]["settings"]) == ("", {})
    monkeypatch.setattr(claim_list, "EXPERIMENTS", {SMALL.name: SMALL})
    monkeypatch.setattr(claim_list, "STATEMENTS", (Statement(3, "A is good", {SMALL.name: ALL_CLAIMS}),))
    listed = {claim.claim: claim.verdict for claim in claims(store.path)}
    assert {decision["claim"]: decision["verdict"] for decision in content["verdicts"]} == listed


def test_networks_that_are_computed_in_other_ways_have_a_command_each(store: Store) -> None:
    do(store, network="first")
    do_in_bfloat16(store, "second")
    content = page_of(store)
    assert {(row["group"], row["n"]) for row in content["table"]} == {("first", 3), ("second", 3)}
    in_bfloat16 = "prunus run test.small --seed 10 --set autocast=bfloat16 --set network=second"
    alone = "prunus run test.small --set network=first"
    assert content["command"] == f"{in_bfloat16} --store {store.path} && {alone} --store {store.path}"


def test_latest_finished_request_of_a_network_is_drawn(store: Store) -> None:
    do(store, network="first,second")
    do_in_bfloat16(store, "second")
    first, second = requests_to_draw(SMALL, store, None, print)
    assert (dict(first.settings), len(first.entries)) == ({"autocast": "bfloat16", "network": "second"}, 6)
    assert (dict(second.settings), len(second.entries)) == ({"network": "first"}, 6)
    do_in_bfloat16(store, "first", until=2)
    content, joined = page_of(store), join_requests(SMALL, [first, second])
    assert len(joined.entries) == 12
    assert content["missing"] == "", "an unfinished request hides a finished one"


def test_runs_that_a_network_lacks_are_counted(store: Store) -> None:
    do(store, network="first")
    do_in_bfloat16(store, "second", until=2)
    content = page_of(store)
    assert content["missing"].startswith("8 of 12 runs are drawn")
    assert {(row["group"], row["n"]) for row in content["table"]} == {("first", 3), ("second", 1)}


def test_network_without_a_finished_run_is_counted(store: Store) -> None:
    do(store, network="first")
    do_in_bfloat16(store, "second", until=0)
    content = page_of(store)
    assert content["missing"].startswith("6 of 12 runs are drawn")
    assert "--set autocast=bfloat16 --set network=second" in content["command"]
    assert {row["group"] for row in content["table"]} == {"first"}


def test_network_without_a_finished_run_hides_no_finished_ones(store: Store) -> None:
    entries = SMALL.labeled_runs("default", range(3), {"network": "second"})
    store.request(SMALL.name, "default", entries, {"network": "second"})
    finish(store, entries[0][1], [{"error": 1.0}])
    do_in_bfloat16(store, "first,second", until=1)
    in_bfloat16, other = requests_to_draw(SMALL, store, None, print)
    assert dict(in_bfloat16.settings) == {"autocast": "bfloat16", "network": "first"}
    assert dict(other.settings) == {"network": "second"}


def test_rows_without_the_metrics_of_the_experiment_are_refused(store: Store) -> None:
    do(store, network="first")
    with pytest.raises(
        SpecError, match=r"metrics wrong of test\.small, got rows with curve, replicate, error"
    ):
        draw_experiment(replace(SMALL, metrics=("wrong",)), store, store.path.parent / "out")


def test_figure_counts_the_missing_runs_of_its_network(store: Store) -> None:
    do(store, network="first")
    do_in_bfloat16(store, "second", until=2)
    with_figure = replace(
        SMALL, metrics=("error",), figures=(FigureSpec("errors", "error", "error", "Errors", x="replicate"),)
    )
    result = draw_experiment(with_figure, store, store.path.parent / "out")
    first, second = (path.read_text() for path in result.files if path.suffix == ".svg")
    assert "runs are drawn" not in first
    assert "2 of 6 runs are drawn" in second


def test_runs_of_other_sizes_and_settings_are_not_joined(store: Store) -> None:
    do(store, network="first")
    do(store, network="second", decay="0.5")
    do(store, size="smoke", network="second", replicates=1)
    assert {row["group"] for row in page_of(store)["rows"] if "group" in row} == set()
    assert (
        page_of(store)["command"]
        == f"prunus run test.small --set network=second --set decay=0.5 --store {store.path}"
    )
    assert page_of(store, "smoke")["command"].startswith("prunus run test.small --smoke")


def test_runs_with_one_label_are_kept(store: Store) -> None:
    """The file of a supermask is measured by a run of its own, which has the label of the supermask."""
    do(store, network="first")
    do(store, network="second")
    first, second = requests_to_draw(SMALL, store, None, print)
    twice = replace(
        second, entries=(*second.entries, *(replace(e, id=f"{e.id}-file") for e in second.entries))
    )
    joined = join_requests(SMALL, [first, twice])
    assert len({entry.id for entry in joined.entries}) == 18
    assert join_requests(SMALL, [twice, second]) == join_requests(SMALL, [second])
