"""`prunus decompress`."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.options import File, Force, MaxBytes
from prunus.cli.output import echo


def decompress(
    file: File,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Output path. By default FILE with the suffix .safetensors.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    max_bytes: MaxBytes = None,
) -> None:
    """Convert a compressed file to a safetensors file with the same tensors.

    Example: prunus decompress demo/lenet-300-100.prunus --out lenet.safetensors
    """
    from prunus.compression.container import read
    from prunus.errors import OutputError
    from prunus.files import check_writable, write_atomic
    from prunus.models.safetensors_file import safetensors_bytes
    from prunus.report import formatting

    target = out or (file.with_suffix(".safetensors") if file.name else file)
    check_writable(target, force=force, inputs=[file])
    if target.suffix != ".safetensors":
        raise OutputError(f"Expected an --out that ends in .safetensors, got {target}.")
    state = read(file, max_bytes)
    content = safetensors_bytes(state)
    write_atomic(target, content)
    tensors = formatting.pluralize(len(state), "tensor")
    echo(f"{target}: {tensors}, {formatting.format_int(len(content))} bytes.")
