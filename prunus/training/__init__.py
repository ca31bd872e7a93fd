"""Training: one loop, published recipes, and constraints that hold after every step."""

from prunus.training.constraint import NoConstraint
from prunus.training.evaluation import EpochMetrics, evaluate
from prunus.training.evaluation_totals import Evaluation
from prunus.training.loop import train
from prunus.training.recipe import RECIPES, Recipe

__all__ = ["RECIPES", "EpochMetrics", "Evaluation", "NoConstraint", "Recipe", "evaluate", "train"]
