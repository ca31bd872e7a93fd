"""Where the runs of an experiment differ from the paper's size, by its own size or by `--set`, in words."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunus.errors import NoEffectWarning
from prunus.experiments.overrides import changed
from prunus.experiments.provenance import short
from prunus.report import formatting
from prunus.runs.requests import Request
from prunus.runs.settings import all_settings, flatten_settings

if TYPE_CHECKING:
    from prunus.experiments.stored_experiment import StoredExperiment

ALL = {"examples": "all"}
"""What a setting means that is not set."""
NAMES = {
    "examples": "training examples",
    "every": "steps between evaluations",
    "num_scoring_examples": "examples that gradient criteria look at",
}
"""What settings are called whose names do not say it."""
PARTS = {"recipe.": "the scores' ", "mask.": "the mask's "}
"""What the parts of a supermask are called whose settings have names of their own."""


def shortened(
    laboratory: "StoredExperiment", request: Request, specs: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What differs: "5 replicates instead of 20", "epochs 5 instead of 55".

    Args:
        specs: the complete settings of the runs.
    """
    n, full = len({entry.label["replicate"] for entry in request.entries}), laboratory.replicates[-1]
    found = [f"{formatting.pluralize(n, 'replicate')} instead of {full}"] if n != full else []
    networks, rest = networks_of(laboratory, request)
    said = [_differences(laboratory, network, request.size, rest) for network in networks]
    if all(one == said[0] for one in said):
        found += said[0]
    else:
        found += [f"{network}: {', '.join(one)}" for network, one in zip(networks, said, strict=True) if one]
    for network in networks:
        where = f"{network}, " if len(networks) > 1 else ""
        found += [where + line for line in _scores(laboratory, network, request.size, rest)]
    taken = [(spec.get("ticket") or spec).get("levels", ()) for spec in specs]  # found masks are a ticket's
    levels = sorted({level for one in taken for level in one})
    if levels:
        where = "" if all(taken) else " in some runs"
        found.append(f"levels {', '.join(map(str, levels))} instead of all{where}")
    return found


def networks_of(laboratory: "StoredExperiment", request: Request) -> tuple[list[str], dict[str, str]]:
    """The networks of a request, and its other settings: one, where its runs say of no network that they are its."""
    networks, rest = laboratory.asked(request.settings)
    return (networks if any("group" in entry.label for entry in request.entries) else networks[:1]), rest


def _differences(
    laboratory: "StoredExperiment", network: str, size: str, settings: Mapping[str, str]
) -> list[str]:
    """The settings in which this size, changed as asked, differs from the paper's, as it stands."""
    here, there = _templates(laboratory, network, size, settings)
    return _apart(flatten_settings(all_settings(here)), flatten_settings(all_settings(there)), scores=False)


def _scores(
    laboratory: "StoredExperiment", network: str, size: str, settings: Mapping[str, str]
) -> list[str]:
    """The same of how masks are learned, where they are: a line for those that differ in the same way."""
    here, there = (
        {
            label["curve"]: flatten_settings(all_settings(spec))
            for label, spec in laboratory.wanted(template, of, [0])
        }
        for template, of in zip(_templates(laboratory, network, size, settings), (size, "full"), strict=True)
    )
    alike: dict[str, list[str]] = {}
    for name in (name for name in here if name in there and "samples" in here[name]):
        alike.setdefault(", ".join(_apart(here[name], there[name], scores=True)), []).append(name)
    return [f"{'; '.join(names)}: {apart}" for apart, names in alike.items() if apart]


def _templates(
    laboratory: "StoredExperiment", network: str, size: str, settings: Mapping[str, str]
) -> tuple[Any, Any]:
    """What the runs have in common, in this size, changed as asked, and in the paper's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        return changed(laboratory.template(network, size), settings), laboratory.template(network, "full")


def _apart(here: Mapping[str, Any], there: Mapping[str, Any], *, scores: bool) -> list[str]:
    """The settings that differ, of learning scores or the others, in words."""
    return [
        f"{_name(short(key))} {_words(key, here[key])} instead of {_words(key, there[key])}"
        for key in there
        if key in here and here[key] != there[key] and short(key).startswith(tuple(PARTS)) == scores
    ]


def _name(key: str) -> str:
    if key in NAMES:
        return NAMES[key]
    part = next((part for part in PARTS if key.startswith(part)), "")
    return PARTS.get(part, "") + key.removeprefix(part).replace("_", " ")


def _words(key: str, value: Any) -> str:
    return ALL.get(short(key), "–") if value is None else formatting.format_settings(value)
