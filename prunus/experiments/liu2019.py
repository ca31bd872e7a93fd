"""Liu et al. 2019, "Rethinking the Value of Network Pruning", section 6: tickets against random initializations."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from prunus.experiments import liu2019_networks as networks
from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns
from prunus.experiments.presets import with_baseline, with_recipe
from prunus.registry import lookup
from prunus.tickets.baseline import BaselineSpec
from prunus.tickets.ticket import PruningRates, TicketSpec
from prunus.training import Recipe

PAPER = 'Liu, Sun, Zhou, Huang, Darrell 2019, "Rethinking the Value of Network Pruning"'
RECIPE = Recipe(
    160, 0.1, 64, optimizer="sgd", momentum=0.9, weight_decay=1e-4, lr_schedule="steps", augmentation="flip_crop",
    source="Liu et al. 2019, authors' code: ×0.1 after 80 and 120 of 160 epochs, batches of 64",
)  # fmt: skip
LEARNING_RATES = (0.1, 0.01)
TICKET, RANDOM = "winning ticket", "random initialization"
SCHEDULES = {"iterative": "iterative", "one-shot": "one_shot"}
IMAGES = (
    "The full size trains on 45,000 of the 50,000 training images; the other 5,000 are the validation split. The "
    "default size has 10,000 training, 3,333 validation and 3,333 of the 10,000 test images."
)
MARGIN = 1.0
"""Percentage points of test accuracy below which a difference counts as none."""


@dataclass(frozen=True)
class TicketNetwork:
    """A network of the figure, and what its default size makes of it."""

    model: str
    narrow_model: str
    classifier: str
    """The name of the only weight that is not a convolution's."""
    examples: int
    epochs: int
    rounds: int
    rate: float
    """The fraction of the remaining weights that a round prunes."""


def reference(function: object) -> str:
    """Return the reference "package.module:function" of a function of `liu2019_networks`."""
    return f"{networks.__name__}:{getattr(function, '__name__', '')}"


NETWORKS: Mapping[str, TicketNetwork] = {
    "vgg-16": TicketNetwork(
        "vgg-16-bn-cifar", reference(networks.narrow_vgg_16), "classifier.weight", 10_000, 15, rounds=3,
        rate=0.6,
    ),
    "resnet-50": TicketNetwork(
        reference(networks.cifar_resnet_50), reference(networks.narrow_resnet_20), "linear.weight", 10_000, 15,
        rounds=2, rate=0.7,
    ),
}  # fmt: skip


