"""The recipes of Deep Compression that prunus ships."""

from collections.abc import Mapping

from prunus.compression.recipes import CompressionRecipe
from prunus.training.recipes import Recipe

_DENSE = Recipe(
    epochs=15, learning_rate=1.2e-3, batch_size=60, decay="cosine", source="ours; the paper does not state it"
)

LENET_300_100 = CompressionRecipe(
    dense=_DENSE,
    density={"fc1.weight": 0.035, "fc2.weight": 0.06, "fc3.weight": 0.25},
    schedule="cubic",
    rounds=20,
    retrain=_DENSE.but(epochs=1, decay="constant", learning_rate=1e-3),
    settle=_DENSE.but(epochs=15, learning_rate=1e-3),
    bits=5,
    finetune=_DENSE.but(epochs=3, learning_rate=3e-4),
)

COMPRESSION_RECIPES: Mapping[str, CompressionRecipe] = {"lenet-300-100": LENET_300_100}
