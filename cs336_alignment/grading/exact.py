"""Exact rational evaluation of an expression at a rational point, within bounds."""

from collections.abc import Callable
from fractions import Fraction
from math import comb, factorial, isqrt

from cs336_alignment.grading.bounds import MAX_BITS, MAX_EXACT_WORK, UndecidedError
from cs336_alignment.grading.expression import Expression, Number, Symbol

_MAX_FACTORIAL = 1_500


class IrrationalError(Exception):
    """The value is not rational, or not by these rules; the numeric evaluation takes over."""


class ExactEvaluator:
    """Evaluates expressions exactly; one instance a comparison, since it counts the comparison's work."""

    def __init__(self) -> None:
        self._work = 0

    def value(self, expression: Expression, point: dict[str, Fraction]) -> Fraction:
        """The value at a point.

        Raises:
            ZeroDivisionError: no value there.
            IrrationalError: not a rational operation.
            UndecidedError: beyond the bounds.
        """
        if isinstance(expression, Number):
            return expression.value
        if isinstance(expression, Symbol):
            if expression.name not in point:
                raise IrrationalError
            return point[expression.name]
        operation = OPERATIONS.get(expression.operation)
        if operation is None:
            raise IrrationalError
        arguments = [self.value(argument, point) for argument in expression.arguments]
        if expression.operation in ("+", "*"):
            return self._fold(arguments, operation)
        result = operation(*arguments)
        self._charge(result)
        return result

    def _fold(self, values: list[Fraction], operation: Callable[..., Fraction]) -> Fraction:
        result = values[0]
        for value in values[1:]:
            result = operation(result, value)
            self._charge(result)
        return result

    def _charge(self, value: Fraction) -> None:
        bits = _bits(value)
        self._work += 1 + (bits // 256) ** 2
        if bits > MAX_BITS or self._work > MAX_EXACT_WORK:
            raise UndecidedError


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        if exponent.denominator == 2:
            return _power(_square_root(base), Fraction(exponent.numerator))
        raise IrrationalError
    if base in (0, 1, -1):
        if base == 0 and exponent == 0:
            raise ZeroDivisionError
        return base ** (int(exponent) if base == 0 else int(exponent) % 2)
    if abs(exponent) * _bits(base) > MAX_BITS:
        raise UndecidedError
    return base ** int(exponent)


def _square_root(value: Fraction) -> Fraction:
    if value < 0:
        raise IrrationalError
    root = Fraction(isqrt(value.numerator), isqrt(value.denominator))
    if root * root != value:
        raise IrrationalError
    return root


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or value < 0:
        raise IrrationalError
    if value > _MAX_FACTORIAL:
        raise UndecidedError
    return Fraction(factorial(int(value)))


def _binomial(upper: Fraction, lower: Fraction) -> Fraction:
    if upper.denominator != 1 or lower.denominator != 1 or upper < 0 or lower < 0:
        raise IrrationalError
    if upper > _MAX_FACTORIAL:
        raise UndecidedError
    return Fraction(comb(int(upper), int(lower)))


OPERATIONS: dict[str, Callable[..., Fraction]] = {
    "+": lambda a, b: a + b,
    "neg": lambda a: -a,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "inverse": lambda a: 1 / a,
    "^": _power,
    "sqrt": _square_root,
    "!": _factorial,
    "binom": _binomial,
    "abs": lambda a: abs(a),
    "floor": lambda a: Fraction(a.__floor__()),
    "ceil": lambda a: Fraction(a.__ceil__()),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
}
