"""Numeric evaluation of an expression in bounded precision, for what is not rational.

mpmath's functions take their precision from a context; each thread has its own, so that threads cannot disturb each
other's.
"""

import threading
from collections.abc import Callable
from typing import Any

from mpmath.ctx_mp import MPContext

from cs336_alignment.grading.bounds import MAX_MAGNITUDE, UndecidedError
from cs336_alignment.grading.expression import Expression, Number, Symbol
from cs336_alignment.grading.series import sum_value

_MAX_GAMMA_ARGUMENT = 500
# A longer literal would be rounded.
_MAX_LITERAL_BITS = 512
_MAX_TRIGONOMETRIC_MAGNITUDE = 128
_threads = threading.local()


def context() -> Any:
    """This thread's mpmath context."""
    if not hasattr(_threads, "context"):
        _threads.context = MPContext()
    return _threads.context


def evaluate(expression: Expression, point: dict[str, Any], log_base_ten: bool) -> Any:
    """The complex value at a point, at the precision of this thread's context.

    Raises:
        ZeroDivisionError, ValueError: no value there.
        UndecidedError: beyond the bounds, or an operation without numbers.
    """
    mp = context()
    if isinstance(expression, Number):
        if max(expression.value.numerator.bit_length(), expression.value.denominator.bit_length()) > _MAX_LITERAL_BITS:
            raise UndecidedError
        return mp.mpf(expression.value.numerator) / expression.value.denominator
    if isinstance(expression, Symbol):
        return _symbol_value(mp, expression.name, point)
    if expression.operation == "sum":
        return _checked(mp, sum_value(mp, *expression.arguments))
    arguments = [evaluate(argument, point, log_base_ten) for argument in expression.arguments]
    name = "log10" if expression.operation == "log" and log_base_ten else expression.operation
    operation = OPERATIONS.get(name)
    if operation is None:
        raise UndecidedError
    return _checked(mp, operation(mp, *arguments))


def _symbol_value(mp: Any, name: str, point: dict[str, Any]) -> Any:
    if name in point:
        return point[name]
    constants = {"π": mp.pi, "e": mp.e, "i": mp.j}
    if name not in constants:
        raise UndecidedError
    return +constants[name]


def _magnitude(mp: Any, value: Any) -> float:
    """The binary exponent; minus infinity for zero."""
    return -mp.inf if value == 0 else mp.mag(value)


def _checked(mp: Any, value: Any) -> Any:
    if not mp.isfinite(value):
        raise ZeroDivisionError
    if value != 0 and abs(mp.mag(value)) > MAX_MAGNITUDE:
        raise UndecidedError
    return value


def _sum(mp: Any, *terms: Any) -> Any:
    return mp.fsum(terms)


def _power(mp: Any, base: Any, exponent: Any) -> Any:
    if base == 0:
        if mp.re(exponent) <= 0:
            raise ZeroDivisionError
        return mp.mpf(0)
    if _magnitude(mp, exponent) > 64 or abs(exponent) * abs(mp.log(base)) > MAX_MAGNITUDE:
        raise UndecidedError
    return mp.power(base, exponent)


def _root(mp: Any, value: Any, degree: Any) -> Any:
    """The real root of a negative number where the degree is odd, as in school; else the principal one."""
    if degree == 0:
        raise ZeroDivisionError
    if mp.im(value) == 0 and value < 0 and mp.isint(degree) and int(mp.re(degree)) % 2 == 1:
        return -_power(mp, -value, 1 / degree)
    return _power(mp, value, 1 / degree)


def _exponential(mp: Any, value: Any) -> Any:
    if value != 0 and abs(value) > MAX_MAGNITUDE / 2:
        raise UndecidedError
    return mp.exp(value)


def _gamma(mp: Any, value: Any) -> Any:
    if abs(value) > _MAX_GAMMA_ARGUMENT:
        raise UndecidedError
    return mp.gamma(value)


def _zeta(mp: Any, value: Any) -> Any:
    if mp.im(value) != 0 or not 1 < value < _MAX_GAMMA_ARGUMENT:
        raise UndecidedError
    return mp.zeta(value)


def _real(mp: Any, value: Any) -> Any:
    if mp.im(value) != 0:
        raise ValueError("not a real number")
    return mp.re(value)


def _mild(function: str) -> Callable[..., Any]:
    """A function whose cost grows with the size of its argument, or whose value overflows: arguments are bounded."""

    def operation(mp: Any, value: Any) -> Any:
        if _magnitude(mp, value) > _MAX_TRIGONOMETRIC_MAGNITUDE:
            raise UndecidedError
        if function.endswith("h") and abs(value) > MAX_MAGNITUDE / 2:
            raise UndecidedError
        return getattr(mp, function)(value)

    return operation


OPERATIONS: dict[str, Callable[..., Any]] = {
    "+": _sum,
    "neg": lambda mp, a: -a,
    "*": lambda mp, *factors: mp.fprod(factors),
    "/": lambda mp, a, b: a / b,
    "inverse": lambda mp, a: 1 / a,
    "^": _power,
    "sqrt": lambda mp, a: mp.sqrt(a),
    "root": _root,
    "exp": _exponential,
    "ln": lambda mp, a: mp.log(a),
    "log": lambda mp, a: mp.log(a),
    "log10": lambda mp, a: mp.log(a) / mp.log(10),
    "!": lambda mp, a: _gamma(mp, a + 1),
    "binom": lambda mp, n, k: _gamma(mp, n + 1) / (_gamma(mp, k + 1) * _gamma(mp, n - k + 1)),
    "zeta": _zeta,
    "abs": lambda mp, a: abs(a),
    "floor": lambda mp, a: mp.floor(_real(mp, a)),
    "ceil": lambda mp, a: mp.ceil(_real(mp, a)),
    "max": lambda mp, *values: max(_real(mp, value) for value in values),
    "min": lambda mp, *values: min(_real(mp, value) for value in values),
} | {
    ours: _mild(theirs)
    for ours, theirs in {
        "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
        "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot",
        "sinh": "sinh", "cosh": "cosh", "tanh": "tanh",
    }.items()
}  # fmt: skip
