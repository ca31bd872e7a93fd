"""The registry of rules: how each operator carries channel labels from its inputs to its outputs.

`RULES` has one function per operator name: `rule(coupling, arguments, shapes)`, with the arguments by the names of the
operator's schema and `Labels` in place of tensors, returns the labels of the results. An operator with no rule that is
not elementwise is refused (`walk.label_graph`).
"""

from collections.abc import Callable
from typing import Any, TypeVar

from prunus.pruning.structured.labels import Coupling, Labels

RuleArguments = dict[str, Any]


ResultShapes = list[tuple[int, ...] | None]


RuleResult = Labels | list[Labels | None]


Rule = Callable[[Coupling, RuleArguments, ResultShapes], RuleResult]


RuleFunction = TypeVar("RuleFunction", bound=Rule)

RULES: dict[str, Rule] = {}


class UnsupportedCall(Exception):
    """A call of an operator that its rule does not cover; the message is the reason."""


def register_rule(*names: str) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as the rule of the operators of these names."""

    def register(function: RuleFunction) -> RuleFunction:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def output_shape(shapes: ResultShapes) -> tuple[int, ...]:
    """The shape of the only result."""
    assert shapes[0] is not None
    return shapes[0]


def operand(a: RuleArguments) -> Labels:
    """The tensor that an operator is called on: its argument `self` or `input`."""
    value: Labels = a["self"] if "self" in a else a["input"]
    return value


def fixed(shape: tuple[int, ...] | None) -> Labels | None:
    """A tensor that no channel can be removed from."""
    return None if shape is None else Labels(shape)
