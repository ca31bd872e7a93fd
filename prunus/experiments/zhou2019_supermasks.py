"""Zhou et al. 2019: supermasks, which are masks over weights that are not trained.

In addition to the paper's masks: edge-popup (Ramanujan et al. 2020) and the signed supermask (Koster et al. 2022).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from prunus.compression.container import pack
from prunus.experiments.claims import Claim, Published
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns, labeled
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.presets import NETWORKS, ticket_of_size
from prunus.experiments.zhou2019 import PAPER
from prunus.pruning.criteria import CRITERIA
from prunus.report.figure_data import Reference
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.export import load_seeded_weights
from prunus.tickets.supermask import Bernoulli, EdgePopup, Signed
from prunus.tickets.supermask.criterion_supermask import CriterionSupermaskSpec
from prunus.tickets.supermask.learned_supermask import PUBLISHED, LearnedSupermaskSpec
from prunus.tickets.ticket import PruningRates, TicketSpec
from prunus.training import Recipe

ADAM = Recipe(epochs=40, learning_rate=0.1, batch_size=250, optimizer="adam", source="ours, for 40 epochs")
CONV_ADAM = ADAM.replace(
    epochs=4, batch_size=20, lr_schedule="cosine",
    source="ours, for 15,000 images and 4 epochs; chosen on the validation split of CIFAR-10",
)  # fmt: skip
CONV_EXAMPLES, CONV_EVERY, CONV_SAMPLES = 15_000, 1_000, 3
"""Of the default size: training examples, steps between evaluations, masks sampled for an evaluation."""
CONV_START = 0.85
"""The probability to be kept that each weight of a convolutional network starts with, in the default size.

