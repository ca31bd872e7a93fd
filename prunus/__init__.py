"""prunus: make trained neural networks small, and show why small networks train.

>>> import prunus
>>> data = prunus.load_data("digits")
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
>>> list(prunus.prunable(model))
['1.weight']
"""

from prunus import models
from prunus.compression.container import Coding, inspect, load, read
from prunus.compression.deep_compression import Compressed, deep_compress
from prunus.compression.published import COMPRESSION_RECIPES
from prunus.compression.recipes import CompressionRecipe
from prunus.compression.save import save
from prunus.data import load as load_data
from prunus.errors import PrunusError
from prunus.nouns import Dataset, Evidence, Split, density_of
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.prunable import prunable
from prunus.pruning.retrain import prune_and_retrain
from prunus.pruning.schedules import SCHEDULES
from prunus.pruning.scopes import SCOPES
from prunus.pruning.sensitivity import choose_densities, sensitivity
from prunus.training import RECIPES, Masked, Recipe, evaluate, train
from prunus.version import __version__

__all__ = [
    "COMPRESSION_RECIPES",
    "CRITERIA",
    "RECIPES",
    "SCHEDULES",
    "SCOPES",
    "Coding",
    "Compressed",
    "CompressionRecipe",
    "Dataset",
    "Evidence",
    "Masked",
    "PrunusError",
    "Recipe",
    "Split",
    "__version__",
    "choose_densities",
    "deep_compress",
    "density_of",
    "evaluate",
    "inspect",
    "load",
    "load_data",
    "models",
    "prunable",
    "prune_and_retrain",
    "read",
    "save",
    "sensitivity",
    "train",
]
