"""Liu et al. 2019, "Rethinking the Value of Network Pruning": structures that are pruned, with and without weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from prunus.errors import SpecError
from prunus.experiments import liu2019_networks as networks
from prunus.experiments.claims import Claim, Published
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.liu2019 import (
    IMAGES,
    LEARNING_RATES,
    MARGIN,
    PAPER,
    RANDOM,
    RECIPE,
    curve_name,
    reference,
)
from prunus.experiments.liu2019_methods import METHODS
from prunus.experiments.liu2019_pruned import (
    FINE_TUNED,
    SCRATCH_B,
    SCRATCH_E,
    TICKET,
    UNPRUNED,
    PrunedNetwork,
    train_pruned_network,
)
from prunus.registry import lookup
from prunus.runs.content import Row

FINETUNE = replace(RECIPE, epochs=40, learning_rate=1e-3, lr_schedule="constant")
KEPT_MACS = (50.0, 25.0)
"""Percent of the multiply-accumulates that `filters` keeps: those of rounds that each keep half."""
ITERATIVE = "iterative "
"""How the names of curves begin whose filters are removed in several rounds."""


@dataclass(frozen=True)
class LargeNetwork:
    """A network of the tables, and what its default size makes of it."""

    model: str
    narrow_model: str
    penalty: float
    """Of BatchNorm scales: the authors'. Of block factors: ours."""
    narrow_penalty: float
    """Of the smaller sizes: the fewer steps there are, the larger it is."""
    methods: tuple[str, ...]


EXAMPLES, EPOCHS = 10_000, 15
"""Of the default size; fine-tuning has a quarter of the epochs."""
NETWORKS: Mapping[str, LargeNetwork] = {
    "vgg": LargeNetwork(
        "vgg-16-bn-cifar", reference(networks.narrow_vgg_16), 1e-4, 4e-4,
        ("l1", "thinet", "regression", "slimming"),
    ),
    "resnet": LargeNetwork(
        "resnet-56", reference(networks.narrow_resnet_20), 1e-3, 1e-3, ("l1", "sss")
    ),
    "preresnet": LargeNetwork(
        "preresnet-164", reference(networks.narrow_preresnet_20), 1e-5, 4e-4, ("slimming",)
    ),
    "densenet": LargeNetwork(
        "densenet-40", reference(networks.narrow_densenet_16), 1e-5, 4e-4, ("slimming",)
    ),
}  # fmt: skip
"""The networks with the methods that the paper prunes such networks by, some of them on ImageNet."""
PUBLISHED: Sequence[tuple[str, str, str, str, Mapping[str, float]]] = (
    ("vgg", "l1", "test accuracy", "Table 1, VGG-16-A, CIFAR-10 (second-hand)", {SCRATCH_B: 93.78}),
    (
        "resnet", "l1", "test accuracy", "Table 1, ResNet-56-A, CIFAR-10 (second-hand)",
        {UNPRUNED: 93.14, SCRATCH_E: 92.96, SCRATCH_B: 93.09},
    ),
    ("vgg", "thinet", "change", "VGG-Conv, ImageNet (authors' code)", {SCRATCH_E: -2.75, SCRATCH_B: 0.21}),
    ("resnet", "sss", "change", "ResNet-41, ImageNet (authors' code)", {SCRATCH_E: -0.42, SCRATCH_B: 0.05}),
    ("vgg", "regression", "change", "VGG-16-5x, ImageNet (authors' code)", {SCRATCH_E: -3.46, SCRATCH_B: -0.51}),
    (
        "vgg", "slimming", "test accuracy", "VGG-11, ImageNet (authors' code)",
        {FINE_TUNED: 68.62, SCRATCH_E: 70.00, SCRATCH_B: 71.18},
    ),
    (
        "resnet", "l1", "change", "ResNet-34-A, ImageNet (authors' code, second-hand)",
        {FINE_TUNED: -0.75, SCRATCH_E: -0.54, SCRATCH_B: -0.28},
    ),
)  # fmt: skip
"""Network, method, metric, source, and the value of each curve."""


def structure_template(name: str, size: str) -> FunctionRun:
    """Return the run of a pruned network, without its method, its arm and its input.

    Args:
        name: A key of NETWORKS.
        size: "full": the network and the training of the paper. "default": a narrowed network, fewer images and
            epochs, and the learning rate 0.01 for fine-tuning. "smoke": one epoch of 128 images.

    Returns:
        The run.

    Raises:
        UnknownNameError: NETWORKS has no such name.
    """
    network = lookup("network", NETWORKS, name)
    full = PrunedNetwork(
        RECIPE, network.model, "cifar-10", finetune=FINETUNE, penalty=network.penalty, methods=network.methods,
    )  # fmt: skip
    if size == "full":
        return FunctionRun.of(train_pruned_network, full)
    is_smoke = size == "smoke"
    small = replace(
        full,
        model=network.narrow_model,
        examples=128 if is_smoke else EXAMPLES,
        recipe=full.recipe.replace(epochs=1 if is_smoke else EPOCHS, augmentation="none"),
        finetune=full.finetune.replace(
            epochs=1 if is_smoke else round(EPOCHS / 4), learning_rate=0.01, augmentation="none"
        ),
        penalty=network.narrow_penalty,
        calibration_examples=32 if is_smoke else full.calibration_examples,
    )
    return FunctionRun.of(train_pruned_network, small)