Where half of the weights are sampled, every layer has as much noise as signal; here the noise is a sixth of it, and far
fewer steps are needed.
"""
POPUP = Recipe(
    epochs=100, learning_rate=1e-3, batch_size=100, optimizer="adam", lr_schedule="cosine", source="ours"
)
"""Of the sizes that are not full."""
RAMANUJAN = Recipe(
    epochs=100, learning_rate=0.1, batch_size=128, optimizer="sgd", momentum=0.9, weight_decay=1e-4,
    lr_schedule="cosine", source="Ramanujan et al. 2020, for Conv-2 to Conv-8; nothing is published for Lenet",
)  # fmt: skip
SIGNED = Recipe(
    epochs=100, learning_rate=0.05, batch_size=128, optimizer="nesterov", momentum=0.9, weight_decay=5e-4,
    source="Koster et al. 2022, configurations of their code; the weight decay is coupled here",
)  # fmt: skip
CONVOLUTIONS = {
    name: PUBLISHED.replace(
        epochs=100, learning_rate=rate, batch_size=60, lr_schedule="cosine",
        source="hidden-networks, smallscale_baselines/samplev2",
    )
    for name, rate in (("conv-2", 100.0), ("conv-4", 50.0), ("conv-6", 20.0))
}  # fmt: skip
LEVELS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15)
"""Levels of criterion masks of the default size: densities from 0.8 to 0.04."""

WEIGHT_NAMES = {"initial weights": "initial", "signed constants": "signed_constant"}
"""The names of the weights under a mask, and their keys in WEIGHT_INITS."""
BEST = "learned + DWR, signed constants"
FROM_SEED = "learned + DWR, signs from a seed"
CONV_CURVES = (
    "trained", "criterion, initial weights", "criterion, signed constants", "learned, initial weights", BEST,
)  # fmt: skip
"""The curves of convolutional networks in the default size: those that the claims are about."""
MOST_LIKELY_METRICS = {
    "most_likely_final_test_accuracy": "test accuracy of the most likely mask (%)",
    "most_likely_density": "density % of the most likely mask",
}
TRAINED_UNDER_MASK = "weights trained under the learned mask"
TICKET_OF_SAME_DENSITY = "a ticket of the same density"

REPORTED = {
    "lenet-300-100, mnist": {
        "learned, initial weights": 95.3, BEST: 98.0, "signed supermask": 97.48,
    },
    "conv-2, cifar-10": {"trained": 69.2, BEST: 66.0, "signed supermask": 68.37},
    "conv-4, cifar-10": {"trained": 75.4, "learned, initial weights": 65.4, BEST: 72.5, "signed supermask": 77.40},
    "conv-6, cifar-10": {"trained": 78.3, BEST: 76.5, "signed supermask": 79.17},
}  # fmt: skip
"""Published test accuracies in percent that are known at least second-hand."""


def _template(of: str, size: str) -> LearnedSupermaskSpec:
    """The settings of learned masks."""
    if size == "full":
        return LearnedSupermaskSpec(ticket_of_size(of, size).baseline, recipe=CONVOLUTIONS.get(of, PUBLISHED))
    if of == "lenet":
        spec = LearnedSupermaskSpec(ticket_of_size(of, size).baseline, recipe=ADAM)
    else:
        dense = ticket_of_size(of, size, epochs=CONV_ADAM.epochs).baseline
        if size == "default":
            dense = replace(dense, examples=CONV_EXAMPLES, eval_every=CONV_EVERY)
        spec = LearnedSupermaskSpec(dense, Bernoulli(CONV_START), recipe=CONV_ADAM, samples=CONV_SAMPLES)
    return replace(spec, recipe=spec.recipe.replace(epochs=1), samples=2) if size == "smoke" else spec


def _criterion_ticket(dense: BaselineSpec, size: str) -> TicketSpec:
    """The one-shot ticket of criterion masks, with the rates of its network."""
    rates = {ticket.baseline.model: ticket.pruning_rates for ticket in NETWORKS.values()}
    return TicketSpec(
        dense, "large_final_same_sign", pruning_rates=rates.get(dense.model, PruningRates()),
        rounds=3 if size == "smoke" else 15, schedule="one_shot",
        levels=LEVELS if size == "default" else (),
    )  # fmt: skip


def every_kind_of_mask(template: LearnedSupermaskSpec, size: str) -> LabeledRuns:
    """The table of the paper: masks of a criterion and learned ones, rescaled (DWR) or not, over both weights.

    Args:
        template: The learned supermask of one network, with the settings of the size and those that the user changed.
        size: "smoke", "default" or "full": it decides the levels of criterion masks and the recipe of edge-popup; in
            the default size, convolutional networks have CONV_CURVES only.

    Returns:
        One run per curve of the table, then the runs of `file_size` under the curves of the supermasks whose weights
        come from seeds.
    """
    dense, start = template.baseline, template.mask.start if isinstance(template.mask, Bernoulli) else 0.5
    runs: dict[str, Any] = {"trained": dense}
    for name, weights in WEIGHT_NAMES.items():
        runs[f"criterion, {name}"] = CriterionSupermaskSpec(_criterion_ticket(dense, size), weights)
    for rescale in (False, True):
        for name, weights in WEIGHT_NAMES.items():
            mask = Bernoulli(start, rescale)
            runs[f"learned{' + DWR' * rescale}, {name}"] = replace(template, mask=mask, weights=weights)
    runs[FROM_SEED] = replace(runs[BEST], weights="signed_glorot")
    popup, signed = (
        recipe.replace(epochs=min(template.recipe.epochs, recipe.epochs))
        for recipe in (RAMANUJAN if size == "full" else POPUP, SIGNED)
    )
    kaiming = replace(template, weights="signed_kaiming")
    runs["edge-popup"] = replace(kaiming, mask=EdgePopup(), scaled_fan=True, recipe=popup)
    runs["signed supermask"] = replace(kaiming, mask=Signed(), recipe=signed)
    runs[TRAINED_UNDER_MASK] = TicketSpec(dense, rounds=1, masks_from=runs[BEST])
    runs[TICKET_OF_SAME_DENSITY] = TicketSpec(dense, rounds=1, densities_from=runs[BEST])
    from_seeds = (FROM_SEED, "edge-popup", "signed supermask")
    if size == "default" and dense.model in CONVOLUTIONS:
        runs = {name: runs[name] for name in CONV_CURVES}
    files = {
        name: FunctionRun.of(file_size, FileSize(), inputs=(runs[name],))
        for name in from_seeds
        if name in runs
    }
    return [*labeled(runs), *labeled(files)]


@dataclass(frozen=True)
class FileSize:
    """The settings of `file_size`."""

    kind: ClassVar[str] = "file-size"


def file_size(settings: FileSize, replicate: int, supermask: RunDirectory) -> list[Row]:
    """Measure the file of a supermask whose weights come from seeds: only its mask is stored.

    Args:
        settings: A FileSize, which has no values.
        replicate: Number of the replicate; not used, because the supermask is that of the replicate.
        supermask: The finished run of a learned supermask.

    Returns:
        One row with the size of the file in bytes, "file bytes".

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    generated, factors = load_seeded_weights(supermask)
    return [{"file bytes": len(pack(supermask.load_tensors("final"), generated=generated, factors=factors))}]


def masks_of_criteria(template: LearnedSupermaskSpec, size: str) -> LabeledRuns:
    """The masks of every criterion over both kinds of weights.

    Args:
        template: The learned supermask of one network; its baseline is what the masks are made of.
        size: "smoke", "default" or "full": the smoke size has three criteria, the others all; the levels differ by
            size.

    Returns:
        One run per criterion and kind of weights. The label has the criterion in "curve", and the key of
        WEIGHT_NAMES in "over".
    """
    criteria = ("large_final", "random") if size == "smoke" else CRITERIA
    runs = []
    for criterion in dict.fromkeys(("large_final_same_sign", *criteria)):
        ticket = replace(_criterion_ticket(template.baseline, size), criterion=criterion)
        for name, weights in WEIGHT_NAMES.items():
            runs.append(({"curve": criterion, "over": name}, CriterionSupermaskSpec(ticket, weights)))
    return runs


