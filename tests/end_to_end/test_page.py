"""The pages in a browser: they fit a width of 400 pixels, draw everything, and react to pointer and keyboard."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from pages import content_with, save_line_plot
from torch import nn

import prunus
from prunus.experiments.results import write_results
from prunus.report.compression import write_page
from prunus.report.figure_data import Curve, FigureData, Reference
from prunus.training import Recipe

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
)
DARK = "--blink-settings=preferredColorScheme=0"
FRAME = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title></title>
<style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe width="{width}" height="900" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const view = frames[0], all = s => [...view.document.querySelectorAll(s)];
  const box = e => e.getBoundingClientRect(), size = e => [box(e).width, box(e).height];
  document.title = JSON.stringify({{
    inner: view.innerWidth,
    scroll: view.document.documentElement.scrollWidth,
    images: all("img").map(e => [e.naturalWidth, ...size(e)]),
    sources: view.performance.getEntriesByType("resource").map(e => e.name.slice(0, 5)),
    background: view.getComputedStyle(view.document.body).backgroundColor,
    cut: all("h1, h2, h3, .cards li")
      .filter(e => box(e).left < 0 || box(e).right > view.innerWidth).map(e => e.textContent),
  }});
}});
</script>"""
"""The page in a frame, which may be narrower than a window. The title becomes a JSON object of measurements."""

