"""The page of an experiment describes the runs of a store, needs no other file, and escapes every name."""

import base64
import csv
import hashlib
import json
import re
import shlex
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import content_with

from prunus.cli.run import _settings
from prunus.errors import PrunusError, SpecError, StoreError
from prunus.experiments import EXPERIMENTS
from prunus.experiments.claims import Claim
from prunus.experiments.comparisons import METRICS, as_rows, compare, comparison_tables
from prunus.experiments.experiment import Experiment, FigureSpec, labeled
from prunus.experiments.results import Result, write_results
from prunus.experiments.rows import curve, finished_subset, latest_request
from prunus.experiments.running import draw_experiment
from prunus.report.figure_data import Curve, FigureData
from prunus.report.templating import TEMPLATES
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.ticket import TicketSpec
from prunus.training.recipe import Recipe

HOSTILE = "_</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp; {{ 7 * 7 }} <!--"
PLAIN = "p" * len(HOSTILE)
ACCURACY = "stop_test_accuracy"


class Html(HTMLParser):
    """The tags, scripts and words of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts.append(data)
        elif not self.inside and data.strip():
            self.words.append(data.strip())

    @property
    def figures(self) -> list[Any]:
        return [json.loads(text) for text in self.scripts[:-1]]

    @property
    def links(self) -> list[str]:
        return [
            str(a["href"]) for tag, a in self.tags if tag == "a" and not str(a["href"]).startswith("data:")
        ]


# --- the page alone -------------------------------------------------------------------------------------


def written(word: str, folder: Path) -> str:
    """The page with `word` in every place and in two figures."""
    figure = FigureData([Curve(word, [1, 2], [1, 2], [1, 2], [1, 2], 1)], word, word, word)
    page, *_ = write_results(content_with(word), {"stop": figure, "end": figure}, folder).files
    return page.read_text(encoding="utf-8")


def test_names_are_escaped(tmp_path: Path) -> None:
    plain, hostile = (Html(written(word, tmp_path)) for word in (PLAIN, HOSTILE))
    assert [tag for tag, _ in plain.tags] == [tag for tag, _ in hostile.tags]
    assert [set(a) for _, a in plain.tags] == [set(a) for _, a in hostile.tags]
    assert hostile.scripts[-1] == plain.scripts[-1] == (TEMPLATES / "figure.js").read_text()
    assert [figure["curves"][0]["name"] for figure in hostile.figures] == [HOSTILE] * 2
    assert [word.replace(HOSTILE, PLAIN) for word in hostile.words] == plain.words
    assert "49" not in " ".join(hostile.words)


def test_smoke_size_has_no_verdicts(tmp_path: Path) -> None:
    result = write_results({**content_with("word"), "size": "smoke"}, {}, tmp_path)
    for text in (
        result.text,
        *(path.read_text() for path in result.files if path.suffix in (".md", ".html")),
    ):
        assert "no verdict (smoke size)" in text
        assert "holds:" not in text
        assert "<b>holds</b>" not in text
        assert "**holds**" not in text


def test_page_needs_no_other_file_and_runs_one_script(tmp_path: Path) -> None:
    text = written("plain", tmp_path)
    page = Html(text)
    for tag, attributes in page.tags:
        for name in ("src", "action", "data", "srcset", "poster", "formaction"):
            assert (attributes.get(name) or "data:").startswith("data:"), tag
        assert not any(name.startswith("on") for name in attributes)
    assert set(page.links) == {path.name for path in tmp_path.iterdir()} - {"n.html"}
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert (
        policy
        == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_page_that_cannot_be_written_leaves_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "n.html").mkdir()
    with pytest.raises(
        PrunusError, match=r"n\.json.* complete; the next step failed: .*n\.html cannot be written"
    ):
        written("plain", tmp_path)
    assert not list(tmp_path.glob(".*"))


# --- comparisons ----------------------------------------------------------------------------------------


def rows_of(values: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """One row per curve, density and replicate."""
    return [
        {"curve": name, "replicate": seed, "level": level + 1, "density %": 50.0 / 2**level, ACCURACY: value}
        for name, levels in values.items()
        for level, draws in enumerate(levels)
        for seed, value in enumerate(draws)
    ]


def levels_of(n: int) -> st.SearchStrategy[list[list[float]]]:
    value = st.sampled_from([90.0, 90.5, 91.0, 95.0])
    return st.lists(st.lists(value, min_size=n, max_size=n), min_size=4, max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries({name: levels_of(3) for name in ("a", "b", "c")}))
def test_tables_and_rows_of_comparisons_agree(values: dict[str, list[list[float]]]) -> None:
    comparisons = compare(rows_of(values), "a", [ACCURACY])
    table = as_rows(comparisons)
    assert sorted((row["curve"], -row["density %"]) for row in table) == [
        (name, -50.0 / 2**level) for name in ("b", "c") for level in range(4)
    ]
    expected = {
        (row["curve"], row["density %"]): (row["p"] < 0.05) * ((row["low"] > 0) - (row["high"] < 0))
        for row in table
    }
    (reports,) = comparison_tables(comparisons)
    by_page = {}
    for level, point in enumerate(reports["rows"]):
        for sign, names in (
            (1, [n for n, _ in point["more"]]),
            (-1, [n for n, _ in point["less"]]),
            (0, point["same"]),
        ):
            by_page |= {(name, 50.0 / 2**level): sign for name in names}
    assert by_page == expected


def test_draws_of_a_replicate_count_once() -> None:
    rows = rows_of({"a": [[90.0, 91.0]], "b": [[80.0, 82.0]]})
    again = [{**row, ACCURACY: row[ACCURACY] + 2, "draw": 1} for row in rows if row["curve"] == "b"]
    (row,) = as_rows(compare([*rows, *again], "a", [ACCURACY]))
    assert (row["n"], row["difference"]) == (2, (81 + 83 - 90 - 91) / 2)


def test_one_replicate_shows_no_difference() -> None:
    comparisons = compare(rows_of({"a": [[90.0]], "b": [[10.0]]}), "a", [ACCURACY])
    assert comparison_tables(comparisons) == []
    assert as_rows(comparisons)[0]["difference"] == -80


# --- from a store ---------------------------------------------------------------------------------------

CHECKS = {"the masks are nested": True, "every pruned weight is zero": True}
SEEDS = {"smoke": 1, "default": 3, "full": 4}


def template(network: str, size: str) -> TicketSpec:
    recipe = Recipe({"smoke": 1, "default": 2, "full": 9}[size], 0.1, 60)
    return TicketSpec(BaselineSpec(network, "digits", recipe), rounds=3 if size == "full" else 2)


def two_criteria(template: TicketSpec, size: str) -> Any:
    return labeled({name: replace(template, criterion=name) for name in ("large_final", "small_final")})


_claim = partial(Claim, curve="large_final", against="small_final", metric=ACCURACY, source="Figure 7")

TINY = Experiment(
    name="mine.tiny",
    paper='Me 2026, "Two criteria"',
    place="Figure 7",
    title="Two criteria",
    question="Which of two criteria is better?",
    template=template,
    runs=two_criteria,
    figures=[
        FigureSpec("stop", ACCURACY, "stop (%)", "Stop"),
        FigureSpec("end", "final_test_accuracy", "end (%)", "End"),
    ],
    claims=[
        _claim("large_final is better", expected="higher", at={"level": (1, 2)}),
        _claim("large_final is worse", expected="lower", at={"level": (1, 2)}),
        _claim("both end alike", expected="equal", metric="final_test_accuracy", margin=0.1),
        _claim("large_final is at least 90 %", expected="higher", against=90.0, at={"level": (2,)}),
        _claim("a claim without rows", expected="higher", at={"level": (9,)}),
        _claim("a claim without a curve", curve="random", expected="higher"),
    ],
    networks=("lenet-300-100",),
    against="large_final",
    metrics=(ACCURACY, "final_test_accuracy"),
    replicates=tuple(SEEDS.values()),  # type: ignore[arg-type]
)


def put(
    store: Store,
    size: str = "default",
    *,
    broken: str = "",
    settings_given: dict[str, str] | None = None,
    n: int = 0,
    until: int | None = None,
) -> set[str]:
    """Store made-up rows of the experiment's runs, and return the IDs of the runs.

    Only the first `until` runs are finished.
    """
    entries = TINY.labeled_runs(size, range(n or SEEDS[size]), settings_given or {})
    store.request(TINY.name, size, entries, settings_given or {})
    ids = set()
    for label, spec in entries[:until]:
        for item in (*spec.dependencies().values(), spec):
            ids.add(run_id(item))
            folder = store.open(item, "inline")
            if folder is None:
                continue
            for level in [0] if item.kind == "baseline" else range(1, spec.rounds + 1):
                seed = label["replicate"]
                pruned = label["curve"] == "small_final" and item.kind == "ticket"
                below = pruned * (9 * level + (seed - 1) / 32)
                row: dict[str, Any] = {"level": level, "density": 0.8**level, "seconds": 1.0}
                row |= {ACCURACY: 90.0 - below + seed / 8, "final_test_accuracy": 88.0 - seed}
                if level:
                    bad = broken == f"{label['curve']} {seed} {level}"
                    checks = CHECKS | {"the masks are nested": not bad}
                    row["invariants"] = {"passed": not bad, "checks": checks, "evaluations": 3}
                folder.append_row(row)
            store.finish(folder, {}, 60.0)
    return ids


def draw_page(tmp_path: Path, **about: Any) -> tuple[Result, Html, Store, set[str]]:
    store = Store(tmp_path / "store")
    ids = put(store, **about)
    result = draw_experiment(TINY, store, tmp_path / "out")
    return result, Html(result.files[0].read_text(encoding="utf-8")), store, ids


@pytest.fixture(scope="module")
def default_page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return draw_page(tmp_path_factory.mktemp("shortened"))


def test_page_contains_its_figures(default_page: Any, tmp_path: Path) -> None:
    result, page, store, _ = default_page
    out = result.files[0].parent
    assert result.files[0].name == "mine.tiny.html"
    assert page.links == [path.name for path in result.files[1:]]
    assert {path.name for path in out.iterdir()} == {path.name for path in result.files}
    for suffix, figure in zip(("stop", "end"), page.figures, strict=True):
        figure_page = Html((out / f"mine.tiny.{suffix}.html").read_text(encoding="utf-8"))
        assert figure_page.figures == [figure]
    svgs = [a["src"] for tag, a in page.tags if tag == "img"]
    for suffix, source in zip(("stop", "end"), svgs, strict=True):
        inside = base64.b64decode(str(source).removeprefix("data:image/svg+xml;base64,"), validate=True)
        assert inside == (out / f"mine.tiny.{suffix}.svg").read_bytes()
    again = draw_experiment(TINY, store, tmp_path / "again")
    assert again.files[0].read_bytes() == result.files[0].read_bytes()


def test_page_lists_the_runs_and_their_settings(default_page: Any) -> None:
    _, page, _, ids = default_page
    words = page.words
    assert sorted(word for word in words if word in ids) == sorted(ids)
    for title in ("Stop – lenet-300-100, digits (shortened)", "End – lenet-300-100, digits (shortened)"):
        assert title in words
    assert words[words.index("criterion") + 1] == "large_final; small_final"
    assert words[words.index("epochs") + 1] == "2"
    assert "All 6 results passed all checks." not in words
    assert "All 12 results passed all checks." in words
    assert words[words.index("Runs") + 1 :][:2] == ["9", "9 min 0 s of computation in total"]
    text = " ".join(words)
    assert "3 replicates instead of 4 epochs 2 instead of 9 rounds 2 instead of 3" in text
    assert re.search(r"seeds 0, 1, 2;", text)


def test_full_size_has_no_differences(tmp_path: Path) -> None:
    _, page, _, _ = draw_page(tmp_path, size="full")
    assert "This run has the size of the paper." in page.words
    assert "instead of" not in " ".join(page.words)
    assert "Stop – lenet-300-100, digits" in page.words


@pytest.mark.parametrize("size", ["default", "full"])
def test_changed_settings_are_compared_with_the_full_size(tmp_path: Path, size: str) -> None:
    _, page, _, _ = draw_page(tmp_path, size=size, settings_given={"epochs": "3"})
    assert "epochs 3 instead of 9" in " ".join(page.words)


@pytest.mark.parametrize(
    ("size", "n", "settings_given"),
    [("default", 0, {}), ("full", 2, {}), ("smoke", 2, {"epochs": "3", "batch_size": "30"})],
)
def test_command_of_the_page_makes_the_same_runs(
    tmp_path: Path, size: str, n: int, settings_given: dict[str, str]
) -> None:
    _, page, store, _ = draw_page(tmp_path, size=size, n=n, settings_given=settings_given)
    command = next(word for word in page.words if word.startswith("prunus run"))
    _, _, name, *options = shlex.split(command)
    assert name == TINY.name
    sizes = [item for item in SEEDS if f"--{item}" in options] or ["default"]
    values = [(options[at], options[at + 1]) for at in range(len(options) - 1)]
    replicates = next((int(value) for key, value in values if key == "--replicates"), SEEDS[sizes[0]])
    changes = _settings([value for key, value in values if key == "--set"])
    made = TINY.labeled_runs(sizes[0], range(replicates), changes)
    (request,) = store.requests()
    assert [run_id(spec) for _, spec in made] == [entry.id for entry in request.entries]
    assert ("--store", str(store.path)) in values


def test_failed_invariant_check_is_named(tmp_path: Path) -> None:
    result, page, store, _ = draw_page(tmp_path, broken="small_final 1 2")
    run = next(
        e.id for e in store.requests()[0].entries if e.label == {"curve": "small_final", "replicate": 1}
    )
    at = page.words.index("failed check")
    message = "small_final, replicate 1, density 64.00 % (36.00 %)"
    assert page.words[at + 2 : at + 5] == [message, "the masks are nested", run]
    assert "11 of 12 results passed all checks." in page.words
    assert f"- failed: {message}: the masks are nested ({run})" in result.text
    assert page.words[page.words.index("the masks are nested", at + 4) + 1] == "11 of 12"
    assert page.words[page.words.index("every pruned weight is zero") + 1] == "12 of 12"
    for figure in page.figures:
        failed = {(c["name"], point[0]) for c in figure["curves"] for point in c["points"] if point[4]}
        assert failed == {("small_final", 64.0)}


def test_unfinished_request_is_drawn_with_a_note(tmp_path: Path) -> None:
    result, page, store, ids = draw_page(tmp_path, until=3, settings_given={"epochs": "3"})
    message = "3 of 6 runs are drawn; the others are not finished or failed"
    command = f"prunus run mine.tiny --set epochs=3 --store {store.path}"
    assert f"{message}: run `{command}` again" in result.text
    assert page.words.count(f"invariants: 6 of 6 points passed all checks; {message}") == 2
    assert f"paper's time. {message}: run {command} again." in " ".join(page.words)
    assert command in page.words
    assert sorted(word for word in page.words if word in ids) == sorted(ids)
    assert {(row["curve"], row["n"]) for row in result.table} == {("large_final", 2), ("small_final", 1)}


def test_latest_finished_request_is_drawn(tmp_path: Path) -> None:
    store, reports = Store(tmp_path), []

    def latest(size: str | None = None) -> tuple[object, int]:
        reports.clear()
        comparisons = latest_request(store, TINY.name, size, reports.append)
        return comparisons.settings.get("epochs"), len(finished_subset(store, comparisons).entries)

    put(store, until=0)
    for size in (None, "default"):
        with pytest.raises(StoreError, match=r"No run of mine\.tiny .*is finished in the store"):
            latest(size)
    with pytest.raises(StoreError, match=r"has not been run in the store .* in the size full"):
        latest("full")
    put(store, settings_given={"epochs": "3"}, until=1)
    assert latest() == ("3", 1)
    put(store, settings_given={"epochs": "4"}, until=0)
    assert latest() == ("3", 1), "one that has nothing hides what there is"
    put(store, settings_given={"epochs": "5"})
    put(store, settings_given={"epochs": "6"}, until=5)
    assert latest() == ("5", 6)
    assert reports == [
        "mine.tiny.default was requested again since, with epochs=6: 5 of 6 runs of that are finished; "
        "the earlier request is drawn, with epochs=5"
    ]
    for epochs in "656":
        put(store, settings_given={"epochs": epochs})
        assert (latest(), reports) == ((epochs, 6), [])
    put(store, "full", until=0)
    assert latest() == ("6", 6), "a size that has nothing hides one that has"
    put(store, "full", until=1)
    assert latest() == (None, 1)


def test_n_counts_replicates_and_draws_are_averaged_first(tmp_path: Path) -> None:
    """One curve has three draws per replicate, so that its dense network is read three times."""

    def draws(template: TicketSpec, size: str) -> Any:
        return [
            ({**label, "draw": draw}, replace(spec, redraw=draw))
            for label, spec in two_criteria(template, size)
            for draw in range(3 if label["curve"] == "small_final" else 1)
        ]

    store, experiment = Store(tmp_path / "store"), replace(TINY, runs=draws)
    entries = experiment.labeled_runs("default", range(2), {})
    store.request(experiment.name, "default", entries, {})
    for label, spec in entries:
        for item in (*spec.dependencies().values(), spec):
            folder = store.open(item, "inline")
            if folder is not None:
                value = 8.0 * label["replicate"] + (label["draw"] - 1 if item.kind == "ticket" else 0)
                for level in [0] if item.kind == "baseline" else (1, 2):
                    numbers = dict.fromkeys((ACCURACY, "final_test_accuracy"), value)
                    folder.append_row({"level": level, "density": 0.5**level, **numbers})
                store.finish(folder, {})
    result = draw_experiment(experiment, store, tmp_path / "out")
    for row in result.table:
        assert row["n"] == 2
        assert row[f"{ACCURACY} ±"] == pytest.approx(32**0.5)
        lower = row["curve"] == "large_final" and row["level"]
        assert row[ACCURACY] == (3.0 if lower else 4.0)
    page = Html(result.files[0].read_text(encoding="utf-8"))
    for figure in page.figures:
        (small,) = (item for item in figure["curves"] if item["name"] == "small_final")
        assert small["n"] == 2
        assert [point[1:4] for point in small["points"]] == [[4, 0, 8]] * 3


def test_network_named_twice_is_refused() -> None:
    with pytest.raises(
        SpecError, match="network=lenet,conv-2,lenet names lenet twice; name each network once"
    ):
        EXPERIMENTS["frankle2019.lenet"].labeled_runs("smoke", [0], {"network": "lenet,conv-2,lenet"})


def test_table_summarizes_the_rows(default_page: Any) -> None:
    result, page, _, _ = default_page
    at = page.words.index("density (sparsity)")
    header = ["n", METRICS[ACCURACY].column, METRICS["final_test_accuracy"].column]
    assert page.words[at + 1 : at + 4] == header
    cells = page.words[at + 4 :]
    assert cells[:8] == ["large_final", "0", "100 % (0 %)", "3", "90.12", "± 0.12", "87.0", "± 1.0"]
    small = cells[cells.index("small_final") :]
    assert small[1:8] == ["1", "80.00 % (20.00 %)", "3", "81.125", "± 0.094", "87.0", "± 1.0"]
    assert len(result.table) == 6
    shared = "Level 0 is the dense network; where several curves start from it, it is in the first of them."
    assert (result.text.count("| 100 % (0 %) |"), shared in result.text) == (1, True)
    assert "are drawn" not in result.text + " ".join(page.words)


def test_all_comparisons_are_in_the_file_and_grouped_on_the_page(default_page: Any) -> None:
    result, page, _, _ = default_page
    with result.files[0].with_name("mine.tiny.comparisons.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2, (
        "two levels, two metrics; against the other curve, and that against the dense network"
    )
    settings_given = [row for row in rows if row["metric"] == ACCURACY]
    below = {
        (row["curve"], row["against"], row["density %"]): float(row["difference"]) for row in settings_given
    }
    assert below == {
        ("small_final", "large_final", "80.0"): -9,
        ("small_final", "large_final", "64.0"): -18,
        ("large_final", "the dense network", "80.0"): 0,
        ("large_final", "the dense network", "64.0"): 0,
    }
    at = page.words.index("64.00 % (36.00 %)", page.words.index("Paired comparisons"))
    assert page.words[at + 1 : at + 5] == ["▼", "less accurate:", "small_final", "18.00 pp (17.92 to 18.08)"]
    assert "| 64.00 % (36.00 %) | – | small_final by 18.00 pp (17.92 to 18.08) | – |" in result.text


# --- every experiment -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_states_paper_question_and_claims(name: str) -> None:
    experiment = EXPERIMENTS[name]
    assert re.search(r"\b\d{4}, \"", experiment.paper)
    year = name.partition(".")[0][-4:]
    assert not year.isdecimal() or year in experiment.paper
    assert re.fullmatch(r"((Figure|Section|Appendix|Table)s? [\w ,]+|Abstract)?", experiment.place)
    assert re.fullmatch(r"[A-Z][^?.]+\?", experiment.question.replace("MONK's", "MONKs"))
    assert experiment.claims
    assert experiment.name == name
    assert all(claim.source for claim in experiment.claims)
    assert all(claim.margin > 0 for claim in experiment.claims if claim.expected == "equal")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_claims_name_curves_and_metrics_that_the_runs_have(name: str) -> None:
    """Curves of claims are labels of runs; a run of several curves has them in its rows."""
    experiment = EXPERIMENTS[name]
    curves = {label["curve"] for label, _ in experiment.labeled_runs("default", [0], {})}
    derived = {"one_shot", "lecun1990.prediction", "speed.filters_and_weights", "families.compression"}
    derived |= {"families.activations"}
    if name not in derived:
        for claim in experiment.claims:
            assert {claim.curve, claim.against if isinstance(claim.against, str) else claim.curve} <= curves
    assert experiment.against in curves | {""}
    if experiment.against:
        assert set(experiment.described or experiment.metrics[:1]) <= set(experiment.metrics) & METRICS.keys()


@pytest.mark.parametrize(
    "name", [name for name in EXPERIMENTS if name.startswith(("frankle2019.", "zhou2019."))]
)
def test_the_full_size_leaves_no_level_out(name: str) -> None:
    entries = EXPERIMENTS[name].labeled_runs("full", [0], {})
    assert not any(getattr(spec, "levels", ()) for _, spec in entries)


def test_verdicts_are_decided_from_the_rows_and_stated_on_the_page(default_page: Any) -> None:
    result, page, _, _ = default_page
    verdicts = [(v["verdict"], v["n"], v["where"]) for v in result.content["verdicts"]]
    assert verdicts == [
        ("holds", 3, "levels 1, 2"),
        ("does not hold", 3, "levels 1, 2"),
        ("not shown", 3, ""),
        ("not shown", 3, "level 2"),
        ("not shown", 0, ""),
        ("not shown", 0, ""),
    ]
    reasons = [verdict["reason"] for verdict in result.content["verdicts"]]
    assert reasons == [*[""] * 4, "there is no level 9", "there is no curve 'random'"]
    for reason in reasons[4:]:
        assert f": {reason}" in page.words
        assert f"n = 0: {reason})" in result.text
    first = result.content["verdicts"][0]
    assert first["measured"] == pytest.approx(13.5)
    assert first["interval"][0] < 13.5 < first["interval"][1]
    assert re.fullmatch(r"\+13\.50 pp \(13\.\d\d to 13\.\d\d\)", first["measured_text"])
    number = result.content["verdicts"][3]
    assert (number["measured"], number["against"]) == (pytest.approx(90.125), 90.0)
    name, _, text = number["measured_text"].partition(": ")
    assert name == "test accuracy at the early-stopping iteration"
    assert re.fullmatch(r"90\.12 % \(89\.\d\d to 90\.\d\d\), compared with 90 %", text)
    assert number["measured_text"] in page.words
    assert result.content["question"] in page.words
    for word in ("holds", "does not hold", "not shown"):
        assert word in page.words
    assert "Holm" in " ".join(page.words)


def test_one_replicate_shows_no_claim(tmp_path: Path) -> None:
    result, _, _, _ = draw_page(tmp_path, size="smoke")
    assert {verdict["verdict"] for verdict in result.content["verdicts"]} == {"not shown"}
    assert {verdict["interval"] for verdict in result.content["verdicts"]} == {None}


def test_json_has_the_rows_of_every_replicate(default_page: Any) -> None:
    result, _, _, _ = default_page
    content = json.loads(result.files[0].with_name("mine.tiny.json").read_text())
    assert content["rows"] == list(result.content["rows"])
    assert len(content["rows"]) == 2 * 3 * 3, "two curves, three replicates, the dense network and two levels"
    assert {row["replicate"] for row in content["rows"]} == {0, 1, 2}
    assert content["table"] == list(result.table)
    assert content["evidence"]["seeds"] == [0, 1, 2]
    assert content["command"].startswith("prunus run mine.tiny")


def test_point_fails_with_any_of_its_invariant_reports() -> None:
    rows = [{"x": x, "y": 1.0, "passed": (x, n) != (2, 1)} for x in (3, 2, 1) for n in range(3)]
    assert list(curve("c", rows, "x", "y").failed) == [1]
    assert list(curve("c", [{"x": 1, "y": 1.0}], "x", "y").failed) == []
