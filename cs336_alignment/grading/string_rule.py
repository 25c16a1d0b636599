r"""The course's first rule: two answers are equal when their cleaned strings are.

The rule is a contract, kept for comparable accuracies, with its habit of dropping things (units, a trailing `\text`).
What it wrongly accepts is refused elsewhere (`course.py`).
"""

import re

# The contract's units: single words, each also with a plural s ...
UNIT_WORDS = frozenset(
    """Surface a ab acre am apple are bc by c cc cm coin cube cubic d day decrease deg degree dm east excess feet ft g
    gain gal gallon gm h hectare hour hr inch inches increase kg km kmh kmph l lb less liter litre loss lt m man mark
    men meter metre mile min minute minw mm monkey month more mp mph mt mtr noon number o ohm per percent pie pm prime
    profit pure ratio rd rise rounds rs rupee s sec second soldier sq square st t th tile toy unit way west woman
    women yard year yr""".split()
)
# ... and those of several words, which go first.
_UNIT_PHRASES = re.compile(
    r"(?<!\w)(?:profit of rs|no change|m sqaure|pi sq m|sq inch|sq \. m|cu \. m|p \. m|cu cm|sq m|cm 2|m east"
    r"|a \. m)s?(?!\w)"
)
_WORD = re.compile(r"(?<!\w)[A-Za-z]+(?!\w)")
_ENCLOSING_TEXT = re.compile(r"\\text\{(.+)\}", re.DOTALL)
_ARRAY = re.compile(r"\\(begin|end)\{array\}(?:\{[^{}]*\})?")
_BARE_SQRT = re.compile(r"\\sqrt([^{\[])")
_INTEGER_RATIO = re.compile(r"(-?\d+)/(-?\d+)")
_REPLACEMENTS = (
    ("\n", ""),
    ("\\!", ""),
    ("bmatrix", "pmatrix"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\neq", "\\ne"),
    ("\\leq", "\\le"),
    ("\\geq", "\\ge"),
    ("\\left", ""),
    ("\\right", ""),
)


def clean_string(answer: str) -> str:
    """The string that the rule compares. Linear in the answer's length."""
    answer = answer.strip()
    if enclosed := _ENCLOSING_TEXT.fullmatch(answer):
        answer = enclosed[1].strip()
    answer = _ARRAY.sub(r"\\\1{pmatrix}", answer)
    for old, new in _REPLACEMENTS:
        answer = answer.replace(old, new)
    answer = _drop_trailing_text(answer)
    answer = _WORD.sub(_without_unit, _UNIT_PHRASES.sub("", answer)).strip()
    for mark in ("^{\\circ}", "^\\circ", "\\$", "\\%"):
        answer = answer.replace(mark, "")
    answer = answer.replace(" .", " 0.").replace("{.", "{0.")
    if answer.startswith("."):
        answer = "0" + answer
    answer = _drop_short_left_side(answer)
    answer = _BARE_SQRT.sub(r"\\sqrt{\1}", answer).replace(" ", "")
    return _as_fraction(_complete_fractions(answer))


def _without_unit(match: re.Match[str]) -> str:
    word = match[0]
    return "" if word in UNIT_WORDS or (word.endswith("s") and word[:-1] in UNIT_WORDS) else word


def _drop_trailing_text(answer: str) -> str:
    r"""Drop from the first `\text{` on, where the string ends in a brace or it is the only one and opens with a space.

    Never the whole string.
    """
    start = answer.find("\\text{")
    trails = answer.endswith("}") or ("\\text{ " in answer and answer.count("\\text{ ") == 1)
    return answer[:start] if start > 0 and trails and answer[:start].strip() else answer


def _drop_short_left_side(answer: str) -> str:
    left, equals, right = answer.partition("=")
    return right if equals and "=" not in right and len(left.strip()) <= 2 else answer


def _complete_fractions(answer: str) -> str:
    r"""`\frac12` and `\frac1{2}` get their braces; a fraction that cannot be completed leaves the string as it was."""
    head, *tails = answer.split("\\frac")
    pieces = [head]
    for tail in tails:
        if tail.startswith("{"):
            pieces.append(tail)
        elif len(tail) < 2:
            return answer
        elif tail[1] == "{":
            pieces.append(f"{{{tail[0]}}}{tail[1:]}")
        else:
            pieces.append(f"{{{tail[0]}}}{{{tail[1]}}}{tail[2:]}")
    return "\\frac".join(pieces)


def _as_fraction(answer: str) -> str:
    if answer == "0.5":
        answer = "1/2"
    ratio = _INTEGER_RATIO.fullmatch(answer)
    return f"\\frac{{{ratio[1]}}}{{{ratio[2]}}}" if ratio else answer
