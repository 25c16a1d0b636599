"""The course's third rule: normalised answers are equal when they are element by element."""

import re

from cs336_alignment.grading.algebra import equal
from cs336_alignment.grading.bounds import UnreadableError
from cs336_alignment.grading.normal_form import drop_thousands_commas, is_integer
from cs336_alignment.grading.parser import parse
from cs336_alignment.grading.tokens import tokenize

_PLAIN_FRACTION = re.compile(r"-?[0-9]+.?/0*[1-9][0-9]*.?")
_REFUSED = re.compile(r"\||\^\{|\^\(|\^[0-9]+\^|\^[0-9][0-9]")
_LETTER = re.compile(r"[a-z]")
_MAX_LETTERS = 2
_MAX_CHARACTERS = 400


def same_elements(answer: str, gold: str) -> bool:
    """The rule, on normalised texts.

    Raises:
        UndecidedError: beyond the bounds.
    """
    answers, golds = _elements(answer), _elements(gold)
    if not answer or len(answers) != len(golds):
        return False
    if len(golds) > 1 and (answer[0], answer[-1]) != (gold[0], gold[-1]):
        return False
    return all(map(_same_element, answers, golds))


def _elements(text: str) -> list[str]:
    """What stands between the commas of one pair of brackets; a text without such brackets is its own element."""
    text = drop_thousands_commas(text)
    inside = text[1:-1]
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and not re.search(r"[()\[\]]", inside):
        return inside.split(",")
    return [text]


def _same_element(answer: str, gold: str) -> bool:
    if _PLAIN_FRACTION.fullmatch(answer) and _PLAIN_FRACTION.fullmatch(gold):
        return answer == gold
    if is_integer(answer) != is_integer(gold):
        return False
    both = f"{gold} {answer}"
    letters = set(_LETTER.findall(both.replace("sqrt", "").replace("frac", "")))
    if len(letters) > _MAX_LETTERS or _REFUSED.search(both) or len(both) > _MAX_CHARACTERS:
        return False
    try:
        return equal(parse(tokenize(gold, bare_letters=True)), parse(tokenize(answer, bare_letters=True)))
    except UnreadableError:
        return False
