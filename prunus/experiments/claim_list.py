"""The claims of the literature that the experiments test, and the verdict of the finished runs of a store on each.

A statement of several parts has one verdict per part: one per claim of the experiments that answer it, and network.
"""

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from prunus.errors import StoreError
from prunus.experiments import EXPERIMENTS
from prunus.experiments.claims import Claim, Decision, decide_claims, measured_text
from prunus.experiments.experiment import Experiment
from prunus.experiments.joining import SAME_SIZE, join_requests, network_of_run, numerics_of
from prunus.experiments.provenance import named_network, narrowed_networks, run_settings, size_texts
from prunus.experiments.rows import finished_subset, rows_of
from prunus.experiments.statements import STATEMENTS, Statement
from prunus.report.statistics import WITHIN_MARGIN, Verdict, check_interval_library, format_number
from prunus.runs.requests import Request
from prunus.runs.settings import all_settings
from prunus.runs.store import Store
from prunus.runs.transfer import import_runs

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"
"""The rows that are committed with the source."""
LETTERS = (*ascii_lowercase, *map("".join, product(ascii_lowercase, repeat=2)))


@dataclass(frozen=True)
class ListedClaim:
    """A part of a statement, with the verdict on it and the numbers behind it."""

    id: str
    """The number of the statement, and a letter where it has several parts."""
    claim: str
    verdict: Verdict | None
    """None where runs of the default size are missing. "not shown" is a result only of all runs of that size."""
    n: int
    """Number of replicates; 0 where nothing is measured."""
    published: str
    """The value in the paper, with its unit; empty where it gives none."""
    measured: float | None
    """The metric, or its difference between two curves, in the unit of the metric."""
    interval: tuple[float, float] | None
    """95 % interval of `measured`; None for fewer than two replicates."""
    command: str
    """Makes the runs, or those of the default size where there are none."""
    statement: str
    experiment: str
    metric: str
    measured_text: str
    """What was measured and its interval, with the unit."""
    effect: float | None
    """The published difference, or the margin of what counts as equal; None where neither is known."""
    default_size: str
    """Networks, data, epochs and examples of the experiment, and its number of replicates n."""
    note: str
    """Why there is no verdict, or what limits it; empty where nothing does."""
    at: str
    """Where it is measured, such as "levels 7, 11"; empty where the claim is not about some points."""
    p: float | None
    """p-value, corrected by Holm's method; None for fewer than two replicates."""
    shown_from: float | None
    """The smallest distance from the limit that would have been shown at the strictest step of the correction; None
    where there is no interval, or one without a width."""


