"""The laws of the report room: the page says what the file holds, needs nothing else, and trusts no name."""

import base64
import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

import prunus
from prunus.compression.container.inspect import FileInspection
from prunus.compression.result import Compressed
from prunus.errors import NoEffectWarning, PrunusError
from prunus.report import formatting, write_page
from prunus.report.epoch_chart import curve
from prunus.report.histograms import histograms
from prunus.report.mask_images import PIXELS, bitmaps, input_coverage, kernels
from prunus.report.png import TOP, encode
from prunus.report.stage_sizes import on_disk, sizes
from prunus.report.svg_charts import Axis, linear, logarithmic, steps
from prunus.training import Evaluation, Recipe

HOSTILE = "<script>alert(1)</script>\"'><img src=http://example.com/x onerror=alert(2)>"
VOID = {"meta", "img", "br", "link", "input", "hr", "base", "source"}
RECIPE = prunus.COMPRESSION_RECIPES["lenet-300-100"].replace(
    density=0.2,
    rounds=2,
    bits=3,
    retrain=Recipe(1, 1e-3, 64),
    final_retrain=Recipe(2, 1e-3, 64),
    finetune=Recipe(1, 1e-3, 64),
)


@dataclass
class Made:
    """A compressed network, its file, and what a page of it takes."""

    compressed: Compressed
    inspection: FileInspection
    file: Path
    dense_test: Evaluation
    test: Evaluation

    def page(self, path: Path, **changes: object) -> "Page":
        about = {"title": "digits", "dense_test": self.dense_test, "test": self.test, **changes}
        compressed = about.pop("compressed", self.compressed)
        inspection = about.pop("inspection", self.inspection)
        write_page(path, compressed, inspection, **about)  # type: ignore[arg-type]
        return Page.read(path)


@dataclass
class Page(HTMLParser):
    """A parsed page: its elements, its words, its tables as rows of cells."""

    source: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: str = ""
    tables: list[list[list[str]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        self.close()

    @classmethod
    def read(cls, path: Path) -> "Page":
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes what is not open"

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def plain(self) -> str:
        return " ".join(self.words.split())


def make(model: nn.Module, folder: Path, recipe: prunus.CompressionRecipe = RECIPE) -> Made:
    data = prunus.load_data("digits")
    prunus.train(model, data, Recipe(3, 1e-3, 64))
    compressed = prunus.compress(model, data=data, preset=recipe)
    prunus.save(compressed, folder / "network.prunus")
    return Made(
        compressed,
        prunus.inspect(folder / "network.prunus"),
        folder / "network.prunus",
        prunus.evaluate(model, data.test),
        prunus.evaluate(compressed.model, data.test),
    )


def linear_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))


