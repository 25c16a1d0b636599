"""The final number of an answer in prose: "So she has 6 + 3 = 9 apples left." says 9.

A mention of a number is dropped where the text denies it ("not 5", "5 is wrong"). Of the rest the final one is, in this
order:

1. what follows the word "answer";
2. what follows the last equals sign of the last sentence;
3. the number that the sentence opens with, if what follows only qualifies it ("9 eggs over 2 days");
4. the last that is not a circumstance ("in 2 weeks").

Where that mention is only a bound, an end of a range, or half of a compound ("2 hours 5 minutes"), the text names no
number.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from cs336_alignment.grading.bounds import UnreadableError
from cs336_alignment.grading.number_words import read_number_words

_MENTION = re.compile(
    r"""
    (?<![\w.,^{_])-?(?:\\\$\s?)?-?            # not inside a word or number; a sign, a currency
    (?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?<=\d)
    (?:\ ?/\ ?\d+(?![\w.]))?                # a fraction
    (?:\ ?\*\ ?10\ ?\^\ ?\{?-?\d+\}?)?      # a power of ten
    (?:\ ?(?:thousand|million|billion|trillion|dozen|[kK])(?![a-z]))?
    """,
    re.VERBOSE,
)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot|no longer|but|than just|nowhere near|far from|instead of)|n't)"
    r"(?: (?:\w+ly|be|been|even|quite|just))* \W*$"
)
_BUT = re.compile(r"(?<!anything )(?<!all )(?<!everything )\bbut \W*$")
_DENIED_AFTER = re.compile(
    r"\s*(?:\w+ )?(?:(?:is|was|would be|seems) (?:\w+ly )?(?:(?:the|an?) )?(?:wrong|incorrect|not|false)\b"
    r"|(?:is|was)n't\b|(?:cannot|can't|could not|couldn't) be (?:right|correct|true|it|the)\b)"
)
_BOUND_BEFORE = re.compile(
    r"\b(?:(?:less|more|fewer|greater|larger|smaller|other|rather) than|at (?:least|most)|under|below|above|up to"
    r"|except|(?:anything|everything|all) but|between|from|minimum of|maximum of)(?: about)? \W*$"
    # "over 5" is a bound where it is what is said; "9 eggs over 2 days" is not.
    r"|(?:^|\b(?:is|are|was|were|answer|be)\b|[:=])\W*(?:(?:just|well|slightly|a little) )?over \W*$"
)
_BOUND_AFTER = re.compile(
    r"\s*(?:\w+ )?(?:(?:or|and) (?:more|less|fewer|higher|lower|above|below)|at (?:least|most))\b"
)
_CIRCUMSTANCE_BEFORE = re.compile(
    r"\b(?:in|after|over|within|during|per|every|among|before|since|by|from|with|at|for each of|between|than|first|day"
    r"|step|out of|week|next|last|these|those|all|the|of the|each of the"
    r"|to (?:make|clean|travel|reach|finish|complete|fill|cover|groom|walk|run|drive))(?: the)? \W*$"
)
# For 3 days, for 4 friends; but what is bought for 5 dollars costs that.
_FOR_BEFORE = re.compile(r"\bfor(?: (?:the|these|those|his|her|their|its|all))? \W*$")
_MONEY_AFTER = re.compile(r" ?(?:dollars?|cents?|euros?|pounds?)\b")
_QUALIFIER = re.compile(
    r"[^.=]*?\b(?:over|in|per|for|after|within|every|during|from|at|among|each|with|on|out of) \W*"
    r"|\s*(?:is|was) the\b.*"
)
_COMPOUND_GAP = re.compile(
    r"\s*(?!(?:is|are|was|were|so|equals|makes|gives|leaves|leaving|yields|totals|of|per|for|in|at|by|to|on|after|before"
    r"|over|with|from|than|times|x|because|within)\b)[a-z]+,? (?:and )?"
)
_ALTERNATIVE_GAP = re.compile(
    r"(?: ?[a-z]+)?(?:\s*(?:,|-)|\s+(?:or|to|and|through)\b)(?: (?:maybe|perhaps|possibly|even|about))?[^\w=]*"
)
_REASON = re.compile(r"\(?\b(?:because|since|as we know|given that)\b(?:[^,\n]|,(?=\d))*,?")
_REMARK = re.compile(r"(?<=[\w.])\s\([^()]*\)")
_CUE = re.compile(r"\b(?:answer|ans|result|round(?:s|ed)?(?: up| down)? to)\b")
_ANSWER_AFTER = re.compile(r"[^\d.=]{0,30}?\bis (?:the|our|my) (?:final |correct )?answer\b")
_SENTENCE_END = re.compile(r"(?<=[^\s.])[.!?;](?=\s+\S)|\n")
_WORD = re.compile(r"[a-z]+")
_MAX_CHARACTERS = 4_000


@dataclass(frozen=True, slots=True)
class _Mention:
    start: int
    end: int
    text: str


def final_number(text: str) -> str | None:
    """The final number of a cleaned text, as text to be read; None where a number is named but none is the answer.

    Raises:
        UnreadableError: the text names no number at all.
    """
    text = _without_remarks(text.lower()[-_MAX_CHARACTERS:])
    mentions = [_Mention(m.start(), m.end(), m[0].strip()) for m in _MENTION.finditer(text)]
    if not mentions:
        return _final_number_words(text)
    asserted = [mention for mention in mentions if not _is_denied(text, mention)]
    final = _choose(text, asserted)
    if final is None or _is_bound(text, final) or _is_part(text, final, asserted):
        return None
    return final.text


def _without_remarks(text: str) -> str:
    """Without the reason after a number ("9, because 3 * 3 = 9") and remarks in brackets, where a number is left."""
    for pattern in (_REASON, _REMARK):
        shorter = pattern.sub(" ", text, count=20)
        if _MENTION.search(shorter) or (_WORD.search(shorter) and _says_number(shorter)):
            text = shorter
    return text


def _says_number(text: str) -> bool:
    try:
        return _final_number_words(text) is not None
    except UnreadableError:
        return False


def _is_denied(text: str, mention: _Mention) -> bool:
    before = text[max(0, mention.start - 30) : mention.start]
    if _BUT.search(before):
        return False
    return bool(_DENIED_BEFORE.search(before) or _DENIED_AFTER.match(text, mention.end))


def _is_bound(text: str, mention: _Mention) -> bool:
    before = text[max(0, mention.start - 30) : mention.start]
    return bool(_BOUND_BEFORE.search(before) or _BOUND_AFTER.match(text, mention.end))


def _choose(text: str, mentions: list[_Mention]) -> _Mention | None:
    if not mentions:
        return None
    after_cue = _after_cue(text, mentions)
    if after_cue:
        return after_cue
    start = max((match.end() for match in _SENTENCE_END.finditer(text, 0, mentions[-1].start)), default=0)
    sentence = [mention for mention in mentions if mention.start >= start]
    after_equals = _after_equals(text, start, sentence)
    if after_equals:
        return after_equals
    first, last = sentence[0], sentence[-1]
    opens = not text[start : first.start].strip(" :*-")
    if opens and len(sentence) > 1 and _QUALIFIER.fullmatch(text, first.end, sentence[1].start):
        return first
    plain = [mention for mention in sentence if not _is_circumstance(text, mention)]
    return plain[-1] if plain else last


def _after_cue(text: str, mentions: list[_Mention]) -> _Mention | None:
    for mention in mentions:
        if _ANSWER_AFTER.match(text, mention.end):
            return mention
    cues = [match.end() for match in _CUE.finditer(text)]
    for cue in reversed(cues):
        following = [mention for mention in mentions if mention.start >= cue]
        if following:
            end = _SENTENCE_END.search(text, following[0].start)
            clause_end = end.start() if end else len(text)
            in_clause = [mention for mention in following if mention.start < clause_end]
            return _after_equals(text, cue, in_clause) or following[0]
    return None


def _after_equals(text: str, start: int, mentions: list[_Mention]) -> _Mention | None:
    """The first mention after the last equals sign that has one after it."""
    equals = text.rfind("=", start, mentions[-1].start)
    return next((mention for mention in mentions if equals >= 0 and mention.start > equals), None)


def _is_circumstance(text: str, mention: _Mention) -> bool:
    before = text[max(0, mention.start - 30) : mention.start]
    is_money = "$" in mention.text or _MONEY_AFTER.match(text, mention.end)
    return bool(_CIRCUMSTANCE_BEFORE.search(before) or (_FOR_BEFORE.search(before) and not is_money))


def _is_part(text: str, final: _Mention, mentions: list[_Mention]) -> bool:
    """Half of a compound ("2 hours 5 minutes") or one of several alternatives ("5 or 6", "5-6")."""
    for left, right in pairwise(mentions):
        if final in (left, right):
            gap = text[left.end : right.start]
            if left.text != right.text and (_COMPOUND_GAP.fullmatch(gap) or _ALTERNATIVE_GAP.fullmatch(gap)):
                return True
    return False


def _final_number_words(text: str) -> str | None:
    """The last number in words."""
    words = _WORD.findall(text)
    if len(words) > 400:
        raise UnreadableError("too many words")
    final, position = None, 0
    while position < len(words):
        number = read_number_words(words[position:])
        if number is None:
            position += 1
            continue
        value, length = number
        denied = position > 0 and words[position - 1] in ("not", "than", "but", "least", "most")
        final = None if denied else str(value)
        position += length
    if final is None:
        raise UnreadableError("no number")
    return final
