"""The page in a browser: nothing is wider than a telephone, every picture and every plot is there."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn

import prunus
from prunus.report import write_page
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
    pictures: all("img").map(e => [e.naturalWidth, ...size(e)]),
    plots: all(".area > svg").map(size),
    bars: all(".track .bar").map(size),
    sources: view.performance.getEntriesByType("resource").map(e => e.name.slice(0, 5)),
    background: view.getComputedStyle(view.document.body).backgroundColor,
    cut: all("h1, h2, h3, .cards li, .x-tick, .y-tick")
      .filter(e => box(e).left < 0 || box(e).right > view.innerWidth).map(e => e.textContent),
  }});
}});
</script>"""
"""The page in a frame, which may be narrower than a window, and a look into it that ends in the title."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to look at the page with")


def browse(page: Path, profile: Path, *flags: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout


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
    recipe = prunus.COMPRESSION_RECIPES["lenet-300-100"].but(
        density=0.2, rounds=3, bits=3, retrain=once, settle=once, finetune=once
    )
    compressed = prunus.deep_compress(model, data, recipe)
    prunus.save(compressed, folder / "network.prunus")
    inspection, test = prunus.inspect(folder / "network.prunus"), prunus.evaluate(compressed.model, data.test)
    title = "An_unbroken_title_that_is_longer_than_a_telephone_is_wide on digits"
    write_page(
        folder / "page.html", compressed, inspection, title=title, dense_test=None, test=test, seconds=9.0
    )
    return folder / "page.html"


@pytest.mark.parametrize(("width", "flags"), [(400, ()), (1280, (DARK,))])
def test_it_fits_its_window_and_everything_is_drawn(
    page: Path, width: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    framed = tmp_path / "framed.html"
    framed.write_text(FRAME.format(width=width, page=html.escape(page.read_text())))
    dom = browse(framed, tmp_path / "profile", "--window-size=1280,900", *flags, "--dump-dom")
    title = re.search(r"<title>(\{.*?\})</title>", dom)
    assert title is not None, "the page was not loaded to its end"
    seen = json.loads(html.unescape(title[1]))
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["cut"] == []
    assert len(seen["plots"]) == 7
    assert all(min(size) > 100 for size in seen["plots"])
    assert len(seen["bars"]) == 5
    assert len(seen["pictures"]) == 3
    assert all(min(size) > 0 for size in seen["pictures"])
    assert set(seen["sources"]) <= {"data:"}
    dark = max(map(int, re.findall(r"\d+", seen["background"]))) < 64
    assert dark == (DARK in flags)


def test_a_screenshot_shows_ink(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    browse(page, tmp_path / "profile", "--window-size=1280,3000", f"--screenshot={picture}")
    shot = matplotlib.image.imread(picture)[..., :3]
    assert shot.shape[:2] == (3000, 1280)
    plum = np.abs(shot - np.array([0x8E, 0x3B, 0x76]) / 255).max(-1) < 0.02
    assert plum.mean() > 0.005
