"""`prunus decompress`."""

from pathlib import Path
from typing import Annotated

from prunus.cli.options import File, Force, MaxBytes, optional
from prunus.cli.output import echo

OUT = "Output path. By default FILE with the suffix .safetensors."


def decompress(
    file: File,
    out: Annotated[Path | None, optional("FILE", OUT)] = None,
    force: Force = False,
    max_bytes: MaxBytes = None,
) -> None:
    """Convert a compressed file to a safetensors file with the same tensors.

    Example: prunus decompress demo/lenet-300-100.prunus --out lenet.safetensors
    """
    from prunus.cli.output import check_ending
    from prunus.compression.container import read
    from prunus.files import check_writable, write_atomic
    from prunus.models.safetensors_file import safetensors_bytes
    from prunus.text_tables import pluralize

    target = out or (file.with_suffix(".safetensors") if file.name else file)
    check_writable(target, force=force, inputs=[file])
    check_ending(target, ".safetensors")
    state = read(file, max_bytes)
    content = safetensors_bytes(state)
    write_atomic(target, content)
    echo(f"{target}: {pluralize(len(state), 'tensor')}, {len(content):,} bytes.")