def convolutional_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(linear_network(), tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(convolutional_network(), tmp_path_factory.mktemp("conv"))


def levels(source: str) -> np.ndarray:
    """The levels of ink of a data URI, as another library reads it."""
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    alpha = np.round(255 * matplotlib.image.imread(io.BytesIO(data), format="png")[..., 3]).astype(int)
    level = -(-alpha * TOP // 255)
    np.testing.assert_array_equal(255 * level // TOP, alpha, err_msg="from nothing to full ink")
    return level


def check_needs_nothing(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "image", "use"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{name} runs code"
            if name in {"src", "href", "srcset", "data", "poster", "action", "xlink:href", "background"}:
                assert value.startswith("data:"), f"{tag} {name}={value[:60]} is outside of the page"
    assert not re.search(r"url\(|@import|@font-face", page.source)
    assert not page.open, f"{page.open} is never closed"


# --- the page needs nothing, and trusts nothing ---------------------------------------------------------


@pytest.mark.parametrize("network", ["digits", "conv"])
def test_a_page_needs_nothing_but_itself_and_is_light(
    network: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    page = request.getfixturevalue(network).page(tmp_path / "page.html")
    check_needs_nothing(page)
    assert len(page.source) < 500_000
    assert page.words.count("None") == 0


def test_the_same_network_gives_the_same_bytes(digits: Made, tmp_path: Path) -> None:
    digits.page(tmp_path / "a.html")
    digits.page(tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_hostile_names_are_words_and_nothing_more(tmp_path: Path) -> None:
    model = linear_network()
    model[1], model[2], model[3] = nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)
    layer = HOSTILE.replace(".", "·")
    model.add_module(layer, nn.Linear(10, 10))
    made = make(model, tmp_path)
    prunus.save(made.compressed, made.file, metadata={HOSTILE: HOSTILE, "list": [HOSTILE, {HOSTILE: 1}]})
    page = made.page(
        tmp_path / "page.html",
        title=HOSTILE,
        provenance=HOSTILE,
        inspection=prunus.inspect(made.file),
    )
    check_needs_nothing(page)
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    assert page.words.count(HOSTILE) >= 5
    assert f"{layer}.weight" in page.words
    assert "<script>" not in page.source


def test_no_half_page_and_no_other_file_where_writing_fails(digits: Made, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for target in ("missing/page.html", "folder", "file/page.html"):
        with pytest.raises(PrunusError, match=re.escape(str(tmp_path / target))):
            digits.page(tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


# --- the numbers are those of the file ------------------------------------------------------------------


def test_the_headline_says_what_the_file_and_the_test_say(digits: Made, tmp_path: Path) -> None:
    words = digits.page(tmp_path / "page.html", seconds=133.0, provenance="by hand").plain()
    size, original = digits.file.stat().st_size, digits.inspection.original_bytes
    assert f"{original / size:.1f}×" in words
    assert f"{size:,} bytes on disk, {original:,} as trained" in words
    kept = sum(int(mask.sum()) for mask in digits.compressed.masks.values())
    assert f"{kept:,} of 2,220" in words
    assert f"{100 * kept / 2220:.2f} %" in words
    assert f"sparsity {100 - 100 * kept / 2220:.2f} %" in words
    assert f"{digits.test.error:.1f} %" in words
    assert f"n = 300; the dense network's is {digits.dense_test.error:.1f} %" in words
    assert "2 min 13 s" in words
    assert "by hand" in words
    assert torch.__version__ in words


@pytest.mark.parametrize("network", ["digits", "conv"])
def test_the_rows_of_the_layers_are_the_files_and_add_up_to_the_byte(
    network: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(network)
    table = made.page(tmp_path / "page.html").tables[1]
    rows, total = table[2:-1], table[-1]
    assert [row[0] for row in rows] == [*(layer.name for layer in made.inspection.layers), "framing"]
    assert total[0] == "the file"
    size = [int(row[9].replace(",", "")) for row in rows]
    assert sum(size) == int(total[9].replace(",", "")) == made.file.stat().st_size
    assert sum(int(row[2].replace(",", "")) for row in rows if row[2]) == int(total[2].replace(",", ""))
    for row, layer in zip(rows, made.inspection.layers, strict=False):
        assert row[2] == f"{layer.weights:,}"
        assert row[9] == f"{layer.bytes:,}"
        assert row[3].startswith(f"{100 * layer.density:.2f} %".replace("100.00", "100"))
        assert row[4] == ("–" if layer.distinct is None else str(layer.distinct))
        for cell, bits in zip(
            row[5:9],
            (layer.weight_bits, layer.coded_weight_bits, layer.index_bits, layer.coded_index_bits),
            strict=True,
        ):
            assert (float(cell.replace("–", "0"))) == pytest.approx(bits, abs=0.0501)
        assert float(row[10].removesuffix(" %")) == pytest.approx(100 * layer.fraction, abs=0.0051)
    average = made.inspection.average
    assert total[5:9] == [
        formatting.format_bits(bits)
        for bits in (
            average.weight_bits,
            average.coded_weight_bits,
            average.index_bits,
            average.coded_index_bits,
        )
    ]


def test_the_rows_of_the_stages_are_the_stages(digits: Made, tmp_path: Path) -> None:
    table = digits.page(tmp_path / "page.html").tables[0]
    stages = digits.compressed.stages
    assert [row[0] for row in table[1:]] == [
        "dense",
        "P",
        "P + Q",
        "P + Q + H",
        "P + Q + range coder",
        "the file",
    ]
    dense, about = stages[0].bytes, digits.inspection.metadata_bytes
    whole = [dense, *(stage.bytes + about for stage in stages[1:])]
    assert [row[1] for row in table[1:-1]] == [f"{size:,}" for size in whole]
    assert [row[2] for row in table[1:-1]] == [f"{dense / size:.1f}×" for size in whole]
    assert [row[3] for row in table[1:-1]] == ["–", "9–13×", "27–31×", "35–49×", "–"]
    assert [row[6] for row in table[1:-1]] == [f"{stage.validation.error:.1f} %" for stage in stages]
    assert table[-1][1] == f"{digits.file.stat().st_size:,}"


@pytest.mark.parametrize(("codec", "place"), [("range", -1), ("huffman", -2), ("bitpack", -3)])
def test_the_stage_that_the_file_is_takes_its_bytes(
    codec: str, place: int, digits: Made, tmp_path: Path
) -> None:
    encoding = replace(digits.compressed.recipe.encoding, codec=codec)
    size = prunus.save(digits.compressed, tmp_path / "file", encoding=encoding, metadata={"more": "of it"})
    stages = on_disk(digits.compressed, prunus.inspect(tmp_path / "file"))
    assert stages[place].bytes == size == (tmp_path / "file").stat().st_size
    assert stages[0] == digits.compressed.stages[0]


def test_bars_bands_and_the_pin_stand_where_their_ratios_do(digits: Made) -> None:
    shown = sizes(digits.compressed, digits.inspection)
    low, high = math.log(shown.axis.low), math.log(shown.axis.high)

    def value(place: float) -> float:
        return math.exp(low + place / 100 * (high - low))

    dense = digits.compressed.stages[0].bytes
    for row, stage in zip(shown.rows, on_disk(digits.compressed, digits.inspection), strict=True):
        assert value(row.bar[0]) == pytest.approx(1, rel=1e-3)
        assert value(sum(row.bar)) == pytest.approx(dense / stage.bytes, rel=1e-3)
    assert value(sum(shown.rows[-1].bar)) == pytest.approx(dense / digits.file.stat().st_size, rel=1e-3)
    bands = [(value(row.band[0]), value(sum(row.band))) for row in shown.rows if row.band]
    assert bands == [pytest.approx(paper, rel=1e-3) for paper in ((9, 13), (27, 31), (35, 49))]
    pins = [value(row.pin) for row in shown.rows if row.pin is not None]
    assert pins == [pytest.approx(1 / digits.compressed.density, rel=1e-3)]


def test_histograms_count_every_weight_once(digits: Made) -> None:
    for layer in histograms(digits.compressed):
        mask = digits.compressed.masks[layer.name]
        before, after, shared = layer.panels
        assert before.count == f"{mask.numel():,} weights"
        assert after.count == f"{int(mask.sum()):,} weights"
        stems = [int(mark.says.split()[0].replace(",", "")) for mark in shared.plot.marks]
        assert sum(stems) == int(mask.sum())
        codes = digits.compressed.quantized[layer.name].codes
        assert stems == [int((codes == k).sum()) for k in range(int(codes.max()) + 1)]
        assert before.plot.x == after.plot.x == shared.plot.x


def test_the_curve_has_every_epoch_and_marks_every_round(digits: Made) -> None:
    shown = curve(digits.compressed)
    epochs = digits.compressed.epochs
    assert shown is not None
    marks = shown.plot.marks
    hits = [mark.says for mark in marks if mark.look == "hit"]
    assert len(hits) == len(epochs) == 4
    for says, (_, epoch) in zip(hits, epochs, strict=True):
        assert f"error {100 - epoch.validation_accuracy:.2f} %" in says
    assert shown.rounds == 2
    assert [sum(mark.look == look for mark in marks) for look in ("round", "change", "reference")] == [
        2,
        1,
        1,
    ]
    errors = [digits.compressed.stages[0].validation.error] + [100 - e.validation_accuracy for _, e in epochs]
    drawn = [mark.path for mark in marks if mark.look.startswith("line-")]
    heights = [float(point.split()[1]) for path in drawn for point in path[1:].split("L")]
    expected = [100 - shown.plot.y.place(error) for error in (*errors[:4], errors[3], errors[4])]
    assert heights == pytest.approx(expected, abs=1e-3)


# --- masks as pictures ----------------------------------------------------------------------------------


def test_the_first_layers_picture_counts_the_connections_of_each_pixel(digits: Made) -> None:
    shown = input_coverage(digits.compressed)
    assert shown is not None
    mask = digits.compressed.masks["1.weight"]
    counts = mask.sum(0).reshape(8, 8).numpy()
    (picture,) = shown.pictures
    np.testing.assert_array_equal(levels(picture.source), np.ceil(TOP * counts / counts.max()))
    assert (shown.side, shown.most, shown.pixels) == (8, counts.max(), 64)
    assert shown.seen == (counts > 0).sum()


def test_color_pictures_have_a_map_a_channel_and_other_layers_none(digits: Made) -> None:
    def seen(inputs: int) -> int | None:
        model = nn.Sequential(nn.Linear(inputs, 5))
        masks = {"0.weight": torch.rand(5, inputs) < 0.5}
        shown = input_coverage(replace(digits.compressed, model=model, masks=masks))
        return None if shown is None else len(shown.pictures)

    assert [seen(inputs) for inputs in (784, 3072, 48, 16, 12, 9, 1, 500, 5)] == [1, 3, 3, 1] + [None] * 5
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(64, 2))
    later = replace(digits.compressed, model=model, masks={"1.weight": torch.ones(2, 64, dtype=torch.bool)})
    assert input_coverage(later) is None, "a layer that is not the first does not look at pixels"


def test_every_kernel_of_a_first_convolution_is_drawn(conv: Made) -> None:
    shown = kernels(conv.compressed)
    assert shown is not None
    cells = levels(shown.picture.source)
    mask = conv.compressed.masks["0.weight"]
    assert (cells == TOP).sum() == mask.sum()
    assert ((cells > 0) & (cells < TOP)).sum() == (~mask).sum()
    np.testing.assert_array_equal(cells[:3, 4:7] == TOP, mask[1, 0])
    assert input_coverage(conv.compressed) is None


def test_many_kernels_stand_in_rows(digits: Made) -> None:
    model = nn.Sequential(nn.Conv2d(3, 100, 5))
    mask = torch.rand(100, 3, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    shown = kernels(replace(digits.compressed, model=model, masks={"0.weight": mask}))
    assert shown is not None
    assert shown.says.startswith("The first 256 of 300 kernels of 5 × 5")
    cells = levels(shown.picture.source)
    tiles = [cells[top : top + 5, left : left + 5] for top in range(0, 78, 6) for left in range(0, 119, 6)]
    np.testing.assert_array_equal(np.stack(tiles[:256]) == TOP, mask.reshape(-1, 5, 5)[:256])


def test_a_small_mask_is_drawn_weight_by_weight(digits: Made) -> None:
    for bitmap in bitmaps(digits.compressed):
        np.testing.assert_array_equal(
            levels(bitmap.picture.source) == TOP, digits.compressed.masks[bitmap.name]
        )


def test_large_masks_are_averaged_and_the_page_stays_light(digits: Made, tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = [f"{i}.weight" for i in range(20)]
    one = torch.rand(2000, 1501) < 0.05
    masks = dict.fromkeys(names, one)
    shared = digits.compressed.quantized["1.weight"]
    codebook = torch.linspace(-1, 1, 256)
    wide = replace(shared, codebook=codebook, codes=torch.arange(256).repeat(8))
    stages = [
        replace(stage, histograms=dict.fromkeys(names, stage.histograms["1.weight"]))
        for stage in digits.compressed.stages
    ]
    large = replace(digits.compressed, masks=masks, quantized=dict.fromkeys(names, wide), stages=stages)
    assert len(digits.page(tmp_path / "page.html", compressed=large).source) < 500_000
    pictures = [levels(bitmap.picture.source) for bitmap in bitmaps(large)]
    assert sum(picture.size for picture in pictures) <= PIXELS
    half = torch.cat([torch.ones(2000, 752), torch.zeros(2000, 752)], 1).bool()
    (bitmap,) = bitmaps(replace(large, masks={"0.weight": half}))
    assert "a dot a block of 5 × 4" in bitmap.says
    drawn = levels(bitmap.picture.source)
    assert drawn.shape == (400, 376)
    assert set(drawn[:, :188].flatten()) == {TOP}
    assert set(drawn[:, 188:].flatten()) == {0}
    ragged = replace(large, masks={"0.weight": torch.ones(2001, 1501, dtype=torch.bool)})
    assert set(levels(bitmaps(ragged)[0].picture.source).flatten()) == {TOP}


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, TOP))
)
def test_a_png_reads_back_as_its_levels(array: np.ndarray) -> None:
    source = "data:image/png;base64," + base64.b64encode(encode(array)).decode()
    np.testing.assert_array_equal(levels(source), array)


# --- axes -----------------------------------------------------------------------------------------------


def check_axis(axis: Axis, values: list[float]) -> None:
    places = [axis.place(value) for value in sorted(values)]
    assert all(0 <= place <= 100 for place in places)
    assert places == sorted(places)
    assert axis.place(axis.low) == 0
    assert axis.place(axis.high) == 100
    assert 1 <= len(axis.ticks) <= 12
    assert len({tick.text for tick in axis.ticks}) == len(axis.ticks)
    for tick in axis.ticks:
        assert axis.place(float(tick.text.rstrip("×").replace(",", ""))) == pytest.approx(tick.at, abs=0.2)


@given(
    st.lists(st.floats(-1e4, 1e4).map(lambda v: round(v, 3)), min_size=1, max_size=9),
    st.booleans(),
    st.integers(3, 6),
)
def test_a_linear_axis_holds_its_values_and_its_ticks_say_where_they_stand(
    values: list[float], tight: bool, count: int
) -> None:
    axis = linear("", values, count, tight=tight)
    assert axis.low <= min(values)
    assert axis.high >= max(values) - 1e-9 * abs(max(values))
    check_axis(axis, values)
    if not tight:
        assert (axis.ticks[0].at, axis.ticks[-1].at) == (0, 100)


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=9))
def test_a_logarithmic_axis_holds_its_values_and_its_ticks_say_where_they_stand(values: list[float]) -> None:
    axis = logarithmic("", values, "×")
    assert axis.low <= min(values) * (1 + 1e-6)
    assert axis.high >= max(values) * (1 - 1e-6)
    check_axis(axis, values)


def test_counts_have_whole_ticks() -> None:
    assert [tick.text for tick in linear("", [0, 1], 3, whole=True).ticks] == ["0", "1"]


def test_the_outline_of_a_histogram_is_as_high_as_its_counts() -> None:
    x, y = linear("", [0, 4]), linear("", [0, 10])
    assert steps(x, y, [0, 1, 2, 3, 4], [0, 10, 5, 0]) == "M25.00 100V0.00H50.00V50.00H75.00V100Z"
    assert steps(x, y, [0, 1], [0]) == ""


# --- what may be missing --------------------------------------------------------------------------------


def without_histograms(made: Made) -> Compressed:
    stages = [replace(stage, histograms={}) for stage in made.compressed.stages]
    return replace(made.compressed, stages=stages, quantized={})


def emptied(made: Made) -> Compressed:
    nothing = {name: ([0.0, 1.0], [0]) for name in made.compressed.masks}
    stages = [replace(stage, num_kept=0, histograms=nothing) for stage in made.compressed.stages]
    masks = {name: torch.zeros_like(mask) for name, mask in made.compressed.masks.items()}
    return replace(made.compressed, stages=stages, masks=masks, quantized={})


MISSING: dict[str, tuple[Callable[[Made], dict[str, object]], str]] = {
    "no test": (lambda made: {"test": None, "dense_test": None}, "not looked at"),
    "only the dense test": (lambda made: {"test": None}, "not looked at; the dense network's is"),
    "only the last test": (lambda made: {"dense_test": None}, "n = 300 Size"),
    "tests of two sizes": (lambda made: {"dense_test": Evaluation(0.1, 95.0, 20)}, "5.0 % (n = 20)"),
    "as many mistakes": (lambda made: {"dense_test": made.test}, "as many mistakes"),
    "no epochs": (lambda made: {"compressed": replace(made.compressed, epochs=[])}, "No epoch was trained"),
    "one epoch": (
        lambda made: {"compressed": replace(made.compressed, epochs=made.compressed.epochs[-1:])},
        "training the centroids",
    ),
    "no histograms": (lambda made: {"compressed": without_histograms(made)}, "nothing to draw"),
    "no weights left": (lambda made: {"compressed": emptied(made)}, "after pruning and retraining no weight"),
    "no pixel left": (lambda made: {"compressed": emptied(made)}, "64 have lost every connection"),
    "larger than it was": (
        lambda made: {
            "compressed": replace(
                made.compressed,
                stages=[replace(s, bytes=10**i) for i, s in enumerate(made.compressed.stages)],
            )
        },
        "0.00×",
    ),
    "one stage": (
        lambda made: {"compressed": replace(made.compressed, stages=made.compressed.stages[:1])},
        "100 % (0 %)",
    ),
    "no provenance": (lambda made: {"provenance": ""}, "How it was made"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_page_is_whole_where_something_is_missing(case: str, digits: Made, tmp_path: Path) -> None:
    changes, words = MISSING[case]
    page = digits.page(tmp_path / "page.html", **changes(digits))
    check_needs_nothing(page)
    assert words in page.plain()
    assert not re.search(r"\b(nan|inf|None)\b", page.plain() + " ".join(a.get("d", "") for _, a in page.tags))


def test_a_layer_of_one_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(64, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        made = make(model, tmp_path, RECIPE.replace(density={"0.weight": 1.0, "2.weight": 0.2}))
    page = made.page(tmp_path / "page.html")
    check_needs_nothing(page)
    assert "1 values for 1 weights" not in page.plain()
    assert "1 value for 1 weight" in page.plain()
    assert "1 kernel of 1 × 1" in page.plain()


# --- words ----------------------------------------------------------------------------------------------


@given(st.floats(0, 1))
def test_a_density_and_its_sparsity_add_up_as_printed(value: float) -> None:
    kept, holes = (float(part.removesuffix(" %")) for part in formatting.format_density_pair(value))
    assert kept + holes == pytest.approx(100, abs=1e-9)
    assert kept == pytest.approx(100 * value, rel=0.06, abs=1e-9)
