"""Renda, Frankle, Carbin 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning".

    retraining   Figures 1 and 2: after each round, weights rewound, learning rate rewound, or fine-tuned

The settings are the paper's for CIFAR (SGD 0.1, momentum 0.9, learning rate divided by ten at half and three quarters,
weight decay, 20 % of what is left a round, ranked globally), on Lenet or, with `--set network=conv-2`, on the Convs,
where the paper has ResNets. Weights are rewound to a tenth of training; each retraining has the rest of it.
"""

from collections.abc import Sequence
from dataclasses import replace

from prunus.experiments.stored_experiment import Entries, Panel, StoredExperiment
from prunus.experiments.ticket_presets import for_replicate, network
from prunus.tickets.ticket import PruningRates, TicketSpec

CURVES = {
    "rewind weights": "rewind",
    "rewind learning rate": "rewind_learning_rate",
    "fine-tune": "finetune",
}


def _template(name: str, size: str) -> TicketSpec:
    ticket = network(name, size, epochs=15, rounds=12)
    recipe = ticket.baseline.recipe.replace(
        optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-4, batch_size=128, lr_schedule="steps",
        source="Renda et al. 2020, section 3; epochs as for the network's other experiments",
    )  # fmt: skip
    return replace(
        ticket,
        baseline=replace(ticket.baseline, recipe=recipe),
        scope="global",
        pruning_rates=PruningRates(linear=0.2),
    )


def _retraining(template: TicketSpec, size: str, replicates: Sequence[int]) -> Entries:
    step = template.baseline.total_steps() // 10
    template = replace(
        template, baseline=replace(template.baseline, checkpoint_steps=(step,)), rewind_step=step
    )
    return [
        ({"curve": curve, "replicate": replicate}, for_replicate(template, replicate, mask1=action))
        for replicate in replicates
        for curve, action in CURVES.items()
    ]


retraining = StoredExperiment(
    "renda2020.retraining",
    "Figures 1 and 2: rewinding weights, rewinding the learning rate, fine-tuning.",
    template=_template,
    wanted=_retraining,
    panels=(
        Panel(
            "accuracy",
            "final_test_accuracy",
            "test accuracy at the end of retraining (%)",
            "Three ways to retrain",
        ),
    ),
    against="fine-tune",
    metrics=("final_test_accuracy", "stop_test_accuracy"),
    said=("final_test_accuracy",),
    replicates=(1, 3, 5),
)

PARTS = (retraining,)
