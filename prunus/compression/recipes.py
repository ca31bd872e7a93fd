"""Settings of Deep Compression as frozen values, each with its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from prunus.compression.container import EncodingConfig
from prunus.training.recipe import Recipe
from prunus.types import Density


@dataclass(frozen=True)
class CompressionRecipe:
    """Prune, share, code: everything `deep_compress` needs besides model, data and seed."""

    dense: Recipe
    """How the dense network is trained, where it is not given trained."""
    density: Density
    """The share of weights kept at the end; one, or one a parameter name."""
    schedule: str
    rounds: int
    retrain: Recipe
    """After each round but the last."""
    settle: Recipe
    """After the last round."""
    bits: int | Mapping[str, int]
    """Bits of a code: one, or one a kind of layer ("conv", "linear") or parameter name."""
    finetune: Recipe
    """Training of the centroids."""
    criterion: str = "magnitude"
    scope: str = "layer"
    start: str = "optimal"
    """Where k-means starts: a key of `prunus.compression.quantization.kmeans_init.STARTS`."""
    half: bool = True
    """Round what is neither pruned nor shared (biases) to values that half precision holds exactly."""
    coding: EncodingConfig = field(default_factory=EncodingConfig)
    source: str = ""

    def replace(self, **changes: object) -> "CompressionRecipe":
        """The same recipe with some settings changed."""
        return replace(self, **changes)  # type: ignore[arg-type]
