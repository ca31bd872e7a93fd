"""Training: one loop, published recipes, constraints that hold after every step."""

from prunus.training.constraints import Free, Masked
from prunus.training.evaluate import Epoch, Evaluation, evaluate
from prunus.training.loop import train
from prunus.training.recipes import RECIPES, Recipe

__all__ = ["RECIPES", "Epoch", "Evaluation", "Free", "Masked", "Recipe", "evaluate", "train"]
