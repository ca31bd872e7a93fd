"""Training: one loop, published recipes, constraints that hold after every step."""

from prunus.training.constraint import NoConstraint
from prunus.training.evaluate import EpochMetrics, Evaluation, evaluate
from prunus.training.loop import train
from prunus.training.recipes import RECIPES, Recipe

__all__ = ["RECIPES", "EpochMetrics", "Evaluation", "NoConstraint", "Recipe", "evaluate", "train"]
