"""prunus: make trained neural networks small, and show why small networks train.

>>> import prunus
>>> data = prunus.load_data("digits")
>>> model = prunus.models.lenet_300_100(seed=0)
>>> list(prunus.prunable_weights(model))
['fc1.weight', 'fc2.weight', 'fc3.weight']

A name is imported when it is first asked for, so that `prunus --help` need not wait for torch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from prunus.version import __version__

if TYPE_CHECKING:
    from prunus import models
    from prunus.compression.container import EncodingConfig, inspect, load, read
    from prunus.compression.deep_compression import Compressed, deep_compress
    from prunus.compression.presets import COMPRESSION_RECIPES
    from prunus.compression.recipes import CompressionRecipe
    from prunus.compression.save import save
    from prunus.data import load as load_data
    from prunus.errors import PrunusError
    from prunus.masks import Masks, mask_density
    from prunus.pruning.criteria import CRITERIA
    from prunus.pruning.prunable import prunable_weights, skipped_parameters
    from prunus.pruning.retrain import prune_and_retrain
    from prunus.pruning.schedules import SCHEDULES
    from prunus.pruning.scopes import SCOPES
    from prunus.pruning.sensitivity import choose_densities, sensitivity
    from prunus.training import RECIPES, Recipe, evaluate, train
    from prunus.types import Dataset, Split, Statistics
else:
    _HOMES = {
        "prunus.compression.container": ("EncodingConfig", "inspect", "load", "read"),
        "prunus.compression.deep_compression": ("Compressed", "deep_compress"),
        "prunus.compression.presets": ("COMPRESSION_RECIPES",),
        "prunus.compression.recipes": ("CompressionRecipe",),
        "prunus.compression.save": ("save",),
        "prunus.errors": ("PrunusError",),
        "prunus.types": ("Dataset", "Statistics", "Split"),
        "prunus.masks": ("Masks", "mask_density"),
        "prunus.pruning.criteria": ("CRITERIA",),
        "prunus.pruning.prunable": ("prunable_weights", "skipped_parameters"),
        "prunus.pruning.retrain": ("prune_and_retrain",),
        "prunus.pruning.schedules": ("SCHEDULES",),
        "prunus.pruning.scopes": ("SCOPES",),
        "prunus.pruning.sensitivity": ("choose_densities", "sensitivity"),
        "prunus.training": ("RECIPES", "Recipe", "evaluate", "train"),
    }
    _ORIGINS = {name: (home, name) for home, names in _HOMES.items() for name in names}
    _ORIGINS["load_data"] = ("prunus.data", "load")

    def __getattr__(name: str) -> object:
        """What is asked for, from where it is defined; also the rooms, `prunus.errors` and the like."""
        if name in _ORIGINS:
            home, origin = _ORIGINS[name]
            globals()[name] = found = getattr(import_module(home), origin)
            return found
        if not name.startswith("_") and find_spec(f"prunus.{name}"):
            return import_module(f"prunus.{name}")
        raise AttributeError(f"module 'prunus' has no attribute {name!r}")


__all__ = [
    "COMPRESSION_RECIPES",
    "CRITERIA",
    "RECIPES",
    "SCHEDULES",
    "SCOPES",
    "Compressed",
    "CompressionRecipe",
    "Dataset",
    "EncodingConfig",
    "Masks",
    "PrunusError",
    "Recipe",
    "Split",
    "Statistics",
    "__version__",
    "choose_densities",
    "deep_compress",
    "evaluate",
    "inspect",
    "load",
    "load_data",
    "mask_density",
    "models",
    "prunable_weights",
    "prune_and_retrain",
    "read",
    "save",
    "sensitivity",
    "skipped_parameters",
    "train",
]


def __dir__() -> list[str]:
    return __all__
