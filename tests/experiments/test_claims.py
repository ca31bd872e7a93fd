"""Verdicts on claims, decided from rows."""

from prunus.experiments.claims import Claim, decide_claims


def rows(group, curve, errors):
    return [
        {"group": group, "curve": curve, "replicate": replicate, "error": error}
        for replicate, error in enumerate(errors)
    ]


def test_claim_about_one_network_is_not_decided_on_another():
    claims = [
        Claim("A is low", "a", "lower", 2.0, "error", "Table 1"),
        Claim("B is low", "b", "lower", 2.0, "error", "Table 1"),
        Claim("C is low", "c", "lower", 2.0, "error", "Table 1"),
    ]
    measured = rows("first", "a", [1.0, 1.1, 1.05]) + rows("second", "b", [3.0, 3.1, 3.05])
    decisions = {d.claim: (d.verdict, d.n, d.reason) for d in decide_claims(claims, measured)}
    assert decisions == {
        "first: A is low": ("holds", 3, ""),
        "first: C is low": ("not shown", 0, "there is no curve 'c'"),
        "second: B is low": ("does not hold", 3, ""),
        "second: C is low": ("not shown", 0, "there is no curve 'c'"),
    }


def test_claim_that_names_its_networks_is_not_decided_on_others():
    claims = [Claim("C is low", "c", "lower", 2.0, "error", "Table 1", networks=("second",))]
    measured = rows("first", "a", [1.0, 1.1, 1.05]) + rows("second", "b", [3.0, 3.1, 3.05])
    assert [decision.claim for decision in decide_claims(claims, measured)] == ["second: C is low"]
    assert [decision.claim for decision in decide_claims(claims, rows("", "c", [1.0, 1.1]))] == ["C is low"]


def test_more_claims_need_more_evidence():
    """Holm: the smallest of m p-values is multiplied by m."""
    claim = Claim("It is low", "a", "lower", 2.0, "error", "Table 1")
    measured = rows("", "a", [1.0, 1.45, 1.2])
    (alone,) = decide_claims([claim], measured)
    first, *others = decide_claims([claim] * 4, measured)
    assert first.p == min(1.0, 4 * alone.p)
    assert (alone.verdict, first.verdict) == ("holds", "not shown")
    assert {other.p for other in others} == {first.p}
    (one_of_four,) = decide_claims([claim], measured, num_claims=4)
    assert one_of_four == first
    sure = [{**row, "group": "other", "error": row["error"] / 1000} for row in measured]
    with_sure = decide_claims([claim], [{**row, "group": "one"} for row in measured] + sure, num_claims=4)
    assert alone.p < with_sure[0].p < one_of_four.p  # what is shown elsewhere leaves fewer to correct for


def test_a_replicate_is_compared_at_the_points_that_it_has_of_both_curves():
    """A run that failed does not pair a mean of two points with a mean of one."""
    claim = Claim("It is low", "a", "lower", "b", "error", "Table 1", at={"level": (1, 2)})
    measured = [
        {"curve": curve, "replicate": replicate, "level": level, "error": float(10 * level)}
        for curve in ("a", "b")
        for replicate in range(3)
        for level in (1, 2)
        if (curve, replicate, level) != ("b", 0, 2)
    ]
    (decision,) = decide_claims([claim], measured)
    assert (decision.n, decision.measured, decision.interval) == (3, 0.0, (0.0, 0.0))
    assert decision.where == "levels 1, 2"
