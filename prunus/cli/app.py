"""The commands, by name. Each is a plain function; its docstring is its help text and ends with an example."""

from collections.abc import Callable
from typing import Annotated

import typer

from prunus.cli.claims import claims
from prunus.cli.compress import compress
from prunus.cli.decompress import decompress
from prunus.cli.demo import demo
from prunus.cli.doctor import doctor
from prunus.cli.evaluate import evaluate
from prunus.cli.exit_codes import CommandGroup, with_exit_codes
from prunus.cli.inspect import inspect
from prunus.cli.list_ import list_
from prunus.cli.pack import pack
from prunus.cli.prune import prune
from prunus.cli.run import RunCommand, figure, run
from prunus.cli.runs import app as runs
from prunus.cli.slim import slim
from prunus.version import __version__

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "compress": compress,
    "prune": prune,
    "slim": slim,
    "inspect": inspect,
    "evaluate": evaluate,
    "pack": pack,
    "decompress": decompress,
    "list": list_,
    "run": run,
    "figure": figure,
    "claims": claims,
    "doctor": doctor,
}

app = typer.Typer(
    cls=CommandGroup,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)
for _name, _command in COMMANDS.items():
    app.command(_name, cls=RunCommand if _name == "run" else None)(with_exit_codes(_command, _name))
app.add_typer(runs, name="runs")


def _show_version(show: bool) -> None:
    if show:
        print(f"prunus {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
]


@app.callback()
def prunus(version: Version = False) -> None:
    """Prune and compress trained neural networks, and reproduce lottery-ticket experiments.

    Example: prunus demo --open
    """
