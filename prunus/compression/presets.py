"""Recipes of Deep Compression as frozen values: the type, and the built-in ones by name.

`lenet-300-100` and `lenet-5` are the three stages of Han et al. 2016 with our densities, bits and codec, chosen for
the smallest file at the same accuracy; `han2016-*` have the densities, bits, index bits, k-means initialization and
codec of the paper. The paper states neither epochs nor optimizer, so these are ours in all recipes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from prunus.compression.container import EncodingConfig
from prunus.training.recipe import Recipe
from prunus.types import Density


@dataclass(frozen=True)
class CompressionRecipe:
    """Everything that `compress` needs besides model, data and seed."""

    dense: Recipe
    """Training of the dense network, unless it is given trained."""
    density: Density
    """Fraction of weights to keep in the end: one, or one per parameter name."""
    schedule: str
    rounds: int
    retrain: Recipe
    """Training after each round but the last."""
    final_retrain: Recipe
    """Training after the last round."""
    bits: int | Mapping[str, int]
    """Bits of a code: one number, or numbers by kind of layer ("conv", "linear") or parameter name."""
    finetune: Recipe
    """Training of the centroids."""
    criterion: str = "magnitude"
    scope: str = "layer"
    kmeans_init: str = "optimal"
    """Initialization of k-means, a key of `KMEANS_INITS`."""
    half_precision_biases: bool = True
    """Whether to round parameters that are neither pruned nor quantized, such as biases, to half precision."""
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    source: str = ""

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

COMPRESSION_RECIPES: Mapping[str, CompressionRecipe] = {
    "lenet-300-100": LENET_300_100,
    "lenet-5": LENET_5,
    "demo": DEMO,
    "han2016-lenet-300-100": HAN_LENET_300_100,
    "han2016-lenet-5": HAN_LENET_5,
    "default": DEFAULT,
}
"""The built-in recipes. A built-in model uses the recipe of its own name, any other model `default`."""
