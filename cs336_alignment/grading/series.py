r"""Sums with a closed form: finite ones, geometric series, and c/n^s (Euler's zeta)."""

from fractions import Fraction
from typing import Any

from cs336_alignment.grading.bounds import UndecidedError
from cs336_alignment.grading.exact import ExactEvaluator, IrrationalError
from cs336_alignment.grading.expression import Expression, Symbol

_MAX_TERMS = 300
_MAX_POWER = 60
_PROBES = (1, 2, 3, 5, 10)


def sum_value(mp: Any, body: Expression, index: Expression, low: Expression, high: Expression) -> Any:
    """The value of a sum over an integer index.

    Raises:
        UndecidedError: not one of the forms above.
        ZeroDivisionError: a term has no value.
    """
    evaluator = ExactEvaluator()

    def term(n: int) -> Fraction:
        assert isinstance(index, Symbol)
        return evaluator.value(body, {index.name: Fraction(n)})

    try:
        first = int(evaluator.value(low, {}))
        if high != Symbol("∞"):
            last = int(evaluator.value(high, {}))
            if last - first > _MAX_TERMS:
                raise UndecidedError
            return _as_real(mp, sum((term(n) for n in range(first, last + 1)), Fraction(0)))
        power = _zeta_power(term)
        if power and 1 <= first <= _MAX_TERMS:
            missing = sum((term(n) for n in range(1, first)), Fraction(0))
            return _as_real(mp, term(1)) * mp.zeta(power) - _as_real(mp, missing)
        ratio = term(first + 1) / term(first)
        if abs(ratio) < 1 and all(term(first + n) == term(first) * ratio**n for n in _PROBES):
            return _as_real(mp, term(first) / (1 - ratio))
    except IrrationalError as error:
        raise UndecidedError from error
    raise UndecidedError


def _zeta_power(term: Any) -> int:
    """The s of terms c/n^s; 0 where they are not of that form."""
    halving = term(1) / term(2)
    power = halving.numerator.bit_length() - 1
    fits = 2 <= power <= _MAX_POWER and all(term(n) * n**power == term(1) for n in _PROBES)
    return power if fits else 0


def _as_real(mp: Any, value: Fraction) -> Any:
    return mp.mpf(value.numerator) / value.denominator
