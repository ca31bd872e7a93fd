"""`prunus prune`."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.compress import Exclude, Include, Weights
from prunus.cli.names import completion
from prunus.cli.options import AsJson, Device, Force, Seed, Threads, optional

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A built-in model, yours: package.module:function, which returns a torch.nn.Module, or a FILE.prunus "
        "of a built-in one.",
        show_default=False,
        autocompletion=completion("model"),
    ),
]
Criterion = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="One of `prunus list`; obs, sparse_gpt, fisher and full_obs also update what stays.",
        autocompletion=completion("criterion"),
    ),
]
Density = Annotated[
    float, typer.Option(metavar="SHARE", help="Share of weights to keep.", show_default=False)
]
Scope = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What is ranked together: layer, global, a pattern N:M, blocks ROWSxCOLUMNS; or budget: the best density "
        "of each layer by what obs says of them.",
        autocompletion=completion("scope", "budget"),
    ),
]
Out = Annotated[
    Path | None,
    optional(
        "FILE",
        "Where the pruned network goes: .safetensors, or .prunus, which codes it; MODEL-pruned.safetensors by default.",
    ),
]
Data = Annotated[
    str | None,
    optional(
        "NAME",
        "A built-in data set, or yours: package.module:function; mnist or cifar-10 by default, for a built-in model.",
        complete=completion("data set"),
    ),
]
Examples = Annotated[int | None, optional("N", "Training examples to look at; 1024 by default.", lowest=1)]
Damping = Annotated[
    float | None,
    optional("SHARE", "Added to the curvature so that it can be inverted, as the criterion means it."),
]
Cuts = Annotated[
    int | None,
    optional("N", "Steps to prune in, the network looked at before each; one by default.", lowest=1),
]
Recalibrate = Annotated[
    bool, typer.Option("--recalibrate", help="Estimate BatchNorm's statistics anew afterwards.")
]


def prune(
    model: Model,
    density: Density,
    criterion: Criterion = "magnitude",
    scope: Scope = "layer",
    weights: Weights = None,
    data: Data = None,
    out: Out = None,
    examples: Examples = None,
    damping: Damping = None,
    cuts: Cuts = None,
    recalibrate: Recalibrate = False,
    include: Include = None,
    exclude: Exclude = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prune a trained network at one go, without retraining, and say layer by layer what it costs.

    Example: prunus prune lenet-300-100 --criterion obs --density 0.5 --scope 2:4

    Example: prunus prune nets:mine --weights mine.pt --data digits --criterion sparse_gpt --density 0.3
    """
    from prunus.cli.devices import resolve_device, use_threads
    from prunus.cli.prune_pipeline import PruneOptions, run_prune, show_prune

    use_threads(threads)
    job = PruneOptions(
        model=model,
        weights=weights,
        data=data,
        device=resolve_device(device),
        criterion=criterion,
        density=density,
        scope=scope,
        examples=examples,
        damping=damping,
        cuts=cuts,
        recalibrate=recalibrate,
        include=tuple(include or ("*",)),
        exclude=tuple(exclude or ()),
        out=out,
        seed=seed,
        force=force,
    )
    show_prune(run_prune(job), as_json)
