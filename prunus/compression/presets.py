"""Recipes of Deep Compression as frozen values: the type, and the built-in ones by name.

`lenet-300-100` and `lenet-5` are the three stages of Han et al. 2016 with our densities, bits and codec, chosen for
the smallest file at the same accuracy; `han2016-*` have the densities, bits, index bits, k-means initialization and
codec of the paper. The paper states neither epochs nor optimizer, so these are ours in all recipes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from prunus.compression.container import EncodingConfig
from prunus.errors import SpecError
from prunus.pruning.schedules import Schedule
from prunus.pruning.scopes import Scope
from prunus.registry import lookup
from prunus.training.recipe import RECIPES, Recipe
from prunus.types import Density, MaskDict

STAGES_TRAINED = ("dense", "retrain", "final_retrain", "finetune")
"""The settings of a compression recipe that are recipes of a training."""


@dataclass(frozen=True)
class CompressionRecipe:
    """Everything that `compress` needs besides model, data and seed."""

    dense: Recipe
    """Training of the dense network, unless trained weights are given."""
    density: Density
    """Fraction of weights to keep in the end: one, or one per parameter name."""
    schedule: str | Schedule
    """A key of `SCHEDULES`, or a function (density, rounds) -> densities."""
    rounds: int
    retrain: Recipe
    """Training after each round but the last."""
    final_retrain: Recipe
    """Training after the last round."""
    bits: int | Mapping[str, int]
    """Bits of a code: one number, or numbers by kind of layer ("conv", "linear") or parameter name."""
    finetune: Recipe
    """Training of the centroids."""
    criterion: Any = "magnitude"
    """As for `prunus.prune`: a name, a method, a function of statistics, or scores by name."""
    scope: str | Scope | Callable[..., MaskDict] = "layer"
    """As for `prunus.prune`."""
    kmeans_init: str = "optimal"
    """Initialization of k-means, a key of `KMEANS_INITS`."""
    reserve_zero: bool = False
    """Whether one of the 2^bits codes of each tensor is left for zero: there are 2^bits - 1 centroids."""
    half_precision_biases: bool = True
    """Whether to round parameters that are neither pruned nor quantized, such as biases, to half precision."""
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    source: str = ""

    def __post_init__(self) -> None:
        kinds = {
            "encoding": EncodingConfig,
            "half_precision_biases": bool,
            "reserve_zero": bool,
            **dict.fromkeys(STAGES_TRAINED, Recipe),
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise SpecError(
                    f"Expected {name} of a compression recipe as a value of {kind.__name__}, got {value!r}; pass one."
                )

    def replace(self, **changes: object) -> "CompressionRecipe":
        """The same recipe with some settings changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


_DENSE = Recipe(
    epochs=15,
    learning_rate=1.2e-3,
    batch_size=60,
    lr_schedule="cosine",
    penalty="l2",
    penalty_strength=1e-4,
    source="Adam 1.2e-3 and batch 60: Frankle & Carbin 2019, Figure 2; L2: Han et al. 2015, section 3.1; rest ours",
)

LENET_300_100 = CompressionRecipe(
    dense=_DENSE,
    density={"fc1.weight": 0.045, "fc2.weight": 0.07, "fc3.weight": 0.25},
    schedule="cubic",
    rounds=20,
    # L2 chosen by the validation error of four seeds, among 1e-4 to 2e-3.
    retrain=_DENSE.replace(epochs=1, lr_schedule="constant", learning_rate=1e-3, penalty_strength=1e-3),
    final_retrain=_DENSE.replace(epochs=25, learning_rate=1e-3, penalty_strength=3e-4),
    bits=5,
    finetune=_DENSE.replace(epochs=3, learning_rate=3e-4, penalty="none"),
    source="Han et al. 2016; densities, bits, schedule and coder ours",
)

DEMO = LENET_300_100.replace(
    density={"fc1.weight": 0.065, "fc2.weight": 0.1, "fc3.weight": 0.4},
    rounds=15,
    # L2 chosen by the validation error of four seeds, among four recipes, on a CPU without AVX-512.
    final_retrain=LENET_300_100.final_retrain.replace(penalty_strength=5e-4),
    source="Han et al. 2016; densities between the paper's and those of lenet-300-100",
)