def four_ways_to_train(template: FunctionRun, size: str) -> LabeledRuns:
    """The large network, and every pruned one fine-tuned and trained from scratch with both budgets.

    Args:
        template: The run of one network, with the settings of the size and those that the user changed.
        size: "smoke", "default" or "full"; not used here, because the template has the settings of its size.

    Returns:
        Four runs per method, whose label has the method under the key "over". Methods that need no penalty share the
        run of the large network.

    Raises:
        SpecError: There is no method.
        UnknownNameError: A method is none of METHODS and no filter criterion.
    """
    if not template.settings.methods:
        raise SpecError(
            f"Expected at least one of the methods {', '.join(METHODS)}, got none; correct methods."
        )
    runs = []
    for method in template.settings.methods:
        network = replace(template.settings, method=method, methods=())
        runs.append(({"curve": UNPRUNED, "over": method}, network.large.run()))
        for arm in (FINE_TUNED, SCRATCH_E, SCRATCH_B):
            runs.append(({"curve": arm, "over": method}, replace(network, arm=arm).run()))
    return runs


def tickets_of_filters(template: FunctionRun, size: str) -> LabeledRuns:
    """The filters that the L1 norm keeps, with their original and with new weights, at both learning rates.

    Args:
        template: The run of one network, with the settings of the size and those that the user changed.
        size: "smoke", "default" or "full": the smoke size prunes once to one fraction of the multiply-accumulates.

    Returns:
        The large network and one run per fraction for each curve; the label has the percentage under the key
        "kept MACs %". Iterative curves have one more round at each fraction; the first one is that of pruning once.
    """
    one_shot = dict.fromkeys(KEPT_MACS[:1] if size == "smoke" else KEPT_MACS, 1)
    iterative = {percent: rounds for rounds, percent in enumerate(KEPT_MACS, start=1)}
    runs = []
    for rate, (schedule, rounds_to), (start, arm) in product(
        LEARNING_RATES, (("", one_shot), (ITERATIVE, iterative)), ((TICKET, TICKET), (RANDOM, SCRATCH_E))
    ):
        recipe = template.settings.recipe.replace(learning_rate=rate)
        settings = replace(template.settings, recipe=recipe, method="l1", methods=(), arm=arm)
        curve = curve_name(f"{schedule}{start}", rate)
        runs.append(({"curve": curve, "kept MACs %": 100.0}, settings.large.run()))
        for percent, rounds in rounds_to.items():
            pruned = replace(settings, macs=percent / 100, removal_rounds=rounds)
            runs.append(({"curve": curve, "kept MACs %": percent}, pruned.run()))
    return runs


def rows_of_schedule(rows: Sequence[Row], schedule: str) -> list[Row]:
    """Select the rows of iterative curves, or those of pruning once.

    Args:
        rows: Rows with the key "curve".
        schedule: ITERATIVE, or an empty text for pruning once.

    Returns:
        The rows of the curves.
    """
    return [row for row in rows if row["curve"].startswith(ITERATIVE) == bool(schedule)]


_DIFFERENCES = (
    IMAGES,
    "Every structure is pruned to the same fraction of the multiply-accumulates, and the L1 norm is that of all "
    "weights of a channel; the paper prunes by fractions of channels per layer.",
    "The default size has smaller networks: VGG-16 with 1/8 of the channels (231,746 parameters) and, in place of "
    "ResNet-56, ResNet-20 with half of the channels (67,882 parameters).",
)  # fmt: skip
STEPS = (
    "In the default size, networks are trained for 2,355 steps; the paper trains for 160 epochs of 50,000 images in "
    "batches of 64, which are 125,000 steps."
)
ANOTHER = "of another network and data set (ResNet-34-A, ImageNet): "
_claim = partial(Claim, metric="test accuracy", margin=MARGIN)

