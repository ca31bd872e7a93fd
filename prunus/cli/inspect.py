"""`prunus inspect`."""

from prunus.cli.options import AsJson, File, MaxBytes
from prunus.cli.output import clean, echo, echo_json, echo_table


def inspect(file: File, max_bytes: MaxBytes = None, as_json: AsJson = False) -> None:
    """Show what each tensor of a file costs, adding up to the size of the file.

    Bits are those of a stored entry, before and after entropy coding, and of the file their average; the share
    is of the float32 original.

    Example: prunus inspect demo/lenet-300-100.prunus
    """
    from prunus.compression.container import inspect as look
    from prunus.report import formatting
    from prunus.report.layer_table import table

    inspection = look(file, max_bytes)
    if as_json:
        echo_json(inspection.to_json())
        return
    found = table(inspection)
    columns = ("tensor", "shape", "weights", "density (sparsity)", "values", "weight bits", "index bits")
    rows = [
        (
            *(row.name, row.shape, row.weights, row.density, row.values),
            *(_arrow(row.weight_bits), _arrow(row.index_bits), row.bytes, row.share),
        )
        for row in (*found.rows, found.total)
    ]
    echo_table((*columns, "bytes", "share"), rows, words=2, footer=1)
    echo(
        f"{formatting.format_int(inspection.file_bytes)} bytes for {formatting.format_int(inspection.original_bytes)}: "
        f"{formatting.format_ratio(inspection.ratio)} smaller."
    )
    for name, about in (("model", inspection.model), ("made", inspection.made)):
        if about:
            echo(clean(f"{name}: {formatting.format_settings(about)}"))


def _arrow(pair: tuple[str, str]) -> str:
    before, after = pair
    return before if before == after else f"{before} → {after}"
