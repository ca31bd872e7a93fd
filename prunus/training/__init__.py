"""Training: one loop, published recipes, and constraints that hold after every step."""

from prunus.training.constraint import NoConstraint
from prunus.training.evaluate import EpochMetrics, evaluate
from prunus.training.evaluation import Evaluation
from prunus.training.loop import train
from prunus.training.recipe import RECIPES, Recipe

__all__ = ["RECIPES", "EpochMetrics", "Evaluation", "NoConstraint", "Recipe", "evaluate", "train"]