structures = Experiment(
    name="liu2019.structures",
    paper=PAPER,
    place="Tables 1 to 5",
    title="Pruned structures, fine-tuned and trained from scratch",
    question="Is it the weights or the structure that a pruned network owes its accuracy to?",
    template=structure_template,
    runs=four_ways_to_train,
    claims=tuple(
        _claim(
            f"{scratch} is at most {MARGIN:g} pp less accurate than fine-tuning", scratch, "not lower", FINE_TUNED,
            source="Tables 1 to 5", at={"over": tuple(METHODS)}, published=published,
        )
        for scratch, published in (
            (SCRATCH_E, "comparable, " + ANOTHER + "72.77 (second-hand) against 72.56 % (authors' code)"),
            (
                SCRATCH_B,
                "at least as accurate, " + ANOTHER + "73.03 (second-hand; 73.08 in the authors' code) against 72.56 % "
                "(authors' code)",
            ),
        )
    ),
    published=tuple(
        Published({"group": group, "over": method, "curve": curve}, metric, value, source)
        for group, method, metric, source, values in PUBLISHED
        for curve, value in values.items()
    ),
    differences=(
        *_DIFFERENCES,
        "Each network has the methods that the paper prunes such networks by, except that ThiNet and regression, which "
        "it also applies to ResNet-50, are applied to VGG only. It applies ThiNet, regression and SSS to networks for "
        "ImageNet; the published changes are those.",
        "The L1 norm, ThiNet and regression remove the same number of channels of each layer here, so that the "
        "networks that are trained from scratch are the same; only the fine-tuned ones differ.",
        "Fine-tuning is computed in float32, also where the other trainings are in bfloat16.",
        "SSS removes whole blocks, those with the smallest factors, until at most that fraction of the "
        "multiply-accumulates remains: 42.45 % in the default size, where other methods keep 49 to 50 %.",
        "In the default size, PreResNet-20 with half of the channels is in place of PreResNet-164, and DenseNet-16 of "
        "half the growth in place of DenseNet-40.",
        "The published values are of other networks than the default size has; the table of published values names "
        "the network and the data set of each.",
        f"{STEPS} After 282 to 474 steps, Scratch-B, which has twice as many, was further above fine-tuning in all "
        "networks; the rows of these runs are not kept.",
        "L1 norm, ThiNet and regression of VGG share their networks that are trained from scratch, so that the means "
        "over methods in the claims count these networks three times. On them, Scratch-B is less accurate than "
        "Scratch-E in the default size, by 1.1 pp (0.9 to 1.3, n = 3, not corrected), though it is trained for twice "
        "as long.",
    ),
    networks=tuple(NETWORKS),
    metrics=("test accuracy", "change", "MACs %", "parameters %", "epochs"),
    points=("over",),
    replicates=(1, 3, 5),
    note="Test accuracy in percent, and its change from the unpruned network in percentage points. Scratch-E trains "
    "for the epochs of the unpruned network, Scratch-B for its number of multiply-accumulates. Methods: l1 (L1-norm "
    "filter pruning), thinet, regression (He et al. 2017), slimming (Network Slimming), sss (sparse "
    "structure selection). Published test accuracies of l1 are on CIFAR-10; all other published values, also the "
    "changes of l1, are of other networks on ImageNet.",
)  # fmt: skip

filters = Experiment(
    name="liu2019.filters",
    paper=PAPER,
    place="Table 8",
    title="Winning tickets and random initializations of networks without the filters of the smallest L1 norm",
    question="Does the initialization of a winning ticket help where whole filters are removed?",
    template=structure_template,
    runs=tickets_of_filters,
    figures=tuple(
        FigureSpec(
            suffix, "test accuracy", "test accuracy (%)",
            f"Filters removed {how}: winning ticket and random initialization", x="kept MACs %",
            x_label="remaining multiply-accumulates (%)", invert_x=True, band="mean ± standard deviation",
            select=partial(rows_of_schedule, schedule=schedule),
        )
        for suffix, how, schedule in (("accuracy", "once", ""), ("iterative", "in rounds", ITERATIVE))
    ),
    claims=tuple(
        _claim(
            f"At the learning rate {rate:g} a ticket differs from a random initialization by less than {MARGIN:g} pp",
            curve_name(TICKET, rate), "equal", curve_name(RANDOM, rate), source="section 6 and Table 8",
            at={"kept MACs %": KEPT_MACS}, published="no gain",
        )
        for rate in LEARNING_RATES
    ),
    differences=(
        *_DIFFERENCES,
        "The full size of ResNet is ResNet-56, which the paper prunes by the L1 norm on CIFAR-10.",
        "Where filters are removed in rounds, a random initialization has the same numbers of filters as where they "
        "are removed once, and thus the same weights.",
        "Claims are about structures that are pruned once; iterative ones keep half of the multiply-accumulates in "
        "each of two rounds. The published values of this table are not known, so that they are orderings.",
        STEPS,
    ),
    networks=("vgg", "resnet"),
    unused=lambda settings: ("finetune", "penalty", "methods", "calibration_examples"),
    metrics=("test accuracy", "change", "MACs %", "parameters %"),
    points=("kept MACs %",),
    replicates=(1, 3, 5),
    note="Test accuracy in percent, and its change from the large network in percentage points.",
)  # fmt: skip
