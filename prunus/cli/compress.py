"""`prunus compress`."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.names import completion
from prunus.cli.options import AsJson, DataName, Device, Force, Seed, Threads, optional

Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A built-in model, or yours: package.module:function, which returns a torch.nn.Module.",
        show_default=False,
        autocompletion=completion("model"),
    ),
]
Out = Annotated[
    Path, typer.Option(metavar="FILE", help="Where the compressed network goes.", show_default=False)
]
Weights = Annotated[
    Path | None,
    optional(
        "FILE", "Trained weights, .safetensors or a torch file of a state_dict; else the model is trained."
    ),
]
RecipeName = Annotated[
    str | None,
    optional(
        "NAME", "One of `prunus list`; else the model's own, or default.", complete=completion("recipe")
    ),
]
Density = Annotated[float | None, optional("SHARE", "Share of weights to keep, the same for all layers.")]
Scope = Annotated[
    str | None,
    optional(
        "NAME",
        "What is ranked together: layer, global, a pattern N:M, or blocks ROWSxCOLUMNS. 2:4 takes --density 0.5 "
        "--rounds 1.",
        complete=completion("scope"),
    ),
]
Bits = Annotated[int | None, optional("N", "Bits of a weight, 1 to 8, the same for all layers.", 1, 8)]
Rounds = Annotated[int | None, optional("N", "Rounds of pruning and retraining.", 1, 10_000)]
Epochs = Annotated[
    list[str] | None,
    optional(
        "STAGE=N", "Epochs of dense, retrain (a round), settle (the last) or finetune. May be repeated."
    ),
]
Include = Annotated[
    list[str] | None, optional("PATTERN", "Prune only weights whose names match. May be repeated.")
]
Exclude = Annotated[
    list[str] | None, optional("PATTERN", "Leave out weights whose names match. May be repeated.")
]
Checkpoints = Annotated[
    Path | None,
    optional("FOLDER", "Where a run leaves its state, so that killed and started again it goes on."),
]
Page = Annotated[Path | None, optional("FILE", "Where the page goes; the file of --out as .html by default.")]


def compress(
    model: Model,
    data: DataName,
    out: Out,
    weights: Weights = None,
    recipe: RecipeName = None,
    density: Density = None,
    bits: Bits = None,
    scope: Scope = None,
    rounds: Rounds = None,
    epochs: Epochs = None,
    include: Include = None,
    exclude: Exclude = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    checkpoints: Checkpoints = None,
    page: Page = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prune a network, share its weights, and code it into one small file, with a page that shows how.

    Example: prunus compress --model lenet-5 --data mnist --out lenet-5.prunus

    Example: prunus compress --model nets:mine --weights mine.pt --data digits --out mine.prunus
    """
    from prunus.cli.compress_pipeline import CompressOptions, check_outputs, finish, run_compress
    from prunus.cli.devices import resolve_device, use_threads
    from prunus.cli.progress import report
    from prunus.cli.recipe_options import resolve_recipe
    from prunus.compression.deep_compression import planned_densities
    from prunus.data import load_data
    from prunus.models.loading import load_weights, make_model
    from prunus.pruning.prunable import prunable_weights
    from prunus.registry import source_files

    use_threads(threads)
    device = resolve_device(device)
    if page is None:
        page = out.with_suffix(".html") if out.name else out
    inputs = [*source_files(model, data), *([weights] if weights else [])]
    check_outputs(out, page, checkpoints, force=force, inputs=inputs)
    settings = resolve_recipe(model, recipe, density, bits, rounds, epochs or [], scope)
    net = make_model(model, seed)
    if weights is not None:
        load_weights(net, weights)
    # What the recipe cannot do with these weights is known before a data set is fetched.
    planned_densities(settings, prunable_weights(net, tuple(include or ("*",)), tuple(exclude or ())))
    job = CompressOptions(
        title=f"{model} on {data}",
        model=net.to(device),
        trained=weights is not None,
        data=load_data(data, device=device, seed=seed, progress=report),
        recipe=settings,
        out=out,
        page=page,
        seed=seed,
        include=tuple(include or ("*",)),
        exclude=tuple(exclude or ()),
        checkpoints=checkpoints,
    )
    finish(run_compress(job), as_json)