@dataclass(frozen=True)
class _Answer:
    """The decisions on the claims of an experiment that follow from the runs of a store."""

    default_size: str
    narrowed: Mapping[str, str]
    """How the networks of the default size are called that stand for larger ones."""
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    """By the text of the claim, after the name of the network where the experiment has several."""
    size: str = "default"
    other_settings: str = ""
    """How the runs differ from the default size; empty where they do not."""
    numerics: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The settings in NUMERICS that the runs of each network have; empty for the defaults."""
    replicates: Mapping[str, int] = field(default_factory=dict)
    """The number of replicates of each network that has runs."""

    def settings_of(self, network: str) -> tuple[dict[str, str], int]:
        """The settings and the number of replicates of the command whose runs decide the claims on a network."""
        return dict(self.numerics.get(network, {})), self.replicates.get(network, 0)


def claims(store: Path | str | None = None) -> list[ListedClaim]:
    """Decide every claim of the list by the finished runs of a store.

    Args:
        store: The folder of a store; None for the rows of docs/evidence, which the source of prunus contains.

    Returns:
        One object per part of a statement, in the order of the list. A claim whose runs are missing has no verdict.

    Raises:
        StoreError: There is no such store or no docs/evidence, or a run in it is damaged.

    Example:
        >>> import prunus
        >>> retraining = [claim for claim in prunus.claims() if claim.experiment == "lecun1990.retraining"]
        >>> retraining[0].command
        'prunus run lecun1990.retraining --store store'
    """
    check_interval_library()
    if store is not None:
        return _listed(Store(store, create=False), str(store))
    files = sorted(EVIDENCE.glob("*.jsonl"))
    if not files:
        raise StoreError(
            f"There are no rows in {EVIDENCE}; pass the directory of `prunus run --store`, or use the source of prunus."
        )
    with tempfile.TemporaryDirectory() as folder:
        evidence = Store(Path(folder) / "store")
        for file in files:
            import_runs(file, evidence)
        return _listed(evidence, "store")


def _listed(store: Store, name: str) -> list[ListedClaim]:
    """All claims, decided by the runs of a store that commands name `name`."""
    names = dict.fromkeys(each for statement in STATEMENTS for each in statement.parts)
    requests = store.requests()
    answers = {
        each: _answer(EXPERIMENTS[each], store, [r for r in requests if r.experiment == each])
        for each in names
    }
    listed: list[ListedClaim] = []
    for statement in STATEMENTS:
        parts = [
            _part(statement, claim, group, EXPERIMENTS[each], answers[each], name)
            for each, beginnings in statement.parts.items()
            for claim, group in EXPERIMENTS[each].claims_of_networks()
            if claim.text.startswith(tuple(beginnings))
        ]
        letters = LETTERS if len(parts) > 1 else ("",)
        listed += [replace(part, id=part.id + letter) for part, letter in zip(parts, letters, strict=False)]
    return listed


def _answer(experiment: Experiment, store: Store, requested: Sequence[Request]) -> _Answer:
    """Decide the claims of an experiment by the runs of the default or full size, else by any others."""
    labeled = experiment.labeled_runs("default", [0], {})
    narrowed = narrowed_networks(
        (label.get("group", ""), run_settings(all_settings(spec))) for label, spec in labeled
    )
    requests = [finished for request in requested if (finished := finished_subset(store, request)).entries]
    if not requests:
        return _Answer(default_size(experiment), narrowed)
    sizes = {
        size: [r for r in requests if r.size == size and not r.settings.keys() - SAME_SIZE]
        for size in ("default", "full")
    }
    size, counted = max(sizes.items(), key=lambda item: sum(len(request.entries) for request in item[1]))
    last = requests[-1]
    changes = [f"--{last.size}"] * (last.size != "default") + [f"{k}={v}" for k, v in last.settings.items()]
    numerics = _numerics_of_networks(experiment, counted)
    joined = join_requests(experiment, _with_numerics(experiment, counted, numerics) or [last])
    rows = experiment.select(rows_of(store, joined))
    decisions = decide_claims(experiment.claims, rows, len(experiment.claims_of_networks()))
    by_text = {decision.claim: decision for decision in decisions}
    return _Answer(
        default_size(experiment), narrowed, by_text, size, "" if counted else ", ".join(changes), numerics,
        _replicates_of_networks(experiment, counted),
    )  # fmt: skip


def _numerics_of_networks(experiment: Experiment, requests: Sequence[Request]) -> dict[str, dict[str, str]]:
    """The settings in NUMERICS with which most runs of each network are finished; of equally many, the latest."""
    runs: dict[str, dict[tuple[tuple[str, str], ...], set[str]]] = {}
    for request in requests:
        settings = tuple(numerics_of(request).items())
        for entry in request.entries:
            of_network = runs.setdefault(network_of_run(experiment, request, entry.label), {})
            of_network.setdefault(settings, set()).add(entry.id)
    most: dict[str, dict[str, str]] = {}
    for network, ids in runs.items():
        settings = max(reversed(ids), key=lambda key: len(ids[key]))
        most[network] = dict(settings)
    return most


def _replicates_of_networks(experiment: Experiment, requests: Sequence[Request]) -> dict[str, int]:
    """The number of replicates of each network that has runs."""
    replicates: dict[str, set[int]] = {}
    for request in requests:
        for entry in request.entries:
            of_network = replicates.setdefault(network_of_run(experiment, request, entry.label), set())
            of_network.add(entry.label["replicate"])
    return {network: len(numbers) for network, numbers in replicates.items()}


def _with_numerics(
    experiment: Experiment, requests: Sequence[Request], numerics: Mapping[str, Mapping[str, str]]
) -> list[Request]:
    """The requests with only the runs whose settings are those of their network in `numerics`.

    So two curves that are compared are computed in the same way.
    """
    return [
        replace(
            request,
            entries=tuple(
                entry
                for entry in request.entries
                if numerics[network_of_run(experiment, request, entry.label)] == numerics_of(request)
            ),
        )
        for request in requests
    ]


def _part(
    statement: Statement, claim: Claim, group: str, experiment: Experiment, answer: _Answer, store: str
) -> ListedClaim:
    """One claim on one network, as a part of a statement."""
    text = f"{group}: {claim.text}" if group else claim.text
    decision = answer.decisions.get(text)
    verdict, note = _verdict(decision, answer, experiment, claim)
    words = ["prunus", "run", experiment.name, *[f"--{answer.size}"] * (answer.size != "default")]
    if decision and decision.n > experiment.num_replicates(answer.size):
        words += ["--replicates", str(decision.n)]
    network = group or experiment.networks[0]
    alike = [
        other for other in experiment.networks if answer.settings_of(other) == answer.settings_of(network)
    ]
    if network in alike and len(alike) < len(experiment.networks):
        words += ["--set", f"network={','.join(alike)}"]
    for key, value in answer.numerics.get(network, {}).items():
        words += ["--set", f"{key}={value}"]
    return ListedClaim(
        id=str(statement.number),
        claim=named_network(text, answer.narrowed),
        verdict=verdict,
        n=decision.n if decision else 0,
        published=claim.published,
        measured=decision.measured if decision else None,
        interval=decision.interval if decision else None,
        command=shlex.join([*words, "--store", store]),
        statement=statement.text,
        experiment=experiment.name,
        metric=claim.metric,
        measured_text=measured_text(decision) if decision else "–",
        effect=_effect(claim),
        default_size=answer.default_size,
        note=note,
        at=decision.where if decision else "",
        p=decision.p if decision and decision.n > 1 else None,
        shown_from=decision.shown_from if decision else None,
    )


def _effect(claim: Claim) -> float | None:
    return claim.margin if claim.expected in WITHIN_MARGIN else claim.effect


def _verdict(
    decision: Decision | None, answer: _Answer, experiment: Experiment, claim: Claim
) -> tuple[Verdict | None, str]:
    """The verdict as far as the runs are enough for one, and why there is none, or what limits it."""
    if decision is None or not decision.n:
        return None, decision.reason if decision else "the runs are missing"
    if answer.other_settings:
        return (
            None,
            f"the runs are not of the default size but with {answer.other_settings}, and decide nothing",
        )
    expected_n = experiment.num_replicates(answer.size)
    if decision.n < expected_n:
        shown = decision.verdict != "not shown"
        return decision.verdict if shown else None, f"n is {decision.n} instead of {expected_n}"
    effect, needed = _effect(claim), decision.shown_from or 0.0
    if decision.verdict != "not shown":
        return decision.verdict, ""
    if decision.uncorrected_p < 0.05:
        return "not shown", f"p is {decision.p:.2g} after the correction"
    if effect and needed > effect:
        return (
            "not shown",
            f"a distance would be shown from {format_number(needed)} on, but the effect is {effect:g}",
        )
    return "not shown", ""


def default_size(experiment: Experiment) -> str:
    """Describe the default size of an experiment: networks, data, epochs, training examples and replicates.

    >>> default_size(EXPERIMENTS["frankle2019.lenet"])
    'lenet: data mnist, epochs 20, training examples all, rounds 15; n = 5 or more'
    """
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for label, spec in experiment.labeled_runs("default", [0], {}):
        network = label.get("group") or ", ".join(experiment.networks)
        settings.setdefault(network, []).append(run_settings(all_settings(spec), experiment.unused))
    networks: dict[tuple[str, ...], list[str]] = {}
    for network, values in settings.items():
        networks.setdefault(tuple(size_texts(values)), []).append(network)
    parts = [f"{', '.join(names)}: {', '.join(sizes)}" for sizes, names in networks.items()]
    n = f"n = {experiment.num_replicates('default')} or more"
    return "; ".join([*parts, n]) + (f" ({experiment.differs_by})" if experiment.differs_by else "")
