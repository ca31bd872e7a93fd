"""`prunus demo`."""

import json
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.options import AsJson, Device, Force, Seed, Threads

TITLE = "LeNet-300-100 on MNIST"


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the file and the page go.")] = Path(
        "demo"
    ),
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train LeNet-300-100 on MNIST, make it more than fifty times smaller, and write a page that shows how.

    Writes lenet-300-100.prunus and report.html. Those that an earlier demo wrote are replaced; other files of these
    names only with --force.

    Example: prunus demo --open
    """
    from prunus.cli.compress_pipeline import CompressOptions, finish, run_compress
    from prunus.cli.devices import resolve_device, use_threads
    from prunus.cli.progress import report
    from prunus.compression.presets import COMPRESSION_RECIPES
    from prunus.data import load_data
    from prunus.files import check_writable, output_folder
    from prunus.models.loading import make_model

    use_threads(threads)
    device = resolve_device(device)
    with output_folder(out):
        file, page = out / "lenet-300-100.prunus", out / "report.html"
        check_writable(file, force=force or _is_demo_file(file))
        check_writable(page, force=force or _is_demo_page(page), inputs=[file])
        job = CompressOptions(
            title=TITLE,
            model=make_model("lenet-300-100", seed).to(device),
            trained=False,
            data=load_data("mnist", device=device, seed=seed, progress=report),
            recipe=COMPRESSION_RECIPES["demo"],
            out=file,
            page=page,
            seed=seed,
        )
        outcome = run_compress(job)
    finish(outcome, as_json)
    if open_page:
        webbrowser.open(job.page.resolve().as_uri())


def _is_demo_file(path: Path) -> bool:
    """Whether `path` is a file that an earlier demo wrote: its network, its data and its recipe."""
    from dataclasses import asdict

    from prunus.compression.container import read_header
    from prunus.compression.container.read import arguments_of
    from prunus.compression.presets import COMPRESSION_RECIPES
    from prunus.errors import PrunusError

    try:
        header = read_header(path)
    except PrunusError:
        return False
    name, _ = arguments_of(header) or ("", {})
    made = header["made"]
    if name != "lenet-300-100" or not isinstance(made, dict) or made.get("data") != "mnist":
        return False
    recipe = made.get("recipe")
    demo = json.loads(json.dumps(asdict(COMPRESSION_RECIPES["demo"])))
    return isinstance(recipe, dict) and all(demo.get(key) == value for key, value in recipe.items())


def _is_demo_page(path: Path) -> bool:
    """Whether `path` is a page that an earlier demo wrote."""
    try:
        with path.open("rb") as file:
            return f"<title>{TITLE} · prunus</title>".encode() in file.read(4096)
    except OSError:
        return False
