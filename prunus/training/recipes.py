"""Training settings as frozen values, each with its source."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Recipe:
    """How to train: everything the loop needs besides model, data and seed."""

    epochs: int
    learning_rate: float
    batch_size: int
    optimizer: str = "adam"
    """A key of `prunus.training.optimizers.OPTIMIZERS`."""
    momentum: float = 0.0
    weight_decay: float = 0.0
    lr_schedule: str = "constant"
    """How the learning rate falls: a key of `prunus.training.lr_schedules.DECAYS`."""
    penalty: str = "none"
    """A penalty on the weights added to the loss: a key of `prunus.training.penalties.PENALTIES`."""
    penalty_strength: float = 0.0
    augmentation: str = "none"
    """What is done to the pictures of a batch: a key of `prunus.training.augmentation.AUGMENTATIONS`."""
    patience: int | None = None
    """Stop after so many epochs without a lower validation loss, and go back to the best; None: never."""
    source: str = field(default="", metadata={"identity": False})
    """Where the settings come from."""

    def replace(self, **changes: object) -> "Recipe":
        """The same recipe with some settings changed.

        >>> LENET_300_100.replace(epochs=1).epochs
        1
        """
        return replace(self, **changes)  # type: ignore[arg-type]


LENET_300_100 = Recipe(
    epochs=55,
    learning_rate=1.2e-3,
    batch_size=60,
    source="Frankle & Carbin 2019, Figure 2 (50,000 iterations of 60 are 55 epochs of 55,000)",
)

CONV_2 = Recipe(
    epochs=27, learning_rate=2e-4, batch_size=60, source="Frankle & Carbin 2019, Figure 2: 20,000 iterations"
)

CONV_4 = Recipe(
    epochs=34, learning_rate=3e-4, batch_size=60, source="Frankle & Carbin 2019, Figure 2: 25,000 iterations"
)

CONV_6 = Recipe(
    epochs=40, learning_rate=3e-4, batch_size=60, source="Frankle & Carbin 2019, Figure 2: 30,000 iterations"
)

RECIPES = {
    "lenet-300-100": LENET_300_100,
    "lenet-5": LENET_300_100.replace(
        source="Frankle & Carbin 2019, Figure 2 (LeNet-300-100's; none is published for Caffe's LeNet-5)"
    ),
    "conv-2": CONV_2,
    "conv-4": CONV_4,
    "conv-6": CONV_6,
}
