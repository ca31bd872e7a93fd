"""What each tensor costs: the table of Han et al. 2016, section 5, to the byte."""

from dataclasses import dataclass, replace

from prunus.compression.container.inspect import Average, Inspection, Layer
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
    """The table of a file: bytes of its rows and of the framing add up to the file's; its bits are averages."""
    weights = sum(layer.weights for layer in inspection.layers)
    kept = sum(layer.nonzero for layer in inspection.layers)
    framing = _sum("framing", inspection.framing_bytes, inspection)
    weight_bits, index_bits = _bits(inspection.average)
    total = replace(
        _sum("the file", inspection.file_bytes, inspection),
        weights=text.integer(weights) if weights else "",
        density=text.density(kept / weights) if weights else "",
        weight_bits=weight_bits,
        index_bits=index_bits,
    )
    return Table((*(_row(layer, inspection.file_bytes) for layer in inspection.layers), framing), total)


def _row(layer: Layer, file: int) -> Row:
    return Row(
        layer.name,
        " × ".join(map(str, layer.shape)) or "scalar",
        text.integer(layer.weights),
        text.density(layer.density),
        text.integer(layer.distinct) if layer.distinct is not None else "–",
        *_bits(layer),
        text.integer(layer.bytes),
        f"{100 * layer.share:.2f} %",
        round(100 * layer.bytes / file, 2),
    )


def _bits(stored: Layer | Average) -> tuple[tuple[str, str], tuple[str, str]]:
    """Those of weights and of positions, each before and after entropy coding."""
    return (
        (text.bits(stored.weight_bits), text.bits(stored.coded_weight_bits)),
        (text.bits(stored.index_bits), text.bits(stored.coded_index_bits)),
    )


def _sum(name: str, size: int, inspection: Inspection) -> Row:
    """A row that says bytes alone."""
    original = inspection.original_bytes
    share = f"{100 * size / original:.2f} %" if original else "–"
    part = round(100 * size / inspection.file_bytes, 2)
    return Row(name, "", "", "", "", ("", ""), ("", ""), text.integer(size), share, part)
