"""Where in an answer's tokens its unit begins, and which unit it is."""

from cs336_alignment.grading.bounds import UnreadableError
from cs336_alignment.grading.tokens import Token
from cs336_alignment.grading.units import FILLERS, LETTER_UNITS, canonical_unit

_UNIT_MARKS = ("/", "^", "{", "}", "-", "°", "%", "*")
# Words that make a sentence of what follows a number.
_NO_UNITS = frozenset(
    "is are was were not wrong incorrect false but because than if or has have should equals at or cannot".split()
)
_POWER_WORDS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}


def unit_start(tokens: list[Token]) -> int:
    """The position of the first token of the unit: a word, °, %, or a letter like m that only numbers precede.

    The ° in sin 30° belongs to the argument.
    """
    depth = 0
    only_numbers, in_function = True, False
    for position, token in enumerate(tokens):
        if token.kind == "mark":
            depth += (token.text in ("(", "{", "[")) - (token.text in (")", "}", "]"))
        if depth:
            continue
        in_function = in_function or token.kind == "function"
        if token.kind == "word" or token.is_mark("%") or (token.is_mark("°") and not in_function):
            return position
        if token.kind == "name":
            is_letter_unit = token.text in LETTER_UNITS and token.spaced and only_numbers and position > 0
            if is_letter_unit and all(_may_be_unit(later) for later in tokens[position:]):
                return position
            only_numbers = False
    return len(tokens)


def _may_be_unit(token: Token) -> bool:
    return (
        token.kind == "word"
        or (token.kind == "name" and token.text in LETTER_UNITS)
        or token.is_mark(*_UNIT_MARKS)
        or token.text in ("1", "2", "3")
    )


def read_unit(tokens: list[Token]) -> str:
    """One spelling for a unit phrase: "miles per hour" and "mi/h" are both "h^-1 mi"; unknown words count as units.

    Raises:
        UnreadableError: there is more than a unit, such as another number or a verb.
    """
    powers: dict[str, int] = {}
    sign, pending_power, name = 1, 1, ""
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token.is_mark("/") or token.text == "per":
            sign = -1
        elif token.is_mark("^"):
            exponent, position = _read_exponent(tokens, position)
            if name:
                powers[name] = powers[name] * exponent
        elif token.text in _POWER_WORDS:
            pending_power = _POWER_WORDS[token.text]
        elif token.text in FILLERS or token.is_mark("*"):
            continue
        elif token.text in _NO_UNITS:
            raise UnreadableError(token.text)
        elif token.kind in ("word", "name") or token.is_mark("°"):
            name = canonical_unit("degree" if token.text == "°" else token.text)
            powers[name] = sign * pending_power
            sign, pending_power = 1, 1
        else:
            raise UnreadableError(token.text)
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items()))


def _read_exponent(tokens: list[Token], position: int) -> tuple[int, int]:
    """The whole number that follows a ^, and the position after it."""
    texts = [token.text for token in tokens[position : position + 4]]
    match texts:
        case ["{", "-", digits, "}"] if digits.isdecimal():
            return -int(digits), position + 4
        case ["{", digits, "}", *_] if digits.isdecimal():
            return int(digits), position + 3
        case ["-", digits, *_] if digits.isdecimal():
            return -int(digits), position + 2
        case [digits, *_] if digits.isdecimal():
            return int(digits), position + 1
        case _:
            raise UnreadableError("an exponent of a unit")
