"""`prunus demo`."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.options import AsJson, Device, Seed, Threads


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the file and the page go.")] = Path(
        "demo"
    ),
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train LeNet-300-100 on MNIST, make it more than forty times smaller, and write a page that shows how.

    Example: prunus demo --open
    """
    import torch

    from prunus.cli.devices import checked
    from prunus.cli.files import make_folder
    from prunus.cli.networks import data_set, network
    from prunus.cli.work import Job, carry_out, show
    from prunus.compression.published import COMPRESSION_RECIPES

    torch.set_num_threads(threads)
    device = checked(device)
    make_folder(out)
    job = Job(
        title="LeNet-300-100 on MNIST",
        model=network("lenet-300-100", seed).to(device),
        trained=False,
        data=data_set("mnist", device, seed),
        recipe=COMPRESSION_RECIPES["demo"],
        out=out / "lenet-300-100.prunus",
        page=out / "report.html",
        seed=seed,
    )
    show(carry_out(job), as_json)
    if open_page:
        webbrowser.open(job.page.resolve().as_uri())
