"""An experiment whose runs live in a store: it says which runs it is made of, and what is drawn of them.

    template(network, size) -> ticket                     what its runs have in common, for --set to change
    wanted(tickets, size, replicates) -> [(label, spec)]  a label holds "curve", "replicate", "group" (the network)
    panels                                                what is drawn, from the rows in the store alone

To run it is to note the request in the store, to do what is missing, and to draw. What can be drawn at any time is what
is finished of it.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunus.errors import NoEffectWarning, SpecError, UnknownNameError
from prunus.experiments.comparisons import as_rows, compare, comparison_lines
from prunus.experiments.overrides import changed
from prunus.experiments.page_content import command, page_of
from prunus.experiments.provenance import receipts
from prunus.experiments.results import (
    SIZES,
    Record,
    Result,
    Row,
    Say,
    average_draws,
    curve,
    summarize,
)
from prunus.experiments.store_rows import (
    curves_of,
    finished_subset,
    invariants_line,
    latest_request,
    missing_line,
    rows_of,
)
from prunus.files import after_writing
from prunus.registry import lookup
from prunus.report.experiment_page import write_experiment_page
from prunus.report.figure_data import Reference
from prunus.report.figures import check_figure_libraries
from prunus.report.statistics import check_interval_library
from prunus.runs.executors import EXECUTORS, run_plan
from prunus.runs.requests import Request
from prunus.runs.spec import RunSpec, run_id
from prunus.runs.store import Store
from prunus.types import Progress

KEYS = ("group", "curve", "over", "from", "level", "density %", "sparsity %")
"""What the rows of a table are told apart by."""

Entries = list[tuple[dict[str, Any], RunSpec]]


@dataclass(frozen=True)
class Panel:
    """One figure: a metric of the rows against another, a curve a name."""

    suffix: str
    y: str
    y_label: str
    title: str
    x: str = "density %"
    x_label: str = "weights left (density, %)"
    x_log: bool = True
    invert_x: bool = True
    source: str = "rows"
    """"rows": a row a level; "curves": a row a level and step."""
    lines: str = "curve"
    """The key of a row whose values are the curves."""
    drawn: Callable[[Row], bool] = lambda row: True
    """Which of the rows are drawn."""
    reference: Sequence[Reference] = ()


@dataclass(frozen=True)
class StoredExperiment:
    """A figure of a paper, or several that share their runs."""

    name: str
    about: str
    """The first line is what `prunus list` says."""
    template: Callable[[str, str], Any]
    """(network, size) -> what the runs have in common, a ticket or another spec with a `baseline`; `--set` changes it."""
    wanted: Callable[[Any, str, Sequence[int]], Entries]
    """(template, size, replicates) -> the runs on one network."""
    panels: Sequence[Panel]
    networks: Sequence[str] = ("lenet",)
    """Keys of NETWORKS; `--set network=conv-2,conv-4` takes others."""
    against: str = ""
    """The curve that the others are compared with, level by level on the same replicates; none where empty."""
    metrics: Sequence[str] = ("stop_step", "stop_test_accuracy", "final_test_accuracy")
    """What the table and the comparisons are about."""
    said: Sequence[str] = ("stop_test_accuracy",)
    """The metrics whose comparisons are said in sentences."""
    replicates: tuple[int, int, int] = (1, 5, 5)
    """How many for the sizes smoke, default, full."""
    table: Callable[[Store, Request, Sequence[Row]], Sequence[Row]] | None = None
    """(store, request, rows) -> the rows of the table, each with the metrics; None: means, a row a curve and level."""

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return self.about

    def __call__(
        self,
        size: str,
        out: Path,
        *,
        replicates: int | None = None,
        seed: int = 0,
        report: Say | None = None,
        store: Path | None = None,
        engine: str = "processes",
        workers: int | None = None,
        settings: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Do the runs that the store lacks, and draw."""
        self._check_libraries()
        if size not in SIZES:
            raise UnknownNameError(f"No size is called {size!r}; there are: {', '.join(SIZES)}.")
        say = report or (lambda line: None)
        lookup("engine", EXECUTORS, engine)
        n = replicates or dict(zip(SIZES, self.replicates, strict=True))[size]
        said = dict(settings or {})
        networks = self.asked(said)[0]
        if "network" not in said and len(networks) < len(self.networks):
            say(f"on {', '.join(networks)} alone; --set network={','.join(self.networks)} asks for others")
        entries = self.entries(size, range(seed, seed + n), said)
        self._warn_of_no_effect(size, range(seed, seed + n), said)
        for _, spec in entries:
            spec.cost()  # what no run can be is refused before anything is written
        kept = Store(store or Path(out) / "store")
        request = kept.request(self.name, size, [(label, spec) for label, spec in entries], said)
        specs = [spec for _, spec in entries]
        # A need of a finished run that is gone, as one that was removed because it was damaged, is drawn as well.
        done = [spec for spec in specs if kept.is_done(run_id(spec))]
        gone = [
            need for spec in done for need in spec.dependencies().values() if not kept.is_done(run_id(need))
        ]
        run_plan(
            [*specs, *gone],
            kept,
            executor=engine,
            workers=workers or os.cpu_count() or 1,
            say=say,
            progress=progress,
        )
        return self._drawn(kept, request, out, say)

    def entries(self, size: str, replicates: Sequence[int], settings: Mapping[str, str]) -> Entries:
        """The runs of a size under other settings, with their labels."""
        networks, rest = self.asked(settings)
        if twice := [name for name in networks if networks.count(name) > 1]:
            raise SpecError(f"network={','.join(networks)} names {twice[0]} twice; name each network once.")
        found: Entries = []
        for network in networks:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoEffectWarning)  # __call__ says it once, whatever the reason
                ticket = changed(self.template(network, size), rest)
            for label, spec in self.wanted(ticket, size, replicates):
                found.append(({**label, "group": network} if len(networks) > 1 else label, spec))
        return found

    def asked(self, settings: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """The networks that are asked for, and the other settings.

        Without `network`: all, of which other data leave those that are of such data; a model of the user's, or data
        that none is of, is one network, and takes the place of the first.
        """
        rest = dict(settings)
        if "network" in rest:
            return rest.pop("network").split(","), rest
        if {"model", "baseline.model"} & rest.keys():
            return list(self.networks[:1]), rest
        data = rest.get("data", rest.get("baseline.data"))
        if data is None:
            return list(self.networks), rest
        of_such = [name for name in self.networks if self.template(name, "smoke").baseline.data == data]
        return of_such or list(self.networks[:1]), rest

    def _warn_of_no_effect(self, size: str, replicates: Sequence[int], settings: Mapping[str, str]) -> None:
        """Warn of a setting that the experiment itself decides, so that setting it changes no run."""
        asked = [spec for _, spec in self.entries(size, replicates, settings)]
        for key in settings:
            without = {other: value for other, value in settings.items() if other != key}
            if [spec for _, spec in self.entries(size, replicates, without)] == asked:
                warnings.warn(
                    f"Setting {key}={settings[key]} changes nothing in {self.name}.",
                    NoEffectWarning,
                    stacklevel=3,
                )

    def figure(
        self, store: Store, out: Path, *, size: str | None = None, report: Say | None = None
    ) -> Result:
        """Draw from what is finished in the store, and say so where that is not all that was asked for.

        Raises StoreError where no run of this experiment, in that size, is finished there.
        """
        self._check_libraries()
        say = report or (lambda line: None)
        return self._drawn(store, latest_request(store, self.name, size, say), out, say)

    def _check_libraries(self) -> None:
        """Raise PrunusError, before any work, if a library that the figures or the comparisons need is missing."""
        check_figure_libraries()
        if self.against:
            check_interval_library()

    def _drawn(self, store: Store, asked: Request, out: Path, say: Say) -> Result:
        request = finished_subset(store, asked)
        seeds, all_seeds = (
            sorted({entry.label["replicate"] for entry in one.entries}) for one in (request, asked)
        )
        again = command(self, store, request, all_seeds)
        missing = missing_line(asked, request, again)
        record = Record(self.name, request.size, Path(out), seeds, say)
        rows = rows_of(store, request)
        for panel in self.panels:
            self._draw(
                record,
                panel,
                rows if panel.source == "rows" else curves_of(store, request),
                missing.partition(":")[0],
            )
        found = compare(rows, self.against, self.metrics) if self.against else []
        if found:
            record.save_rows("comparisons", as_rows(found))
        table = self.table(store, request, rows) if self.table else self._summary(rows)
        checked = receipts(store, request)
        failed = [f"- failed: {where}: {sentence} ({run})" for where, sentence, run in checked.failed]
        said = comparison_lines(found, self.said, f"{self.name}.comparisons.csv")
        paragraphs = (invariants_line(rows), missing, "\n".join(failed), "\n".join(said))
        note = "\n\n".join(filter(None, paragraphs))
        result = record.finish(table, note, command=request.settings)
        page = record.out / f"{self.name}.html"
        with after_writing(*result.files):
            told = page_of(self, store, request, record, result, found, checked)
            about = f"{told.about_size} {missing}.".replace("`", "") if missing else told.about_size
            write_experiment_page(page, replace(told, about_size=about, command=again))
        return replace(result, files=[page, *result.files])

    def _summary(self, rows: Sequence[Row]) -> list[Row]:
        told = [row for row in rows if all(metric in row for metric in self.metrics)]
        by = [key for key in KEYS if all(key in row for row in told)]
        if "density %" not in by:
            by = [key for key in by if key != "level"]  # places on a line, not levels of density
        return summarize(average_draws(told, by, self.metrics), by, self.metrics)

    def _draw(self, record: Record, panel: Panel, rows: Sequence[Row], missing: str) -> None:
        for group in dict.fromkeys(row.get("group", "") for row in rows):
            mine = [
                row
                for row in rows
                if row.get("group", "") == group and panel.y in row and panel.x in row and panel.drawn(row)
            ]
            if missing and not mine:
                continue  # none of what the panel shows is finished
            # learned masks end at densities of their own: their point is the level
            point = "level" if panel.x == "density %" else panel.x
            named: dict[str, list[Row]] = {}
            for row in mine:
                name = f"{row[panel.lines]:.3g} %" if panel.lines == "density %" else row[panel.lines]
                named.setdefault(name, []).append(row)
            record.draw(
                f"{panel.suffix}.{group}" if group else panel.suffix,
                [
                    curve(
                        name,
                        average_draws(own, [point], {panel.x, panel.y} - {point}),
                        panel.x,
                        panel.y,
                        point,
                    )
                    for name, own in named.items()
                ],
                title=f"{panel.title} – {'; '.join(dict.fromkeys(row['network'] for row in mine))}",
                x_label=panel.x_label,
                y_label=panel.y_label,
                x_log=panel.x_log,
                invert_x=panel.invert_x,
                reference=panel.reference,
                receipts="; ".join(filter(None, (invariants_line(mine), missing))),
            )
