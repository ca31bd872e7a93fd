"""The registry of rules: how each operator carries channel labels from its inputs to its outputs.

`RULES` has one function per operator name: `rule(coupling, arguments, shape)`, with the arguments by the names of the
operator's schema and `Labels` in place of tensors, and the shape of the first result, returns the labels of the first
result, or of each of several. An operator with no rule that is not elementwise is refused (`walk.label_graph`).
"""

from collections.abc import Callable
from typing import Any, TypeVar

from prunus.pruning.structured.labels import Coupling, Labels, Shape

Arguments = dict[str, Any]
Rule = Callable[[Coupling, Arguments, Shape], Labels | list[Labels]]
RuleFunction = TypeVar("RuleFunction", bound=Rule)

RULES: dict[str, Rule] = {}
MOVING: set[str] = set()
"""The operators whose results have entries of their inputs, of which they may leave some out."""


class UnsupportedCall(Exception):
    """A call of an operator that its rule does not cover; the message is the reason."""


def register_rule(*names: str, moves: bool = False) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as the rule of the operators of these names.

    Args:
        names: The operators.
        moves: Whether their results have entries of their inputs.

    Returns:
        The decorator.
    """

    def register(function: RuleFunction) -> RuleFunction:
        RULES.update(dict.fromkeys(names, function))
        MOVING.update(names if moves else ())
        return function

    return register


def operand(a: Arguments) -> Labels:
    """The tensor that an operator is called on: its argument `self` or `input`."""
    value: Labels = a["self"] if "self" in a else a["input"]
    return value