FIGURE_VISIT = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title></title>
<style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe width="{width}" height="900" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const view = frames[0], page = view.document, chart = page.querySelector(".chart");
  const all = s => [...page.querySelectorAll(s)], box = e => e.getBoundingClientRect();
  const words = s => all(s).map(e => e.textContent), count = s => all(s).length;
  const center = e => ({{ clientX: box(e).left + box(e).width / 2, clientY: box(e).top + box(e).height / 2 }});
  const readOut = page.querySelector(".read-out"), read = () => readOut.hidden ? null : readOut.innerText;
  const point = e => {{ chart.dispatchEvent(new view.PointerEvent("pointermove", center(e))); return read(); }};
  const press = key => {{ chart.dispatchEvent(new view.KeyboardEvent("keydown", {{ key }})); return read(); }};
  const middles = () => all(".chart .marker").map(e => Math.round(center(e).clientX));
  const seen = {{}};
  seen.inner = view.innerWidth;
  seen.scroll = page.documentElement.scrollWidth;
  seen.legend = words(".legend span");
  seen.colors = all(".curve .line").map(e => view.getComputedStyle(e).stroke);
  seen.chart = [box(chart).width, box(chart).height];
  seen.outside = all(".chart path, .chart circle, .chart text").filter(e => !e.matches(".ring") &&
    (box(e).left < box(chart).left - 1 || box(e).right > box(chart).right + 1 ||
     box(e).top < box(chart).top - 1 || box(e).bottom > box(chart).bottom + 1)).map(e => e.outerHTML);
  seen.marks = [".curve .line", ".reference .line", ".band", ".marker", ".failed"].map(s => count(".chart " + s));
  seen.read = all(".chart .marker").map(point);
  seen.inside = box(readOut).right <= view.innerWidth;
  chart.dispatchEvent(new view.PointerEvent("pointermove", {{ clientX: -500, clientY: -500 }}));
  seen.away = read();
  seen.keys = ["ArrowRight", "ArrowRight", "ArrowDown", "Escape"].map(press);
  seen.logarithmic = middles();
  page.querySelector(".scale").click();
  seen.linear = middles();
  seen.scale = words(".scale")[0];
  all("[data-curve]")[0].click();
  seen.hidden = [count(".chart .curve .line"), all("[data-curve]")[0].getAttribute("aria-pressed")];
  all("[data-curve]")[0].click();
  page.querySelector(".all").click();
  seen.none = [count(".chart .line"), words(".all")[0]];
  page.querySelector(".all").click();
  seen.back = [count(".chart .line"), words(".all")[0]];
  seen.sources = view.performance.getEntriesByType("resource").map(e => e.name.slice(0, 5));
  seen.background = view.getComputedStyle(page.body).backgroundColor;
  document.title = JSON.stringify(seen);
}});
</script>"""
"""The page of a figure in a frame, and a script that uses it. The title becomes a JSON object of observations."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def browse(page: Path, profile: Path, *flags: str) -> str:
    """Return what the browser prints; its console must stay empty."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    return done.stdout


def title(dom: str) -> dict[str, Any]:
    match = re.search(r"<title>(\{.*?\})</title>", dom, flags=re.DOTALL)
    assert match is not None, "the page was not loaded completely"
    seen: dict[str, Any] = json.loads(html.unescape(match[1]))
    return seen


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    data = prunus.load_data("digits")
    model = nn.Sequential(nn.Flatten())
    model.add_module("a_layer_with_quite_a_long_name_" * 3, nn.Linear(64, 40))
    model.add_module("relu", nn.ReLU())
    model.add_module("out", nn.Linear(40, 10))
    once = Recipe(1, 1e-3, 64)
    recipe = prunus.COMPRESSION_RECIPES["lenet-300-100"].replace(
        density=0.2, rounds=3, bits=3, retrain=once, final_retrain=once, finetune=once
    )
    compressed = prunus.compress(model, data=data, preset=recipe)
    prunus.save(compressed, folder / "network.prunus")
    inspection, test = prunus.inspect(folder / "network.prunus"), prunus.evaluate(compressed.model, data.test)
    long_title = "An_unbroken_title_that_is_wider_than_400_pixels_on_a_phone on digits"
    write_page(
        folder / "page.html",
        compressed,
        inspection,
        title=long_title,
        dense_test=None,
        test=test,
        seconds=9.0,
    )
    return folder / "page.html"


@pytest.mark.parametrize(("width", "flags"), [(400, ()), (1280, (DARK,))])
def test_compression_page_fits_its_window_and_draws_everything(
    page: Path, width: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    framed = tmp_path / "framed.html"
    framed.write_text(FRAME.format(width=width, page=html.escape(page.read_text(encoding="utf-8"))))
    dom = browse(framed, tmp_path / "profile", "--window-size=1280,900", *flags, "--dump-dom")
    seen = title(dom)
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["cut"] == []
    assert len(seen["images"]) == 3 + 4, "masks, and charts of stages, two layers and epochs"
    assert all(min(size) > 0 for size in seen["images"])
    assert set(seen["sources"]) <= {"data:"}
    dark = max(map(int, re.findall(r"\d+", seen["background"]))) < 64
    assert dark == (DARK in flags)


def test_screenshot_has_the_color_of_the_charts(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    browse(page, tmp_path / "profile", "--window-size=1280,3000", f"--screenshot={picture}")
    shot = matplotlib.image.imread(picture)[..., :3]
    assert shot.shape[:2] == (3000, 1280)
    plum = np.abs(shot - np.array([0x8E, 0x3B, 0x76]) / 255).max(-1) < 0.02
    assert plum.mean() > 0.005


# --- figures

HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=alert(1)> \"'&amp;"
TICKET = Curve("winning ticket", [100, 10, 1], [98.1, 98.2, 97], [98, 98.1, 96], [98.2, 98.3, 97.5], 5, (2,))
OTHER = Curve(HOSTILE, [100, 10, 1], [98, 97.5, 94], [98, 97.5, 94], [98, 97.5, 94], 1)
LEVEL = Reference("paper", [(100, 98.16), (1, 98.16)])


@pytest.fixture
def figure(tmp_path: Path) -> Path:
    about = {"title": "A_long_title_" * 9, "x_label": "density (%)", "y_label": "accuracy (%)"}
    more = {"x_log": True, "invert_x": True, "footer": "invariants: 29 of 30 points passed"}
    return save_line_plot(tmp_path / "figure", [TICKET, OTHER], reference=[LEVEL], **about, **more)[2]  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "flags"), [(400, ()), (1280, (DARK,))])
def test_figure_reacts_to_input(figure: Path, width: int, flags: tuple[str, ...], tmp_path: Path) -> None:
    framed = tmp_path / "framed.html"
    framed.write_text(FIGURE_VISIT.format(width=width, page=html.escape(figure.read_text(encoding="utf-8"))))
    seen = title(browse(framed, tmp_path / "profile", "--window-size=1280,900", *flags, "--dump-dom"))
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert min(seen["chart"]) >= 280
    assert seen["outside"] == []
    assert seen["legend"] == ["winning ticket (n = 5)", f"{HOSTILE} (n = 1)", "paper", "invariants failed"]
    assert seen["marks"] == [2, 1, 2, 6, 1], "lines, references, bands, points, failed ones"
    dark = max(map(int, re.findall(r"\d+", seen["background"]))) < 64
    assert dark == (DARK in flags)
    blue = [float(part) for part in re.findall(r"[\d.]+", seen["colors"][0])]
    assert (blue == pytest.approx([0, 0x72 / 255, 0xB2 / 255], abs=1e-3)) != dark
    assert blue[2] > blue[1] > blue[0]
    first, _, last, *_, other = seen["read"]
    assert first == "winning ticket\ndensity (%): 100\naccuracy (%): 98.1\nmin to max: 98 to 98.2\nn = 5"
    assert last.endswith("min to max: 96 to 97.5\nn = 5\ninvariants failed")
    assert other.startswith(f"{HOSTILE}\ndensity (%): 1\naccuracy (%): 94")
    assert seen["inside"]
    assert seen["away"] is None
    starts = [words and words[:45] for words in seen["keys"]]
    ticket = "winning ticket\ndensity (%): "
    assert starts[0].startswith(ticket + "100\n")
    assert starts[1].startswith(ticket + "10\n")
    assert starts[2].startswith(HOSTILE[:40])
    assert starts[3] is None
    left, middle, right = seen["logarithmic"][:3]
    assert middle == pytest.approx((left + right) / 2, abs=1.5)
    left, middle, right = seen["linear"][:3]
    assert (middle - left) / (right - left) == pytest.approx(90 / 99, abs=0.01)
    assert seen["scale"] == "x axis: linear"
    assert seen["hidden"] == [1, "false"]
    assert seen["none"] == [0, "show all"]
    assert seen["back"] == [3, "hide all"]
    assert seen["sources"] == []


def test_figure_opens_from_its_file(figure: Path, tmp_path: Path) -> None:
    dom = browse(figure, tmp_path / "profile", "--dump-dom")
    assert dom.count('class="marker"') == 6 + 2
    assert "<title>A_long_title_" in dom
    picture = tmp_path / "figure.png"
    browse(figure, tmp_path / "profile", "--window-size=1100,900", f"--screenshot={picture}")
    shot = matplotlib.image.imread(picture)[..., :3]
    for color in ((0x00, 0x72, 0xB2), (0xD0, 0x02, 0x1B)):
        assert (np.abs(shot - np.array(color) / 255).max(-1) < 0.02).sum() > 20


def test_browse_raises_for_console_messages(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<title></title><script>throw new Error('hidden')</script>")
    with pytest.raises(AssertionError, match="hidden"):
        browse(page, tmp_path / "profile", "--dump-dom")


# --- the page of an experiment

PAGE_VISIT = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title></title>
<style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe width="{width}" height="900" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const view = frames[0], page = view.document, box = e => e.getBoundingClientRect();
  const all = s => [...page.querySelectorAll(s)], charts = all(".chart"), readOuts = all(".read-out");
  const lines = () => charts.map(e => e.querySelectorAll(".line").length);
  const open = () => readOuts.map(e => !e.hidden), seen = {{}};
  seen.inner = view.innerWidth;
  seen.scroll = page.documentElement.scrollWidth;
  seen.cut = all("h1, h2, h3, p, dt, dd, li, pre, .chart").filter(e => box(e).right > view.innerWidth).length;
  seen.sizes = charts.map(e => [box(e).width, box(e).height]);
  seen.lines = [lines()];
  all(".all")[0].click();
  seen.lines.push(lines());
  all("[data-figure]")[1].querySelector("[data-curve]").click();
  seen.lines.push(lines());
  const marker = box(charts[1].querySelector(".marker"));
  const at = {{ clientX: marker.left + marker.width / 2, clientY: marker.top + marker.height / 2 }};
  charts[1].dispatchEvent(new view.PointerEvent("pointermove", at));
  seen.open = open();
  seen.stills = all(".still").length;
  seen.background = view.getComputedStyle(page.body).backgroundColor;
  document.title = JSON.stringify(seen);
}});
</script>"""
"""The page in a frame, and a script that uses two of its charts. The title becomes a JSON object of observations."""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    figures = {
        name: FigureData(
            [TICKET, OTHER], f"{name}_" * 30, "density (%)", "accuracy (%)", True, True, y_log=True
        )
        for name in ("stop", "end")
    }
    long = "a_word_that_is_wider_than_400_pixels_on_a_phone_" * 2
    content = content_with(long)
    row = (long, [("98.17", "0.12")] * 12)
    content |= {
        "cells": {"header": ["curve", *"abcdefghijkl"], "rows": [row] * 3, "shares_dense": False},
        "size": "default",
    }
    content |= {"settings": {"model": long, "epochs": "5"}}
    return write_results(content, figures, folder).files[0]