def best_levels(rows: Sequence[Row]) -> list[Row]:
    """Keep the level of each run with the highest validation accuracy; the dense network does not count."""
    finished = [
        {
            MOST_LIKELY_METRICS.get(key, key): 100 * value if key == "most_likely_density" else value
            for key, value in row.items()
        }
        for row in rows
        if row.get("level", 1) or row["curve"] == "trained"
    ]
    runs: dict[object, list[Row]] = {}
    for row in finished:  # several networks may share a run
        runs.setdefault((row.get("group"), row["curve"], row["run"]), []).append(row)
    return [
        max(levels, key=lambda row: row.get("final_validation_accuracy", 0.0)) for levels in runs.values()
    ]


_claim = partial(Claim, metric="final_test_accuracy", source="Zhou et al. 2019")
ACCURACY = FigureSpec("accuracy", "final_test_accuracy", "test accuracy (%)", "Supermasks")


def _over(weights: str) -> Callable[[Sequence[Row]], Sequence[Row]]:
    """Select the rows of masks over these weights."""
    return lambda rows: [row for row in rows if row["over"] == weights]


SHORTENED = (
    "Masks of a criterion are those of one-shot tickets; the best density is chosen on the validation split.",
    "The default size trains Lenet's logits with Adam at 0.1 for 40 epochs, chosen on the validation split of MNIST; "
    "the paper's settings, SGD at 100 for 2000 epochs, are those of the full size.",
    "No settings are published for Conv-2, 4 and 6: the full size takes those of hidden-networks, "
    "the default size 15,000 images, 4 epochs, and probabilities to be kept that start at 0.85 instead of 0.5.",
    "Edge-popup and the signed supermask have their own papers' settings in the full size.",
    "In the default size, convolutional networks have the five curves only that claims are about. They have a quarter "
    "of the channels and hidden units, and 15,000 training, 5,000 validation and 5,000 of the 10,000 test images.",
)

supermasks = Experiment(
    name="zhou2019.supermasks",
    paper=PAPER,
    place="Table 1",
    title="Supermasks of criteria and learned ones, compared with the trained network",
    question="How accurate is a network whose weights are never trained, but only selected by a mask?",
    template=_template,
    runs=every_kind_of_mask,
    figures=(replace(ACCURACY, references=(Reference("chance", ((1.0, 10.0), (100.0, 10.0))),)),),
    claims=(
        _claim(
            "A mask of a criterion over initial weights is more accurate than chance",
            "criterion, initial weights", "higher", 10.0,
        ),
        _claim(
            "Signed constants are better than initial weights under a mask of a criterion",
            "criterion, signed constants", "higher", "criterion, initial weights",
            published="86 % on MNIST and 41 % on CIFAR-10 with signed constants (second-hand)",
        ),
        _claim(
            "A learned mask is better than one of a criterion", "learned, initial weights", "higher",
            "criterion, initial weights",
        ),
        _claim(
            "A learned mask with dynamic weight rescaling over signed constants is as accurate as the trained network, "
            "within 0.5 pp",
            BEST, "equal", "trained", margin=0.5,
        ),
        *(
            _claim(
                "A learned mask with dynamic weight rescaling over signed constants comes near the trained network, "
                "within 3.5 pp",
                BEST, "equal", "trained", margin=3.5, networks=(network,), published=published,
            )
            for network, published in (
                ("lenet", ""),
                ("conv-2", "3.2 pp lower (second-hand)"),
                ("conv-4", "2.9 pp lower (second-hand)"),
                ("conv-6", "1.8 pp lower (second-hand)"),
            )
        ),
    ),
    published=tuple(
        Published(
            {"network": of, "curve": curve}, "final_test_accuracy", value,
            "Koster et al. 2022, authors' code" if curve == "signed supermask" else "Table 1, second-hand",
        )
        for of, values in REPORTED.items()
        for curve, value in values.items()
    ),
    differences=SHORTENED,
    networks=tuple(NETWORKS),
    metrics=(
        "final_test_accuracy", "density %", "sparsity %", *MOST_LIKELY_METRICS.values(),
        "sparsity % of the most likely mask", "file bytes",
    ),
    points=(),
    replicates=(1, 3, 5),
    select=best_levels,
    note="A learned mask is random: its accuracy is the mean over sampled masks. The most likely mask keeps every "
    "weight with a probability above one half; the file stores this mask alone.",
)  # fmt: skip

criterion_supermasks = Experiment(
    name="zhou2019.criterion_supermasks",
    paper=PAPER,
    title="The masks of all criteria over weights that are not trained",
    question="How accurate are untrained weights under the masks of each criterion?",
    template=_template,
    runs=masks_of_criteria,
    figures=tuple(
        replace(
            ACCURACY, suffix=weights.partition(" ")[0], title=f"Masks of criteria: {weights}", select=_over(weights),
        )
        for weights in WEIGHT_NAMES
    ),
    claims=tuple(
        _claim(
            f"large_final_same_sign gives better supermasks than {name}", "large_final_same_sign", "higher", against,
            at={"level": (3, 4, 5), "over": tuple(WEIGHT_NAMES)},
        )
        for against, name in (("large_final", "large_final"), ("random", "random masks"))
    ),
    differences=SHORTENED[:1],
    metrics=("final_test_accuracy",),
    replicates=(1, 3, 5),
)  # fmt: skip
