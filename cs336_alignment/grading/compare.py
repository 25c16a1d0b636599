"""When two values are the same answer."""

from fractions import Fraction

from cs336_alignment.grading.algebra import constant_ratio, equal, real_value
from cs336_alignment.grading.bounds import UndecidedError, UnreadableError
from cs336_alignment.grading.expression import Apply, Expression, Number, Symbol, size
from cs336_alignment.grading.reader import as_real_set
from cs336_alignment.grading.units import LETTER_UNITS
from cs336_alignment.grading.values import (
    Definition,
    Interval,
    Matrix,
    Ordered,
    Parts,
    RealSet,
    Relation,
    Scalar,
    Unordered,
    Value,
    Words,
)

_HUNDRED = Number(Fraction(100))
_MAX_UNORDERED_WORK = 4_000
# An artefact's denominator divides a power of ten of eight digits or more, so that it is hardly below this.
_MANY_PLACES = 5**8
_CLOSE = Fraction(1, 10**8)


def same(a: Value, b: Value) -> bool:
    """The two values are the same answer. Symmetric.

    Raises:
        UndecidedError: beyond the bounds.
    """
    if a == b:
        return True
    if isinstance(a, Definition) or isinstance(b, Definition):
        return _same_with_definition(a, b)
    if isinstance(a, RealSet) or isinstance(b, RealSet):
        return _same_real_sets(a, b)
    match a, b:
        case Scalar(), Scalar():
            return _same_scalars(a, b)
        case Ordered(), Ordered():
            brackets = (a.opening, a.closing) == (b.opening, b.closing)
            return brackets and len(a.items) == len(b.items) and all(map(same, a.items, b.items))
        case Unordered(), Unordered():
            return _same_unordered(a.items, b.items)
        case (Unordered(), Ordered()) | (Ordered(), Unordered()):
            return _same_solution(a, b)
        case Relation(), Relation():
            return _same_relations(a, b)
        case Matrix(), Matrix():
            shapes = [len(row) for row in a.rows] == [len(row) for row in b.rows]
            return shapes and all(
                equal(x, y) for p, q in zip(a.rows, b.rows, strict=True) for x, y in zip(p, q, strict=True)
            )
        case Parts(), Parts():
            return a.kind == b.kind and len(a.items) == len(b.items) and all(map(equal, a.items, b.items))
        case Words(), Words():
            return [word.lower() for word in a.words] == [word.lower() for word in b.words]
        case (Parts(kind="residue"), Scalar()) | (Scalar(), Parts(kind="residue")):
            residue, plain = (a, b) if isinstance(a, Parts) else (b, a)
            assert isinstance(residue, Parts)
            assert isinstance(plain, Scalar)
            return _is_reduced(residue) and equal(residue.items[0], plain.expression)
        case _:
            return False


def _is_reduced(residue: Parts) -> bool:
    """5 mod 7 may be said as 5, but 9 mod 7 is not 9."""
    value, modulus = (real_value(item) for item in residue.items)
    return value is None or modulus is None or 0 <= value < modulus


def _same_scalars(a: Scalar, b: Scalar) -> bool:
    if {a.unit, b.unit} & LETTER_UNITS and not (a.unit and b.unit) and equal(_unit_as_factor(a), _unit_as_factor(b)):
        return True
    if not _units_agree(a.unit, b.unit):
        return False
    if equal(a.expression, b.expression) or _is_float_artefact(a.expression, b.expression):
        return True
    if a.percent == b.percent:
        return False
    percentage, plain = (a, b) if a.percent else (b, a)
    return equal(Apply("/", (percentage.expression, _HUNDRED)), plain.expression)


def _units_agree(a: str, b: str) -> bool:
    """A missing unit agrees with any, a bare degree with one of temperature."""
    return not a or not b or a == b or (a in b.split() and a == "degree") or (b in a.split() and b == "degree")


def _unit_as_factor(scalar: Scalar) -> Expression:
    """The letter that was read as a unit in "2 h", as the variable that it is in "2h"."""
    return Apply("*", (scalar.expression, Symbol(scalar.unit))) if scalar.unit else scalar.expression


def _is_float_artefact(a: Expression, b: Expression) -> bool:
    """A decimal of eight places or more next to the other number, as a computer prints 0.1 + 0.2."""
    if not isinstance(a, Number) or not isinstance(b, Number):
        return False
    long_decimal = max(a.value.denominator, b.value.denominator) >= _MANY_PLACES
    return long_decimal and abs(a.value - b.value) <= _CLOSE * min(abs(a.value), abs(b.value))


