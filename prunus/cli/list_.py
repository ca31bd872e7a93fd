"""`prunus list`."""

import re
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from prunus.cli.options import AsJson
from prunus.cli.output import echo_json, echo_table

TABLES = {
    "models": "models:MODELS",
    "data sets": "data:DATASETS",
    "criteria": "pruning.criteria:CRITERIA",
    "filter criteria": "pruning.structured.criteria:FILTER_CRITERIA",
    "pruning methods": "pruning.methods:METHODS",
    "scopes": "pruning.scopes:SCOPES",
    "schedules": "pruning.schedules:SCHEDULES",
    "mask-1 actions": "tickets.mask1_actions:MASK1_ACTIONS",
    "mask-0 actions": "tickets.mask0_actions:MASK0_ACTIONS",
    "supermasks": "tickets.supermask:SUPERMASKS",
    "codecs": "compression.codecs:CODECS",
    "k-means initializations": "compression.quantization.kmeans_init:KMEANS_INITS",
    "augmentations": "training.augmentation:AUGMENTATIONS",
    "executors": "runs.executors:EXECUTORS",
    "compression presets": "compression.presets:COMPRESSION_RECIPES",
}
"""The module and the name of the table of each kind of component, except experiments."""


def list_(as_json: AsJson = False) -> None:
    """List the built-in components, by kind, with a short description of each.

    Example: prunus list --json
    """
    components = {
        kind: {name: description(component) for name, component in table.items()}
        for kind, table in registries().items()
    }
    if as_json:
        content = {}
        for kind, table in components.items():
            described = [{"name": name, "description": text} for name, text in table.items()]
            content[re.sub(r"\W", "_", kind)] = described
        echo_json(content)
        return
    rows = [
        (kind if number == 0 else "", name, text)
        for kind, table in components.items()
        for number, (name, text) in enumerate(table.items())
    ]
    echo_table(("kind", "name", "description"), rows, text_columns=3)


def registries() -> dict[str, Mapping[str, Any]]:
    """The tables of built-in components, by the kind of component."""
    from prunus.experiments import EXPERIMENTS, PAPERS, experiments_of

    tables = {}
    for kind, table in TABLES.items():
        module, _, name = table.partition(":")
        tables[kind] = getattr(import_module(f"prunus.{module}"), name)
    papers = {paper: f"All of: {', '.join(experiments_of(paper))}" for paper in PAPERS}
    experiments = {name: EXPERIMENTS[name].description for name in EXPERIMENTS}
    return {**tables, "experiments": papers | experiments}


def description(component: Any) -> str:
    """One line about a built-in component.

    A text describes itself, a component with an attribute `description` or `summary` is described by it, a recipe by
    its settings, a codec by its module, and any other by the first line of the docstring of its function, or of the
    module if the function has only a formula.
    """
    if isinstance(component, str):
        return component
    from prunus.compression.presets import CompressionRecipe
    from prunus.report.formatting import format_settings

    if isinstance(component, CompressionRecipe):
        settings = ("criterion", "schedule", "rounds", "density", "bits")
        return format_settings({key: getattr(component, key) for key in settings})
    for attribute in ("description", "summary"):
        if isinstance(text := getattr(component, attribute, None), str):
            return text
    if encode := getattr(component, "encode", None):  # a codec: its module says what it is
        return first_line(sys.modules[encode.__module__].__doc__)
    function = getattr(component, "values", None) or component
    module = sys.modules.get(getattr(function, "__module__", ""))
    lines = [first_line(text) for text in (function.__doc__, getattr(module, "__doc__", ""))]
    return next((line for line in lines if len(line) > 10), "")


def first_line(text: str | None) -> str:
    """The first line of a docstring."""
    return (text or "").strip().partition("\n")[0]