@pytest.mark.parametrize(("width", "flags"), [(400, ()), (1280, (DARK,))])
def test_charts_of_an_experiment_react_independently(
    experiment: Path, width: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    framed = tmp_path / "framed.html"
    framed.write_text(
        PAGE_VISIT.format(width=width, page=html.escape(experiment.read_text(encoding="utf-8")))
    )
    seen = title(browse(framed, tmp_path / "profile", "--window-size=1280,900", *flags, "--dump-dom"))
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["cut"] == 0
    assert all(min(size) >= 280 for size in seen["sizes"])
    assert seen["lines"] == [[2, 2], [0, 2], [0, 1]]
    assert seen["open"] == [False, True]
    assert seen["stills"] == 0
    dark = max(map(int, re.findall(r"\d+", seen["background"]))) < 64
    assert dark == (DARK in flags)


def test_experiment_page_opens_from_its_file(experiment: Path, tmp_path: Path) -> None:
    dom = browse(experiment, tmp_path / "profile", "--dump-dom")
    assert dom.count('class="marker"') == 2 * (6 + 2)


def test_experiment_page_without_scripts_shows_its_figures(experiment: Path, tmp_path: Path) -> None:
    plain, picture = tmp_path / "plain.html", tmp_path / "page.png"
    page = re.sub(r"<script.*?</script>", "", experiment.read_text(encoding="utf-8"), flags=re.S)
    plain.write_text(page.replace("<noscript>", "<div>").replace("</noscript>", "</div>"))
    browse(plain, tmp_path / "profile", "--window-size=1280,3900", f"--screenshot={picture}")
    shot = matplotlib.image.imread(picture)[..., :3]
    blue = np.abs(shot - np.array([0x00, 0x72, 0xB2]) / 255).max(-1) < 0.02
    assert blue.sum() > 2000
    assert (np.diff(np.flatnonzero(blue.any(1))) > 300).any(), "a figure is missing"