def _same_unordered(a: tuple[Value, ...], b: tuple[Value, ...]) -> bool:
    """Each item of one has its own equal in the other."""
    if len(a) != len(b):
        return False
    # Every item may meet every other.
    if len(a) * sum(map(_weight, (*a, *b))) > _MAX_UNORDERED_WORK:
        raise UndecidedError
    left = list(b)
    for item in a:
        partner = next((other for other in left if same(item, other)), None)
        if partner is None:
            return False
        left.remove(partner)
    return True


def _weight(value: Value) -> int:
    """About the cost of comparing the value: rational numbers are next to nothing."""
    match value:
        case Scalar(expression=Number()):
            return 1
        case Scalar():
            return 4 * size(value.expression)
        case Ordered() | Unordered():
            return sum(map(_weight, value.items))
        case Definition():
            return _weight(value.value)
        case Relation():
            return 4 * (size(value.left) + size(value.right))
        case _:
            return 40


def _same_solution(a: Value, b: Value) -> bool:
    """(1, -1) solves for x = 1, y = -1: the unknowns in alphabetical order."""
    solution, point = (a, b) if isinstance(a, Unordered) else (b, a)
    if not isinstance(solution, Unordered) or not isinstance(point, Ordered) or point.opening != "(":
        return False
    definitions = [item for item in solution.items if isinstance(item, Definition)]
    if len(definitions) != len(solution.items) or len(definitions) != len(point.items):
        return False
    ordered = sorted(definitions, key=lambda definition: definition.name)
    return all(same(definition.value, item) for definition, item in zip(ordered, point.items, strict=True))


# Definitions and relations


def _same_with_definition(a: Value, b: Value) -> bool:
    if isinstance(a, Definition) and isinstance(b, Definition):
        if a.name == b.name or len(a.name) > 1 or len(b.name) > 1:
            return same(a.value, b.value)
    elif not isinstance(a, Relation) and not isinstance(b, Relation):
        a, b = (a.value if isinstance(a, Definition) else a), (b.value if isinstance(b, Definition) else b)
        return same(a, b)
    first, second = _as_relation(a), _as_relation(b)
    return first is not None and second is not None and _same_relations(first, second)


def _as_relation(value: Value) -> Relation | None:
    if isinstance(value, Definition) and isinstance(value.value, Scalar):
        return Relation(Symbol(value.name), "=", value.value.expression)
    if isinstance(value, RealSet) and value.variable and len(value.intervals) == 1:
        return _ray(value.intervals[0], Symbol(value.variable))
    return value if isinstance(value, Relation) else None


def _ray(interval: Interval, variable: Symbol) -> Relation | None:
    if interval.high == Symbol("∞"):
        return Relation(interval.low, "≤" if interval.low_closed else "<", variable)
    if interval.low == Apply("neg", (Symbol("∞"),)):
        return Relation(variable, "≤" if interval.high_closed else "<", interval.high)
    return None


def _same_relations(a: Relation, b: Relation) -> bool:
    """Equal up to a factor: y = 2x + 3 and 2y - 4x = 6. An inequality's factor has to be positive."""
    if a.operator != b.operator:
        return False
    sign = constant_ratio(_difference(a), _difference(b))
    return sign > 0 or (sign < 0 and a.operator in "=≠")


def _difference(relation: Relation) -> Expression:
    return Apply("+", (relation.left, Apply("neg", (relation.right,))))


# Sets of real numbers


def _same_real_sets(a: Value, b: Value) -> bool:
    if isinstance(a, Relation) or isinstance(b, Relation):
        first, second = _as_relation(a), _as_relation(b)
        return first is not None and second is not None and _same_relations(first, second)
    try:
        first, second = as_real_set(a), as_real_set(b)
    except UnreadableError:
        return False
    if first.variable and second.variable and first.variable != second.variable:
        return False
    if len(first.intervals) != len(second.intervals):
        return False
    return all(map(_same_interval, _in_order(first), _in_order(second)))


def _in_order(reals: RealSet) -> list[Interval]:
    lows = {interval: real_value(interval.low) for interval in reals.intervals}
    if None in lows.values():
        return list(reals.intervals)
    return sorted(reals.intervals, key=lambda interval: lows[interval] or 0.0)


def _same_interval(a: Interval, b: Interval) -> bool:
    closed = (a.low_closed, a.high_closed) == (b.low_closed, b.high_closed)
    return closed and equal(a.low, b.low) and equal(a.high, b.high)
