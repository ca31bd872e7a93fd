"""Renda, Frankle, Carbin 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning"."""

from dataclasses import replace

from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns, labeled
from prunus.experiments.presets import ticket_of_size, with_baseline, with_recipe
from prunus.tickets.ticket import PruningRates, TicketSpec

ACTIONS = {
    "rewind weights": "rewind",
    "rewind learning rate": "rewind_learning_rate",
    "fine-tune": "finetune",
}
"""The mask-1 action of each curve."""


def _template(name: str, size: str) -> TicketSpec:
    """The settings of the paper for CIFAR-10: 20 % of the remaining weights per round, ranked together."""
    ticket = with_recipe(
        ticket_of_size(name, size, epochs=15, rounds=12), optimizer="sgd", learning_rate=0.1, momentum=0.9,
        weight_decay=1e-4, batch_size=128, lr_schedule="steps",
        source="Renda et al. 2020; epochs as for the network's other experiments",
    )  # fmt: skip
    return replace(ticket, scope="global", pruning_rates=PruningRates(linear=0.2))


def three_ways_to_retrain(template: TicketSpec, size: str) -> LabeledRuns:
    """Weights rewound to a tenth of the training, the learning rate rewound, and fine-tuning.

    Args:
        template: The ticket of one network, with the settings of the size and those that the user changed.
        size: "smoke", "default" or "full"; not used here, because the template has the settings of its size.

    Returns:
        One run per curve of ACTIONS.
    """
    step = template.baseline.total_steps() // 10
    ticket = replace(with_baseline(template, checkpoint_steps=(step,)), rewind_step=step)
    return labeled({curve: replace(ticket, mask1=action) for curve, action in ACTIONS.items()})


retraining = Experiment(
    name="renda2020.retraining",
    paper="Renda, Frankle, Carbin 2020, \"Comparing Rewinding and Fine-tuning in Neural Network Pruning\"",
    title="Rewinding weights, rewinding the learning rate, fine-tuning",
    question="Which way of retraining after pruning keeps the accuracy best?",
    template=_template,
    runs=three_ways_to_retrain,
    figures=(
        FigureSpec(
            "accuracy", "final_test_accuracy", "test accuracy at the end of retraining (%)", "Three ways to retrain"
        ),
    ),
    claims=tuple(
        Claim(
            f"{text} gives a higher accuracy than fine-tuning", curve, "higher", "fine-tune", "final_test_accuracy",
            "Renda et al. 2020", at={"level": (7, 8, 9, 10)},
            published=f"{published} at densities 0.21 to 0.11, ResNet-20 (authors' code)",
        )
        for text, curve, published in (
            ("Rewinding weights", "rewind weights", "+0.8 to +1.2 pp"),
            ("Rewinding the learning rate", "rewind learning rate", "+1.0 to +1.2 pp"),
        )
    ),
    differences=(
        "The networks are Lenet on MNIST or, with --set network=conv-2, the Convs on CIFAR-10; the paper has ResNets.",
        "Weights are rewound to a tenth of the training; each retraining takes the rest of it.",
    ),
    against="fine-tune",
    metrics=("final_test_accuracy", "stop_test_accuracy"),
    replicates=(1, 3, 5),
)  # fmt: skip
