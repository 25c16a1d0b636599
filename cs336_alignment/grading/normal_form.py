"""The course's second rule: two answers are equal when their normalised forms are."""

import re

from cs336_alignment.grading.plain_text import to_plain_text

_ENCLOSING_TEXT = re.compile(r"\\text\{(.+)\}", re.DOTALL)
_SCALES = (("million", "*10^6"), ("billion", "*10^9"), ("trillion", "*10^12"))
_UNITS = re.compile(
    r"(?:degree|centimeter|cm|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard)"
    r"(?:es)?s? *(?:\^[0-9]+)?"
)
_DEGREES = re.compile(r"\^ *\\circ")
_THIN_COMMA = re.compile(r",\\! *")
_SPACED_MINUS = re.compile(r"- +")
_MIXED_NUMBER = re.compile(r"([0-9]) +(?=[0-9])")
_FLOAT = re.compile(r"\s*[+-]?(?:\d+(?:_\d+)*\.?(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:[eE][+-]?\d{1,4})?\s*")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d\d\d(?!\d))")
_NEAR_INTEGER = 1e-7
# Beyond this many characters no float is attempted.
_LONGEST_FLOAT = 400


def normalise(answer: str) -> str:
    """The form that the rule compares. Linear in the answer's length."""
    if enclosed := _ENCLOSING_TEXT.fullmatch(answer):
        answer = enclosed[1]
    answer = answer.replace("\\%", "%").replace("\\$", "$").replace("$", "").replace("%", "")
    answer = answer.replace(" or ", " , ").replace(" and ", " , ")
    for word, power in _SCALES:
        answer = answer.replace(word, power)
    answer = _DEGREES.sub("", _UNITS.sub("", answer))
    if answer.startswith("{") and answer.endswith("}"):
        answer = answer[1:-1]
    answer = _as_integer(_THIN_COMMA.sub("", answer))
    if "\\" in answer:
        answer = to_plain_text(answer)
    answer = _MIXED_NUMBER.sub(r"\1+", _SPACED_MINUS.sub("-", answer))
    answer = answer.replace(" ", "").replace("{", "").replace("}", "").lower()
    without_commas = drop_thousands_commas(answer)
    return _as_integer(without_commas) if is_integer(without_commas) else answer


def drop_thousands_commas(text: str) -> str:
    """`1,234,567` without its commas; other commas stay."""
    return _THOUSANDS_COMMA.sub("", text)


def is_integer(text: str) -> bool:
    """The text is a number (thousands commas allowed) next to an integer."""
    number = _read_float(drop_thousands_commas(text))
    return number is not None and abs(number - round(number)) <= _NEAR_INTEGER


def _as_integer(text: str) -> str:
    """A number next to an integer becomes that integer, exactly where it is written as one."""
    number = _read_float(text)
    if number is None or abs(number - round(number)) > _NEAR_INTEGER:
        return text
    return str(int(text.strip())) if text.strip().lstrip("+-").isdecimal() else str(round(number))


def _read_float(text: str) -> float | None:
    if len(text) > _LONGEST_FLOAT or not _FLOAT.fullmatch(text):
        return None
    number = float(text.strip())
    return number if abs(number) != float("inf") else None