def ticket_template(name: str, size: str) -> TicketSpec:
    """Return the ticket of a network: convolution weights are ranked together by magnitude, and masked.

    Args:
        name: A key of NETWORKS.
        size: "full": the network and the training of the paper, ten rounds of 20 %. "default": a narrowed network with
            fewer images, epochs and rounds. "smoke": two rounds of one epoch of 128 images.

    Returns:
        The ticket, at the learning rate 0.1.

    Raises:
        UnknownNameError: NETWORKS has no such name.
    """
    network = lookup("network", NETWORKS, name)
    full = TicketSpec(
        BaselineSpec(network.model, "cifar-10", RECIPE, eval_every=704), scope="global",
        exclude=(network.classifier,), pruning_rates=PruningRates(linear=0.2), rounds=10,
    )  # fmt: skip
    if size == "full":
        return full
    is_smoke = size == "smoke"
    examples, epochs = (128, 1) if is_smoke else (network.examples, network.epochs)
    steps = -(-examples // RECIPE.batch_size)
    small = with_baseline(full, model=network.narrow_model, examples=examples, eval_every=steps)
    rounds, rates = 2 if is_smoke else network.rounds, PruningRates(linear=network.rate)
    small = with_recipe(small, epochs=epochs, augmentation="none")  # in few epochs it costs accuracy
    return replace(small, rounds=rounds, pruning_rates=rates)


def tickets_and_random(ticket: TicketSpec, size: str) -> LabeledRuns:
    """Iterative and one-shot tickets at both learning rates, and newly drawn weights under the masks of each.

    Args:
        ticket: The ticket of one network, with the settings of the size and those that the user changed.
        size: "smoke", "default" or "full"; not used here, because the template has the settings of its size.

    Returns:
        Eight runs; the label has the schedule under the key "over". One-shot tickets have no level 1, which is that of
        the iterative ticket, unless it is the only one.
    """
    runs = []
    for rate in LEARNING_RATES:
        for name, schedule in SCHEDULES.items():
            levels = () if schedule == "iterative" else tuple(range(2, ticket.rounds + 1))
            of_rate = with_recipe(ticket, learning_rate=rate)
            winning = replace(of_rate, schedule=schedule, mask1="rewind", levels=levels)
            control = replace(winning, mask1="reinitialize", masks_from=winning)
            runs.append(({"curve": curve_name(TICKET, rate), "over": name}, winning))
            runs.append(({"curve": curve_name(RANDOM, rate), "over": name}, control))
    return runs


def curve_name(start: str, rate: float) -> str:
    """Return the name of a curve.

    Args:
        start: What training starts from: TICKET or RANDOM.
        rate: The initial learning rate.

    Returns:
        The name.

    >>> curve_name(TICKET, 0.1)
    'winning ticket, learning rate 0.1'
    """
    return f"{start}, learning rate {rate:g}"


_claim = partial(
    Claim, metric="final_test_accuracy", source="section 6 and Figure 7",
    at={"over": tuple(SCHEDULES), "level": tuple(range(2, 11))},
)  # fmt: skip

tickets = Experiment(
    name="liu2019.tickets",
    paper=PAPER,
    place="Figure 7",
    title="Winning tickets and random initializations at a large and a small learning rate",
    question="Does the initialization of a winning ticket help at the learning rate that trains best?",
    template=ticket_template,
    runs=tickets_and_random,
    figures=tuple(
        FigureSpec(
            name.replace("-", "_"), "final_test_accuracy", "test accuracy at the end of training (%)",
            f"Pruned {name}: winning ticket and random initialization", x="sparsity %",
            x_label="pruned convolution weights (%)",
            band="mean ± standard deviation",
            select=lambda rows, name=name: [row for row in rows if row["over"] == name],  # type: ignore[misc]
        )
        for name in SCHEDULES
    ),
    claims=(
        _claim(
            f"At the learning rate 0.1 winning tickets and random initializations differ by less than {MARGIN:g} pp",
            curve_name(TICKET, 0.1), "equal", curve_name(RANDOM, 0.1), margin=MARGIN, published="no gain",
        ),
        _claim(
            "At the learning rate 0.01 winning tickets are more accurate than random initializations",
            curve_name(TICKET, 0.01), "higher", curve_name(RANDOM, 0.01), published="a gain",
        ),
        *(
            _claim(
                f"{text} end less accurate at the learning rate 0.01 than at 0.1",
                curve_name(start, 0.01), "lower", curve_name(start, 0.1), published="lower",
            )
            for text, start in (("Winning tickets", TICKET), ("Random initializations", RANDOM))
        ),
    ),
    differences=(
        "The paper prints this figure without numbers, so that the published values are orderings.",
        "Which fractions the paper prunes per round is not known; here each round prunes the same fraction of the "
        "remaining weights.",
        "The random initialization has new weights of convolutions; the classifier, which is not pruned, starts from "
        "the same weights.",
        IMAGES,
        "ResNet-50 is the CIFAR ResNet with eight blocks of two convolutions per stage, as in the authors' code. The "
        "smaller sizes take smaller networks: VGG-16 with 1/8 of the channels (231,746 parameters) and, in place of "
        "ResNet-50, ResNet-20 with half of the channels (67,882 parameters).",
        "Training in the default size ends long before it converges, after 2,355 steps; the paper trains for 160 "
        "epochs of 50,000 images in batches of 64, which are 125,000 steps. The length of the training matters. At the "
        "learning rate 0.1 and with n = 3, tickets of VGG-16 were 4.6 pp (2.4 to 6.9) better than random "
        "initializations after 474 steps, and 0.9 pp (0.0 to 1.8) after 2,355 steps. Tickets of ResNet-20 were 1.4 pp "
        "(-4.4 to 7.3, n = 3) better after 282 steps, and 4.7 pp (3.3 to 6.1, n = 5) after 2,355 steps, which differs "
        "from the paper; how this goes on in longer training was not measured. The rows of the shorter runs are not "
        "kept.",
        "At the learning rate 0.01, claims average both schedules. At 93.6 % pruned (n = 3), one-shot tickets of "
        "VGG-16 differ from random initializations by -2.6 pp (-3.6 to -1.6), and iterative tickets by +1.5 pp (-1.5 "
        "to 4.6), which is compatible with no difference. The intervals are not corrected. The paper has a gain.",
        "The dense networks of the default size, too, are less accurate at the learning rate 0.01 than at 0.1: 56.4 "
        "and 61.0 % for VGG-16 (n = 3), 56.4 and 63.4 % for ResNet-20 (n = 5). That networks end less accurate at 0.01 "
        "is thus an effect of the learning rate in a short training, with or without tickets.",
    ),
    networks=tuple(NETWORKS),
    metrics=("final_test_accuracy", "stop_test_accuracy"),
    replicates=(1, 3, 5),
    note="Test accuracy in percent. Density and sparsity are those of the convolution weights.",
)  # fmt: skip
