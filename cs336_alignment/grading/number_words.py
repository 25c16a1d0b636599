"""Numbers in English words: "nine thousand two hundred", "twenty-four", "two and a half", "three fifths"."""

from fractions import Fraction
from itertools import takewhile

_ONES = {
    word: value
    for value, word in enumerate(
        """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
        seventeen eighteen nineteen""".split()
    )
}
_TENS = {
    word: 10 * value for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)
}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10,
}  # fmt: skip
_PARTS |= {part + "s": value for part, value in _PARTS.items()} | {"halves": 2}
_SIGNS = frozenset({"negative", "minus"})


def read_number_words(words: list[str]) -> tuple[Fraction, int] | None:
    """The number that the words begin with and how many words it took; None where they begin with none.

    Hyphens are expected to be split already.
    """
    if part := _read_bare_part(words):
        return part
    negative = bool(words) and words[0] in _SIGNS
    start = int(negative)
    whole = _read_whole(words, start)
    if whole is None:
        return None
    value, end = whole
    fraction = _read_fraction(words, end, value)
    if fraction:
        value, end = fraction
    return (-value if negative else value), end


def _read_bare_part(words: list[str]) -> tuple[Fraction, int] | None:
    """A fraction without a numeral: "half", "half an hour", "half a million", "a quarter"."""
    match words:
        case ["half", "a" | "of", scale, *_] if scale in SCALES:
            return Fraction(SCALES[scale], 2), 3
        case ["half", "a" | "an", *_]:
            return Fraction(1, 2), 2
        case ["half", *_]:
            return Fraction(1, 2), 1
        case ["a", part, *_] if part in _PARTS:
            return Fraction(1, _PARTS[part]), 2
        case _:
            return None


def _read_whole(words: list[str], start: int) -> tuple[Fraction, int] | None:
    """Cardinals: a running group below a thousand, added up at each scale word."""
    total, group, end, last = 0, 0, start, ""
    while end < len(words):
        word = words[end]
        if word in _ONES and last in ("", "tens", "hundred", "scale") and (last != "tens" or 0 < _ONES[word] < 10):
            group, last = group + _ONES[word], "ones"
        elif word in _TENS and last in ("", "hundred", "scale"):
            group, last = group + _TENS[word], "tens"
        elif word == "hundred" and last in ("", "ones", "tens") and group < 100:
            group, last = (group or 1) * 100, "hundred"
        elif word == "dozen" and last in ("", "ones", "tens"):
            return Fraction(12 * (group or 1)), end + 1
        elif word in SCALES and last:
            total, group, last = total + (group or 1) * SCALES[word], 0, "scale"
        elif word == "a" and not last and end + 1 < len(words) and words[end + 1] in ("hundred", "dozen", *SCALES):
            group, last = 1, "ones"
        elif word == "and" and last in ("hundred", "scale") and end + 1 < len(words) and _is_small(words[end + 1]):
            pass
        else:
            break
        end += 1
    return (Fraction(total + group), end) if last else None


def _is_small(word: str) -> bool:
    return word in _ONES or word in _TENS


def _read_fraction(words: list[str], end: int, value: Fraction) -> tuple[Fraction, int] | None:
    """What may follow a whole number: "(three) fifths", "(two) and a half (million)", "(six) point five"."""
    rest = words[end : end + 4]
    match rest:
        case [part, *_] if part in _PARTS:
            return value / _PARTS[part], end + 1
        case ["and", "a" | "one", part, scale] if part in _PARTS and scale in SCALES:
            return (value + Fraction(1, _PARTS[part])) * SCALES[scale], end + 4
        case ["and", "a", part, *_] if part in _PARTS:
            return value + Fraction(1, _PARTS[part]), end + 3
        case ["and", upper, part, *_] if part in _PARTS and upper in _ONES:
            return value + Fraction(_ONES[upper], _PARTS[part]), end + 3
        case ["point", *_]:
            return _read_decimals(words, end + 1, value)
        case _:
            return None


def _read_decimals(words: list[str], start: int, value: Fraction) -> tuple[Fraction, int] | None:
    digits = [_ONES[word] for word in takewhile(lambda word: _ONES.get(word, 10) < 10, words[start:])]
    for place, digit in enumerate(digits, 1):
        value += Fraction(digit, 10**place)
    return (value, start + len(digits)) if digits else None
