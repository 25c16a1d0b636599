"""The verdict by meaning: read both texts, compare what they say."""

import re

from cs336_alignment.grading.bounds import MAX_READ_CHARACTERS, UndecidedError, UnreadableError
from cs336_alignment.grading.cleaning import clean
from cs336_alignment.grading.compare import same
from cs336_alignment.grading.expression import variables
from cs336_alignment.grading.prose import final_number
from cs336_alignment.grading.reader import read
from cs336_alignment.grading.values import Scalar, Value, Words
from cs336_alignment.grading.verdict import Verdict

# A choice's letter, or several: A, (B), "Option C", "A) and C)".
_CHOICE = re.compile(r"(?:(?:option|choice|answer):? )?\(?([A-J]|[IVX]{1,4})\)?[.:)]?", re.IGNORECASE)
_LONGEST_CHOICE = 80
_LIST_SEPARATOR = re.compile(r",? and |, ?| ")
_PREAMBLE_END = re.compile(r"\b(?:is|are|equals|be|was|were)\b|[:=]")
_NO_VALUE = re.compile(r"\bdoes(?: not|n t) exist\b")
_ARTICLE = re.compile(r"(?:an?|the|on|in|at) ")
# A number with spaces in it, or several: it cannot be told, and the course's verdict stands.
_SPLIT_NUMBER = re.compile(r"\d{1,3}(?:, ?\d{3})+|\d+(?: \d+)+")
_THOUSAND_LETTER = re.compile(r"(?<=\d) ?[kK](?![a-zA-Z])")
_MILLION_LETTER = re.compile(r"(?<=\d)M(?![a-zA-Z])")
_AND_FRACTION = re.compile(r"(?<=\d) and (?=\d+/\d+(?![\w./]))")
# A choice's letter before the text of the choice: "(B) 12", "B. twelve"; unless another letter or a denial follows.
_CHOICE_WITH_TEXT = re.compile(r"(?:\(([A-J])\)|([A-J])[).:])(?! ?\()(?!.*\b(?:[A-J]|or|not|wrong)\b).+", re.DOTALL)
_MAX_PREAMBLES = 6


def judge_by_meaning(answer: str, gold: str) -> Verdict | None:
    """The verdict, or None where the answer or the gold answer says nothing that can be compared."""
    if max(len(answer), len(gold)) > MAX_READ_CHARACTERS:
        return Verdict(False, "too long to read", undecided=True)
    answer, gold = clean(answer), clean(gold)
    try:
        choice = _judge_choices(answer, gold)
        if choice is not None:
            return choice
        gold_value = _read_or_none(gold)
        if gold_value is None or isinstance(gold_value, Words):
            return _judge_words(answer, gold)
        return _judge_value(answer, gold_value)
    except UnreadableError:
        return None
    except (UndecidedError, RecursionError):  # the latter where the caller's own stack is deep
        return Verdict(False, "beyond bounds", undecided=True)


def _read_or_none(text: str) -> Value | None:
    try:
        return read(text)
    except UnreadableError:
        return None


def _judge_value(answer: str, gold: Value) -> Verdict | None:
    is_number = isinstance(gold, Scalar) and not variables(gold.expression)
    if is_number:
        answer = _MILLION_LETTER.sub(" million", _THOUSAND_LETTER.sub(" thousand", answer))
        answer = _AND_FRACTION.sub(" ", answer)
        if _SPLIT_NUMBER.fullmatch(answer) and len(set(answer.split())) > 1:
            return None
    value = _read_or_none(answer)
    if value is not None and not isinstance(value, Words):
        return Verdict(same(value, gold), "same value")
    if is_number and "\\" not in answer.replace("\\$", "").replace("\\%", ""):
        return _judge_prose(answer, gold)
    for rest in _after_preambles(answer):
        value = _read_or_none(rest)
        if value is not None and not isinstance(value, Words):
            return Verdict(same(value, gold), "same value after a preamble")
    return Verdict(False, "a variable is missing") if _misses_variable(answer, gold) else None


def _misses_variable(answer: str, gold: Value) -> bool:
    """An answer that cannot be read is wrong all the same where a letter of the gold answer is nowhere in it."""
    names = variables(gold.expression) if isinstance(gold, Scalar) else set()
    return any(len(name) == 1 and name not in answer for name in names)


def _judge_prose(answer: str, gold: Value) -> Verdict | None:
    number = final_number(answer)
    if number is None:
        return Verdict(False, "prose without a final number")
    return Verdict(same(read(number), gold), "final number of prose")


def _after_preambles(text: str) -> list[str]:
    """What follows each of the last few verbs, colons and equals signs, the longest first: "The domain is (2, 5)"."""
    ends = [match.end() for match in _PREAMBLE_END.finditer(text)]
    return [text[end:].strip() for end in ends[-_MAX_PREAMBLES:]]


def _after_preamble(text: str) -> str:
    """What follows the last verb, colon or equals sign: the whole text where there is none."""
    rests = _after_preambles(text)
    return rests[-1] if rests else text.strip()


def _judge_choices(answer: str, gold: str) -> Verdict | None:
    """Compare choices; None where there are none. One of the two has to be in capitals: a and b alone are variables."""
    chosen = _choices(gold)
    answered = _choices(answer) or _choices(_after_preamble(answer)) or (_letter_before_text(answer) if chosen else "")
    if not chosen or not answered or not (chosen.isupper() or answered.isupper()):
        return None
    return Verdict(chosen.upper() == answered.upper(), "same choice")


def _choices(text: str) -> str:
    """The letters of a choice, or of several; "" where the text is something else."""
    text = text.strip(" .")
    if len(text) > _LONGEST_CHOICE:
        return ""
    if single := _CHOICE.fullmatch(text):
        return single[1]
    matches = [_CHOICE.fullmatch(part) for part in _LIST_SEPARATOR.split(text)]
    return "|".join(sorted(match[1] for match in matches if match)) if all(matches) else ""


def _letter_before_text(text: str) -> str:
    match = _CHOICE_WITH_TEXT.fullmatch(text)
    return (match[1] or match[2]) if match else ""


def _judge_words(answer: str, gold: str) -> Verdict:
    """Two texts say the same where they do word for word, less a preamble and an article."""
    said = {_plain_words(answer), _plain_words(_after_preamble(answer))}
    return Verdict(_plain_words(gold) in said, "same words")


def _plain_words(text: str) -> str:
    words = " ".join(re.findall(r"[^\W_]+|[^\s\w.,!\"']", text.lower()))
    words = _NO_VALUE.sub("dne", words)
    return _ARTICLE.sub("", words, count=1) if _ARTICLE.match(words) else words
