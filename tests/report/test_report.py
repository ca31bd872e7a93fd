"""The page of a compressed network: it has the numbers of the file, is self-contained, and escapes every name."""

import base64
import io
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
from prunus.compression.container.inspection import FileInspection
from prunus.compression.result import Compressed
from prunus.errors import NoEffectWarning, PrunusError
from prunus.report import formatting
from prunus.report.compression import MAX_LAYERS, stage_rows, write_page
from prunus.report.compression_charts import epoch_chart, stage_chart, weight_chart
from prunus.report.mask_images import (
    MAX_LEVEL,
    MAX_PIXELS,
    draw_kernels,
    draw_masks,
    encode_png,
    input_coverage,
)
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
class Fixture:
    """A compressed network, its file, and the other arguments of its page."""

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
    """A parsed page: its elements, its text, and its tables as rows of cells."""

    source: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""
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
        assert self.open.pop() == tag, f"</{tag}> closes no open element"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def plain(self) -> str:
        return " ".join(self.text.split())


def make(model: nn.Module, folder: Path, recipe: prunus.CompressionRecipe = RECIPE) -> Fixture:
    data = prunus.load_data("digits")
    prunus.train(model, data, Recipe(3, 1e-3, 64))
    compressed = prunus.compress(model, data=data, preset=recipe)
    prunus.save(compressed, folder / "network.prunus")
    return Fixture(
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
def digits(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    return make(linear_network(), tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    return make(convolutional_network(), tmp_path_factory.mktemp("conv"))


def levels(source: str) -> np.ndarray:
    """The levels of a data URI, as another library reads it."""
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    alpha = np.round(255 * matplotlib.image.imread(io.BytesIO(data), format="png")[..., 3]).astype(int)
    level = -(-alpha * MAX_LEVEL // 255)
    np.testing.assert_array_equal(255 * level // MAX_LEVEL, alpha, err_msg="from transparent to opaque")
    return level


def check_self_contained(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "image", "use"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{name} runs code"
            if name in {"src", "href", "srcset", "data", "poster", "action", "xlink:href", "background"}:
                assert value.startswith("data:"), f"{tag} {name}={value[:60]} refers to another file"
    assert not re.search(r"url\(|@import|@font-face", page.source)
    assert not page.open, f"{page.open} is never closed"


# --- the whole page


@pytest.mark.parametrize("network", ["digits", "conv"])
def test_page_is_self_contained_and_small(
    network: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    page = request.getfixturevalue(network).page(tmp_path / "page.html")
    check_self_contained(page)
    assert len(page.source) < 500_000
    assert page.text.count("None") == 0


def test_page_of_the_same_network_has_the_same_bytes(digits: Fixture, tmp_path: Path) -> None:
    digits.page(tmp_path / "a.html")
    digits.page(tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_page_escapes_hostile_names(tmp_path: Path) -> None:
    model = linear_network()
    model[1], model[2], model[3] = nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)
    layer = HOSTILE.replace(".", "·")
    model.add_module(layer, nn.Linear(10, 10))
    fixture = make(model, tmp_path)
    prunus.save(
        fixture.compressed, fixture.file, metadata={HOSTILE: HOSTILE, "list": [HOSTILE, {HOSTILE: 1}]}
    )
    page = fixture.page(
        tmp_path / "page.html",
        title=HOSTILE,
        provenance=HOSTILE,
        inspection=prunus.inspect(fixture.file),
    )
    check_self_contained(page)
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    assert page.text.count(HOSTILE) >= 5
    assert f"{layer}.weight" in page.text
    assert "<script>" not in page.source


def test_failed_write_leaves_no_file(digits: Fixture, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for target in ("missing/page.html", "folder", "file/page.html"):
        with pytest.raises(PrunusError, match=re.escape(str(tmp_path / target))):
            digits.page(tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


# --- numbers


def test_headline_has_the_numbers_of_the_file_and_of_the_test(digits: Fixture, tmp_path: Path) -> None:
    text = digits.page(tmp_path / "page.html", seconds=133.0, provenance="by hand").plain()
    size, original = digits.file.stat().st_size, digits.inspection.original_bytes
    assert f"{original / size:.1f}×" in text
    assert f"{original:,} bytes before compression, {size:,} after" in text
    remaining = sum(int(mask.sum()) for mask in digits.compressed.masks.values())
    assert f"{remaining:,} of 2,220 weights remain" in text
    assert f"{100 * remaining / 2220:.2f} %" in text
    assert f"sparsity {100 - 100 * remaining / 2220:.2f} %" in text
    assert f"{digits.test.error:.1f} %" in text
    assert f"n = 300 examples; test error before pruning: {digits.dense_test.error:.1f} %" in text
    assert "2 min 13 s" in text
    assert "by hand" in text
    assert torch.__version__ in text


@pytest.mark.parametrize("network", ["digits", "conv"])
def test_layer_rows_equal_the_inspection_and_sum_to_the_file_size(
    network: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fixture = request.getfixturevalue(network)
    table = fixture.page(tmp_path / "page.html").tables[1]
    rows, total = table[2:-1], table[-1]
    assert [row[0] for row in rows] == [*(layer.name for layer in fixture.inspection.layers), "framing"]
    assert total[0] == "the file"
    size = [int(row[9].replace(",", "")) for row in rows]
    assert sum(size) == int(total[9].replace(",", "")) == fixture.file.stat().st_size
    assert sum(int(row[2].replace(",", "")) for row in rows if row[2]) == int(total[2].replace(",", ""))
    for row, layer in zip(rows, fixture.inspection.layers, strict=False):
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
    average = fixture.inspection.average
    assert total[5:9] == [
        formatting.format_bits(bits)
        for bits in (
            average.weight_bits,
            average.coded_weight_bits,
            average.index_bits,
            average.coded_index_bits,
        )
    ]


@pytest.fixture
def _like_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the page counts as one of the paper; it is no built-in network and has no name."""
    monkeypatch.setattr("prunus.report.compression.PAPER_NETWORKS", (None,))


def test_zeros_among_the_activations_have_a_table(digits: Fixture, tmp_path: Path) -> None:
    zeros = {"before": {"1": 0.5, "3": 0.25}, "after": {"1": 0.5, "3": 0.375}}
    rows = digits.page(tmp_path / "page.html", activation_zeros=zeros).tables
    assert [["1", "50.0 %", "50.0 %"], ["3", "25.0 %", "37.5 %"]] in [table[1:] for table in rows]
    assert "Zeros among" not in (digits.page(tmp_path / "other.html").text)


def test_page_has_the_ratios_of_the_paper_beside_its_networks_only(digits: Fixture, tmp_path: Path) -> None:
    page = digits.page(tmp_path / "page.html")
    assert "ratio in the paper" not in page.tables[0][0]
    text = (tmp_path / "page.html").read_text()
    assert "31×" not in text
    assert "of the paper" not in text


@pytest.mark.usefixtures("_like_the_paper")
def test_stage_table_has_the_numbers_of_the_stages(digits: Fixture, tmp_path: Path) -> None:
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
    sizes = [dense, *(stage.bytes + about for stage in stages[1:])]
    assert [row[1] for row in table[1:-1]] == [f"{size:,}" for size in sizes]
    assert [row[2] for row in table[1:-1]] == [f"{dense / size:.1f}×" for size in sizes]
    assert [row[3] for row in table[1:-1]] == ["–", "9–13×", "27–31×", "35–49×", "–"]
    assert [row[6] for row in table[1:-1]] == [f"{stage.validation.error:.1f} %" for stage in stages]
    assert table[-1][1] == f"{digits.file.stat().st_size:,}"


@pytest.mark.parametrize(("codec", "index"), [("range", -1), ("huffman", -2), ("bitpack", -3)])
def test_stage_with_the_codec_of_the_file_has_its_size(
    codec: str, index: int, digits: Fixture, tmp_path: Path
) -> None:
    encoding = replace(digits.compressed.recipe.encoding, codec=codec)
    size = prunus.save(digits.compressed, tmp_path / "file", encoding=encoding, metadata={"more": "of it"})
    rows = stage_rows(digits.compressed, prunus.inspect(tmp_path / "file"))
    assert rows[index].bytes == size == (tmp_path / "file").stat().st_size
    assert rows[0].bytes == digits.compressed.stages[0].bytes


@pytest.mark.usefixtures("_like_the_paper")
def test_bars_bands_and_pin_are_at_their_ratios(digits: Fixture) -> None:
    rows = stage_rows(digits.compressed, digits.inspection)
    (axes,) = stage_chart(rows).axes
    spans: dict[str, list[tuple[float, float]]] = {}
    for container in axes.containers:
        (bar,) = container.patches
        spans.setdefault(container.get_label(), []).append((bar.get_x(), bar.get_x() + bar.get_width()))
    bars, bands = spans.values()
    assert bars == [pytest.approx((1, row.ratio)) for row in rows]
    assert bars[-1][1] == pytest.approx(digits.compressed.stages[0].bytes / digits.file.stat().st_size)
    assert bands == [pytest.approx(paper) for paper in ((9, 13), (27, 31), (35, 49))]
    assert [text.get_text() for text in axes.texts] == [f"{row.ratio:.1f}×" for row in rows]
    (pin,) = axes.lines
    assert pin.get_xdata()[0] == pytest.approx(1 / digits.compressed.density)
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.name for row in rows]


def test_weight_charts_count_every_weight_once(digits: Fixture) -> None:
    for name, mask in digits.compressed.masks.items():
        before, after, shared = weight_chart(digits.compressed, name).axes
        for axes, stage, count in ((before, 0, mask.numel()), (after, 1, int(mask.sum()))):
            counts, edges, _ = axes.patches[0].get_data()
            assert (list(edges), list(counts)) == tuple(
                map(list, digits.compressed.stages[stage].histograms[name])
            )
            assert sum(counts) == count
            assert axes.get_title().endswith(f"\n{count:,} weights")
        codes = digits.compressed.quantized[name].codes
        heights = shared.lines[0].get_ydata()[1::3]
        assert list(heights) == [int((codes == k).sum()) for k in range(int(codes.max()) + 1)]
        assert list(shared.lines[0].get_xdata()[::3]) == digits.compressed.quantized[name].codebook.tolist()
        assert before.get_xlim() == after.get_xlim() == shared.get_xlim()


def test_epoch_chart_has_every_epoch_and_marks_every_round(digits: Fixture) -> None:
    figure = epoch_chart(digits.compressed)
    assert figure is not None
    epochs = digits.compressed.epochs
    errors = [digits.compressed.stages[0].validation.error] + [100 - e.validation_accuracy for _, e in epochs]
    dense, first, second, pruned, quantized = figure.axes[0].lines
    assert list(dense.get_ydata()) == [errors[0]] * 2
    assert [first.get_xdata()[0], second.get_xdata()[0]] == [0, 1], "the starts of two rounds"
    assert (list(pruned.get_xdata()), list(quantized.get_xdata())) == ([0, 1, 2, 3], [3, 4])
    assert [*pruned.get_ydata(), *quantized.get_ydata()] == pytest.approx([*errors[:4], *errors[3:]])
    assert [line.get_label() for line in (pruned, quantized)] == [
        "pruning and retraining",
        "training the centroids",
    ]


# --- mask images


def test_input_coverage_counts_the_connections_of_each_pixel(digits: Fixture) -> None:
    shown = input_coverage(digits.compressed)
    assert shown is not None
    mask = digits.compressed.masks["1.weight"]
    counts = mask.sum(0).reshape(8, 8).numpy()
    (image,) = shown.images
    np.testing.assert_array_equal(levels(image.source), np.ceil(MAX_LEVEL * counts / counts.max()))
    assert (shown.side, shown.max_connections, shown.num_inputs) == (8, counts.max(), 64)
    assert shown.num_connected == (counts > 0).sum()


def test_input_coverage_has_one_image_per_channel_of_a_square_input(digits: Fixture) -> None:
    def seen(inputs: int) -> int | None:
        model = nn.Sequential(nn.Linear(inputs, 5))
        masks = {"0.weight": torch.rand(5, inputs) < 0.5}
        shown = input_coverage(replace(digits.compressed, model=model, masks=masks))
        return None if shown is None else len(shown.images)

    assert [seen(inputs) for inputs in (784, 3072, 48, 16, 12, 9, 1, 500, 5)] == [1, 3, 3, 1] + [None] * 5
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(64, 2))
    later = replace(digits.compressed, model=model, masks={"1.weight": torch.ones(2, 64, dtype=torch.bool)})
    assert input_coverage(later) is None, "only the first layer has pixels as inputs"


def test_draw_kernels_draws_every_kernel_of_the_first_convolution(conv: Fixture) -> None:
    shown = draw_kernels(conv.compressed)
    assert shown is not None
    cells = levels(shown.image.source)
    mask = conv.compressed.masks["0.weight"]
    assert (cells == MAX_LEVEL).sum() == mask.sum()
    assert ((cells > 0) & (cells < MAX_LEVEL)).sum() == (~mask).sum()
    np.testing.assert_array_equal(cells[:3, 4:7] == MAX_LEVEL, mask[1, 0])
    assert input_coverage(conv.compressed) is None


def test_draw_kernels_arranges_many_kernels_in_rows(digits: Fixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 100, 5))
    mask = torch.rand(100, 3, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    shown = draw_kernels(replace(digits.compressed, model=model, masks={"0.weight": mask}))
    assert shown is not None
    assert shown.caption.startswith("The first 256 of 300 kernels of 5 × 5")
    cells = levels(shown.image.source)
    tiles = [cells[top : top + 5, left : left + 5] for top in range(0, 78, 6) for left in range(0, 119, 6)]
    np.testing.assert_array_equal(np.stack(tiles[:256]) == MAX_LEVEL, mask.reshape(-1, 5, 5)[:256])


def test_draw_masks_draws_one_pixel_per_weight_of_a_small_mask(digits: Fixture) -> None:
    for bitmap in draw_masks(digits.compressed):
        np.testing.assert_array_equal(
            levels(bitmap.image.source) == MAX_LEVEL, digits.compressed.masks[bitmap.name]
        )


def test_draw_masks_averages_large_masks_over_blocks(digits: Fixture, tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = [f"{i}.weight" for i in range(20)]
    mask = torch.rand(2000, 1501) < 0.05
    masks = dict.fromkeys(names, mask)
    shared = digits.compressed.quantized["1.weight"]
    codebook = torch.linspace(-1, 1, 256)
    wide = replace(shared, codebook=codebook, codes=torch.arange(256).repeat(8))
    stages = [
        replace(stage, histograms=dict.fromkeys(names, stage.histograms["1.weight"]))
        for stage in digits.compressed.stages
    ]
    large = replace(digits.compressed, masks=masks, quantized=dict.fromkeys(names, wide), stages=stages)
    page = digits.page(tmp_path / "page.html", compressed=large)
    assert len(page.source) < 500_000
    assert f"The first {MAX_LAYERS} of 20 layers are drawn." in page.text
    images = [levels(bitmap.image.source) for bitmap in draw_masks(large)]
    assert sum(levels_.size for levels_ in images) <= MAX_PIXELS
    half = torch.cat([torch.ones(2000, 752), torch.zeros(2000, 752)], 1).bool()
    (bitmap,) = draw_masks(replace(large, masks={"0.weight": half}))
    assert "one dot per block of 5 × 4" in bitmap.caption
    pixels = levels(bitmap.image.source)
    assert pixels.shape == (400, 376)
    assert set(pixels[:, :188].flatten()) == {MAX_LEVEL}
    assert set(pixels[:, 188:].flatten()) == {0}
    ragged = replace(large, masks={"0.weight": torch.ones(2001, 1501, dtype=torch.bool)})
    assert set(levels(draw_masks(ragged)[0].image.source).flatten()) == {MAX_LEVEL}


@given(
    hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, MAX_LEVEL)
    )
)
def test_encoded_png_decodes_to_its_levels(array: np.ndarray) -> None:
    source = "data:image/png;base64," + base64.b64encode(encode_png(array)).decode()
    np.testing.assert_array_equal(levels(source), array)


# --- missing parts


def without_histograms(fixture: Fixture) -> Compressed:
    stages = [replace(stage, histograms={}) for stage in fixture.compressed.stages]
    return replace(fixture.compressed, stages=stages, quantized={})


def without_weights(fixture: Fixture) -> Compressed:
    nothing = {name: ([0.0, 1.0], [0]) for name in fixture.compressed.masks}
    stages = [replace(stage, num_kept=0, histograms=nothing) for stage in fixture.compressed.stages]
    masks = {name: torch.zeros_like(mask) for name, mask in fixture.compressed.masks.items()}
    return replace(fixture.compressed, stages=stages, masks=masks, quantized={})


MISSING: dict[str, tuple[Callable[[Fixture], dict[str, object]], str]] = {
    "no test": (lambda fixture: {"test": None, "dense_test": None}, "not evaluated"),
    "only the dense test": (lambda fixture: {"test": None}, "not evaluated; test error before pruning:"),
    "only the last test": (lambda fixture: {"dense_test": None}, "n = 300 examples Size"),
    "tests of two sizes": (lambda fixture: {"dense_test": Evaluation(0.1, 95.0, 20)}, "5.0 % (n = 20)"),
    "as many mistakes": (lambda fixture: {"dense_test": fixture.test}, "as many mistakes"),
    "no epochs": (
        lambda fixture: {"compressed": replace(fixture.compressed, epochs=[])},
        "No epoch was trained",
    ),
    "one epoch": (
        lambda fixture: {"compressed": replace(fixture.compressed, epochs=fixture.compressed.epochs[-1:])},
        "lower is better",
    ),
    "no histograms": (lambda fixture: {"compressed": without_histograms(fixture)}, "Weights of each layer"),
    "no pixel left": (
        lambda fixture: {"compressed": without_weights(fixture)},
        "64 have lost all connections",
    ),
    "larger than it was": (
        lambda fixture: {
            "compressed": replace(
                fixture.compressed,
                stages=[replace(s, bytes=10**i) for i, s in enumerate(fixture.compressed.stages)],
            )
        },
        "0.00×",
    ),
    "one stage": (
        lambda fixture: {"compressed": replace(fixture.compressed, stages=fixture.compressed.stages[:1])},
        "100 % (0 %)",
    ),
    "no provenance": (lambda fixture: {"provenance": ""}, "Settings and environment"),
}


@pytest.mark.parametrize("case", MISSING)
def test_page_is_complete_when_something_is_missing(case: str, digits: Fixture, tmp_path: Path) -> None:
    changes, expected = MISSING[case]
    page = digits.page(tmp_path / "page.html", **changes(digits))
    check_self_contained(page)
    assert expected in page.plain()
    assert not re.search(r"\b(nan|inf|None)\b", page.plain() + " ".join(a.get("d", "") for _, a in page.tags))


def titles(compressed: Compressed) -> list[str]:
    """The titles of the panels of the first layer."""
    name = next(iter(compressed.masks))
    return [axes.get_title().replace("\n", " ") for axes in weight_chart(compressed, name).axes]


def test_panels_without_weights_say_so(digits: Fixture) -> None:
    assert [title.endswith("no data") for title in titles(without_histograms(digits))] == [True] * 3
    before, after, shared = titles(without_weights(digits))
    assert (before, after) == ("before pruning 0 weights", "after pruning and retraining 0 weights")
    assert shared == "after quantization no data"


def test_page_of_a_layer_with_one_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(64, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        fixture = make(model, tmp_path, RECIPE.replace(density={"0.weight": 1.0, "2.weight": 0.2}))
    page = fixture.page(tmp_path / "page.html")
    check_self_contained(page)
    assert titles(fixture.compressed)[2] == "after quantization 1 centroid for 1 weight"
    assert "1 kernel of 1 × 1" in page.plain()


# --- text


@given(st.floats(0, 1))
def test_formatted_density_and_sparsity_sum_to_100_percent(value: float) -> None:
    density, sparsity = (float(part.removesuffix(" %")) for part in formatting.format_density_pair(value))
    assert density + sparsity == pytest.approx(100, abs=1e-9)
    assert density == pytest.approx(100 * value, rel=0.06, abs=1e-9)
