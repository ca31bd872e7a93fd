"""Zhou, Lan, Liu, Yosinski 2019, "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask".

    supermasks   section 5 and its table: masks found and learned, rescaled or not, over initial weights and signed
                 constants, beside the trained network, edge-popup (Ramanujan et al. 2020) and the signed supermask
                 (Koster et al. 2022)
    found        Figure 5: what every criterion's mask is worth over weights that are not trained

Where we depart: found masks are those of one-shot tickets, the best density chosen on the validation split. The
default size trains Lenet's logits with Adam at 0.1 for 40 epochs, chosen on the validation split of MNIST; the paper's
rule, SGD at 100 for 2000 epochs, is the full size. For Conv-2, 4 and 6 no settings are published: the full size takes
those of a re-implementation (hidden-networks), the default size 15,000 pictures, 4 epochs, and logits that start at
0.85 in place of 0.5. Edge-popup and the signed supermask have their own papers' settings in the full size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from prunus.compression.container import pack
from prunus.experiments.results import Row
from prunus.experiments.stored_experiment import Entries, Panel, StoredExperiment
from prunus.experiments.ticket_presets import NETWORKS, network
from prunus.pruning.criteria import CRITERIA
from prunus.report.figure_data import Reference
from prunus.runs.directory import RunDirectory
from prunus.runs.requests import Request
from prunus.runs.store import Store
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.export import load_seeded_weights
from prunus.tickets.supermask import Bernoulli, EdgePopup, Signed
from prunus.tickets.supermask.criterion_supermask import CriterionSupermaskSpec
from prunus.tickets.supermask.learned_supermask import PUBLISHED, LearnedSupermaskSpec
from prunus.tickets.ticket import PruningRates, TicketSpec
from prunus.training import Recipe

ADAM = Recipe(epochs=40, learning_rate=0.1, batch_size=250, optimizer="adam", source="ours, for 40 epochs")
CONV_ADAM = Recipe(
    epochs=4,
    learning_rate=0.1,
    batch_size=20,
    optimizer="adam",
    lr_schedule="cosine",
    source="ours, for 15,000 pictures and 4 epochs; chosen on the validation split of CIFAR-10",
)
CONV_EXAMPLES, CONV_EVERY, CONV_SAMPLES = 15_000, 250, 3
"""Of the default size: training pictures, steps between evaluations, masks drawn for a score."""
CONV_START = 0.85
"""What the logits of convolutional networks start at in the default size. Half of the weights drawn are as much noise
as signal in every layer; of this many, the noise is a sixth, and far fewer steps are needed."""
POPUP = Recipe(
    epochs=100, learning_rate=1e-3, batch_size=100, optimizer="adam", lr_schedule="cosine", source="ours"
)
"""Of the sizes that are not full."""
RAMANUJAN = Recipe(
    epochs=100,
    learning_rate=0.1,
    batch_size=128,
    optimizer="sgd",
    momentum=0.9,
    weight_decay=1e-4,
    lr_schedule="cosine",
    source="Ramanujan et al. 2020, for Conv-2 to Conv-8; nothing is published for Lenet",
)
SIGNED = Recipe(
    epochs=100, learning_rate=0.05, batch_size=128, optimizer="nesterov", momentum=0.9, weight_decay=5e-4,
    source="Koster et al. 2022, configurations of their code; the weight decay is coupled here",
)  # fmt: skip
CONVOLUTIONS = {
    name: Recipe(
        100,
        rate,
        60,
        "sgd",
        0.9,
        lr_schedule="cosine",
        source="hidden-networks, smallscale_baselines/samplev2",
    )
    for name, rate in (("conv-2", 100.0), ("conv-4", 50.0), ("conv-6", 20.0))
}
LEVELS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15)
"""Found masks of the default size: densities from 0.8 to 0.04."""

LIKELY = ("likely mask: accuracy %", "likely mask: density %", "likely mask: sparsity %")
"""Columns for the one mask that a learned mask is without chance, and that its file holds."""

SIGN, INIT = "signed constant", "init"
WEIGHTS = {INIT: "initial", SIGN: "signed_constant"}


@dataclass(frozen=True)
class ReportedAccuracy:
    """A test accuracy in percent, and how sure we are that the paper says so."""

    value: float
    how: str = "unverified"

    def __str__(self) -> str:
        return f"{self.value:g} ({self.how})"


REPORTED: Mapping[str, Mapping[str, ReportedAccuracy]] = {
    "lenet": {
        "trained": ReportedAccuracy(97.7), f"found, {INIT}": ReportedAccuracy(79.3), f"found, {SIGN}": ReportedAccuracy(86.3),
        f"learned, {INIT}": ReportedAccuracy(95.3, "second-hand"), f"learned, {SIGN}": ReportedAccuracy(96.4),
        f"learned + DWR, {INIT}": ReportedAccuracy(97.8), f"learned + DWR, {SIGN}": ReportedAccuracy(98.0, "second-hand"),
        "signed supermask": ReportedAccuracy(97.48, "authors' code"),
    },
    "conv-2": {
        "trained": ReportedAccuracy(69.2, "second-hand"), f"found, {INIT}": ReportedAccuracy(22.3),
        f"found, {SIGN}": ReportedAccuracy(37.4), f"learned, {INIT}": ReportedAccuracy(64.4), f"learned, {SIGN}": ReportedAccuracy(66.3),
        f"learned + DWR, {INIT}": ReportedAccuracy(65.0), f"learned + DWR, {SIGN}": ReportedAccuracy(66.0, "second-hand"),
        "signed supermask": ReportedAccuracy(68.37, "authors' code"),
    },
    "conv-4": {
        "trained": ReportedAccuracy(75.4, "second-hand"), f"found, {INIT}": ReportedAccuracy(23.7),
        f"found, {SIGN}": ReportedAccuracy(39.7), f"learned, {INIT}": ReportedAccuracy(65.4, "second-hand"),
        f"learned, {SIGN}": ReportedAccuracy(66.2), f"learned + DWR, {INIT}": ReportedAccuracy(71.7),
        f"learned + DWR, {SIGN}": ReportedAccuracy(72.5, "second-hand"),
        "signed supermask": ReportedAccuracy(77.40, "authors' code"),
    },
    "conv-6": {
        "trained": ReportedAccuracy(78.3, "second-hand"), f"found, {INIT}": ReportedAccuracy(24.0),
        f"found, {SIGN}": ReportedAccuracy(41.0), f"learned, {INIT}": ReportedAccuracy(65.3), f"learned, {SIGN}": ReportedAccuracy(65.4),
        f"learned + DWR, {INIT}": ReportedAccuracy(76.3), f"learned + DWR, {SIGN}": ReportedAccuracy(76.5, "second-hand"),
        "signed supermask": ReportedAccuracy(79.17, "authors' code"),
    },
}  # fmt: skip
"""The paper's table, as others report it; what is only unverified is said to be."""


