"""Mathematical expressions as trees: what the parser makes and the algebra compares."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Number:
    """A rational number."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable, or one of the constants `CONSTANTS`."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation on its arguments; `OPERATIONS` of `exact.py` and `numeric.py` name them."""

    operation: str
    arguments: tuple["Expression", ...]


Expression = Number | Symbol | Apply

CONSTANTS = frozenset({"π", "e", "i", "∞"})


def variables(expression: Expression) -> set[str]:
    """The names of the variables, constants left out."""
    return {name for name in _names(expression) if name not in CONSTANTS}


def mentions(expression: Expression, name: str) -> bool:
    """A symbol or an operation of that name occurs."""
    return name in _names(expression) or name in _operations(expression)


def size(expression: Expression) -> int:
    """The number of nodes."""
    return sum(1 for _ in _walk(expression))


def _walk(expression: Expression):
    stack = [expression]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, Apply):
            stack.extend(node.arguments)


def _names(expression: Expression) -> set[str]:
    return {node.name for node in _walk(expression) if isinstance(node, Symbol)}


def _operations(expression: Expression) -> set[str]:
    return {node.operation for node in _walk(expression) if isinstance(node, Apply)}


def choose_sign(expression: Expression, sign: int) -> Expression:
    """Resolve every ± to `sign` and every ∓ to its opposite."""
    if not isinstance(expression, Apply):
        return expression
    arguments = tuple(choose_sign(argument, sign) for argument in expression.arguments)
    if expression.operation in ("±", "∓"):
        negative = (sign < 0) == (expression.operation == "±")
        return Apply("neg", arguments) if negative else arguments[0]
    return Apply(expression.operation, arguments)
