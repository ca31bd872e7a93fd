"""The list of claims: its parts exist, and their verdicts follow from the runs of the default size."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from small_experiment import ERRORS, SMALL, do
from specs import finish

import prunus
from prunus.errors import StoreError
from prunus.experiments import EXPERIMENTS, claim_list
from prunus.experiments.claim_list import claims
from prunus.experiments.claims import Claim, decide_claims, measured_text
from prunus.experiments.statements import ALL_CLAIMS, STATEMENTS, Statement
from prunus.runs.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(claim_list, "EXPERIMENTS", {SMALL.name: SMALL})
    monkeypatch.setattr(claim_list, "STATEMENTS", (Statement(3, "A is good", {SMALL.name: ALL_CLAIMS}),))
    return Store(tmp_path / "store")


def verdicts(store):
    return {claim.claim: (claim.verdict, claim.n, claim.note) for claim in claims(store.path)}


def test_parts_have_letters_and_one_verdict_per_network(store):
    do(store)
    listed = claims(store.path)
    assert [claim.id for claim in listed] == ["3a", "3b", "3c", "3d"]
    assert [claim.claim for claim in listed][:2] == ["first: A is lower than B", "second: A is lower than B"]
    first = listed[0]
    assert (first.verdict, first.n, first.published, first.effect, first.note) == ("holds", 3, "2", 2.0, "")
    assert first.measured == pytest.approx(-2.05)
    assert first.interval[0] < first.measured < first.interval[1] < 0
    assert first.command == f"prunus run test.small --store {store.path}"
    assert first.default_size == "first: networks 1; second: networks 2; n = 3 or more"


def test_missing_runs_give_no_verdict(store):
    do(store, network="second")
    assert verdicts(store)["second: A is lower than B"] == ("holds", 3, "")
    assert verdicts(store)["first: A is lower than B"] == (None, 0, "the runs are missing")
    do(store, network="first")  # another request of the same experiment
    assert verdicts(store)["second: A is lower than B"] == ("holds", 3, "")
    assert verdicts(store)["first: A is lower than B"] == ("holds", 3, "")


def test_networks_without_runs_count_in_the_correction(store):
    errors = {
        "a": [1.0, 1.1, 1.7],
        "b": [3.0, 3.0, 3.0],
    }  # p is 0.016: below 0.05 for two claims, above it for four
    do(store, network="second", errors=errors)
    assert verdicts(store)["second: A is lower than B"][:2] == ("not shown", 3)
    do(store, network="first", errors=errors)
    assert verdicts(store)["second: A is lower than B"][:2] == ("not shown", 3)


def test_runs_of_another_size_decide_nothing(store):
    do(store, size="smoke", replicates=3)
    note = "the runs are not of the default size but with --smoke, and decide nothing"
    assert verdicts(store)["first: A is lower than B"] == (None, 3, note)
    do(store, decay="0.5", network="first")
    note = "the runs are not of the default size but with --smoke, and decide nothing"
    assert claims(store.path)[0].measured == pytest.approx(-2.05)
    assert {note for _, _, note in verdicts(store).values()} == {note}
    do(store)
    assert verdicts(store)["first: A is lower than B"] == ("holds", 3, "")


def test_fewer_replicates_can_show_a_claim_but_not_that_it_is_not_shown(store):
    do(store, replicates=2, errors={"a": [1.0, 1.0001], "b": [3.0, 3.0001]})
    assert verdicts(store)["first: A is lower than B"] == (None, 2, "n is 2 instead of 3")


def test_fewer_replicates_can_decide(store):
    do(store, replicates=2, errors={"a": [1.0, 1.0001], "b": [3.0, 3.0002]})
    assert verdicts(store)["first: A is lower than B"] == ("holds", 2, "n is 2 instead of 3")


def test_more_replicates_than_the_default_are_used_and_in_a_command_for_these_networks(store):
    do(store, replicates=4, network="first")
    do(store, network="second")
    assert verdicts(store)["first: A is lower than B"] == ("holds", 4, "")
    commands = {claim.claim.partition(":")[0]: claim.command for claim in claims(store.path)}
    assert commands == {
        "first": f"prunus run test.small --replicates 4 --set network=first --store {store.path}",
        "second": f"prunus run test.small --set network=second --store {store.path}",
    }


def test_effect_that_would_not_have_been_shown_is_noted(store):
    do(store, errors={"a": [1.0, 2.0, 3.0], "b": [3.0, 1.0, 4.0]})
    verdict, n, note = verdicts(store)["first: A is lower than B"]
    assert (verdict, n) == ("not shown", 3)
    assert re.fullmatch(r"a distance would be shown from \d+\.\d+ on, but the effect is 2", note)


def test_interval_that_alone_would_decide_is_noted(store):
    do(store, errors={"a": [1.0, 1.0, 1.0], "b": [1.5, 1.8, 2.0]})
    claim = claims(store.path)[0]
    assert claim.interval[1] < 0
    assert claim.verdict == "not shown"
    assert re.fullmatch(r"p is 0\.\d+ after the correction", claim.note)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_values_that_are_compared_with_a_number_have_a_name_and_a_unit(name):
    for claim in EXPERIMENTS[name].claims:
        if not isinstance(claim.against, str):
            row = {"curve": claim.curve, **{key: values[0] for key, values in claim.at.items()}}
            (decision,) = decide_claims([claim], [{**row, "replicate": r, claim.metric: r} for r in (1, 2)])
            name, _, text = measured_text(decision).partition(": ")
            assert not {"_", "%"} & {*name}
            is_ratio = name in ("times faster", "ratio", "dense needs") or "divided by" in name
            assert re.search(r" (%|pp) \(", text) or is_ratio


def test_larger_size_is_used_where_it_has_more_runs(store):
    do(store, size="full", replicates=4)
    do(store, replicates=2)
    assert {claim.n for claim in claims(store.path)} == {4}
    assert (
        claims(store.path)[0].command == f"prunus run test.small --full --replicates 4 --store {store.path}"
    )


def test_claim_is_listed_for_its_networks(store, monkeypatch):
    only_second = replace(SMALL, claims=[replace(claim, networks=("second",)) for claim in SMALL.claims])
    monkeypatch.setattr(claim_list, "EXPERIMENTS", {SMALL.name: only_second})
    do(store)
    assert [claim.claim.partition(":")[0] for claim in claims(store.path)] == ["second", "second"]
    activations = EXPERIMENTS["families.activations"]
    parts = [(claim.curve, network) for claim, network in activations.claims_of_networks()]
    assert {network for curve, network in parts if curve == "inputs of fc3"} == {"lenet-300-100"}
    assert {network for curve, network in parts if curve == "inputs of fc2"} == {"lenet-300-100", "lenet-5"}


@pytest.mark.parametrize("setting", [{"backend": "auto"}, {"autocast": "bfloat16"}])
def test_runs_of_the_default_size_that_differ_by_numerics_decide(store, setting):
    entries = SMALL.labeled_runs("default", range(3), {})
    store.request(SMALL.name, "default", entries, setting)
    for label, spec in entries:
        finish(store, spec, [{"error": ERRORS[label["curve"]][label["replicate"]]}])
    first = claims(store.path)[0]
    assert (first.verdict, first.n, first.note) == ("holds", 3, "")
    ((key, value),) = setting.items()
    assert first.command == f"prunus run test.small --set {key}={value} --store {store.path}"


def test_runs_that_differ_by_numerics_are_not_mixed(store):
    """Two runs in bfloat16 do not take the place of those in float32, and are not in the command of a network."""
    do(store)
    before = [(claim.claim, claim.measured, claim.n, claim.command) for claim in claims(store.path)]
    entries = SMALL.labeled_runs("default", range(3), {"network": "second"})
    unfinished = [
        (label, replace(spec, replicate=spec.replicate + 10))
        for label, spec in entries
        if label["curve"] == "b"
    ]
    store.request(SMALL.name, "default", unfinished, {"autocast": "bfloat16", "network": "second"})
    for _, spec in unfinished[:2]:
        finish(store, spec, [{"error": 9.0}])
    assert [(claim.claim, claim.measured, claim.n, claim.command) for claim in claims(store.path)] == before


def test_effect_of_not_lower_is_the_margin(store, monkeypatch):
    claim = Claim("A is not lower", "a", "not lower", "b", "error", "Table 1", margin=0.5)
    monkeypatch.setattr(claim_list, "EXPERIMENTS", {SMALL.name: replace(SMALL, claims=[claim])})
    do(store)
    assert {listed.effect for listed in claims(store.path)} == {0.5}


def test_every_part_of_every_statement_exists():
    assert [statement.number for statement in STATEMENTS] == list(range(1, 17))
    for statement in STATEMENTS:
        for name, beginnings in statement.parts.items():
            texts = [claim.text for claim in EXPERIMENTS[name].claims]
            assert len(
                {(claim.text, claim.curve, claim.networks) for claim in EXPERIMENTS[name].claims}
            ) == len(texts), name
            for beginning in beginnings:
                assert any(text.startswith(beginning) for text in texts), (name, beginning)


def test_default_sizes_have_enough_replicates():
    names = {name for statement in STATEMENTS for name in statement.parts}
    with_few = {name for name in names if EXPERIMENTS[name].num_replicates("default") < 3}
    assert with_few == {"hassibi1993.xor"}  # whose replicate has 100 networks
    convolutional = claim_list.default_size(EXPERIMENTS["frankle2019.conv"])
    size = "data cifar-10, epochs 10, training examples 20000, rounds 8; n = 3 or more"
    assert convolutional == f"conv-2, conv-4, conv-6: {size}"


def test_committed_rows_decide_claims_as_their_pages_do():
    listed = prunus.claims()
    ids = [claim.id for claim in listed]
    assert len(set(ids)) == len(ids)
    pruned_once = next(claim for claim in listed if claim.experiment == "hassibi1993.xor")
    assert (pruned_once.n, pruned_once.note) == (100, "")
    page = (ROOT / "docs" / "results" / "hassibi1993.xor.md").read_text(encoding="utf-8")
    claim = EXPERIMENTS["hassibi1993.xor"].claims[-1]
    assert (
        f"| {claim.text} ({claim.source}) | **{pruned_once.verdict}** | {pruned_once.measured_text} |" in page
    )


def test_store_must_exist(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="There is no store of runs at"):
        claims(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    monkeypatch.setattr(claim_list, "EVIDENCE", tmp_path)
    with pytest.raises(StoreError, match="There are no rows in"):
        claims()


@pytest.mark.slow
def test_page_of_claims_is_up_to_date(tmp_path):
    """`make results` writes it; the tables of other pages are compared where they are made."""
    write = runpy.run_path(str(ROOT / "docs" / "make_results.py"))["write_claims"]
    (tmp_path / "results").symlink_to(ROOT / "docs" / "results")
    write(tmp_path, claims(), "store")
    assert (tmp_path / "claims.md").read_text() == (ROOT / "docs" / "claims.md").read_text()