_SHIFTED = _DENSE.replace(augmentation="shift")

LENET_5 = LENET_300_100.replace(
    dense=_SHIFTED.replace(epochs=12),
    density={"conv1.weight": 0.7, "conv2.weight": 0.14, "fc1.weight": 0.04, "fc2.weight": 0.2},
    rounds=10,
    retrain=_SHIFTED.replace(epochs=1, lr_schedule="constant", learning_rate=1e-3, penalty_strength=1e-3),
    final_retrain=_SHIFTED.replace(epochs=18, learning_rate=1e-3, penalty_strength=3e-4),
    bits={"conv": 6, "linear": 5},
    finetune=_SHIFTED.replace(epochs=2, learning_rate=3e-4, penalty="none"),
    source="Han et al. 2016; densities, bits, schedule, coder and shifted images ours",
)

HAN_LENET_300_100 = LENET_300_100.replace(
    density={"fc1.weight": 0.08, "fc2.weight": 0.09, "fc3.weight": 0.26},
    bits=6,
    kmeans_init="linear",
    reserve_zero=True,
    half_precision_biases=False,
    encoding=EncodingConfig(codec="huffman", index_bits=5),
    source="Han et al. 2016, Table 2",
)

HAN_LENET_5 = HAN_LENET_300_100.replace(
    dense=_DENSE.replace(epochs=10),
    density={"conv1.weight": 0.66, "conv2.weight": 0.12, "fc1.weight": 0.08, "fc2.weight": 0.19},
    rounds=10,
    final_retrain=_DENSE.replace(epochs=15, learning_rate=1e-3, penalty_strength=3e-4),
    bits={"conv": 8, "linear": 5},
    source="Han et al. 2016, Table 3",
)

DEFAULT = CompressionRecipe(
    dense=Recipe(epochs=20, learning_rate=1e-3, batch_size=128, lr_schedule="cosine", source="ours"),
    density=0.1,
    scope="global",
    schedule="cubic",
    rounds=8,
    retrain=Recipe(epochs=1, learning_rate=1e-3, batch_size=128, source="ours"),
    final_retrain=Recipe(epochs=8, learning_rate=1e-3, batch_size=128, lr_schedule="cosine", source="ours"),
    bits={"conv": 6, "linear": 5},
    finetune=Recipe(epochs=2, learning_rate=3e-4, batch_size=128, lr_schedule="cosine", source="ours"),
    source="the three stages of Han et al. 2016 with our settings, for an unknown model",
)

_SGD = Recipe(
    epochs=1,
    learning_rate=0.02,
    batch_size=128,
    optimizer="nesterov",
    momentum=0.9,
    weight_decay=1e-4,
    augmentation="flip_crop",
    source="He et al. 2016, section 4.2; learning rate and epochs ours, for trained networks",
)

CNN = DEFAULT.replace(
    dense=_SGD.replace(epochs=12, learning_rate=0.1, lr_schedule="cosine"),
    density=0.23,
    scope="layer",
    schedule="one_shot",
    rounds=1,
    retrain=_SGD,
    final_retrain=_SGD.replace(epochs=4, lr_schedule="cosine"),
    bits=3,
    finetune=DEFAULT.finetune.replace(epochs=1, augmentation="flip_crop"),
    criterion="obs",
    source="ExactOBS, then the stages of Han et al. 2016 with our settings, for trained networks",
)

WITHOUT_TRAINING = DEFAULT.replace(
    density=0.5,
    scope="layer",
    schedule="one_shot",
    rounds=1,
    bits=4,
    criterion="obs",
    source="ExactOBS (Frantar & Alistarh 2022) and QuantEase (Behdin et al. 2023); density and bits ours",
)

COMPRESSION_RECIPES: Mapping[str, CompressionRecipe] = {
    "lenet-300-100": LENET_300_100,
    "lenet-5": LENET_5,
    "demo": DEMO,
    "han2016-lenet-300-100": HAN_LENET_300_100,
    "han2016-lenet-5": HAN_LENET_5,
    "default": DEFAULT,
    "cnn": CNN,
    "without-training": WITHOUT_TRAINING,
}
"""The built-in recipes. On the command line a LeNet uses the recipe of its own name, a built-in network with BatchNorm,
color images and trained weights `cnn`, any other model `default`; without training, every model uses
`without-training`."""

