"""`prunus inspect`."""

from prunus.cli.options import AsJson, File, MaxBytes
from prunus.cli.output import clean, echo, echo_json, echo_table


def inspect(file: File, max_bytes: MaxBytes = None, as_json: AsJson = False) -> None:
    """Show the size of each tensor in a compressed file. The sizes add up to the size of the file.

    Bits are averages per stored entry, before and after entropy coding. The
    fraction is the size in the file relative to the size in memory.

    Example: prunus inspect demo/lenet-300-100.prunus
    """
    from prunus.compression.container import inspect as inspect_file
    from prunus.report import formatting
    from prunus.report.compression import tensor_rows

    inspection = inspect_file(file, max_bytes)
    if as_json:
        echo_json(inspection.to_json())
        return
    columns = ("tensor", "shape", "weights", "density (sparsity)", "values", "weight bits", "index bits")
    rows = [
        (
            *(row.name, row.shape, row.weights, row.density, row.values),
            *(_arrow(row.weight_bits), _arrow(row.index_bits), row.bytes, row.fraction),
        )
        for row in tensor_rows(inspection)
    ]
    echo_table((*columns, "bytes", "fraction"), rows, text_columns=2, footer=1)
    sizes = f"{inspection.file_bytes:,} of {inspection.original_bytes:,} bytes"
    echo(f"{sizes}: compression ratio {formatting.format_ratio(inspection.ratio)}.")
    for name, content in (("model", inspection.model), ("metadata", inspection.metadata)):
        if content:
            echo(clean(f"{name}: {formatting.format_settings(content)}"))


def _arrow(pair: tuple[str, str]) -> str:
    before, after = pair
    return before if before == after else f"{before} → {after}"
