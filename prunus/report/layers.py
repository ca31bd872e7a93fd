"""What each tensor costs: the table of Han et al. 2016, section 5, to the byte."""

from dataclasses import dataclass

from prunus.compression.container.inspect import Inspection, Layer
from prunus.report import text


@dataclass(frozen=True)
class Row:
    """A line of the table, in words; `part` is its part of the file in percent."""

    name: str
    shape: str
    weights: str
    density: str
    values: str
    weight_bits: tuple[str, str]
    """Before entropy coding, and after it."""
    index_bits: tuple[str, str]
    bytes: str
    share: str
    part: float


@dataclass(frozen=True)
class Table:
    """All tensors of a file, then what frames them, and the total."""

    rows: tuple[Row, ...]
    total: Row


def table(inspection: Inspection) -> Table:
    """The table of a file: bytes of its rows and of the framing add up to the file's."""
    weights = sum(layer.weights for layer in inspection.layers)
    kept = sum(layer.nonzero for layer in inspection.layers)
    file = inspection.file_bytes
    framing = _sum("framing", 0, None, inspection.framing_bytes, inspection)
    return Table(
        (*(_row(layer, file) for layer in inspection.layers), framing),
        _sum("the file", weights, kept / weights if weights else None, file, inspection),
    )


def _row(layer: Layer, file: int) -> Row:
    return Row(
        layer.name,
        " × ".join(map(str, layer.shape)) or "scalar",
        text.integer(layer.weights),
        text.density(layer.density),
        text.integer(layer.distinct) if layer.distinct is not None else "–",
        (text.bits(layer.weight_bits), text.bits(layer.coded_weight_bits)),
        (text.bits(layer.index_bits), text.bits(layer.coded_index_bits)),
        text.integer(layer.bytes),
        f"{100 * layer.share:.2f} %",
        round(100 * layer.bytes / file, 2),
    )


def _sum(name: str, weights: int, density: float | None, size: int, inspection: Inspection) -> Row:
    original = inspection.original_bytes
    return Row(
        name,
        "",
        text.integer(weights) if weights else "",
        text.density(density) if density is not None else "",
        "",
        ("", ""),
        ("", ""),
        text.integer(size),
        f"{100 * size / original:.2f} %" if original else "–",
        round(100 * size / inspection.file_bytes, 2),
    )
