"""`prunus list`."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from prunus.cli.options import AsJson
from prunus.cli.output import echo_json, echo_table


def list_(as_json: AsJson = False) -> None:
    """Name everything that is built in, with a line on each.

    Example: prunus list --json
    """
    found = registered_names()
    if as_json:
        echo_json(
            {
                room.replace(" ", "_"): [{"name": n, "about": line} for n, line in lines.items()]
                for room, lines in found.items()
            }
        )
        return
    rows = [
        (room if place == 0 else "", name, line)
        for room, lines in found.items()
        for place, (name, line) in enumerate(lines.items())
    ]
    echo_table(("", "name", ""), rows, words=3)


def registered_names() -> dict[str, dict[str, str]]:
    """For each room, the names in its table, each with one line."""
    from prunus.compression.codecs import CODECS
    from prunus.compression.presets import COMPRESSION_RECIPES
    from prunus.compression.quantization.kmeans_init import KMEANS_INITS
    from prunus.data import DATASETS
    from prunus.experiments import EXPERIMENTS, PAPERS, experiments_of
    from prunus.models import MODELS
    from prunus.pruning.criteria import CRITERIA
    from prunus.pruning.pruners import PRUNERS
    from prunus.pruning.schedules import SCHEDULES
    from prunus.pruning.scopes import SCOPES
    from prunus.runs.executors import EXECUTORS
    from prunus.tickets.mask0 import MASK0_ACTIONS
    from prunus.tickets.mask1 import MASK1_ACTIONS
    from prunus.tickets.supermask import SUPERMASKS
    from prunus.training.augmentation import AUGMENTATIONS

    papers = {paper: f"All of: {', '.join(experiments_of(paper))}" for paper in PAPERS}
    rooms: dict[str, tuple[Mapping[str, Any], Callable[[Any], str]]] = {
        "models": (MODELS, _of_function),
        "data sets": (DATASETS, _of_card),
        "criteria": (CRITERIA, _of_card),
        "pruners": (PRUNERS, lambda pruner: pruner.line),
        "scopes": (SCOPES, _of_card),
        "schedules": (SCHEDULES, _of_card),
        "mask-1 actions": (MASK1_ACTIONS, lambda action: _of_card(action.values)),
        "mask-0 actions": (MASK0_ACTIONS, lambda action: _of_card(action.values)),
        "supermasks": (SUPERMASKS, _of_card),
        "codecs": (CODECS, lambda codec: _of_card(codec.encode)),
        "starts": (KMEANS_INITS, _of_function),
        "augmentations": (AUGMENTATIONS, _of_function),
        "engines": (EXECUTORS, _of_function),
        "recipes": (COMPRESSION_RECIPES, _of_recipe),
        "experiments": ({**papers, **{n: e.description for n, e in EXPERIMENTS.items()}}, str),
    }
    return {
        room: {name: line(variant) for name, variant in table.items()}
        for room, (table, line) in rooms.items()
    }


def _of_function(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]


def _of_card(function: Callable[..., Any]) -> str:
    return (sys.modules[function.__module__].__doc__ or "").strip().partition("\n")[0]


def _of_recipe(recipe: Any) -> str:
    from prunus.report.formatting import format_settings

    return format_settings(
        {key: getattr(recipe, key) for key in ("criterion", "schedule", "rounds", "density", "bits")}
    )
