"""An experiment: a question, the runs that answer it, the figures and the table drawn of them, and the claims tested.

    template(network, size) -> spec        what the runs have in common; `--set` changes it
    runs(spec, size) -> [(label, spec)]    the runs of one replicate; a label has the key "curve"

The same runs are made of every replicate. All are in a store: `prunus.experiments.running` does those that are missing
and draws those that are finished.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from prunus.errors import NoEffectWarning, SpecError
from prunus.experiments.claims import Claim, Published
from prunus.experiments.provenance import PREFIXES, is_among, run_settings
from prunus.experiments.rows import SIZES, first_setting
from prunus.report.figure_data import Reference
from prunus.runs.content import Row
from prunus.runs.overrides import apply_overrides
from prunus.runs.settings import all_settings
from prunus.runs.spec import RunSpec

LabeledRuns = Sequence[tuple[dict[str, Any], RunSpec]]
S = TypeVar("S")


def labeled(specs: Mapping[str, RunSpec]) -> LabeledRuns:
    """Label each run with the name of its curve."""
    return [({"curve": name}, spec) for name, spec in specs.items()]


def of_replicate(spec: S, replicate: int) -> S:
    """Return a spec and all that it depends on, of a replicate; what has None for its replicate is shared by all.

    Args:
        spec: The specification of a run, or a part of one: a dataclass, a tuple or a plain value.
        replicate: Number of the replicate, at least 0.

    Returns:
        A copy in which every `replicate` that is not None is the given one. A plain value is returned as it is.

    >>> from prunus.tickets.ticket import TicketSpec
    >>> of_replicate(TicketSpec(), 3).baseline.replicate
    3
    """
    if isinstance(spec, tuple):
        return tuple(of_replicate(part, replicate) for part in spec)  # type: ignore[return-value]
    if not is_dataclass(spec) or isinstance(spec, type):
        return spec
    values = {field.name: getattr(spec, field.name) for field in fields(spec) if field.init}
    changes = {name: of_replicate(value, replicate) for name, value in values.items()}
    if values.get("replicate") is not None:
        changes["replicate"] = replicate
    return replace(spec, **changes)


@dataclass(frozen=True)
class FigureSpec:
    """One figure: a metric of the rows against another, one curve per name."""

    suffix: str
    y: str
    y_label: str
    title: str
    x: str = "density %"
    x_label: str = "remaining weights (density, %)"
    x_log: bool | None = None
    """Whether the x axis is logarithmic; None: where it is the density."""
    invert_x: bool | None = None
    """Whether x falls to the right; None: where it is the density."""
    y_log: bool = False
    """Whether the y axis is logarithmic where all values are above zero."""
    source: str = "rows"
    """"rows": one row per level; "curves": one row per level and step."""
    curves: str = "curve"
    """The key of a row whose values are the names of the curves."""
    point: str = ""
    """The key whose values are the points of a curve; `x` by default."""
    select: Callable[[Sequence[Row]], Sequence[Row]] = list
    """Maps the rows to those that are drawn."""
    references: Sequence[Reference] = ()
    band: str = "min to max"
    """What the band around the mean of a curve is, a key of BANDS."""

    @property
    def log(self) -> bool:
        """Whether the x axis is logarithmic."""
        return self.x == "density %" if self.x_log is None else self.x_log

    @property
    def inverted(self) -> bool:
        """Whether x falls to the right."""
        return self.x == "density %" if self.invert_x is None else self.invert_x


@dataclass(frozen=True)
class Experiment:
    """A figure or table of a paper, or several that share their runs."""

    name: str
    paper: str
    """Authors, year and title."""
    title: str
    question: str
    """One sentence."""
    template: Callable[[str, str], Any]
    """Maps (network, size) to what the runs have in common; `--set` changes it."""
    runs: Callable[[Any, str], LabeledRuns]
    """Maps (template, size) to the runs of one replicate on one network."""
    place: str = ""
    """Figures, tables or sections of the paper."""
    figures: Sequence[FigureSpec] = ()
    claims: Sequence[Claim] = ()
    published: Sequence[Published] = ()
    differences: Sequence[str] = ()
    """How the runs differ from the paper's, in sentences; one that is about a single size names it."""
    networks: Sequence[str] = ("lenet",)
    """Names that `template` knows; `--set network=conv-2,conv-4` selects others."""
    against: str = ""
    """The curve that all others are compared with on the same replicates; none where empty."""
    metrics: Sequence[str] = ("stop_step", "stop_test_accuracy", "final_test_accuracy")
    """The columns of the table, and what is compared."""
    described: Sequence[str] = ()
    """The metrics whose comparisons are described in sentences; the first of `metrics` where empty."""
    points: Sequence[str] = ("over", "from", "level", "density %", "sparsity %")
    """The keys that distinguish the rows of a curve in the table."""
    replicates: tuple[int, int, int] = (1, 5, 5)
    """Numbers of replicates of the sizes smoke, default and full."""
    differs_by: str = ""
    """What differs between replicates, where that is not the seed of the training."""
    unused: Callable[[Mapping[str, Any]], Collection[str]] | None = None
    """Maps the settings of a run to those, or groups of those, that it does not use; they are not listed."""
    select: Callable[[Sequence[Row]], Sequence[Row]] = list
    """Maps the rows to those of the table, the claims and the comparisons."""
    note: str = ""
    """What a reader of the table must know."""

    @property
    def description(self) -> str:
        """One line for `prunus list`."""
        return f"{self.place}: {self.title}" if self.place else self.title

    @property
    def point(self) -> str:
        """The key by which curves are compared: the density, or else the last of `points`."""
        return "density %" if "density %" in self.points else ["density %", *self.points][-1]

    def num_replicates(self, size: str) -> int:
        """Return the number of replicates of a size."""
        return self.replicates[SIZES.index(size)]

    def labeled_runs(self, size: str, replicates: Sequence[int], settings: Mapping[str, str]) -> LabeledRuns:
        """List the runs of a size with changed settings.

        Args:
            size: "smoke", "default" or "full".
            replicates: The numbers of the replicates.
            settings: Changes as texts, by setting name.

        Returns:
            The label and the specification of each run, in the order of networks, replicates and curves. A label
            has at least the keys "curve" and "replicate", and "group", the network, where there are several networks.

        Raises:
            SpecError: A setting is unknown or impossible, or a network is named twice.
        """
        networks, rest = self.networks_and_settings(settings)
        if repeated := [name for name in networks if networks.count(name) > 1]:
            raise SpecError(
                f"network={','.join(networks)} names {repeated[0]} twice; name each network once."
            )
        return [
            (
                {**label, "replicate": replicate, **({"group": network} if len(networks) > 1 else {})},
                of_replicate(spec, replicate),
            )
            for network in networks
            for runs in [self.runs(self.changed_template(network, size, rest), size)]
            for replicate in replicates
            for label, spec in runs
        ]

    def changed_template(self, network: str, size: str, settings: Mapping[str, str]) -> Any:
        """Return the template with changed settings; that a change has no effect is warned of elsewhere.

        Args:
            network: A name that `template` knows.
            size: "smoke", "default" or "full".
            settings: Changes as texts, by setting name, without `network`.

        Returns:
            What the runs of the network have in common.

        Raises:
            SpecError: A setting is unknown, or its text is not of the type of the setting.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)
            return apply_overrides(
                self.template(network, size), settings, prefixes=PREFIXES, other_names=("network",)
            )

    def claims_of_networks(self) -> list[tuple[Claim, str]]:
        """Each claim with each network that it is about, by the labels of the runs of the default size."""
        curves: dict[str, set[str]] = {}
        for label, _ in self.labeled_runs("default", [0], {}):
            curves.setdefault(label.get("group", ""), set()).add(label["curve"])
        known = set().union(*curves.values())
        return [
            (claim, group)
            for claim in self.claims
            for group, names in curves.items()
            if claim.is_about(group) and (claim.curve in names or claim.curve not in known)
        ]

    def networks_and_settings(self, settings: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """Split settings into the networks to run on and the other settings.

        Without `network`, these are all networks, or with `data` those on such data. A model of the user, or data
        that no network has, takes the place of the first network.
        """
        rest = dict(settings)
        if "network" in rest:
            return rest.pop("network").split(","), rest
        if first_setting(rest, "model"):
            return list(self.networks[:1]), rest
        data = first_setting(rest, "data")
        if not data:
            return list(self.networks), rest
        data_of = {
            name: first_setting(all_settings(self.template(name, "smoke")), "data") for name in self.networks
        }
        matching = [name for name in self.networks if data_of[name] == data]
        return matching or list(self.networks[:1]), rest

    def warn_of_no_effect(self, size: str, replicates: Sequence[int], settings: Mapping[str, str]) -> None:
        """Warn of a setting that the experiment itself decides or does not use, so that changing it changes no result.

        Args:
            size: "smoke", "default" or "full".
            replicates: The numbers of the replicates.
            settings: Changes as texts, by setting name; each is left out in turn.

        Raises:
            SpecError: A setting is unknown or impossible, or a network is named twice.
        """
        specs = [spec for _, spec in self.labeled_runs(size, replicates, settings)]
        for key in settings:
            others = {other: value for other, value in settings.items() if other != key}
            same = [spec for _, spec in self.labeled_runs(size, replicates, others)] == specs
            if same or (self.unused and is_among(key, self.unused(run_settings(all_settings(specs[0]))))):
                message = f"Setting {key}={settings[key]} changes nothing in {self.name}."
                warnings.warn(message, NoEffectWarning, stacklevel=4)
