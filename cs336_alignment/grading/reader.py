"""From an answer's text to what it says: a `Value`. The reading is strict: what is not wholly understood is refused.

The cleaned text is cut into tokens; then each function below tries one form (list, relation, interval, ratio,
quantity, ...) on the tokens, splitting them where no bracket is open.
"""

import re
from fractions import Fraction
from itertools import pairwise

from cs336_alignment.grading.algebra import real_value
from cs336_alignment.grading.bounds import UnreadableError
from cs336_alignment.grading.expression import (
    Apply,
    Expression,
    Number,
    Symbol,
    choose_sign,
    mentions,
    variables,
)
from cs336_alignment.grading.number_words import SCALES, read_number_words
from cs336_alignment.grading.parser import parse
from cs336_alignment.grading.quantities import read_unit, unit_start
from cs336_alignment.grading.tokens import Token, tokenize
from cs336_alignment.grading.units import is_unit
from cs336_alignment.grading.values import (
    Based,
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

_INFINITY = Symbol("∞")
_MINUS_INFINITY = Apply("neg", (_INFINITY,))
_REALS = RealSet((Interval(_MINUS_INFINITY, False, _INFINITY, False),))
_OPENING, _CLOSING = ("(", "[", "{", "\\{", "⟨"), (")", "]", "}", "\\}", "⟩")
_RELATIONS = ("=", "≠", "<", ">", "≤", "≥", "≈", "→")
_REVERSED = {">": "<", "≥": "≤"}
_LEADING = ("=", "≈", "→", ":", ",", ";")
_TRAILING = (",", ";", ":", "=", "→")
_SEPARATORS = (",", ";", "or", "and")

_REMAINDER = re.compile(r"(?<=\d) ?[Rr] ?(?=\d+$)")


def _spelled_unit_ratio(match: re.Match[str]) -> str:
    """Of units a \\frac is a slash: "2 \\frac{m}{s}" is 2 m/s."""
    upper, lower = match.groups()
    return f"{upper}/{lower}" if is_unit(upper) and is_unit(lower) else match[0]


# Phrases that are mathematics.
_PHRASES = (
    (re.compile(r"(?:the set of )?\b(?:all )?real numbers\b", re.IGNORECASE), "ℝ"),
    (re.compile(r"(?<=ℝ) ?(?:except|but not|other than)\b(?: for)?"), r" \\setminus "),
    (re.compile(r"\b(?:the )?empty\s+set\b", re.IGNORECASE), "∅"),
    (re.compile(r"(?:there (?:is|are) )?\bno (?:real |such )?solutions?\b(?: exists?)?", re.IGNORECASE), "∅"),
    (re.compile(r"(?<=\d) and (?:a|one) half\b"), " 1/2"),
    (re.compile(r"(?<=[\d)]) squared\b"), "^2"),
    (re.compile(r"(?<=[\d)]) cubed\b"), "^3"),
    (re.compile(r"(?<=\d) an? (?=[a-z]{3,}$)"), " per "),
    (re.compile(r"\bper cent\b", re.IGNORECASE), "percent"),
    (re.compile(r"(?<=[\d}]) out of (?=\d)"), "/"),
    (re.compile(r", ?(?=(?:and|or)\b)"), " "),
    (re.compile(r"\b(?:negative|minus) (?=[\d\\]|infinity)", re.IGNORECASE), "-"),
    (re.compile(r"\\frac ?\{ ?(\w+) ?\} ?\{ ?(\w+) ?\}$"), _spelled_unit_ratio),
)
_SUBSCRIPTED_NUMERAL = re.compile(r"([0-9A-Fa-f]+)\s*_\s*\{?\s*(\d+|[a-z]+)\s*\}?")
_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASE_WORDS |= {"eleven": 11, "twelve": 12, "sixteen": 16}


def read(text: str) -> Value:
    """Read a text that `clean` has been over.

    Raises:
        UnreadableError: it is not wholly understood.
        UndecidedError: it is beyond the bounds.
    """
    if numeral := _SUBSCRIPTED_NUMERAL.fullmatch(text):
        return _read_based(*numeral.groups())
    text = _REMAINDER.sub(" remainder ", text)
    if " " in text:
        for phrase, mathematics in _PHRASES:
            text = phrase.sub(mathematics, text)
    return _read(tokenize(text if text.endswith("..") else text.rstrip(".")))


def _read_based(digits: str, base: str) -> Value:
    number = int(base) if base.isdecimal() and len(base) < 3 else _BASE_WORDS.get(base, 0)
    if len(digits) == 1 and digits.isalpha():
        return Scalar(Symbol(f"{digits}_{base}"))
    return Based(digits.upper().lstrip("0"), number)


def _read(tokens: list[Token]) -> Value:
    while tokens and tokens[0].is_mark(*_LEADING):
        tokens = tokens[1:]
    while tokens and tokens[-1].is_mark(*_TRAILING):
        tokens = tokens[:-1]
    if not tokens:
        raise UnreadableError("nothing")
    if all(token.kind == "word" or token.text in ("and", "a", "-") for token in tokens):
        words = [token.text for token in tokens if token.text != "-"]
        number = read_number_words(words)
        if number and number[1] == len(words):
            return Scalar(Number(number[0]))
    parts = _split(tokens, _SEPARATORS)
    if len(parts) > 1:
        alternatives = any(token.is_mark("or") for token in _outside(tokens))
        return _read_steps(parts) or _read_list([_read(part) for part in parts], alternatives)
    return _read_one(tokens)


def _read_one(tokens: list[Token]) -> Value:
    """An answer without separators."""
    if tokens[0].kind == "command" and tokens[0].text.startswith("begin"):
        return _read_matrix(tokens)
    if tokens[-1].kind == "command" and tokens[-1].text.startswith("end"):
        return _read_multiple(tokens)
    if len(pieces := _split(tokens, ("∪",))) > 1:
        return RealSet(tuple(interval for piece in pieces for interval in as_real_set(_read(piece)).intervals))
    pieces = _split(tokens, ("∖", "-") if tokens[0].text == "ℝ" else ("∖",))
    if len(pieces) > 1:
        return _read_difference(pieces)
    if len(pieces := _split(tokens, ("∈",))) == 2 and defined_name(pieces[0]):
        return _read(pieces[1])
    if len(pieces := _split(tokens, _RELATIONS)) > 1:
        return _read_relation(pieces, [token.text for token in _outside(tokens) if token.is_mark(*_RELATIONS)])
    if (bracketed := _read_bracketed(tokens)) is not None:
        return bracketed
    if len(pieces := _split(tokens, (":",))) > 1:
        return _read_colon(pieces)
    return _read_quantity(tokens)


# Lists


def _read_steps(parts: list[list[Token]]) -> Value | None:
    """A calculation in steps ("16 - 7 = 9; 9 * 2 = 18", "2x = 36, x = 18") says its last; None where it is not one."""
    if not all(any(token.is_mark("=") for token in part) for part in parts):
        return None
    values = [_read(part) for part in parts]
    steps = all(isinstance(value, Scalar | Relation) for value in values[:-1])
    return values[-1] if steps and isinstance(values[-1], Scalar | Definition) else None


def _read_list(items: list[Value], alternatives: bool) -> Value:
    """Several answers: roots of one unknown, a solution for several, alternatives of an inequality, or just a list."""
    wordy = [isinstance(item, Words) or (isinstance(item, Definition) and " " in item.name) for item in items]
    if any(wordy) and not all(isinstance(item, Words) for item in items):
        raise UnreadableError("a sentence")
    points = _removed_points(items)
    if points and not alternatives:
        return RealSet(_all_but(*points), items[0].variable if isinstance(items[0], RealSet) else "")
    if all(isinstance(item, RealSet) for item in items):
        return _read_conditions([item for item in items if isinstance(item, RealSet)], alternatives)
    if isinstance(items[0], Definition):
        names = {item.name for item in items if isinstance(item, Definition)}
        if len(names) == 1:
            items = [item.value if isinstance(item, Definition) else item for item in items]
    flat: list[Value] = []
    for item in items:
        flat.extend(item.items if isinstance(item, Unordered) else (item,))
    return Unordered(tuple(flat))


def _removed_points(items: list[Value]) -> list[Expression]:
    r"""The points of x \ne 1, x \ne 2 or x \ne 1, 2; none where the items say something else."""
    points: list[Expression] = []
    for item in items:
        match item:
            case RealSet((Interval(_, _, low, False), Interval(high, False, _, _))) if low == high:
                points.append(low)
            case Scalar() if points:
                points.append(item.expression)
            case _:
                return []
    return points


def _read_conditions(conditions: list[RealSet], alternatives: bool) -> RealSet:
    """Several conditions: x > 2 and x < 5 bound x on both sides; x < 2, x > 5 are the two pieces of its range."""
    variable = conditions[0].variable if len({condition.variable for condition in conditions}) == 1 else ""
    intervals = tuple(interval for condition in conditions for interval in condition.intervals)
    if len(intervals) == 2 and variable and not alternatives:
        low, high = sorted(intervals, key=lambda interval: interval.low == _MINUS_INFINITY)
        bounds = real_value(low.low), real_value(high.high)
        empty = bounds[0] is not None and bounds[1] is not None and bounds[0] >= bounds[1]
        if low.high == _INFINITY and high.low == _MINUS_INFINITY and low.low != _MINUS_INFINITY and not empty:
            return RealSet((Interval(low.low, low.low_closed, high.high, high.high_closed),), variable)
    return RealSet(intervals, variable)


# Brackets


def _read_bracketed(tokens: list[Token]) -> Value | None:
    """The whole answer stands in one pair of brackets; None where it does not."""
    opening, closing = tokens[0].text, tokens[-1].text
    if len(tokens) < 2 or not tokens[0].is_mark("(", "[", "]", "{", "\\{", "⟨"):
        return None
    inside = tokens[1:-1]
    if opening == "]" or (opening == "[" and closing == "["):
        return _read_french_interval(opening, inside, closing)
    if not tokens[-1].is_mark(")", "]", "}", "\\}", "⟩") or len(_outside(tokens)) != 2:
        return None
    if opening == "\\{":
        return _read_set(inside)
    items = [_read(item) for item in _split(inside, (",", ";"))]
    if opening == "{" and len(items) > 1:
        return Unordered(tuple(items))
    if len(items) == 1 and (opening in "({" or isinstance(items[0], Matrix)):
        return items[0]
    rows = [item for item in items if isinstance(item, Ordered) and item.opening == opening == "["]
    if len(rows) == len(items):
        return Matrix(tuple(tuple(_expression_of(entry) for entry in row.items) for row in rows))
    return Ordered(opening, tuple(items), closing)


def _read_french_interval(opening: str, inside: list[Token], closing: str) -> Value:
    """Outward brackets are open ends: [0, 1[ is [0, 1)."""
    items = _split(inside, (",", ";"))
    if len(items) != 2 or closing not in "[]":
        raise UnreadableError("brackets")
    return Ordered("(" if opening == "]" else "[", (_read(items[0]), _read(items[1])), ")" if closing == "[" else "]")


def _read_set(inside: list[Token]) -> Value:
    """{1, 2}, {}, or {x | a condition on x}."""
    if not inside:
        return Scalar(Symbol("∅"))
    builder = _split(inside, ("|", ":"))
    if len(builder) == 2 and (defined_name(builder[0]) or any(token.is_mark("∈") for token in builder[0])):
        return _read(builder[1])
    return Unordered(tuple(_read(item) for item in _split(inside, (",", ";"))))


def _read_matrix(tokens: list[Token]) -> Value:
    if tokens[0].text not in ("begin pmatrix", "begin bmatrix", "begin matrix", "begin array", "begin smallmatrix"):
        raise UnreadableError(tokens[0].text)
    if tokens[-1].text != tokens[0].text.replace("begin", "end"):
        raise UnreadableError("matrix without an end")
    rows = [row for row in _split(tokens[1:-1], ("\\\\",)) if row]
    return Matrix(tuple(tuple(parse(entry) for entry in _split(row, ("&",))) for row in rows))


def _read_multiple(tokens: list[Token]) -> Value:
    """A number times a matrix."""
    start = next((position for position, token in enumerate(tokens) if token.text.startswith("begin")), len(tokens))
    if start == len(tokens):
        raise UnreadableError("the end of no matrix")
    factor = tokens[: start - 1] if start and tokens[start - 1].is_mark("*") else tokens[:start]
    matrix = _read_matrix(tokens[start:])
    assert isinstance(matrix, Matrix)
    if factor and factor[-1].is_mark("-"):
        factor = [*factor, Token("number", "1", Fraction(1))]
    scale = parse(factor)
    return Matrix(tuple(tuple(Apply("*", (scale, entry)) for entry in row) for row in matrix.rows))


# Relations and sets of reals


def _read_relation(sides: list[list[Token]], operators: list[str]) -> Value:
    operators = ["=" if operator in ("≈", "→") else operator for operator in operators]
    if all(operator == "=" for operator in operators):
        return _read_equation(sides)
    if operators == ["≥"] and not sides[0]:
        raise UnreadableError("at least, which may be meant as the number")
    # A side left out ("< 5") is an unnamed variable.
    left, right = (parse(side) if side else Symbol("") for side in (sides[0], sides[-1]))
    if len(operators) == 2:
        return _read_between(left, operators, sides[1], right)
    if len(operators) > 2:
        raise UnreadableError("a chain of inequalities")
    operator = operators[0]
    if operator in _REVERSED:
        left, operator, right = right, _REVERSED[operator], left
    unknown = next((side for side in (left, right) if isinstance(side, Symbol) and variables(side)), None)
    bound = right if unknown is left else left
    if unknown is None or variables(bound):
        return Relation(left, operator, right)
    name = unknown.name
    if operator == "≠":
        return RealSet(_all_but(bound), name)
    closed = operator == "≤"
    if unknown is left:
        return RealSet((Interval(_MINUS_INFINITY, False, bound, closed),), name)
    return RealSet((Interval(bound, closed, _INFINITY, False),), name)


def _read_between(low: Expression, operators: list[str], middle: list[Token], high: Expression) -> Value:
    """a < x < b, in either direction."""
    variable = parse(middle)
    if not isinstance(variable, Symbol):
        raise UnreadableError("a bounded expression")
    first, second = operators
    if first in _REVERSED and second in _REVERSED:
        low, high, first, second = high, low, _REVERSED[second], _REVERSED[first]
    if first not in ("<", "≤") or second not in ("<", "≤"):
        raise UnreadableError("a mixed chain")
    return RealSet((Interval(low, first == "≤", high, second == "≤" and high != _INFINITY),), variable.name)


def _all_but(*points: Expression) -> tuple[Interval, ...]:
    values = {point: real_value(point) for point in points}
    in_order = points if None in values.values() else sorted(points, key=lambda point: values[point] or 0.0)
    bounds = [_MINUS_INFINITY, *in_order, _INFINITY]
    return tuple(Interval(low, False, high, False) for low, high in pairwise(bounds))


def _read_difference(pieces: list[list[Token]]) -> Value:
    """All reals but some points, or but one interval: ℝ \\ {2}, ℝ \\ [-1, 1]."""
    removed = _read(pieces[1])
    removed = removed.value if isinstance(removed, Definition) else removed
    if isinstance(removed, Ordered):
        (gap,) = as_real_set(removed).intervals
        below = Interval(_MINUS_INFINITY, False, gap.low, not gap.low_closed)
        return RealSet((below, Interval(gap.high, not gap.high_closed, _INFINITY, False)))
    points = removed.items if isinstance(removed, Unordered) else (removed,)
    if len(pieces) != 2 or as_real_set(_read(pieces[0])) != _REALS:
        raise UnreadableError("a difference of sets")
    return RealSet(_all_but(*(_expression_of(point) for point in points)))


def _expression_of(value: Value) -> Expression:
    if not isinstance(value, Scalar):
        raise UnreadableError("not a number")
    return value.expression


def as_real_set(value: Value) -> RealSet:
    """An interval in brackets, or ℝ, as a set of reals.

    Raises:
        UnreadableError: the value is no such set.
    """
    if isinstance(value, RealSet):
        return value
    if isinstance(value, Ordered) and len(value.items) == 2 and value.opening in "([" and value.closing in ")]":
        low, high = (_expression_of(item) for item in value.items)
        return RealSet((Interval(low, value.opening == "[", high, value.closing == "]"),))
    raise UnreadableError("not an interval")


def _read_equation(sides: list[list[Token]]) -> Value:
    """A chain of equal things says its last; a name before it only tells what is meant."""
    sides = [side for side in sides if side]
    if len(sides) == 1:
        return _read(sides[0])
    first, last = sides[0], sides[-1]
    if name := defined_name(first):
        value = _read(last)
        if not (isinstance(value, Scalar) and name in variables(value.expression)):
            return Definition(name, value)
    if (name := defined_name(last)) and not defined_name(first):
        value = _read(first)
        if isinstance(value, Scalar) and not variables(value.expression):
            return Definition(name, value)
    value = _read(last)
    earlier = [parse([token for token in side if not token.is_mark("¤")]) for side in sides[:-1]]
    if isinstance(value, Scalar):
        if not variables(value.expression) and not any(variables(expression) for expression in earlier):
            return value
        if len(earlier) == 1 and not value.unit:
            return Relation(earlier[0], "=", value.expression)
    raise UnreadableError("a chain of equations")


def defined_name(tokens: list[Token]) -> str:
    """The name that the left side of a definition gives: x, f(x), f^{-1}(x), (x, y), Total; "" where it is none."""
    if not tokens:
        return ""
    texts = [token.text for token in tokens]
    if all(token.kind in ("word", "name") or token.is_mark("'", "¤", "°") for token in tokens):
        simple = len(tokens) == 1 or any(token.kind == "word" for token in tokens) or texts[1] == "'"
        return " ".join(texts) if simple else ""
    if all(token.kind in ("word", "name") or token.is_mark("_", "{", "}") or texts[0] != "(" for token in tokens):
        rest = "".join(texts[1:])
        if tokens[0].kind in ("name", "word") and re.fullmatch(
            r"_\{?\w+\}?|(?:\^\{?-1\}?)?\([a-zA-Z]+(?:,[a-zA-Z]+)*\)", rest
        ):
            return texts[0] + rest.replace("{", "").replace("}", "")
    is_tuple = texts[0] == "(" and texts[-1] == ")" and len(tokens) > 4
    return "".join(texts) if is_tuple and all(t.kind == "name" or t.is_mark(",") for t in tokens[1:-1]) else ""


# Ratios and quantities


def _read_colon(pieces: list[list[Token]]) -> Value:
    """A ratio 3:4, or a label before an answer ("Price: $9")."""
    if all(token.kind == "word" for token in pieces[0]):
        return Definition(" ".join(token.text for token in pieces[0]), _read([t for p in pieces[1:] for t in p]))
    return Parts("ratio", tuple(parse(piece) for piece in pieces))


_MULTIPLIERS = {**SCALES, "hundred": 100, "dozen": 12}
_JOINING_WORDS = {"to": "ratio", "remainder": "remainder", "mod": "residue"}


def _read_quantity(tokens: list[Token]) -> Value:
    """An expression with or without a unit; numbers joined by a word; or words."""
    currency = any(token.is_mark("¤") for token in tokens)
    tokens = [token for token in tokens if not token.is_mark("¤")]
    if tokens and all(token.kind == "word" or token.is_mark("-") for token in tokens):
        return _read_words([token.text for token in tokens if token.kind == "word"])
    for position, token in enumerate(tokens):
        if token.kind == "word" and token.text in _JOINING_WORDS and 0 < position < len(tokens) - 1:
            return _read_joined(_JOINING_WORDS[token.text], tokens[:position], tokens[position + 1 :])
    start = unit_start(tokens)
    head, tail = tokens[:start], tokens[start:]
    if not head:
        raise UnreadableError("words before mathematics")
    expression = parse(head)
    if variables(expression) and not all(is_unit(token.text) for token in tail if token.kind == "word"):
        raise UnreadableError("a sentence that begins like a product of letters")
    percent = bool(tail) and tail[0].is_mark("%")
    tail = tail[1:] if percent else tail
    if tail and tail[0].text in _MULTIPLIERS:
        expression = Apply("*", (expression, Number(Fraction(_MULTIPLIERS[tail[0].text]))))
        tail = tail[1:]
    unit = read_unit(tail) or ("dollar" if currency else "")
    if mentions(expression, "±") or mentions(expression, "∓"):
        return Unordered(tuple(Scalar(choose_sign(expression, sign), unit, percent) for sign in (1, -1)))
    return _REALS if expression == Symbol("ℝ") else Scalar(expression, unit, percent)


def _read_joined(kind: str, left: list[Token], right: list[Token]) -> Value:
    if kind == "residue" and left[-1].is_mark("(") and right[-1].is_mark(")"):
        left, right = left[:-1], right[:-1]
    return Parts(kind, (parse(left), parse(right)))


def _read_words(words: list[str]) -> Value:
    number = read_number_words(words)
    if number is None:
        return Words(tuple(words))
    value, end = number
    return Scalar(Number(value), read_unit([Token("word", word) for word in words[end:]]))


# Splitting


def _outside(tokens: list[Token]) -> list[Token]:
    """The tokens outside every bracket, the brackets themselves included."""
    outside, depth = [], 0
    for token in tokens:
        closes = token.kind == "mark" and token.text in _CLOSING
        depth -= closes
        if depth == 0:
            outside.append(token)
        depth += token.kind == "mark" and token.text in _OPENING
    return outside


def _split(tokens: list[Token], marks: tuple[str, ...]) -> list[list[Token]]:
    """Split at these marks where no bracket (or matrix) is open."""
    pieces: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        if token.kind == "mark":
            if depth == 0 and token.text in marks:
                pieces.append([])
                continue
            depth += (token.text in _OPENING) - (token.text in _CLOSING)
        elif token.kind == "command":
            depth += token.text.startswith("begin") - token.text.startswith("end")
        pieces[-1].append(token)
    return pieces
