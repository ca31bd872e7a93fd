"""Figures: four files with the same numbers, distinct styles, and labels drawn literally."""

import base64
import csv
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import save_line_plot

from prunus.errors import PrunusError
from prunus.report.curve_styles import (
    GROUPS,
    LINES,
    MARKERS,
    NUM_COLOR_LINES,
    PALETTE,
    STYLES,
    assign_styles,
    numbered_style,
)
from prunus.report.figure_data import Curve, Reference
from prunus.report.interactive_figure import DASHES, SHAPES

HOSTILE = "_</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp; $\\frac$ ]]> <!-- {1}"
ABOUT: dict[str, Any] = {"title": "t", "x_label": "density", "y_label": "error (%)"}
CURVES = [
    Curve("L2, iterative", [0.1, 0.5, 1.0], [3.0, 2.0, 1.5], [2.5, 1.9, 1.4], [3.5, 2.1, 1.6], 5),
    Curve("my own", [0.1, 1.0], [4.0, 1.5], [4.0, 1.5], [4.0, 1.5], 1),
]
PAPER = [Reference("paper", [(0.1, 1.6), (1.0, 1.6)])]
FAILED = [replace(CURVES[0], failed=[1, 2]), CURVES[1]]


class Page(HTMLParser):
    """A parsed page of a figure: tags with their attributes, texts, and the content of scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        inside = self.tags[-1][0] if self.tags else ""
        (self.scripts if inside == "script" and data.strip() else self.texts).append(data)

    @property
    def figure(self) -> dict[str, Any]:
        return json.loads(self.scripts[0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    @property
    def csv(self) -> bytes:
        (link,) = (attributes for tag, attributes in self.tags if tag == "a")
        head, data = str(link["href"]).split(",", 1)
        assert head == "data:text/csv;charset=utf-8;base64"
        return base64.b64decode(data, validate=True)


def num_red_pixels(png: Path) -> int:
    """The number of pixels with the color of a failed point."""
    image = matplotlib.image.imread(png)[..., :3]
    return int((np.abs(image - np.array([0xD0, 0x02, 0x1B]) / 255).max(-1) < 0.02).sum())


# --- the four files


@pytest.mark.parametrize("log", [False, True])
def test_figure_has_four_files_with_the_same_bytes_each_time(tmp_path: Path, log: bool) -> None:
    about = {
        **ABOUT,
        "x_log": log,
        "y_log": log,
        "invert_x": log,
        "footer": "invariants: 5 of 5 points passed",
    }
    first = save_line_plot(tmp_path / "a.b", CURVES, reference=PAPER, **about)
    (tmp_path / "again").mkdir()
    second = save_line_plot(tmp_path / "again" / "a.b", CURVES, reference=PAPER, **about)
    assert [path.name for path in first] == ["a.b.png", "a.b.svg", "a.b.html", "a.b.csv"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    svg, page = first[1].read_text(), Page(first[2])
    labels = (
        "L2, iterative (n = 5)",
        "my own (n = 1)",
        "paper",
        "error (%)",
        "invariants: 5 of 5 points passed",
    )
    for label in (*labels, "band: min to max"):
        assert f"<!-- {label} -->" in svg
    assert set(labels) <= set(page.texts)
    assert (page.figure["log"], page.figure["invert"]) == (log, log)
    all_positive = min(min(curve.low) for curve in CURVES) > 0
    assert page.figure["yLog"] == (log and all_positive)
    image = matplotlib.image.imread(first[0])
    assert image.shape[:2] == (675, 1050)


def test_csv_has_the_numbers_of_the_curves(tmp_path: Path) -> None:
    path = save_line_plot(tmp_path / "figure", CURVES, reference=PAPER, **ABOUT)[3]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], float(row["x"]), float(row["mean"])) for row in rows] == [
        *((curve.name, x, y) for curve in CURVES for x, y in zip(curve.x, curve.mean, strict=True)),
        ("paper", 0.1, 1.6),
        ("paper", 1.0, 1.6),
    ]
    assert (rows[0]["low"], rows[0]["high"], rows[0]["n"]) == ("2.5", "3.5", "5")
    assert set(rows[0]) == {"name", "x", "mean", "low", "high", "n"}


def test_inconsistent_curves_are_refused(tmp_path: Path) -> None:
    bad = Curve("short", [1, 2], [1], [1], [1], 3)
    for series, message in (
        ([], "at least one curve"),
        ([bad], "'short', got 2 x, 1 mean"),
        ([CURVES[0]] * 2, "different names"),
        ([replace(CURVES[1], failed=[1, 2])], r"2 points of the curve 'my own' as failed, got \[2\]"),
        ([replace(CURVES[1], failed=[-1])], r"\[-1\]"),
    ):
        with pytest.raises(PrunusError, match=message):
            save_line_plot(tmp_path / "figure", series, **ABOUT)
    assert not list(tmp_path.iterdir())


# --- the page


def test_page_has_the_numbers_as_chart_table_and_csv(tmp_path: Path) -> None:
    *_, path, table = save_line_plot(tmp_path / "figure", FAILED, reference=PAPER, **ABOUT)
    page = Page(path)
    assert page.csv == table.read_bytes()
    plotted = [
        [curve["name"], *point[:4], curve["n"]]
        for curve in page.figure["curves"]
        for point in curve["points"]
    ]
    with table.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert plotted == [
        [row[0], *(float(v) if v else None for v in row[1:5]), int(row[5]) if row[5] else None]
        for row in rows
    ]
    cells = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td>', path.read_text())
    assert [(name, float(x), float(y)) for name, x, y in cells] == [
        (r[0], float(r[1]), float(r[2])) for r in rows
    ]


def test_page_is_self_contained_and_allows_one_script(tmp_path: Path) -> None:
    path = save_line_plot(tmp_path / "figure", CURVES, reference=PAPER, **ABOUT)[2]
    page = Page(path)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), tag
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|eval\(|innerHTML", path.read_text())
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert path.stat().st_size < 40_000


def test_names_are_escaped_in_every_file(tmp_path: Path) -> None:
    about: dict[str, Any] = {key: HOSTILE + key for key in (*ABOUT, "footer")}
    curves = [replace(FAILED[0], name=HOSTILE), CURVES[1]]
    plain = save_line_plot(tmp_path / "plain", FAILED, reference=PAPER, footer="r", **ABOUT)
    hostile = save_line_plot(
        tmp_path / "hostile", curves, reference=[Reference(HOSTILE + "r", [(1, 1)])], **about
    )
    page = Page(hostile[2])
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in Page(plain[2]).tags}
    assert len(page.scripts) == len(Page(plain[2]).scripts) == 2
    assert page.scripts[1] == Page(plain[2]).scripts[1]
    assert page.figure["curves"][0]["name"] == HOSTILE
    assert page.figure["x"] == HOSTILE + "x_label"
    assert f"{HOSTILE} (n = 5)" in page.texts
    rows = list(csv.reader(hostile[3].read_text().splitlines()))
    assert {row[0] for row in rows[1:]} == {HOSTILE, "my own", HOSTILE + "r"}
    svg = hostile[1].read_text()
    assert "<script" not in svg
    assert svg.count("alert(1)") >= 6, "a label is missing from the figure"


def test_nonfinite_values_are_left_out_of_the_page(tmp_path: Path) -> None:
    gap = Curve("gap", [1, 2, 3], [1.0, math.nan, 3.0], [1.0, math.nan, 2.0], [1.0, math.inf, 4.0], 2)
    paths = save_line_plot(tmp_path / "figure", [gap], **ABOUT)
    points = Page(paths[2]).figure["curves"][0]["points"]
    assert points == [[1, 1, 1, 1, False], [2, None, None, None, False], [3, 3, 2, 4, False]]
    assert "gap,2.0,nan,nan,inf,2" in paths[3].read_text()


# --- failed points and footer


def test_failed_points_are_marked_in_every_file(tmp_path: Path) -> None:
    passed = save_line_plot(tmp_path / "passed", CURVES, **ABOUT)
    failed = save_line_plot(tmp_path / "failed", FAILED, **ABOUT)
    more = save_line_plot(tmp_path / "more", [replace(CURVES[0], failed=[0, 1, 2]), CURVES[1]], **ABOUT)
    assert num_red_pixels(passed[0]) == 0
    assert 0 < num_red_pixels(failed[0]) < num_red_pixels(more[0])
    for index in (1, 2):
        assert "invariants failed" not in re.sub(r"<script>.*", "", passed[index].read_text(), flags=re.S)
    assert "<!-- invariants failed -->" in failed[1].read_text()
    assert "invariants failed" in Page(failed[2]).texts
    points = [curve["points"] for curve in Page(failed[2]).figure["curves"]]
    assert [[point[4] for point in curve] for curve in points] == [[False, True, True], [False, False]]
    with failed[3].open(newline="") as file:
        assert [row["failed"] for row in csv.DictReader(file)] == ["0", "1", "1", "0", "0"]
    assert "failed" not in passed[3].read_text()


def test_footer_does_not_change_the_numbers(tmp_path: Path) -> None:
    without = save_line_plot(tmp_path / "without", CURVES, **ABOUT)
    about = {**ABOUT, "footer": "invariants: 4 of 5 points passed"}
    with_it = save_line_plot(tmp_path / "with", CURVES, **about)
    assert without[3].read_bytes() == with_it[3].read_bytes()
    assert Page(without[2]).figure == Page(with_it[2]).figure
    assert without[0].read_bytes() != with_it[0].read_bytes()
    assert about["footer"] not in without[1].read_text() + without[2].read_text()


# --- styles


@given(st.lists(st.one_of(st.sampled_from(sorted(STYLES)), st.text(max_size=9)), unique=True, max_size=30))
def test_fixed_names_keep_their_styles_and_others_differ(names: list[str]) -> None:
    styles = assign_styles(names)
    assert list(styles) == names
    for name in names:
        if name in STYLES:
            assert styles[name] == assign_styles([name])[name] == numbered_style(STYLES[name])
    assert len(set(styles.values())) == len(names)
    assert styles == assign_styles(names[::-1])
    others = [name for name in names if name not in STYLES]
    distinct = {(style.color, style.line) for style in assign_styles(others).values()}
    assert len(distinct) == min(len(others), 24)
    assert all(style.line == "-" for style in assign_styles(others[:8]).values())
    assert "#7f7f7f" not in {style.color for style in assign_styles(others[:7]).values()}, (
        "gray is for dense networks"
    )


def test_numbered_styles_are_distinct() -> None:
    assert (
        len({numbered_style(number) for number in range(192)})
        == 192
        == len(PALETTE) * len(MARKERS) * len(LINES)
    )
    assert (
        len({(style.color, style.line) for style in map(numbered_style, range(NUM_COLOR_LINES))})
        == NUM_COLOR_LINES
        == 24
    )
    assert len({(style.color, style.marker) for style in map(numbered_style, range(NUM_COLOR_LINES))}) == 24


def test_fixed_names_have_distinct_styles() -> None:
    assert len(STYLES) == sum(map(len, GROUPS)), "a name is in two groups"
    assert len({numbered_style(number) for number in STYLES.values()}) == len(STYLES)
    for names in GROUPS:
        assert all(0 <= place < NUM_COLOR_LINES for place in names.values())
    shared = {numbered_style(STYLES[name]).color for name in ("dense", "random")}
    for names in GROUPS[-3:]:
        assert not shared & {numbered_style(STYLES[name]).color for name in names}


@pytest.mark.parametrize("n", [7, 22, 23, 24, 60])
def test_legend_is_complete_for_any_number_of_curves(n: int, tmp_path: Path) -> None:
    curves = [Curve(f"curve {i}", [1, 2], [i, i], [i, i], [i + 1, i + 1], 3, [1]) for i in range(n)]
    about = {**ABOUT, "reference": PAPER, "footer": "invariants: 1 of 2 points passed"}
    svg = save_line_plot(tmp_path / "figure", curves, **about)[1].read_text()
    (height,) = re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)
    labels = [*(f"curve {i} (n = 3)" for i in range(n)), "paper", "invariants failed", "band: min to max"]
    for label in labels:
        (place,) = re.findall(rf"<!-- {re.escape(label)} -->\s*<g [^>]*translate\([\d.]+ (-?[\d.]+)\)", svg)
        assert 8 < float(place) < float(height) - 16, f"{label} is cut off, or overlaps the footer"


def test_legend_of_many_curves_is_beside_the_axes(tmp_path: Path) -> None:
    criteria = [*GROUPS[4], "random", "dense"]
    curves = [Curve(name, [1, 2], [i, i], [i, i], [i + 1, i + 1], 3) for i, name in enumerate(criteria)]
    png, svg, page, _ = save_line_plot(tmp_path / "figure", curves, **ABOUT)
    assert matplotlib.image.imread(png).shape[:2] == (675, 1425)
    assert all(f"<!-- {name} (n = 3) -->" in svg.read_text() for name in criteria)
    plotted = Page(page).figure["curves"]
    assert len({(curve["color"], curve["dashes"]) for curve in plotted}) == len(criteria) == 18
    for curve in plotted:
        expected = numbered_style(STYLES[curve["name"]])
        assert (curve["color"], curve["shape"], curve["dashes"]) == (
            expected.color,
            SHAPES[expected.marker],
            DASHES[expected.line],
        )


def test_page_has_a_path_for_every_marker_and_line_style() -> None:
    assert set(SHAPES) == set(MARKERS)
    assert set(DASHES) == set(LINES)
    assert len(set(SHAPES.values())) == len(MARKERS)
