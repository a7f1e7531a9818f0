"""Conditions on expressions."""
from __future__ import annotations

from polyfill_names import unprovided

from .condition import Condition
from .launch_context import LaunchContext
from .some_substitutions_type import SomeSubstitutionsType
from .utilities import normalize_to_list_of_substitutions, perform_substitutions

__all__ = ["IfCondition", "InvalidConditionExpressionError", "UnlessCondition", "evaluate_condition_expression"]
__getattr__ = unprovided(__name__)

_VALUES = {"true": True, "1": True, "false": False, "0": False}


class InvalidConditionExpressionError(Exception):
    """The expression is neither true, 1, false nor 0."""

    def __init__(self, expression: str, text: str) -> None:
        super().__init__(f"invalid condition expression '{text}' (from {expression}): expected one of true, 1, false, 0")


def evaluate_condition_expression(context: LaunchContext, expression: SomeSubstitutionsType) -> bool:
    """Truth of an expression that evaluates to true, 1, false or 0, in any case."""
    parts = normalize_to_list_of_substitutions(expression)
    text = perform_substitutions(context, parts)
    try:
        return _VALUES[text.strip().lower()]
    except KeyError:
        raise InvalidConditionExpressionError(" + ".join(part.describe() for part in parts), text) from None


class IfCondition(Condition):
    """Holds where the expression is true."""

    def __init__(self, predicate_expression: SomeSubstitutionsType) -> None:
        self._expression = normalize_to_list_of_substitutions(predicate_expression)
        super().__init__(predicate=lambda context: evaluate_condition_expression(context, self._expression))

    def describe(self) -> str:
        return f"{type(self).__name__}({' + '.join(part.describe() for part in self._expression)})"


class UnlessCondition(IfCondition):
    """Holds where the expression is false."""

    def evaluate(self, context: LaunchContext) -> bool:
        return not super().evaluate(context)
