"""What an answer can be. The reader makes these from text; `compare.py` says when two are the same answer."""

from dataclasses import dataclass

from cs336_alignment.grading.expression import Expression


@dataclass(frozen=True, slots=True)
class Scalar:
    """An expression, with its unit if it has one ("" for none) and whether a percent sign stood after it."""

    expression: Expression
    unit: str = ""
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Ordered:
    """A tuple, a vector or an interval: elements in order between brackets."""

    opening: str
    items: tuple["Value", ...]
    closing: str


@dataclass(frozen=True, slots=True)
class Unordered:
    """A set, or several answers: a list in prose or commas, roots joined by "or", a ±."""

    items: tuple["Value", ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """left operator right; the operator is one of = ≠ < ≤ (the reader turns > and ≥ around)."""

    left: Expression
    operator: str
    right: Expression


@dataclass(frozen=True, slots=True)
class Definition:
    """name = value, where the name (`x`, `f(x)`, `Total`) does not occur in the value."""

    name: str
    value: "Value"


@dataclass(frozen=True, slots=True)
class Interval:
    """The numbers between two bounds, of one piece of a `RealSet`."""

    low: Expression
    low_closed: bool
    high: Expression
    high_closed: bool


@dataclass(frozen=True, slots=True)
class RealSet:
    """A union of intervals of real numbers."""

    intervals: tuple[Interval, ...]
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries."""

    rows: tuple[tuple[Expression, ...], ...]


@dataclass(frozen=True, slots=True)
class Based:
    """A numeral in a base, as digits."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Parts:
    """Numbers that belong together in order: a ratio 3:4, a quotient with remainder, a residue with its modulus."""

    kind: str
    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Words:
    """An answer in words, or a choice's letter."""

    words: tuple[str, ...]


Value = Scalar | Ordered | Unordered | Relation | Definition | RealSet | Matrix | Based | Parts | Words