WEIGHT_SETTINGS = ("recipe", "optimizer", "momentum", "learning_rate")
"""What `change_recipe` changes in the trainings of weights; the training of centroids, whose gradients are sums, keeps
its own."""
TRAINING_SETTINGS = (*WEIGHT_SETTINGS, "augmentation", "epochs")


def compression_recipe(
    preset: str | CompressionRecipe | None = None, *, train: bool = True, **settings: Any
) -> CompressionRecipe:
    """The recipe of a call of `compress`.

    Args:
        preset: A recipe, or its key in `COMPRESSION_RECIPES`; None: "default", or "without-training".
        train: Whether anything is trained; otherwise there is a single round.
        settings: As for `change_recipe`; None: not changed.

    Returns:
        The recipe with the settings.

    Raises:
        SpecError, UnknownNameError: As `change_recipe`, or there is no preset of this name.
    """
    recipe = ("default" if train else "without-training") if preset is None else preset
    if not isinstance(recipe, CompressionRecipe):
        recipe = lookup("compression preset", COMPRESSION_RECIPES, recipe)
    changed = change_recipe(recipe, **{key: value for key, value in settings.items() if value is not None})
    return changed if train else changed.replace(rounds=1, schedule="one_shot")


def change_recipe(
    compression: CompressionRecipe,
    *,
    recipe: str | Recipe | None = None,
    learning_rate: float | None = None,
    augmentation: str | None = None,
    epochs: Mapping[str, int] | None = None,
    **settings: Any,
) -> CompressionRecipe:
    """The same compression recipe with some settings changed.

    Args:
        compression: The recipe to start from.
        recipe: The recipe of the trainings of weights, or its key in `RECIPES`; their epochs stay as they are.
        learning_rate: Of retraining after the last round; those of the other trainings of weights change in proportion.
        augmentation: Of all trainings, a key of `AUGMENTATIONS`.
        epochs: Epochs by stage: dense, retrain, final_retrain or finetune.
        settings: Fields of `CompressionRecipe`; or the optimizer and momentum of the trainings of weights.

    Returns:
        The changed recipe.

    Raises:
        SpecError: There is no setting of a name, or a value is of another type.
        UnknownNameError: There is no recipe, or no stage, of a name.

    >>> changed = change_recipe(COMPRESSION_RECIPES["default"], bits=4, optimizer="sgd", epochs={"finetune": 1})
    >>> changed.bits, changed.retrain.optimizer, changed.finetune.optimizer, changed.finetune.epochs
    (4, 'sgd', 'adam', 1)
    """
    names = {field.name for field in fields(compression)}
    if unknown := settings.keys() - names - {*TRAINING_SETTINGS}:
        raise SpecError(
            f"Expected settings of a compression recipe ({', '.join(sorted(names))}) or of its training stages "
            f"({', '.join(TRAINING_SETTINGS)}), got {sorted(unknown)}; correct the name."
        )
    changed = compression.replace(**{name: settings.pop(name) for name in names & settings.keys()})
    common = recipe if recipe is None or isinstance(recipe, Recipe) else lookup("recipe", RECIPES, recipe)
    last = (common or changed.final_retrain).learning_rate
    if learning_rate is not None and not isinstance(learning_rate, int | float):
        raise SpecError(f"Expected learning_rate to be a number, got {learning_rate!r}; correct it.")
    if epochs is not None and not isinstance(epochs, Mapping):
        raise SpecError(
            f"Expected epochs by stage, such as {{'final_retrain': 5}}, got {epochs!r}; name the stages "
            f"({', '.join(STAGES_TRAINED)})."
        )
    for stage in epochs or {}:
        lookup("stage", dict.fromkeys(STAGES_TRAINED), stage)
    for stage in STAGES_TRAINED:
        training: Recipe = getattr(changed, stage)
        new: dict[str, Any] = {"epochs": (epochs or {}).get(stage, training.epochs)}
        if stage != "finetune":
            training = common or training
            new |= settings
            if learning_rate is not None:
                new["learning_rate"] = learning_rate * (training.learning_rate / last)
        if augmentation is not None:
            new["augmentation"] = augmentation
        changed = changed.replace(**{stage: training.replace(**new)})
    return changed
