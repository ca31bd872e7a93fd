"""What each tensor costs: the table of Han et al. 2016, section 5, to the byte."""

from dataclasses import dataclass, replace

from prunus.compression.container.inspect import Average, FileInspection, TensorStats
from prunus.report import formatting


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


def table(inspection: FileInspection) -> Table:
    """The table of a file: bytes of its rows and of the framing add up to the file's; its bits are averages."""
    weights = sum(layer.weights for layer in inspection.layers)
    kept = sum(layer.nonzero for layer in inspection.layers)
    framing = _sum("framing", inspection.framing_bytes, inspection)
    weight_bits, index_bits = _bits(inspection.average)
    total = replace(
        _sum("the file", inspection.file_bytes, inspection),
        weights=formatting.format_int(weights) if weights else "",
        density=formatting.format_density(kept / weights) if weights else "",
        weight_bits=weight_bits,
        index_bits=index_bits,
    )
    return Table((*(_row(layer, inspection.file_bytes) for layer in inspection.layers), framing), total)


def _row(layer: TensorStats, file: int) -> Row:
    return Row(
        layer.name,
        " × ".join(map(str, layer.shape)) or "scalar",
        formatting.format_int(layer.weights),
        formatting.format_density(layer.density),
        formatting.format_int(layer.distinct) if layer.distinct is not None else "–",
        *_bits(layer),
        formatting.format_int(layer.bytes),
        f"{100 * layer.fraction:.2f} %",
        round(100 * layer.bytes / file, 2),
    )


def _bits(stored: TensorStats | Average) -> tuple[tuple[str, str], tuple[str, str]]:
    """Those of weights and of positions, each before and after entropy coding."""
    return (
        (formatting.format_bits(stored.weight_bits), formatting.format_bits(stored.coded_weight_bits)),
        (formatting.format_bits(stored.index_bits), formatting.format_bits(stored.coded_index_bits)),
    )


def _sum(name: str, size: int, inspection: FileInspection) -> Row:
    """A row that says bytes alone."""
    original = inspection.original_bytes
    share = f"{100 * size / original:.2f} %" if original else "–"
    part = round(100 * size / inspection.file_bytes, 2)
    return Row(name, "", "", "", "", ("", ""), ("", ""), formatting.format_int(size), share, part)