def _template(of: str, size: str) -> LearnedSupermaskSpec:
    if size == "full":
        return LearnedSupermaskSpec(network(of, size).baseline, recipe=CONVOLUTIONS.get(of, PUBLISHED))
    if of == "lenet":
        spec = LearnedSupermaskSpec(network(of, size).baseline, recipe=ADAM)
    else:
        dense = network(of, size, epochs=CONV_ADAM.epochs).baseline
        if size == "default":
            dense = replace(dense, examples=CONV_EXAMPLES, eval_every=CONV_EVERY)
        spec = LearnedSupermaskSpec(dense, Bernoulli(CONV_START), recipe=CONV_ADAM, samples=CONV_SAMPLES)
    return replace(spec, recipe=spec.recipe.replace(epochs=1), samples=2) if size == "smoke" else spec


def _ticket(dense: BaselineSpec, size: str) -> TicketSpec:
    """The one-shot ticket of found masks, with the rates of its network."""
    rates = next(
        (t.pruning_rates for t in NETWORKS.values() if t.baseline.model == dense.model), PruningRates()
    )
    rounds = 3 if size == "smoke" else 15
    levels = LEVELS if size == "default" else ()
    return TicketSpec(
        dense, "large_final_same_sign", pruning_rates=rates, rounds=rounds, schedule="one_shot", levels=levels
    )


def _supermasks(template: LearnedSupermaskSpec, size: str, replicates: Sequence[int]) -> Entries:
    found: Entries = []
    for replicate in replicates:
        dense = replace(template.baseline, replicate=replicate)
        ticket, learned = _ticket(dense, size), replace(template, baseline=dense)
        runs: dict[str, Any] = {"trained": dense}
        for words, weights in WEIGHTS.items():
            runs[f"found, {words}"] = CriterionSupermaskSpec(ticket, weights)
        for rescale in (False, True):
            for words, weights in WEIGHTS.items():
                mask = Bernoulli(
                    template.mask.start if isinstance(template.mask, Bernoulli) else 0.5, rescale
                )
                runs[f"learned{' + DWR' * rescale}, {words}"] = replace(learned, mask=mask, weights=weights)
        best = runs[f"learned + DWR, {SIGN}"]
        runs["learned + DWR, signs from a seed"] = replace(best, weights="signed_glorot")
        popup, signed = (
            recipe.replace(epochs=min(template.recipe.epochs, recipe.epochs))
            for recipe in (RAMANUJAN if size == "full" else POPUP, SIGNED)
        )
        kaiming = replace(learned, weights="signed_kaiming")
        runs["edge-popup"] = replace(kaiming, mask=EdgePopup(), scaled_fan=True, recipe=popup)
        runs["signed supermask"] = replace(kaiming, mask=Signed(), recipe=signed)
        runs["weights trained under the learned mask"] = TicketSpec(dense, rounds=1, masks_from=best)
        runs["a ticket of the same density"] = TicketSpec(dense, rounds=1, densities_from=best)
        found += [({"curve": name, "replicate": replicate}, spec) for name, spec in runs.items()]
    return found


