"""`prunus pack`."""

from pathlib import Path
from typing import Annotated

from prunus.cli.options import AsJson, Force, argument, optional

FILE = "A .safetensors file, or a file of torch.save with a state_dict."
OUT = "Output path. By default FILE with the suffix .prunus."


def pack(
    file: Annotated[Path, argument("FILE", FILE)],
    out: Annotated[Path | None, optional("FILE", OUT)] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write any state_dict into a .prunus file, bit for bit: smaller where it has zeros or repeated values.

    Example: prunus pack model.safetensors --out model.prunus
    """
    from prunus.cli.output import check_ending, echo, echo_json, log
    from prunus.compression.container import write
    from prunus.compression.save import file_metadata
    from prunus.files import check_writable
    from prunus.models.checkpoints import read_checkpoint, stored_bytes
    from prunus.report import formatting
    from prunus.text_tables import pluralize

    path = out or (file.with_suffix(".prunus") if file.name else file)
    check_writable(path, force=force, inputs=[file])
    check_ending(path, ".prunus")
    checkpoint = read_checkpoint(file)
    if checkpoint.keys:
        log(f"{file}: {checkpoint.describe()}")
    metadata = file_metadata(0) | ({"safetensors": dict(checkpoint.metadata)} if checkpoint.metadata else {})
    size, original = write(path, checkpoint.state, metadata=metadata), stored_bytes(checkpoint.state)
    if as_json:
        sizes = {"file_bytes": size, "original_bytes": original, "ratio": original / size}
        echo_json({"file": str(path), **sizes, "keys": list(checkpoint.keys)})
    else:
        tensors = pluralize(len(checkpoint.state), "tensor")
        ratio = formatting.format_ratio(original / size)
        echo(f"{path}: {tensors}, {original:,} bytes in {size:,}, {ratio}.")
