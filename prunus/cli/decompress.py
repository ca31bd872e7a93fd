"""`prunus decompress`."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.options import File, MaxBytes
from prunus.cli.show import put


def decompress(
    file: File,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to; FILE with .safetensors by default.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    max_bytes: MaxBytes = None,
) -> None:
    """Turn a file back into plain tensors, as a safetensors file.

    Example: prunus decompress demo/lenet-300-100.prunus --out lenet.safetensors
    """
    from prunus.cli.files import check_writable, write_whole
    from prunus.compression.container import read
    from prunus.compression.container.safetensors_export import to_safetensors
    from prunus.errors import PrunusError
    from prunus.report import text

    state = read(file, max_bytes)
    target = file.with_suffix(".safetensors") if out is None else out
    check_writable(target)
    if target.exists() and not force:
        raise PrunusError(f"{target} is there already; pass --force to replace it.")
    content = to_safetensors(state)
    write_whole(target, content)
    put(f"{target}: {len(state)} tensors, {text.integer(len(content))} bytes.")
