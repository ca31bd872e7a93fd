"""The page of a slimmed network: the width of each layer before and after, which are coupled, and measured times."""

import os
from collections.abc import Mapping, Sequence

from prunus.files import write_atomic
from prunus.pruning.structured.latency import LatencyComparison
from prunus.pruning.structured.report import SlimReport
from prunus.report.formatting import format_quality, quality_name
from prunus.report.templating import load_template
from prunus.training import Evaluation


def write_slim_page(
    path: str | os.PathLike[str],
    report: SlimReport,
    *,
    title: str,
    times: Sequence[tuple[int, LatencyComparison]] = (),
    tests: tuple[Evaluation, Evaluation] | None = None,
    settings: Mapping[str, object] | None = None,
) -> None:
    """Write the page of a plan: one HTML file without scripts; the same arguments give the same bytes.

    Args:
        path: The file to write.
        report: `plan.report`, of before or after `plan.apply`.
        title: What became smaller, such as "ResNet-20".
        times: Batch sizes, each with the measured times of a forward pass.
        tests: The evaluations on test data before and after the removal, if there are test data.
        settings: What the channels were chosen by, such as {"criterion": "l2"}.

    Raises:
        OutputError: The page cannot be written.
        PrunusError: Jinja2 is not installed.
    """
    layers_of: dict[str, list[str]] = {}
    for row in report.rows:
        for group in row.groups if row.macs[0] else ():
            layers_of.setdefault(group, []).append(row.name)
    page = load_template("slim.html").render(
        title=title,
        report=report,
        widest=max((row.channels[0] for row in report.rows), default=1),
        coupled={group: layers for group, layers in layers_of.items() if len(layers) > 1},
        times=times,
        tests=None if tests is None else [quality_name(tests[0]), *map(format_quality, tests), tests[0].n],
        settings=settings or {},
    )
    write_atomic(path, page)
