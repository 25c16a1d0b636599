"""Are two expressions equal? Exact rational arithmetic first, then numbers of bounded precision at several points.

An identity of rational functions that holds at points drawn from a large set holds (Schwartz 1980, Zippel 1979); other
identities are believed when they hold to 35 digits at several points and to 185 digits at one.
"""

import random
from fractions import Fraction
from typing import Any

from cs336_alignment.grading import numeric
from cs336_alignment.grading.bounds import MAX_NUMERIC_WORK, UndecidedError
from cs336_alignment.grading.exact import ExactEvaluator, IrrationalError
from cs336_alignment.grading.expression import Apply, Expression, Number, Symbol, mentions, size, variables

_EXACT_POINTS = 5
_NUMERIC_POINTS = 12
_ENOUGH_NUMERIC_POINTS = 4
_DIGITS, _CONFIRMING_DIGITS = 50, 200
_GUARD_DIGITS = 15
_INFINITY = Symbol("∞")
_NEGATIVE_INFINITY = Apply("neg", (_INFINITY,))


def equal(left: Expression, right: Expression) -> bool:
    """The two are the same function of their variables, wherever both are defined (and real, if neither mentions i).

    Raises:
        UndecidedError: beyond the bounds.
    """
    if left == right:
        return True
    if any(mentions(side, "∞") and not mentions(side, "sum") for side in (left, right)):
        return _infinity_sign(left) == _infinity_sign(right) != 0
    try:
        return _equal_exactly(left, right)
    except IrrationalError:
        pass
    except UndecidedError:
        # With variables in exponents small numbers may still do; a huge constant is left undecided.
        if not variables(left) and not variables(right):
            raise
    if _equal_numerically(left, right, log_base_ten=False):
        return True
    # A bare log is read with either base, but with the same one on both sides.
    logs = mentions(left, "log") or mentions(right, "log")
    return logs and _equal_numerically(left, right, log_base_ten=True)


def constant_ratio(left: Expression, right: Expression) -> int:
    """The sign of c where left = c * right for a real number c other than 0; 0 where there is no such c.

    Where the expressions are not rational, only c = 1 and c = -1 are tried.

    Raises:
        UndecidedError: beyond the bounds.
    """
    sample = random.Random(1)
    names = sorted(variables(left) | variables(right))
    point = {name: Fraction(sample.randint(2, 97), sample.choice((1, 3, 7))) for name in names}
    try:
        ratio = ExactEvaluator().value(Apply("/", (left, right)), point)
    except ZeroDivisionError:
        return 0
    except IrrationalError:
        return 1 if equal(left, right) else -1 if equal(left, Apply("neg", (right,))) else 0
    if ratio == 0 or not equal(left, Apply("*", (Number(ratio), right))):
        return 0
    return 1 if ratio > 0 else -1


def real_value(expression: Expression) -> float | None:
    """A float for ordering constants; None where it has variables, is not real, or is beyond the bounds."""
    if variables(expression):
        return None
    if mentions(expression, "∞"):
        return _infinity_sign(expression) * float("inf") if _infinity_sign(expression) else None
    mp = numeric.context()
    try:
        with mp.workdps(20):
            value = numeric.evaluate(expression, {}, log_base_ten=False)
            return float(mp.re(value)) if mp.im(value) == 0 else None
    except (UndecidedError, ZeroDivisionError, ValueError, OverflowError):
        return None


def _infinity_sign(expression: Expression) -> int:
    """1 and -1 for the bare infinities, 0 for all else."""
    return {_INFINITY: 1, _NEGATIVE_INFINITY: -1}.get(expression, 0)


def _equal_exactly(left: Expression, right: Expression) -> bool:
    names = sorted(variables(left) | variables(right))
    evaluator = ExactEvaluator()
    sample = random.Random(len(names))
    agreed = 0
    for _ in range(2 * _EXACT_POINTS if names else 1):
        point = {name: Fraction(sample.randint(-(10**6), 10**6), sample.randint(1, 9)) for name in names}
        try:
            if evaluator.value(left, point) != evaluator.value(right, point):
                return False
        except ZeroDivisionError:
            continue
        agreed += 1
        if agreed == _EXACT_POINTS:
            break
    return agreed > 0


def _equal_numerically(left: Expression, right: Expression, log_base_ten: bool) -> bool:
    names = sorted(variables(left) | variables(right))
    complex_values = not names or mentions(left, "i") or mentions(right, "i")
    points = _NUMERIC_POINTS if names else 1
    if (size(left) + size(right)) * points > MAX_NUMERIC_WORK:
        raise UndecidedError
    mp = numeric.context()
    sample = random.Random(len(names))
    agreed: list[dict[str, Any]] = []
    for _ in range(points):
        # Thirds of integers: real, of both signs, and never on an integer.
        point = {name: Fraction(sample.randint(-9, 9) * 3 + sample.choice((1, 2)), 3) for name in names}
        same = _agree_at(mp, left, right, point, _DIGITS, log_base_ten, complex_values)
        if same is False:
            return False
        if same:
            agreed.append(point)
        if len(agreed) == _ENOUGH_NUMERIC_POINTS:
            break
    return bool(agreed) and bool(
        _agree_at(mp, left, right, agreed[0], _CONFIRMING_DIGITS, log_base_ten, complex_values)
    )


def _agree_at(
    mp: Any,
    left: Expression,
    right: Expression,
    point: dict[str, Fraction],
    digits: int,
    log_base_ten: bool,
    complex_values: bool,
) -> bool | None:
    """Both sides agree at a point to `digits` less a guard; None where one of them has no (real) value there."""
    with mp.workdps(digits):
        values = {name: mp.mpf(value.numerator) / value.denominator for name, value in point.items()}
        try:
            a = numeric.evaluate(left, values, log_base_ten)
            b = numeric.evaluate(right, values, log_base_ten)
        except (ZeroDivisionError, ValueError):
            return None
        tolerance = mp.mpf(10) ** (_GUARD_DIGITS - digits) * max(1, abs(a), abs(b))
        if not complex_values and max(abs(mp.im(a)), abs(mp.im(b))) > tolerance:
            return None
        return bool(abs(a - b) <= tolerance)
