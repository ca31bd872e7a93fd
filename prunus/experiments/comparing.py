"""Paired comparisons: two curves on the same replicates, level by level, with an interval and a sentence."""

from collections.abc import Sequence
from typing import Any

from prunus.experiments.result import Row
from prunus.report.statistics import paired

WORDS = {
    "stop_step": ("iterations", "later to stop"),
    "stop_test_accuracy": ("pp", "more accurate"),
    "final_test_accuracy": ("pp", "more accurate"),
}
"""The unit of a metric, and what the larger value is."""


def compare(
    rows: Sequence[Row], against: str, metrics: Sequence[str], said: Sequence[str]
) -> tuple[list[str], list[Row]]:
    """For every other curve, level and metric: the difference to `against` on the replicates both have.

    Returns sentences for the metrics in `said`, and all of it as rows.
    """
    values: dict[tuple[str, str, Any, str], dict[int, float]] = {}
    for row in rows:
        for metric in metrics:
            if metric in row and row.get("level"):
                key = (row.get("group", ""), row["curve"], row["density %"], metric)
                values.setdefault(key, {}).setdefault(row["replicate"], row[metric])
    sentences, found = [], []
    for (group, name, left, metric), mine in values.items():
        other = values.get((group, against, left, metric))
        if name == against or other is None:
            continue
        result = paired(other, mine)
        about = {"group": group} if group else {}
        found.append({
            **about, "curve": name, "against": against, "density %": left, "metric": metric, "n": result.n,
            "difference": result.difference, "low": result.low, "high": result.high,
        })  # fmt: skip
        if metric not in said:
            continue
        where = f"{group + ', ' if group else ''}density {left:g} %, {metric}"
        sentences.append(f"- {where}: {result.sentence(against, name, *WORDS[metric])}")
    return sentences, found
