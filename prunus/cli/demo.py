"""`prunus demo`."""

import webbrowser
from pathlib import Path
from typing import Annotated

from prunus.cli.options import AsJson, Device, Force, Seed, Threads, flag, option

TITLE = "LeNet-300-100 on MNIST"


def demo(
    out: Annotated[Path, option("DIR", "Output directory.")] = Path("demo"),
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    open_page: Annotated[bool, flag("--open", "Open the page in a browser.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train LeNet-300-100 on MNIST, compress it to less than 2 % of its size, and write a report page.

    Writes lenet-300-100.prunus and report.html. Files of an earlier demo are
    overwritten. Other files with these names are overwritten only with --force.

    Example: prunus demo --open
    """
    from prunus.cli.compress_report import compress_and_report
    from prunus.cli.devices import resolve_device, use_threads
    from prunus.cli.progress import report
    from prunus.data import load_data
    from prunus.files import check_writable, output_folder
    from prunus.models.loading import make_model

    use_threads(threads)
    device = resolve_device(device)
    file, page = out / "lenet-300-100.prunus", out / "report.html"
    with output_folder(out):
        check_writable(file, force=force or _is_demo_file(file))
        check_writable(page, force=force or _is_demo_page(page), inputs=[file])
        compress_and_report(
            make_model("lenet-300-100", seed).to(device),
            load_data("mnist", device=device, seed=seed, progress=report),
            "demo",
            title=TITLE,
            out=file,
            page=page,
            as_json=as_json,
            settings={},
            train_first=True,
            seed=seed,
            backend="dense",  # the published file
        )
    if open_page:
        webbrowser.open(page.resolve().as_uri())


def _is_demo_file(path: Path) -> bool:
    """Whether `path` is a file that an earlier demo wrote: its network, its data and its recipe."""
    from prunus.compression.container import read_header
    from prunus.compression.container.reading import named_model
    from prunus.compression.presets import COMPRESSION_RECIPES
    from prunus.compression.save import recipe_metadata
    from prunus.errors import PrunusError

    try:
        header = read_header(path)
    except PrunusError:
        return False
    name, _ = named_model(header) or ("", {})
    metadata = header["made"]
    if name != "lenet-300-100" or not isinstance(metadata, dict) or metadata.get("data") != "mnist":
        return False
    return bool(metadata.get("recipe") == recipe_metadata(COMPRESSION_RECIPES["demo"], 0)["recipe"])


def _is_demo_page(path: Path) -> bool:
    """Whether `path` is the page of an earlier demo."""
    try:
        with path.open("rb") as file:
            return f"<title>{TITLE} · prunus</title>".encode() in file.read(4096)
    except OSError:
        return False