def _found(template: LearnedSupermaskSpec, size: str, replicates: Sequence[int]) -> Entries:
    """Every criterion over both kinds of weights."""
    criteria = ("large_final", "random") if size == "smoke" else ()
    found: Entries = []
    for replicate in replicates:
        ticket = _ticket(replace(template.baseline, replicate=replicate), size)
        for criterion in dict.fromkeys(("large_final_same_sign", *(criteria or CRITERIA))):
            for words, weights in WEIGHTS.items():
                spec = CriterionSupermaskSpec(replace(ticket, criterion=criterion), weights)
                found.append(({"curve": criterion, "over": words, "replicate": replicate}, spec))
    return found


def best_levels(rows: Sequence[Row]) -> list[Row]:
    """One row a run and label: of several levels, that of the highest accuracy on the validation split."""
    best: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row.get("group", ""), row["curve"], row["run"])
        if key not in best or row["final_validation_accuracy"] > best[key]["final_validation_accuracy"]:
            best[key] = row
    return list(best.values())


def _table(store: Store, request: Request, rows: Sequence[Row]) -> list[Row]:
    """A row a network and curve: the accuracy, what is published, the density; those of the likely mask; its file."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in best_levels([row for row in rows if row["level"] or row["curve"] == "trained"]):
        groups.setdefault((row.get("group", ""), row["curve"]), []).append(row)
    table = []
    for (group, name), members in groups.items():
        likely = [row for row in members if "most_likely_density" in row]
        files = [size for row in members if (size := _file_size(store.directory(row["run"])))]
        of = _key(members[0]["network"])
        table.append({
            **({"group": group} if group else {}), "curve": name, "n": len(members),
            **_told("final_test_accuracy", [row["final_test_accuracy"] for row in members]),
            "published": str(REPORTED.get(of, {}).get(name, "")),
            **_densities("density %", "sparsity %", [row["density %"] for row in members]),
            **_told(LIKELY[0], [row["most_likely_final_test_accuracy"] for row in likely]),
            **_densities(*LIKELY[1:], [100 * row["most_likely_density"] for row in likely]),
            "file bytes": round(mean(files)) if files else "",
        })  # fmt: skip
    return table


def _told(name: str, values: Sequence[float]) -> Row:
    """The mean over the replicates with its standard deviation, or an empty cell."""
    if not values:
        return {name: ""}
    return {name: mean(values), f"{name} ±": stdev(values) if len(values) > 1 else 0.0}


def _densities(density: str, sparsity: str, values: Sequence[float]) -> Row:
    """Their mean in percent, beside it the sparsity, both to two places, so that they add up to 100 as printed."""
    if not values:
        return {density: "", sparsity: ""}
    kept = round(mean(values), 2)
    return {**_told(density, values), density: kept, sparsity: round(100 - kept, 2)}


def _key(network: str) -> str:
    """What "model, data" is called in NETWORKS; other data have no published numbers."""
    return next(
        (key for key, of in NETWORKS.items() if f"{of.baseline.model}, {of.baseline.data}" == network), ""
    )


def _file_size(folder: RunDirectory) -> int:
    """Bytes of the file of a supermask whose weights come from seeds; 0 for other runs."""
    generated, factors = load_seeded_weights(folder)
    return len(pack(folder.load_tensors("final"), generated=generated, factors=factors)) if generated else 0


ACCURACY = Panel("accuracy", "final_test_accuracy", "test accuracy (%)", "Supermasks")


def _over(weights: str) -> Callable[[Row], bool]:
    """Whether a row is of masks over these weights."""
    return lambda row: row["over"] == weights


supermasks = StoredExperiment(
    "zhou2019.supermasks",
    "Section 5: supermasks found and learned, beside the trained network.",
    template=_template,
    wanted=_supermasks,
    panels=(replace(ACCURACY, reference=(Reference("chance", ((1.0, 10.0), (100.0, 10.0))),)),),
    networks=tuple(NETWORKS),
    metrics=("final_test_accuracy", "published", *LIKELY, "file bytes"),
    said=(),
    replicates=(1, 3, 5),
    table=_table,
)
found = StoredExperiment(
    "zhou2019.found",
    "Figure 5: the masks of all criteria over weights that are not trained.",
    template=_template,
    wanted=_found,
    panels=(
        replace(ACCURACY, suffix="initial", title="Found: initial weights", drawn=_over(INIT)),
        replace(ACCURACY, suffix="signed", title="Found: signed constants", drawn=_over(SIGN)),
    ),
    metrics=("final_test_accuracy",),
    replicates=(1, 3, 5),
)
PARTS = (supermasks, found)
